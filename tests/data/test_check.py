"""Damage of every kind, put into the toy world: each is found, and nothing else is."""

import json
import pickle
import shutil

import numpy as np
import pytest
import pytorch_lightning as pl
from PIL import Image

import goodtransfer
from goodtransfer.data import toy, toy_layouts
from goodtransfer.data.check import check, oddities
from goodtransfer.data.samples import parts

MODULES = {
    "imagefolder": "ImageNetDataModule",
    "places": "PlacesDataModule",
    "celeba": "CelebADataModule",
    "coco": "COCODetectionDataModule",
    "synthia": "SYNTHIASegmentationDataModule",
    "cityscapes": "CityscapesDataModule",
    "voc": "VOCDetectionDataModule",
    "mini_imagenet": "MiniImageNetDataModule",
}
# Of the world's 10 identities, 8 are trained on; half of its classes are mini-ImageNet's base.
CLASSES = {
    "imagefolder": 20, "places": 6, "celeba": 8, "coco": 20, "synthia": 13, "cityscapes": 19,
    "voc": 20, "mini_imagenet": 10,
}  # fmt: skip
OPTIONS = {"voc": {"class_names": toy.CLASSES}, "coco": {"masks": True}}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    toy_layouts.make_all(root, images=400, size=128)
    return root


@pytest.fixture
def copy(world, tmp_path):
    """A layout of the world to damage."""

    def make(layout):
        return shutil.copytree(world / layout, tmp_path / layout)

    return make


def checked(root, layout, workers=0, **options):
    options = OPTIONS.get(layout, {}) | options
    made = getattr(goodtransfer, MODULES.get(layout, layout))(root, on_error="skip", **options)
    return check(made, workers=workers)


@pytest.mark.parametrize("layout", MODULES)
def test_a_sound_world_has_no_faults(world, layout):
    findings = checked(world / layout, layout)
    assert findings.faults == []
    assert findings.odd == {}
    assert all(found > 0 for found, _ in findings.counts.values())
    assert findings.counts["classes"][0] == CLASSES[layout]


def first(root, pattern):
    return sorted(root.rglob(pattern))[0]


def cut(path):
    path.write_bytes(path.read_bytes()[:100])


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def no_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def outside(content):
    content["annotations"][0]["bbox"] = [40, 40, 500, 500]


def unknown_category(content):
    content["annotations"][0]["category_id"] = 999


def unknown_image(content):
    content["annotations"][0]["image_id"] = 999_999


def climbs(content):
    content["images"][0]["file_name"] = "../../secret.jpg"


def wrong_size(path):
    with Image.open(path) as image:
        Image.fromarray(np.asarray(image)[:-8]).save(path)


DAMAGE = [
    ("imagefolder", "train/*/*.jpg", cut, "cannot be decoded"),
    ("imagefolder", "val/*/*.jpg", lambda p: p.write_bytes(b""), "it is empty"),
    ("places", "val/*/*.jpg", lambda p: p.write_text("<html>not found</html>"), "no image PIL knows"),
    ("celeba", "img_align_celeba/*.jpg", lambda p: p.unlink(), "Expected an image at"),
    ("celeba", "img_align_celeba/*.jpg", cut, "cannot be decoded"),
    ("voc", "VOCdevkit/*/JPEGImages/*.jpg", lambda p: p.unlink(), "lists it"),
    ("voc", "VOCdevkit/*/Annotations/*.xml", lambda p: p.unlink(), "Expected an annotation at"),
    ("voc", "VOCdevkit/*/Annotations/*.xml", lambda p: edit(p, "<xmax>", "<xmax>9"), "inside"),
    ("voc", "VOCdevkit/*/Annotations/*.xml", lambda p: edit(p, "</object>", ""), "Expected XML"),
    ("voc", "VOCdevkit/*/JPEGImages/*.jpg", wrong_size, "as its annotation says"),
    ("coco", "annotations/*val*.json", lambda p: no_json(p, unknown_category), "999"),
    ("coco", "annotations/*val*.json", lambda p: no_json(p, unknown_image), "999999"),
    ("coco", "annotations/*val*.json", lambda p: no_json(p, climbs), "secret.jpg"),
    ("coco", "val2017/*.jpg", lambda p: p.unlink(), "Expected an image at"),
    ("cityscapes", "gtFine/*/*/*_labelIds.png", lambda p: p.unlink(), "Expected a label at"),
    ("cityscapes", "leftImg8bit/*/*/*.png", lambda p: p.unlink(), "for the label"),
    ("cityscapes", "leftImg8bit/*/*/*.png", wrong_size, "as its image is"),
    ("synthia", "RGB/*/*/*.png", cut, "cannot be decoded"),
    ("mini_imagenet", "images/*.jpg", lambda p: p.unlink(), "Expected an image at"),
]  # fmt: skip


@pytest.mark.parametrize(("layout", "pattern", "damage", "words"), DAMAGE)
def test_each_damage_is_found_once(copy, layout, pattern, damage, words):
    root = copy(layout)
    folder, _, name = pattern.rpartition("/")
    path = sorted(p for p in root.rglob(name) if p.relative_to(root).match(f"*{folder}/{name}"))[0]
    damage(path)
    findings = checked(root, layout)
    assert len(findings.faults) == 1, findings
    assert words in findings.faults[0]
    assert "faults" in str(findings)
    assert f"fault: {findings.faults[0]}" in str(findings)


