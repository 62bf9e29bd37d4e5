"""Detections and ground truth in one form, whatever they come from.

Boxes become VOC's own, (x1, y1, x2, y2) in pixels that count from 1, both ends included: with them
the width ``x2 - x1 + 1`` of a box in continuous coordinates stays what it is there.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from goodtransfer.metrics.images import check_columns, pairs
from goodtransfer.metrics.voc import Detections, Floats, Ints, Objects


@dataclass(frozen=True)
class GroundTruth:
    """All images of a test set, also those without objects, and what is in them.

    Attributes:
        class_names: C, in the order of the labels.
        images: I names.
        objects: n of them: ``images``, their places in ``images``, ``labels`` from 0, ``boxes`` (n, 4) of
            VOC in pixels, and ``difficult``; a difficult one need not be found.
        sizes: width and height in pixels (I, 2), to which boxes of detections are clipped; None
            leaves them as they are.
        category_ids: COCO's number of each class, where a file of COCO's gave them.

    Raises:
        ValueError: for names that come twice, or objects that cannot be.

    >>> there = Objects([0, 1], [0, 0], [[1, 1, 10, 10], [1, 1, 5, 5]], [False, True])
    >>> truth = GroundTruth(["cat"], ["000001", "000002"], there)
    >>> truth.objects.boxes.shape, truth.images[truth.objects.images[1]]
    ((2, 4), '000002')
    """

    class_names: Sequence[str]
    images: Sequence[str]
    objects: Objects
    sizes: Ints | None = None
    category_ids: Sequence[int] = ()

    def __post_init__(self) -> None:
        objects = Objects(
            np.asarray(self.objects.images, np.int64),
            np.asarray(self.objects.labels, np.int64),
            np.asarray(self.objects.boxes, np.float64).reshape(-1, 4),
            np.asarray(self.objects.difficult, np.bool_),
        )
        object.__setattr__(self, "objects", objects)
        if not (self.class_names and self.images):
            raise ValueError(
                f"Expected classes and images in the ground truth, but got {len(self.class_names)} "
                f"classes and {len(self.images)} images."
            )
        for names in (self.class_names, self.images, self.category_ids):
            twice = [name for name, count in Counter(names).items() if count > 1]
            if twice:
                raise ValueError(
                    "Expected different names of classes and of images in the ground truth, but got "
                    f"{twice[0]!r} more than once: correct them."
                )
        check_columns("the ground truth", objects._asdict(), len(self.class_names))
        _refuse_strangers(objects.images, self, "object {}".format)
        _refuse_impossible(objects.boxes, "object {}".format)
        if self.sizes is not None and self.sizes.shape != (len(self.images), 2):
            raise ValueError(
                f"Expected width and height of each of {len(self.images)} images, but got sizes of "
                f"shape {self.sizes.shape}."
            )


def voc_pixels(boxes: ArrayLike) -> Floats:
    """VOC's boxes (n, 4) of boxes in continuous coordinates, from 0 to width and height."""
    return np.add(np.asarray(boxes, np.float64).reshape(-1, 4), [1.0, 1.0, 0.0, 0.0])


def from_tasks(
    predictions: Sequence[Mapping[str, Any]],
    targets: Sequence[Mapping[str, Any]],
    class_names: Sequence[str],
    sizes: ArrayLike | None = None,
) -> tuple[Detections, GroundTruth]:
    """What ``test_step`` of ``Detection`` and ``COCODetection`` returns, and its batches' targets.

    Args:
        predictions: of each image ``boxes`` (n, 4), continuous, ``scores`` (n,), ``labels`` (n,).
        targets: of each image ``boxes`` (m, 4), ``labels`` (m,) and, unless none is, ``difficult``
            or ``crowd`` (m,). ``image_id`` names the image, its place does where it is missing.
        class_names: in the order of the labels.
        sizes: width and height of each image (I, 2), to clip detections to.

    Raises:
        ValueError: for numbers of images that differ, an image that comes twice, or what cannot be.
    """
    matched = list(pairs(predictions, targets))
    there = [target for _, target in matched]
    free = [t.get("difficult", t.get("crowd", np.zeros(len(t["labels"])))) for t in there]
    names = tuple(str(int(t.get("image_id", place))) for place, t in enumerate(there))
    objects = Objects(
        _places([t["labels"] for t in there]),
        _joined([t["labels"] for t in there], np.int64),
        voc_pixels(_joined([t["boxes"] for t in there], np.float64, 4)),
        _joined(free, np.bool_),
    )
    found = Detections(
        _places([p["labels"] for p, _ in matched]),
        _joined([p["labels"] for p, _ in matched], np.int64),
        _joined([p["scores"] for p, _ in matched], np.float64),
        voc_pixels(_joined([p["boxes"] for p, _ in matched], np.float64, 4)),
    )
    clip = None if sizes is None else np.asarray(sizes, np.int64).reshape(-1, 2)
    return found, GroundTruth(tuple(class_names), names, objects, clip)


def _places(rows: Sequence[Any]) -> Ints:
    return np.repeat(np.arange(len(rows)), [len(each) for each in rows])


def _joined(parts: Sequence[Any], dtype: Any, *shape: int) -> Any:
    empty = np.zeros((0, *shape), dtype)
    return np.concatenate([empty, *(np.asarray(part).astype(dtype) for part in parts)])


# --- What must hold


def checked(
    detections: Detections, truth: GroundTruth, where: Callable[[int], str] = "row {}".format
) -> Detections:
    """The detections as arrays of VOC's boxes.

    Args:
        detections: D rows, as arrays, tensors or lists.
        truth: whose images and classes they are of.
        where: says where a row comes from.

    Raises:
        ValueError: for a row that cannot be diagnosed, naming it and its value.
    """
    found = Detections(
        np.asarray(detections.images, np.int64),
        np.asarray(detections.labels, np.int64),
        np.asarray(detections.scores, np.float64),
        np.asarray(detections.boxes, np.float64).reshape(-1, 4),
    )
    check_columns("the detections", found._asdict(), len(truth.class_names))
    _refuse_strangers(found.images, truth, where)
    _refuse(
        ~np.isfinite(found.scores),
        lambda row: (
            f"finite scores, but {where(row)} has {found.scores[row]}: correct or remove it."
        ),
    )
    _refuse_impossible(found.boxes, where)
    return found


def _refuse_strangers(images: Ints, truth: GroundTruth, where: Callable[[int], str]) -> None:
    _refuse(
        (images < 0) | (images >= len(truth.images)),
        lambda row: (
            f"images from 0 to {len(truth.images) - 1}, but {where(row)} is in image "
            f"{images[row]}: number images by their place in the ground truth."
        ),
    )


def _refuse_impossible(boxes: Floats, where: Callable[[int], str]) -> None:
    """NaN, infinity, and sides below zero; of one of less than a pixel x2 is below x1 here.

    Also what is beyond any image, whose area would be no number any more.
    """
    wrong = ~(np.abs(boxes) < 2.0**31).all(1) | (boxes[:, 2:] < boxes[:, :2] - 1 - 1e-6).any(1)
    _refuse(
        wrong,
        lambda row: (
            f"boxes with x1 <= x2 and y1 <= y2, but {where(row)} has x1, y1, x2, y2 = "
            f"{', '.join(f'{side:g}' for side in boxes[row])} (pixels from 1, ends included): correct "
            "or remove it."
        ),
    )


def _refuse(wrong: Any, sentence: Callable[[int], str]) -> None:
    rows = np.flatnonzero(wrong)
    if len(rows):
        raise ValueError(f"Expected {sentence(int(rows[0]))}")
