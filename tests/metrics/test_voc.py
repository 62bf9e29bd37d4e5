"""`evaluate` and `VOCDetectionAP` against detectron2's own numbers and its loop, written out."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import goodtransfer.metrics.voc as voc_module
from goodtransfer.metrics.voc import (
    Detections,
    Objects,
    VOCDetectionAP,
    as_printed,
    average_precision,
    evaluate,
)

sys.path.insert(0, str(Path(__file__).parent))
from literal_voc import by_image, voc_ap, voc_eval

CASES = ["voc_a", "voc_b", "voc_c_no_ties"]  # the first two have equal scores
INTERPOLATIONS = {"11-point": "use_07_metric", "area": "area"}


def official(shared, case):
    folder = shared / "parity" / case
    arrays, run = load_file(folder / "inputs.safetensors"), json.loads(
        (folder / "voc_eval.json").read_text()
    )  # fmt: skip
    gt, det = arrays["gt"], arrays["det"]
    objects = Objects(gt[:, 0], gt[:, 1], gt[:, 2:6].astype(float), gt[:, 6].astype(bool))
    label, image, score = det[:, :3].T
    detections = Detections(image.astype(int), label.astype(int), score, det[:, 3:])
    return detections, objects, len(arrays["image_wh"]), run


def as_images(detections, objects, images):
    """What a task gives the metric: an image each, boxes in continuous coordinates."""
    predictions, targets = [], []
    shift = np.array([1, 1, 0, 0])
    for image in images:
        found, there = detections.images == image, objects.images == image
        predictions.append({
            "boxes": torch.tensor(detections.boxes[found] - shift, dtype=torch.float32),
            "scores": torch.tensor(detections.scores[found], dtype=torch.float32),
            "labels": torch.tensor(detections.labels[found]),
        })  # fmt: skip
        targets.append({
            "boxes": torch.tensor(objects.boxes[there] - shift, dtype=torch.float32),
            "labels": torch.tensor(objects.labels[there]),
            "difficult": torch.tensor(objects.difficult[there]),
            "image_id": int(image),
        })  # fmt: skip
    return predictions, targets


def random_case(rng, images=6, classes=3):
    """Coarse boxes and scores: equal overlaps, equal scores, duplicates, empty images and classes."""
    g, d = rng.integers(0, 12), rng.integers(0, 30)

    def boxes(n):
        corner = rng.integers(1, 5, (n, 2))
        return np.concatenate([corner, corner + rng.integers(0, 6, (n, 2))], 1).astype(float)

    objects = Objects(
        rng.integers(0, images, g), rng.integers(0, classes, g), boxes(g), rng.random(g) < 0.3
    )
    found = boxes(d)
    if g:
        near = rng.random(d) < 0.6
        at = rng.integers(0, g, d)
        jitter = rng.integers(-1, 2, (d, 4)) * rng.integers(0, 2, (d, 1)) * 0.5
        found = np.where(near[:, None], objects.boxes[at] + jitter, found)
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2])
    images, labels = rng.integers(0, images, d), rng.integers(0, classes, d)
    if g:
        images, labels = (
            np.where(near, theirs[at], ours)
            for theirs, ours in ((objects.images, images), (objects.labels, labels))
        )
    detections = Detections(images, labels, rng.integers(1, 8, d) / 8, found)
    if d and rng.random() < 0.5:  # every row again, or some
        again = rng.integers(0, d, rng.integers(1, 4))
        detections = Detections(*(np.concatenate([c, c[again]]) for c in detections))
    return detections, objects


@pytest.mark.data
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("case", CASES)
def test_equals_the_official_run_in_every_class_at_every_threshold(case, interpolation, shared):
    detections, objects, _, run = official(shared, case)
    expected = run[INTERPOLATIONS[interpolation]]
    found = evaluate(detections, objects, len(expected), interpolation=interpolation)
    assert found.ap.shape == (10, 20)
    for c, (name, by_threshold) in enumerate(expected.items()):
        assert found.ap[:, c] == pytest.approx(list(by_threshold.values()), abs=1e-9), name
    without = [c for c, name in enumerate(expected) if name in run["classes_without_positives"]]
    assert (found.ap[:, without] == 0).all()


@pytest.mark.data
@pytest.mark.parametrize("case", CASES)
def test_curves_equal_the_official_ones(case, shared):
    detections, objects, _, run = official(shared, case)
    found = evaluate(detections, objects, 20)
    classes = list(run["area"])
    assert len(run["curves"]) == 6
    for key, curve in run["curves"].items():
        name, percent = key.split("_")
        recall, precision = found.curve(classes.index(name), int(percent) / 100)
        assert np.nan_to_num(recall, nan=-1) == pytest.approx(curve["rec"], abs=1e-12)
        assert precision == pytest.approx(curve["prec"], abs=1e-12)


@pytest.mark.data
@pytest.mark.parametrize("case", CASES)
def test_the_metric_equals_the_official_evaluator(case, shared):
    detections, objects, images, run = official(shared, case)
    predictions, targets = as_images(detections, objects, range(images))
    metric = VOCDetectionAP(20)
    for i in range(0, images, 4):
        metric.update(predictions[i : i + 4], targets[i : i + 4])
    found = metric.compute()
    assert {name: float(ap) for name, ap in found.items()} == pytest.approx(
        run["evaluator"], abs=1e-9
    )
    assert all(ap.shape == () for ap in found.values())
    assert 100 * metric.evaluation().mean() == pytest.approx(run["evaluator"]["AP"], abs=1e-9)


@pytest.mark.data
def test_equals_another_program_where_its_rule_is_the_same(shared):
    """Theirs hits at an IoU equal to the threshold, too; no pair here has one. Else as VOC's."""
    folder = shared / "data/metrics_reference/object_detection_metrics"
    expected = json.loads((folder / "expected.json").read_text())
    columns = {}
    for kind, numbers in (("groundtruths", 4), ("detections", 5)):
        files = sorted((folder / kind).glob("*.txt"))
        assert len(files) == 7
        rows = [[i, *map(float, line.split()[1:])] for i, file in enumerate(files)
                for line in file.read_text().splitlines() if line]  # fmt: skip
        columns[kind] = np.array(rows)
        assert columns[kind].shape[1] == 1 + numbers
    gt, det = columns["groundtruths"], columns["detections"]
    for rows in (gt, det):
        rows[:, -2:] += rows[:, -4:-2]  # width and height to the far corner
    nothing = np.zeros(len(gt), int)
    objects = Objects(gt[:, 0].astype(int), nothing, gt[:, 1:], nothing.astype(bool))
    detections = Detections(det[:, 0].astype(int), np.zeros(len(det), int), det[:, 1], det[:, 2:])
    for interpolation, name in (("11-point", "eleven_point"), ("area", "every_point")):
        thresholds = tuple(map(float, expected[name]))
        assert thresholds == (0.1, 0.3, 0.5, 0.75)
        found = evaluate(detections, objects, 1, thresholds=thresholds, interpolation=interpolation)
        assert found.ap[:, 0] == pytest.approx(list(expected[name].values()), abs=1e-9)


