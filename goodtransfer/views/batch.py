"""The one thing that data modules and methods agree on: the order of a batch."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """Views of N images, with what is known of the images.

    Attributes:
        views: tuple of RGB tensors (N, 3, H, W), uint8 or float in [0, 1], not normalised.
        label: (N,) integers, -1 for an image without label; or None.
        index: (N,) integers, the image's number in its data set; or None.

    >>> import torch
    >>> views, label, index = Batch((torch.zeros(2, 3, 8, 8),), torch.tensor([4, -1]))
    >>> len(views), label, index
    (1, tensor([ 4, -1]), None)
    """

    views: tuple[Tensor, ...]
    label: Tensor | None = None
    index: Tensor | None = None  # type: ignore[assignment]  # tuple.index is not missed

    def labels_for(self, who: str, num_classes: int | None = None) -> Tensor:
        """The labels.

        Args:
            who: needs them, for the message.
            num_classes: that they are of; None for any.

        Raises:
            ValueError: where there are none, or those of another number of classes, which a GPU would
                tell by an assertion.
        """
        if self.label is None:
            raise ValueError(
                f"Expected labels for {who}, (N,) integers, but the loader gives none: batches are "
                "((view, ...), label, index)."
            )
        if num_classes is not None and len(self.label):
            low, high = torch.stack(self.label.aminmax()).tolist()  # one wait for the GPU
            if not -1 <= low <= high < num_classes:
                raise ValueError(
                    f"Expected labels from 0 to {num_classes - 1}, or -1 for none, but a batch has "
                    f"{low} to {high}: count classes from 0, or pass {who}(num_classes=...)."
                )
        return self.label


def as_batch(batch: Any) -> Batch:
    """Any ``((view, ...), label, index)`` sequence as a :class:`Batch`; label and index optional.

    So torchvision's ImageFolder with a two-crop transform (``[[v1, v2], y]``), one view
    (``[v, y]``), and lightly's loaders (whose third entry is file names) work unchanged.

    What is not (N,) integers, such as several attributes of an image, is no label, nor an index.

    Args:
        batch: such a sequence; a pair of views or one view by itself, (N, 3, H, W); or a Batch.

    Raises:
        ValueError: for anything else.

    >>> import torch
    >>> first, second = torch.zeros(2, 4, 3, 8, 8)
    >>> batch = as_batch([[first, second], torch.arange(4)])
    >>> len(batch.views), batch.label, batch.index
    (2, tensor([0, 1, 2, 3]), None)
    """
    if isinstance(batch, Tensor):
        return Batch((batch,))
    if not isinstance(batch, Sequence) or not batch:
        raise ValueError(
            "Expected a batch ((view, ...), label, index), with label and index optional, "
            f"but got {type(batch).__name__}."
        )
    views, *rest = batch
    if isinstance(views, Tensor) and len(rest) == 1 and _is_images(rest[0]):
        views, rest = (views, rest[0]), []  # a bare pair of views
    views = (views,) if isinstance(views, Tensor) else tuple(views)
    label, index = (_integers(r, views) for r in (*rest, None, None)[:2])
    return Batch(views, label, index)


def check_range(images: Tensor) -> None:
    """Refuse float images outside [0, 1], which were normalised already."""
    low, high = float(images.min()), float(images.max())
    if low < 0 or high > 1:
        raise ValueError(
            f"Expected images in [0, 1] or uint8, but the first batch spans [{low:.2f}, {high:.2f}]: "
            "the encoder normalises by itself, so remove Normalize from your transform, or pass "
            "encoder=load_encoder(..., normalize=None)."
        )


def _integers(x: Any, views: tuple[Tensor, ...]) -> Tensor | None:
    """An integer for each image, or nothing."""
    whole = isinstance(x, Tensor) and not (x.is_floating_point() or x.dtype == torch.bool)
    return x if whole and views and x.shape == (len(views[0]),) else None


def _is_images(x: Any) -> bool:
    return isinstance(x, Tensor) and x.ndim == 4
