"""Data modules: batches of plain RGB images with labels or objects; no normalisation here.

Loaded when first used: drawing the toy world needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from goodtransfer.data.folder import ImageFolderDataModule
    from goodtransfer.data.imagenet import ImageNetDataModule
    from goodtransfer.data.toy import make_imagefolder
    from goodtransfer.data.toy_voc import make_voc
    from goodtransfer.data.voc import VOCDetectionDataModule

_HOME = {
    "ImageNetDataModule": "imagenet",
    "VOCDetectionDataModule": "voc",
    "make_imagefolder": "toy",
    "make_voc": "toy_voc",
}

__all__ = ["ImageNetDataModule", "VOCDetectionDataModule", "make_imagefolder", "make_voc"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
