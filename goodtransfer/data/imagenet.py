"""ImageNet, whole or the subsets of Table 2."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from goodtransfer.data.files import Files, class_numbers
from goodtransfer.data.folder import ImageFolderDataModule, with_classes
from goodtransfer.data.images import Parts, per_class_share
from goodtransfer.foreign import lines, shown

# Seeded stand-ins for Table 2's subsets, whose lists were never published (protocol 1.10).
_SUBSET_SEED = 0


class ImageNetDataModule(ImageFolderDataModule):
    """Views, labels and indices of images in class folders.

    Expected tree (any class and file names; ImageNet's are WordNet ids)::

        ROOT/train/n01440764/n01440764_10026.JPEG   1,281,167 images in 1,000 classes
        ROOT/val/n01440764/ILSVRC2012_val_00000293.JPEG   50,000 images

    Source: https://image-net.org (ILSVRC2012); its ``val`` comes in one folder, which the usual
    script ``valprep.sh`` sorts into class folders.

    Args:
        root: the folder that holds ``train`` and ``val``.
        subset: part of train: ``"10%"`` of every class, ``"100 classes"`` or ``"10% of classes"``, of
            other numbers too (seeded, since the paper's lists are unpublished), the names of
            class folders in a sequence, or a text file of class folders or image paths.
        options: those of :class:`ImageDataModule`.

    Raises:
        FileNotFoundError: for a missing or misshapen root, with the expected tree.
        ValueError: for a class or an image in ``subset`` that is not there.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        subset: Sequence[str] | str | Path | None = None,
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        self.subset = subset

    @property
    def expected(self) -> Mapping[str, int]:
        if self.subset is not None:
            return {}
        return {"train": 1_281_167, "val": 50_000, "classes": 1_000}

    def read(self) -> Parts:
        parts = super().read()
        return parts if self.subset is None else with_classes(parts, self._subset(parts))

    def _subset(self, parts: Parts) -> Files:
        if isinstance(self.subset, Sequence) and not isinstance(self.subset, str):
            chosen = class_numbers(self.subset, parts.class_names, parts.train.root)
            return parts.train.take(np.isin(parts.train.labels, chosen))
        if some := re.fullmatch(r"(\d+)%", str(self.subset)):
            share = int(some[1]) / 100
            return parts.train.take(per_class_share(parts.train, share, _SUBSET_SEED))
        if some := re.fullmatch(r"(\d+)(% of)? classes", str(self.subset)):
            share = len(parts.class_names) / 100 if some[2] else 1
            generator = torch.Generator().manual_seed(_SUBSET_SEED)
            order = torch.randperm(len(parts.class_names), generator=generator)
            drawn = order[: max(1, round(int(some[1]) * share))]
            return parts.train.take(np.isin(parts.train.labels, drawn.numpy()))
        if self.subset is not None and Path(self.subset).is_file():
            return _named(parts.train, lines(Path(self.subset)))
        raise FileNotFoundError(
            "Expected subset 'N%', 'N classes', 'N% of classes', a text file or a list of class "
            f"folders, but got {self.subset!r}."
        )


def _named(files: Files, lines: Iterable[str]) -> Files:
    """The files that a list names, by class folder, path below the root, or file name.

    Raises:
        ValueError: for an entry that names nothing, or an empty list.
    """
    wanted = {line.strip().strip("/") for line in lines if line.strip()}
    found: set[str] = set()
    kept = np.zeros(len(files), dtype=np.bool_)
    for number in range(len(files)):
        name = files.name(number)
        names = {name, name.partition("/")[0], name.rpartition("/")[2]} & wanted
        found |= names
        kept[number] = bool(names)
    if not kept.any() or found != wanted:
        lost = sorted(wanted - found)[:3]
        raise ValueError(
            f"Expected a list of class folders or image paths below {files.root}, but "
            f"{len(wanted - found)} of {len(wanted)} entries name nothing there: {shown(lost)}."
        )
    return files.take(kept)
