"""What a detection cell leaves: every detection, its precision over recall, and some pictures."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from safetensors.torch import save_file
from torch import Tensor
from torchvision.ops import box_iou
from torchvision.transforms.v2.functional import resize
from torchvision.utils import draw_bounding_boxes, save_image

from goodtransfer.data import VOCDetectionDataModule
from goodtransfer.metrics import VOCDetectionAP

RECALL = np.linspace(0, 1, 11)
SHOWN = 6  # test images in the picture
SIDE = 240  # of each, in pixels

Found = dict[int, dict[str, Tensor]]  # image_id: boxes, scores, labels


class KeepDetections(pl.Callback):
    """Holds what ``Trainer.test`` detects, by image id."""

    def __init__(self) -> None:
        self.found: Found = {}

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        for found, target in zip(outputs["detections"], batch[1], strict=True):
            self.found[int(target["image_id"])] = {k: v.cpu() for k, v in found.items()}


def write_detections(
    folder: Path, found: Found, metric: VOCDetectionAP, data: VOCDetectionDataModule
) -> None:
    """Write ``detections.safetensors``, ``precision.json`` and ``detections.png``."""
    names = [record.name for record in data.records("test")]
    ids = sorted(found)
    tensors = {k: torch.cat([found[i][k] for i in ids]).contiguous() for k in found[ids[0]]}
    counts = torch.tensor([len(found[i]["scores"]) for i in ids])
    tensors["images"] = torch.tensor(ids).repeat_interleave(counts)
    described = {"images": json.dumps(names), "class_names": json.dumps(data.class_names)}
    save_file(tensors, folder / "detections.safetensors", described)
    precision = mean_precision(metric, data.num_classes)
    curve = {"recall": RECALL.tolist(), "precision": precision.tolist()}
    (folder / "precision.json").write_text(json.dumps(curve) + "\n")
    _draw(folder / "detections.png", found, data)


def mean_precision(metric: VOCDetectionAP, num_classes: int, iou: float = 0.5) -> Any:
    """Interpolated precision at the 11 recalls, mean over classes: its mean is AP50."""
    evaluation, total = metric.evaluation(), np.zeros(len(RECALL))
    for label in range(num_classes):
        recall, precision = evaluation.curve(label, iou)
        for place, wanted in enumerate(np.arange(0, 1.1, 0.1)):
            total[place] += max(precision[recall >= wanted], default=0.0)
    return total / num_classes


@torch.no_grad()
def _draw(path: Path, found: Found, data: VOCDetectionDataModule) -> None:
    """Some test images with as many of their best detections as they have true boxes (white)."""
    dataset: Any = data.test_dataloader().dataset
    every = max(1, len(dataset) // SHOWN)
    pictures = []
    for number in range(0, len(dataset), every)[:SHOWN]:
        image, target = dataset[number]
        height, width = image.shape[-2:]
        scale = SIDE / max(height, width)
        image = resize(image, [round(height * scale), round(width * scale)], antialias=True)
        best = {k: v[: len(target["labels"])] for k, v in found[number].items()}
        true = scale * target["boxes"]
        image = draw_bounding_boxes(image, true, colors="white", width=3)
        if len(best["boxes"]):
            right = (box_iou(best["boxes"], target["boxes"]) > 0.5) & (
                best["labels"][:, None] == target["labels"]
            )
            right = right.any(1).tolist()
            titles = [
                f"{data.class_names[label]} {score:.2f}" if ok else f"({data.class_names[label]})"
                for ok, label, score in zip(right, best["labels"], best["scores"], strict=True)
            ]
            colours = ["lime" if ok else "yellow" for ok in right]
            image = draw_bounding_boxes(image, scale * best["boxes"], titles, colours, width=2)
        canvas = torch.full((3, SIDE, SIDE), 255, dtype=torch.uint8)
        canvas[:, : image.shape[1], : image.shape[2]] = image
        pictures.append(canvas / 255)
    save_image(pictures, path, nrow=3, padding=4, pad_value=1.0)