def test_equals_the_loop_on_a_thousand_random_cases():
    rng = np.random.default_rng(0)
    thresholds, partly = (0.3, 0.5, 0.75, 0.9), 0
    for _ in range(1000):
        detections, objects = random_case(rng)
        found, area = (
            evaluate(detections, objects, 3, thresholds=thresholds, interpolation=interpolation)
            for interpolation in INTERPOLATIONS
        )
        files = by_image(range(6), detections, objects)
        for c in range(3):
            for t, threshold in enumerate(thresholds):
                recall, precision, ap = voc_eval(*files, c, threshold, "11-point")
                curve = found.curve(c, threshold)
                np.testing.assert_allclose(curve, (recall, precision), rtol=0, atol=1e-14)
                assert abs(found.ap[t, c] - ap) < 1e-12
                there = c in objects.labels[~objects.difficult]
                expected = voc_ap(recall, precision, "area") if there else 0.0
                assert abs(area.ap[t, c] - expected) < 1e-12
                partly += 0 < ap < 1
    assert partly > 2000  # the cases are not trivial


def test_area_of_a_class_without_objects_is_0_where_the_original_gives_nan():
    nothing = Objects(np.zeros(0, int), np.zeros(0, int), np.zeros((0, 4)), np.zeros(0, bool))
    found = Detections(np.zeros(1, int), np.zeros(1, int), np.ones(1), box([1, 1, 9, 9]))
    files = by_image([0], found, nothing)
    assert np.isnan(voc_eval(*files, 0, 0.5, "area")[2])
    assert voc_eval(*files, 0, 0.5, "11-point")[2] == 0
    assert (evaluate(found, nothing, 1, interpolation="area").ap == 0).all()


def box(*corners):
    return np.array(corners, float).reshape(-1, 4)


def test_the_threshold_itself_is_no_hit_and_a_second_best_object_is_never_tried():
    whole, half = (1, 1, 10, 10), (1, 1, 10, 5)  # IoU 50 / 100
    there = Objects(np.zeros(1, int), np.zeros(1, int), box(whole), np.zeros(1, bool))
    found = Detections(np.zeros(1, int), np.zeros(1, int), np.ones(1), box(half))
    assert evaluate(found, there, 1, thresholds=(0.4999, 0.5)).ap.tolist() == [[1.0], [0.0]]

    two = Objects(np.zeros(2, int), np.zeros(2, int), box(whole, (1, 1, 10, 9)), np.zeros(2, bool))
    both = Detections(np.zeros(2, int), np.zeros(2, int), np.array([0.9, 0.8]), box(whole, whole))
    recall, precision = evaluate(both, two, 1).curve(0)
    assert recall.tolist() == [0.5, 0.5]
    assert precision.tolist() == [1.0, 0.5]


