"""Pictures of data sets: annotations are drawn where they are."""

import numpy as np
import pytest
import torch
from PIL import Image

import goodtransfer
from goodtransfer.data import toy, toy_layouts
from goodtransfer.data.cityscapes import PALETTE
from goodtransfer.data.samples import Sample, parts
from goodtransfer.data.show import drawn, picture


def grey(height=60, width=80):
    return torch.full((3, height, width), 100, dtype=torch.uint8)


def changed(sample):
    return (drawn(sample) != sample.image).any(0)


def test_boxes_are_drawn_as_frames():
    there = changed(Sample(grey(), ("a",), boxes=torch.tensor([[10.0, 5, 40, 30]])))
    rows, columns = torch.nonzero(there, as_tuple=True)
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (10, 40, 5, 30)
    assert not there[12:25, 15:35].any()


def test_masks_are_drawn_where_they_are():
    masks = torch.zeros(2, 60, 80, dtype=torch.bool)
    masks[0, 10:20, 30:50] = masks[1, 40:50, 5:9] = True
    there = changed(Sample(grey(), ("a", "b"), torch.zeros(0, 4), masks))
    assert torch.equal(there, masks.any(0))


def test_classes_have_their_colours():
    classes = torch.full((60, 80), 255, dtype=torch.uint8)
    classes[:30] = 13
    image = drawn(Sample(grey(), classes=classes))
    assert (image[:, 30:] == 100).all()
    expected = 0.4 * 100 + 0.6 * torch.tensor(PALETTE[13])
    assert (image[:, 5, 5] - expected).abs().max() <= 1


def test_landmarks_are_drawn_as_dots():
    points = torch.tensor([[20.0, 10], [60, 50]])
    there = changed(Sample(grey(), landmarks=points))
    for x, y in points.int().tolist():
        assert there[y, x]
    rows, columns = torch.nonzero(there, as_tuple=True)
    near = torch.cdist(torch.stack([columns, rows], 1).float(), points).min(1).values
    assert near.max() < 4


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return toy_layouts.make_all(tmp_path_factory.mktemp("world"), images=400, size=128)


def test_a_grid_has_a_row_for_each_set(world):
    modules = [
        goodtransfer.ImageNetDataModule(world["imagefolder"]),
        goodtransfer.COCODetectionDataModule(world["coco"], masks=True),
        goodtransfer.MAFLDataModule(world["celeba"], size=48),
        goodtransfer.CityscapesDataModule(world["cityscapes"]),
    ]
    grid = picture(modules, width=280, height=64)
    assert grid.size == (280, 4 * (64 + 16 + 4) + 4)
    pixels = np.asarray(grid)
    white = (pixels == 255).all(2)
    for row, wide in enumerate((64, 64, 64, 128)):  # streets are twice as wide
        above = slice(4 + row * 84, 68 + row * 84)
        gaps = [x for x in range(280) if white[above, x].all()]
        assert {x for x in range(280) if x % (wide + 4) < 4} <= set(gaps) | set(range(276, 280))
        assert not white[above, 4 : 4 + wide].all(0).any()
    assert np.array_equal(pixels, np.asarray(picture(modules, width=280, height=64)))
    assert not np.array_equal(pixels, np.asarray(picture(modules, width=280, height=64, seed=1)))


def test_a_row_takes_what_can_be_drawn(tmp_path):
    """An image wider than the picture, and one that cannot be read."""
    (tmp_path / "a").mkdir()
    Image.new("RGB", (2000, 100), (200, 0, 0)).save(tmp_path / "a" / "wide.png")
    (tmp_path / "a" / "broken.png").write_bytes(b"")
    made = goodtransfer.ImageFolderDataModule(tmp_path, train=".", val=None, labelled=False)
    grid = np.asarray(picture([made], width=300, height=64))
    assert (grid[30, 10:290] == (200, 0, 0)).all()


def test_a_map_without_a_class_that_counts():
    image = grey()
    classes = torch.full((60, 80), 255, dtype=torch.uint8)
    assert torch.equal(drawn(Sample(image, classes=classes)), image)


def test_samples_tell_what_the_lists_say(world):
    module = goodtransfer.VOCDetectionDataModule(world["voc"], class_names=toy.CLASSES)
    found = parts(module)
    assert list(found) == ["train", "test"]
    record = module.records("test")[3]
    sample = found["test"].sample(3)
    assert sample.boxes.tolist() == record.boxes.tolist()
    assert sample.names == tuple(toy.CLASSES[label] for label in record.labels)
    folder = parts(goodtransfer.ImageNetDataModule(world["imagefolder"]))["val"]
    assert folder.sample(7).names[0] in folder.files.path(7)
    novel = parts(goodtransfer.MiniImageNetDataModule(world["mini_imagenet"]))["novel"]
    assert novel.sample(1).names[0] in novel.files.path(1)
