import csv
import json
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from goodtransfer.data import toy, toy_coco, toy_layouts
from goodtransfer.data.toy import CLASSES
from goodtransfer.data.toy_layouts import make_all
from goodtransfer.data.toy_picture import draw
from goodtransfer.data.toy_places import PLACES


def files(root):
    return {str(f.relative_to(root)): f.read_bytes() for f in root.rglob("*") if f.is_file()}


def shows(path, pixels):
    """Whether the JPEG is the picture: coarsened by 8, as JPEG may smooth single pixels."""
    with Image.open(path) as image:
        assert (image.format, image.mode) == ("JPEG", "RGB")
        difference = np.asarray(image, dtype=float) - pixels
    h, w = (side // 8 * 8 for side in difference.shape[:2])
    coarse = difference[:h, :w].reshape(h // 8, 8, w // 8, 8, 3).mean((1, 3))
    return np.abs(coarse).max() < 12


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_all(tmp_path_factory.mktemp("toy") / "all", images=400, size=64)


# --- All layouts


def test_every_layout_is_there_and_the_images_add_up(world):
    root = world["voc"].parent
    assert {name: path.relative_to(root).as_posix() for name, path in world.items()} == {
        name: name for name in ("imagefolder", "places", "celeba", "coco", "synthia", "cityscapes")
    } | {"voc": "voc", "mini_imagenet": "mini_imagenet"}
    is_label = re.compile("GT/|gtFine/|toy.json|Annotations|annotations|txt$|csv$")
    assert sum(not is_label.search(name) for name in files(root)) == 400


def test_another_process_draws_the_same_bytes(tmp_path):
    make_all(tmp_path / "here", images=20, size=32, seed=5)
    code = (
        "import sys; from goodtransfer.data.toy_layouts import make_all;"
        "make_all(sys.argv[1], images=20, size=32, seed=5)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "there")], check=True)
    here, there = files(tmp_path / "here"), files(tmp_path / "there")
    assert len(here) > 150
    assert here == there


COUNTS = {
    "places": {"train": 7, "val": 2},
    "celeba": {"images": 12, "identities": 11},
    "coco": {"train": 5, "val": 9},
    "synthia": {"frames": 1, "rand": 2},
    "cityscapes": {"train": 2, "val": 4},
    "mini_imagenet": {"per_class": 1},
}


@pytest.mark.parametrize(("layout", "counts"), COUNTS.items())
def test_longer_splits_begin_with_the_shorter_ones(tmp_path, layout, counts):
    make = getattr(toy_layouts, f"make_{layout}")
    longer = {name: n + (name != "identities") for name, n in counts.items()}
    worlds = [
        files(make(tmp_path / str(number), **wanted, size=32, seed=seed))
        for number, (wanted, seed) in enumerate([(counts, 0), (longer, 0), (counts, 1)])
    ]
    short, long, other = (
        {name: content for name, content in world.items() if re.search("jpg|png", name)}
        for world in worlds
    )
    assert len(short) < len(long)
    assert short == {name: long[name] for name in short}
    images = {name for name in short if "GT/" not in name and "gtFine" not in name}
    assert not {short[name] for name in images} & {other[name] for name in images}
    assert len({short[name] for name in images}) == len(images)


@pytest.mark.parametrize(("layout", "counts"), COUNTS.items())
def test_layouts_are_drawn_once_and_never_empty(tmp_path, layout, counts):
    make = getattr(toy_layouts, f"make_{layout}")
    for name in counts:
        with pytest.raises(
            ValueError, match=r"Expected (at least 1 of everything|10 to \d+ ident)"
        ):
            make(tmp_path / "toy", **counts | {name: 0}, size=32)
    with pytest.raises(ValueError, match="at least 32 pixels.*size=31"):
        make(tmp_path / "toy", **counts, size=31)
    root = make(tmp_path / "toy", **counts, size=32)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert make(root, **counts, size=32) == root
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    with pytest.raises(ValueError, match="'size': 33.*but found the toy world.*'size': 32"):
        make(root, **counts, size=33)


# --- CelebA and MAFL


def rows(path):
    return [line.split() for line in path.read_text().splitlines()]


def test_celeba_lists(world):
    root = world["celeba"]
    people = {name: int(person) for name, person in rows(root / "identity_CelebA.txt")}
    parts = {name: int(part) for name, part in rows(root / "list_eval_partition.txt")}
    names = [f"{number:06d}.jpg" for number in range(1, 61)]
    assert list(people) == list(parts) == names
    assert sorted(path.name for path in (root / "img_align_celeba").iterdir()) == names
    assert set(people.values()) == set(range(1, 11))
    members = {part: {people[n] for n in names if parts[n] == part} for part in (0, 1, 2)}
    assert [len(members[part]) for part in (0, 1, 2)] == [8, 1, 1]
    assert sum(map(len, members.values())) == len(set.union(*members.values()))


def test_celeba_landmarks(world):
    root = world["celeba"]
    count, names, *found = (root / "list_landmarks_align_celeba.txt").read_text().splitlines()
    assert (count, len(found)) == ("60", 60)
    assert names == (
        "lefteye_x lefteye_y righteye_x righteye_y nose_x nose_y "
        "leftmouth_x leftmouth_y rightmouth_x rightmouth_y"
    )
    for index, line in enumerate(found):
        name, *numbers = line.split()
        points = np.array([int(number) for number in numbers]).reshape(5, 2)
        drawing = draw(toy_layouts.face_picture(0, 10, index), 109)
        assert points == pytest.approx(np.array(drawing.landmarks) - [10, 0], abs=0.5)
        assert (points >= 0).all()
        assert (points < [89, 109]).all()
        assert points[0, 0] < points[1, 0]
        assert points[3, 0] < points[4, 0]
        assert shows(root / "img_align_celeba" / name, drawing.pixels[:, 10:99])


@pytest.mark.data
def test_celeba_lists_are_written_like_the_true_ones(world, shared):
    for name, pattern in (
        ("identity_CelebA.txt", r"(\d{6}\.jpg \d+\n)+"),
        ("list_eval_partition.txt", r"(\d{6}\.jpg [012]\n)+"),
        ("MAFL/training.txt", r"(\d{6}\.jpg\n)+\d{6}\.jpg"),
        ("MAFL/testing.txt", r"(\d{6}\.jpg\n)+\d{6}\.jpg"),
    ):
        for root in (world["celeba"], shared / "data" / "celeba_lists"):
            assert re.fullmatch(pattern, (root / name).read_text())
    for root in (world["celeba"], shared / "data" / "celeba_layout_faces"):
        lines = (root / "list_landmarks_align_celeba.txt").read_text().splitlines()
        assert all(re.fullmatch(r"\d{6}\.jpg [ \d]{3}( [ \d]{4}){9}", line) for line in lines[2:])


def test_mafl_lists(world):
    root = world["celeba"]
    training, testing = (
        (root / "MAFL" / f"{part}.txt").read_text() for part in ("training", "testing")
    )
    assert not training.endswith("\n")
    assert not testing.endswith("\n")
    training, testing = training.split(), testing.split()
    parts = dict(rows(root / "list_eval_partition.txt"))
    assert set(training + testing) <= set(parts)
    assert not set(training) & set(testing)
    assert "0" in {parts[name] for name in testing}
    names = [f"{number:06d}.jpg" for number in range(2000)]
    many = toy_layouts.mafl(names)
    assert {part: len(names) for part, names in many.items()} == pytest.approx(
        {"testing": 200, "training": 800}, abs=60
    )
    for part, listed in many.items():
        assert listed != sorted(listed)
        assert set(toy_layouts.mafl(names[:60])[part]) == set(listed) & set(names[:60])
        assert {int(name[:6]) % 30 for name in listed} == set(range(30))  # all of 30 identities
    assert toy_layouts.mafl(names[:10])["testing"]  # never empty


# --- COCO


@pytest.fixture(scope="module")
def coco(world):
    return COCO(str(world["coco"] / "annotations" / "instances_train2017.json"))


# Of pycocotools, which NumPy finds outdated.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_coco_masks_are_those_of_the_instances(world, coco):
    assert coco.getImgIds() == list(range(1, 31))
    for index, number in enumerate(coco.getImgIds()):
        image = coco.loadImgs(number)[0]
        assert (image["width"], image["height"]) == (64, 64)
        what = toy_coco.coco_picture(0, "train", index)
        drawing = draw(what, 64)
        assert shows(world["coco"] / "train2017" / image["file_name"], drawing.pixels)
        told = coco.loadAnns(coco.getAnnIds(number))
        labels = [thing.label for thing in (*what.objects, *what.crowd[:1])]
        assert [coco.cats[a["category_id"]]["name"] for a in told] == [CLASSES[c] for c in labels]
        for instance, annotation in enumerate(told, start=1):
            expected = drawing.instances == instance
            assert (coco.annToMask(annotation) == expected).all()
            assert annotation["area"] == expected.sum()
            assert annotation["bbox"] == list(coco_mask.toBbox(coco.annToRLE(annotation)))
            assert annotation["iscrowd"] == (instance > len(what.objects))


def test_coco_quirks(world, coco):
    every = coco.loadAnns(coco.getAnnIds())
    crowds = [a for a in every if a["iscrowd"]]
    assert {type(a["segmentation"]) for a in crowds} == {dict}
    assert {type(a["segmentation"]) for a in every if not a["iscrowd"]} == {list}
    assert all(type(n) is int for a in crowds for n in a["segmentation"]["counts"])
    assert [i for i in coco.getImgIds() if not coco.getAnnIds(i)] == [8, 16, 24]
    assert [a["image_id"] for a in crowds] == [4, 12, 20, 28]
    assert len(coco.cats) == 20
    assert list(coco.cats)[:8] == [1, 2, 4, 5, 7, 8, 10, 11]  # not counted through
    assert {c["supercategory"] for c in coco.cats.values()} == set(toy.SHAPES)
    assert len({a["id"] for a in every}) == len(every)
    val = json.loads((world["coco"] / "annotations" / "instances_val2017.json").read_text())
    assert list(val) == ["info", "licenses", "images", "annotations", "categories"]
    assert not {image["id"] for image in val["images"]} & set(coco.getImgIds())
    assert [path.stem for path in sorted((world["coco"] / "val2017").iterdir())] == [
        f"{image['id']:012d}" for image in val["images"]
    ]


# --- Places and mini-ImageNet


def test_places(world):
    for split, count in (("train", 36), ("val", 12)):
        folder = world["places"] / split
        assert sorted(path.name for path in folder.iterdir()) == list(PLACES)
        for index in range(count):
            path = folder / PLACES[index % 6] / f"{index + 1:08d}.jpg"
            what = toy_layouts.place_picture(0, split, index)
            assert what.place.class_name == PLACES[index % 6]
            assert shows(path, draw(what, 64).pixels)
        assert len(list(folder.rglob("*.jpg"))) == count


@pytest.mark.parametrize("dialect", ["ravi", "sicara"])
def test_mini_imagenet(tmp_path, dialect):
    root = toy_layouts.make_mini_imagenet(tmp_path / "mini", per_class=2, size=32, dialect=dialect)
    classes = {}
    for split in ("train", "val", "test"):
        with open(root / f"{split}.csv", newline="") as file:
            table = list(csv.DictReader(file))
        heading, folders = {
            "ravi": (["filename", "label"], ["images"]),
            "sicara": (["class_name", "image_name"], [row.get("class_name") for row in table]),
        }[dialect]
        assert list(table[0]) == heading
        label, name = sorted(heading, key=lambda column: column in ("filename", "image_name"))
        each = Counter(row[label] for row in table)
        assert set(each.values()) == {2}
        classes[split] = [int(wnid[1:]) - 1 for wnid in each]
        for row, folder in zip(table, folders * (len(table) // len(folders)), strict=True):
            assert re.fullmatch(r"n\d{8}(\d{8}\.jpg|_\d+\.JPEG)", row[name])
            assert row[name].startswith(row[label])
            with Image.open(root / folder / row[name]) as image:
                assert (image.size, image.mode) == ((32, 32), "RGB")
    assert [len(classes[split]) for split in ("train", "val", "test")] == [10, 5, 5]
    assert sorted(label for labels in classes.values() for label in labels) == list(range(20))
    base = [CLASSES[label].split("-") for label in classes["train"]]
    assert {shape for shape, _ in base} == set(toy.SHAPES)
    assert {texture for _, texture in base} == set(toy.TEXTURES)


def test_mini_imagenet_shows_the_class_it_tells(world):
    for label in range(20):
        what = toy.invent(toy_layouts.generator(0, "mini_imagenet", label), label)
        path = world["mini_imagenet"] / "images" / f"n{label + 1:08d}00000001.jpg"
        assert shows(path, toy.draw(what, 64))
        assert what.class_name == CLASSES[label]


def test_an_unknown_dialect_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\['ravi', 'sicara'\], but found 'csv'"):
        toy_layouts.make_mini_imagenet(tmp_path / "mini", per_class=1, dialect="csv")
