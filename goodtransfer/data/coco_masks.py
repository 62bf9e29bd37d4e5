"""Masks as COCO's files have them, and packed: polygons, and pycocotools' run lengths, as bytes."""

import warnings
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as rle
from torch import Tensor

from goodtransfer.foreign import shown
from goodtransfer.run_lengths import FaultError, check_polygon, compressed

# A packed polygon begins with NaN, which run lengths, being text, never do.
_BEGINS = np.array([np.nan])


def pack(segmentation: Any, height: int, width: int) -> bytes:
    """A mask as its file has it: polygons, or compressed run lengths; empty where it has neither.

    Args:
        segmentation: polygons [x, y, x, y, ...], or run lengths, compressed or not.
        height: of the image.
        width: of the image.

    Raises:
        FaultError: also where pycocotools would read beyond the end, or fill the memory.
        LookupError, TypeError, ValueError: for values of other types.
    """
    if isinstance(segmentation, dict):
        return _counts(compressed(segmentation, height, width))
    if isinstance(segmentation, list):
        # As detectron2 (v0.6, data/datasets/coco.py): fewer than three points are no polygon.
        polygons = [p for p in segmentation if len(p) >= 6 and len(p) % 2 == 0]
        for polygon in polygons:
            check_polygon(polygon, height, width)
        return b"".join(np.append(_BEGINS, polygon).tobytes() for polygon in polygons)
    raise FaultError(f"to have polygons or run lengths, but found {shown(segmentation)}")


def polygons_of(outline: bytes) -> list[NDArray[np.float64]]:
    """The polygons (x, y, x, y, ...) that :func:`pack` packed; none of run lengths."""
    if not outline.startswith(_BEGINS.tobytes()):
        return []
    flat = np.frombuffer(outline)
    starts = np.flatnonzero(np.isnan(flat))
    return [polygon[1:].copy() for polygon in np.split(flat, starts[1:])]


def in_runs(outline: bytes, height: int, width: int) -> bytes:
    """A packed mask as compressed run lengths, whatever it was; empty for one without pixels."""
    polygons = polygons_of(outline)
    return _counts(rle.merge(rle.frPyObjects(polygons, height, width))) if polygons else outline


def unpack(outlines: Sequence[bytes], height: int, width: int) -> Tensor:
    """Packed masks, bool (n, height, width)."""
    masks = torch.zeros(len(outlines), height, width, dtype=torch.bool)
    runs = [in_runs(outline, height, width) for outline in outlines]
    filled = [number for number, counts in enumerate(runs) if counts]
    if filled:
        packed = [{"size": [height, width], "counts": runs[number]} for number in filled]
        with warnings.catch_warnings():
            # NumPy 2 wants `__array__` to take `copy`, which pycocotools 2.0.11 does not know of.
            warnings.simplefilter("ignore", DeprecationWarning)
            pixels = rle.decode(packed)  # (height, width, n)
        masks[filled] = torch.from_numpy(pixels).permute(2, 0, 1).bool()
    return masks


def _counts(mask: Any) -> bytes:
    return cast(bytes, mask["counts"]) if rle.area(mask) else b""
