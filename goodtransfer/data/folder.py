"""A tree of class folders, as every ImageNet copy and any own data set has it."""

import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

from goodtransfer.views import Batch, Recipe

Sample = tuple[str, int]  # path, class


class ImageReadError(OSError):
    """An image file that cannot be decoded; the message names it, also out of a loader worker."""


def read_image(path: str) -> Image.Image:
    """Decode a file to RGB; any other mode (grey, palette, CMYK, alpha) is converted."""
    try:
        with Image.open(path) as image:
            image.info.pop("transparency", None)  # dropped anyhow, and PIL warns of some
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageReadError(
            f"Expected an image at {path}, but it cannot be decoded "
            f"({str(error) or type(error).__name__}): replace or remove the file."
        ) from error


def scan(folder: Path, expected_tree: str) -> tuple[list[Sample], list[str]]:
    """Samples and class names below ``folder``, sorted, as torchvision's ImageFolder reads them."""
    if not folder.is_dir():
        raise FileNotFoundError(f"Expected a folder of classes at {folder}.\n{expected_tree}")
    try:
        names, numbers = find_classes(str(folder))
        samples = make_dataset(str(folder), numbers, extensions=IMG_EXTENSIONS)
    except FileNotFoundError as error:
        problem = str(error).splitlines()[0]
        raise FileNotFoundError(
            f"Expected every class folder in {folder} to hold images, but: {problem}\n{expected_tree}"
        ) from error
    return samples, names


class ImageDataset(Dataset[Batch]):
    """Views of the images of a list; an item is asked for by (epoch, number).

    Args:
        samples: (path, class) of each image.
        recipe: how an image becomes views.
        seed: of the views.
        read: decoder from path to RGB image.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        recipe: Recipe,
        seed: int = 0,
        read: Callable[[str], Image.Image] = read_image,
    ) -> None:
        self.samples, self.recipe, self.seed, self.read = samples, recipe, seed, read

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, address: tuple[int, int] | int) -> Batch:
        epoch, number = address if isinstance(address, tuple) else (0, address)
        path, label = self.samples[number]
        views = self.recipe(self.read(path), seed=self.seed, epoch=epoch, index=number)
        return Batch(views, torch.tensor(label), torch.tensor(number))


def collate(items: list[Batch]) -> Batch:
    """Stack images of one size into a batch."""
    views = tuple(torch.stack(view) for view in zip(*(i.views for i in items), strict=True))
    label, index = (_stacked([item[field] for item in items]) for field in (1, 2))
    return Batch(views, label, index)


def _stacked(values: list[Any]) -> Tensor | None:
    return None if values[0] is None else torch.stack(values)


def per_class_share(
    samples: Sequence[Sample], share: float, seed: int, at_most: int | None = None
) -> tuple[list[Sample], list[Sample]]:
    """Split off a seeded share of every class (at least one image): (the share, the rest)."""
    by_class: dict[int, list[Sample]] = {}
    for sample in samples:
        by_class.setdefault(sample[1], []).append(sample)
    taken: set[str] = set()
    for label, group in by_class.items():
        count = max(1, round(share * len(group)))
        count = min(count, at_most) if at_most is not None else count
        chosen = random.Random(f"{seed}/{label}").sample(group, count)
        taken.update(path for path, _ in chosen)
    return [s for s in samples if s[0] in taken], [s for s in samples if s[0] not in taken]


def listed(samples: Sequence[Sample], root: Path, lines: Iterable[str]) -> list[Sample]:
    """The samples that a list names, by class folder or by path below ``root``.

    Raises:
        ValueError: for an entry that names nothing, or an empty list.
    """
    wanted = {line.strip().strip("/") for line in lines if line.strip()}
    found: set[str] = set()
    kept = []
    for path, label in samples:
        relative = Path(path).relative_to(root).as_posix()
        names = {relative, relative.split("/")[0], relative.split("/")[-1]} & wanted
        found |= names
        if names:
            kept.append((path, label))
    if not kept or found != wanted:
        lost = sorted(wanted - found)[:3]
        raise ValueError(
            f"Expected a list of class folders or image paths below {root}, but "
            f"{len(wanted - found)} of {len(wanted)} entries name nothing there: {lost}."
        )
    return kept
