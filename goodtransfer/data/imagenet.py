"""ImageNet, and any data set of class folders."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from goodtransfer import views as recipes
from goodtransfer.data.fingerprint import fingerprint
from goodtransfer.data.folder import (
    ImageDataset,
    Sample,
    collate,
    listed,
    per_class_share,
    scan,
)
from goodtransfer.data.loader import EpochSampler, ResumableLoader
from goodtransfer.distributed import world_size
from goodtransfer.views import Recipe

# Seeded stand-ins for Table 2's subsets, whose lists were never published (protocol 1.10).
_SUBSET_SEED = 0


class ImageNetDataModule(pl.LightningDataModule):
    """Views, labels and indices of images in class folders.

    Expected tree (any class and file names; ImageNet's are WordNet ids)::

        ROOT/train/n01440764/n01440764_10026.JPEG   1,281,167 images in 1,000 classes
        ROOT/val/n01440764/ILSVRC2012_val_00000293.JPEG   50,000 images

    Views are uint8 RGB; they and their order depend on ``seed`` alone, not on workers or ranks.

    Args:
        root: the folder that holds ``train`` and ``val``.
        batch_size: images per step **on each rank** (the paper: 256 in all).
        size: side of a view in pixels.
        views: a recipe or its name; None takes the recipe of the method or task it is fitted with.
        subset: part of train: ``"10%"`` of every class or ``"100 classes"`` (seeded, since the
            paper's lists are unpublished), or a text file of class folders or image paths.
        selection: share of every train class (at most 50 images) that is not trained on and makes
            the validation set, so that a choice is made without seeing ``val``.
        num_workers: loader processes.
        seed: of order, views and selection.
        drop_last: of the training loader; upstream drops.

    ``val_dataloader`` gives ``val`` (or the selection), ``test_dataloader`` always ``val``, both as
    one centre view.

    Raises:
        FileNotFoundError: for a missing or misshapen root, with the expected tree.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        batch_size: int = 256,
        size: int = 224,
        views: Recipe | str | None = None,
        subset: str | Path | None = None,
        selection: float = 0.0,
        num_workers: int = 0,
        seed: int = 0,
        drop_last: bool = True,
    ) -> None:
        super().__init__()
        if batch_size < 1 or size < 1:
            raise ValueError(
                f"Expected `batch_size` and `size` to be positive, but got {batch_size} and {size}."
            )
        if not 0 <= selection < 1:
            raise ValueError(f"Expected argument `selection` in [0, 1), but got {selection}.")
        self.root, self.subset, self.views = Path(root).expanduser(), subset, views
        self.batch_size, self.size, self.num_workers = batch_size, size, num_workers
        self.selection, self.seed, self.drop_last = selection, seed, drop_last
        self.class_names: list[str] = []
        self._parts: dict[str, list[Sample]] = {}

    @property
    def num_classes(self) -> int:
        """Number of class folders in ``train``."""
        self._scan()
        return len(self.class_names)

    @property
    def num_images(self) -> int:
        """Number of training images, after ``subset`` and ``selection``."""
        self._scan()
        return len(self._parts["train"])

    def fingerprint(self) -> str:
        """Sixteen hex digits that change with the images' names, classes or sizes."""
        return fingerprint(self.root).digest

    def setup(self, stage: str) -> None:
        self._scan()
        enough = self.num_images >= self.batch_size * world_size()
        if not enough and self.drop_last and stage == "fit":
            raise ValueError(
                f"Expected at least one batch, but {self.root / 'train'} has {self.num_images} "
                f"images for {world_size()} x batch_size={self.batch_size}: lower it, or pass "
                "drop_last=False."
            )

    def train_dataloader(self) -> ResumableLoader:
        return self._loader("train", self._training_recipe(), training=True)

    def val_dataloader(self) -> ResumableLoader:
        return self._loader("selection" if self.selection else "val", recipes.center(self.size))

    def test_dataloader(self) -> ResumableLoader:
        return self._loader("val", recipes.center(self.size))

    def _training_recipe(self) -> Recipe:
        chosen: Any = self.views
        if chosen is None:
            chosen = getattr(getattr(self.trainer, "lightning_module", None), "views", None)
        if chosen is None:
            raise ValueError(
                "Expected views: the module being fitted names no recipe, so pass "
                f"ImageNetDataModule(views=...), one of {', '.join(recipes.RECIPES)}."
            )
        return recipes.recipe(chosen, self.size) if isinstance(chosen, str) else chosen

    def _loader(self, part: str, recipe: Recipe, *, training: bool = False) -> ResumableLoader:
        self._scan()
        samples = self._parts[part]
        drop_last = training and self.drop_last
        sampler = EpochSampler(len(samples), shuffle=training, seed=self.seed, drop_last=drop_last)
        return ResumableLoader(
            ImageDataset(samples, recipe, seed=self.seed),
            sampler=sampler,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate_fn=collate,
            drop_last=drop_last,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
        )

    def _scan(self) -> None:
        """Read the folders once."""
        if self._parts:
            return
        tree = (
            "The expected tree is:\n"
            f"  {self.root}/train/CLASS/image.jpg   (one folder per class)\n"
            f"  {self.root}/val/CLASS/image.jpg     (the same classes)"
        )
        train, self.class_names = scan(self.root / "train", tree)
        val, val_classes = scan(self.root / "val", tree)
        if val_classes != self.class_names:
            odd = sorted(set(val_classes) ^ set(self.class_names))
            raise ValueError(
                f"Expected the same classes in train and val of {self.root}, but {len(odd)} are in "
                f"one only: {odd[:3]}.\n{tree}"
            )
        train = self._subset(train)
        train, val = self._only_present_classes(train, val)
        selected: list[Sample] = []
        if self.selection:
            selected, train = per_class_share(train, self.selection, self.seed, at_most=50)
        self._parts = {"train": train, "selection": selected, "val": val}

    def _only_present_classes(
        self, train: list[Sample], val: list[Sample]
    ) -> tuple[list[Sample], list[Sample]]:
        """Renumber the classes that a subset leaves, in train and val alike."""
        present = sorted({label for _, label in train})
        number = {label: new for new, label in enumerate(present)}
        self.class_names = [self.class_names[label] for label in present]
        renumbered = ([(p, number[y]) for p, y in part if y in number] for part in (train, val))
        return next(renumbered), next(renumbered)

    def _subset(self, samples: list[Sample]) -> list[Sample]:
        if self.subset is None:
            return samples
        if self.subset == "10%":
            return per_class_share(samples, 0.1, _SUBSET_SEED)[0]
        if self.subset == "100 classes":
            generator = torch.Generator().manual_seed(_SUBSET_SEED)
            order = torch.randperm(len(self.class_names), generator=generator)[:100]
            chosen = sorted(self.class_names[i] for i in order)
            samples = listed(samples, self.root / "train", chosen)
        elif Path(self.subset).is_file():
            lines = Path(self.subset).read_text().splitlines()
            samples = listed(samples, self.root / "train", lines)
        else:
            raise FileNotFoundError(
                f"Expected subset '10%', '100 classes' or a text file, but got {self.subset!r}."
            )
        return samples