def test_a_class_without_objects_has_ap_0_and_stays_in_the_mean():
    there = Objects(np.zeros(2, int), np.array([0, 1]), box([1, 1, 9, 9], [1, 1, 9, 9]),
                    np.array([False, True]))  # fmt: skip
    found = Detections(np.zeros(3, int), np.arange(3), np.ones(3), np.tile([1.0, 1, 9, 9], (3, 1)))
    for interpolation in INTERPOLATIONS:
        evaluation = evaluate(found, there, 4, interpolation=interpolation)
        assert evaluation.ap.tolist() == [[pytest.approx(1.0), 0, 0, 0]] * 10
        assert evaluation.mean() == evaluation.mean(0.75) == pytest.approx(0.25)
    assert np.isnan(evaluation.curve(1)[0]).all()  # one detection, of a difficult object
    assert [len(x) for x in evaluation.curve(3)] == [0, 0]


def test_a_recall_of_three_in_ten_misses_the_point_at_three_tenths():
    recall = np.array([0.1, 0.2, 0.3])
    assert average_precision(recall, np.ones(3), "11-point") == pytest.approx(3 / 11)
    assert average_precision(recall, np.ones(3), "area") == pytest.approx(0.3)


def test_numbers_that_are_not_finite_hit_nothing():
    there = Objects(np.zeros(1, int), np.zeros(1, int), box([1, 1, 9, 9]), np.zeros(1, bool))
    boxes = box([np.nan, 1, 9, 9], [1, 1, 9, 9])
    found = Detections(np.zeros(2, int), np.zeros(2, int), np.array([0.9, np.nan]), boxes)
    assert evaluate(found, there, 1).curve(0)[1].tolist() == [0, 0.5]


def test_rounding_is_that_of_the_text_files():
    rng = np.random.default_rng(0)
    ties = np.arange(-400, 4000) / 16  # among them .0625 and .25: equally near to two decimals
    values = np.concatenate([rng.random(20_000), 1500 * rng.random(20_000) - 20, ties])
    values = values.astype(np.float32)
    for decimals in (1, 3):
        printed = [float(f"{x:.{decimals}f}") for x in values]
        assert as_printed(values.astype(np.float64), decimals).tolist() == printed


def test_the_metric_evaluates_what_the_text_files_would_say(monkeypatch):
    """As detectron2 writes a line: xmin and ymin plus 1 in float32, then printed."""
    rng = np.random.default_rng(0)
    boxes = (1500 * rng.random((20_000, 4))).astype(np.float32)
    boxes[::2] = np.round(boxes[::2], 1) + np.float32(0.05)  # about equally near to two
    scores = rng.random(20_000).astype(np.float32)
    one = np.float32(1)
    lines = [
        f"{score:.3f} {x1 + one:.1f} {y1 + one:.1f} {x2:.1f} {y2:.1f}"
        for score, (x1, y1, x2, y2) in zip(scores, boxes, strict=True)
    ]
    seen = []
    monkeypatch.setattr(voc_module, "evaluate", lambda found, *_, **__: seen.append(found))
    metric = VOCDetectionAP(1)
    prediction = {
        "boxes": torch.tensor(boxes),
        "scores": torch.tensor(scores),
        "labels": torch.zeros(20_000, dtype=torch.long),
    }
    target = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long(), "image_id": 0}
    metric.update([prediction], [target])
    metric.evaluation()
    read = np.array([line.split() for line in lines], float)
    np.testing.assert_array_equal(seen[0].scores, read[:, 0])
    np.testing.assert_array_equal(seen[0].boxes, read[:, 1:])


def ready(metric, images):
    metric.update(*images)
    return metric


def test_rounding_is_a_choice():
    """Of two scores that print alike the first goes first; unrounded the better one does."""
    prediction = {
        "boxes": torch.tensor([[50.0, 50, 60, 60], [0, 0, 9, 9]]),
        "scores": torch.tensor([0.1231, 0.1232]),
        "labels": torch.zeros(2, dtype=torch.long),
    }
    target = {
        "boxes": torch.tensor([[0.0, 0, 9, 9]]),
        "labels": torch.zeros(1, dtype=torch.long),
        "image_id": torch.tensor(5),  # and no `difficult`
    }
    images = [prediction], [target]
    assert float(ready(VOCDetectionAP(1), images).compute()["AP"]) == pytest.approx(50)
    exact = VOCDetectionAP(1, round_as_official=False)
    assert float(ready(exact, images).compute()["AP"]) == pytest.approx(100)
    narrow = [{**prediction, "boxes": torch.tensor([[50.0, 50, 60, 60], [0, 0, 4.54, 9]])}]
    rounded = VOCDetectionAP(1)  # 4.54 prints as 4.5, half of 9: no hit; unrounded it is one
    assert float(ready(rounded, (narrow, [target])).compute()["AP50"]) == 0
    exact.reset()
    assert float(ready(exact, (narrow, [target])).compute()["AP50"]) == pytest.approx(100)


