"""PASCAL VOC's average precision of detections, by detectron2's rules (protocol 3.4).

https://github.com/facebookresearch/detectron2/blob/02b5c4e295e990042a714712c21dc79b731e8833/detectron2/evaluation/pascal_voc_evaluation.py

It walks over the detections once per class and threshold; here all are matched at once. The one
difference: it leaves the order of equal scores to an unstable sort, here they keep theirs.

Shapes: D = detections, G = objects, T = thresholds, C = classes. Boxes are (x1, y1, x2, y2): in the
functions VOC's own, whose pixels count from 1 and whose ends belong to the box.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from goodtransfer.metrics.images import ImageMetric, check_columns, copies, pairs

IOU_THRESHOLDS = tuple(percent / 100 for percent in range(50, 100, 5))

Interpolation = Literal["11-point", "area"]
Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
Bools: TypeAlias = NDArray[np.bool_]


class Detections(NamedTuple):
    """What was found, a row each; among equal scores the first row goes first."""

    images: Ints  # (D,), any numbers
    labels: Ints  # (D,), 0 to C - 1
    scores: Floats  # (D,)
    boxes: Floats  # (D, 4)


class Objects(NamedTuple):
    """What is there, a row each. A difficult object need not be found, and may be."""

    images: Ints  # (G,)
    labels: Ints  # (G,)
    boxes: Floats  # (G, 4)
    difficult: Bools  # (G,)


class Outcomes(NamedTuple):
    """What became of the n detections of one class at one threshold, best score first."""

    images: Ints  # (n,), they are in
    counts: NDArray[np.int8]  # (n,), 1 as true, -1 as false, 0 as nothing
    objects: Ints  # images of the objects to be found, one each


class _Matches(NamedTuple):
    """What the n detections of one class, best score first, met at all thresholds.

    A detection is the first hit of its object at a threshold that its own IoU passes and that of no
    earlier one on the same object does: two counts of thresholds say all.
    """

    passed: Ints  # (n,), thresholds below the IoU with the best object
    taken: Ints  # (n,), thresholds at which an earlier detection has hit that object
    difficult: Bools  # (n,), whether that object is
    images: Ints  # (n,)
    objects: Ints  # images of the objects to be found

    def counts(self, threshold: int) -> NDArray[np.int8]:
        hit, first = self.passed > threshold, self.taken <= threshold
        cases = [hit & first & ~self.difficult, ~hit | ~(first | self.difficult)]
        return np.select(cases, [1, -1], 0).astype(np.int8)

    def curve(self, threshold: int) -> tuple[Floats, Floats]:
        counts, positives = self.counts(threshold), len(self.objects)
        true, false = np.cumsum(counts > 0), np.cumsum(counts < 0)
        recall = true / positives if positives else np.full(len(true), np.nan)
        return recall, true / np.maximum(true + false, 1)


@dataclass(frozen=True)
class Evaluation:
    """Average precision of every class at every threshold, and the curves under it.

    Attributes:
        ap: (T, C), 0 to 1.
        thresholds: T, of the IoU.
    """

    ap: Floats
    thresholds: tuple[float, ...]
    _matches: tuple[_Matches, ...]

    def mean(self, threshold: float | None = None) -> float:
        """Mean over the classes at a threshold, or over all thresholds too, 0 to 1."""
        return float(self.ap.mean() if threshold is None else self.ap[self._row(threshold)].mean())

    def curve(self, label: int, threshold: float = 0.5) -> tuple[Floats, Floats]:
        """Recall and precision of a class after each of its n detections, best first: (n,), (n,).

        Recall is NaN where no object is to be found.
        """
        return self._matches[label].curve(self._row(threshold))

    def outcomes(self, label: int, threshold: float = 0.5) -> Outcomes:
        """What became of each detection of a class."""
        matches = self._matches[label]
        return Outcomes(matches.images, matches.counts(self._row(threshold)), matches.objects)

    def _row(self, threshold: float) -> int:
        if threshold not in self.thresholds:
            raise ValueError(
                f"Expected `threshold` to be one of {self.thresholds}, but got {threshold}: "
                "take one of those, or evaluate with it."
            )
        return self.thresholds.index(threshold)


def evaluate(
    detections: Detections,
    objects: Objects,
    num_classes: int,
    *,
    thresholds: Sequence[float] = IOU_THRESHOLDS,
    interpolation: Interpolation = "11-point",
) -> Evaluation:
    """Match detections to objects of the same image and class, and average precision over recall.

    A detection tries one object, that of largest IoU, the first among equals. An IoU strictly above
    the threshold is a hit; a second hit of an object is false, and hits of difficult objects count
    as nothing. A class without objects to be found has AP 0 and stays in every mean (the original's
    "area" is NaN there as soon as anything is detected).

    Args:
        detections: D rows.
        objects: G rows.
        num_classes: C.
        thresholds: of the IoU, rising.
        interpolation: ``"11-point"`` as VOC 2007, ``"area"`` as VOC 2010 and later.

    Raises:
        ValueError: for columns that do not fit, labels out of range, or thresholds that do not rise.

    >>> objects = Objects(*map(np.array, ([7], [0], [[2, 1, 9, 9]], [False])))
    >>> boxes = [[1, 1, 9, 9], [2, 1, 9, 9]]  # IoU 8/9 and 1
    >>> detections = Detections(*map(np.array, ([7, 7], [0, 0], [0.9, 0.8], boxes)))
    >>> evaluate(detections, objects, num_classes=1, thresholds=(0.5, 0.9)).ap
    array([[1. ],
           [0.5]])
    """
    check_columns("`detections`", detections._asdict(), num_classes)
    check_columns("`objects`", objects._asdict(), num_classes)
    if len(thresholds) == 0 or np.any(np.diff(thresholds) <= 0):
        raise ValueError(f"Expected argument `thresholds` to rise, but got {tuple(thresholds)}.")
    order = np.lexsort((-detections.scores, detections.labels))  # stable
    detections = Detections._make(column[order] for column in detections)

    iou, best = _best_objects(detections, objects, num_classes)
    passed = (iou > np.asarray(thresholds)[:, None]).sum(0)
    hits = np.flatnonzero(passed)
    difficult = np.zeros(len(iou), bool)
    difficult[hits] = objects.difficult[best[hits]]

    # A running maximum along the hits of each object, in one go: the numbers of an object start
    # above all those of the object before.
    hits = hits[np.argsort(best[hits], kind="stable")]
    start = best[hits] * (len(thresholds) + 1)
    running = np.maximum.accumulate(start + passed[hits])
    taken = np.zeros_like(passed)
    taken[hits[1:]] = np.maximum(running[:-1] - start[1:], 0)

    ends = np.searchsorted(detections.labels, np.arange(num_classes + 1))
    wanted = [~objects.difficult & (objects.labels == label) for label in range(num_classes)]
    images = detections.images
    matches = tuple(
        _Matches(passed[a:b], taken[a:b], difficult[a:b], images[a:b], objects.images[there])
        for a, b, there in zip(ends[:-1], ends[1:], wanted, strict=True)
    )
    ap = [
        [average_precision(*m.curve(t), interpolation) if len(m.objects) else 0.0 for m in matches]
        for t in range(len(thresholds))
    ]
    return Evaluation(np.array(ap), tuple(thresholds), matches)


def average_precision(recall: Floats, precision: Floats, interpolation: Interpolation) -> float:
    """Mean of the best precision at that recall or more: at 0, .1, .. 1, or along all recall.

    Args:
        recall: (n,), rising.
        precision: (n,).
        interpolation: ``"11-point"`` or ``"area"``.
    """
    _check_interpolation(interpolation)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    if interpolation == "area":
        return float(np.diff(recall, prepend=0.0) @ best)
    # As in the original 3 * 0.1 is above 0.3, so that a recall of 3 in 10 does not reach that point.
    points = np.searchsorted(recall, np.arange(0, 1.1, 0.1))
    return float(np.append(best, 0.0)[points].mean())


def box_iou(a: Floats, b: Floats) -> Floats:
    """Intersection over union (n,) of boxes (n, 4) with boxes (n, 4), whose ends belong to them."""
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = a.T, b.T
    width = np.maximum(np.minimum(ax2, bx2) - np.maximum(ax1, bx1) + 1.0, 0.0)
    height = np.maximum(np.minimum(ay2, by2) - np.maximum(ay1, by1) + 1.0, 0.0)
    both = width * height
    areas = (ax2 - ax1 + 1.0) * (ay2 - ay1 + 1.0) + (bx2 - bx1 + 1.0) * (by2 - by1 + 1.0)
    return np.asarray(both / (areas - both))


def _best_objects(
    detections: Detections, objects: Objects, num_classes: int
) -> tuple[Floats, Ints]:
    """IoU (D,) with the best object of the same image and class, 0 without one, and its row (D,)."""
    images = np.concatenate([objects.images, detections.images])
    _, image = np.unique(images, return_inverse=True)
    group = image * num_classes + np.concatenate([objects.labels, detections.labels])
    theirs, ours = np.split(group, [len(objects.images)])
    by_group = np.argsort(theirs, kind="stable")
    first = np.searchsorted(theirs[by_group], ours)
    count = np.searchsorted(theirs[by_group], ours, side="right") - first

    iou, best = np.zeros(len(ours)), np.zeros(len(ours), np.int64)
    some = np.flatnonzero(count)
    if len(some):
        # All pairs of a detection and an object of its group, those of a detection side by side.
        first, count = first[some], count[some]
        start = np.cumsum(count) - count
        row = by_group[np.arange(count.sum()) + np.repeat(first - start, count)]
        pairs = box_iou(detections.boxes[np.repeat(some, count)], objects.boxes[row])
        iou[some] = np.maximum.reduceat(pairs, start)
        worse = pairs < np.repeat(iou[some], count)
        best[some] = np.minimum.reduceat(np.where(worse, len(theirs), row), start)
    return iou, best


_IMAGE, _DETECTION, _OBJECT, _DIFFICULT = range(4)


class VOCDetectionAP(ImageMetric):
    """VOC's AP over the images of all ranks, in percent: ``AP`` (.50:.05:.95), ``AP50``, ``AP75``.

    Boxes are continuous coordinates of the original image; an annotation's are, as in detectron2,
    (xmin - 1, ymin - 1, xmax, ymax). An image counts once, however many ranks saw it (the first
    copy), and equal scores go in the order of image ids, whoever saw which image first.

    Args:
        num_classes: C.
        interpolation: ``"11-point"`` as VOC 2007, ``"area"`` as VOC 2010 and later.
        round_as_official: scores to 3 decimals and boxes to 0.1 pixel, as detectron2 writes them.

    Raises:
        ValueError: for another interpolation, or for updates that do not fit.

    Two objects, and three detections of which the second is wrong. Up to half of the objects are found
    at a precision of 1, the rest at 2/3:

    >>> boxes = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60], [20, 20, 30, 30]])
    >>> labels = torch.zeros(3, dtype=torch.long)
    >>> found = {"boxes": boxes, "scores": torch.tensor([0.9, 0.8, 0.7]), "labels": labels}
    >>> there = {"boxes": boxes[[0, 2]], "labels": labels[:2], "image_id": 7}
    >>> ap = VOCDetectionAP(num_classes=1)
    >>> ap.update([found], [there])
    >>> round(ap.compute()["AP50"].item(), 2)  # at recalls of 0, 0.1, ..., 1: (6 * 1 + 5 * 2/3) / 11
    84.85
    """

    rows: list[Tensor]  # (n, 5) float32: box, score
    tags: list[Tensor]  # (n, 2) int64: label and kind; in the row before those of an image, its id
    higher_is_better = True

    def __init__(
        self,
        num_classes: int,
        *,
        interpolation: Interpolation = "11-point",
        round_as_official: bool = True,
    ) -> None:
        super().__init__()
        _check_interpolation(interpolation)
        self.num_classes, self.interpolation = num_classes, interpolation
        self.round_as_official = round_as_official
        self.add_rows("rows", torch.zeros(0, 5))
        self.add_rows("tags", torch.zeros(0, 2, dtype=torch.long))

    def update(
        self, predictions: Sequence[Mapping[str, Tensor]], targets: Sequence[Mapping[str, Any]]
    ) -> None:
        """Add images: one prediction and one target each.

        Args:
            predictions: ``boxes`` (n, 4), ``scores`` (n,), ``labels`` (n,) from 0.
            targets: ``boxes`` (m, 4), ``labels`` (m,), ``image_id``, an integer, and, unless none
                is, ``difficult`` (m,) bool.

        Raises:
            ValueError: for keys that are missing, columns that do not fit, or labels out of range.
        """
        for prediction, target in pairs(predictions, targets):
            found = self._columns("a prediction", prediction, "boxes", "scores", "labels")
            there = self._columns("a target", target, "boxes", "labels", "image_id")
            detected = torch.column_stack([found["boxes"], found["scores"]])
            start, objects = detected.new_zeros(1, 5), F.pad(there["boxes"], (0, 1))
            self.rows.append(torch.cat([start, detected, objects]).float())

            labels = there["labels"]
            numbers = [labels.new_tensor([int(target["image_id"])]), found["labels"], labels]
            kinds = [
                labels.new_tensor([_IMAGE]),
                torch.full_like(found["labels"], _DETECTION),
                _OBJECT + there.get("difficult", torch.zeros_like(labels)).long(),
            ]
            self.tags.append(torch.stack([torch.cat(numbers), torch.cat(kinds)], 1))

    def _columns(self, what: str, given: Mapping[str, Any], *keys: str) -> dict[str, Tensor]:
        if not set(keys) <= set(given):
            raise ValueError(f"Expected {what} to have {keys}, but got {tuple(given)}.")
        names = ("boxes", "scores", "labels", "difficult")
        columns = {name: given[name].to(self.device) for name in names if name in given}
        check_columns(what, columns, self.num_classes)
        return columns

    def compute(self) -> dict[str, Tensor]:
        """``AP``, ``AP50`` and ``AP75`` in percent: 0-d, float64, on the CPU.

        Raises:
            RuntimeError: when no rank has seen an image.
        """
        evaluation = self._evaluate()
        means = {"AP": None, "AP50": 0.5, "AP75": 0.75}
        return {
            name: torch.tensor(100 * evaluation.mean(threshold), dtype=torch.float64)
            for name, threshold in means.items()
        }

    def evaluation(self) -> Evaluation:
        """What stands behind :meth:`compute`: all classes, thresholds and curves, over all ranks.

        All ranks must ask for it, also where one alone draws it.
        """
        with self.sync_context(dist_sync_fn=self.dist_sync_fn):
            return self._evaluate()

    def _evaluate(self) -> Evaluation:
        rows, tags = (self.seen(name).cpu().numpy() for name in ("rows", "tags"))
        numbers, kinds = tags.T
        _, _, images, kept = copies(numbers, kinds == _IMAGE)

        # float32 for a while: detectron2 adds 1 before it leaves that precision, too.
        boxes = (rows[:, :4] + np.array([1, 1, 0, 0], np.float32)).astype(np.float64)
        scores = rows[:, 4].astype(np.float64)
        found = kept[kinds[kept] == _DETECTION]
        there = kept[kinds[kept] >= _OBJECT]
        detections = Detections(images[found], numbers[found], scores[found], boxes[found])
        if self.round_as_official:
            detections = detections._replace(
                scores=as_printed(detections.scores, 3), boxes=as_printed(detections.boxes, 1)
            )
        objects = Objects(images[there], numbers[there], boxes[there], kinds[there] == _DIFFICULT)
        return evaluate(detections, objects, self.num_classes, interpolation=self.interpolation)


def as_printed(values: Floats, decimals: int) -> Floats:
    """``float(f"{x:.{decimals}f}")`` of float32 values x in float64.

    Exact: x has 24 bits and 1000 x at most 34, which float64 holds, so that ``rint`` rounds what
    ``format`` does and, like it, two equally near ones to even. The quotient of two such integers
    is the float64 nearest to the decimal, which is what ``float`` reads.
    """
    return np.asarray(np.rint(values * 10.0**decimals) / 10.0**decimals)


def _check_interpolation(interpolation: str) -> None:
    if interpolation not in get_args(Interpolation):
        raise ValueError(
            f"Expected argument `interpolation` to be one of {get_args(Interpolation)}, "
            f"but got {interpolation!r}."
        )
