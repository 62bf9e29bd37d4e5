"""COCO's polygons and run lengths, held to what pycocotools takes for granted of them.

Its C code reads past the end of run lengths that are cut, never ends on some that are damaged, and walks
along every edge of a polygon, however far it leads.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as rle

from goodtransfer.foreign import shown

SIDE = 2**16
"""No image has a side as long as this; a JPEG cannot."""

_OUTLINE = 2**22  # pixels along one polygon; pycocotools takes forty bytes for each


class FaultError(ValueError):
    """What is wrong with an entry of a file; the message is the middle of a sentence."""


def check_polygon(polygon: Sequence[float], height: int, width: int) -> None:
    """Refuse a polygon (x, y, x, y, ...) that leads far from its image, or to and fro without end.

    Raises:
        FaultError: naming it.
        TypeError, ValueError: for what are no numbers.
    """
    limit = 2 * max(height, width)
    near = -limit <= min(polygon) <= max(polygon) <= limit
    if near and math.isfinite(sum(polygon)):
        if len(polygon) * limit <= _OUTLINE:  # nearly always, and quickly told
            return
        points = np.asarray(polygon, np.float64)[: len(polygon) // 2 * 2].reshape(-1, 2)
        if np.abs(points - np.roll(points, 1, 0)).max(1).sum() <= _OUTLINE:
            return
    raise FaultError(f"to have polygons in its image, but found {shown(polygon)}")


def compressed(segmentation: Mapping[str, Any], height: int, width: int) -> Any:
    """Run lengths, compressed or not, as pycocotools compresses them.

    Raises:
        FaultError: for runs that are not those of an image of this size.
        LookupError, TypeError, ValueError: for values of other types.
    """
    counts = segmentation["counts"]
    counts = counts.decode("ascii") if isinstance(counts, bytes) else counts
    runs = np.asarray(_uncompressed(counts) if isinstance(counts, str) else counts)
    whole = runs.ndim == 1 and runs.dtype.kind == "i" and len(runs) > 0
    # pycocotools leaves what the runs do not cover as it is in memory.
    if not whole or runs.min() < 0 or sum(runs.tolist()) != height * width:
        raise FaultError(
            f"to have run lengths of {height} x {width} pixels, but found {shown(segmentation)}"
        )
    if list(segmentation["size"]) != [height, width]:
        raise FaultError(
            f"to have the size of its image, {height} x {width}, but found "
            f"{shown(segmentation['size'])}"
        )
    return rle.frPyObjects({"size": [height, width], "counts": runs}, height, width)


def _uncompressed(text: str) -> list[int]:
    """COCO's compressed run lengths.

    Five bits a character, the lowest first; the sixth says that more follow. From the fourth on, a
    run is given as what it is longer than the last but one.
    """
    runs: list[int] = []
    value = shift = 0
    for code in text.encode("ascii"):
        bits = code - 48
        if not 0 <= bits < 64 or shift > 35:  # no run of an image takes more than seven
            return []
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits & 16) << shift - 4  # the highest bit is the sign
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs
