import dataclasses
import hashlib
import json
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from goodtransfer.data import VOCDetectionDataModule, make_voc, toy, toy_voc
from goodtransfer.data.toy import CLASSES, draw, make_imagefolder, mask, scene
from goodtransfer.data.toy_voc import picture


def digests(root, split="train"):
    files = sorted((root / split).rglob("*.jpg"), key=lambda path: path.name)
    return [(str(f.relative_to(root)), hashlib.sha256(f.read_bytes()).hexdigest()) for f in files]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_imagefolder(tmp_path_factory.mktemp("toy") / "small", train=60, val=40, size=32)


def test_same_arguments_give_the_same_bytes_elsewhere(small, tmp_path):
    again = make_imagefolder(tmp_path / "again", train=60, val=40, size=32)
    for split in ("train", "val"):
        assert digests(small, split) == digests(again, split)


def test_longer_splits_begin_with_the_shorter_ones(small, tmp_path):
    longer = make_imagefolder(tmp_path / "longer", train=80, val=60, size=32)
    assert digests(longer)[:60] == digests(small)
    assert digests(longer, "val")[:40] == digests(small, "val")


def test_another_seed_or_split_shows_other_pictures(small, tmp_path):
    other = make_imagefolder(tmp_path / "other", train=60, val=40, size=32, seed=1)
    seen = [
        digest
        for root in (small, other)
        for s in ("train", "val")
        for _, digest in digests(root, s)
    ]
    assert len(seen) == len(set(seen)) == 200


def test_every_class_folder_holds_its_share(small):
    for split, each in (("train", 3), ("val", 2)):
        folders = sorted(folder for folder in (small / split).iterdir())
        assert [folder.name for folder in folders] == list(CLASSES)
        assert {len(list(folder.iterdir())) for folder in folders} == {each}
    assert "disc-stripes" in CLASSES
    assert len(set(CLASSES)) == 20


def test_files_are_rgb_jpegs_that_show_their_scene(small):
    for index in (0, 21, 59):
        what = scene(0, "train", index)
        with Image.open(small / "train" / what.class_name / f"{index:06d}.jpg") as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (32, 32))
            written = np.asarray(image, dtype=float)
        # Coarsened by 4: JPEG keeps means, while it may smooth single pixels of the texture.
        coarse = (written - draw(what, 32)).reshape(8, 4, 8, 4, 3).mean((1, 3))
        assert np.abs(coarse).max() < 8


def test_second_call_touches_nothing(small, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in small.rglob("*")}
    monkeypatch.setattr(toy, "draw", None)  # would raise if it were called
    assert make_imagefolder(small, train=60, val=40, size=32) == small
    assert {path: path.stat().st_mtime_ns for path in small.rglob("*")} == before


def test_other_arguments_on_the_same_folder_are_refused(small):
    with pytest.raises(
        ValueError, match=r"(?s)'train': 80.*but found the toy world.*'train': 60.*another folder"
    ):
        make_imagefolder(small, train=80, val=40, size=32)


def test_an_older_world_is_refused(small, tmp_path):
    old = make_imagefolder(tmp_path / "old", train=20, val=20, size=16)
    marker = json.loads((old / "toy.json").read_text())
    (old / "toy.json").write_text(json.dumps(marker | {"version": 0}))
    with pytest.raises(ValueError, match="'version': 0"):
        make_imagefolder(old, train=20, val=20, size=16)


