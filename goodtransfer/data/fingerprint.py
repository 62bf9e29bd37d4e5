"""What a folder of images holds, told without reading an image, and without torch."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from goodtransfer.data.files import EXTENSIONS, class_numbers, inside
from goodtransfer.foreign import lines


class Fingerprint(NamedTuple):
    """Attributes: ``digest``, sixteen hex digits; ``classes`` and ``images`` of ``train``."""

    digest: str
    classes: int
    images: int


def fingerprint(root: Path, classes: Sequence[str] = ()) -> Fingerprint:
    """Hash of split, class, name and size of every image below ``root/{train,val}/CLASS``.

    Args:
        root: the folder of both splits.
        classes: that are looked at, as if there were no others; none for all.

    Raises:
        FileNotFoundError: for a root without both splits.
        ValueError: for a class that is not there.
    """
    digest = hashlib.sha256()
    count = images = 0
    for split in ("train", "val"):
        folder = root / split
        if not folder.is_dir():
            raise FileNotFoundError(
                f"Expected images at {folder}/CLASS/*.jpg, but there is no such folder."
            )
        labels = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
        if classes:
            labels = [labels[n] for n in sorted(set(class_numbers(classes, labels, folder)))]
        for label in labels:
            files = sorted(
                (entry.name, entry.stat().st_size)
                for entry in os.scandir(folder / label)
                if entry.name.lower().endswith(EXTENSIONS)
            )
            digest.update(repr((split, label, files)).encode())
            if split == "train":
                count, images = count + 1, images + len(files)
    return Fingerprint(digest.hexdigest()[:16], count, images)


class VOCFingerprint(NamedTuple):
    """Attributes: ``digest``, sixteen hex digits; ``images``, how many each split lists."""

    digest: str
    images: tuple[int, ...]


def voc_fingerprint(root: Path, splits: Sequence[str]) -> VOCFingerprint:
    """Hash of each split's list, such as ``2007/test``, and of its annotation files' sizes.

    Raises:
        FileNotFoundError: for a split, or an annotation of one, that is not there.
    """
    digest, images = hashlib.sha256(), []
    for split in splits:
        year, names = voc_list(root, split)
        sizes = []
        for name in names:
            path = year / "Annotations" / f"{inside(name, year / 'ImageSets')}.xml"
            try:
                sizes.append(path.stat().st_size)
            except FileNotFoundError:
                raise FileNotFoundError(
                    f"Expected an annotation at {path}, because the split {split} lists it: add "
                    "the file, or take the line from the list."
                ) from None
        digest.update(repr((split, names, sizes)).encode())
        images.append(len(names))
    return VOCFingerprint(digest.hexdigest()[:16], tuple(images))


def voc_list(root: Path, split: str) -> tuple[Path, list[str]]:
    """The folder of a split's year, and the names of its images; ``root`` as VOC's data module.

    Raises:
        FileNotFoundError: for a split that is not there, with the tree and the splits that are.
        ValueError: for a list without names.
    """
    devkit = root / "VOCdevkit" if (root / "VOCdevkit").is_dir() else root
    year, _, name = split.partition("/")
    path = devkit / f"VOC{year}" / "ImageSets" / "Main" / f"{name}.txt"
    if not path.is_file():
        lists = sorted(devkit.glob("VOC*/ImageSets/Main/*.txt"))
        # VOC has lists of single classes as well, such as cat_train.txt.
        lists = [p for p in lists if "_" not in p.stem] or lists[:9]
        there = [f"{p.parents[2].name[3:]}/{p.stem}" for p in lists]
        raise FileNotFoundError(
            f"Expected the images of the split {split!r} to be listed in {path}, but there is no "
            f"such file; splits found: {', '.join(there) or 'none'}.\nThe expected tree is:\n"
            f"  {root}/VOCdevkit/VOC2007/JPEGImages/000001.jpg\n"
            f"  {root}/VOCdevkit/VOC2007/Annotations/000001.xml\n"
            f"  {root}/VOCdevkit/VOC2007/ImageSets/Main/trainval.txt   (one image name a line)"
        )
    # The lists of single classes have a second column.
    names = [line.split()[0] for line in lines(path) if line.strip()]
    if not names:
        raise ValueError(f"Expected names of images in {path}, one a line, but it is empty.")
    return path.parents[2], names
