"""Lists and tables that are broken, in other encodings, or whose names lead elsewhere."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import goodtransfer
from goodtransfer.data.check import check
from goodtransfer.data.files import inside
from goodtransfer.data.fingerprint import voc_fingerprint
from goodtransfer.data.lists import read_list
from goodtransfer.data.skip import Skips

sys.path.insert(0, str(Path(__file__).parent))
from forked import assert_clean, fault_of, outcomes
from mutations import CASES, NAMES, dice, mutated

POINTS = "60 90 110 91 85 120 65 150 105 151"
HEADING = " ".join(
    f"{p}_{a}" for p in ("lefteye", "righteye", "nose", "leftmouth", "rightmouth") for a in "xy"
)
FACES = [f"{n:06d}.jpg" for n in range(1, 13)]


def lists():
    """Every list of every data set, and its data module."""
    places = [f"a/abbey/{n}.jpg {n % 2}" for n in range(6)]
    return {
        "places205/train_places205.csv": places,
        "places205/val_places205.csv": places[:2],
        "places365/categories_places365.txt": ["/a/abbey 0", "/b/beach 1"],
        "places365/places365_train_standard.txt": [f"/{line}" for line in places],
        "places365/places365_val.txt": ["v1.jpg 0", "v2.jpg 1"],
        "celeba/identity_CelebA.txt": [f"{name} {n % 4 + 1}" for n, name in enumerate(FACES)],
        "celeba/list_eval_partition.txt": [f"{name} {n % 4 // 2}" for n, name in enumerate(FACES)],
        "celeba/list_landmarks_align_celeba.txt": [
            "12",
            HEADING,
            *(f"{name} {POINTS}" for name in FACES),
        ],
        "celeba/MAFL/training.txt": FACES[:4],
        "celeba/MAFL/testing.txt": FACES[4:6],
        "mini/train.csv": [
            "filename,label",
            *(f"n01{n % 3}{n:05d}.jpg,n01{n % 3}" for n in range(6)),
        ],
        "mini/val.csv": ["class_name,image_name", "n010,a.jpg", "n010,b.jpg"],
        "mini/test.csv": ["class_name,image_name", "n011,a.jpg"],
        "voc/VOCdevkit/VOC2007/ImageSets/Main/trainval.txt": ["1", "2 1", "3 -1"],
        "voc/VOCdevkit/VOC2007/ImageSets/Main/test.txt": ["4"],
    }


IMAGES = {
    "places205/images256/a/abbey": [f"{n}.jpg" for n in range(6)],
    "places365/data_256/a/abbey": [f"{n}.jpg" for n in range(6)],
    "places365/val_256": ["v1.jpg", "v2.jpg"],
    "celeba/img_align_celeba": FACES,
    "mini/images": [f"n01{n % 3}{n:05d}.jpg" for n in range(6)],
    "mini/n010": ["a.jpg", "b.jpg"],
    "mini/n011": ["a.jpg"],
    "voc/VOCdevkit/VOC2007/JPEGImages": [f"{n}.jpg" for n in range(1, 5)],
}
XML = (
    "<annotation><size><width>178</width><height>218</height></size><object><name>cat</name>"
    "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>40</ymax></bndbox></object></annotation>"
)
MODULES = {
    "places205": ["PlacesDataModule"],
    "places365": ["PlacesDataModule"],
    "celeba": ["CelebADataModule", "MAFLDataModule"],
    "mini": ["MiniImageNetDataModule"],
    "voc": ["VOCDetectionDataModule"],
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("lists")
    for name, lines in lists().items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("\n".join(lines) + "\n")
    for folder, names in IMAGES.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for name in names:
            Image.new("RGB", (178, 218)).save(root / folder / name)
    annotations = root / "voc/VOCdevkit/VOC2007/Annotations"
    annotations.mkdir()
    for number in range(1, 5):
        (annotations / f"{number}.xml").write_text(XML)
    return root


def looked_through(root, name, on_error="skip"):
    """A list's data module reads all; what it finds names a file."""
    folder = name.partition("/")[0]
    found = []
    for kind in MODULES[folder]:
        options = {"leave_out_mafl": "all"} if kind == "CelebADataModule" else {}
        module = getattr(goodtransfer, kind)(root / folder, on_error=on_error, **options)
        if on_error == "raise":
            module.setup("test")
            module.fingerprint()
        else:
            found += check(module).faults
    for fault in found:
        assert not (told := fault_of(fault, root)), told
    return found


def rewritten(path, content):
    """A case: the file with this content; afterwards it is as before."""
    before = path.read_bytes()
    path.write_bytes(content)
    return lambda: path.write_bytes(before)


@pytest.mark.slow
def test_broken_lists(world):
    good = {name: ("\n".join(lines) + "\n").encode() for name, lines in lists().items()}
    names = list(good)

    def case(number):
        random = dice("list", number)
        name = names[number % len(names)]
        restore = rewritten(world / name, mutated(good[name], random, good[random.choice(names)]))
        try:
            looked_through(world, name, "skip" if number % 2 else "raise")
        finally:
            restore()

    for name in names:
        assert looked_through(world, name) == [], name
        looked_through(world, name, "raise")
    assert_clean(outcomes(case, CASES["list"], world), CASES["list"])


