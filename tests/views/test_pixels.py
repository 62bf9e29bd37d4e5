"""Every operation against torchvision's on PIL images, for parameters as the recipes draw them."""

import math
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import functional as F

from goodtransfer import views
from goodtransfer.views import pixels

sys.path.insert(0, str(Path(__file__).parent))
from pil_operations import PIL_OPERATIONS, psnr

COLOURS = (
    pixels.brightness,
    pixels.contrast,
    pixels.saturation,
    pixels.hue,
    pixels.grayscale,
    pixels.flip,
)


def noise(height=47, width=61, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(height=120, width=160, seed=0):
    """Blobs of saturated colours, black and white, without the noise of single pixels."""
    rough = noise(height // 8, width // 8, seed).astype(np.float32)
    image = cv2.resize(rough, (width, height), interpolation=cv2.INTER_CUBIC)
    return (image * 1.6 - 70).clip(0, 255).astype(np.uint8)


IMAGES = [
    noise(),
    smooth(),
    smooth(seed=1),
    noise(1, 1),
    noise(1, 9),
    np.full((5, 7, 3), 200, "u1"),
]


def by_pil(function, image, *parameters):
    return np.asarray(PIL_OPERATIONS[function](Image.fromarray(image), *parameters))


def off(one, other):
    assert one.shape == other.shape
    assert one.dtype == np.uint8
    return float(np.abs(one.astype(int) - other).mean())


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize(
    "function", [pixels.brightness, pixels.contrast, pixels.saturation], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("factor", [0.0, 0.2, 0.6, 0.834, 1.0, 1.2, 1.4, 1.8])
def test_blends(function, factor, image):
    assert off(function(image, factor), by_pil(function, image, factor)) <= 1.0


@pytest.mark.parametrize("image", IMAGES[:3])
@pytest.mark.parametrize("shift", [-0.5, -0.4, -0.1, -0.01, 0.0, 0.03, 0.1, 0.25, 0.5])
def test_hue(shift, image):
    assert off(pixels.hue(image, shift), by_pil(pixels.hue, image, shift)) < 0.6


def test_hue_is_nearest_at_this_shift():
    """One step of 255 more or less is further from PIL: the offset is no accident."""
    image = smooth()
    expected = by_pil(pixels.hue, image, 0.1)
    errors = [off(pixels.hue(image, 0.1 + step / 255), expected) for step in (-1, 0, 1)]
    assert errors[1] < 0.7 * min(errors[0], errors[2])


def test_hue_of_a_pure_colour_is_at_most_one_step_off():
    for colour in np.eye(3, dtype=np.uint8)[[0, 1, 2, 0, 1]] * 255 + np.uint8([0, 0, 40]):
        image = np.tile(colour, (4, 4, 1)).astype(np.uint8)
        for shift in (-0.3, 0.07):
            difference = pixels.hue(image, shift).astype(int) - by_pil(pixels.hue, image, shift)
            assert np.abs(difference).max() <= 6 + 1  # a channel's slope over one of 256 steps


@pytest.mark.parametrize("image", IMAGES)
def test_grey_and_flip(image):
    assert off(pixels.grayscale(image), by_pil(pixels.grayscale, image)) < 0.1
    assert np.array_equal(pixels.flip(image), by_pil(pixels.flip, image))
    assert np.array_equal(pixels.flip(image), image[:, ::-1])


def test_a_grey_image_stays_what_it_is():
    """Truncating and rounding must not darken it by one."""
    ramp = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, 2)
    for factor in (0.6, 0.8, 1.0, 1.2, 1.4):
        assert np.array_equal(pixels.saturation(ramp, factor), ramp)
    assert np.array_equal(pixels.brightness(ramp, 1.0), ramp)
    assert np.array_equal(pixels.contrast(ramp, 1.0), ramp)


@pytest.mark.parametrize("image", [*IMAGES[:3], smooth(300, 200), smooth(40, 30)])
@pytest.mark.parametrize("size", [(32, 32), (64, 64), (224, 224), (50, 31), (1, 1)])
def test_resize_is_antialiased_as_pils(image, size):
    assert psnr(pixels.resize(image, *size), by_pil(pixels.resize, image, *size)) > 48


def test_resize_keeps_a_part_of_an_image_in_place():
    """Of a crop, which is a view into the image, only its own pixels count."""
    image = smooth()
    part = pixels.crop(image, 7, 30, 60, 80)
    assert np.array_equal(part, by_pil(pixels.crop, image, 7, 30, 60, 80))
    assert np.shares_memory(part, image)
    assert np.array_equal(pixels.resize(part, 24, 24), pixels.resize(part.copy(), 24, 24))


@pytest.mark.parametrize("image", [noise(), smooth(), noise(1, 1), noise(32, 32), smooth(24, 40)])
@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.7, 1.0, 1.41, 1.42, 2.0])
def test_blur_is_pils(sigma, image):
    assert psnr(pixels.blur(image, sigma), by_pil(pixels.blur, image, sigma)) > 40


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 1.7, 2.0, 5.0])
def test_the_box_kernel_has_the_variance_of_the_gaussian(sigma):
    kernel = pixels.box_kernel(sigma).astype(float)
    place = np.arange(len(kernel)) - len(kernel) // 2
    assert kernel.sum() == pytest.approx(1, abs=1e-6)
    assert (kernel * place**2).sum() == pytest.approx(sigma**2, rel=1e-5)
    assert np.array_equal(kernel, kernel[::-1])


