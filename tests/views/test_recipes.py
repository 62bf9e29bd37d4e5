"""The recipes against their steps written out with torchvision's functions, bit for bit.

The literal versions below follow facebookresearch/moco@78b69ca main_moco.py (both orders), and are
built on ``torchvision.transforms`` (the library's first generation) where ours use ``v2``.
"""

import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torchvision import transforms as v1
from torchvision.transforms import functional as F

from goodtransfer import views
from goodtransfer.views import RECIPES, Recipe, recipe
from goodtransfer.views.recipes import GaussianBlur

SIZE = 32


def photo(width=61, height=47, seed=0):
    """Noise over a gradient: every pixel counts, and colours differ."""
    generator = np.random.default_rng(seed)
    ramp = np.linspace(0, 120, width)[None, :, None] * np.array([1.0, 0.5, 0.2])
    noise = generator.integers(0, 130, (height, width, 3))
    return Image.fromarray((ramp + noise).astype(np.uint8))


def coin():
    return torch.rand(1).item()


def crop(image, low):
    box = v1.RandomResizedCrop.get_params(image, [low, 1.0], [3 / 4, 4 / 3])
    return F.resized_crop(image, *box, [SIZE, SIZE], v1.InterpolationMode.BILINEAR)


def jitter(image, brightness, contrast, saturation, hue):
    ranges = [[1 - x, 1 + x] for x in (brightness, contrast, saturation)]
    order, *factors = v1.ColorJitter.get_params(*ranges, [-hue, hue])
    adjust = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    for number in order:
        image = adjust[number](image, factors[number])
    return image


def gray(image):
    return F.to_grayscale(image, num_output_channels=3) if coin() < 0.2 else image


def blur(image):
    sigma = 0.1 + 1.9 * coin()
    return image.filter(ImageFilter.GaussianBlur(radius=sigma))


def flip(image):
    return F.hflip(image) if coin() < 0.5 else image


def literal_moco_v1(image):
    return flip(jitter(gray(crop(image, 0.2)), 0.4, 0.4, 0.4, 0.4))


def literal_moco_v2(image, low=0.2):
    image = crop(image, low)
    if coin() < 0.8:
        image = jitter(image, 0.4, 0.4, 0.4, 0.1)
    image = gray(image)
    if coin() < 0.5:
        image = blur(image)
    return flip(image)


def literal_supervised(image):
    return literal_moco_v2(image, low=0.08)


def literal_linear(image):
    return flip(crop(image, 0.08))


def literal_center(image):
    side = round(SIZE * 256 / 224)
    return F.center_crop(F.resize(image, side, v1.InterpolationMode.BILINEAR), [SIZE, SIZE])


@pytest.mark.parametrize("name", RECIPES)
def test_equals_the_steps_written_out(name):
    ours, literal, image = recipe(name, SIZE), globals()[f"literal_{name}"], photo()
    with torch.random.fork_rng(devices=[]):
        for seed in range(40):
            torch.manual_seed(seed)
            expected = literal(image)
            torch.manual_seed(seed)
            got = ours.transform(image)
            assert got.size == (SIZE, SIZE)
            assert np.array_equal(np.asarray(got), np.asarray(expected)), seed


def test_names_and_counts():
    counts = {"moco_v1": 2, "moco_v2": 2, "supervised": 1, "linear": 1, "center": 1}
    made = [recipe(name, SIZE) for name in RECIPES]
    assert {m.name: m.count for m in made} == counts
    assert all(RECIPES[name] is getattr(views, name) for name in counts)
    assert [len(m(photo())) for m in made] == [m.count for m in made]


def test_a_view_is_a_pure_function_of_its_address():
    """Other seed, epoch, image or view number: other views. The same again: the same."""
    image, made = photo(), recipe("moco_v2", SIZE)
    seen = set()
    for seed in (0, 1):
        for epoch in (0, 1):
            for index in (0, 1):
                first = made(image, seed=seed, epoch=epoch, index=index)
                coin()
                again = made(image, seed=seed, epoch=epoch, index=index)
                assert [v.dtype for v in first] == [torch.uint8] * 2
                assert [tuple(v.shape) for v in first] == [(3, SIZE, SIZE)] * 2
                assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
                seen |= {view.numpy().tobytes() for view in first}
    assert len(seen) == 2 * 2 * 2 * 2


def test_every_generator_stays_as_it_was():
    def states():
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()

    before = states()
    recipe("moco_v2", SIZE)(photo())
    assert states() == before

    def fail(image):
        coin()
        raise OSError

    with pytest.raises(OSError):
        Recipe("broken", 1, fail)(photo())
    assert states() == before


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur_is_pils(sigma):
    image = photo()
    expected = image.filter(ImageFilter.GaussianBlur(radius=sigma))
    assert GaussianBlur(sigma, sigma)(image).tobytes() == expected.tobytes()


def test_blur_draws_sigma_between_its_bounds():
    drawn = []

    class Spy:
        def filter(self, kernel):
            drawn.append(kernel.radius)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(500):
            GaussianBlur(0.1, 2.0)(Spy())
    assert 0.1 <= min(drawn) < 0.15
    assert 1.95 < max(drawn) <= 2.0
    assert abs(np.mean(drawn) - 1.05) < 0.1


def test_the_ladder_of_crops_reaches_scale():
    """A crop scale of 1 keeps all but the aspect; of 0.08, almost never."""
    half = Image.new("RGB", (64, 64))
    half.paste((255, 255, 255), (32, 0, 64, 64))
    share = {}
    for low in (0.08, 1.0):
        made = recipe("linear", SIZE, scale=(low, 1.0))
        means = [made(half, index=n)[0].float().mean() / 255 for n in range(50)]
        share[low] = sum(abs(m - 0.5) > 0.12 for m in means) / 50
    assert share[1.0] < 0.1 < 0.4 < share[0.08]


def test_an_unknown_name_is_answered_with_the_known():
    with pytest.raises(ValueError, match=r"views to be one of moco_v1, .*center, but got 'simclr'"):
        recipe("simclr", SIZE)
