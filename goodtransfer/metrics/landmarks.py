"""Error of landmarks in percent of the distance between the eyes (protocol 6.3).

Source of the formula: jamt9000/DVE and cvl-umass/ContrastLandmark, ``model/metric.py``; both take a
mean over points, then over images.

Shapes: N = faces, K = points of a face, as x, y.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from goodtransfer.metrics.images import ImageMetric, copies

EYES = (0, 1)  # MAFL's points of left and right eye


def inter_ocular_error(predicted: Tensor, true: Tensor, eyes: tuple[int, int] = EYES) -> Tensor:
    """Mean distance of the points, in percent of the distance between the true eyes: (N,).

    Args:
        predicted: (N, K, 2), in the unit of ``true``, whichever that is.
        true: (N, K, 2).
        eyes: the numbers of the two points.

    Raises:
        ValueError: for other shapes, or a face whose eyes have no distance.

    >>> true = torch.tensor([[[0.0, 0], [10, 0], [5, 5]]])
    >>> inter_ocular_error(true + torch.tensor([3.0, 4]), true)
    tensor([50.])
    """
    if predicted.shape != true.shape or true.ndim != 3 or true.shape[2] != 2:
        raise ValueError(
            "Expected predicted and true points (N, K, 2), but got "
            f"{tuple(predicted.shape)} and {tuple(true.shape)}."
        )
    left, right = true[:, eyes[0]], true[:, eyes[1]]
    apart = (left - right).norm(dim=1)
    if not (apart > 0).all():
        face = int((apart > 0).int().argmin())
        raise ValueError(
            f"Expected eyes some distance apart, but points {eyes[0]} and {eyes[1]} of face {face} of "
            f"{len(true)} are {left[face].tolist()} and {right[face].tolist()}: correct its "
            "landmarks, or pass the numbers of the two points that are the eyes."
        )
    error: Tensor = 100 * (predicted - true).norm(dim=2).mean(1) / apart
    return error


def mean_shape(landmarks: Tensor) -> Tensor:
    """The mean of faces (N, K, 2), point by point: (K, 2). Predicted for every face, it is the floor.

    >>> mean_shape(torch.tensor([[[0.0, 0], [10, 0]], [[2, 4], [10, 2]]]))
    tensor([[ 1.,  2.],
            [10.,  1.]])
    """
    return landmarks.mean(0)


class LandmarkError(ImageMetric):
    """:func:`inter_ocular_error`, averaged over the images of all ranks, in percent.

    An image that comes again counts once: a sampler repeats some where the images do not divide among
    the ranks.

    Args:
        eyes: the numbers of the two points.

    Raises:
        ValueError: for an update whose points or numbers do not fit.
        RuntimeError: for the error of no image.

    Eyes 10 apart, and two faces, of which one is told exactly and one is 5 off:

    >>> true = torch.tensor([[0.0, 0.0], [10.0, 0.0]]).expand(2, 2, 2)
    >>> off = torch.tensor([[[0.0, 0.0]], [[3.0, 4.0]]])
    >>> error = LandmarkError()
    >>> error.update(true + off, true, image_id=[0, 1])
    >>> error.compute()
    tensor(25.)
    """

    errors: list[Tensor]  # (n,) float32
    images: list[Tensor]  # (n,) int64
    higher_is_better = False

    def __init__(self, eyes: tuple[int, int] = EYES) -> None:
        super().__init__()
        self.eyes = eyes
        self.add_rows("errors", torch.zeros(0))
        self.add_rows("images", torch.zeros(0, dtype=torch.long))

    def update(self, predicted: Tensor, true: Tensor, image_id: Tensor | Sequence[int]) -> None:
        """Add faces.

        Args:
            predicted: points (N, K, 2), in the unit of ``true``, whichever that is.
            true: points (N, K, 2).
            image_id: the images' numbers (N,).

        Raises:
            ValueError: for shapes that do not fit, or a face whose eyes have no distance.
        """
        images = torch.as_tensor(image_id, dtype=torch.long, device=self.device)
        errors = inter_ocular_error(predicted.float(), true.float(), self.eyes).to(self.device)
        if images.shape != errors.shape:
            raise ValueError(
                f"Expected `image_id` to have a number for each of {len(errors)} faces, but got "
                f"{tuple(images.shape)}."
            )
        self.errors.append(errors)
        self.images.append(images)

    def compute(self) -> Tensor:
        """Percent of the inter-ocular distance, 0-d float32.

        Raises:
            RuntimeError: when no rank has seen an image.
        """
        errors, images = self.seen("errors"), self.seen("images")
        kept = torch.from_numpy(copies(images.cpu().numpy()).kept)
        return errors[kept.to(errors.device)].mean()
