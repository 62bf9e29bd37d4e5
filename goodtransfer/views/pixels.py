"""The operations of the augmentations on uint8 RGB pixels (H, W, 3), for given parameters.

Each gives what torchvision gives on a PIL image, in a fraction of the time: to within 1/255 on average
for colours and above 48 dB for resizing and blur, on every photo; the tests compare them.
"""

import math

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from goodtransfer.views.decode import Pixels

cv2.setNumThreads(0)  # a loader has processes; threads within them would only wait for each other

# PIL truncates where OpenCV rounds. Not a whole half, so that whole numbers stay what they are.
_TRUNCATE = -0.499


def resize(image: Pixels, height: int, width: int) -> Pixels:
    """Bilinear and antialiased, as PIL: the filter grows with the reduction."""
    source = torch.from_numpy(image).permute(2, 0, 1)[None]
    target = torch.empty((height, width, 3), dtype=torch.uint8)
    # F.interpolate(antialias=True) calls this, but returns planes, which everything below would have
    # to interleave again.
    torch.ops.aten._upsample_bilinear2d_aa.out(
        source, [height, width], False, None, None, out=target.permute(2, 0, 1)[None]
    )
    return target.numpy()


def crop(image: Pixels, top: int, left: int, height: int, width: int) -> Pixels:
    """A part of the image; not a copy."""
    return image[top : top + height, left : left + width]


def brightness(image: Pixels, factor: float) -> Pixels:
    """Blend with black: 0 is black, 1 the image."""
    return cv2.convertScaleAbs(image, alpha=factor, beta=_TRUNCATE)


def contrast(image: Pixels, factor: float) -> Pixels:
    """Blend with the image's mean grey."""
    mean = math.floor(cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0] + 0.5)
    return cv2.addWeighted(image, factor, image, 0.0, mean * (1 - factor) + _TRUNCATE)


def saturation(image: Pixels, factor: float) -> Pixels:
    """Blend with the grey image."""
    grey = grayscale(image)
    return cv2.addWeighted(image, factor, grey, 1 - factor, _TRUNCATE, dst=grey)


def hue(image: Pixels, shift: float) -> Pixels:
    """Turn the hue by ``shift``, in turns from -0.5 to 0.5.

    A byte of hue is the step of both libraries. PIL truncates it to 255 steps a turn where OpenCV
    rounds to 256: on average that is one step less, after which photos differ by 0.15 of 255 and none
    by more than 0.7. A flat area of a pure colour may be a step off, which is 2 of 255.
    """
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    turn = np.zeros(hsv.shape[1:], dtype=np.uint8)  # a row, which is added faster than a column
    turn[:, 0] = (int(shift * 255) - 1) % 256
    np.add(hsv, turn, out=hsv)  # on bytes, so a hue above 255 begins at 0 again
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL, dst=hsv)


def grayscale(image: Pixels) -> Pixels:
    """Grey, in three equal channels."""
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def blur(image: Pixels, sigma: float) -> Pixels:
    """PIL's GaussianBlur(radius=sigma): three extended boxes, here as the one kernel they make.

    PIL repeats the border anew for each box, so the outermost few pixels differ a little.
    """
    kernel = box_kernel(sigma)
    return cv2.sepFilter2D(image, -1, kernel, kernel, borderType=cv2.BORDER_REPLICATE)


def gaussian_blur(image: Pixels, kernel_size: int, sigma: float) -> Pixels:
    """Torchvision's gaussian_blur: a sampled Gaussian, cut off and mirrored at the borders."""
    reach = kernel_size // 2
    if reach >= min(image.shape[:2]):
        raise ValueError(
            f"Expected an image larger than {reach} pixels for a blur of {kernel_size} x "
            f"{kernel_size}, but got {image.shape[1]} x {image.shape[0]}: choose a larger size."
        )
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = (weights / weights.sum()).astype(np.float32)
    return cv2.sepFilter2D(image, -1, kernel, kernel, borderType=cv2.BORDER_REFLECT_101)


def flip(image: Pixels) -> Pixels:
    """Left to right."""
    return cv2.flip(image, 1)


def to_tensor(image: Pixels) -> Tensor:
    """Planes (3, H, W), still uint8."""
    planes = torch.empty((3, *image.shape[:2]), dtype=torch.uint8)
    cv2.split(image, list(planes.numpy()))
    return planes


def box_kernel(sigma: float, passes: int = 3) -> NDArray[np.float32]:
    """The kernel of PIL's Gaussian: a box whose two ends count in part, convolved with itself.

    Its variance is sigma² for any sigma (Gwosdek et al., Theoretical foundations of Gaussian
    convolution by extended box filtering, 2011, Eq. 8-10), which PIL uses:
    https://github.com/python-pillow/Pillow/blob/11.0.0/src/libImaging/BoxBlur.c
    """
    variance = sigma * sigma / passes
    reach = math.floor((math.sqrt(12 * variance + 1) - 1) / 2)
    end = (2 * reach + 1) * (reach * (reach + 1) - 3 * variance)
    end /= 6 * (variance - (reach + 1) ** 2)
    box = np.ones(2 * reach + 3)
    box[0] = box[-1] = end
    box /= box.sum()
    kernel = box
    for _ in range(passes - 1):
        kernel = np.convolve(kernel, box)
    return kernel.astype(np.float32)