def test_a_folder_of_something_else_is_kept_and_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(ValueError, match=r"without a readable toy\.json"):
        make_imagefolder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_interrupted_call_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupted(what, size, real=toy.draw):
        if what.label == 7:
            raise KeyboardInterrupt
        return real(what, size)

    with monkeypatch.context() as patch:
        patch.setattr(toy, "draw", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make_imagefolder(tmp_path / "toy", train=20, val=20, size=16)
    assert list(tmp_path.iterdir()) == []
    make_imagefolder(tmp_path / "toy", train=20, val=20, size=16)
    assert len(digests(tmp_path / "toy")) == 20


def test_loser_of_a_race_takes_the_winners_folder(tmp_path, monkeypatch):
    arguments = {"train": 20, "val": 20, "size": 16}

    def overtaken(what, size, real=toy.draw):
        if what.label == 19 and not (tmp_path / "toy").exists():
            monkeypatch.setattr(toy, "draw", real)
            make_imagefolder(tmp_path / "toy", **arguments)
        return real(what, size)

    monkeypatch.setattr(toy, "draw", overtaken)
    make_imagefolder(tmp_path / "toy", **arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]
    assert len(digests(tmp_path / "toy")) == 20


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"train": 19}, "at least 20 images in each split.*train=19"),
        ({"val": 0}, "at least 20 images in each split.*val=0"),
        ({"size": 8}, "at least 16 pixels.*size=8"),
        ({"seed": -1}, "seed of at least 0.*seed=-1"),
    ],
)
def test_impossible_worlds_are_refused(tmp_path, arguments, text):
    with pytest.raises(ValueError, match=text):
        make_imagefolder(tmp_path / "toy", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_these_are_the_pictures_of_version_1():
    """Other pixels need another VERSION, so that folders of the older world are refused."""
    sums = [int(draw(scene(0, "train", index), 32).sum()) for index in (0, 5, 10, 15, 39)]
    assert sums == pytest.approx([406583, 425087, 393759, 425944, 376161], abs=20)  # of rounding
    assert toy.VERSION == 1


def test_shapes_cover_the_same_area_at_any_size():
    for index in range(0, 100, 4):
        what = dataclasses.replace(scene(0, "train", index), radius=0.2)  # no tip leaves the image
        assert mask(what, 256).mean() == pytest.approx(np.pi * 0.2**2, rel=0.005)
        assert mask(what, 48).mean() == pytest.approx(mask(what, 256).mean(), rel=0.01)


def test_textures_show_both_tones_in_equal_parts():
    phase = (np.arange(400, dtype=np.float32) + 0.5) / 100  # whole periods, off the borders
    u, v = np.meshgrid(phase, phase)
    for border in toy.TEXTURES.values():
        light = np.clip(0.5 - border(u, v) * 100, 0, 1)  # smoothed over one step, as in draw
        assert light.mean() == pytest.approx(0.5, abs=0.002)


def test_textures_measure_distance():
    # A signed distance grows at most as fast as one walks; smoothing over one pixel rests on it.
    step = np.float32(0.01)
    place = np.arange(300, dtype=np.float32) * step
    u, v = np.meshgrid(place, place)
    for border in toy.TEXTURES.values():
        for axis in (0, 1):
            assert np.abs(np.diff(border(u, v), axis=axis)).max() <= 1.01 * step


def nearest_centroid_accuracy(train, val):
    """Share of ``val`` whose class (index modulo 20) has the nearest mean among ``train``."""
    centroids = np.stack([train[c :: len(CLASSES)].mean(0) for c in range(len(CLASSES))])
    guess = ((val[:, None] - centroids) ** 2).sum(-1).argmin(1)
    return np.mean(guess == np.arange(len(val)) % len(CLASSES))


def least_squares_accuracy(train, val):
    """Same by a linear classifier fitted to one-hot classes in the least squares sense."""
    wanted = np.eye(len(CLASSES))[np.arange(len(train)) % len(CLASSES)]
    fitted, *_ = np.linalg.lstsq(np.c_[train, np.ones(len(train))], wanted, rcond=None)
    guess = (np.c_[val, np.ones(len(val))] @ fitted).argmax(1)
    return np.mean(guess == np.arange(len(val)) % len(CLASSES))


@pytest.fixture(scope="module")
def pictures():
    return {
        split: np.stack([draw(scene(3, split, i), 32) for i in range(2000)])
        for split in ("train", "val")
    }


def mean_colour(images):
    return images.reshape(len(images), -1, 3).mean(1) / 255


def colour_histogram(images, bins=4):
    """Shares of the bins x bins x bins colours."""
    r, g, b = np.moveaxis(images.astype(np.int64) * bins // 256, -1, 0)
    colour = ((r * bins + g) * bins + b).reshape(len(images), -1)
    return np.stack([np.bincount(c, minlength=bins**3) for c in colour]) / colour.shape[1]


def tint_histogram(images, bins=6):
    """Shares of the differences of red and blue to green: colour without brightness."""
    channels = images.reshape(len(images), -1, 3).astype(np.int64)
    tint = channels[..., [0, 2]] - channels[..., [1]]
    cell = np.clip((tint + 32) * bins // 64, 0, bins - 1)
    cell = cell[..., 0] * bins + cell[..., 1]
    return np.stack([np.bincount(c, minlength=bins**2) for c in cell]) / cell.shape[1]


CHANCE = 1 / len(CLASSES)
STANDARD_ERROR = np.sqrt(CHANCE * (1 - CHANCE) / 2000)


@pytest.mark.parametrize("features", [mean_colour, tint_histogram])
@pytest.mark.parametrize("accuracy", [nearest_centroid_accuracy, least_squares_accuracy])
def test_colour_does_not_tell_the_class(pictures, features, accuracy):
    found = accuracy(features(pictures["train"]), features(pictures["val"]))
    assert abs(found - CHANCE) < 3 * STANDARD_ERROR


def test_amount_of_mixed_tones_tells_little(pictures):
    # Not nothing: pixels on a border of two tones mix them, and checks have the longest borders.
    # Measured 6.4 to 6.9 % at 64 pixels and 7.6 to 7.9 % at 32, where chance is 5 %.
    features = {split: colour_histogram(images) for split, images in pictures.items()}
    assert nearest_centroid_accuracy(features["train"], features["val"]) < 0.08
    assert least_squares_accuracy(features["train"], features["val"]) < 0.10


def test_colour_check_has_power(pictures):
    # One step of brightness in a hundred per class, and the same check is far from chance.
    tinted = {
        split: mean_colour(images) + 0.01 * (np.arange(len(images)) % len(CLASSES))[:, None]
        for split, images in pictures.items()
    }
    found = least_squares_accuracy(tinted["train"], tinted["val"])
    assert found > CHANCE + 3 * STANDARD_ERROR


# --- As PASCAL VOC

VOC = {"train": 40, "test": 30, "size": 64}


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    return make_voc(tmp_path_factory.mktemp("toy") / "voc", **VOC)


def tight(covered):
    """Box around the pixels covered by half, as VOC counts: from 1, the last one included."""
    columns, rows = (np.flatnonzero((covered >= 0.5).any(axis)) for axis in (0, 1))
    return [columns[0] + 1, rows[0] + 1, columns[-1] + 1, rows[-1] + 1]


def test_voc_annotations_agree_with_the_masks(voc):
    """Parsed here, and drawn again from the scenes."""
    year = voc / "VOCdevkit" / "VOC2007"
    for split, count, first in (("trainval", 40, 1), ("test", 30, 500_001)):
        names = (year / "ImageSets" / "Main" / f"{split}.txt").read_text().split()
        assert names == [f"{first + index:06d}" for index in range(count)]
        for index, name in enumerate(names):
            root = ElementTree.parse(year / "Annotations" / f"{name}.xml").getroot()
            assert root.findtext("filename") == f"{name}.jpg"
            assert [root.findtext(f"size/{key}") for key in ("width", "height")] == ["64", "64"]
            things = picture(0, split, index).objects
            for entry, what in zip(root.findall("object"), things, strict=True):
                covered = mask(what, 64)
                assert [int(side.text) for side in entry.find("bndbox")] == tight(covered)
                assert entry.findtext("name") == what.class_name
                share = covered.sum() / (np.pi * (what.radius * 64) ** 2)
                hard = share < 0.5 or what.radius < 0.1
                assert entry.findtext("difficult") == str(int(hard))
                assert entry.findtext("truncated") == str(int(share < 0.95))


def test_voc_pictures_are_varied():
    pictures = [picture(0, "trainval", index) for index in range(200)]
    assert {len(what.objects) for what in pictures} == {1, 2, 3}
    assert [what.objects[0].label for what in pictures] == [index % 20 for index in range(200)]
    drawn = [toy_voc.draw(what, 64) for what in pictures]
    every = [annotation for _, annotations in drawn for annotation in annotations]
    assert {annotation.name for annotation in every} == set(CLASSES)
    assert 0.05 < np.mean([annotation.difficult for annotation in every]) < 0.25
    assert {(a.truncated, a.difficult) for a in every} == {(t, d) for t in (0, 1) for d in (0, 1)}
    assert not any(annotations[0].difficult for _, annotations in drawn)
    assert len({pixels.tobytes() for pixels, _ in drawn}) == 200
    tests = {toy_voc.draw(picture(0, "test", i), 64)[0].tobytes() for i in range(200)}
    assert not tests & {pixels.tobytes() for pixels, _ in drawn}


def test_voc_objects_do_not_overlap():
    for index in range(60):
        masks = [mask(what, 128) for what in picture(1, "test", index).objects]
        assert (np.sum([covered > 0 for covered in masks], axis=0) <= 1).all()


def test_voc_pictures_show_their_objects(voc):
    """Where an object is, and nowhere else, pixels differ from the background."""
    for index in range(10):
        what = picture(0, "trainval", index)
        pixels, _ = toy_voc.draw(what, 64)
        masks = np.max([mask(thing, 64) for thing in what.objects], axis=0)
        away = np.abs(pixels / 255 - what.objects[0].background).max(-1)
        assert away[masks == 0].max() < 0.01
        assert away[masks == 1].mean() > 0.2
        path = voc / "VOCdevkit" / "VOC2007" / "JPEGImages" / f"{index + 1:06d}.jpg"
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (64, 64))
            written = np.asarray(image, dtype=float)
        coarse = (written - pixels).reshape(16, 4, 16, 4, 3).mean((1, 3))
        assert np.abs(coarse).max() < 12  # small objects are of fine texture


def test_voc_goes_through_the_data_module(voc):
    data = VOCDetectionDataModule(voc, class_names=CLASSES, loader={"flip": 0})
    data.setup("fit")
    assert (data.num_images, data.num_classes) == (40, 20)
    for loader, split, count in (
        (data.train_dataloader(), "trainval", 40),
        (data.test_dataloader(), "test", 30),
    ):
        seen = set()
        for images, targets in loader:
            for image, target in zip(images, targets, strict=True):
                number = target["image_id"]
                seen.add(number)
                what = picture(0, split, number)
                assert image.shape == (3, 64, 64)
                assert target["labels"].tolist() == [thing.label for thing in what.objects]
                boxes = [tight(mask(thing, 64)) for thing in what.objects]
                assert (target["boxes"].numpy() == np.array(boxes) - [1, 1, 0, 0]).all()
        assert seen == set(range(count))
    flags = [flag for record in data.records("train") for flag in record.difficult]
    assert 0 < sum(flags) < len(flags) / 2


def test_voc_is_the_same_elsewhere_and_begins_longer_splits(voc, tmp_path):
    longer = make_voc(tmp_path / "longer", train=45, test=31, size=64)
    other = make_voc(tmp_path / "other", **VOC, seed=1)
    for folder in ("JPEGImages", "Annotations"):
        for path in (voc / "VOCdevkit" / "VOC2007" / folder).iterdir():
            same = path.relative_to(voc)
            assert (longer / same).read_bytes() == path.read_bytes()
            assert (other / same).read_bytes() != path.read_bytes()


def test_voc_is_drawn_once(voc, monkeypatch):
    monkeypatch.setattr(toy_voc, "draw", None)  # would raise if it were called
    assert make_voc(voc, **VOC) == voc
    with pytest.raises(ValueError, match=r"'train': 41.*but found the toy world.*'train': 40"):
        make_voc(voc, **VOC | {"train": 41})
    with pytest.raises(ValueError, match=r"but found the toy world .*'layout': 'VOCdevkit'"):
        make_imagefolder(voc)


def test_an_interrupted_voc_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupted(what, size, real=toy_voc.draw):
        if what.objects[0].label == 7:
            raise KeyboardInterrupt
        return real(what, size)

    monkeypatch.setattr(toy_voc, "draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_voc(tmp_path / "voc", **VOC)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"train": 0}, "Expected 1 to 499999 images in each split.*train=0"),
        ({"test": 500_000}, "test=500000"),
        ({"size": 31}, "at least 32 pixels.*size=31"),
        ({"seed": -1}, "seed of at least 0.*seed=-1"),
    ],
)
def test_impossible_voc_worlds_are_refused(tmp_path, arguments, text):
    with pytest.raises(ValueError, match=text):
        make_voc(tmp_path / "voc", **VOC | arguments)
    assert list(tmp_path.iterdir()) == []


def test_drawing_needs_no_torch():
    code = (
        "import sys; from goodtransfer.data import make_imagefolder, make_voc; "
        "from goodtransfer.data.fingerprint import voc_fingerprint; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
