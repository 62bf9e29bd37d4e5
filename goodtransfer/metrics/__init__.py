"""Metrics as the official programs compute them; the functions behind them are in their files."""

from goodtransfer.metrics.accuracy import Accuracy
from goodtransfer.metrics.coco import COCODetectionAP
from goodtransfer.metrics.landmarks import LandmarkError
from goodtransfer.metrics.segmentation import SegmentationScores
from goodtransfer.metrics.voc import VOCDetectionAP

__all__ = ["Accuracy", "COCODetectionAP", "LandmarkError", "SegmentationScores", "VOCDetectionAP"]
