"""The augmentations of the paper, in the order of the official code.

A recipe is a list of steps. A step draws: it gives operations with their parameters, from one
image's size and one generator. The pixels follow: :mod:`~goodtransfer.views.pixels` applies them. The
generator is seeded with (seed, epoch, image index, view number) and nothing else, so a view is a pure
function of these: the same for any number of workers and ranks, and after a restart.
"""

import hashlib
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from goodtransfer.views import pixels
from goodtransfer.views.decode import MAX_PIXELS, Pixels, decode
from goodtransfer.views.steps import (
    Blur,
    CenterCrop,
    ColorJitter,
    Flip,
    Grayscale,
    KernelBlur,
    Operation,
    RandomResizedCrop,
    Step,
)

Scale = float | tuple[float, float]


@dataclass(frozen=True)
class Recipe:
    """How many views of an image, and how each is made.

    Attributes:
        name: as methods name it in their ``views`` argument.
        count: views per image.
        steps: in their order.

    >>> mirrored = Recipe("mirrored", 1, (Flip(p=1.0),))
    >>> (view,) = mirrored(np.array([[[1, 1, 1], [2, 2, 2]]], np.uint8))
    >>> view.shape, view[0]
    (torch.Size([3, 1, 2]), tensor([[2, 1]], dtype=torch.uint8))
    """

    name: str
    count: int
    steps: tuple[Step, ...]

    def __call__(
        self, image: Pixels | Image.Image, *, seed: int = 0, epoch: int = 0, index: int = 0
    ) -> tuple[Tensor, ...]:
        """``count`` views, uint8 (3, H, W).

        Args:
            image: RGB, as an array (H, W, 3) or of PIL.
            seed: of the run.
            epoch: counted from 0.
            index: the image's number in its data set.

        Raises:
            ValueError: for an image that is not RGB in uint8.
        """
        return tuple(
            self.view(image, number, seed=seed, epoch=epoch, index=index)
            for number in range(self.count)
        )

    def view(
        self, image: Pixels | Image.Image, number: int, *, seed: int, epoch: int, index: int
    ) -> Tensor:
        """View ``number`` of the image, uint8 (3, H, W).

        Raises:
            ValueError: for an image that is not RGB in uint8.
        """
        # Torch warns of arrays it cannot write to, and refuses turned ones, such as BGR made RGB.
        made = np.require(image, requirements=["C", "W"])
        if made.ndim != 3 or made.shape[2] != 3 or made.dtype != np.uint8:
            raise ValueError(
                f"Expected an RGB image of uint8 (H, W, 3), but got {made.dtype} {made.shape}: "
                "convert it, as goodtransfer.views.decode does."
            )
        height, width = made.shape[:2]
        for operation in self.draw(height, width, number, seed=seed, epoch=epoch, index=index):
            made = operation(made)
        return pixels.to_tensor(made)

    def draw(
        self, height: int, width: int, number: int, *, seed: int, epoch: int, index: int
    ) -> list[Operation]:
        """What is done to an image of this size to make its view ``number``."""
        address = struct.pack("<4q", seed, epoch, index, number)
        random = Random(int.from_bytes(hashlib.blake2b(address, digest_size=16).digest(), "little"))
        return [done for step in self.steps for done in step(random, height, width)]


