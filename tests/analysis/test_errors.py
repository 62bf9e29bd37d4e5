"""The diagnosis against the toolbox's own numbers, and against protocol 7 written out."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from goodtransfer.analysis.detections import GroundTruth
from goodtransfer.analysis.error_measures import (
    QUANTITIES,
    TICKS,
    average_precision,
    flat,
    measure,
    shares,
    trend,
    with_mean,
)
from goodtransfer.analysis.errors import SLICES, TYPES, VOC_SIMILAR, diagnose, similar_classes
from goodtransfer.metrics.voc import Detections, Objects, evaluate

sys.path.insert(0, str(Path(__file__).parent))
import literal_errors as literal

COLUMNS = ("loc", "sim", "oth", "bg")
GROUPS = (("a", "b"), ("b", "c"))  # of the classes a to e: d and e have none similar
SIMILAR = {0: {1}, 1: {0, 2}, 2: {1}, 3: set(), 4: set()}


# --- The toolbox


@pytest.fixture(scope="module")
def toolbox(shared):
    """What it was given, what it found of each detection, and its numbers."""
    folder = shared / "parity/hoiem_a"
    given, found = (load_file(folder / f"{n}.safetensors") for n in ("inputs", "per_detection"))
    expected = json.loads((folder / "analysis.json").read_text())
    gt, det = given["gt"], given["det"]
    names = expected["classes"]
    objects = Objects(gt[:, 0], gt[:, 1], gt[:, 2:6], gt[:, 6])
    truth = GroundTruth(names, [str(i) for i in range(100)], objects, given["image_wh"])
    diagnosis = diagnose(Detections(det[:, 1], det[:, 0], det[:, 2], det[:, 3:]), truth)
    return diagnosis, found, expected["per_class"]


def once(diagnosis):
    return np.ones((len(diagnosis.truth.images), 1), int)


@pytest.mark.data
def test_every_detection_is_what_the_toolbox_says(toolbox):
    diagnosis, found, per_class = toolbox
    assert sum(len(errors.rows) for errors in diagnosis.classes) == 4976
    for name, errors in zip(per_class, diagnosis.classes, strict=True):
        assert errors.rows.tolist() == found[f"{name}.row"].tolist()
        assert errors.strong.tolist() == found[f"{name}.label_strong"].tolist()
        assert errors.kinds.tolist() == found[f"{name}.kind"].tolist()
        assert len(errors.objects) == per_class[name]["n_gt_not_difficult"]


@pytest.mark.data
def test_trend_equals_the_toolbox_counted_cleanly_and_as_it_counts(toolbox):
    diagnosis, _, per_class = toolbox
    read, quirk = measure(diagnosis), measure(diagnosis, double_count=True)
    undefined = 0
    for c, (name, expected) in enumerate(per_class.items()):
        clean = trend(diagnosis.classes[c], once(diagnosis))[..., 0]
        for tick, row, percent in zip(TICKS, clean, read.trend[c], strict=True):
            counts = expected["counts_at_total_false_positives"][str(tick)]
            if counts is None:
                undefined += 1
                assert np.isnan([*row, *percent]).all()
            else:
                assert row.tolist() == [counts[kind] for kind in COLUMNS], name
                assert percent.sum() == pytest.approx(100, abs=1e-10)
        theirs = expected["toolbox_trend_percent"]
        rows = np.array(theirs["rows"], float)  # null is NaN
        assert theirs["columns"] == list(COLUMNS)
        assert np.array_equal(quirk.trend[c], rows[:5], equal_nan=True), name
        assert theirs["ticks"][:5] == list(TICKS)
        assert not np.array_equal(read.trend[c], rows[:5], equal_nan=True), name
    assert 0 < undefined < 100


@pytest.mark.data
def test_shares_equal_the_toolbox(toolbox):
    diagnosis, _, per_class = toolbox
    columns = ("correct", *COLUMNS)
    read = measure(diagnosis)
    for c, (name, expected) in enumerate(per_class.items()):
        errors, pies = diagnosis.classes[c], expected["toolbox_topN"]
        assert shares(errors.images, errors.nearest, errors.objects, once(diagnosis))[
            :, 0
        ].tolist() == [pies[k][1] for k in columns], name
        assert read.shares[c].tolist() == [pies[k][1] / pies["total"][1] * 100 for k in columns]
        until = np.flatnonzero(errors.kinds)[99] + 1  # its other pie: the first 100 false positives
        assert np.bincount(errors.nearest[:until], minlength=5).tolist() == [
            pies[k][0] for k in columns
        ]


@pytest.mark.data
@pytest.mark.parametrize(
    ("theirs", "fixed"),
    [("all", ()), ("fix_loc", ("Loc",)), ("only_loc", TYPES[1:]), ("ignore_bg", ("Oth", "BG"))],
)
def test_ap_equals_the_toolbox_where_it_fixes_the_same(theirs, fixed, toolbox):
    """Its "bg" is all but Loc and Sim; it ignores Loc, where we fix it, in the others."""
    diagnosis, _, per_class = toolbox
    for errors, expected in zip(diagnosis.classes, per_class.values(), strict=True):
        ap = average_precision(*errors.outcomes(fixed), once(diagnosis), "area")
        assert ap == pytest.approx([expected["ap"][theirs]], abs=1e-12)


@pytest.mark.data
def test_similar_classes_of_voc_are_the_toolbox_s(toolbox):
    diagnosis, _, per_class = toolbox
    names = list(per_class)
    for name, row in zip(names, diagnosis.similar, strict=True):
        assert [names[c] for c in np.flatnonzero(row)] == per_class[name]["similar_classes"]


# --- The protocol, written out


def scene(rng, images=3, most=40):
    """Coarse boxes and scores: equal overlaps and scores, duplicates, empty images and classes."""
    g, d = rng.integers(0, 12), rng.integers(0, most)

    def boxes(n):
        corner = rng.integers(-1, 6, (n, 2))
        return np.concatenate([corner, corner + rng.integers(0, 7, (n, 2))], 1).astype(float)

    objects = Objects(
        rng.integers(0, images, g), rng.integers(0, 5, g), np.abs(boxes(g)), rng.random(g) < 0.3
    )
    objects.boxes[:, 2:] = np.maximum(objects.boxes[:, 2:], objects.boxes[:, :2])
    found, where, labels = boxes(d), rng.integers(0, images, d), rng.integers(0, 5, d)
    if g:
        near, at = rng.random(d) < 0.7, rng.integers(0, g, d)
        jitter = rng.integers(-2, 3, (d, 4)) * rng.integers(0, 2, (d, 1)) * 0.5
        found = np.where(near[:, None], objects.boxes[at] + jitter, found)
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2])
        where = np.where(near, objects.images[at], where)
        labels = np.where(rng.random(d) < 0.5, objects.labels[at], labels)
    sizes = rng.integers(5, 10, (images, 2)) if rng.random() < 0.5 else None
    truth = GroundTruth("abcde", [f"image {i}" for i in range(images)], objects, sizes)
    return Detections(where, labels, rng.integers(1, 6, d) / 8, found), truth


def test_equals_the_protocol_on_1000_random_scenes():
    rng = np.random.default_rng(0)
    seen = np.zeros((5, 5), int)
    for number in range(1000):
        detections, truth = scene(rng)
        diagnosis = diagnose(detections, truth, GROUPS)
        found, there = literal.as_rows(detections, truth)
        for label, errors in enumerate(diagnosis.classes):
            rows = literal.in_order(label, found)
            assert errors.rows.tolist() == rows
            mine = [found[row] for row in rows]
            strong, weak, kinds, pie = literal.errors_of(label, mine, there, SIMILAR[label])
            assert errors.strong.tolist() == strong
            assert errors.weak.tolist() == weak
            assert errors.kinds.tolist() == kinds
            assert errors.nearest.tolist() == pie
            np.add.at(seen, (kinds, pie), 1)
            if label == number % 5:
                check_read(errors, strong, weak, kinds, pie, once(diagnosis))
    assert (np.diag(seen) > 500).all()
    assert seen[2, 3] > 50  # Sim in Figure 1, Oth in Figure 7


def check_read(errors, strong, weak, kinds, pie, weights):
    """Trend, shares and AP of a class under a weighting, against the walk down the list."""
    ticks = (1, 2, 5, 9)
    number = int(weights[errors.objects].sum())
    for double in (False, True):
        counts = trend(errors, weights, ticks, double)[..., 0]
        for tick, row in zip(ticks, counts, strict=True):
            expected = literal.trend_counts(kinds, tick, double)
            assert np.isnan(row).all() if expected is None else row.tolist() == expected
    assert shares(errors.images, errors.nearest, errors.objects, weights)[
        :, 0
    ].tolist() == literal.top_counts(pie, number)
    interpolation = ("11-point", "area")[len(kinds) % 2]
    for fixed in ((), ("Loc",), ("Sim",), ("Oth",), ("BG",), ("Loc", "BG")):
        types = {SLICES.index(kind) for kind in fixed}
        outcomes = literal.fixed(strong, weak, kinds, types)
        expected = literal.average_precision(outcomes, number, interpolation)
        ap = average_precision(*errors.outcomes(fixed), weights, interpolation)[0]
        assert np.isnan(ap) if expected is None else ap == pytest.approx(expected, abs=1e-12)


def test_a_weight_counts_as_copies_of_the_image_would():
    rng = np.random.default_rng(1)
    partly = 0
    for _ in range(60):
        detections, truth = scene(rng, images=4, most=60)
        diagnosis = diagnose(detections, truth, GROUPS)
        weights = rng.integers(0, 4, (4, 1))
        found, there = literal.as_rows(detections, truth)
        found, there = (literal.copied(rows, weights[:, 0]) for rows in (found, there))
        for label, errors in enumerate(diagnosis.classes):
            mine = [found[row] for row in literal.in_order(label, found)]
            read = literal.errors_of(label, mine, there, SIMILAR[label])
            check_read(errors, *read, weights)
            partly += len(mine) != len(errors.rows)
    assert partly > 120


def test_the_list_is_read_as_far_as_any_weighting_needs():
    """200 false positives, Loc and BG in turn, of which the first 150 images are not drawn."""
    images = np.arange(200)
    objects = Objects(images, [0] * 200, [[1, 1, 10, 10]] * 200, [False] * 200)
    boxes = [[1, 1, 10, 3] if i % 2 else [20, 20, 29, 29] for i in images]
    found = Detections(images, [0] * 200, -images, boxes)
    errors = diagnose(found, GroundTruth("a", images.astype(str).tolist(), objects)).classes[0]
    weights = np.stack([np.ones(200, int), 3 * (images >= 150), 1 * (images >= 198)], 1)
    nan = [np.nan] * 4
    counts = trend(errors, weights, (5,))[0].T
    assert np.array_equal(counts, [[2, 0, 0, 3], [2, 0, 0, 3], nan], equal_nan=True)
    assert shares(errors.images, errors.nearest, errors.objects, weights).T.tolist() == [
        [0, 100, 0, 0, 100], [0, 75, 0, 0, 75], [0, 1, 0, 0, 1],
    ]  # fmt: skip


def test_measures_are_these_counts_in_percent():
    rng = np.random.default_rng(2)
    detections, truth = scene(rng, most=41)
    while len(detections.labels) < 40 or truth.objects.difficult.all():
        detections, truth = scene(rng, most=41)
    diagnosis = diagnose(detections, truth, GROUPS)
    weights = rng.integers(0, 30, (3, 7))
    read = measure(diagnosis, weights, interpolation="area", double_count=True)
    assert [values.shape for values in read] == [(7, 5, 5, 4), (7, 5, 5), (7, 5, 1), (7, 5, 4)]
    for b in range(7):
        for c, errors in enumerate(diagnosis.classes):
            w = weights[:, [b]]
            defined = w[errors.objects].sum() > 0
            counts = trend(errors, w, TICKS, True)[..., 0]
            expected = 100 * counts / counts.sum(1, keepdims=True)
            expected = expected if defined else np.full((5, 4), np.nan)
            assert read.trend[b, c] == pytest.approx(expected, nan_ok=True)
            ap = [
                100 * average_precision(*errors.outcomes(fixed), w, "area")[0]
                for fixed in ((), *((kind,) for kind in TYPES))
            ]
            assert read.ap[b, c, 0] == pytest.approx(ap[0], nan_ok=True)
            assert read.regained[b, c] == pytest.approx(np.subtract(ap[1:], ap[0]), nan_ok=True)
            if defined and w[errors.images].sum():
                assert read.shares[b, c].sum() == pytest.approx(100)
            else:
                assert np.isnan(read.shares[b, c]).all()
    assert np.isfinite(read.trend).any()
    assert np.isnan(read.trend).any()


def test_ap_equals_voc_s_where_the_matches_are_the_same():
    """No overlap is exactly 0.5, an object's neighbours are far away, and no object is difficult."""
    rng = np.random.default_rng(3)
    at = np.arange(40)
    boxes = np.stack([60 * at, 0 * at, 60 * at + 30, 0 * at + 30], 1) + 1.0
    objects = Objects(at % 4, at % 5, boxes, np.zeros(40, bool))
    rows = rng.integers(0, 40, 300)
    moved = boxes[rows] + rng.normal(0, 5, (300, 1))
    found = Detections(objects.images[rows], objects.labels[rows], rng.random(300), moved)
    diagnosis = diagnose(found, GroundTruth("abcde", "wxyz", objects))
    for interpolation in ("11-point", "area"):
        expected = evaluate(found, objects, 5, thresholds=(0.5,), interpolation=interpolation)
        read = measure(diagnosis, interpolation=interpolation)
        assert read.ap[:, 0] == pytest.approx(100 * expected.ap[0], abs=1e-9)
        assert 20 < read.ap.mean() < 95