@pytest.mark.parametrize("sigma", [0.1, 0.9, 2.0])
@pytest.mark.parametrize("kernel_size", [1, 5, 23])
def test_gaussian_blur_is_torchvisions(kernel_size, sigma):
    image = smooth()
    ours, expected = (
        pixels.gaussian_blur(image, kernel_size, sigma),
        by_pil(pixels.gaussian_blur, image, kernel_size, sigma),
    )
    assert psnr(ours, expected) > 48


def test_gaussian_blur_of_a_small_image_says_so():
    with pytest.raises(
        ValueError, match="larger than 11 pixels for a blur of 23 x 23, but got 11 x 30"
    ):
        pixels.gaussian_blur(noise(30, 11), 23, 1.0)


def test_planes_are_the_image():
    image = noise()
    planes = pixels.to_tensor(image)
    assert planes.is_contiguous()
    assert np.array_equal(planes.permute(1, 2, 0).numpy(), image)


def test_no_operation_changes_its_input():
    image = smooth()
    kept = image.copy()
    for function, parameters in {
        pixels.brightness: (1.3,),
        pixels.contrast: (0.7,),
        pixels.saturation: (1.3,),
        pixels.hue: (0.1,),
        pixels.grayscale: (),
        pixels.blur: (1.0,),
        pixels.gaussian_blur: (5, 1.0),
        pixels.flip: (),
        pixels.resize: (30, 30),
    }.items():
        function(image, *parameters)
        assert np.array_equal(image, kept), function.__name__


@pytest.mark.data
def test_every_operation_drawn_for_a_hundred_photos(shared):
    """Operation by operation, each on what the one before made: photos of many sizes, four grey."""
    seen = set()
    for index, path in enumerate(sorted(shared.glob("data/imagenet_samples/val/*/*"))):
        for recipe in (views.moco_v1(224), views.supervised(224), views.simclr(224)):
            image = views.decode(path)
            for done in recipe.draw(*image.shape[:2], 0, seed=1, epoch=2, index=index):
                expected = by_pil(done.function, image, *done.parameters)
                image = done(image)
                seen.add(done.function)
                if done.function in COLOURS:
                    assert off(image, expected) <= 1.0, (path, done)
                else:
                    assert psnr(image, expected) > 40, (path, done)
    assert seen == set(PIL_OPERATIONS)


@pytest.mark.data
def test_whole_views_of_photos_are_pils(shared):
    """The small differences do not add up: all operations by PIL, from the file on."""
    paths = sorted(shared.glob("data/imagenet_samples/val/*/*"))[::4]
    distances = []
    for index, path in enumerate(paths):
        recipe = views.moco_v2(224)
        image = Image.open(path).convert("RGB")
        address = {"seed": 0, "epoch": 0, "index": index}
        for number, view in enumerate(views.TwoViews(recipe)(path, **address)):
            expected = image
            for done in recipe.draw(image.height, image.width, number, **address):
                expected = PIL_OPERATIONS[done.function](expected, *done.parameters)
            pixels_of = F.pil_to_tensor(expected)
            distances.append((view.float() - pixels_of.float()).abs().mean().item())
    assert max(distances) < 2.0
    assert math.fsum(distances) / len(distances) < 0.7