def test_landmarks_outside_are_found(copy):
    root = copy("celeba")
    name = (root / "MAFL" / "training.txt").read_text().split()[0]
    lines = (root / "list_landmarks_align_celeba.txt").read_text().splitlines()
    number = next(n for n, line in enumerate(lines) if line.startswith(name))
    lines[number] = f"{name} 500" + lines[number].removeprefix(name).lstrip().lstrip("0123456789")
    (root / "list_landmarks_align_celeba.txt").write_text("\n".join(lines) + "\n")
    findings = checked(root, "MAFLDataModule")
    assert len([f for f in findings.faults if f"line {number + 1} of" in f]) == 1


def test_workers_find_the_same(copy):
    root = copy("imagefolder")
    for path in sorted(root.rglob("*.jpg"))[::7]:
        cut(path)
    one, two = checked(root, "imagefolder"), checked(root, "imagefolder", workers=2)
    assert one == two
    assert len(one.faults) == len(list(root.rglob("*.jpg"))[::7])


def test_a_class_without_images(copy):
    root = copy("imagefolder")
    for path in (root / "train" / "disc-dots").iterdir():
        path.unlink()
    findings = checked(root, "imagefolder")
    assert findings.empty == {"train": ["disc-dots"]}
    assert not findings.complete
    assert ["found none in disc-dots" in fault for fault in findings.faults] == [True]
    assert "classes without samples in train" in str(findings)


def test_a_missing_part_is_one_fault(copy):
    root = copy("imagefolder")
    shutil.rmtree(root / "val")
    findings = checked(root, "imagefolder")
    assert len(findings.faults) == 1
    assert "Expected a folder of classes at" in findings.faults[0]


def test_an_empty_data_set_is_no_sound_one(tmp_path):
    for folder in ("leftImg8bit/train", "leftImg8bit/val", "gtFine/train", "gtFine/val"):
        (tmp_path / folder).mkdir(parents=True)
    findings = checked(tmp_path, "cityscapes")
    assert len(findings.faults) == 1
    assert "images to train on in" in findings.faults[0]
    assert findings.counts["images of val"] == (0, 500)
    assert not findings.complete


def test_a_part_of_the_data_set_has_no_published_counts(world):
    made = goodtransfer.ImageNetDataModule(world / "imagefolder", subset="10%", on_error="skip")
    assert not check(made).published


def test_a_large_image_that_is_allowed_is_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    (tmp_path / "x").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "x" / "large.png")
    made = goodtransfer.ImageFolderDataModule(
        tmp_path, train=".", val=None, labelled=False, on_error="skip"
    )
    assert check(made).faults == []


@pytest.mark.parametrize("layout", MODULES)
def test_samples_can_be_sent_to_processes_of_any_kind(world, layout):
    options = OPTIONS.get(layout, {})
    made = getattr(goodtransfer, MODULES[layout])(world / layout, **options)
    for part in parts(made).values():
        again = pickle.loads(pickle.dumps(part.sample))
        assert (again(0).image == part.sample(0).image).all()


def test_counts_stand_beside_the_published(world):
    findings = checked(world / "imagefolder", "imagefolder")
    assert findings.counts == {
        "images of train": (60, 1_281_167),
        "images of val": (20, 50_000),
        "classes": (20, 1_000),
    }
    assert findings.published
    assert not findings.complete
    table = str(findings).splitlines()
    assert table[0].split() == ["found", "published"]
    assert table[1] == "images of train     60  1,281,167"


def test_oddities_are_told_by_kind(copy):
    root = copy("imagefolder")
    paths = sorted((root / "train").rglob("*.jpg"))
    image = Image.open(paths[0]).convert("RGB")
    image.convert("L").save(paths[0])
    image.convert("L").save(paths[1])
    image.convert("CMYK").save(paths[2])
    image.convert("RGBA").save(paths[3], format="PNG")
    image.resize((1, 1)).save(paths[4])
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(paths[5], exif=exif)
    findings = checked(root, "imagefolder")
    assert {kind: count for kind, (count, _) in findings.odd.items()} == {
        "grey": 2, "CMYK": 1, "PNG named .jpg": 1, "alpha": 1, "smaller than 32 pixels": 1,
        "turned by EXIF, which is not applied": 1,
    }  # fmt: skip
    assert findings.faults == []
    assert f"grey: such as {paths[0]}" in str(findings)


def test_sixteen_bits_are_odd(tmp_path):
    Image.fromarray(np.zeros((40, 40), np.uint16)).save(tmp_path / "deep.png")
    assert oddities(str(tmp_path / "deep.png")) == ["16-bit grey"]


def test_what_is_no_data_module():
    with pytest.raises(
        ValueError, match="data module of goodtransfer, but got LightningDataModule"
    ):
        parts(pl.LightningDataModule())


@pytest.mark.data
def test_real_photos(shared):
    """The traps of the photos, and nothing worse."""
    made = goodtransfer.ImageFolderDataModule(
        shared / "data/imagenet_samples", train="val", val=None, on_error="skip"
    )
    findings = check(made)
    assert findings.faults == []
    assert {kind: count for kind, (count, _) in findings.odd.items()} == {
        "grey": 4,
        "turned by EXIF, which is not applied": 1,
    }
    made = goodtransfer.COCODetectionDataModule(
        shared / "data/coco128", masks=True, loader={"skip_empty": False}, on_error="skip"
    )
    findings = check(made)
    assert findings.faults == []
    assert findings.odd["grey"][0] == 1
    assert {part: found for part, (found, _) in findings.counts.items()} == {
        "images of train": 96, "images of test": 32, "classes": 80,
    }  # fmt: skip
