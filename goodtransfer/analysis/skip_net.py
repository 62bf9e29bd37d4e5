"""The network of the deep image prior: an hourglass with skip connections (protocol 8).

Its convolutions beside a change of size are run together with it, which takes half the time and
gives the same maps up to rounding.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SkipNet(nn.Module):
    """Noise (N, depth, H, W) to RGB (N, 3, H, W), not limited to any range.

    Parameters come in the order of the authors' network, with torch's own initialisation: 2,606,763
    of them at the defaults. Batch norm always takes the statistics of the images at hand.
    https://github.com/nanxuanzhao/Good_transfer/blob/601d566/code_reconstruction_DIP/skip.py

    Args:
        depth: channels of the noise.
        channels: of each scale, from the finest; every scale has half the size of the one before.
        skip: channels that pass by what is deeper, at each scale.
        kernels: side of each scale's convolutions.
    """

    def __init__(
        self,
        depth: int = 32,
        channels: Sequence[int] = (16, 32, 64, 128, 128, 128),
        skip: int = 4,
        kernels: Sequence[int] = (7, 7, 5, 5, 3, 3),
    ) -> None:
        super().__init__()
        self.depth, self.factor = depth, 2 ** len(channels)
        self.hourglass = _Scale(depth, skip, channels, kernels)
        self.rgb = nn.Conv2d(channels[0], 3, 1)

    def noise(self, height: int, width: int) -> Tensor:
        """Draw the input (1, depth, H, W) for an image of that size: from [0, 0.1), 256 px for 224.

        Raises:
            ValueError: for an image that leaves the coarsest scale a single position.
        """
        if min(height, width) <= self.factor:
            raise ValueError(
                f"Expected an image of more than {self.factor} pixels a side, since batch norm needs "
                f"more than one position at the coarsest scale, but got {height} x {width}: take a "
                "larger image."
            )
        sides = (-(-side // self.factor) * self.factor for side in (height, width))
        return 0.1 * torch.rand(1, self.depth, *sides)

    def forward(self, noise: Tensor) -> Tensor:
        image: Tensor = self.rgb(self.hourglass(noise))
        return image


class _Scale(nn.Module):
    """One scale and, inside it, all that are coarser: (N, in, H, W) to (N, channels[0], H, W)."""

    def __init__(
        self, entering: int, skip: int, channels: Sequence[int], kernels: Sequence[int]
    ) -> None:
        super().__init__()
        (width, *coarser), (kernel, *further) = channels, kernels
        self.passing = _block(nn.Conv2d(entering, skip, 1))
        self.down = _block(_Halving(entering, width, kernel, padding=kernel // 2))
        self.same = _block(nn.Conv2d(width, width, kernel, padding=kernel // 2))
        self.deeper = _Scale(width, skip, coarser, further) if coarser else nn.Identity()
        self.merge = _Doubling(skip, coarser[0] if coarser else width, width, kernel)
        self.merged = nn.Sequential(_norm(width), _act())
        self.mix = _block(nn.Conv2d(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        deep = self.deeper(self.same(self.down(x)))
        mixed: Tensor = self.mix(self.merged(self.merge(self.passing(x), deep)))
        return mixed


class _Halving(nn.Conv2d):
    """A convolution followed by 2 x 2 average pooling, as one of stride 2."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, _widened(self.weight), self.bias, stride=2, padding=self.padding)


class _Doubling(nn.Module):
    """Fine maps beside coarse ones at twice their size (nearest), batch norm, and a convolution.

    A map repeated 2 x 2 has the mean and variance it had before, so the norm comes before the
    repetition; and repetition followed by a convolution is one transposed convolution of stride 2.
    """

    def __init__(self, fine: int, coarse: int, width: int, kernel: int) -> None:
        super().__init__()
        self.fine, self.padding = fine, kernel // 2
        self.norm = _norm(fine + coarse)
        self.conv = nn.Conv2d(fine + coarse, width, kernel)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        n, norm, conv = self.fine, self.norm, self.conv
        fine = F.batch_norm(fine, None, None, norm.weight[:n], norm.bias[:n], training=True)
        coarse = F.batch_norm(coarse, None, None, norm.weight[n:], norm.bias[n:], training=True)
        kernel = 4 * _widened(conv.weight[:, n:]).flip(2, 3).transpose(0, 1)
        doubled = F.conv_transpose2d(coarse, kernel, stride=2, padding=self.padding)
        return doubled + F.conv2d(fine, conv.weight[:, :n], conv.bias, padding=self.padding)


def _widened(kernel: Tensor) -> Tensor:
    """The kernel (out, in, k, k) spread by a 2 x 2 average, (out, in, k + 1, k + 1)."""
    return F.avg_pool2d(F.pad(kernel, (1, 1, 1, 1)), 2, stride=1)


def _block(conv: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(conv, _norm(conv.out_channels), _act())


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, track_running_stats=False)


def _act() -> nn.LeakyReLU:
    return nn.LeakyReLU(0.2, inplace=True)
