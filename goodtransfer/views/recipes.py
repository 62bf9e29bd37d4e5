"""The augmentations of the paper, in the order of the official code, on PIL images.

A recipe is a pure function of (seed, epoch, image index, view number): the same views come for any
number of workers and ranks, and a resumed run goes on with the views it would have seen.
"""

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision.transforms import v2

Scale = tuple[float, float]


@dataclass(frozen=True)
class Recipe:
    """How many views of an image, and how each is made.

    Attributes:
        name: as methods name it in their ``views`` argument.
        count: views per image.
        transform: PIL image to PIL image, drawing from torch's CPU generator only.
    """

    name: str
    count: int
    transform: Callable[[Image.Image], Image.Image]

    def __call__(
        self, image: Image.Image, *, seed: int = 0, epoch: int = 0, index: int = 0
    ) -> tuple[Tensor, ...]:
        """``count`` views, uint8 (3, H, W), leaving the global generator as it was."""
        state = torch.get_rng_state()
        try:
            return tuple(
                self._view(image, (seed, epoch, index, view)) for view in range(self.count)
            )
        finally:
            torch.set_rng_state(state)

    def _view(self, image: Image.Image, address: tuple[int, int, int, int]) -> Tensor:
        digest = hashlib.blake2b(struct.pack("<4q", *address), digest_size=8).digest()
        # The CPU generator alone: torch.manual_seed would also queue a call for every GPU.
        torch.default_generator.manual_seed(int.from_bytes(digest, "little", signed=True))
        view: Tensor = v2.functional.pil_to_tensor(self.transform(image))
        return view


class GaussianBlur:
    """MoCo's blur: PIL's filter with a sigma from U(low, high).

    PIL approximates the Gaussian by extended boxes, other than SimCLR's truncated kernel. The paper
    prints (0.1, 0.2), taken for a typing error of MoCo-v2's (0.1, 2.0) (protocol 1.4).
    """

    def __init__(self, low: float = 0.1, high: float = 2.0) -> None:
        self.low, self.high = low, high

    def __call__(self, image: Image.Image) -> Image.Image:
        sigma = torch.empty(()).uniform_(self.low, self.high).item()
        return image.filter(ImageFilter.GaussianBlur(radius=sigma))


def moco_v1(size: int = 224, *, scale: Scale = (0.2, 1.0)) -> Recipe:
    """MoCo v1's two views (protocol 1.3): grayscale before a jitter that is always applied."""
    steps = [
        v2.RandomResizedCrop(size, scale=scale),
        v2.RandomGrayscale(p=0.2),
        v2.ColorJitter(0.4, 0.4, 0.4, 0.4),
        v2.RandomHorizontalFlip(),
    ]
    return Recipe("moco_v1", 2, v2.Compose(steps))


def moco_v2(size: int = 224, *, scale: Scale = (0.2, 1.0)) -> Recipe:
    """MoCo v2's two views (protocol 1.4), the full ladder of Table 1."""
    return Recipe("moco_v2", 2, v2.Compose(_moco_v2_steps(size, scale)))


def supervised(size: int = 224, *, scale: Scale = (0.08, 1.0)) -> Recipe:
    """One view by MoCo v2's steps with a crop scale from 0.08 (Table 1, footnote 1)."""
    return Recipe("supervised", 1, v2.Compose(_moco_v2_steps(size, scale)))


def linear(size: int = 224, *, scale: Scale = (0.08, 1.0)) -> Recipe:
    """One view for the linear readout's training (protocol 2.1): crop and flip."""
    steps = [v2.RandomResizedCrop(size, scale=scale), v2.RandomHorizontalFlip()]
    return Recipe("linear", 1, v2.Compose(steps))


def center(size: int = 224) -> Recipe:
    """One view for evaluation: short side to 256/224 of ``size``, then the centre."""
    steps = [v2.Resize(round(size * 256 / 224)), v2.CenterCrop(size)]
    return Recipe("center", 1, v2.Compose(steps))


RECIPES: dict[str, Callable[..., Recipe]] = {
    "moco_v1": moco_v1,
    "moco_v2": moco_v2,
    "supervised": supervised,
    "linear": linear,
    "center": center,
}


def recipe(name: str, size: int, **options: Any) -> Recipe:
    """The recipe called ``name``, at ``size`` pixels."""
    if name not in RECIPES:
        raise ValueError(f"Expected views to be one of {', '.join(RECIPES)}, but got {name!r}.")
    return RECIPES[name](size, **options)


def _moco_v2_steps(size: int, scale: Scale) -> list[Any]:
    return [
        v2.RandomResizedCrop(size, scale=scale),
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        v2.RandomGrayscale(p=0.2),
        v2.RandomApply([GaussianBlur()], p=0.5),
        v2.RandomHorizontalFlip(),
    ]
