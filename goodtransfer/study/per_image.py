"""What each test image scored, kept by the cells, so that columns can be resampled over the images.

Shapes: I = images (of few-shot learning: episodes), B = weightings of them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor

from goodtransfer.analysis.error_measures import average_precision, shares, with_mean
from goodtransfer.analysis.errors import SLICES, Diagnosis
from goodtransfer.metrics import COCODetectionAP, VOCDetectionAP
from goodtransfer.metrics.landmarks import inter_ocular_error
from goodtransfer.metrics.segmentation import confusion, scores
from goodtransfer.metrics.voc import Floats, Ints
from goodtransfer.transfer import FewShot
from goodtransfer.views import as_batch

Kept = Mapping[str, Any]
NAME = "per_image.safetensors"


class KeepPerImage(pl.Callback):
    """Writes ``per_image.safetensors`` after a test, in the order of the test images.

    Args:
        folder: for the file.
        read: from a task, a test batch and what ``test_step`` returned, arrays by name, of a row for
            each image.
    """

    def __init__(
        self, folder: Path, read: Callable[[pl.LightningModule, Any, Any], dict[str, Tensor]]
    ) -> None:
        self.folder, self.read = folder, read
        self._rows: list[dict[str, Tensor]] = []

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._rows = []

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        found = self.read(pl_module, batch, outputs)
        self._rows.append({name: rows.cpu() for name, rows in found.items()})

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        every = {name: torch.cat([rows[name] for rows in self._rows]) for name in self._rows[0]}
        save_file({name: rows.numpy() for name, rows in every.items()}, self.folder / NAME)


# What `LinearProbe.test_step` returns, and how it is kept.
_CLASSIFIERS = {"predicted": "scores", "predicted_lr30": "lr30", "predicted_head": "head"}


def right(task: pl.LightningModule, batch: Any, outputs: Any) -> dict[str, Tensor]:
    """Whether the class of each image was told (N,), in percent, by each classifier."""
    labels = as_batch(batch).labels_for("LinearProbe")
    return {_CLASSIFIERS[k]: 100.0 * (told == labels).float() for k, told in outputs.items()}


def distance(task: pl.LightningModule, batch: Any, outputs: Any) -> dict[str, Tensor]:
    """The landmark error of each face (N,)."""
    eyes: Any = task.eyes
    true = batch[1]["landmarks"].float()
    return {"scores": inter_ocular_error(outputs["landmarks"], true, eyes)}


def pixels(task: pl.LightningModule, batch: Any, outputs: Any) -> dict[str, Tensor]:
    """The confusion matrix of each image (N, C * C)."""
    classes: Any = task.num_classes
    pairs = zip(outputs, batch[1]["classes"], strict=True)
    matrices = [confusion(told, true, classes).flatten() for told, true in pairs]
    return {"scores": torch.stack(matrices)}


def write_episodes(folder: Path, task: FewShot) -> None:
    """The accuracies of a test's episodes, by shot."""
    kept = {f"{shot}shot": a.numpy() for shot, a in task.episode_accuracies.items()}
    save_file(kept, folder / NAME)


def write_rebuilt(folder: Path, found: Sequence[Mapping[str, float]]) -> None:
    """What each rebuilt image is like, measure by measure."""
    kept = {name: np.array([scores[name] for scores in found]) for name in found[0]}
    save_file(kept, folder / NAME)


def write_outcomes(folder: Path, metric: VOCDetectionAP, diagnosis: Diagnosis, images: int) -> None:
    """What became of every detection, at every IoU, and which kind of error it is (Figure 7)."""
    evaluation = metric.evaluation()
    kept = {"images": np.array([images])}
    for label, errors in enumerate(diagnosis.classes):
        kept[f"{label}.diagnosed"] = errors.images.astype(np.int32)
        kept[f"{label}.nearest"] = errors.nearest
        every = [evaluation.outcomes(label, iou) for iou in evaluation.thresholds]
        kept[f"{label}.counts"] = np.stack([o.counts for o in every])
        kept[f"{label}.found"] = every[0].images.astype(np.int32)
        kept[f"{label}.objects"] = every[0].objects.astype(np.int32)
    save_file(kept, folder / NAME)


def write_coco_outcomes(folder: Path, metric: COCODetectionAP, images: int) -> None:
    """The same of COCO's boxes and masks."""
    kept = {"images": np.array([images])}
    for kind, classes in metric.outcomes().items():
        for label, one in enumerate(classes):
            kept[f"{kind}.{label}.counts"] = one.counts
            kept[f"{kind}.{label}.found"] = one.images.astype(np.int32)
            kept[f"{kind}.{label}.objects"] = one.objects.astype(np.int32)
    save_file(kept, folder / NAME)


# --- Resampling: of what a cell kept, and weights (I, B) of the images, a column (B,)


def _mean(kept: Kept, weights: Ints, name: str = "scores") -> Floats:
    """NaN, all of it, where an image scored NaN."""
    with np.errstate(invalid="ignore"):  # 0 * inf
        mean: Floats = kept[name].astype(np.float64) @ weights / weights.sum(0)
    return mean


