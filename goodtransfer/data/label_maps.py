"""The files that tell the class of each pixel: numbers in a PNG, read as train ids."""

import struct
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from goodtransfer.foreign import content as content_of
from goodtransfer.views import MAX_PIXELS, ImageReadError
from goodtransfer.views.segmentation import Classes

_UNKNOWN = 254  # in the table: no class has this number


class LabelReader:
    """Reads a label file as train ids uint8 (H, W).

    Args:
        channels: of the file; the class is in the last, as OpenCV orders them.
        bits: of each channel.
        train_ids: train id of every number that is known.
        max_pixels: of a file that is decoded.
    """

    def __init__(
        self, channels: int, bits: int, train_ids: Mapping[int, int], max_pixels: int = MAX_PIXELS
    ) -> None:
        self.channels, self.bits, self.max_pixels = channels, bits, max_pixels
        self.table = np.full(2**bits, _UNKNOWN, dtype=np.uint8)
        self.table[list(train_ids)] = list(train_ids.values())

    def __call__(self, path: str) -> Classes:
        numbers = self._pixels(path)[..., -1]
        classes: Classes = self.table[numbers]
        unknown = np.unique(numbers[classes == _UNKNOWN])
        if len(unknown):
            raise ValueError(
                f"Expected the numbers of known classes in the label {path}, but found "
                f"{', '.join(map(str, unknown[:5]))}: replace the file by the data set's own."
            )
        return classes

    def _pixels(self, path: str) -> NDArray[Any]:
        """All channels (H, W, C) of a PNG, unchanged."""
        try:
            content = content_of(path, 8 * self.max_pixels + 2**26)
        except (OSError, ValueError) as error:
            raise ImageReadError(
                f"Expected a label at {path}, but cannot read it: {error}."
            ) from error
        if content[:8] != b"\x89PNG\r\n\x1a\n" or len(content) < 33:
            raise ImageReadError(f"Expected a label at {path}, but it is no PNG: replace it.")
        width, height = struct.unpack(">2I", content[16:24])
        if width * height > self.max_pixels:
            raise ImageReadError(
                f"Expected a label of at most {self.max_pixels:,} pixels at {path}, but it claims "
                f"{width} x {height}: remove it, or pass a higher max_pixels if you trust it."
            )
        # PIL would drop the lower byte of 16-bit channels, in which the classes are.
        try:
            made = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
        except cv2.error:  # of damage, and of more pixels than OpenCV takes
            made = None
        if made is None or made.shape[:2] != (height, width):
            raise ImageReadError(
                f"Expected a label at {path}, but its PNG is damaged: replace the file."
            )
        pixels: NDArray[Any] = made.reshape(height, width, -1)
        kind = pixels.shape[2], 8 * pixels.itemsize
        if kind != (self.channels, self.bits):
            raise ValueError(
                f"Expected a label of {self.channels} x {self.bits} bits a pixel at {path}, but it "
                f"has {kind[0]} x {kind[1]}: replace it by the data set's own file, unconverted."
            )
        return pixels
