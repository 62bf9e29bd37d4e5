"""Views, labels and indices of images: what all data sets for pretraining share."""

import hashlib
import os
import random
from abc import abstractmethod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from goodtransfer import views as recipes
from goodtransfer.data.files import Files, missing
from goodtransfer.data.loader import EpochSampler, ResumableLoader
from goodtransfer.data.module import DataModule
from goodtransfer.data.skip import OnError, Skips
from goodtransfer.distributed import world_size
from goodtransfer.views import MAX_PIXELS, Batch, Recipe, decode


class Parts(NamedTuple):
    """What a data set holds.

    Attributes:
        class_names: by label; empty for images without labels.
        train: the images to train on.
        val: the images to report on; None where there are none.
    """

    class_names: list[str]
    train: Files
    val: Files | None = None


class ImageDataModule(DataModule):
    """A data set of images, as views; a subclass tells in :meth:`read` which images there are.

    A batch is a :class:`~goodtransfer.views.Batch`: views are uint8 RGB (N, 3, ``size``, ``size``),
    ``label`` int64 (N,), -1 where there is none, ``index`` int64 (N,), the image's number. Views and
    their order depend on ``seed`` alone, not on workers or ranks.

    Args:
        root: the folder of the data set.
        batch_size: images per step **on each rank** (the paper: 256 in all).
        size: side of a view in pixels.
        views: a recipe or its name; None takes the recipe of the method or task it is fitted with.
        crop: smallest share of the image that a random crop covers, of a recipe by name; None is the
            recipe's own.
        selection: share of every train class (at most 50 images) that is not trained on and makes
            the validation set, so that a choice is made without seeing the images reported on.
        num_workers: loader processes.
        seed: of order, views and selection.
        drop_last: of the training loader; upstream drops.
        on_error: ``"raise"``, or ``"skip"`` images that cannot be read: each gives its place to the
            next one, with that one's label, and all are logged and listed in ``skipped``.
        max_pixels: an image that claims to be larger is not decoded, since a small file can claim
            to fill the memory.

    ``val_dataloader`` gives the selection, or else the images to report on; ``test_dataloader``
    always the latter; both as one centre view.

    Raises:
        FileNotFoundError: when the lists are read, for what is missing on disk.
        ValueError: for arguments that cannot work, a part without images, or too few for a batch.
        OSError: when read, for an image that cannot be decoded.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        batch_size: int = 256,
        size: int = 224,
        views: Recipe | str | None = None,
        crop: float | None = None,
        selection: float = 0.0,
        num_workers: int = 0,
        seed: int = 0,
        drop_last: bool = True,
        on_error: OnError = "raise",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        super().__init__(
            root,
            batch_size=batch_size,
            num_workers=num_workers,
            seed=seed,
            on_error=on_error,
            max_pixels=max_pixels,
        )
        if size < 1:
            raise ValueError(f"Expected `size` to be positive, but got {size}.")
        if not 0 <= selection < 1:
            raise ValueError(f"Expected argument `selection` in [0, 1), but got {selection}.")
        if crop is not None and (
            not 0 < crop <= 1 or not (views is None or isinstance(views, str))
        ):
            raise ValueError(
                f"Expected `crop` above 0 and up to 1, and `views` by name, but got {crop} and "
                f"{views!r}: a recipe of your own has its crop, as views.moco_v2(224, scale=0.2)."
            )
        self.size, self.views, self.selection, self.drop_last = size, views, selection, drop_last
        self.crop = crop
        self._parts: Parts | None = None
        self._selected: Files | None = None

    @abstractmethod
    def read(self) -> Parts:
        """The images and their labels, without opening one."""

    @property
    def class_names(self) -> list[str]:
        """Of the labels, in their order; empty for images without labels."""
        return self._read().class_names

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts with images of their own, as :meth:`files` takes them."""
        return ("train", "val") if self._read().val is not None else ("train",)

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 for images without labels."""
        return len(self.class_names)

    @property
    def num_images(self) -> int:
        """Number of training images, after ``selection`` and any subset."""
        return len(self.files("train"))

    def files(self, part: str) -> Files:
        """The images of a part, in the order of their numbers.

        Args:
            part: ``"train"``, ``"selection"`` or ``"val"``.

        Raises:
            ValueError: for a part that this data set does not have.
        """
        parts = self._read()
        found = {"train": parts.train, "val": parts.val, "selection": self._selected}[part]
        if found is None or not len(found):
            hint = {
                "train": "choose more of the data set",
                "val": "leave out validation and test, or pass selection=0.1 to validate on a part "
                "of the training images",
                "selection": "pass selection=0.1",
            }[part]
            raise ValueError(
                f"Expected images of {part!r} in {self.root}, but "
                f"{type(self).__name__} finds none there: {hint}."
            )
        return found

    def existing(self, files: Files, source: Path) -> Files:
        """The files that are there; each other one is a fault of ``source``, which lists it.

        Raises:
            FileNotFoundError: for the first that is missing, where faults are not skipped.
        """
        lost = missing(files)
        for number in lost:
            self._skips.leave_out(
                FileNotFoundError(
                    f"Expected an image at {files.path(number)}, because {source} lists it: add "
                    "the file, or take the line from the list."
                )
            )
        kept = np.ones(len(files), dtype=np.bool_)
        kept[lost] = False
        return files.take(kept) if lost else files

    def fingerprint(self) -> str:
        """Sixteen hex digits that change with the images' names, labels or sizes."""
        parts, digest = self._read(), hashlib.sha256()
        for files in (parts.train, self._selected, parts.val):
            if files is not None:
                sizes = [os.stat(path).st_size for path, _ in files]
                digest.update(repr((files.names.tolist(), files.labels.tolist(), sizes)).encode())
        return digest.hexdigest()[:16]

    def setup(self, stage: str) -> None:
        enough = self.num_images >= self.batch_size * world_size()
        if not enough and self.drop_last and stage == "fit":
            raise ValueError(
                f"Expected at least one batch, but {self.root} has {self.num_images} images to "
                f"train on for {world_size()} x batch_size={self.batch_size}: lower it, or pass "
                "drop_last=False."
            )

    def train_dataloader(self) -> ResumableLoader:
        return self._loader("train", self._training_recipe(), training=True)

    def val_dataloader(self) -> ResumableLoader | list[Any]:
        if not self.selection and self._read().val is None:
            return []  # as Lightning wants it told that there are none
        return self._loader("selection" if self.selection else "val", recipes.center(self.size))

    def test_dataloader(self) -> ResumableLoader:
        return self._loader("val", recipes.center(self.size))

    def features_dataloader(self, part: str = "train") -> ResumableLoader:
        """All images of a part in order, once each, as a centre view.

        Args:
            part: as :meth:`files` takes it.

        Raises:
            ValueError: for a part that this data set does not have.
        """
        return self._loader(part, recipes.center(self.size))

    def _read(self) -> Parts:
        """Read the lists once, and split off the selection."""
        if self._parts is None:
            parts = self.read()
            if self.selection:
                selected = per_class_share(
                    parts.train, self.selection, self.seed, at_most=50, leave=1
                )
                self._selected = parts.train.take(selected)
                parts = parts._replace(train=parts.train.take(~selected))
            self._parts = parts
        return self._parts

    def _training_recipe(self) -> Recipe:
        chosen: Any = self.views
        if chosen is None:
            chosen = getattr(getattr(self.trainer, "lightning_module", None), "views", None)
        if chosen is None:
            raise ValueError(
                "Expected views: the module being fitted names no recipe, so pass "
                f"{type(self).__name__}(views=...), one of {', '.join(recipes.RECIPES)}."
            )
        if not isinstance(chosen, str):
            return chosen  # type: ignore[no-any-return]
        if self.crop is None:
            return recipes.recipe(chosen, self.size)
        if chosen == "center":
            raise ValueError(
                f"Expected views that crop at random, but got {chosen!r} with crop={self.crop}: "
                "leave out `crop`."
            )
        return recipes.recipe(chosen, self.size, scale=(self.crop, 1.0))

    def _loader(self, part: str, recipe: Recipe, *, training: bool = False) -> ResumableLoader:
        files, drop_last = self.files(part), training and self.drop_last
        order = EpochSampler(len(files), shuffle=training, seed=self.seed, drop_last=drop_last)
        options: Any = {"skips": self._skips, "max_pixels": self.max_pixels}
        return self._batches(ImageDataset(files, recipe, self.seed, **options), order, collate)


