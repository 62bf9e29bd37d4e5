"""CelebA: aligned photos of faces, labelled by who is shown."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from goodtransfer.data.files import Files, inside
from goodtransfer.data.images import ImageDataModule, Parts
from goodtransfer.data.lists import found, read_list
from goodtransfer.data.skip import Skips
from goodtransfer.foreign import lines

IMAGES = ("img_align_celeba", "Img/img_align_celeba")
_IDENTITIES = ("identity_CelebA.txt", "Anno/identity_CelebA.txt")
_PARTITIONS = ("list_eval_partition.txt", "Eval/list_eval_partition.txt")

TREE = """  ROOT/img_align_celeba/000001.jpg        or Img/img_align_celeba/000001.jpg
  ROOT/identity_CelebA.txt                or Anno/identity_CelebA.txt
  ROOT/list_eval_partition.txt            or Eval/list_eval_partition.txt
  ROOT/list_landmarks_align_celeba.txt    or Anno/list_landmarks_align_celeba.txt (for MAFL)
  ROOT/MAFL/training.txt, testing.txt     or ROOT/training.txt, testing.txt (for MAFL)"""

# Of the official partition: 0 train, 1 val, 2 test.
_TRAINED = {"train": (0,), "train+val": (0, 1), "all": (0, 1, 2)}
_LEFT_OUT = {"none": (), "test": ("testing",), "all": ("training", "testing")}
# Images and identities to train on, counted in the published lists.
_COUNTS = {
    ("train", "none"): (162_770, 8_192),
    ("train", "test"): (161_962, 8_192),
    ("train", "all"): (146_501, 8_190),
    ("train+val", "none"): (182_637, 9_177),
    ("train+val", "test"): (181_733, 9_177),
    ("train+val", "all"): (164_462, 9_175),
    ("all", "none"): (202_599, 10_177),
    ("all", "test"): (201_599, 10_177),
    ("all", "all"): (182_599, 10_175),
}


class CelebADataModule(ImageDataModule):
    """Views, identities and indices of CelebA's aligned faces.

    Expected tree, flat or in the folders of the official download::

        ROOT/img_align_celeba/000001.jpg    202,599 images of 178 x 218 pixels
        ROOT/identity_CelebA.txt            a line "000001.jpg 2880" for each; 10,177 identities
        ROOT/list_eval_partition.txt        a line "000001.jpg 0" for each: 162,770 train (0),
                                            19,867 val (1), 19,962 test (2); they share no identity
        ROOT/MAFL/{training,testing}.txt    only for ``leave_out_mafl``

        ROOT/Img/img_align_celeba/000001.jpg
        ROOT/Anno/identity_CelebA.txt
        ROOT/Eval/list_eval_partition.txt

    Source: http://mmlab.ie.cuhk.edu.hk/projects/CelebA.html, and MAFL's lists from
    https://github.com/zhzhanp/TCDCN-face-alignment. Labels number the identities that are trained on,
    in their order; ``class_names`` tells them as in the list.

    Args:
        root: the folder of the tree.
        partition: what to train on. ``"train"`` is Table 2's 163K images. Those of Section 4.2 are not
            told; its 1400 epochs fit 182,637 (``"train+val"``) or 182,599 (``"all"`` with
            ``leave_out_mafl="all"``) as well (protocol 1.11).
        leave_out_mafl: which of MAFL's images are not trained on. Its 1,000 test images come from all
            partitions, so pass ``"test"`` where landmarks are to be scored by
            :class:`~goodtransfer.data.mafl.MAFLDataModule`; ``"all"`` leaves out the 19,000 of its
            training, too. The paper does not say; ``"none"`` gives its count.
        options: those of :class:`ImageDataModule`.

    The images to report on are the official val images, whose people are not trained on: they are
    labelled -1. Where they are trained on there are none; ``selection=0.1`` validates on training
    images.

    Raises:
        FileNotFoundError: for a missing list, or a listed image that is missing.
        ValueError: for a line of a list that cannot be used, naming the file and the line; for a
            ``partition`` or a ``leave_out_mafl`` that there is not.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        partition: Literal["train", "train+val", "all"] = "train",
        leave_out_mafl: Literal["none", "test", "all"] = "none",
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        if partition not in _TRAINED or leave_out_mafl not in _LEFT_OUT:
            raise ValueError(
                f"Expected `partition` to be one of {', '.join(_TRAINED)} and `leave_out_mafl` one of "
                f"{', '.join(_LEFT_OUT)}, but got {partition!r} and {leave_out_mafl!r}."
            )
        self.partition, self.leave_out_mafl = partition, leave_out_mafl

    @property
    def expected(self) -> Mapping[str, int]:
        images, identities = _COUNTS[self.partition, self.leave_out_mafl]
        val = {"val": 19_867} if self.partition == "train" else {}
        return {"train": images, "classes": identities} | val

    def read(self) -> Parts:
        faces, partition = self._listed()
        chosen = np.isin(partition, _TRAINED[self.partition])
        for part in _LEFT_OUT[self.leave_out_mafl]:
            names = mafl_names(self.root, part, self._skips)
            chosen &= ~np.isin(
                faces.names, np.array([os.fsencode(n) for n in names], dtype=np.bytes_)
            )
        source = found(self.root, *_PARTITIONS, tree=TREE)
        train = self.existing(faces.take(chosen), source)
        people, labels = np.unique(train.labels, return_inverse=True)
        val = None
        if self.partition == "train":
            shown = self.existing(faces.take(partition == 1), source)
            known = np.isin(shown.labels, people)
            val = shown.relabelled(np.where(known, np.searchsorted(people, shown.labels), -1))
        return Parts([str(person) for person in people], train.relabelled(labels), val)

    def _listed(self) -> tuple[Files, NDArray[np.int64]]:
        """All faces in the order of their names, labelled by identity, and the partition of each."""
        people_list, parts_list = (
            found(self.root, *places, tree=TREE) for places in (_IDENTITIES, _PARTITIONS)
        )
        named, people = self._once_each(people_list, range(1, 1 << 31))
        placed, parts = self._once_each(parts_list, range(3))
        self._both(named, placed, people_list, parts_list)
        self._both(placed, named, parts_list, people_list)
        names = np.intersect1d(named, placed)
        images = found(self.root, *IMAGES, tree=TREE)
        return Files(images, names, people[np.isin(named, placed)]), parts[np.isin(placed, named)]

    def _once_each(
        self, source: Path, numbers: range
    ) -> tuple[NDArray[np.bytes_], NDArray[np.int64]]:
        """A list in the order of its names; a second line of a name is a fault."""
        names, values = read_list(source, self._skips, numbers)
        once, first, counts = np.unique(names, return_index=True, return_counts=True)
        for name in once[counts > 1].tolist():
            self._skips.leave_out(
                ValueError(
                    f"Expected one line for each image in {source}, but {os.fsdecode(name)} has "
                    "more: remove the others."
                )
            )
        return once, values[first]

    def _both(
        self, names: NDArray[np.bytes_], others: NDArray[np.bytes_], source: Path, other: Path
    ) -> None:
        """A name in one list only is a fault."""
        for name in np.setdiff1d(names, others).tolist():
            self._skips.leave_out(
                ValueError(
                    f"Expected {os.fsdecode(name)} in {other}, because {source} lists it: take both "
                    "lists as published."
                )
            )


def mafl_names(root: Path, part: str, skips: Skips) -> list[str]:
    """File names in MAFL's list ``"training"`` or ``"testing"``, in its order.

    Raises:
        FileNotFoundError: for a missing list.
    """
    source = found(root, f"MAFL/{part}.txt", f"{part}.txt", tree=TREE)
    names = []
    for place, line in enumerate(lines(source), 1):
        try:
            if line.strip():
                names.append(inside(line.strip(), source))
        except ValueError as fault:
            skips.leave_out(ValueError(f"Line {place}: {fault}"))
    return names