# --- By hand


def by_hand(boxes, scores, labels, similar=GROUPS):
    """An object of each class a, b and d in a row, and a difficult a."""
    there = [[1, 1, 10, 10], [21, 1, 30, 10], [41, 1, 50, 10], [61, 1, 70, 10]]
    objects = Objects([0] * 4, [0, 1, 3, 0], there, [False, False, False, True])
    truth = GroundTruth("abcde", ["only"], objects)
    return diagnose(Detections([0] * len(boxes), labels, scores, boxes), truth, similar)


def test_each_kind_by_hand():
    boxes = [
        [1, 1, 10, 10], [1, 1, 10, 9], [1, 1, 10, 4], [21, 1, 30, 10], [41, 1, 50, 10],
        [81, 1, 90, 10], [61, 1, 70, 10], [61, 1, 70, 10],
    ]  # fmt: skip
    scores = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2]
    errors = by_hand(boxes, scores, [0] * 8).classes[0]
    told = [SLICES[kind] for kind in errors.kinds]
    assert told == ["Cor", "Loc", "Loc", "Sim", "Oth", "BG", "Cor", "Loc"]
    assert errors.strong.tolist() == [1, -1, -1, -1, -1, -1, 0, -1]
    assert errors.outcomes(("Loc", "Sim", "Oth", "BG")).counts.tolist() == [1, 0, 0, 0, 0, 0, 0, 0]