class TwoViews:
    """Two views of an image file, decoded once: for your own data set and loader.

    Args:
        recipe: such as ``views.moco_v2(224)``.
        max_pixels: see :func:`decode`.

    A view is a function of the image and of seed, epoch and index, and of nothing else:

    >>> from io import BytesIO
    >>> file = BytesIO()
    >>> Image.linear_gradient("L").save(file, "png")
    >>> two = TwoViews(moco_v2(32))
    >>> query, key = two(file.getvalue(), seed=1, epoch=2, index=3)
    >>> again, _ = two(file.getvalue(), seed=1, epoch=2, index=3)
    >>> query.shape, query.equal(again), query.equal(key)
    (torch.Size([3, 32, 32]), True, False)
    """

    def __init__(self, recipe: Recipe, *, max_pixels: int = MAX_PIXELS) -> None:
        self.recipe, self.max_pixels = recipe, max_pixels

    def __call__(
        self, source: str | Path | bytes, *, seed: int = 0, epoch: int = 0, index: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Query and key, uint8 (3, H, W).

        Args:
            source: a path, or the file's content.
            seed: of the run.
            epoch: counted from 0.
            index: the image's number in its data set.

        Raises:
            ImageReadError: see :func:`decode`.
        """
        image = decode(source, max_pixels=self.max_pixels)
        query, key = (
            self.recipe.view(image, number, seed=seed, epoch=epoch, index=index)
            for number in (0, 1)
        )
        return query, key


# --- Recipes


def moco_v1(size: int = 224, *, scale: Scale = 0.2) -> Recipe:
    """MoCo v1's two views (protocol 1.3): grayscale before a jitter that is always applied.

    https://github.com/facebookresearch/moco/blob/3b42c2a12afd20da783501e87c3ea837c054397c/main_moco.py

    Args:
        size: side of a view in pixels.
        scale: smallest share of the image that a crop covers, or smallest and largest.

    Raises:
        ValueError: for a scale that is not within 0 to 1.

    >>> moco_v1().count, [type(step).__name__ for step in moco_v1().steps]
    (2, ['RandomResizedCrop', 'Grayscale', 'ColorJitter', 'Flip'])
    """
    jitter = ColorJitter(0.4, 0.4, 0.4, 0.4)
    return Recipe("moco_v1", 2, (_crop(size, scale), Grayscale(0.2), jitter, Flip()))


def moco_v2(size: int = 224, *, scale: Scale = 0.2) -> Recipe:
    """MoCo v2's two views (protocol 1.4), the full ladder of Table 1.

    https://github.com/facebookresearch/moco/blob/3b42c2a12afd20da783501e87c3ea837c054397c/main_moco.py

    Args:
        size: side of a view in pixels.
        scale: smallest share of the image that a crop covers, or smallest and largest.

    Raises:
        ValueError: for a scale that is not within 0 to 1.

    >>> moco_v2().count, [type(step).__name__ for step in moco_v2().steps]
    (2, ['RandomResizedCrop', 'ColorJitter', 'Grayscale', 'Blur', 'Flip'])
    """
    return Recipe("moco_v2", 2, _rung(5, size, scale))


def instdisc(size: int = 224, *, scale: Scale = 0.2) -> Recipe:
    """One view by MoCo v1's steps, which are those of InstDisc (protocol 1.7).

    Source: zhirongw/lemniscate.pytorch@f7cfe29, main.py.

    Args:
        size: side of a view in pixels.
        scale: smallest share of the image that a crop covers, or smallest and largest.

    Raises:
        ValueError: for a scale that is not within 0 to 1.

    >>> instdisc().count, instdisc().steps == moco_v1().steps
    (1, True)
    """
    return Recipe("instdisc", 1, moco_v1(size, scale=scale).steps)


def supervised(size: int = 224, *, scale: Scale = 0.08) -> Recipe:
    """One view by MoCo v2's steps with a crop scale from 0.08 (Table 1, footnote 1).

    Args:
        size: side of a view in pixels.
        scale: smallest share of the image that a crop covers, or smallest and largest.

    Raises:
        ValueError: for a scale that is not within 0 to 1.

    >>> supervised().count, supervised().steps[0].scale, moco_v2().steps[0].scale
    (1, (0.08, 1.0), (0.2, 1.0))
    """
    return Recipe("supervised", 1, _rung(5, size, scale))


def simclr(size: int = 224, *, scale: Scale = 0.08) -> Recipe:
    """SimCLR's two views (protocol 1.8): flipped before a jitter twice as strong.

    https://github.com/google-research/simclr/blob/ac4626a6cc7ecfd4bd95bcccdb2fbe646028a4f7/data_util.py
    Upstream's blur darkens the borders (it pads with zeros); this one mirrors them.

    Args:
        size: side of a view in pixels.
        scale: smallest share of the image that a crop covers, or smallest and largest.

    Raises:
        ValueError: for a scale that is not within 0 to 1.

    >>> simclr().count, [type(step).__name__ for step in simclr().steps]
    (2, ['RandomResizedCrop', 'Flip', 'ColorJitter', 'Grayscale', 'KernelBlur'])
    """
    jitter = ColorJitter(0.8, 0.8, 0.8, 0.2, p=0.8)
    steps = (_crop(size, scale), Flip(), jitter, Grayscale(0.2), KernelBlur(size))
    return Recipe("simclr", 2, steps)


RUNGS = ("flip", "crop", "jitter", "gray", "blur")


def ladder(rung: str | int, size: int = 224, *, scale: Scale = 0.2, count: int = 2) -> Recipe:
    """A row of Table 1: this augmentation and all before it, in MoCo v2's order.

    Without the crop, a view is the middle of the image (256 to 224 pixels; the paper is silent).

    Args:
        rung: ``"flip"``, ``"crop"``, ``"jitter"``, ``"gray"`` or ``"blur"``, or its row from 1 to 5.
        size: side of a view in pixels.
        scale: of the crop: the paper's 0.08 for supervised, 0.2 for unsupervised pretraining.
        count: views of an image, 1 for supervised pretraining.

    Raises:
        ValueError: for a rung that Table 1 does not have, or a scale that is not within 0 to 1.

    >>> [type(step).__name__ for step in ladder("flip").steps]
    ['CenterCrop', 'Flip']
    >>> [type(step).__name__ for step in ladder("jitter").steps]
    ['RandomResizedCrop', 'ColorJitter', 'Flip']
    """
    names = dict(zip((*RUNGS, *range(1, 6)), (*range(1, 6), *range(1, 6)), strict=True))
    if rung not in names:
        raise ValueError(
            f"Expected a rung of Table 1, {', '.join(RUNGS)} or 1 to 5, but got {rung!r}."
        )
    kind, last = "supervised" if count == 1 else "ladder", RUNGS[names[rung] - 1]
    return Recipe(f"{kind}_{last}", count, _rung(names[rung], size, scale))


def linear(size: int = 224, *, scale: Scale = 0.08) -> Recipe:
    """One view for the linear readout's training (protocol 2.1): crop and flip.

    Args:
        size: side of a view in pixels.
        scale: smallest share of the image that a crop covers, or smallest and largest.

    Raises:
        ValueError: for a scale that is not within 0 to 1.

    >>> [type(step).__name__ for step in linear().steps]
    ['RandomResizedCrop', 'Flip']
    """
    return Recipe("linear", 1, (_crop(size, scale), Flip()))


def center(size: int = 224) -> Recipe:
    """One view for evaluation: short side to 256/224 of ``size``, then the centre.

    Args:
        size: side of a view in pixels.

    >>> center(224).draw(height=375, width=500, number=0, seed=0, epoch=0, index=0)
    [resize(256, 341), crop(16, 58, 224, 224)]
    """
    return Recipe("center", 1, (_center(size),))


RECIPES: dict[str, Callable[..., Recipe]] = {
    "moco_v1": moco_v1,
    "moco_v2": moco_v2,
    "instdisc": instdisc,
    "supervised": supervised,
    "simclr": simclr,
    "linear": linear,
    "center": center,
    **{f"ladder_{rung}": partial(ladder, rung) for rung in RUNGS},
    **{f"supervised_{rung}": partial(ladder, rung, scale=0.08, count=1) for rung in RUNGS},
}


def recipe(name: str, size: int, **options: Any) -> Recipe:
    """A recipe by its name.

    Args:
        name: among ``RECIPES``: ``"moco_v1"``, ``"moco_v2"``, ``"instdisc"``, ``"simclr"``,
            ``"supervised"``, ``"linear"``, ``"center"``, and for each rung of :func:`ladder`
            ``"ladder_RUNG"`` and, of one view, ``"supervised_RUNG"``.
        size: side of a view in pixels.
        options: of the function of that name, such as ``scale``.

    Raises:
        ValueError: for any other name.

    >>> recipe("moco_v2", 96) == moco_v2(96)
    True
    >>> recipe("supervised_gray", 96, scale=0.5) == ladder("gray", 96, scale=0.5, count=1)
    True
    """
    if name not in RECIPES:
        raise ValueError(f"Expected views to be one of {', '.join(RECIPES)}, but got {name!r}.")
    return RECIPES[name](size, **options)


def _rung(number: int, size: int, scale: Scale) -> tuple[Step, ...]:
    """The first ``number`` augmentations of Table 1. The flip comes first in it, but is done last."""
    crop: Sequence[Step] = (_crop(size, scale) if number > 1 else _center(size),)
    colour: Sequence[Step] = (ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8), Grayscale(0.2), Blur())
    return (*crop, *colour[: max(number - 2, 0)], Flip())


def _crop(size: int, scale: Scale) -> RandomResizedCrop:
    low, high = (scale, 1.0) if isinstance(scale, int | float) else scale
    if not 0 < low <= high <= 1:
        raise ValueError(f"Expected a crop scale of shares from 0 to 1, but got {scale}.")
    return RandomResizedCrop(size, (low, high))


def _center(size: int) -> CenterCrop:
    return CenterCrop(round(size * 256 / 224), size)
