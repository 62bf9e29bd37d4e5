"""Pretrain an encoder, transfer it, and see why it transfers.

After Zhao, Wu, Lau, Lin, *What makes instance discrimination good for transfer learning?*, ICLR
2021. Everything public is imported from here, and loaded when it is first used:

>>> from goodtransfer import ExemplarMoCo, ImageNetDataModule
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from goodtransfer.analysis import (
        LPIPS,
        Diagnosis,
        Gallery,
        GroundTruth,
        Inversion,
        diagnose,
        invert,
        read_detections,
        win_rate,
    )
    from goodtransfer.callbacks import (
        BNLeak,
        FiniteCheck,
        KeepEncoders,
        OnlineKNN,
        OnlineProbe,
        Pictures,
        QueueHealth,
        SaveOnSigterm,
        bn_leak,
    )
    from goodtransfer.checkpoints import SafeCheckpointIO
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
    from goodtransfer.losses import info_nce, nce, nt_xent
    from goodtransfer.methods import ExemplarMoCo, InstDisc, MoCoV1, MoCoV2, SimCLR, SupervisedCE
    from goodtransfer.metrics import (
        COCODetectionAP,
        LandmarkError,
        SegmentationScores,
        VOCDetectionAP,
    )
    from goodtransfer.momentum import KeyQueue, MemoryBank
    from goodtransfer.study.card import report_card
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
    "bn_leak": "callbacks",
    "BNLeak": "callbacks",
    "CelebADataModule": "data",
    "CityscapesDataModule": "data",
    "COCODataModule": "data",
    "COCODetection": "transfer",
    "COCODetectionAP": "metrics",
    "COCODetectionDataModule": "data",
    "Detection": "transfer",
    "diagnose": "analysis",
    "Diagnosis": "analysis",
    "ExemplarMoCo": "methods",
    "FewShot": "transfer",
    "FiniteCheck": "callbacks",
    "Gallery": "analysis",
    "GroundTruth": "analysis",
    "ImageFolderDataModule": "data",
    "ImageNetDataModule": "data",
    "info_nce": "losses",
    "InstDisc": "methods",
    "Inversion": "analysis",
    "invert": "analysis",
    "KeepEncoders": "callbacks",
    "KeyQueue": "momentum",
    "LandmarkError": "metrics",
    "Landmarks": "transfer",
    "LinearProbe": "transfer",
    "load_encoder": "weights",
    "LPIPS": "analysis",
    "MAFLDataModule": "data",
    "MemoryBank": "momentum",
    "MiniImageNetDataModule": "data",
    "MoCoV1": "methods",
    "MoCoV2": "methods",
    "nce": "losses",
    "nt_xent": "losses",
    "OnlineKNN": "callbacks",
    "OnlineProbe": "callbacks",
    "Pictures": "callbacks",
    "PlacesDataModule": "data",
    "QueueHealth": "callbacks",
    "read_detections": "analysis",
    "SafeCheckpointIO": "checkpoints",
    "report_card": "study.card",
    "save_encoder": "weights",
    "SaveOnSigterm": "callbacks",
    "Segmentation": "transfer",
    "SegmentationScores": "metrics",
    "SimCLR": "methods",
    "SupervisedCE": "methods",
    "SYNTHIADataModule": "data",
    "SYNTHIASegmentationDataModule": "data",
    "VOCDetectionAP": "metrics",
    "VOCDetectionDataModule": "data",
    "win_rate": "analysis",
}

__all__ = [  # noqa: RUF022 - in the order of use
    "SupervisedCE",
    "MoCoV1",
    "MoCoV2",
    "ExemplarMoCo",
    "InstDisc",
    "SimCLR",
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
    "QueueHealth",
    "BNLeak",
    "bn_leak",
    "KeepEncoders",
    "Pictures",
    "FiniteCheck",
    "SafeCheckpointIO",
    "SaveOnSigterm",
    "diagnose",
    "Diagnosis",
    "GroundTruth",
    "read_detections",
    "invert",
    "Inversion",
    "Gallery",
    "LPIPS",
    "win_rate",
    "info_nce",
    "nt_xent",
    "nce",
    "KeyQueue",
    "MemoryBank",
    "load_encoder",
    "save_encoder",
    "report_card",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