def test_an_iou_of_exactly_a_half_is_a_hit_and_of_a_tenth_is_weak():
    half, tenth, less = [1, 1, 10, 5], [1, 1, 10, 1], [1, 1, 9, 1]  # of 10 x 10 pixels
    kinds = [by_hand([box], [0.5], [0]).classes[0].kinds[0] for box in (half, tenth, less)]
    assert [SLICES[kind] for kind in kinds] == ["Cor", "Loc", "BG"]


def test_the_second_best_object_is_taken_where_the_best_is():
    """Unlike VOC's score, for which the second detection is a duplicate."""
    there = Objects([0, 0], [0, 0], [[1, 1, 10, 10], [3, 1, 12, 10]], [False, False])
    found = Detections([0, 0], [0, 0], [0.9, 0.8], [[1, 1, 10, 10], [1, 1, 10, 10]])
    errors = diagnose(found, GroundTruth(["cat"], ["one"], there)).classes[0]
    assert errors.strong.tolist() == [1, 1]


def test_boxes_without_an_area_overlap_nothing():
    """Outside the image a box is clipped to an area below zero: with the object's, to 0 / 0."""
    there = Objects([0], [0], [[1, 1, 10, 10]], [False])
    found = Detections([0, 0], [0, 0], [0.9, 0.8], [[21, 1, 30, 10], [6, 6, 5, 5]])
    truth = GroundTruth(["cat"], ["one"], there, np.array([[10, 10]]))
    assert [SLICES[kind] for kind in diagnose(found, truth).classes[0].kinds] == ["BG", "BG"]


