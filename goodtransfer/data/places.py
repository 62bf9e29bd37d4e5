"""Places: photos of scenes, in the two releases and three layouts that they come in."""

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from goodtransfer.data.files import Files
from goodtransfer.data.folder import ImageFolderDataModule
from goodtransfer.data.images import ImageDataModule, Parts
from goodtransfer.data.lists import found, read_list

# Relative to the root. Of several image folders, the first that is there is read.
_LISTS_205 = ("train_places205.csv", "trainvalsplit_places205/train_places205.csv")
_IMAGES_205 = ("data/vision/torralba/deeplearning/images256", "images256")
_LIST_365 = "places365_train_standard.txt"
# torchvision.datasets.Places365 renames the training folders to the second form.
_TRAIN_365 = ("data_256", "data_256_standard", "data_large", "data_large_standard")
_VAL_365 = ("val_256", "val_large")

TREES = """Places205, whose lists may also lie in trainvalsplit_places205 (images in ROOT/images256, too):
  ROOT/train_places205.csv
  ROOT/val_places205.csv
  ROOT/data/vision/torralba/deeplearning/images256/a/abbey/gsun_*.jpg
Places365 with its lists (images also in data_large and val_large):
  ROOT/categories_places365.txt
  ROOT/places365_train_standard.txt
  ROOT/places365_val.txt
  ROOT/data_256/a/airfield/00000001.jpg
  ROOT/val_256/Places365_val_00000001.jpg
Places365, "easy directory structure":
  ROOT/train/airfield/00000001.jpg
  ROOT/val/airfield/Places365_val_00000435.jpg"""


class PlacesDataModule(ImageDataModule):
    """Views, labels and indices of Places205, the paper's 2449K images, or of Places365.

    Which of the two, and in which layout, is told by what is in ROOT. Expected tree, one of::

        ROOT/train_places205.csv        2,448,873 lines "a/abbey/gsun_0a1b.jpg 0", in 205 classes
        ROOT/val_places205.csv          20,500 lines
        ROOT/data/vision/torralba/deeplearning/images256/a/abbey/gsun_0a1b.jpg
                                        both lists may lie in ROOT/trainvalsplit_places205, and the
                                        images in ROOT/images256

        ROOT/categories_places365.txt   365 lines "/a/airfield 0"
        ROOT/places365_train_standard.txt  1,803,460 lines "/a/airfield/00000001.jpg 0"
        ROOT/places365_val.txt          36,500 lines "Places365_val_00000001.jpg 165"
        ROOT/data_256/a/airfield/00000001.jpg      or data_large
        ROOT/val_256/Places365_val_00000001.jpg    or val_large; where both are, 256 is read

        ROOT/train/airfield/00000001.jpg           Places365's "easy directory structure"
        ROOT/val/airfield/Places365_val_00000435.jpg

    Source: http://places.csail.mit.edu (Places205) and http://places2.csail.mit.edu (Places365). Labels
    are the numbers in the lists, or else number the class folders in the order of their names.

    Args: those of :class:`ImageDataModule`; ``root`` holds the lists, or ``train`` and ``val``.

    Raises:
        FileNotFoundError: for a root that has none of the layouts, with all of them; for a list or a
            listed image that is missing.
        ValueError: for a line of a list that cannot be used, naming the file and the line.
    """

    expected: Mapping[str, int] = MappingProxyType(
        {"train": 1_803_460, "val": 36_500, "classes": 365}
    )

    def read(self) -> Parts:
        for place in _LISTS_205:
            if (self.root / place).is_file():
                self.expected = {"train": 2_448_873, "val": 20_500, "classes": 205}
                return self._places205((self.root / place).parent)
        if (self.root / _LIST_365).is_file():
            return self._places365()
        if (self.root / "train").is_dir():
            folders = ImageFolderDataModule(self.root)
            folders._skips = self._skips
            return folders.read()
        raise FileNotFoundError(
            f"Expected Places205 or Places365 in {self.root}, but none of its lists or folders is "
            f"there. The expected tree is one of:\n{TREES}"
        )

    def _places205(self, lists: Path) -> Parts:
        images = found(self.root, *_IMAGES_205, tree=TREES)
        source = lists / "train_places205.csv"
        names, labels = read_list(source, self._skips, range(205))
        # A class is the folder of its images, such as a/apartment_building/outdoor.
        classes = [name.rpartition("/")[0] for name in _by_label(names, labels, source)]
        train = self.existing(Files(images, names, labels), source)
        return Parts(classes, train, self._listed(images, lists / "val_places205.csv", classes))

    def _places365(self) -> Parts:
        train, val = (found(self.root, *places, tree=TREES) for places in (_TRAIN_365, _VAL_365))
        source = self.root / "categories_places365.txt"
        classes = _by_label(*read_list(source, self._skips, range(365)), source)
        return Parts(
            classes,
            self._listed(train, self.root / _LIST_365, classes),
            self._listed(val, self.root / "places365_val.txt", classes),
        )

    def _listed(self, images: Path, source: Path, classes: list[str]) -> Files:
        names, labels = read_list(source, self._skips, range(len(classes)))
        return self.existing(Files(images, names, labels), source)


def _by_label(names: NDArray[np.bytes_], labels: NDArray[np.int64], source: Path) -> list[str]:
    """The first name of each label from 0 to C - 1.

    Raises:
        ValueError: where a label below the highest has none, or there is none at all.
    """
    present, first = np.unique(labels, return_index=True)
    if not len(present):
        raise ValueError(
            f"Expected names and numbers of classes in {source}, but found none: take the list as "
            "published."
        )
    for expected, label in enumerate(present.tolist()):
        if label != expected:
            raise ValueError(
                f"Expected every class from 0 to {present[-1]} in {source}, but no line has class "
                f"{expected}: take the list as published."
            )
    return [os.fsdecode(name) for name in names[first].tolist()]
