"""Scores of classes of pixels, against sets of pixels counted one by one."""

import pytest
import torch

from goodtransfer.metrics import SegmentationScores
from goodtransfer.metrics.segmentation import confusion, scores


def images(count=5, classes=4):
    random = torch.Generator().manual_seed(1)
    told = torch.randint(classes, (count, 6, 7), generator=random)
    true = torch.randint(classes, (count, 6, 7), generator=random)
    true[torch.rand(true.shape, generator=random) < 0.2] = 255
    return told, true


def literal(told, true, classes):
    """Sets of pixels for each class; what is nowhere is left out of a mean."""
    pixels = [
        (t, y)
        for t, y in zip(told.flatten().tolist(), true.flatten().tolist(), strict=True)
        if y != 255
    ]
    ious, recalls = [], []
    for c in range(classes):
        there = {n for n, (_, y) in enumerate(pixels) if y == c}
        found = {n for n, (t, _) in enumerate(pixels) if t == c}
        if there | found:
            ious.append(100 * len(there & found) / len(there | found))
        if there:
            recalls.append(100 * len(there & found) / len(there))
    right = sum(t == y for t, y in pixels)
    return {
        "mIoU": sum(ious) / len(ious),
        "mAcc": sum(recalls) / len(recalls),
        "aAcc": 100 * right / len(pixels),
    }


@pytest.mark.parametrize("classes", [4, 6])  # with 6, two are nowhere
def test_scores_equal_sets_of_pixels(classes):
    told, true = images()
    found = scores(confusion(told, true, classes))
    for name, value in literal(told, true, classes).items():
        assert float(found[name]) == pytest.approx(value, abs=1e-10), name
    assert found["IoU"].isnan().tolist() == [False] * 4 + [True] * (classes - 4)


def test_a_class_told_but_not_there_has_an_iou_and_no_recall():
    found = scores(confusion(torch.tensor([0, 2, 1]), torch.tensor([0, 0, 1]), 3))
    assert found["IoU"].tolist() == [50.0, 100.0, 0.0]
    assert found["Acc"][:2].tolist() == [50.0, 100.0]
    assert found["Acc"][2].isnan()
    assert float(found["mIoU"]) == 50.0
    assert float(found["mAcc"]) == 75.0


def test_counts_are_summed_before_they_are_divided():
    """A small image weighs as little as its pixels; the mean of images would be 50."""
    metric = SegmentationScores(1 + 1)
    for number, (told, true) in enumerate([([0] * 9 + [1], [0] * 9 + [1]), ([0], [1])]):
        target = {"classes": torch.tensor([[true]]), "image_id": torch.tensor([number])}
        metric.update(torch.tensor([[told]]), target)
    assert float(metric.compute()["aAcc"]) == pytest.approx(100 * 10 / 11)
    assert metric.per_class().tolist() == pytest.approx([90.0, 50.0])


def test_bytes_are_counted_as_other_integers():
    told, true = images()
    as_bytes = confusion(told.to(torch.uint8), true.to(torch.uint8), 4)
    assert torch.equal(as_bytes, confusion(told, true, 4))


@pytest.mark.parametrize(
    ("told", "true", "text"),
    [
        ([0, 1], [0, 4], "true classes from 0 to 3.*got 0 to 4"),
        ([0, 9], [0, 1], "predicted classes from 0 to 3.*got 0 to 9"),
        ([[0, 1]], [0, 1], r"for each pixel of the truth, \(2,\), but got \(1, 2\)"),
    ],
)
def test_sentences(told, true, text):
    with pytest.raises(ValueError, match=text):
        confusion(torch.tensor(told), torch.tensor(true), 4)


def test_no_image_is_no_score():
    with pytest.warns(UserWarning, match="before the ``update``"), pytest.raises(
        RuntimeError, match="Expected images to evaluate, but no rank"
    ):  # fmt: skip
        SegmentationScores(3).compute()


def test_no_pixel_is_no_score():
    metric = SegmentationScores(3)
    target = {"classes": torch.full((2, 4, 4), 255), "image_id": torch.tensor([0, 1])}
    metric.update(torch.zeros(2, 4, 4, dtype=torch.long), target)
    with pytest.raises(RuntimeError, match="pixels that count, but all of 2 images are 255"):
        metric.compute()
