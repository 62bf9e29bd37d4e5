"""The training view of semantic segmentation (protocol 4.2): an image and the class of each pixel.

The order, ranges and rounding are mmsegmentation's (Apache-2.0):
https://github.com/open-mmlab/mmsegmentation/blob/db54ce7b98b99a555497e2fd51e2d3b7434e032f/mmseg/datasets/pipelines/transforms.py
As upstream, images are resized by OpenCV's bilinear, which is not antialiased (unlike `pixels.resize`),
and class maps by its nearest. Upstream works on BGR; the colour operations treat the channels alike
or go through HSV, so on RGB they give the same.
"""

# OpenCV's types do not tell which dtype comes out.
# mypy: disable-error-code="return-value"

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

import cv2
import numpy as np
from numpy.typing import NDArray

from goodtransfer.views import pixels
from goodtransfer.views.decode import Pixels
from goodtransfer.views.steps import Operation

Classes = NDArray[np.uint8]  # train id of each pixel (height, width)
Size = tuple[int, int]  # height, width

IGNORE = 255  # the train id of pixels that neither train nor count
# Upstream pads with 0 after normalising; in pixels, 0 is ImageNet's mean colour.
FILL = (124, 116, 104)

_MOST, _REDRAWS = 0.75, 10
_BRIGHTNESS, _FACTORS, _HUE = 32.0, (0.5, 1.5), 18


@dataclass(frozen=True)
class Drawn:
    """What is done to one image and its class map.

    Attributes:
        size: height and width that both are resized to.
        part: top, left, height and width of the crop.
        flip: whether it is turned left to right.
        colours: what is done to the image's colours, in order.
        padded: height and width that the crop is filled up to, below and to the right.
    """

    size: Size
    part: tuple[int, int, int, int]
    flip: bool
    colours: tuple[Operation, ...]
    padded: Size

    def image(self, image: Pixels) -> Pixels:
        """The view of the image, uint8 RGB (*padded, 3)."""
        made: Pixels = self._placed(resized(image, *self.size))
        for operation in self.colours:
            made = operation(made)
        return self._filled(made, FILL)

    def classes(self, classes: Classes) -> Classes:
        """The view of the class map, uint8 (*padded)."""
        return self._filled(self._placed(resized_classes(classes, *self.size)), (IGNORE,))

    def _placed(self, made: NDArray[np.uint8]) -> NDArray[np.uint8]:
        part = pixels.crop(made, *self.part)
        return pixels.flip(part) if self.flip else part

    def _filled(self, made: NDArray[np.uint8], value: tuple[int, ...]) -> NDArray[np.uint8]:
        below, right = (whole - side for whole, side in zip(self.padded, made.shape, strict=False))
        return cv2.copyMakeBorder(made, 0, below, 0, right, cv2.BORDER_CONSTANT, value=value)


@dataclass(frozen=True)
class SegmentationView:
    """A crop of a resized image and its class map, flipped or not, in other colours.

    A pure function of (seed, epoch, index) and the class map, since a crop that one class fills is
    drawn again. Parameters are drawn first (:meth:`draw`); the pixels follow.

    Attributes:
        crop: height and width of the view.
        scale: least and greatest ratio of the size that the image is resized to, to ``nominal``.
        nominal: height and width that the image is fitted in, in its own aspect, at ratio 1; None
            is its own size.
    """

    crop: Size = (512, 1024)
    scale: tuple[float, float] = (0.5, 2.0)
    nominal: Size | None = (1024, 2048)

    def __post_init__(self) -> None:
        if min(self.crop) < 1 or (self.nominal is not None and min(self.nominal) < 1):
            raise ValueError(
                "Expected `crop` and `nominal` to be (height, width) in pixels, but got "
                f"{self.crop} and {self.nominal}."
            )
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(
                f"Expected `scale` to be (least, greatest) ratio above 0, but got {self.scale}."
            )

    def __call__(
        self, image: Pixels, classes: Classes, *, seed: int = 0, epoch: int = 0, index: int = 0
    ) -> tuple[Pixels, Classes]:
        """The view: uint8 RGB (*crop, 3) and train ids uint8 (*crop).

        Args:
            image: uint8 RGB (H, W, 3).
            classes: train ids uint8 (H, W), 255 for pixels that do not count.
            seed: of the run.
            epoch: counted from 0.
            index: the image's number in its data set.
        """
        if image.shape[:2] != classes.shape:
            raise ValueError(
                f"Expected a class map of the image's size, but got {image.shape[:2]} and "
                f"{classes.shape} (height, width)."
            )
        drawn = self.draw(classes, seed=seed, epoch=epoch, index=index)
        return drawn.image(image), drawn.classes(classes)

    def draw(self, classes: Classes, *, seed: int, epoch: int, index: int) -> Drawn:
        """What is done to the image with this class map to make its view."""
        random = Random(f"{seed}/{epoch}/{index}")
        size = self._size(random, *classes.shape)
        part = self._part(random, resized_classes(classes, *size))
        flip = _coin(random)
        return Drawn(size, part, flip, tuple(_colours(random)), self.crop)

    def _size(self, random: Random, height: int, width: int) -> Size:
        ratio = _between(random, *self.scale)
        box = [int(side * ratio) for side in self.nominal or (height, width)]
        factor = min(max(box) / max(height, width), min(box) / min(height, width))
        return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))

    def _part(self, random: Random, classes: Classes) -> tuple[int, int, int, int]:
        """Top, left, height and width; after ten more draws whatever comes, as upstream."""
        part = self._somewhere(random, *classes.shape)
        for _ in range(_REDRAWS):
            if not dominated(pixels.crop(classes, *part)):
                break
            part = self._somewhere(random, *classes.shape)
        return part

    def _somewhere(self, random: Random, height: int, width: int) -> tuple[int, int, int, int]:
        h, w = min(self.crop[0], height), min(self.crop[1], width)
        top = int(random.random() * (height - h + 1))
        return top, int(random.random() * (width - w + 1)), h, w


