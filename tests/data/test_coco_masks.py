"""COCO's masks in all their forms, against what they are literally; and what is refused."""

import numpy as np
import pytest
import torch
from pycocotools import mask as official

from goodtransfer.data.coco_masks import FaultError, in_runs, pack, polygons_of, unpack

SQUARE = torch.zeros(6, 9, dtype=torch.bool)
SQUARE[2:5, 1:4] = True


def runs(mask):
    """Literally: down the columns, what is not covered first."""
    lengths, covered = [0], False
    for pixel in mask.T.flatten().tolist():
        if pixel != covered:
            lengths.append(0)
            covered = pixel
        lengths[-1] += 1
    return lengths


def compressed(mask):
    pixels = np.asfortranarray(mask.numpy().astype(np.uint8))
    return {"size": list(mask.shape), "counts": official.encode(pixels)["counts"].decode()}


def test_masks_in_all_three_forms():
    for segmentation in (
        [[1, 2, 4, 2, 4, 5, 1, 5]],
        [[1, 2, 4, 2, 4, 3, 1, 3], [1, 3, 4, 3, 4, 5, 1, 5], [1, 2, 3, 4], [0, 0, 9, 0, 9]],
        {"size": [6, 9], "counts": runs(SQUARE)},
        compressed(SQUARE),
    ):
        outline = pack(segmentation, 6, 9)
        expected = torch.stack([SQUARE & False, SQUARE, SQUARE])
        assert torch.equal(unpack([b"", outline, outline], 6, 9), expected)
    assert unpack([], 6, 9).shape == (0, 6, 9)
    assert pack([], 6, 9) == pack([[0, 0, 9, 0]], 6, 9) == b""
    assert pack({"size": [6, 9], "counts": [54]}, 6, 9) == b""


def test_polygons_stay_what_they_are():
    """To the last bit, apart from those that are none; run lengths have no polygons."""
    given = [[1.1, 2, 4, 2.3, 4, 5], [0, 0, 9, 0.1, 9, 6, 0, 6], [3, 3, 5, 3, 4, 4]]
    outline = pack([*given, [1, 2, 3, 4]], 6, 9)
    assert [polygon.tolist() for polygon in polygons_of(outline)] == given
    assert polygons_of(pack(compressed(SQUARE), 6, 9)) == polygons_of(b"") == []


def test_all_forms_in_runs():
    square = pack([[1, 2, 4, 2, 4, 5, 1, 5]], 6, 9)
    assert in_runs(square, 6, 9) == in_runs(pack(compressed(SQUARE), 6, 9), 6, 9)
    assert in_runs(square, 6, 9) == compressed(SQUARE)["counts"].encode()
    assert in_runs(pack([[1, 1, 1, 1, 1, 1]], 6, 9), 6, 9) == in_runs(b"", 6, 9) == b""


def test_compressed_run_lengths_of_any_mask():
    """Long and short runs, and differences of both signs."""
    random = np.random.default_rng(0)
    for density in (0.001, 0.02, 0.5, 0.99):
        mask = torch.from_numpy(random.uniform(size=(150, 240)) < density)
        outline = pack(compressed(mask), 150, 240)
        assert torch.equal(unpack([outline], 150, 240)[0], mask)
        assert outline == pack({"size": [150, 240], "counts": runs(mask)}, 150, 240)


@pytest.mark.parametrize(
    ("segmentation", "words"),
    [
        ({"size": [6, 9], "counts": [20, 30]}, "run lengths of 6 x 9 pixels, but found"),
        ({"size": [6, 9], "counts": [20, 30, 5]}, "run lengths"),
        ({"size": [6, 9], "counts": [60, -6]}, "run lengths"),
        ({"size": [6, 9], "counts": [0.5, 53.5]}, "run lengths"),
        ({"size": [6, 9], "counts": []}, "run lengths"),
        ({"size": [9, 6], "counts": runs(SQUARE)}, r"size of its image, 6 x 9, but found \[9, 6\]"),
        ({"size": [6, 9], "counts": compressed(SQUARE)["counts"][:-1]}, "run lengths"),
        ({"size": [6, 9], "counts": compressed(SQUARE)["counts"] + "5"}, "run lengths"),
        ([[0, 0, 1e9, 0, 1e9, 1e9]], "polygons in its image, but found"),
        ([[0, 0, 4, float("nan"), 4, 4]], "polygons in its image"),
        ("polygon", "polygons or run lengths, but found 'polygon'"),
    ],
)
def test_impossible_masks(segmentation, words):
    with pytest.raises(FaultError, match=words):
        pack(segmentation, 6, 9)
