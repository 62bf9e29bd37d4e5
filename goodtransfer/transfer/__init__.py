"""Transfer tasks: LightningModules that take an encoder and are scored."""

from goodtransfer.transfer.coco import COCODetection
from goodtransfer.transfer.detection import Detection
from goodtransfer.transfer.fewshot import FewShot
from goodtransfer.transfer.landmarks import Landmarks
from goodtransfer.transfer.linear import LinearProbe
from goodtransfer.transfer.segmentation import Segmentation

__all__ = ["COCODetection", "Detection", "FewShot", "Landmarks", "LinearProbe", "Segmentation"]