def dominated(classes: Classes) -> bool:
    """Whether one class has three quarters of the pixels that count, or none counts."""
    counts = np.bincount(classes.ravel(), minlength=256)[:IGNORE]
    return bool(counts.max() >= _MOST * counts.sum())


def _colours(random: Random) -> Iterator[Operation]:
    """Each with probability one half; the contrast before or after saturation and hue."""

    def perhaps(function: Callable[..., Pixels], low: float, high: float) -> Iterator[Operation]:
        if _coin(random):
            yield Operation(function, (_between(random, low, high),))

    yield from perhaps(brightness, -_BRIGHTNESS, _BRIGHTNESS)
    contrast_first = _coin(random)
    if contrast_first:
        yield from perhaps(contrast, *_FACTORS)
    yield from perhaps(saturation, *_FACTORS)
    if _coin(random):  # whole steps, +18 never: upstream's randint leaves its upper end out
        yield Operation(hue, (int(random.random() * 2 * _HUE) - _HUE,))
    if not contrast_first:
        yield from perhaps(contrast, *_FACTORS)


def _coin(random: Random) -> bool:
    return random.random() < 0.5


def _between(random: Random, low: float, high: float) -> float:
    return low + (high - low) * random.random()


# --- Operations. Each maps a channel's 256 values and cuts fractions off, so a table gives its bits.


def resized(image: Pixels, height: int, width: int) -> Pixels:
    """OpenCV's bilinear, which looks at four pixels, however much smaller the image gets."""
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)


def resized_classes(classes: Classes, height: int, width: int) -> Classes:
    """The class of the nearest pixel, as OpenCV finds it."""
    return cv2.resize(classes, (width, height), interpolation=cv2.INTER_NEAREST)


def brightness(image: Pixels, offset: float) -> Pixels:
    """Add ``offset``, in steps of 255."""
    return cv2.LUT(image, _table(1.0, offset))


def contrast(image: Pixels, factor: float) -> Pixels:
    """Multiply by ``factor``; upstream calls it contrast, though black is its fixed point."""
    return cv2.LUT(image, _table(factor, 0.0))


def saturation(image: Pixels, factor: float) -> Pixels:
    """Multiply the saturation of 8-bit HSV."""
    return _in_hsv(image, 1, _table(factor, 0.0))


def hue(image: Pixels, steps: int) -> Pixels:
    """Turn the hue of 8-bit HSV by steps of two degrees, of which OpenCV has 180."""
    return _in_hsv(image, 0, ((np.arange(256) + steps) % 180).astype(np.uint8))


def _table(factor: float, offset: float) -> NDArray[np.uint8]:
    values = np.arange(256, dtype=np.float32) * factor + offset
    return values.clip(0, 255).astype(np.uint8)


def _in_hsv(image: Pixels, channel: int, table: NDArray[np.uint8]) -> Pixels:
    tables = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    tables[..., channel] = table
    hsv = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), tables)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
