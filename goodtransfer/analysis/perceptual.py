"""How far a rebuilt image is from the original: LPIPS, PSNR, SSIM, and who is nearer (protocol 9)."""

import math
from collections.abc import Sequence
from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

_Z = 1.959964  # standard deviations to either side of 95 % of a normal distribution


class Distances(NamedTuple):
    """One of each image (N,), 0 between equal images."""

    calibrated: Tensor
    uncalibrated: Tensor


class LPIPS:
    """LPIPS v0.1 on SqueezeNet 1.1, whose weights torchvision downloads once.

    Calibrated, its seven taps' squared differences are weighted by what people judged; values stay
    well below 1. Uncalibrated they are summed as they are, each tap's sum over channels in [0, 2]. The
    paper's 5.59 (MoCo) and 6.43 (supervised) are in the range of the latter, but it does not say.

    Args:
        device: where the networks are, and the images that they are given.

    Raises:
        FileNotFoundError: where the weights are not there and cannot be downloaded.
    """

    def __init__(self, device: str | torch.device = "cpu") -> None:
        try:
            metric = LearnedPerceptualImagePatchSimilarity(net_type="squeeze")
        except (OSError, RuntimeError) as error:  # no network, or half a file
            raise FileNotFoundError(
                "Expected torchvision's SqueezeNet 1.1 weights for LPIPS in "
                f"{torch.hub.get_dir()}/checkpoints, or a network to download them, but got "
                f"{error}: put squeezenet1_1-b8a52dc0.pth there, or set TORCH_HOME."
            ) from error
        self._weighted = metric.net.to(device).requires_grad_(False)
        self._plain = deepcopy(self._weighted)
        for lin in self._plain.lins:
            for weights in lin.parameters():
                nn.init.ones_(weights)

    @torch.no_grad()
    def __call__(self, images: Tensor, others: Tensor) -> Distances:
        """Distances between images.

        Args:
            images: RGB (N, 3, H, W), uint8 or float in [0, 1], on the device.
            others: the same.
        """
        pairs = as_float(images), as_float(others)
        calibrated, uncalibrated = (
            net(*pairs, normalize=True).flatten() for net in (self._weighted, self._plain)
        )
        return Distances(calibrated, uncalibrated)


def scores(picture: Tensor, original: Tensor, lpips: LPIPS | None) -> dict[str, float]:
    """What a rebuilt image (3, H, W) is worth: lpips, lpips_uncalibrated, psnr in dB, ssim.

    The first two need ``lpips``; smaller is nearer. Of the others larger is.
    """
    pair = as_float(picture)[None], as_float(original)[None]
    found = {}
    if lpips is not None:
        distances = lpips(*pair)
        found["lpips"] = float(distances.calibrated)
        found["lpips_uncalibrated"] = float(distances.uncalibrated)
    found["psnr"] = float(peak_signal_noise_ratio(*pair, data_range=1.0))
    found["ssim"] = float(structural_similarity_index_measure(*pair, data_range=1.0))  # type: ignore[arg-type]
    return found


class WinRate(NamedTuple):
    """Share of images on which A is nearer, and the interval it is in with 95 % confidence."""

    rate: float
    low: float
    high: float
    images: int


def win_rate(a: Sequence[float], b: Sequence[float]) -> WinRate:
    """How often A's distance is the smaller one; a tie is half a win (Wilson's interval).

    Args:
        a: distance of each image for A, in any unit.
        b: the same for B.

    Raises:
        ValueError: for no images, or other ones for B.

    >>> found = win_rate([0.1, 0.2, 0.3, 0.4], [0.2, 0.3, 0.4, 0.3])
    >>> found.rate, round(found.low, 2), round(found.high, 2), found.images
    (0.75, 0.3, 0.95, 4)
    """
    n = len(a)
    if n == 0 or len(b) != n:
        raise ValueError(
            f"Expected a distance of each image for A and for B, but got {n} and {len(b)}."
        )
    wins = sum((x < y) + 0.5 * (x == y) for x, y in zip(a, b, strict=True))
    rate, z = wins / n, _Z**2 / n
    middle = (rate + z / 2) / (1 + z)
    half = _Z * math.sqrt(rate * (1 - rate) / n + z / (4 * n)) / (1 + z)
    return WinRate(rate, max(0.0, middle - half), min(1.0, middle + half), n)


def as_float(images: Tensor) -> Tensor:
    """RGB in uint8 or float [0, 1], as the latter."""
    return images if images.is_floating_point() else images / 255
