"""Lists of files: torchvision's order, an index that notices every change, names that stay inside."""

import os
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import ImageFolder

from goodtransfer.data import files
from goodtransfer.data.files import Files, inside, listed, missing, scan, scan_flat

TREE = "The expected tree is: ROOT/CLASS/image.jpg"
NAMES = (
    "b/1.jpg", "b/10.PNG", "b/2.jpeg", "b/deep/x.webp", "b/deep/er/y.bmp", "b/deep-er/z.jpg",
    "a b/ä.jpg", "a b/notes.txt", "C/0.tif", "C/.hidden.jpg", "é/1.ppm",
)  # fmt: skip
OLD = time.time() - 3600


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def settle(root):
    """As if nothing had changed for an hour."""
    for folder, _, _ in os.walk(root):
        os.utime(folder, (OLD, OLD))


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "tree"
    touch(root, *NAMES)
    settle(root)
    return root


@pytest.fixture
def looked_at(monkeypatch):
    """An index for any tree; the folders that are listed, as they are listed."""
    folders = []

    def spy(root, folder, modified, real=files._list):
        folders.append(folder)
        return real(root, folder, modified)

    monkeypatch.setattr(files, "_list", spy)
    monkeypatch.setattr(files, "_WORTH_AN_INDEX", 1)
    return folders


def contents(root):
    found, classes = scan(root, TREE)
    return list(found), classes


def expected(root):
    folder = ImageFolder(str(root))
    return folder.samples, folder.classes


def test_a_scan_is_torchvisions(tree):
    assert contents(tree) == expected(tree)
    assert len(contents(tree)[0]) == len(NAMES) - 1


def test_the_second_scan_lists_nothing(tree, looked_at):
    first = contents(tree)
    assert sorted(looked_at) == ["", "C", "a b", "b", "b/deep", "b/deep-er", "b/deep/er", "é"]
    looked_at.clear()
    assert contents(tree) == first == expected(tree)
    assert looked_at == []
    moved = tree.rename(tree.parent / "moved")  # another place, another index
    assert contents(moved) == expected(moved)
    assert len(looked_at) == 8


CHANGES = {
    "a file more": (lambda r: touch(r, "b/3.jpg"), ["b"]),
    "a file less": (lambda r: (r / "b/1.jpg").unlink(), ["b"]),
    "another name": (lambda r: (r / "b/1.jpg").rename(r / "b/4.jpg"), ["b"]),
    "deep below": (lambda r: touch(r, "b/deep/er/new.jpg"), ["b/deep/er"]),
    "a folder below": (lambda r: touch(r, "C/new/1.jpg"), ["C", "C/new"]),
    "a class more": (lambda r: touch(r, "d/1.jpg"), ["", "d"]),
    "a class renamed": (lambda r: (r / "C").rename(r / "D"), ["", "D"]),
    "to another class": (lambda r: (r / "b/1.jpg").rename(r / "C/1.jpg"), ["C", "b"]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed_and_only_its_folder_listed(tree, looked_at, change):
    before = contents(tree)
    looked_at.clear()
    alter, folders = CHANGES[change]
    alter(tree)
    for _ in range(2):  # the second time the change is an hour old
        assert contents(tree) == expected(tree) != before
        assert sorted(looked_at) == folders
        settle(tree)
        contents(tree)
        looked_at.clear()
        folders = []


def test_a_folder_that_just_changed_is_not_trusted(tree, looked_at):
    """File systems count time in steps: a second change within one would not show."""
    touch(tree, "b/3.jpg")
    now = time.time()
    os.utime(tree / "b", (now, now))
    contents(tree)
    touch(tree, "b/5.jpg")
    os.utime(tree / "b", (now, now))
    looked_at.clear()
    assert contents(tree) == expected(tree)
    assert looked_at == ["b"]


@pytest.mark.parametrize("damage", [b"", b"PK\3\4 not an archive", None])
def test_a_damaged_index_is_made_anew(tree, looked_at, damage):
    first = contents(tree)
    (index,) = Path(os.environ["GOODTRANSFER_CACHE"], "index").glob(files._index_file(tree).name)
    whole = index.read_bytes()
    index.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    looked_at.clear()
    assert contents(tree) == first
    assert len(looked_at) == 8
    assert files._load(index).keys() == files._listings(tree).keys()


def test_an_index_that_cannot_be_written_is_done_without(tree, looked_at, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("GOODTRANSFER_CACHE", str(tmp_path / "file"))
    for _ in range(2):
        assert contents(tree) == expected(tree)
    assert len(looked_at) == 16


def test_small_trees_leave_no_index(tree):
    contents(tree)
    assert not files._index_file(tree).exists()


def test_the_index_goes_to_the_home_cache_by_default(monkeypatch, tmp_path):
    monkeypatch.delenv("GOODTRANSFER_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files._index_file(tmp_path).is_relative_to(tmp_path / ".cache" / "goodtransfer")


def test_a_link_that_goes_round(tree):
    (tree / "b" / "round").symlink_to(tree)
    with pytest.raises(ValueError, match="b/round is a link to a folder above it: remove it"):
        scan(tree, TREE)


def test_a_link_elsewhere_is_followed(tree, tmp_path):
    touch(tmp_path / "elsewhere", "1.jpg")
    (tree / "linked").symlink_to(tmp_path / "elsewhere")
    assert contents(tree) == expected(tree)


def test_images_without_classes(tree):
    touch(tree, "top.jpg")
    found = scan_flat(tree)
    names = [os.path.relpath(path, tree) for path, _ in found]
    assert set(names) == {n for n in NAMES if not n.endswith(".txt")} | {"top.jpg"}
    assert names[0] == "top.jpg"
    assert set(found.labels.tolist()) == {-1}
    assert len(scan_flat(tree / "C")) == 2
    (tree / "empty").mkdir()
    assert len(scan_flat(tree / "empty")) == 0


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], r"classes at .*/tree\.\nThe expected"),
        (["notes.txt"], r"class with images, but there is no folder"),
    ],
)
def test_a_tree_of_other_shape(tmp_path, names, message):
    touch(tmp_path / "tree", *names)
    with pytest.raises(FileNotFoundError, match=f"(?s){message}.*ROOT/CLASS/image"):
        scan(tmp_path / "tree", TREE)


def test_files_are_picked_and_relabelled():
    made = listed(Path("/r"), ["a/1.jpg", "b/ü.jpg", "c.jpg"], [5, 6, -1], Path("list.txt"))
    assert list(made) == [("/r/a/1.jpg", 5), ("/r/b/ü.jpg", 6), ("/r/c.jpg", -1)]
    assert list(made.take(np.array([2, 0]))) == [("/r/c.jpg", -1), ("/r/a/1.jpg", 5)]
    assert list(made.take(np.array([False, True, False]))) == [("/r/b/ü.jpg", 6)]
    assert made.relabelled(np.array([0, 1, 2])).labels.tolist() == [0, 1, 2]
    assert [made.name(n) for n in range(3)] == ["a/1.jpg", "b/ü.jpg", "c.jpg"]
    assert listed(Path("/r"), ["x"], None, Path("l")).labels.tolist() == [-1]
    assert len(listed(Path("/r"), [], None, Path("l"))) == 0
    copy = pickle.loads(pickle.dumps(made))
    assert list(copy) == list(made)


def test_a_list_is_packed():
    """Bytes, not Python strings, whose reference counts would be written to by every worker."""
    made = listed(Path("/r"), [f"train/{n:06d}.jpg" for n in range(1000)], None, Path("l"))
    assert made.names.nbytes == 1000 * len("train/000000.jpg")
    assert {type(getattr(made, field)) for field in ("names", "labels")} == {np.ndarray}
    assert isinstance(made, Files)


@pytest.mark.parametrize(
    "name", ["a.jpg", "a/b.jpg", "a..b/c...jpg", "..a.jpg", ".a/b", "ab:c.jpg"]
)
def test_names_below_the_root(name):
    assert inside(name, Path("list.txt")) == name


@pytest.mark.parametrize(
    "name",
    ["", "/etc/passwd", "../x.jpg", "a/../../x.jpg", "a/..", "..", "..\\x.jpg", "a\\..\\x", "\\x",
     "C:\\x.jpg", "c:/x.jpg", "c:x.jpg", "a\0.jpg"],
)  # fmt: skip
def test_names_that_lead_out_of_the_root(name):
    with pytest.raises(ValueError, match=r"folder in list.txt, but found .* leads elsewhere"):
        inside(name, Path("list.txt"))
    with pytest.raises(ValueError, match="leads elsewhere"):
        listed(Path("/r"), ["fine.jpg", name], None, Path("list.txt"))


def test_missing_files_are_found(tree):
    made = listed(tree, ["b/1.jpg", "b/none.jpg", "x/1.jpg", "a b/ä.jpg", "b"], None, Path("l"))
    assert missing(made) == [1, 2]
