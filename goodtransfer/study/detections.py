"""What a detection cell leaves: every detection, and its precision over recall."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from safetensors.torch import save_file
from torch import Tensor

from goodtransfer.analysis import diagnose
from goodtransfer.analysis.detections import from_tasks
from goodtransfer.analysis.error_measures import measure, with_mean
from goodtransfer.analysis.errors import SLICES, Diagnosis
from goodtransfer.data import VOCDetectionDataModule
from goodtransfer.metrics import VOCDetectionAP

RECALL = np.linspace(0, 1, 11)

Found = dict[int, dict[str, Tensor]]  # image_id: boxes, scores, labels


class KeepDetections(pl.Callback):
    """Holds what ``Trainer.test`` detects and what there is, by image id."""

    def __init__(self) -> None:
        self.found: Found = {}
        self.targets: Found = {}

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
            number = int(target["image_id"])
            self.found[number] = {k: v.cpu() for k, v in found.items()}
            self.targets[number] = {k: torch.as_tensor(v).cpu() for k, v in target.items()}


def write_detections(
    folder: Path, found: Found, metric: VOCDetectionAP, data: VOCDetectionDataModule
) -> None:
    """Write ``detections.safetensors`` and ``precision.json``."""
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


def diagnosed(kept: KeepDetections, class_names: Sequence[str]) -> Diagnosis:
    """What each detection is (Figures 1 and 7)."""
    ids = sorted(kept.found)
    predictions = [{**kept.found[i], "image_id": torch.tensor(i)} for i in ids]
    return diagnose(*from_tasks(predictions, [kept.targets[i] for i in ids], class_names))


def write_errors(folder: Path, diagnosis: Diagnosis) -> float:
    """Write ``errors.safetensors``: Hoiem's measures of every class.

    Gives the share of poor localization among the first detections, in percent, mean of the classes.
    """
    measures = measure(diagnosis)
    tensors = {k: torch.from_numpy(v).contiguous() for k, v in measures._asdict().items()}
    described = {"class_names": json.dumps(list(diagnosis.truth.class_names))}
    save_file(tensors, folder / "errors.safetensors", described)
    return float(with_mean(measures.shares)[-1, SLICES.index("Loc")])


def mean_precision(metric: VOCDetectionAP, num_classes: int, iou: float = 0.5) -> Any:
    """Interpolated precision at the 11 recalls, mean over classes: its mean is AP50."""
    evaluation, total = metric.evaluation(), np.zeros(len(RECALL))
    for label in range(num_classes):
        recall, precision = evaluation.curve(label, iou)
        for place, wanted in enumerate(np.arange(0, 1.1, 0.1)):
            total[place] += max(precision[recall >= wanted], default=0.0)
    return total / num_classes
