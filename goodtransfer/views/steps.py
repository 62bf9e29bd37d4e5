"""The steps of a recipe: each draws what is done to one image. All distributions are torchvision's."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import NamedTuple, Protocol

from goodtransfer.views import pixels
from goodtransfer.views.decode import Pixels


class Operation(NamedTuple):
    """What is done to an image: a function on pixels, and its parameters."""

    function: Callable[..., Pixels]
    parameters: tuple[float, ...] = ()

    def __call__(self, image: Pixels) -> Pixels:
        return self.function(image, *self.parameters)

    def __repr__(self) -> str:
        shown = ", ".join(f"{p:.4g}" if isinstance(p, float) else str(p) for p in self.parameters)
        return f"{self.function.__name__}({shown})"


class Step(Protocol):
    """Draws what is to be done to an image of this size.

    Use ``random.random()`` alone, the one method whose numbers Python promises to keep.
    """

    def __call__(self, random: Random, height: int, width: int) -> Iterator[Operation]: ...


@dataclass(frozen=True)
class RandomResizedCrop:
    """A part of the image of random area and aspect, resized to ``size`` x ``size``."""

    size: int
    scale: tuple[float, float]
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __call__(self, random: Random, height: int, width: int) -> Iterator[Operation]:
        yield Operation(pixels.crop, self._part(random, height, width))
        yield Operation(pixels.resize, (self.size, self.size))

    def _part(self, random: Random, height: int, width: int) -> tuple[int, int, int, int]:
        """Top, left, height and width: ten tries, and then the middle at the nearest aspect."""
        low, high = self.ratio
        for _ in range(10):
            area = height * width * _between(random, *self.scale)
            aspect = math.exp(_between(random, math.log(low), math.log(high)))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                top = int(random.random() * (height - h + 1))
                return top, int(random.random() * (width - w + 1)), h, w
        w = min(width, max(1, round(height * high)))
        h = min(height, max(1, round(width / low)))
        return (height - h) // 2, (width - w) // 2, h, w


@dataclass(frozen=True)
class CenterCrop:
    """The short side to ``short``, then the middle ``size`` x ``size``.

    Of an image more than 16 times as long as wide, which resizing could make gigabytes of, the
    middle alone is resized.
    """

    short: int
    size: int

    def __call__(self, random: Random, height: int, width: int) -> Iterator[Operation]:
        least = min(height, width)
        if max(height, width) > 16 * least:
            top, left = (max(side - 16 * least, 0) // 2 for side in (height, width))
            height, width = (min(side, 16 * least) for side in (height, width))
            yield Operation(pixels.crop, (top, left, height, width))
        h, w = (int(self.short * side / least) for side in (height, width))
        top, left = (round((side - self.size) / 2) for side in (h, w))
        yield Operation(pixels.resize, (h, w))
        yield Operation(pixels.crop, (top, left, self.size, self.size))


@dataclass(frozen=True)
class ColorJitter:
    """Brightness, contrast, saturation and hue in a random order, with probability ``p``.

    The first three are multiplied by 1 - x to 1 + x, the hue is turned by up to ``hue`` each way.
    """

    brightness: float
    contrast: float
    saturation: float
    hue: float
    p: float = 1.0

    def __call__(self, random: Random, height: int, width: int) -> Iterator[Operation]:
        if random.random() >= self.p:
            return
        factors = {
            pixels.brightness: self.brightness,
            pixels.contrast: self.contrast,
            pixels.saturation: self.saturation,
        }
        changes = [
            Operation(function, (_between(random, max(0, 1 - reach), 1 + reach),))
            for function, reach in factors.items()
        ]
        changes.append(Operation(pixels.hue, (_between(random, -self.hue, self.hue),)))
        while changes:
            yield changes.pop(int(random.random() * len(changes)))


@dataclass(frozen=True)
class Grayscale:
    """Grey with probability ``p``."""

    p: float

    def __call__(self, random: Random, height: int, width: int) -> Iterator[Operation]:
        if random.random() < self.p:
            yield Operation(pixels.grayscale)


@dataclass(frozen=True)
class Blur:
    """MoCo's blur with probability ``p``: PIL's, with a sigma from ``low`` to ``high``.

    The paper prints (0.1, 0.2), taken for a typing error of MoCo v2's (0.1, 2.0) (protocol 1.4).
    """

    p: float = 0.5
    low: float = 0.1
    high: float = 2.0

    def __call__(self, random: Random, height: int, width: int) -> Iterator[Operation]:
        if random.random() < self.p:
            yield Operation(pixels.blur, (_between(random, self.low, self.high),))


@dataclass(frozen=True)
class KernelBlur:
    """SimCLR's blur with probability ``p``: a Gaussian cut off at a tenth of the image's side."""

    size: int
    p: float = 0.5
    low: float = 0.1
    high: float = 2.0

    def __call__(self, random: Random, height: int, width: int) -> Iterator[Operation]:
        if random.random() < self.p:
            kernel = 2 * (self.size // 10 // 2) + 1
            sigma = _between(random, self.low, self.high)
            yield Operation(pixels.gaussian_blur, (kernel, sigma))


@dataclass(frozen=True)
class Flip:
    """Left to right with probability ``p``."""

    p: float = 0.5

    def __call__(self, random: Random, height: int, width: int) -> Iterator[Operation]:
        if random.random() < self.p:
            yield Operation(pixels.flip)


def _between(random: Random, low: float, high: float) -> float:
    return low + (high - low) * random.random()
