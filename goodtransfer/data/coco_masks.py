"""Masks as COCO's files have them, and packed; polygons and run lengths go by pycocotools."""

import math
import warnings
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from pycocotools import mask as rle
from torch import Tensor


class FaultError(ValueError):
    """What is wrong with an entry of a file; the message is the middle of a sentence."""


def pack(segmentation: Any, height: int, width: int) -> bytes:
    """A mask as pycocotools' compressed run lengths; empty for one without pixels.

    Args:
        segmentation: polygons [x, y, x, y, ...], or run lengths, compressed or not.
        height: of the image.
        width: of the image.

    Raises:
        FaultError: also where pycocotools would read beyond the end, or fill the memory.
        LookupError, TypeError, ValueError: for values of other types.
    """
    if isinstance(segmentation, dict):
        mask = _of_runs(segmentation, height, width)
    elif isinstance(segmentation, list):
        # As detectron2 (v0.6, data/datasets/coco.py): fewer than three points are no polygon.
        polygons = [p for p in segmentation if len(p) >= 6 and len(p) % 2 == 0]
        if not polygons:
            return b""
        limit = 2 * max(height, width)
        for polygon in polygons:
            # pycocotools keeps every pixel along an edge, however far it leads.
            near = -limit <= min(polygon) <= max(polygon) <= limit
            if not (near and math.isfinite(sum(polygon))):
                raise FaultError(f"to have polygons in its image, but found {polygon!r:.200}")
        mask = rle.merge(rle.frPyObjects(polygons, height, width))
    else:
        raise FaultError(f"to have polygons or run lengths, but found {segmentation!r:.200}")
    return cast(bytes, mask["counts"]) if rle.area(mask) else b""


def unpack(outlines: Sequence[bytes], height: int, width: int) -> Tensor:
    """The masks that :func:`pack` packed, bool (n, height, width)."""
    masks = torch.zeros(len(outlines), height, width, dtype=torch.bool)
    filled = [number for number, outline in enumerate(outlines) if outline]
    if filled:
        packed = [{"size": [height, width], "counts": outlines[number]} for number in filled]
        with warnings.catch_warnings():
            # NumPy 2 wants `__array__` to take `copy`, which pycocotools 2.0.11 does not know of.
            warnings.simplefilter("ignore", DeprecationWarning)
            pixels = rle.decode(packed)  # (height, width, n)
        masks[filled] = torch.from_numpy(pixels).permute(2, 0, 1).bool()
    return masks


def _of_runs(segmentation: dict[str, Any], height: int, width: int) -> Any:
    counts = segmentation["counts"]
    runs = np.asarray(_uncompressed(counts) if isinstance(counts, str) else counts)
    whole = runs.ndim == 1 and runs.dtype.kind == "i" and len(runs) > 0
    # pycocotools leaves what the runs do not cover as it is in memory.
    if not whole or runs.min() < 0 or sum(runs.tolist()) != height * width:
        raise FaultError(
            f"to have run lengths of {height} x {width} pixels, but found {segmentation!r:.200}"
        )
    if segmentation["size"] != [height, width]:
        raise FaultError(
            f"to have the size of its image, {height} x {width}, but found {segmentation['size']!r}"
        )
    return rle.frPyObjects({"size": [height, width], "counts": runs}, height, width)


def _uncompressed(text: str) -> list[int]:
    """COCO's compressed run lengths, read here since pycocotools reads past the end of cut ones.

    Five bits a character, the lowest first; the sixth says that more follow. From the fourth on, a
    run is given as what it is longer than the last but one.
    """
    runs: list[int] = []
    value = shift = 0
    for code in text.encode("ascii"):
        bits = code - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits & 16) << shift - 4  # the highest bit is the sign
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs
