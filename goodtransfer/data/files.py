"""Lists of image files: packed, inside their root, and quick to open a second time. No torch here.

A list of a million Python strings is copied into every worker process, page by page, because reading
a string changes its reference count. Here a list is two arrays, which all processes share.
"""

import hashlib
import os
import re
import time
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from goodtransfer.foreign import shown

# As torchvision's ImageFolder takes them.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")

_LONGEST = 1024  # characters of a path, as the strictest of systems; all names are packed this wide
# What breaks a line, gives orders to a terminal, or has it write backward.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
_DOUBTFUL = re.compile(rf"^/|\.\.|[\\:]|.{{64}}|{_CONTROL.pattern}")
_LINKED = 64  # times that one folder may be come to

_INDEX_VERSION = 1
_WORTH_AN_INDEX = 5_000  # files; a smaller tree is listed in no time
# File systems count time in steps of up to two seconds: a folder that changed this shortly before it
# was listed may change again without showing it.
_SETTLED = 2_000_000_000  # nanoseconds


@dataclass(frozen=True, eq=False)
class Files:
    """Image files and their labels.

    Attributes:
        root: the folder that all of them are in.
        names: paths below it in UTF-8, as fixed-width bytes (N,).
        labels: class of each (N,), -1 where there is none.
    """

    root: Path
    names: NDArray[np.bytes_]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.names)

    def name(self, number: int) -> str:
        """Path below the root, with forward slashes."""
        return os.fsdecode(bytes(self.names[number]))

    def path(self, number: int) -> str:
        """Where to read image ``number``."""
        return os.path.join(self.root, self.name(number))

    def __iter__(self) -> Iterator[tuple[str, int]]:
        """Paths and labels."""
        return ((self.path(n), int(label)) for n, label in enumerate(self.labels))

    def take(self, which: NDArray[np.int64] | NDArray[np.bool_]) -> "Files":
        """Some of them, by number or by a mask."""
        return Files(self.root, self.names[which], self.labels[which])

    def relabelled(self, labels: NDArray[np.int64]) -> "Files":
        """The same files with other labels."""
        return Files(self.root, self.names, labels.astype(np.int64))


def listed(root: Path, names: Sequence[str], labels: Sequence[int] | None, source: Path) -> Files:
    """The files that a list names, which need not exist.

    Args:
        root: what the names are relative to.
        names: paths below it.
        labels: class of each; None for no labels.
        source: the list, for errors.

    Raises:
        ValueError: for a name that leads out of ``root``.
    """
    packed = _packed(inside(name, source) for name in names)
    numbers = np.full(len(packed), -1) if labels is None else np.asarray(labels)
    return Files(root, packed, numbers.astype(np.int64))


def inside(name: str, source: Path) -> str:
    """``name``, unless it leads out of the folder that it is relative to.

    Raises:
        ValueError: naming the list or annotation that it stands in.
    """
    if not name or _DOUBTFUL.search(name):  # else fine
        windows = PureWindowsPath(name)  # knows both kinds of slashes, and drives
        away = windows.anchor or ".." in windows.parts or not windows.parts
        long = len(name) > _LONGEST or any(len(os.fsencode(p)) > 255 for p in name.split("/"))
        if away or long or _CONTROL.search(name):
            raise ValueError(
                f"Expected names of files below the data set's folder in {source}, but found "
                f"{shown(name)}, which leads elsewhere or is no name: correct the entry."
            )
    return name


def missing(files: Files) -> list[int]:
    """Numbers of the files that do not exist; one listing a folder, not one look a file."""
    there: dict[str, set[str]] = {}
    lost = []
    for number in range(len(files)):
        folder, _, base = files.name(number).rpartition("/")
        if folder not in there:
            path = files.root / folder
            there[folder] = set(os.listdir(path)) if path.is_dir() else set()
        if base not in there[folder]:
            lost.append(number)
    return lost


# --- Folders of classes


def scan(folder: Path, expected_tree: str) -> tuple[Files, list[str]]:
    """Files and class names below a folder of class folders, sorted as by torchvision's ImageFolder.

    The second time only the folders' own times are looked at: the listing is kept in
    ``GOODTRANSFER_CACHE`` (``~/.cache/goodtransfer``), and a folder whose time has changed is
    listed anew. A file written over in place does not change its folder, nor the list.

    Raises:
        FileNotFoundError: for a missing folder, or one without classes.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"Expected a folder of classes at {folder}.\n{expected_tree}")
    listings = _listings(folder)
    classes = [os.fsdecode(name) for name in listings[""].folders.tolist()]
    if not classes:
        raise FileNotFoundError(
            f"Expected every folder in {folder} to be a class with images, but there is no folder."
            f"\n{expected_tree}"
        )
    parts: dict[str, list[NDArray[np.bytes_]]] = {name: [] for name in classes}
    for below in sorted(listings):
        if below:
            parts[below.partition("/")[0]].append(listings[below].images)
    counts = [sum(map(len, part)) for part in parts.values()]
    names = np.concatenate([images for part in parts.values() for images in part])
    return Files(folder, names, np.repeat(np.arange(len(classes)), counts)), classes


def class_numbers(chosen: Iterable[str], names: Sequence[str], folder: Path) -> list[int]:
    """Labels of some classes, given all the names in the order of the labels.

    Raises:
        ValueError: for a class that ``folder`` does not have, with the one that may be meant.
    """
    numbers = {name: number for number, name in enumerate(names)}
    chosen = list(chosen)
    for name in chosen:
        if name not in numbers:
            near = get_close_matches(str(name), names, 1)
            some = ", ".join(names[:5]) + ", ..." * (len(names) > 5)
            hint = f"did you mean {near[0]!r}?" if near else f"choose of {some}."
            raise ValueError(
                f"Expected classes among the folders of {folder}, but got {name!r}: {hint}"
            )
    return [numbers[name] for name in chosen]


def scan_flat(folder: Path) -> Files:
    """The images in a folder and in all folders below it, without labels; listed as by `scan`."""
    listings = _listings(folder)
    names = np.concatenate([listings[below].images for below in sorted(listings)])
    return Files(folder, names, np.full(len(names), -1))


class _Listing(NamedTuple):
    """What one folder holds: its time, the names of its folders, and its images' paths."""

    time: int
    folders: NDArray[np.bytes_]
    images: NDArray[np.bytes_]


