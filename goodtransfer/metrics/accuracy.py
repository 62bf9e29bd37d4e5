"""Top-1 accuracy over all ranks, each labelled image once."""

import numpy as np
import torch
from torch import Tensor

from goodtransfer.metrics.images import ImageMetric, copies


class Accuracy(ImageMetric):
    """Top-1 of one or several classifiers on the same labelled images, in percent.

    An image that comes again counts once: a sampler repeats some where the images do not divide among
    the ranks. Of a loader that does not number its images all count. Images labelled -1 are left out.

    Args:
        classifiers: their number.

    >>> accuracy = Accuracy()
    >>> accuracy.update(torch.tensor([3, 1, 1]), torch.tensor([3, 0, 0]), index=torch.tensor([7, 8, 8]))
    >>> accuracy.compute()  # image 8 came twice
    tensor(50.)
    """

    images: list[Tensor]  # (n,) int64, -1 where unknown
    right: list[Tensor]  # (n, classifiers) uint8

    def __init__(self, classifiers: int = 1) -> None:
        super().__init__()
        self.classifiers = classifiers
        self.add_rows("images", torch.zeros(0, dtype=torch.long))
        self.add_rows("right", torch.zeros(0, classifiers, dtype=torch.uint8))

    def update(self, predicted: Tensor, label: Tensor, index: Tensor | None = None) -> None:
        """Classes (N, classifiers), or (N,) of one; label (N,); the images' numbers (N,)."""
        index = torch.full_like(label, -1) if index is None else index
        known = label >= 0
        right = predicted.reshape(len(label), self.classifiers) == label.unsqueeze(1)
        self.images.append(index[known].long())
        self.right.append(right[known].to(torch.uint8))

    def compute(self) -> Tensor:
        """Percent correct of each classifier, (classifiers,), of one (); NaN where no image had a label."""
        right, numbers = self.joined("right"), self.joined("images").cpu().numpy()
        unknown = -1 - np.arange(len(numbers))  # no two of them alike
        kept = torch.from_numpy(copies(np.where(numbers < 0, unknown, numbers)).kept)
        return 100 * right[kept.to(right.device)].sum(0) / len(kept)

    def take(self) -> Tensor | None:
        """The accuracies, (classifiers,), and a fresh start; None where no image had a label.

        To be called on all ranks, also on one that saw no image.
        """
        nothing = torch.zeros(0, dtype=torch.long, device=self.device)
        self.update(nothing, nothing)  # so that every rank takes part
        accuracy: Tensor = self.compute().reshape(-1)
        self.reset()
        return None if bool(accuracy.isnan().any()) else accuracy