class ImageDataset(Dataset[Batch]):
    """Views of the images of a list; an item is asked for by (epoch, number).

    Args:
        files: the images.
        recipe: how an image becomes views.
        seed: of the views.
        skips: what to do about an image that cannot be read; None raises.
        max_pixels: of an image that is decoded.
    """

    def __init__(
        self,
        files: Files,
        recipe: Recipe,
        seed: int = 0,
        *,
        skips: Skips | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.files, self.recipe, self.seed, self.max_pixels = files, recipe, seed, max_pixels
        self.reading = (skips or Skips("raise")).reading(len(files), files.path)

    def __len__(self) -> int:
        return len(self.files)

    @property
    def targets(self) -> NDArray[np.int64]:
        """Labels of all images, by the name they have in torchvision's data sets."""
        return self.files.labels

    def __getitem__(self, address: tuple[int, int] | int) -> Batch:
        epoch, number = address if isinstance(address, tuple) else (0, address)
        return self.reading(number, lambda number: self.item(epoch, number))

    def item(self, epoch: int, number: int) -> Batch:
        """Views of image ``number`` itself; OSError where it cannot be read."""
        image = decode(self.files.path(number), max_pixels=self.max_pixels)
        views = self.recipe(image, seed=self.seed, epoch=epoch, index=number)
        return Batch(views, torch.tensor(self.files.labels[number]), torch.tensor(number))


def collate(items: list[Batch]) -> Batch:
    """Stack images of one size into a batch."""
    views = tuple(torch.stack(view) for view in zip(*(i.views for i in items), strict=True))
    label, index = (_stacked([item[field] for item in items]) for field in (1, 2))
    return Batch(views, label, index)


def _stacked(values: list[Any]) -> Tensor | None:
    return None if values[0] is None else torch.stack(values)


def per_class_share(
    files: Files, share: float, seed: int, at_most: int | None = None, leave: int = 0
) -> NDArray[np.bool_]:
    """Mask (N,) of a seeded share of every class, at least one image of each.

    Args:
        files: with their labels.
        share: of each class, from 0 to 1.
        seed: of the choice.
        at_most: images of a class.
        leave: images of a class that are left, even if that is all of them.
    """
    taken = np.zeros(len(files), dtype=np.bool_)
    if not len(files):
        return taken
    order = np.argsort(files.labels, kind="stable")
    labels, starts = np.unique(files.labels[order], return_index=True)
    for label, group in zip(labels.tolist(), np.split(order, starts[1:]), strict=True):
        count = max(1, round(share * len(group)))
        count = min(count, at_most) if at_most is not None else count
        count = min(count, len(group) - leave)
        taken[random.Random(f"{seed}/{label}").sample(group.tolist(), count)] = True
    return taken
