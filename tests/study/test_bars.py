"""Error bars and verdicts against hand-made and resampled ones; claims against the paper's numbers."""

import math
import statistics

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from goodtransfer.metrics.voc import Detections, Objects, evaluate
from goodtransfer.study import per_image
from goodtransfer.study.bars import Difference, Interval, half_width, over_seeds
from goodtransfer.study.claims import CLAIMS, Finding, _effect, _printed
from goodtransfer.study.tables import TABLES


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


def drawn(images, resamples, seed=0):
    """The resamples of `resampled`, as lists of images."""
    rng = np.random.default_rng(seed)
    return [rng.integers(images, size=images) for _ in range(resamples)]


def test_a_mean_is_resampled_as_if_images_were_copied(tmp_path):
    random = np.random.default_rng(1)
    scores = [random.random(9).astype(np.float32) for _ in range(2)]
    for number, values in enumerate(scores):
        (tmp_path / str(number)).mkdir()
        save_file({"scores": values}, tmp_path / str(number) / per_image.NAME)
    found = per_image.resampled("acc", [tmp_path / "0", tmp_path / "1"], 20)
    expected = [[values[draw].mean() for draw in drawn(9, 20)] for values in scores]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_miou_is_resampled_as_if_images_were_copied(tmp_path):
    matrices = np.random.default_rng(2).integers(0, 50, (6, 9))
    save_file({"scores": matrices}, tmp_path / per_image.NAME)
    found = per_image.resampled("city_mIoU", [tmp_path], 10)
    for value, draw in zip(found[0], drawn(6, 10), strict=True):
        total = sum(matrices[n].reshape(3, 3) for n in draw)
        iou = [total[c, c] / (total[c].sum() + total[:, c].sum() - total[c, c]) for c in range(3)]
        assert value == pytest.approx(100 * np.mean(iou))


def test_voc_ap_is_resampled_as_if_images_were_copied(tmp_path):
    """Copies of an image are images of their own: so the evaluator itself gives the same AP."""
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

    per_image.write_outcomes(tmp_path, Metric(), classes, images)
    assert len(load_file(tmp_path / per_image.NAME)["0.counts"]) == 10
    values = per_image.resampled("voc07_AP", [tmp_path], 12)
    for value, draw in zip(values[0], drawn(images, 12), strict=True):

        def copied(rows, draw=draw):
            picked = [(np.flatnonzero(rows.images == n), place) for place, n in enumerate(draw)]
            index = np.concatenate([i for i, _ in picked])
            place = np.concatenate([np.full(len(i), p) for i, p in picked])
            return rows._make(c[index] for c in rows)._replace(images=place)

        expected = 100 * evaluate(copied(found), copied(there), classes).mean()
        assert value == pytest.approx(expected)
    assert 5 < values.min() < values.max() < 95


def test_cells_of_other_images_are_refused(tmp_path):
    for number in (5, 6):
        (tmp_path / str(number)).mkdir()
        save_file({"scores": np.zeros(number)}, tmp_path / str(number) / per_image.NAME)
    with pytest.raises(ValueError, match="tested on the same images, but acc is of"):
        per_image.resampled("acc", [tmp_path / "5", tmp_path / "6"], 3)


# --- Claims


def test_the_paper_bears_out_its_claims():
    """By its own numbers, but for what it prints none of."""
    effects = {claim.text: _effect(claim, _printed) for claim in CLAIMS}
    silent = {text for text, effect in effects.items() if effect is None}
    assert silent == {"MoCo-v2's detections fail less by localization"}
    for claim in CLAIMS:
        effect = effects[claim.text]
        if effect is not None:
            assert abs(effect) < 1e-9 if claim.equality else effect > -1e-9, claim.text
    assert effects["MoCo-v2 detects better than cross-entropy: VOC07 AP"] == pytest.approx(2.3)
    ladder = effects["augmentations matter more to MoCo-v2: VOC07 AP from flip to all"]
    assert ladder == pytest.approx(16.2 - 2.8)


def test_a_claim_s_rows_and_columns_are_there():
    for claim in CLAIMS:
        asked = []

        def numbers(table, label, column, asked=asked):
            assert [row for row in TABLES[table].rows if row.label == label], (table, label)
            asked.append(column)
            return 1.0

        assert claim.effect(numbers) == pytest.approx(0.0)
        assert asked


@pytest.mark.parametrize(
    ("ours", "equality", "verdict"),
    [
        (None, False, "not measured"),
        (Difference(1.0, None, None), False, "one seed, no interval"),
        (Difference(1.0, Interval(0.5, 1.5), None), False, "holds"),
        (Difference(-1.0, Interval(-1.5, -0.5), None), False, "does not hold"),
        (Difference(1.0, Interval(-0.5, 2.5), None), False, "within noise"),
        (Difference(1.0, Interval(-0.5, 2.5), None), True, "holds"),
        (Difference(1.0, Interval(0.5, 1.5), None), True, "does not hold"),
    ],
)
def test_verdicts_on_claims(ours, equality, verdict):
    claim = next(c for c in CLAIMS if c.equality == equality)
    assert Finding(claim, None, ours).verdict == verdict


def test_pixels_are_confusions_of_each_image():
    class Task:
        num_classes = 2

    told = torch.tensor([[[0, 1]], [[1, 1]]])
    true = {"classes": torch.tensor([[[0, 0]], [[1, 255]]])}
    rows = per_image.pixels(Task(), (None, true), told)
    assert rows.tolist() == [[1, 1, 0, 0], [0, 0, 0, 1]]