def _listings(root: Path) -> dict[str, _Listing]:
    """Every folder's listing, by its path below ``root``; read again only where one has changed."""
    file = _index_file(root)
    known = _load(file)
    found: dict[str, _Listing] = {}
    visits: Counter[tuple[int, int]] = Counter()
    now = time.time_ns()
    # A folder is known by device and number, so that a link to one above does not go round for ever.
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while waiting:
        folder, above = waiting.pop()
        status = os.stat(root / folder)
        place = (status.st_dev, status.st_ino)
        if place in above:
            raise ValueError(
                f"Expected a tree at {root}, but {folder} is a link to a folder above it: remove it."
            )
        visits[place] += 1
        if visits[place] > _LINKED:  # links in a row of folders can double the tree with each
            raise ValueError(
                f"Expected a tree at {root}, but more than {_LINKED} links lead to one folder, "
                f"{folder}: remove some."
            )
        listing = known.get(folder)
        if listing is None or listing.time != status.st_mtime_ns:
            settled = status.st_mtime_ns < now - _SETTLED
            listing = _list(root, folder, status.st_mtime_ns if settled else -1)
        found[folder] = listing
        for name in map(os.fsdecode, listing.folders.tolist()):
            waiting.append((f"{folder}/{name}" if folder else name, above | {place}))
    changed = any(known.get(folder) is not listing for folder, listing in found.items())
    if changed and sum(len(listing.images) for listing in found.values()) >= _WORTH_AN_INDEX:
        _save(file, found)
    return found


def _list(root: Path, folder: str, modified: int) -> _Listing:
    folders, images = [], []
    prefix = f"{folder}/" if folder else ""
    with os.scandir(root / folder) as entries:
        for entry in entries:
            try:
                is_folder = entry.is_dir()
            except OSError:  # a link to itself
                is_folder = False
            if is_folder:
                folders.append(entry.name)
            elif entry.name.lower().endswith(EXTENSIONS):
                images.append(prefix + entry.name)
    return _Listing(modified, _packed(sorted(folders)), _packed(sorted(images)))


def _packed(names: Iterable[str]) -> NDArray[np.bytes_]:
    """Fixed-width bytes; of width 1 where there are no names."""
    encoded = [os.fsencode(name) for name in names]
    return np.array(encoded, dtype=f"S{max(map(len, encoded), default=1)}")


# --- The index: all listings of a tree in one file


def _index_file(root: Path) -> Path:
    cache = os.environ.get("GOODTRANSFER_CACHE")
    home = Path(cache) if cache else Path.home() / ".cache" / "goodtransfer"
    digest = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:24]
    return home / "index" / f"{digest}.v{_INDEX_VERSION}.npz"


def _save(file: Path, listings: dict[str, _Listing]) -> None:
    """Whole or not at all; a cache that cannot be written is done without."""
    values = listings.values()
    aside = file.with_suffix(f".{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as stream:
            np.savez(
                stream,
                paths=_packed(listings),
                times=np.array([listing.time for listing in values]),
                counts=np.array([(len(v.folders), len(v.images)) for v in values]),
                folders=np.concatenate([listing.folders for listing in values]),
                images=np.concatenate([listing.images for listing in values]),
            )
        os.replace(aside, file)
    except OSError:
        with suppress(OSError):
            aside.unlink()


def _load(file: Path) -> dict[str, _Listing]:
    """What :func:`_save` wrote; nothing where there is no such file, or it is damaged."""
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as kept:
            paths, times, counts, folders, images = (
                kept[name] for name in ("paths", "times", "counts", "folders", "images")
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return {}
    ends = np.concatenate([[[0, 0]], np.cumsum(counts, axis=0)])
    return {
        os.fsdecode(path): _Listing(int(modified), folders[a:c], images[b:d])
        for path, modified, (a, b), (c, d) in zip(
            paths.tolist(), times, ends[:-1].tolist(), ends[1:].tolist(), strict=True
        )
    }
