"""PlacesDataModule: every layout by value, the reading of its lists, and what it refuses."""

import random

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from goodtransfer.data.lists import read_list
from goodtransfer.data.places import PlacesDataModule
from goodtransfer.data.skip import Skips
from goodtransfer.data.toy_layouts import make_places

SIZE = 8
FOLDERS = ["a/abbey", "a/apartment_building/outdoor", "b/basilica"]  # classes 0, 1, 2
SHADES = [40, 120, 200]


def paint(path, label):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), (SHADES[label],) * 3).save(path)


def places205(root, lists=".", images="data/vision/torralba/deeplearning/images256"):
    """Three classes in a mixed order, as the published lists are not sorted either."""
    rows = {
        part: [(f"{FOLDERS[n % 3]}/gsun_{part}{n:02d}.jpg", n % 3) for n in range(first, 9)]
        for part, first in (("train", 0), ("val", 5))
    }
    (root / lists).mkdir(parents=True, exist_ok=True)
    for part, lines in rows.items():
        random.Random(part).shuffle(lines)
        for name, label in lines:
            paint(root / images / name, label)
        text = "".join(f"{name} {label}\n" for name, label in lines)
        (root / lists / f"{part}_places205.csv").write_text(text)
    return rows


def places365(root, train="data_256", val="val_256"):
    rows = {
        "train": [(f"/{FOLDERS[n % 3]}/{n:08d}.jpg", n % 3) for n in (7, 2, 3, 0, 4)],
        "val": [(f"Places365_val_{n:08d}.jpg", n % 3) for n in (2, 1)],
    }
    for part, folder, source in (
        ("train", train, "places365_train_standard.txt"),
        ("val", val, "places365_val.txt"),
    ):
        for name, label in rows[part]:
            paint(root / folder / name.lstrip("/"), label)
        text = "\n".join(f"{name} {label}" for name, label in rows[part])  # no final line break
        (root / source).write_text(text)
    classes = [f"/{folder} {label}\n" for label, folder in enumerate(FOLDERS)]
    (root / "categories_places365.txt").write_text("".join(reversed(classes)))
    return rows


def check(data, rows, folders, classes):
    """Files and labels as in the lists, and the classes' shades in the batches."""
    assert data.class_names == classes
    for part, loader in (("train", data.train_dataloader()), ("val", data.val_dataloader())):
        below = data.root / folders[part]
        expected = [(str(below / name.lstrip("/")), label) for name, label in rows[part]]
        assert list(data.files(part)) == expected
        seen = {}
        for batch in loader:
            shades = batch.views[0][:, 0, 0, 0].tolist()
            assert all(
                abs(SHADES[i] - s) < 3 for i, s in zip(batch.label.tolist(), shades, strict=True)
            )
            seen |= dict(zip(batch.index.tolist(), batch.label.tolist(), strict=True))
        assert seen == {number: label for number, (_, label) in enumerate(rows[part])}


OPTIONS = {"size": SIZE, "batch_size": 2, "views": "center", "drop_last": False}


@pytest.mark.parametrize("lists", [".", "trainvalsplit_places205"])
@pytest.mark.parametrize("images", ["data/vision/torralba/deeplearning/images256", "images256"])
def test_places205(tmp_path, lists, images):
    rows = places205(tmp_path, lists, images)
    data = PlacesDataModule(tmp_path, **OPTIONS)
    data.setup("fit")
    check(data, rows, {"train": images, "val": images}, FOLDERS)
    assert data.expected == {"train": 2_448_873, "val": 20_500, "classes": 205}


@pytest.mark.parametrize("train", ["data_256", "data_256_standard", "data_large"])
@pytest.mark.parametrize("val", ["val_256", "val_large"])
def test_places365_by_its_lists(tmp_path, train, val):
    rows = places365(tmp_path, train, val)
    data = PlacesDataModule(tmp_path, **OPTIONS)
    data.setup("fit")
    check(data, rows, {"train": train, "val": val}, FOLDERS)
    assert data.expected == {"train": 1_803_460, "val": 36_500, "classes": 365}


def test_the_small_images_are_read_where_both_are(tmp_path):
    places365(tmp_path, "data_large", "val_large")
    rows = places365(tmp_path)
    folders = {"train": "data_256", "val": "val_256"}
    check(PlacesDataModule(tmp_path, **OPTIONS), rows, folders, FOLDERS)


def test_the_easy_layout_is_read_as_by_torchvision(tmp_path):
    root = make_places(tmp_path / "places", train=14, val=7, size=32)
    data = PlacesDataModule(root, **OPTIONS)
    for part in ("train", "val"):
        expected = ImageFolder(str(root / part))
        assert data.class_names == expected.classes
        assert list(data.files(part)) == expected.samples
    assert data.expected["classes"] == 365
    (batch, *_) = data.val_dataloader()
    assert batch.views[0].shape == (2, 3, SIZE, SIZE)


def test_selection_comes_from_training(tmp_path):
    rows = places205(tmp_path)
    data = PlacesDataModule(tmp_path, selection=0.34, **OPTIONS)
    parts = [list(data.files(part)) for part in ("train", "selection")]
    assert sorted(label for _, label in parts[1]) == [0, 1, 2]
    assert len(parts[0]) == 6
    names = [path.split("images256/")[1] for part in parts for path, _ in part]
    assert sorted(names) == sorted(name for name, _ in rows["train"])