def test_a_fixed_box_takes_the_object_that_no_better_one_has():
    boxes = [[1, 1, 10, 4], [1, 1, 10, 10]]  # first a poor box, then a good one
    errors = by_hand(boxes, [0.9, 0.8], [0, 0]).classes[0]
    assert errors.outcomes().counts.tolist() == [-1, 1]
    assert errors.outcomes(("Loc",)).counts.tolist() == [1, 0]


def test_classes_without_objects_are_undefined_not_zero():
    diagnosis = by_hand([[1, 1, 10, 10]] * 30, np.linspace(1, 0.5, 30), [2] * 30)
    read = measure(diagnosis)
    assert SLICES[diagnosis.classes[2].kinds[0]] == "Oth"  # a is not similar to c; b is elsewhere
    for values in read:
        assert np.isnan(values[2]).all()  # c: 30 false positives, no object
        assert np.isnan(values[4]).all()  # e: neither
    assert np.isnan(read.shares[0]).all()  # a: an object, and nothing detected
    assert read.ap[0, 0] == 0
    mean = with_mean(flat(read))[-1]
    assert mean[[of == "AP50" for of, _ in QUANTITIES]] == 0
    assert np.isnan(mean[0])


# --- Similar classes


def test_groups_of_classes():
    names = ["cup", "mug", "saw"]
    assert not similar_classes(names).any()
    assert similar_classes(names, [("mug", "cup")]).tolist() == [
        [False, True, False], [True, False, False], [False, False, False],
    ]  # fmt: skip
    some = ["sheep", "tvmonitor", "bird", "boat"]  # of VOC's, in any order
    expected = np.zeros((4, 4), bool)
    expected[0, 2] = expected[2, 0] = True
    assert np.array_equal(similar_classes(some), expected)
    with pytest.raises(
        ValueError, match="Expected similar classes among cup, mug, saw, but got 'cop'"
    ):
        similar_classes(names, [("mug", "cop")])
    assert len({name for group in VOC_SIMILAR for name in group}) == 17
