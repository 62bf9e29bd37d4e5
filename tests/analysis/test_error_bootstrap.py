"""The bootstrap draws images, for all models the same, and its intervals are honest."""

import numpy as np
import pytest

from goodtransfer.analysis.detections import GroundTruth
from goodtransfer.analysis.error_bootstrap import Estimate, bootstrap, estimate
from goodtransfer.analysis.error_measures import QUANTITIES, flat, measure
from goodtransfer.analysis.errors import diagnose
from goodtransfer.metrics.voc import Detections, Objects


def detectors(seed=0, images=60):
    """Ground truth, and a good and a bad detector: the second confuses a with b."""
    rng = np.random.default_rng(seed)
    where = np.repeat(np.arange(images), 2)
    corner = rng.integers(1, 100, (2 * images, 2)) * 1.0
    boxes = np.concatenate([corner, corner + 40], 1)
    labels = rng.integers(0, 2, 2 * images)
    objects = Objects(where, labels, boxes, np.zeros(2 * images, bool))
    truth = GroundTruth(["a", "b"], [str(i) for i in range(images)], objects)

    def detect(confused):
        wrong = rng.random(2 * images) < confused
        noise = rng.normal(0, 4, boxes.shape)
        return Detections(
            where, np.where(wrong, 1 - labels, labels), rng.random(len(where)), boxes + noise
        )

    return truth, detect(0.05), detect(0.6)


def test_bootstrap_reads_all_models_off_the_images_that_were_drawn():
    truth, good, bad = detectors()
    pair = [diagnose(each, truth, [("a", "b")]) for each in (good, bad)]
    samples = bootstrap(pair, 120, seed=5)
    assert samples.shape == (2, 120, 2, len(QUANTITIES))
    rng = np.random.default_rng(5)
    for number in range(120):  # in one go, whatever is computed at once
        drawn = np.bincount(rng.integers(60, size=60), minlength=60)
        if number in (0, 49, 50, 119):
            for diagnosis, values in zip(pair, samples[:, number], strict=True):
                again = flat(measure(diagnosis, drawn[:, None]))[0]
                assert values == pytest.approx(again, abs=1e-9, nan_ok=True)
    assert np.array_equal(samples, bootstrap(pair, 120, seed=5), equal_nan=True)
    assert not np.array_equal(samples, bootstrap(pair, 120, seed=6), equal_nan=True)


def test_intervals_are_percentiles_of_classes_and_of_their_mean():
    rng = np.random.default_rng(0)
    values, samples = rng.random((3, 4)), rng.random((50, 3, 4))
    values[1, 2] = np.nan
    samples[:10, 0, 0] = np.nan
    found = estimate(values, samples)
    assert found.low[2, 3] == np.percentile(samples[:, 2, 3], 2.5)
    assert found.high[0, 0] == np.percentile(samples[10:, 0, 0], 97.5)
    assert found.value[3, 2] == pytest.approx((values[0, 2] + values[2, 2]) / 2)
    assert found.high[3, 2] == pytest.approx(np.percentile(samples[:, [0, 2], 2].mean(1), 97.5))
    assert np.isnan([found.low[1, 2], found.high[1, 2]]).all()
    assert Estimate(*(np.array(x) for x in ([1, -1, 1, np.nan], [0.5, -2, -1, np.nan],
                                            [2, -0.5, 3, np.nan]))).verdicts().tolist() == [
        "larger", "smaller", "within noise", "undefined",
    ]  # fmt: skip


def test_a_true_difference_is_found_and_none_is_made_up():
    truth, good, bad = detectors()
    pair = [diagnose(each, truth, [("a", "b")]) for each in (good, bad)]
    values, samples = [flat(measure(d)) for d in pair], bootstrap(pair, 200)
    verdicts = estimate(values[1] - values[0], samples[1] - samples[0]).verdicts()[-1]
    told = dict(zip(QUANTITIES, verdicts.tolist(), strict=True))
    assert told["AP50", "as it is"] == "smaller"
    assert told["first N detections", "Sim"] == "larger"
    assert told["AP50 regained", "Sim"] == "larger"
    assert told["first N detections", "BG"] == "within noise"
    same = bootstrap([pair[0], pair[0]], 20)
    assert set(estimate(values[0] - values[0], same[1] - same[0]).verdicts().ravel()) <= {
        "within noise", "undefined",
    }  # fmt: skip


def test_intervals_hold_the_true_value_as_often_as_they_say():
    """Of 95 in 100 worlds, give or take: the share of Loc in worlds where it is known."""
    rng, hits, worlds = np.random.default_rng(1), 0, 120
    for world in range(worlds):
        images = 80
        boxes = np.tile([[1.0, 1, 40, 40]], (images, 1))
        truth = GroundTruth(["a"], [str(i) for i in range(images)],
                            Objects(np.arange(images), [0] * images, boxes, [False] * images))  # fmt: skip
        poor = rng.random(images) < 0.3
        found = boxes + np.where(poor, 20, 0)[:, None] * [0, 0, 1, 1] * 2.5
        diagnosis = diagnose(
            Detections(np.arange(images), [0] * images, rng.random(images), found), truth
        )
        ends = estimate(flat(measure(diagnosis)), bootstrap([diagnosis], 150, seed=world)[0])
        place = QUANTITIES.index(("first N detections", "Loc"))
        hits += ends.low[0, place] <= 30 <= ends.high[0, place]
    assert 0.88 <= hits / worlds <= 0.99


def test_models_on_different_images_cannot_be_paired():
    truth, good, _ = detectors()
    other = GroundTruth(truth.class_names, [f"x{i}" for i in range(60)], truth.objects)
    with pytest.raises(ValueError, match="Expected models that were diagnosed on the same images"):
        bootstrap([diagnose(good, truth, ()), diagnose(good, other, ())], 2)
