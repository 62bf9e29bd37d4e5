"""CityscapesDataModule on the drawn world and on a real frame."""

import shutil

import cv2
import numpy as np
import pytest

from goodtransfer.data.cityscapes import (
    CITYSCAPES_CLASSES,
    PALETTE,
    TRAIN_IDS,
    CityscapesDataModule,
)
from goodtransfer.data.toy_layouts import make_cityscapes

# Told once more, from the benchmark's table: number in a label file, and train id.
TOLD = {
    7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12,
    26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18,
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_cityscapes(tmp_path_factory.mktemp("toy") / "city", train=6, val=4, size=32)


@pytest.fixture
def copied(world, tmp_path):
    """One that a test may spoil."""
    return shutil.copytree(world, tmp_path / "city")


def png(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def literal(numbers):
    return [[TOLD.get(int(number), 255) for number in row] for row in numbers]


def whole(data):
    for images, target in data.test_dataloader():
        assert images.shape[0] == target["classes"].shape[0] == 1
        yield images[0].numpy(), target["classes"][0].numpy(), int(target["image_id"])


def test_the_table():
    assert {number: TOLD.get(number, 255) for number in (*range(34), 255)} == TRAIN_IDS
    assert CITYSCAPES_CLASSES[0] == "road"
    assert CITYSCAPES_CLASSES[6:8] == ("traffic light", "traffic sign")
    assert CITYSCAPES_CLASSES[16:] == ("train", "motorcycle", "bicycle")
    assert len(set(CITYSCAPES_CLASSES)) == len(set(PALETTE)) == 19
    assert dict(zip(CITYSCAPES_CLASSES, PALETTE, strict=True))["car"] == (0, 0, 142)


def test_counts_and_classes(world):
    data = CityscapesDataModule(world)
    assert (data.num_images, data.num_classes) == (6, 19)
    assert data.class_names == list(CITYSCAPES_CLASSES)
    assert dict(data.expected) == {"train": 2975, "val": 500, "classes": 19}


def test_every_pixel_of_the_drawn_world(world):
    found = list(whole(CityscapesDataModule(world)))
    assert [number for *_, number in found] == [0, 1, 2, 3]
    seen = set()
    for image, classes, number in found:
        name = f"toytown/toytown_{number:06d}_000019"
        pixels = png(world / "leftImg8bit" / "val" / f"{name}_leftImg8bit.png")
        numbers = png(world / "gtFine" / "val" / f"{name}_gtFine_labelIds.png")
        assert (image.transpose(1, 2, 0) == pixels[..., ::-1]).all()
        assert classes.tolist() == literal(numbers)
        seen |= set(np.unique(classes).tolist())
    assert len(seen) > 5


def test_training_crops(world):
    data = CityscapesDataModule(world, crop=(16, 24), nominal=(32, 64), batch_size=3)
    data.setup("fit")
    first, second = data.train_dataloader()
    for images, target in (first, second):
        assert images.shape == (3, 3, 16, 24)
        assert target["classes"].shape == (3, 16, 24)
        assert set(target["classes"].unique().tolist()) <= {*range(19), 255}
    ids = [number for _, target in (first, second) for number in target["image_id"].tolist()]
    assert sorted(ids) == list(range(6))


def test_cities_of_a_split_are_joined_in_order_of_name(copied):
    for kind in ("leftImg8bit", "gtFine"):
        other = copied / kind / "train" / "aachen"
        other.mkdir()
        for path in (copied / kind / "train" / "toytown").glob("*_00000[02]_*"):
            shutil.copy(path, other / path.name.replace("toytown", "aachen"))
    pairs = CityscapesDataModule(copied).files("train")
    names = [f"aachen/aachen_{n:06d}_000019" for n in (0, 2)]
    names += [f"toytown/toytown_{n:06d}_000019" for n in range(6)]
    assert [pairs.images.name(n) for n in range(8)] == [f"{n}_leftImg8bit.png" for n in names]
    assert [pairs.labels.name(n) for n in range(8)] == [f"{n}_gtFine_labelIds.png" for n in names]


@pytest.mark.data
def test_a_real_frame_has_its_official_train_ids(shared):
    """As far as two files can agree that were shrunk one by one: at 77 of 32,768 pixels, on the
    borders of objects, they tell of different classes, so no table maps one to the other there.
    """
    root = shared / "data" / "cityscapes_sample"
    (found,) = whole(CityscapesDataModule(root))  # the sample has no train
    name = "val/frankfurt/frankfurt_000000_000294"
    pixels = png(root / "leftImg8bit" / f"{name}_leftImg8bit.png")
    numbers = png(root / "gtFine" / f"{name}_gtFine_labelIds.png")
    official = png(root / "gtFine" / f"{name}_gtFine_labelTrainIds.png")
    image, classes, _ = found
    assert (image.transpose(1, 2, 0) == pixels[..., ::-1]).all()
    assert classes.tolist() == literal(numbers)
    best = 0
    for number in np.unique(numbers):
        values, counts = np.unique(official[numbers == number], return_counts=True)
        assert values[counts.argmax()] == TRAIN_IDS[int(number)]
        best += counts.max()
    assert len(np.unique(classes)) > 8
    assert (classes == official).sum() == best == official.size - 77


def label(root, number):
    folder = root / "gtFine" / "val" / "toytown"
    return folder / f"toytown_{number:06d}_000019_gtFine_labelIds.png"


def test_a_licence_plate_does_not_count_and_other_numbers_are_unknown(copied):
    numbers = png(label(copied, 0))
    numbers[0, 0], numbers[0, 1] = 255, 5
    cv2.imwrite(str(label(copied, 0)), numbers)
    _, classes, _ = next(whole(CityscapesDataModule(copied)))
    assert classes[0, :2].tolist() == [255, 255]
    numbers[1, 1] = 34
    cv2.imwrite(str(label(copied, 0)), numbers)
    with pytest.raises(ValueError, match=rf"in the label {label(copied, 0)}, but found 34:"):
        next(whole(CityscapesDataModule(copied)))
    data = CityscapesDataModule(copied, on_error="skip")
    assert [number for *_, number in whole(data)] == [1, 1, 2, 3]
    assert [path[-15:] for path in data.skipped] == ["leftImg8bit.png"]


def test_labels_by_another_script_are_no_stand_in(copied):
    path = label(copied, 2)
    path.rename(path.with_name(path.name.replace("labelIds", "labelTrainIds")))
    with pytest.raises(FileNotFoundError, match=rf"a label at {path}, because there is an image"):
        CityscapesDataModule(copied).setup("fit")
    data = CityscapesDataModule(copied, on_error="skip")
    assert [number for *_, number in whole(data)] == [0, 1, 2]
    assert len(data.skipped) == 1


def test_a_label_without_an_image(copied):
    image = copied / "leftImg8bit" / "train" / "toytown" / "toytown_000003_000019_leftImg8bit.png"
    image.unlink()
    with pytest.raises(FileNotFoundError, match="for the label .*toytown_000003_.*labelIds.png"):
        CityscapesDataModule(copied).setup("fit")
    data = CityscapesDataModule(copied, on_error="skip")
    assert data.num_images == 5
    assert "toytown_000003" in data.skipped[0]


@pytest.mark.parametrize("kind", ["leftImg8bit", "gtFine"])
def test_a_missing_folder_is_answered_with_the_tree(copied, kind):
    shutil.rmtree(copied / kind / "train")
    message = rf"cities at {copied}/{kind}/train.\nThe expected tree(.*\n)*.*_gtFine_labelIds.png"
    with pytest.raises(FileNotFoundError, match=message):
        CityscapesDataModule(copied).setup("fit")
