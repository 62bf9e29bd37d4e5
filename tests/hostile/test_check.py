"""`goodtransfer data check` on folders that others packed: links, pipes, odd names, broken files."""

import io
import json
import os
import shutil
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

import goodtransfer
from goodtransfer import cli
from goodtransfer.cli.data import _is_toy
from goodtransfer.data import files, toy, toy_layouts
from goodtransfer.data.check import check

sys.path.insert(0, str(Path(__file__).parent))
from forked import assert_clean, fault_of, outcomes
from mutations import CASES, dice, mutated

MODULES = {
    "imagefolder": "ImageNetDataModule",
    "celeba": "CelebADataModule",
    "coco": "COCODetectionDataModule",
    "synthia": "SYNTHIASegmentationDataModule",
    "cityscapes": "CityscapesDataModule",
    "voc": "VOCDetectionDataModule",
    "mini": "MiniImageNetDataModule",
}
OPTIONS = {"voc": {"class_names": toy.CLASSES}, "coco": {"masks": True}}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    toy_layouts.make_all(root, images=60, size=32)
    toy_layouts.make_mini_imagenet(root / "mini", per_class=2, size=32)
    return root


def findings_of(root, layout):
    module = getattr(goodtransfer, MODULES[layout])(
        root, on_error="skip", **OPTIONS.get(layout, {})
    )
    return check(module)


@pytest.mark.slow
def test_broken_data_sets(world):
    """Any file of a data set, of whatever kind, is broken; all faults are sentences that name it."""
    layouts = list(MODULES)
    paths = {
        layout: sorted(p for p in (world / layout).rglob("*") if p.is_file()) for layout in layouts
    }

    def case(number):
        random, layout = dice("data check", number), layouts[number % len(layouts)]
        path = random.choice(paths[layout])
        if random.random() < 0.5:  # lists and annotations are few
            path = random.choice(
                [p for p in paths[layout] if p.suffix not in (".jpg", ".png", ".JPEG")]
            )
        before = path.read_bytes()
        path.write_bytes(mutated(before, random))
        try:
            faults = findings_of(world / layout, layout).faults
        finally:
            path.write_bytes(before)
        for fault in faults:
            assert not (told := fault_of(fault, world)), told
        if faults:
            raise goodtransfer.views.ImageReadError(f"Expected no fault in {world}.")

    for layout in layouts:
        assert findings_of(world / layout, layout).faults == [], layout
    found = outcomes(case, CASES["data check"], world)
    found = ["one sentence" if told.startswith("ImageReadError") else told for told in found]
    assert_clean(found, CASES["data check"])


# --- Links and pipes


def folder(root):
    made = goodtransfer.ImageFolderDataModule(
        root, train=".", val=None, labelled=False, on_error="skip"
    )
    return check(made)


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 40)).save(path)


def test_links_and_pipes_in_a_folder_of_images(tmp_path):
    root, secret = tmp_path / "root", tmp_path / "secret.txt"
    secret.write_text("the secret word")
    picture(root / "good.jpg")
    (root / "link.jpg").symlink_to(secret)  # out of the root: followed, and no image
    (root / "passwd.jpg").symlink_to("/etc/passwd")
    (root / "zero.jpg").symlink_to("/dev/zero")
    (root / "itself.jpg").symlink_to("itself.jpg")
    (root / "itself").symlink_to("itself")
    (root / "gone.jpg").symlink_to("gone")
    os.mkfifo(root / "pipe.jpg")
    start = time.perf_counter()
    findings = folder(root)
    assert time.perf_counter() - start < 10
    assert findings.counts["images of train"][0] == 7
    assert len(findings.faults) == 6
    for fault in findings.faults:
        assert not (told := fault_of(fault, root)), told
    assert "secret word" not in str(findings)
    assert "root:" not in str(findings)  # as /etc/passwd begins


