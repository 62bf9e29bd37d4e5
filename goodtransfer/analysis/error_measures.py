"""What is read off a diagnosis: Figure 1's trend, Figure 7's shares, AP and what is lost (protocol 7).

Shapes: I = images, C = classes, T = ticks, n = detections of one class, B = weightings of the images.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from goodtransfer.analysis.errors import SLICES, TYPES, ClassErrors, Diagnosis, Kinds
from goodtransfer.metrics.voc import Floats, Interpolation, Ints

TICKS = (25, 50, 100, 200, 400)  # of Figure 1, false positives

# What `flat` lists: of what, and which part of it.
QUANTITIES = (
    *((f"first {tick} false positives", kind) for tick in TICKS for kind in TYPES),
    *(("first N detections", part) for part in SLICES),
    ("AP50", "as it is"),
    *(("AP50 regained", kind) for kind in TYPES),
)


class Measures(NamedTuple):
    """What is read off, in percent; NaN is undefined.

    Attributes:
        trend: each type's share of the first 25 to 400 false positives (..., C, 5, 4): Figure 1.
        shares: the share of what is correct and of each type among the first N detections, N the
            number of objects to be found, or of all where there are fewer (..., C, 5): Figure 7.
        ap: AP at an IoU of 0.5 (..., C, 1).
        regained: what AP gains where a type is fixed (..., C, 4).
    """

    trend: Floats
    shares: Floats
    ap: Floats
    regained: Floats


def measure(
    diagnosis: Diagnosis,
    weights: ArrayLike | None = None,
    *,
    double_count: bool = False,
    interpolation: Interpolation = "11-point",
) -> Measures:
    """Read off the measures, of the images as they are, or under B weightings of them.

    An image of weight w counts as w images: its objects are there w times, and each of its
    detections stands w times in its place in the list. Matching happens within an image, so it is
    as if the images had been copied and diagnosed anew.

    All of a class without objects to be found is undefined; so are shares of no detections, and a
    trend where there are too few false positives. AP is of protocol 7's matches: unlike VOC's score,
    an IoU of exactly 0.5 is a hit, so is the second best object where the best is taken, and a second
    hit of a difficult object is false.

    Args:
        diagnosis: of the images.
        weights: whole numbers (I, B), for measures (B, C, ...); None for each image once and
            measures (C, ...).
        double_count: see :func:`trend`.
        interpolation: of AP: ``"11-point"`` as VOC 2007, or ``"area"`` as the toolbox.
    """
    w = (
        np.ones((len(diagnosis.truth.images), 1), np.int64)
        if weights is None
        else np.asarray(weights)
    )
    fixes: list[tuple[str, ...]] = [(), *((kind,) for kind in TYPES)]
    trends, slices, aps = [], [], []
    for errors in diagnosis.classes:
        defined = np.where(w[errors.objects].sum(0) > 0, 100.0, np.nan)
        trends.append(_fractions(trend(errors, w, TICKS, double_count)) * defined)
        slices.append(
            _fractions(shares(errors.images, errors.nearest, errors.objects, w)) * defined
        )
        aps.append(
            [100 * average_precision(*errors.outcomes(fixed), w, interpolation) for fixed in fixes]
        )
    ap = np.array(aps).transpose(2, 0, 1)
    found = Measures(
        np.array(trends).transpose(3, 0, 1, 2),
        np.array(slices).transpose(2, 0, 1),
        ap[..., :1],
        ap[..., 1:] - ap[..., :1],
    )
    return found if weights is not None else Measures._make(values[0] for values in found)


def flat(measures: Measures) -> Floats:
    """All of them in one array (..., C, Q), in the order of ``QUANTITIES``."""
    shape = measures.ap.shape[:-1]
    return np.concatenate([values.reshape(*shape, -1) for values in measures], -1)


def with_mean(values: Floats) -> Floats:
    """A row more (..., C + 1, Q): the mean of the classes where it is defined."""
    defined = np.isfinite(values)
    count = defined.sum(-2, keepdims=True)
    total = np.where(defined, values, 0.0).sum(-2, keepdims=True)
    mean = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return np.concatenate([values, mean], -2)


def _fractions(counts: Floats) -> Floats:
    """Of their sum over the last axis but one."""
    total = counts.sum(-2, keepdims=True)
    return counts / np.where(total > 0, total, np.nan)


def trend(
    errors: ClassErrors, weights: Ints, ticks: Sequence[int] = TICKS, double_count: bool = False
) -> Floats:
    """How many of the first false positives are of each type (T, 4, B); NaN where too few.

    Args:
        errors: of a class.
        weights: of the images (I, B).
        ticks: T numbers of false positives.
        double_count: read the curve where the toolbox does: its running total of false positives
            counts background twice, so that a tick of 25 stands for 25 or fewer. Source:
            https://github.com/weiliu89/detectionAnalysis/blob/55cdf62/src/displayFPTrend.m#L10
    """
    false = np.flatnonzero(errors.kinds)
    kinds = errors.kinds[false]
    steps = np.where(double_count & (kinds == SLICES.index("BG")), 2, 1)
    totals = _running_totals(errors.images[false], steps, weights, max(ticks))
    return np.stack([_first(totals, tick, kinds, steps)[1:] for tick in ticks])


def shares(images: Ints, nearest: Kinds, objects: Ints, weights: Ints) -> Floats:
    """How many of the first N detections are correct and of each type (5, B), of ``ClassErrors``."""
    steps = np.ones(len(images), np.int64)
    number = weights[objects].sum(0)
    totals = _running_totals(images, steps, weights, number.max(initial=0))
    number = np.minimum(number, totals[-1:].sum(0))
    return _first(totals, number, nearest, steps)


def _running_totals(images: Ints, steps: Ints, weights: Ints, most: int) -> Ints:
    """Running totals (m, B) down a list, up to where all have reached ``most`` or it ends."""
    length = 2 * int(most) + 16
    while True:
        totals = np.cumsum(weights[images[:length]] * steps[:length, None], axis=0)
        if length >= len(images) or totals[-1].min() >= most:
            return totals
        length *= 4


def _first(totals: Ints, number: int | Ints, kinds: Kinds, steps: Ints) -> Floats:
    """How many of each kind (5, B) bring the running totals to a number; NaN where they end before.

    A row with several copies may be in it with some of them.
    """
    kinds, steps = kinds[: len(totals), None], steps[: len(totals), None]
    copies = -(-np.diff(np.minimum(totals, number), axis=0, prepend=0) // steps)
    counts = np.stack([(copies * (kinds == kind)).sum(0) for kind in range(len(SLICES))])
    return np.where(totals[-1:].sum(0) >= number, counts, np.nan)


def average_precision(
    images: Ints,
    counts: Kinds,
    objects: Ints,
    weights: Ints,
    interpolation: Interpolation | Literal["101-point"],
) -> Floats:
    """AP (B,) of 0 to 1 of ``metrics.voc.Outcomes``; NaN without objects to be found.

    The interpolation is VOC's, or with 101 points COCO's.

    As ``metrics.voc.average_precision``, which here needs the curve at true positives alone.
    """
    positives = weights[objects].sum(0)
    counted = np.flatnonzero(counts)
    hits = np.flatnonzero(counts[counted] > 0)
    if not len(hits):
        return np.where(positives > 0, 0.0, np.nan)
    images = images[counted[: hits[-1] + 1]]
    true = np.cumsum(weights[images[hits]], axis=0)
    # Between two true positives, the second of them included, each row is counted in one sum.
    seen = np.cumsum(np.add.reduceat(weights[images], np.append(0, hits[:-1] + 1), axis=0), axis=0)
    precision = true / np.maximum(seen, 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    recall = true / np.maximum(positives, 1)
    if interpolation == "area":
        found = _area(recall, best)
    else:
        points = np.arange(0, 1.1, 0.1) if interpolation == "11-point" else np.linspace(0, 1, 101)
        found = _at_points(recall, best, points)
    return np.where(positives > 0, found, np.nan)


def _at_points(recall: Floats, best: Floats, points: Floats) -> Floats:
    """The largest precision at a recall of at least each point, which none may reach."""
    padded = np.append(best, np.zeros_like(best[:1]), axis=0)
    places = np.stack([(recall < point).sum(0) for point in points])
    return np.asarray(np.take_along_axis(padded, places, 0).mean(0))


def _area(recall: Floats, best: Floats) -> Floats:
    return np.asarray((np.diff(recall, axis=0, prepend=0.0) * best).sum(0))