def _pixel_score(kept: Kept, weights: Ints, name: str) -> Floats:
    side = math.isqrt(kept["scores"].shape[1])
    matrices = torch.from_numpy(weights.T @ kept["scores"]).view(-1, side, side)
    return np.array([float(scores(matrix)[name]) for matrix in matrices])


ALL = slice(None)  # of the thresholds .50:.05:.95
AT_50, AT_75 = slice(0, 1), slice(5, 6)


def _average_precisions(kept: Kept, weights: Ints, of: str, ious: slice, points: Any) -> Floats:
    """Of every class and threshold, from 0 to 1; NaN for a class without objects."""
    names = [name for name in kept if name.startswith(of) and name.endswith("counts")]
    found = [
        average_precision(kept[f"{one}found"], counts, kept[f"{one}objects"], weights, points)
        for one in (name.removesuffix("counts") for name in names)
        for counts in kept[f"{one}counts"][ious]
    ]
    return np.stack(found)


def _voc_ap(kept: Kept, weights: Ints, ious: slice = ALL) -> Floats:
    """A class without objects counts as 0."""
    found = _average_precisions(kept, weights, "", ious, "11-point")
    return np.asarray(100 * np.nan_to_num(found).mean(0))


def _coco_ap(kept: Kept, weights: Ints, of: str, ious: slice = ALL) -> Floats:
    """A class without objects does not count."""
    found = _average_precisions(kept, weights, of, ious, "101-point")
    known = np.isfinite(found)
    return np.asarray(100 * np.where(known, found, 0).sum(0) / np.maximum(known.sum(0), 1))


def _loc(kept: Kept, weights: Ints) -> Floats:
    """A class without objects, or without detections, does not count."""
    found = []
    for name in (name for name in kept if name.endswith(".nearest")):
        label = name.removesuffix(".nearest")
        images, objects = kept[f"{label}.diagnosed"], kept[f"{label}.objects"]
        counts = shares(images, kept[name], objects, weights)
        total = counts.sum(0)
        found.append(100 * counts[SLICES.index("Loc")] / np.where(total > 0, total, np.nan))
    return np.asarray(with_mean(np.stack(found))[-1])


class _Column(NamedTuple):
    """A column that can be resampled: the kind of cell, what it must have kept, and how it is made."""

    kind: str
    array: str  # a row for each image, unless their number is kept as "images"
    make: Callable[[Kept, Ints], Floats]


COLUMNS = {
    "acc": _Column("linear", "scores", _mean),
    "acc_lr30": _Column("linear", "lr30", partial(_mean, name="lr30")),
    "acc_head": _Column("linear", "head", partial(_mean, name="head")),
    "base_acc": _Column("base", "scores", _mean),
    "base_acc_head": _Column("base", "head", partial(_mean, name="head")),
    "novel_1shot": _Column("few_shot", "1shot", partial(_mean, name="1shot")),
    "novel_5shot": _Column("few_shot", "5shot", partial(_mean, name="5shot")),
    "landmark_error": _Column("landmarks", "scores", _mean),
    **{
        f"city_{name}": _Column("city", "scores", partial(_pixel_score, name=name))
        for name in ("mIoU", "mAcc", "aAcc")
    },
    **{
        f"{kind}_AP{at}": _Column(kind, "images", partial(_voc_ap, ious=ious))
        for kind in ("voc07", "voc0712")
        for at, ious in (("", ALL), ("50", AT_50), ("75", AT_75))
    },
    "voc07_course_AP": _Column("voc07_course", "images", _voc_ap),
    "voc07_loc": _Column("voc07", "0.nearest", _loc),
    **{
        f"coco_AP{name}{at}": _Column("coco", "images", partial(_coco_ap, of=of, ious=ious))
        for name, of in (("box", "bbox"), ("seg", "segm"))
        for at, ious in (("", ALL), ("50", AT_50), ("75", AT_75))
    },
    **{
        name: _Column("inversion", name, partial(_mean, name=name))
        for name in ("lpips_uncalibrated", "lpips", "psnr", "ssim")
    },
}


def read(column: str, folder: Path) -> Kept | None:
    """What a cell kept; None where a column cannot be made of it, as of a cell of before it was kept."""
    file = folder / NAME
    if column not in COLUMNS or not file.is_file():
        return None
    kept = load_file(file)
    return kept if COLUMNS[column].array in kept else None


def images_of(column: str, kept: Kept) -> int:
    """How many test images there were."""
    return int(kept["images"][0]) if "images" in kept else len(kept[COLUMNS[column].array])


def drawn(images: int, resamples: int, seed: int = 0) -> Ints:
    """How often each image is drawn (images, resamples)."""
    rng = np.random.default_rng(seed)
    draws = [rng.integers(images, size=images) for _ in range(resamples)]
    return np.stack([np.bincount(draw, minlength=images) for draw in draws], 1)
