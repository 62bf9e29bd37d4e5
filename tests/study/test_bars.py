"""Error bars and verdicts against hand-made and resampled ones."""

import math
import statistics
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from goodtransfer.analysis import diagnose
from goodtransfer.analysis.detections import GroundTruth
from goodtransfer.analysis.error_measures import measure, with_mean
from goodtransfer.analysis.errors import SLICES
from goodtransfer.metrics.voc import Detections, Objects, evaluate
from goodtransfer.study import per_image
from goodtransfer.study.bars import Difference, Interval, half_width, over_seeds
from goodtransfer.study.entries import Entry
from goodtransfer.study.plan import Study
from goodtransfer.study.resamples import RESAMPLES, Resamples, middle
from goodtransfer.study.results import Results
from goodtransfer.study.transfers import HEADINGS, NOT_RANKED
from goodtransfer.views import Batch

sys.path.insert(0, str(Path(__file__).parent))
from tiny import TINY


@pytest.mark.parametrize(("values", "t"), [([1.0, 4.0], 12.706), ([2.0, 3.0, 7.0, 1.0], 3.182)])
def test_half_width_is_student_s(values, t):
    expected = t * statistics.stdev(values) / len(values) ** 0.5
    assert half_width(values) == pytest.approx(expected)
    low, high = over_seeds(values)
    mean = statistics.fmean(values)
    assert (low, high) == pytest.approx((mean - expected, mean + expected))


def test_many_values_have_nearly_the_normal_interval_and_one_has_none():
    values = [float(n % 7) for n in range(200)]
    assert half_width(values) == pytest.approx(1.96 * statistics.stdev(values) / 200**0.5)
    assert math.isinf(half_width([3.0]))
    assert over_seeds([3.0]) is None


@pytest.mark.parametrize(
    ("seeds", "images", "verdict"),
    [
        ((1, 3), (0.5, 4), "larger"),
        ((1, 3), (-0.5, 4), "within noise"),
        ((-0.1, 3), (1, 4), "within noise"),
        (None, (1, 3), "larger"),
        ((1, 3), None, "larger"),
        (None, None, "unknown"),
    ],
)
def test_a_difference_must_be_above_both_noises(seeds, images, verdict):
    intervals = [None if ends is None else Interval(*ends) for ends in (seeds, images)]
    assert Difference(2.0, *intervals).verdict == verdict
    turned = [i and Interval(-i.high, -i.low) for i in intervals]
    assert Difference(-2.0, *turned).verdict == verdict.replace("larger", "smaller")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_not_finite_has_no_interval(bad):
    assert math.isnan(half_width([1.0, bad, 2.0]))
    assert over_seeds([1.0, bad, 2.0]) is None
    assert Entry("acc", 60.8, (1.0, bad), ("a", "b")).spread == ""
    assert Difference(bad, None, Interval(1, 3)).verdict == "unknown"
    assert str(Difference(math.nan, None, None)) == "nan, unknown"


def test_resamples_without_a_value_do_not_count():
    samples = np.append(np.arange(101.0), [np.nan] * 7)
    assert middle(samples) == pytest.approx((2.5, 97.5))
    assert middle(np.full(5, np.nan)) is None


def drawn(images, resamples, seed=0):
    """The resamples of `Resamples`, as lists of images."""
    rng = np.random.default_rng(seed)
    return [rng.integers(images, size=images) for _ in range(resamples)]


@pytest.mark.parametrize("images", [9, 1000])
def test_a_mean_is_resampled_as_if_images_were_copied(images, tmp_path):
    """Also of a set that is large enough to be resampled in parts."""
    random = np.random.default_rng(1)
    results = made(tmp_path)
    resamples = Resamples(results)
    for key in "ab":
        kept = {name: random.random(images).astype(np.float32) for name in ("scores", "lr30")}
        keep(results, key, kept)
        for column, array in (("acc", "scores"), ("acc_lr30", "lr30")):
            expected = [kept[array][draw].mean() for draw in drawn(images, RESAMPLES)]
            np.testing.assert_allclose(resamples(column, key), expected, rtol=1e-6)
            ends = np.percentile(expected, [2.5, 97.5])
            assert resamples.interval(column, key) == pytest.approx(ends)


def made(folder):
    """The results of a study without runs."""
    return Results(Study(folder, TINY))


def keep(results, key, kept):
    results.folder(key).mkdir(parents=True)
    save_file(kept, results.folder(key) / per_image.NAME)


def test_what_a_cell_did_not_keep_has_no_interval(tmp_path):
    """Nothing at all, not this array, and no column of images."""
    results = made(tmp_path)
    resamples = Resamples(results)
    assert resamples.interval("acc", "none") is None
    keep(results, "old", {"scores": np.array([0.0, 100.0], np.float32)})
    assert resamples.interval("acc", "old") is not None
    for column in ("acc_lr30", "acc_head", "voc07_loc", "landmark_error_mean_shape"):
        assert resamples.interval(column, "old") is None