# --- Lists


def test_a_long_list_is_packed(tmp_path):
    numbers = random.Random(0)
    rows = [
        (f"c/{'x' * numbers.randrange(30)}{n}.jpg", numbers.randrange(205)) for n in range(9999)
    ]
    text = "\ufeff" + "\r\n".join(f"/{name}\t{label} " for name, label in rows) + "\r\n\r\n"
    (tmp_path / "list.txt").write_bytes(text.encode())
    names, labels = read_list(tmp_path / "list.txt", Skips("raise"), range(205))
    assert (names.dtype.kind, labels.dtype) == ("S", np.int64)
    assert list(zip((n.decode() for n in names.tolist()), labels.tolist(), strict=True)) == rows


@pytest.mark.parametrize(
    "line",
    [
        "a/abbey/1.jpg",
        "a/abbey/my photo.jpg 1",
        "a/abbey/1.jpg one",
        "a/abbey/1.jpg -1",
        "a/abbey/1.jpg 205",
        "a/abbey/1.jpg 1.0",
        "../abbey/1.jpg 1",
        "/../1.jpg 1",
        "a/../../1.jpg 1",
        "C:/1.jpg 1",
        "/ 1",
    ],
)
def test_a_line_that_cannot_be_used(tmp_path, line):
    places205(tmp_path)
    source = tmp_path / "train_places205.csv"
    lines = source.read_text().splitlines()
    source.write_text("\n".join([*lines[:2], line, *lines[2:]]))
    with pytest.raises(ValueError) as error:
        PlacesDataModule(tmp_path).setup("fit")
    assert str(error.value) == (
        "Expected the path of an image below its folder and a number from 0 to 204 in line 3 of "
        f"{source}, but found {line!r}: correct the line, or remove it."
    )
    data = PlacesDataModule(tmp_path, on_error="skip")
    assert data.num_images == 9
    assert data.skipped == [str(error.value)]


def test_val_has_no_classes_of_its_own(tmp_path):
    places365(tmp_path)
    with (tmp_path / "places365_val.txt").open("a") as file:
        file.write("\nPlaces365_val_00000001.jpg 3\n")
    with pytest.raises(ValueError, match=r"number from 0 to 2 in line 3 of .*places365_val.txt"):
        PlacesDataModule(tmp_path).setup("fit")


def test_a_class_without_a_line(tmp_path):
    places205(tmp_path)
    source = tmp_path / "train_places205.csv"
    lines = [line for line in source.read_text().splitlines() if not line.endswith(" 1")]
    source.write_text("\n".join(lines))
    with pytest.raises(
        ValueError, match=r"from 0 to 2 in .*205.csv, but no line has class 1: take"
    ):
        PlacesDataModule(tmp_path).setup("fit")


# --- What is missing


def test_neither_layout(tmp_path):
    (tmp_path / "val").mkdir()
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(
            FileNotFoundError,
            match=r"(?s)Expected Places205 or Places365 in .*train_places205.csv.*places365_train"
            r"_standard.txt.*train/airfield",
        ):
            PlacesDataModule(root).setup("fit")


@pytest.mark.parametrize(
    ("make", "lost", "message"),
    [
        (places205, "val_places205.csv", "Expected a list at .*val_places205.csv, but there is no"),
        (places205, "data", r"Expected data/vision.*images256 or images256 in .*expected tree"),
        (places365, "categories_places365.txt", "list at .*categories_places365.txt"),
        (places365, "places365_val.txt", "list at .*places365_val.txt"),
        (places365, "data_256", r"data_256 or data_256_standard or data_large .*expected tree"),
        (places365, "val_256", r"val_256 or val_large in .*expected tree"),
    ],
)
def test_a_missing_list_or_folder(tmp_path, make, lost, message):
    make(tmp_path)
    (tmp_path / lost).rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=f"(?s){message}"):
        PlacesDataModule(tmp_path).setup("fit")


@pytest.mark.parametrize("make", [places205, places365])
def test_a_listed_image_that_is_missing(tmp_path, make):
    rows = make(tmp_path)
    images = "data/vision/torralba/deeplearning/images256" if make is places205 else "data_256"
    lost = tmp_path / images / rows["train"][1][0].lstrip("/")
    lost.unlink()
    with pytest.raises(FileNotFoundError, match=f"Expected an image at {lost}, because .*lists it"):
        PlacesDataModule(tmp_path).setup("fit")
    data = PlacesDataModule(tmp_path, on_error="skip")
    assert data.num_images == len(rows["train"]) - 1
    assert str(lost) not in [path for path, _ in data.files("train")]
    assert len(data.skipped) == 1
    assert str(lost) in data.skipped[0]


def test_an_empty_class_folder_may_be_skipped(tmp_path):
    root = make_places(tmp_path / "places", train=12, val=6, size=32)
    for path in (root / "train" / "flat-plain").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match="found none in flat-plain"):
        _ = PlacesDataModule(root).num_images
    data = PlacesDataModule(root, on_error="skip")
    assert data.num_images == 10
    assert ["found none in flat-plain" in line for line in data.skipped] == [True]
