"""The operations of the augmentations by torchvision on PIL images: what ours must equal."""

import numpy as np
from PIL import ImageFilter
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from goodtransfer.views import pixels

PIL_OPERATIONS = {
    pixels.crop: F.crop,
    pixels.resize: lambda image, h, w: F.resize(image, [h, w], InterpolationMode.BILINEAR),
    pixels.brightness: F.adjust_brightness,
    pixels.contrast: F.adjust_contrast,
    pixels.saturation: F.adjust_saturation,
    pixels.hue: F.adjust_hue,
    pixels.grayscale: lambda image: F.to_grayscale(image, num_output_channels=3),
    pixels.blur: lambda image, sigma: image.filter(ImageFilter.GaussianBlur(radius=sigma)),
    pixels.gaussian_blur: lambda image, kernel, sigma: F.gaussian_blur(image, kernel, sigma),
    pixels.flip: F.hflip,
}


def psnr(one, other):
    """Peak signal-to-noise ratio in dB; 99 for equal images."""
    error = np.mean((one.astype(float) - other) ** 2)
    return 99.0 if error == 0 else float(10 * np.log10(255**2 / error))
