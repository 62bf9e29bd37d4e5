"""Folders of classes, or of images without any: your own data."""

from pathlib import Path
from typing import Any

import numpy as np

from goodtransfer.data.files import EXTENSIONS, Files, scan, scan_flat
from goodtransfer.data.images import ImageDataModule, Parts


class ImageFolderDataModule(ImageDataModule):
    """Your own images: a folder of class folders for each split, as torchvision's ImageFolder.

    Expected tree (any names; images may lie deeper; labels number the class folders in the order of
    their names)::

        ROOT/train/cat/1.jpg
        ROOT/train/dog/2.png
        ROOT/val/cat/3.jpg      the same classes

    Args:
        root: the folder that holds the splits.
        train: name of the folder to train on, such as ``seg_train``; ``"."`` is the root itself.
        val: name of the folder to report on; None where there is none (then ``selection=0.1`` keeps
            a tenth of the training images for validation).
        labelled: False for images in any folders that mean nothing: every label is -1, which
            serves MoCo, SimCLR and InstDisc.
        options: those of :class:`ImageDataModule`.

    Raises:
        FileNotFoundError: for a missing or misshapen folder, with the expected tree.
        ValueError: for classes that are in one split only.

    >>> from tempfile import TemporaryDirectory
    >>> from goodtransfer.data import make_imagefolder
    >>> with TemporaryDirectory() as folder:
    ...     root = make_imagefolder(f"{folder}/toy", train=20, val=20, size=16)
    ...     data = ImageFolderDataModule(root, batch_size=5, size=8, views="moco_v2")
    ...     views, label, index = next(iter(data.train_dataloader()))
    >>> len(views), views[0].shape, label.shape, index.dtype
    (2, torch.Size([5, 3, 8, 8]), torch.Size([5]), torch.int64)
    """

    def __init__(
        self,
        root: str | Path,
        *,
        train: str = "train",
        val: str | None = "val",
        labelled: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        self.train, self.val, self.labelled = train, val, labelled

    def read(self) -> Parts:
        folders = [self.root / name for name in (self.train, self.val) if name is not None]
        if not self.labelled:
            return Parts([], *map(self._unlabelled, folders))
        tree = "The expected tree is:\n" + "\n".join(f"  {f}/CLASS/image.jpg" for f in folders)
        train, names = self._scan(folders[0], tree)
        if len(folders) == 1:
            return Parts(names, train)
        val, val_names = self._scan(folders[1], tree)
        if val_names != names:
            odd = sorted(set(val_names) ^ set(names))
            raise ValueError(
                f"Expected the same classes in {self.train} and {self.val} of {self.root}, but "
                f"{len(odd)} are in one only: {odd[:3]}.\n{tree}"
            )
        return Parts(names, train, val)

    def _scan(self, folder: Path, tree: str) -> tuple[Files, list[str]]:
        files, names = scan(folder, tree)
        empty = sorted(set(range(len(names))) - set(files.labels.tolist()))
        if empty:
            fault = (
                f"Expected every class folder in {folder} to hold images, but found none in "
                f"{', '.join(names[label] for label in empty[:3])} ({len(empty)} of {len(names)} "
                f"classes): images end in {', '.join(EXTENSIONS)}."
            )
            self._skips.leave_out(FileNotFoundError(f"{fault}\n{tree}"))
        return files, names

    def _unlabelled(self, folder: Path) -> Files:
        if not folder.is_dir():
            raise FileNotFoundError(f"Expected a folder of images at {folder}.")
        return scan_flat(folder)


def with_classes(parts: Parts, chosen: Files) -> Parts:
    """The data set with ``chosen`` to train on; the classes it leaves are numbered anew.

    Images without a label, -1, stay so.
    """
    present = np.unique(chosen.labels[chosen.labels >= 0])
    number = np.full(len(parts.class_names) + 1, -1)  # by label; the last one's is that of -1
    number[present] = np.arange(len(present))
    val = parts.val
    if val is not None:
        val = val.take((number[val.labels] >= 0) | (val.labels < 0))
        val = val.relabelled(number[val.labels])
    names = [parts.class_names[label] for label in present]
    return Parts(names, chosen.relabelled(number[chosen.labels]), val)
