"""What the metrics of images share: rows gathered over the ranks, each image counted once."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric


class ImageMetric(Metric):
    """A metric that keeps rows, and makes its numbers of all of them at the end."""

    full_state_update = False
    is_differentiable = False

    def __init__(self) -> None:
        super().__init__()
        self._empty: dict[str, Tensor] = {}

    def add_rows(self, name: str, empty: Tensor) -> None:
        """Add a state of rows such as ``empty`` (0, ...) has."""
        self.add_state(name, [], "cat")
        self._empty[name] = empty

    def joined(self, name: str) -> Tensor:
        """All rows so far: of all ranks where synchronised."""
        state = getattr(self, name)
        parts = [state] if isinstance(state, Tensor) else list(state)
        device = parts[0].device if parts else self.device
        return torch.cat([self._empty[name].to(device), *parts])

    def seen(self, name: str) -> Tensor:
        """As :meth:`joined`.

        Raises:
            RuntimeError: when no rank has seen an image.
        """
        rows = self.joined(name)
        if len(rows) == 0:
            raise RuntimeError(
                "Expected images to evaluate, but no rank has seen any: call `update` first."
            )
        return rows

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """As torchmetrics', where a rank that saw no image joins with no rows.

        An empty list would join with one-dimensional floats, which stalls the others.
        """
        for name in self._empty:
            setattr(self, name, [self.joined(name)])
        super().sync(*args, **kwargs)


class Copies(NamedTuple):
    """Images that came, some of them more than once.

    Attributes:
        ids: each number once, rising.
        first: its first copy, among the copies.
        images: of every row, the place of its image in ``ids``.
        kept: the rows of first copies, image by image in the order of ``ids``.
    """

    ids: NDArray[np.int64]
    first: NDArray[np.int64]
    images: NDArray[np.int64]
    kept: NDArray[np.int64]


def copies(numbers: NDArray[np.int64], starts: NDArray[np.bool_] | None = None) -> Copies:
    """Which rows count, so that an image counts once however many ranks saw it.

    Args:
        numbers: (n,); of the rows that start an image, its number.
        starts: which rows (n,) start an image, whose other rows follow; None where all do.

    >>> copies(np.array([7, 3, 7])).kept
    array([1, 0])
    """
    starts = np.ones(len(numbers), np.bool_) if starts is None else starts
    copy = np.cumsum(starts) - 1
    ids, first, inverse = np.unique(numbers[starts], return_index=True, return_inverse=True)
    images = inverse[copy]
    kept = np.flatnonzero(first[images] == copy)
    return Copies(ids, first, images, kept[np.argsort(images[kept], kind="stable")])


def check_columns(what: str, columns: Mapping[str, Any], num_classes: int) -> None:
    """Boxes (n, 4), everything else (n,), labels in range.

    Raises:
        ValueError: naming ``what`` they are of.
    """
    shapes = {name: tuple(column.shape) for name, column in columns.items()}
    labels, rows = columns["labels"], shapes["labels"]
    if len(rows) != 1 or any(
        shape != ((*rows, 4) if name == "boxes" else rows) for name, shape in shapes.items()
    ):
        raise ValueError(
            f"Expected boxes (n, 4) and everything else (n,) in {what}, but got {shapes}: "
            "give every row a value in each."
        )
    if rows[0] and not 0 <= labels.min() <= labels.max() < num_classes:
        raise ValueError(
            f"Expected labels from 0 to {num_classes - 1} in {what}, but got "
            f"{int(labels.min())} to {int(labels.max())}: count classes from 0, without background."
        )


def pairs(predictions: Any, targets: Any) -> Any:
    """One prediction and one target of every image.

    Raises:
        ValueError: where there are more of one than of the other.
    """
    if len(predictions) != len(targets):
        raise ValueError(
            "Expected one prediction and one target for every image, but got "
            f"{len(predictions)} predictions and {len(targets)} targets."
        )
    return zip(predictions, targets, strict=True)