def test_a_photo_behind_a_link_is_read(tmp_path):
    """Data sets are put together of links to shared folders; the link is the user's word."""
    picture(tmp_path / "elsewhere" / "photo.jpg")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "photo.jpg").symlink_to(tmp_path / "elsewhere" / "photo.jpg")
    (tmp_path / "root" / "more").symlink_to(tmp_path / "elsewhere")
    assert folder(tmp_path / "root").faults == []


def test_links_that_double_the_tree_with_every_folder(tmp_path):
    """Thirty folders with two links each to the next are a billion paths."""
    root = tmp_path / "root"
    for level in range(30):
        (tmp_path / str(level)).mkdir()
        for side in "ab":
            (tmp_path / str(level) / side).symlink_to(tmp_path / str(level + 1))
    picture(tmp_path / "30" / "a.jpg")
    root.symlink_to(tmp_path / "0")
    start = time.perf_counter()
    with pytest.raises(
        ValueError, match=r"more than 64 links lead to one folder, [ab/]+: remove some"
    ):
        files.scan_flat(root)
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("layout", ["coco", "voc", "mini", "celeba"])
def test_paths_out_of_the_root_are_never_opened(layout, world, tmp_path):
    """Wherever a list or an annotation names a file, the name leads out of the folder."""
    root = shutil.copytree(world / layout, tmp_path / layout)
    picture(tmp_path / "secret.jpg")
    for path in root.rglob("*"):
        if path.suffix == ".json" and path.name != toy.MARKER:
            tree = json.loads(path.read_text())
            for image in tree.get("images", ()):
                image["file_name"] = "../../secret.jpg"
            path.write_text(json.dumps(tree))
        elif path.suffix in (".txt", ".csv") and "landmarks" not in path.name:
            first, *rows = path.read_text().splitlines()
            rows = [first, *rows] if layout in ("voc", "celeba") else rows
            moved = ["../secret.jpg," + row.partition(",")[2] if "," in row else
                     " ".join(["../secret.jpg", *row.split()[1:]]) for row in rows]  # fmt: skip
            head = [] if layout in ("voc", "celeba") else [first]
            path.write_text("\n".join(head + moved))

    def watch(event, arguments):
        if event == "open" and "secret" in str(arguments[0]):
            raise AssertionError(arguments[0])

    def case(number):
        sys.addaudithook(watch)
        faults = findings_of(root, layout).faults
        assert faults
        for fault in faults:
            assert not (told := fault_of(fault, root)), told

    assert outcomes(case, 1, tmp_path) == ["a result"]


# --- The command


def test_names_that_are_not_utf8_are_printed(tmp_path, monkeypatch):
    root = os.fsencode(tmp_path) + b"/root"
    os.mkdir(root)
    Path(os.fsdecode(root + b"/\xff\xe9.jpg")).write_bytes(b"no image")
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, "utf-8", errors="strict"))
    words = [os.fsdecode(root), "--dataset", "unlabelled", "--workers", "0"]
    assert cli.main(["data", "check", *words]) == 1
    sys.stdout.flush()
    assert b"fault: Expected an image at " in printed.getvalue()
    assert b"\\udcff\\udce9.jpg" in printed.getvalue()


@pytest.mark.parametrize("marker", ["7", "null", "[" * 100_000, "\ud800", '"layout"', "NaN"])
def test_any_file_in_the_place_of_the_toys_mark(marker, tmp_path):
    (tmp_path / toy.MARKER).write_bytes(marker.encode("utf-8", "surrogatepass"))
    assert _is_toy(tmp_path) in (True, False)


def test_a_broken_index_is_no_index(tmp_path):
    file = tmp_path / "index.npz"
    files._save(file, {"": files._Listing(1, files._packed(["a"]), files._packed(["b.jpg"]))})
    good = file.read_bytes()

    def case(number):
        file.write_bytes(mutated(good, dice("index", number)))
        found = files._load(file)
        assert isinstance(found, dict)

    assert {*outcomes(case, 100, tmp_path)} == {"a result"}
