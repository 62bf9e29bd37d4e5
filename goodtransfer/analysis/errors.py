"""Where a detector fails: localization, similar classes, other classes, background (protocol 7).

After D. Hoiem, Y. Chodpathumwan, Q. Dai, "Diagnosing Error in Object Detectors" (ECCV 2012), whose
toolbox the paper uses: Figure 1 is its trend, Figure 7 its shares. Of the detections of a class, best
first, each takes the object of the class that overlaps it most among those that no earlier one has
taken, at an IoU of 0.5 or more. One that gets none is a false positive, and the first that holds of:

* **Loc**: an IoU of 0.1 or more with an object of the class, also one that is taken (a duplicate);
* **Sim**: the same with an object of a similar class;
* **Oth**: the same with an object of any other class;
* **BG**: none of these.

Figure 7 looks at the other class that a detection overlaps most, where Figure 1 prefers similar ones;
objects of other classes, too, are then taken by the first, at an IoU of 0.1 (as the toolbox has it).
A difficult object may be found and need not be: that is correct in Figure 7, and nothing elsewhere.

Shapes: I = images, D = detections, C = classes, n = detections of one class.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from goodtransfer.analysis.detections import GroundTruth, checked
from goodtransfer.metrics.voc import Bools, Detections, Floats, Ints, Outcomes, box_iou

TYPES = ("Loc", "Sim", "Oth", "BG")
SLICES = ("Cor", *TYPES)
STRONG, WEAK = 0.5, 0.1  # IoU that is enough

# The toolbox's, setDatasetParameters.m (protocol 7.3); bottle, pottedplant and tvmonitor have none.
VOC_SIMILAR = (
    ("bird", "cat", "cow", "dog", "horse", "person", "sheep"),
    ("aeroplane", "bicycle", "boat", "bus", "car", "motorbike", "train"),
    ("bicycle", "motorbike"),
    ("chair", "diningtable", "sofa"),
    ("aeroplane", "bird"),
)
_VOC_CLASSES = {"bottle", "pottedplant", "tvmonitor"}.union(*VOC_SIMILAR)

Kinds = NDArray[np.int8]


class ClassErrors(NamedTuple):
    """What became of the n detections of one class, best score first.

    A kind is 0 for what is no false positive, else 1 to 4: its place in ``SLICES``.

    Attributes:
        rows: of the detections (n,).
        images: they are in (n,).
        strong: 1 for a true positive, 0 for a difficult object found, -1 for a false positive (n,).
        weak: the same where an IoU of 0.1 is enough, and 0 for duplicates (n,).
        kinds: of Figure 1 (n,).
        nearest: kinds of Figure 7 (n,).
        objects: images of the objects to be found, one each.
    """

    rows: Ints
    images: Ints
    strong: Kinds
    weak: Kinds
    kinds: Kinds
    nearest: Kinds
    objects: Ints

    def outcomes(self, fixed: Collection[str] = ()) -> Outcomes:
        """What the detections count as, with some types fixed.

        Fixing Loc lets an IoU of 0.1 suffice: a poor box becomes the true positive of the object
        that it takes, best score first, and duplicates count as nothing: the toolbox's ``fixloc``.
        Fixing another type takes its false positives away, as its ``ignoresimilar``; its
        ``ignorebg`` fixes Oth and BG at once.
        """
        counts = self.weak if "Loc" in fixed else self.strong
        gone = [SLICES.index(kind) for kind in fixed if kind != "Loc"]
        counts = np.where(np.isin(self.kinds, gone), np.int8(0), counts)
        return Outcomes(self.images, counts, self.objects)


@dataclass(frozen=True)
class Diagnosis:
    """The errors of one detector on one test set.

    Attributes:
        truth: the ground truth.
        similar: whether two classes are similar (C, C).
        classes: the errors of each.

    >>> from goodtransfer.metrics.voc import Objects
    >>> there = Objects([0], [0], [[1, 1, 10, 10]], [False])
    >>> found = Detections([0, 0], [0, 0], [0.9, 0.8], [[1, 1, 10, 10], [50, 50, 60, 60]])
    >>> errors = diagnose(found, GroundTruth(["cat"], ["image"], there)).classes[0]
    >>> [SLICES[kind] for kind in errors.kinds], errors.strong.tolist()
    (['Cor', 'BG'], [1, -1])
    """

    truth: GroundTruth
    similar: Bools
    classes: tuple[ClassErrors, ...]


def diagnose(
    detections: Detections,
    truth: GroundTruth,
    similar: Sequence[Collection[str]] | None = None,
) -> Diagnosis:
    """Tell what each detection is.

    Equal scores keep the order of their rows, equal overlaps that of the objects or classes.

    Args:
        detections: D rows: places of their images in ``truth``, labels, scores and VOC's boxes (D, 4) in
            pixels; clipped here to the images whose sizes are known.
        truth: the ground truth.
        similar: groups of similar classes; a class may be in several. None takes the toolbox's for
            VOC's classes, and for any others none.

    Raises:
        ValueError: for rows that cannot be diagnosed, or groups of classes that there are not.

    >>> from goodtransfer.metrics.voc import Objects
    >>> there = Objects([0, 0], [0, 1], [[1, 1, 10, 10], [21, 1, 30, 10]], [False, False])
    >>> truth = GroundTruth(["cat", "dog"], ["image"], there)
    >>> boxes = [[1, 1, 10, 10], [2, 1, 10, 10], [22, 1, 30, 10], [50, 1, 60, 10]]
    >>> found = Detections([0, 0, 0, 0], [0, 0, 0, 0], [0.9, 0.8, 0.7, 0.6], boxes)
    >>> [SLICES[kind] for kind in diagnose(found, truth, [("cat", "dog")]).classes[0].kinds]
    ['Cor', 'Loc', 'Sim', 'BG']
    """
    alike = similar_classes(truth.class_names, similar)
    detections = _clipped(checked(detections, truth), truth)
    order = np.lexsort((-detections.scores, detections.labels))  # stable
    found = Detections._make(column[order] for column in detections)
    judged = _judged(found, truth, alike)

    ends = np.searchsorted(found.labels, np.arange(len(truth.class_names) + 1))
    wanted = ~truth.objects.difficult
    classes = []
    for label, (a, b) in enumerate(pairwise(ends)):
        objects = truth.objects.images[wanted & (truth.objects.labels == label)]
        rows, images = order[a:b], found.images[a:b]
        strong, weak, kinds, nearest = (column[a:b] for column in judged)
        classes.append(ClassErrors(rows, images, strong, weak, kinds, nearest, objects))
    return Diagnosis(truth, alike, tuple(classes))


def similar_classes(
    class_names: Sequence[str], groups: Sequence[Collection[str]] | None = None
) -> Bools:
    """Whether two classes are in a group together (C, C); a class is not similar to itself."""
    names = list(class_names)
    if groups is None:
        known = VOC_SIMILAR if set(names) <= _VOC_CLASSES else ()
        groups = [[name for name in group if name in names] for group in known]
    alike = np.zeros((len(names), len(names)), np.bool_)
    for group in groups:
        unknown = [name for name in group if name not in names]
        if unknown:
            raise ValueError(
                f"Expected similar classes among {', '.join(names):.200}, but got {unknown[0]!r}: "
                "correct its name."
            )
        labels = [names.index(name) for name in group]
        alike[np.ix_(labels, labels)] = True
    np.fill_diagonal(alike, False)
    return alike


def _clipped(detections: Detections, truth: GroundTruth) -> Detections:
    """As readDetections.m: a box wholly outside becomes one that overlaps nothing."""
    if truth.sizes is None:
        return detections
    boxes = np.maximum(detections.boxes, 1.0)
    boxes[:, 2:] = np.minimum(boxes[:, 2:], truth.sizes[detections.images])
    return detections._replace(boxes=boxes)


# --- Matching


class _Overlaps(NamedTuple):
    """Pairs of a detection and an object of its image with an IoU of 0.1 or more.

    Those of a detection follow each other, the largest IoU first.
    """

    detections: Ints
    objects: Ints
    iou: Floats


def _judged(
    found: Detections, truth: GroundTruth, alike: Bools
) -> tuple[Kinds, Kinds, Kinds, Kinds]:
    """Of detections that are sorted by class and score: strong, weak, kinds, nearest (D,) each."""
    overlaps = _overlaps(found, truth)
    detections, objects = overlaps.detections, overlaps.objects
    ours, theirs = found.labels[detections], truth.objects.labels[objects]
    own, near = ours == theirs, alike[ours, theirs]

    def touched(which: Bools | Ints) -> Bools:
        return np.bincount(detections[which], minlength=len(found.labels)) > 0

    def labels(pairs: Ints) -> Kinds:
        label = np.full(len(found.labels), -1, np.int8)
        label[detections[pairs]] = ~truth.objects.difficult[objects[pairs]]
        return label

    hits = np.flatnonzero(own & (overlaps.iou >= STRONG))
    strong = labels(hits[_takes(detections[hits], objects[hits])])
    # Each class's list takes objects of all classes, one of each for a detection.
    request = detections * len(alike) + theirs
    takes = _takes(request, ours * len(truth.objects.labels) + objects)
    weak, poor = labels(np.flatnonzero(own & takes)), touched(own)
    weak[poor & (weak < 0)] = 0
    similar, other = touched(near), touched(~own & ~near)

    # A detection overlaps a class as much as it does the object it takes, or, where none is left,
    # any. Its pairs begin with the largest IoU.
    counted = np.flatnonzero(~own & (takes | ~np.isin(request, request[takes])))
    most = counted[np.unique(detections[counted], return_index=True)[1]]
    kinds = _kinds(strong, poor, similar, other)
    return strong, weak, kinds, _kinds(strong, poor, touched(most[near[most]]), other)


def _kinds(strong: Kinds, poor: Bools, similar: Bools, other: Bools) -> Kinds:
    return np.select([strong >= 0, poor, similar, other], np.arange(4), 4).astype(np.int8)


def _takes(askers: Ints, things: Ints) -> Bools:
    """Whether each pair, one after the other, is the first of its asker's whose thing is free."""
    served, gone = set(), set()
    takes = np.zeros(len(askers), np.bool_)
    for pair, (asker, thing) in enumerate(zip(askers.tolist(), things.tolist(), strict=True)):
        if asker not in served and thing not in gone:
            served.add(asker)
            gone.add(thing)
            takes[pair] = True
    return takes


def _overlaps(found: Detections, truth: GroundTruth) -> _Overlaps:
    objects = truth.objects
    by_image = np.argsort(objects.images, kind="stable")
    start = np.searchsorted(objects.images[by_image], np.arange(len(truth.images) + 1))
    parts = []
    for some in np.array_split(np.arange(len(found.images)), len(found.images) // 2**16 + 1):
        first = start[found.images[some]]
        count = start[found.images[some] + 1] - first
        # All objects of the image of a detection, side by side.
        shift = np.repeat(first - np.cumsum(count) + count, count)
        rows = by_image[np.arange(len(shift)) + shift]
        ours = np.repeat(some, count)
        with np.errstate(invalid="ignore"):  # 0 / 0 of boxes without an area overlaps nothing
            iou = box_iou(found.boxes[ours], objects.boxes[rows])
        enough = iou >= WEAK
        parts.append((ours[enough], rows[enough], iou[enough]))
    ours, rows, iou = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    order = np.lexsort((rows, objects.labels[rows], -iou, ours))
    return _Overlaps(ours[order], rows[order], iou[order])