def test_an_image_that_scored_nan_leaves_no_interval(tmp_path):
    results = made(tmp_path)
    for key, bad in (("nan", np.nan), ("inf", np.inf)):
        keep(results, key, {"scores": np.array([1.0, bad, 2.0])})
        assert Resamples(results).interval("landmark_error", key) is None


def test_every_column_that_is_ranked_can_be_resampled():
    assert set(per_image.COLUMNS) == set(HEADINGS) - NOT_RANKED


def test_miou_is_resampled_as_if_images_were_copied(tmp_path):
    matrices = np.random.default_rng(2).integers(0, 50, (6, 9))
    make = per_image.COLUMNS["city_mIoU"].make
    found = make({"scores": matrices}, per_image.drawn(6, 10))
    for value, draw in zip(found, drawn(6, 10), strict=True):
        total = sum(matrices[n].reshape(3, 3) for n in draw)
        iou = [total[c, c] / (total[c].sum() + total[:, c].sum() - total[c, c]) for c in range(3)]
        assert value == pytest.approx(100 * np.mean(iou))


def test_detections_are_resampled_as_if_images_were_copied(tmp_path):
    """Copies of an image are images of their own: so evaluator and diagnosis themselves say the same."""
    random = np.random.default_rng(3)
    images, classes = 7, 2

    def boxes(count):
        corner = random.integers(1, 30, (count, 2))
        return np.concatenate([corner, corner + random.integers(5, 25, (count, 2))], 1).astype(
            float
        )

    there = Objects(np.repeat(np.arange(images), 3), random.integers(0, classes, 21), boxes(21),
                    random.random(21) < 0.2)  # fmt: skip
    near = there.boxes.repeat(4, 0) + random.integers(-2, 3, (84, 4))
    found = Detections(there.images.repeat(4), there.labels.repeat(4),
                       random.permutation(84) / 84.0, near)  # fmt: skip

    class Metric:
        def evaluation(self):
            return evaluate(found, there, classes)

    def diagnosis(found, there):
        return diagnose(found, GroundTruth(("a", "b"), [str(n) for n in range(images)], there))

    per_image.write_outcomes(tmp_path, Metric(), diagnosis(found, there), images)
    assert len(load_file(tmp_path / per_image.NAME)["0.counts"]) == 10
    values, loc = (
        per_image.COLUMNS[c].make(per_image.read(c, tmp_path), per_image.drawn(images, 12))
        for c in ("voc07_AP", "voc07_loc")
    )
    for value, poor, draw in zip(values, loc, drawn(images, 12), strict=True):

        def copied(rows, draw=draw):
            picked = [(np.flatnonzero(rows.images == n), place) for place, n in enumerate(draw)]
            index = np.concatenate([i for i, _ in picked])
            place = np.concatenate([np.full(len(i), p) for i, p in picked])
            return rows._make(c[index] for c in rows)._replace(images=place)

        expected = 100 * evaluate(copied(found), copied(there), classes).mean()
        assert value == pytest.approx(expected)
        shares = measure(diagnosis(copied(found), copied(there))).shares
        assert poor == pytest.approx(with_mean(shares)[-1, SLICES.index("Loc")])
    assert 5 < values.min() < values.max() < 95
    assert 5 < loc.min() < loc.max() < 95


def test_cells_of_other_images_are_refused(tmp_path):
    results = made(tmp_path)
    for number in (5, 6):
        keep(results, str(number), {"scores": np.zeros(number)})
    resamples = Resamples(results)
    resamples("acc", "5")
    with pytest.raises(ValueError, match="tested on the same images, but acc is of 5 and 6 images"):
        resamples("acc", "6")


def test_pixels_are_confusions_of_each_image():
    class Task:
        num_classes = 2

    told = torch.tensor([[[0, 1]], [[1, 1]]])
    true = {"classes": torch.tensor([[[0, 0]], [[1, 255]]])}
    rows = per_image.pixels(Task(), (None, true), told)["scores"]
    assert rows.tolist() == [[1, 1, 0, 0], [0, 0, 0, 1]]


def test_each_classifier_of_a_readout_is_kept():
    labels = torch.tensor([0, 1, 2])
    told = {
        "predicted": torch.tensor([0, 1, 0]),
        "predicted_lr30": torch.tensor([1, 1, 2]),
        "predicted_head": torch.tensor([1, 0, 2]),
    }
    kept = per_image.right(None, Batch((torch.zeros(3, 1),), labels, None), told)
    assert {name: rows.tolist() for name, rows in kept.items()} == {
        "scores": [100, 100, 0], "lr30": [0, 100, 100], "head": [0, 0, 100],
    }  # fmt: skip