CONTENTS = {
    "nothing": lambda good: b"",
    "NULs": lambda good: good.replace(b"1", b"\0"),
    "NULs alone": lambda good: bytes(10_000),
    "UTF-16": lambda good: good.decode().encode("utf-16"),
    "UTF-16 without a mark": lambda good: good.decode().encode("utf-16-le"),
    "UTF-32": lambda good: good.decode().encode("utf-32"),
    "UTF-7": lambda good: "é".encode("utf-7") + good,
    "Latin-1": lambda good: good.replace(b".jpg", b"\xe9.jpg"),
    "Latin-1 in front": lambda good: b"\xff" + good,
    "EBCDIC": lambda good: good.decode().encode("cp500"),
    "a mark in front": lambda good: b"\xef\xbb\xbf" + good,
    "line ends of Windows": lambda good: good.replace(b"\n", b"\r\n"),
    "line ends of an old Mac": lambda good: good.replace(b"\n", b"\r"),
    "no line end": lambda good: good.replace(b"\n", b" "),
    "one line of a megabyte": lambda good: b"x" * 10**6 + b" 1\n" + good,
    "quotes": lambda good: good.replace(b".jpg", b'.jpg"'),
    "an image": lambda good: b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 20,
    "every byte": lambda good: bytes(range(256)) + b" 0\n" + good,
    "a page": lambda good: b"<html><body>404 not found</body></html>",
}


@pytest.mark.parametrize("content", CONTENTS)
def test_lists_in_other_encodings(content, world):
    names = list(lists())

    def case(number):
        name = names[number // 2]
        restore = rewritten(world / name, CONTENTS[content]((world / name).read_bytes()))
        try:
            looked_through(world, name, ("skip", "raise")[number % 2])
        finally:
            restore()

    found = outcomes(case, 2 * len(names), world, gigabytes=0.5)
    assert {*found} <= {"a result", "one sentence"}, dict(
        zip([n for n in names for _ in "ab"], found, strict=True)
    )


def test_a_mark_in_front_is_passed_over(world):
    for name in lists():
        restore = rewritten(world / name, b"\xef\xbb\xbf" + (world / name).read_bytes())
        try:
            assert looked_through(world, name) == [], name
        finally:
            restore()


@pytest.mark.parametrize(
    "name", ["../secret.jpg", "a/../../secret.jpg", "/etc/passwd", "..\\secret.jpg", "C:\\a"]
)
def test_names_that_lead_elsewhere_are_not_followed(name, world):
    """No file outside of the data set's folder is opened, and what is found names the list."""
    (world / "secret.jpg").touch()
    files = [file for file in lists() if "categories" not in file and "landmarks" not in file]

    def watch(event, arguments):
        if event == "open" and str(arguments[0]).endswith(("secret.jpg", "passwd")):
            raise AssertionError(arguments[0])

    def case(number):
        if number == 0:
            sys.addaudithook(watch)
        file, rows = files[number], lists()[files[number]]
        last = rows[-1].replace(",", " ").split()[0]
        restore = rewritten(
            world / file, "\n".join([*rows, rows[-1].replace(last, name, 1)]).encode()
        )
        try:
            assert looked_through(world, file)
        finally:
            restore()

    assert outcomes(case, len(files), world) == ["a result"] * len(files)


def test_what_never_ends_is_no_list(world, tmp_path):
    for name in lists():
        path, aside = world / name, tmp_path / "aside"
        path.rename(aside)
        os.mkfifo(path)
        try:
            assert {*outcomes(lambda _, name=name: looked_through(world, name), 1, world, seconds=5)} <= {
                "a result", "one sentence",
            }  # fmt: skip
        finally:
            path.unlink()
            aside.rename(path)


def test_a_list_without_classes(world):
    name = "places365/categories_places365.txt"
    restore = rewritten(world / name, b"\n")
    try:
        with pytest.raises(
            ValueError, match=r"numbers of classes in .*places365.txt, but found none"
        ):
            looked_through(world, name, "raise")
    finally:
        restore()


def test_mafls_names_need_not_be_ascii(world):
    name = "celeba/MAFL/training.txt"
    restore = rewritten(world / name, "\n".join([*FACES[:4], "é.jpg"]).encode())
    try:
        found = looked_through(world, name)
        assert len(found) == 1
        assert "é.jpg" in found[0]
    finally:
        restore()


def test_the_fingerprint_of_voc_stays_in_its_folder(world):
    name = "voc/VOCdevkit/VOC2007/ImageSets/Main/test.txt"
    for entry in (b"../../x", b"a\0b"):
        restore = rewritten(world / name, b"4\n" + entry + b"\n")
        try:
            with pytest.raises(
                ValueError, match="names of files below the data set's folder in .*ImageSets"
            ):
                voc_fingerprint(world / "voc", ["2007/test"])
        finally:
            restore()


# --- Whatever name


@settings(max_examples=500, deadline=None, derandomize=True)
@given(
    st.text(max_size=40) | st.sampled_from(NAMES) | st.from_regex(r"[./\\a:]{1,12}", fullmatch=True)
)
def test_a_name_that_is_taken_stays_inside(name):
    try:
        inside(name, Path("list.txt"))
    except ValueError:
        return
    place = os.path.normpath(os.path.join("/data/set", name))
    assert place.startswith("/data/set")
    assert not {"\0", "\n", "\\..", "..\\"} & {name}
    assert len(name) <= 1024


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_list(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.txt"
    path.write_bytes(content)
    names, numbers = read_list(path, Skips("skip"), range(100))
    assert len(names) == len(numbers)
    assert ((numbers >= 0) & (numbers < 100)).all()
    for name in names.tolist():
        inside(os.fsdecode(name), path)
    assert names.dtype.kind == "S"
    assert np.char.str_len(names).min(initial=1) > 0
