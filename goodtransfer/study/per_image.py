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

from goodtransfer.analysis.error_measures import average_precision
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
        read: from a task, a test batch and what ``test_step`` returned, a row for each image.
    """

    def __init__(
        self, folder: Path, read: Callable[[pl.LightningModule, Any, Any], Tensor]
    ) -> None:
        self.folder, self.read = folder, read
        self._rows: list[Tensor] = []

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
        self._rows.append(self.read(pl_module, batch, outputs).cpu())

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        save_file({"scores": torch.cat(self._rows).numpy()}, self.folder / NAME)


def right(task: pl.LightningModule, batch: Any, outputs: Any) -> Tensor:
    """Whether the class of each image was told (N,), in percent."""
    predicted: Tensor = outputs["predicted"]
    return 100.0 * (predicted == as_batch(batch).labels_for("LinearProbe")).float()


def distance(task: pl.LightningModule, batch: Any, outputs: Any) -> Tensor:
    """The landmark error of each face (N,)."""
    eyes: Any = task.eyes
    return inter_ocular_error(outputs["landmarks"], batch[1]["landmarks"].float(), eyes)


def pixels(task: pl.LightningModule, batch: Any, outputs: Any) -> Tensor:
    """The confusion matrix of each image (N, C * C)."""
    classes: Any = task.num_classes
    pairs = zip(outputs, batch[1]["classes"], strict=True)
    return torch.stack([confusion(told, true, classes).flatten() for told, true in pairs])


def write_episodes(folder: Path, task: FewShot) -> None:
    """The accuracies of a test's episodes, by shot."""
    kept = {f"{shot}shot": a.numpy() for shot, a in task.episode_accuracies.items()}
    save_file(kept, folder / NAME)


def write_rebuilt(folder: Path, found: Sequence[Mapping[str, float]]) -> None:
    """What each rebuilt image is like, measure by measure."""
    kept = {name: np.array([scores[name] for scores in found]) for name in found[0]}
    save_file(kept, folder / NAME)


def write_outcomes(folder: Path, metric: VOCDetectionAP, num_classes: int, images: int) -> None:
    """What became of every detection, at every IoU."""
    evaluation = metric.evaluation()
    kept = {"images": np.array([images])}
    for label in range(num_classes):
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


class _Column(NamedTuple):
    """A column that can be resampled: the kind of cell, what it kept, and how it is made."""

    kind: str
    array: str  # whose rows are the images
    make: Callable[[Kept, Ints], Floats]


COLUMNS = {
    "acc": _Column("linear", "scores", _mean),
    "base_acc": _Column("base", "scores", _mean),
    "novel_1shot": _Column("few_shot", "1shot", partial(_mean, name="1shot")),
    "novel_5shot": _Column("few_shot", "5shot", partial(_mean, name="5shot")),
    "landmark_error": _Column("landmarks", "scores", _mean),
    **{
        f"city_{name}": _Column("city", "scores", partial(_pixel_score, name=name))
        for name in ("mIoU", "mAcc", "aAcc")
    },
    "voc07_AP": _Column("voc07", "images", _voc_ap),
    "voc07_AP50": _Column("voc07", "images", partial(_voc_ap, ious=AT_50)),
    "voc07_AP75": _Column("voc07", "images", partial(_voc_ap, ious=AT_75)),
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


def resampled(column: str, folders: Sequence[Path], resamples: int, seed: int = 0) -> Floats:
    """A column of several cells under the same resamples of the test images (cells, resamples).

    Raises:
        ValueError: for cells that were tested on different numbers of images.
    """
    _, array, make = COLUMNS[column]
    kept = [load_file(folder / NAME) for folder in folders]
    counts = {int(k[array][0]) if array == "images" else len(k[array]) for k in kept}
    if len(counts) > 1:
        raise ValueError(
            f"Expected cells that were tested on the same images, but {column} is of {counts} images."
        )
    rng, (images,) = np.random.default_rng(seed), counts
    drawn = [rng.integers(images, size=images) for _ in range(resamples)]
    weights = np.stack([np.bincount(draw, minlength=images) for draw in drawn], 1)
    return np.stack([make(k, weights) for k in kept])
