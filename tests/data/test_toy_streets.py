from collections import Counter
from itertools import pairwise

import cv2
import numpy as np
import pytest

from goodtransfer.data import toy_streets
from goodtransfer.data.toy_layouts import make_cityscapes, make_synthia
from goodtransfer.data.toy_picture import draw

# Told here once more, by hand: Cityscapes' labelIds.
LABEL_IDS = {"disc": 26, "square": 28, "triangle": 24, "star": 33, "cross": 32}
SKY, VEGETATION, BUILDING, ROAD, TERRAIN = 23, 21, 11, 7, 22


@pytest.fixture(scope="module")
def synthia(tmp_path_factory):
    return make_synthia(tmp_path_factory.mktemp("toy") / "synthia", frames=2, rand=20, size=64)


@pytest.fixture(scope="module")
def cityscapes(tmp_path_factory):
    return make_cityscapes(tmp_path_factory.mktemp("toy") / "city", train=16, val=8, size=64)


def png(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def assert_labelled(root, name, drawing, numbers):
    """``numbers``: what SYNTHIA calls the classes."""
    path = root / "GT" / "LABELS" / name
    assert path.read_bytes()[24:26] == bytes([16, 2])  # 16 bits a channel, three of them
    labels = png(path)
    assert labels.dtype == np.uint16
    assert (labels[..., -1] == np.vectorize(numbers.get)(drawing.classes)).all()
    assert (labels[..., 1] == drawing.instances).all()
    assert (png(root / "RGB" / name)[..., ::-1] == drawing.pixels).all()
    colours = png(root / "GT" / "COLOR" / name)
    pairs = {
        (number, *colour)
        for number, colour in zip(labels[..., -1].flat, colours.reshape(-1, 3), strict=True)
    }
    assert len(pairs) == len({pair[0] for pair in pairs}) == len({pair[1:] for pair in pairs})


SURROUNDINGS = {SKY: 1, BUILDING: 2, ROAD: 3, TERRAIN: 4, VEGETATION: 6}


def test_synthia_sequences(synthia):
    numbers = SURROUNDINGS | {26: 8, 28: 8, 24: 10, 33: 11, 32: 11}
    scenes = [
        (sequence, omni)
        for sequence in ("SYNTHIA-SEQS-01-SPRING", "SYNTHIA-SEQS-02-SUMMER")
        for omni in ("Omni_F", "Omni_B", "Omni_L", "Omni_R")
    ]
    for scene, (sequence, omni) in enumerate(scenes):
        for eye in ("Stereo_Left", "Stereo_Right"):
            for frame in range(2):
                drawing = draw(toy_streets.sequence_picture(0, scene, frame, eye), 64)
                name = f"{eye}/{omni}/{frame:06d}.png"
                assert_labelled(synthia / sequence, name, drawing, numbers)


def test_synthia_frames_follow_each_other():
    def seen(scene, frame, eye="Stereo_Left"):
        return draw(toy_streets.sequence_picture(0, scene, frame, eye), 64)

    for scene in range(8):
        steps = [seen(scene, frame).pixels.astype(float) for frame in range(3)]
        other = seen((scene + 1) % 8, 0).pixels
        for one, two in pairwise(steps):
            assert 0 < np.abs(one - two).mean() < 0.3 * np.abs(one - other).mean()
        left, right = seen(scene, 0), seen(scene, 0, "Stereo_Right")
        assert len(left.masks) == len(right.masks) > 0
        shift = [np.mean(np.nonzero(d.instances == 1)[1]) for d in (left, right)]
        whole = not (left.instances[:, [0, -1]] == 1).any()
        assert not whole or shift[0] - shift[1] == pytest.approx(0.02 * 64, abs=0.2)


def test_synthia_rand(synthia):
    numbers = SURROUNDINGS | {26: 8, 28: 19, 24: 10, 33: 11, 32: 12}
    for index in range(20):
        drawing = draw(toy_streets.rand_picture(0, index), 64)
        assert_labelled(synthia / "RAND_CITYSCAPES", f"{index:07d}.png", drawing, numbers)


def test_cityscapes(cityscapes):
    for split, count in (("train", 16), ("val", 8)):
        folder = cityscapes / "gtFine" / split / "toytown"
        assert len(list(folder.iterdir())) == 2 * count
        for index in range(count):
            what = toy_streets.city_picture(0, split, index)
            drawing, name = draw(what, 64), f"toytown_{index:06d}_000019"
            labels = png(folder / f"{name}_gtFine_labelIds.png")
            ids = png(folder / f"{name}_gtFine_instanceIds.png")
            assert (labels.dtype, ids.dtype) == (np.uint8, np.uint16)
            image = png(cityscapes / "leftImg8bit" / split / "toytown" / f"{name}_leftImg8bit.png")
            assert image.shape == (64, 128, 3)
            assert (image[..., ::-1] == drawing.pixels).all()
            assert (labels == drawing.classes).all()
            is_object = (drawing.instances > 0) & (drawing.instances <= len(what.objects))
            assert (ids[~is_object] == labels[~is_object]).all()  # of crowds and surroundings
            assert (ids[is_object] // 1000 == labels[is_object]).all()
            shapes = Counter(LABEL_IDS[thing.shape] for thing in what.objects)
            expected = [1000 * label + k for label, n in shapes.items() for k in range(n)]
            assert sorted(np.unique(ids[is_object])) == sorted(expected)
            if index % 4 == 3:
                assert LABEL_IDS[what.crowd[0].shape] in ids
