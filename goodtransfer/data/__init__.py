"""Data modules: batches of plain RGB views, labels and indices; no normalisation here.

Loaded when first used: drawing the toy world needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from goodtransfer.data.imagenet import ImageNetDataModule
    from goodtransfer.data.toy import make_imagefolder

_HOME = {"ImageNetDataModule": "imagenet", "make_imagefolder": "toy"}

__all__ = ["ImageNetDataModule", "make_imagefolder"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
