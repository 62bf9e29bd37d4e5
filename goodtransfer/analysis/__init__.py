"""Why a pretraining transfers: where detections fail, what features remember."""

from goodtransfer.analysis.detection_files import read_detections
from goodtransfer.analysis.detections import GroundTruth
from goodtransfer.analysis.errors import Diagnosis, diagnose
from goodtransfer.analysis.gallery import Gallery
from goodtransfer.analysis.inversion import Inversion, invert
from goodtransfer.analysis.perceptual import LPIPS, win_rate

__all__ = [
    "LPIPS",
    "Diagnosis",
    "Gallery",
    "GroundTruth",
    "Inversion",
    "diagnose",
    "invert",
    "read_detections",
    "win_rate",
]
