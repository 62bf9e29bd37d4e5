"""Data modules: batches of plain RGB images with labels, objects or landmarks; no normalisation here.

Loaded when first used: drawing the toy world needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from goodtransfer.data.celeba import CelebADataModule
    from goodtransfer.data.cityscapes import CityscapesDataModule
    from goodtransfer.data.coco import COCODataModule, COCODetectionDataModule
    from goodtransfer.data.folder import ImageFolderDataModule
    from goodtransfer.data.imagenet import ImageNetDataModule
    from goodtransfer.data.mafl import MAFLDataModule
    from goodtransfer.data.mini_imagenet import MiniImageNetDataModule
    from goodtransfer.data.places import PlacesDataModule
    from goodtransfer.data.synthia import SYNTHIADataModule, SYNTHIASegmentationDataModule
    from goodtransfer.data.toy import make_imagefolder
    from goodtransfer.data.toy_layouts import (
        make_all,
        make_celeba,
        make_cityscapes,
        make_coco,
        make_mini_imagenet,
        make_places,
        make_synthia,
    )
    from goodtransfer.data.toy_voc import make_voc
    from goodtransfer.data.voc import VOCDetectionDataModule

_HOME = {
    "CelebADataModule": "celeba",
    "CityscapesDataModule": "cityscapes",
    "COCODataModule": "coco",
    "COCODetectionDataModule": "coco",
    "ImageFolderDataModule": "folder",
    "ImageNetDataModule": "imagenet",
    "MAFLDataModule": "mafl",
    "MiniImageNetDataModule": "mini_imagenet",
    "PlacesDataModule": "places",
    "SYNTHIADataModule": "synthia",
    "SYNTHIASegmentationDataModule": "synthia",
    "VOCDetectionDataModule": "voc",
    "make_imagefolder": "toy",
    "make_voc": "toy_voc",
    "make_all": "toy_layouts",
    "make_celeba": "toy_layouts",
    "make_cityscapes": "toy_layouts",
    "make_coco": "toy_layouts",
    "make_mini_imagenet": "toy_layouts",
    "make_places": "toy_layouts",
    "make_synthia": "toy_layouts",
}

__all__ = [
    "COCODataModule",
    "COCODetectionDataModule",
    "CelebADataModule",
    "CityscapesDataModule",
    "ImageFolderDataModule",
    "ImageNetDataModule",
    "MAFLDataModule",
    "MiniImageNetDataModule",
    "PlacesDataModule",
    "SYNTHIADataModule",
    "SYNTHIASegmentationDataModule",
    "VOCDetectionDataModule",
    "make_all",
    "make_celeba",
    "make_cityscapes",
    "make_coco",
    "make_imagefolder",
    "make_mini_imagenet",
    "make_places",
    "make_synthia",
    "make_voc",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
