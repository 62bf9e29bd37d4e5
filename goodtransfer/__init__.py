"""Pretrain an encoder, transfer it, and see why it transfers.

After Zhao, Wu, Lau, Lin, *What makes instance discrimination good for transfer learning?*, ICLR
2021. Everything public is imported from here, and loaded when it is first used:

>>> from goodtransfer import ExemplarMoCo, ImageNetDataModule
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from goodtransfer.callbacks import OnlineKNN, OnlineProbe, Pictures
    from goodtransfer.data import (
        CelebADataModule,
        CityscapesDataModule,
        COCODataModule,
        COCODetectionDataModule,
        ImageFolderDataModule,
        ImageNetDataModule,
        MAFLDataModule,
        MiniImageNetDataModule,
        PlacesDataModule,
        SYNTHIADataModule,
        SYNTHIASegmentationDataModule,
        VOCDetectionDataModule,
    )
    from goodtransfer.losses import info_nce
    from goodtransfer.methods import ExemplarMoCo, MoCoV1, MoCoV2, SupervisedCE
    from goodtransfer.metrics import (
        COCODetectionAP,
        LandmarkError,
        SegmentationScores,
        VOCDetectionAP,
    )
    from goodtransfer.momentum import KeyQueue
    from goodtransfer.transfer import (
        COCODetection,
        Detection,
        FewShot,
        Landmarks,
        LinearProbe,
        Segmentation,
    )
    from goodtransfer.weights import load_encoder, save_encoder

__version__ = "0.1.0"

_HOME = {
    "CelebADataModule": "data",
    "CityscapesDataModule": "data",
    "COCODataModule": "data",
    "COCODetection": "transfer",
    "COCODetectionAP": "metrics",
    "COCODetectionDataModule": "data",
    "Detection": "transfer",
    "ExemplarMoCo": "methods",
    "FewShot": "transfer",
    "ImageFolderDataModule": "data",
    "ImageNetDataModule": "data",
    "info_nce": "losses",
    "KeyQueue": "momentum",
    "LandmarkError": "metrics",
    "Landmarks": "transfer",
    "LinearProbe": "transfer",
    "load_encoder": "weights",
    "MAFLDataModule": "data",
    "MiniImageNetDataModule": "data",
    "MoCoV1": "methods",
    "MoCoV2": "methods",
    "OnlineKNN": "callbacks",
    "OnlineProbe": "callbacks",
    "Pictures": "callbacks",
    "PlacesDataModule": "data",
    "save_encoder": "weights",
    "Segmentation": "transfer",
    "SegmentationScores": "metrics",
    "SupervisedCE": "methods",
    "SYNTHIADataModule": "data",
    "SYNTHIASegmentationDataModule": "data",
    "VOCDetectionAP": "metrics",
    "VOCDetectionDataModule": "data",
}

__all__ = [  # noqa: RUF022 - in the order of use
    "SupervisedCE",
    "MoCoV1",
    "MoCoV2",
    "ExemplarMoCo",
    "ImageNetDataModule",
    "ImageFolderDataModule",
    "PlacesDataModule",
    "CelebADataModule",
    "COCODataModule",
    "SYNTHIADataModule",
    "MiniImageNetDataModule",
    "VOCDetectionDataModule",
    "COCODetectionDataModule",
    "CityscapesDataModule",
    "SYNTHIASegmentationDataModule",
    "MAFLDataModule",
    "LinearProbe",
    "Detection",
    "COCODetection",
    "Segmentation",
    "FewShot",
    "Landmarks",
    "VOCDetectionAP",
    "COCODetectionAP",
    "SegmentationScores",
    "LandmarkError",
    "OnlineProbe",
    "OnlineKNN",
    "Pictures",
    "info_nce",
    "KeyQueue",
    "load_encoder",
    "save_encoder",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
