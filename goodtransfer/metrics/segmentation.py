"""Scores of the class of each pixel, over a whole data set: mIoU, mAcc, aAcc (protocol 4.4).

Source: mmsegmentation's ``mean_iou``: intersections and unions are summed over all images before
they are divided, and pixels that do not count are left out of both.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from goodtransfer.metrics.images import ImageMetric, copies

IGNORE = 255


def confusion(predicted: Tensor, true: Tensor, num_classes: int) -> Tensor:
    """How many pixels of each true class (rows) were told as each class, int64 (C, C).

    Args:
        predicted: classes of pixels, integers of any shape.
        true: the same shape; 255 for pixels that do not count.
        num_classes: C.

    Raises:
        ValueError: for shapes that differ, or a class that is neither below C nor 255.

    >>> confusion(torch.tensor([0, 1, 1, 0]), torch.tensor([0, 0, 1, 255]), num_classes=2)
    tensor([[1, 1],
            [0, 1]])
    """
    if predicted.shape != true.shape:
        raise ValueError(
            f"Expected a class for each pixel of the truth, {tuple(true.shape)}, but got "
            f"{tuple(predicted.shape)}: resize logits, not classes, to the image."
        )
    counted = true != IGNORE
    rows, columns = true[counted].long(), predicted[counted].long()
    for what, classes in (("true", rows), ("predicted", columns)):
        if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < num_classes:
            raise ValueError(
                f"Expected {what} classes from 0 to {num_classes - 1}, or {IGNORE} in the truth, but "
                f"got {int(classes.min())} to {int(classes.max())}: the labels are of another data set."
            )
    return torch.bincount(rows * num_classes + columns, minlength=num_classes**2).view(
        num_classes, num_classes
    )


def scores(matrix: Tensor) -> dict[str, Tensor]:
    """From a confusion matrix (C, C): ``IoU`` and ``Acc`` of each class, their means, ``aAcc``.

    In percent, float64. A class that is neither there nor told has no IoU, one that is not there no
    recall: NaN, and left out of the means.

    >>> scores(torch.tensor([[3, 1], [0, 4]]))["mIoU"]
    tensor(77.5000, dtype=torch.float64)
    """
    matrix = matrix.double()
    right, there, told = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    iou, recall = 100 * right / (there + told - right), 100 * right / there
    return {
        "IoU": iou,
        "Acc": recall,
        "mIoU": iou.nanmean(),
        "mAcc": recall.nanmean(),
        "aAcc": 100 * right.sum() / matrix.sum(),
    }


class SegmentationScores(ImageMetric):
    """``mIoU``, ``mAcc`` and ``aAcc`` over the images of all ranks, in percent.

    An image counts once, however many ranks saw it.

    Args:
        num_classes: C.

    Raises:
        ValueError: for an update with classes that do not fit.
        RuntimeError: for scores of no image, or of images no pixel of which counts.

    An image of 2 x 2 pixels, one of which does not count:

    >>> scores = SegmentationScores(num_classes=2)
    >>> true = torch.tensor([[[0, 1], [0, 255]]])
    >>> scores.update(torch.tensor([[[0, 1], [1, 1]]]), {"classes": true, "image_id": torch.tensor([7])})
    >>> {name: round(score.item(), 1) for name, score in scores.compute().items()}
    {'mIoU': 50.0, 'mAcc': 75.0, 'aAcc': 66.7}
    """

    rows: list[Tensor]  # (1, 1 + C * C) int64: the image's number, its confusion matrix
    higher_is_better = True

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.add_rows("rows", torch.zeros(0, 1 + num_classes**2, dtype=torch.long))

    def update(self, predicted: Tensor, target: Mapping[str, Tensor]) -> None:
        """Add images.

        Args:
            predicted: classes (N, H, W).
            target: ``classes`` (N, H, W) with 255 for pixels that do not count, ``image_id`` (N,).
        """
        for told, true, number in zip(
            predicted, target["classes"], target["image_id"].reshape(-1), strict=True
        ):
            matrix = confusion(told, true, self.num_classes).flatten()
            self.rows.append(torch.cat([number.reshape(1).to(matrix), matrix]).unsqueeze(0))

    def matrix(self) -> Tensor:
        """The confusion matrix (C, C) of the images seen so far, of this rank unless synchronised.

        Raises:
            RuntimeError: when no rank has seen an image, or no pixel of them counts.
        """
        rows = self.seen("rows").cpu()
        kept = torch.from_numpy(copies(rows[:, 0].numpy()).kept)
        counts = rows[kept, 1:].sum(0)
        if not counts.any():
            raise RuntimeError(
                f"Expected pixels that count, but all of {len(kept)} images are {IGNORE}: pass images "
                "whose labels are published."
            )
        return counts.view(self.num_classes, self.num_classes)

    def compute(self) -> dict[str, Tensor]:
        """``mIoU``, ``mAcc``, ``aAcc`` in percent: 0-d, float64, on the CPU."""
        found = scores(self.matrix().cpu())
        return {name: found[name] for name in ("mIoU", "mAcc", "aAcc")}

    def per_class(self) -> Tensor:
        """IoU of each class (C,) in percent, NaN for one that is neither there nor told."""
        with self.sync_context(dist_sync_fn=self.dist_sync_fn):
            return scores(self.matrix().cpu())["IoU"]