def many_images():
    """26 images with many equal scores; the last two are empty."""
    rng = np.random.default_rng(3)
    parts = [random_case(rng) for _ in range(4)]
    parts = [
        [rows._replace(images=rows.images + 6 * i) for rows in part] for i, part in enumerate(parts)
    ]
    detections, objects = (
        kind._make(map(np.concatenate, zip(*rows, strict=True)))
        for kind, rows in zip((Detections, Objects), zip(*parts, strict=True), strict=True)
    )
    return as_images(detections, objects, range(26))


def dealt(predictions, targets, order, metric):
    for i in order:
        metric.update([predictions[i]], [targets[i]])
    return metric


def test_an_image_seen_again_counts_once_and_the_order_of_images_changes_nothing():
    predictions, targets = many_images()
    once = dealt(predictions, targets, range(26), VOCDetectionAP(3)).evaluation()
    assert 0 < once.mean() < 1
    order = [*range(25, -1, -1), 3, 4, 25]
    again = dealt(predictions, targets, order, VOCDetectionAP(3)).evaluation()
    assert (again.ap == once.ap).all()
    assert [len(again.curve(c)[0]) for c in range(3)] == [len(once.curve(c)[0]) for c in range(3)]
    # The first copy counts, here one without any detection.
    sizes = [len(p["scores"]) for p in predictions]
    most = sizes.index(max(sizes))
    nothing = {name: value[:0] for name, value in predictions[most].items()}
    metric = VOCDetectionAP(3)
    metric.update([nothing, *predictions], [targets[most], *targets])
    counted = sum(len(metric.evaluation().curve(c)[0]) for c in range(3))
    assert counted == sum(sizes) - max(sizes)


def test_an_empty_run_says_so():
    metric = VOCDetectionAP(3)
    with pytest.raises(RuntimeError, match="Expected images to evaluate.*call `update` first"):
        metric.evaluation()
    with (
        pytest.warns(UserWarning, match="before the ``update``"),
        pytest.raises(RuntimeError, match="Expected images to evaluate"),
    ):
        metric.compute()
    predictions, targets = many_images()
    metric.update(predictions[-1:], targets[-1:])  # an image without anything
    assert [float(ap) for ap in metric.compute().values()] == [0, 0, 0]


def test_errors_name_what_came():
    found, there = {"boxes": torch.zeros(2, 4), "scores": torch.ones(2),
                    "labels": torch.tensor([0, 2])}, {"boxes": torch.zeros(1, 4),
                    "labels": torch.tensor([0]), "image_id": 1}  # fmt: skip
    metric = VOCDetectionAP(3)
    for prediction, target, sentence in (
        ({**found, "labels": torch.tensor([1, 3])}, there, "labels from 0 to 2 in a prediction, but"
         " got 1 to 3: count classes from 0, without background"),
        (found, {**there, "labels": torch.tensor([-1])}, "in a target, but got -1 to -1"),
        ({**found, "scores": torch.ones(3)}, there, r"\(n,\) in a prediction, but got .*\(3,\)"),
        ({**found, "boxes": torch.zeros(1, 4)}, there, r"'boxes': \(1, 4\)"),
        (found, {**there, "difficult": torch.zeros(2).bool()}, r"a target, .*'difficult': \(2,\)"),
        (found, {"boxes": there["boxes"], "labels": there["labels"]}, "'image_id'\\), but got"),
        ({"boxes": found["boxes"]}, there, r"a prediction to have .*'scores'.*got \('boxes',\)"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=sentence):
            metric.update([prediction], [target])
    with pytest.raises(ValueError, match="but got 1 predictions and 0 targets"):
        metric.update([found], [])
    with pytest.raises(ValueError, match="one of .*11-point.*, but got 'eleven'"):
        VOCDetectionAP(3, interpolation="eleven")

    detections, objects = random_case(np.random.default_rng(0))
    with pytest.raises(ValueError, match="labels from 0 to 0 in `detections`, but got 0 to 2"):
        evaluate(detections, objects, 1)
    with pytest.raises(ValueError, match=r"`thresholds` to rise, but got \(0.75, 0.5\)"):
        evaluate(detections, objects, 3, thresholds=(0.75, 0.5))
    with pytest.raises(ValueError, match="one of .*0.5, .*, but got 0.52"):
        evaluate(detections, objects, 3).curve(0, 0.52)
