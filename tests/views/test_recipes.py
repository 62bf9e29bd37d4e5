"""What the recipes draw: against their steps written out, and against torchvision's distributions."""

import math
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as v1

from goodtransfer import views
from goodtransfer.views import RECIPES, RUNGS, Recipe, TwoViews, pixels, recipe
from goodtransfer.views.steps import Operation

SIZE = 32
ADDRESS = {"seed": 3, "epoch": 5, "index": 7}


def photo(width=61, height=47, seed=0):
    """Noise over a gradient: every pixel counts, and colours differ."""
    generator = np.random.default_rng(seed)
    ramp = np.linspace(0, 120, width)[None, :, None] * np.array([1.0, 0.5, 0.2])
    noise = generator.integers(0, 130, (height, width, 3))
    return (ramp + noise).astype(np.uint8)


# --- The recipes written out, from the same random numbers. The order of the augmentations and their
# --- parameters are those of protocols 1.3, 1.4, 1.8, 1.9, 2.1; each takes the numbers in turn.


class Coins:
    """The random numbers of a view: blake2b of four numbers seeds Python's generator."""

    def __init__(self, seed, epoch, index, number):
        from hashlib import blake2b

        words = b"".join(n.to_bytes(8, "little", signed=True) for n in (seed, epoch, index, number))
        seed = int.from_bytes(blake2b(words, digest_size=16).digest(), "little")
        self.toss = random.Random(seed).random

    def between(self, low, high):
        return low + (high - low) * self.toss()


def crop(coins, h, w, low):
    for _ in range(10):
        area = h * w * coins.between(low, 1.0)
        ratio = math.exp(coins.between(math.log(3 / 4), math.log(4 / 3)))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if width <= w and height <= h and width and height:
            top = int(coins.toss() * (h - height + 1))
            left = int(coins.toss() * (w - width + 1))
            return [("crop", top, left, height, width), ("resize", SIZE, SIZE)]
    raise AssertionError("choose an image whose crops fit")


def jitter(coins, b, c, s, h):
    waiting = [
        ("brightness", coins.between(1 - b, 1 + b)),
        ("contrast", coins.between(1 - c, 1 + c)),
        ("saturation", coins.between(1 - s, 1 + s)),
        ("hue", coins.between(-h, h)),
    ]
    order = []
    for left in (4, 3, 2, 1):
        order.append(waiting.pop(int(coins.toss() * left)))
    return order


def maybe(coins, p, make):
    return make() if coins.toss() < p else []


def gray(coins):
    return maybe(coins, 0.2, lambda: [("grayscale",)])


def flip(coins):
    return maybe(coins, 0.5, lambda: [("flip",)])


def blur(coins):
    return maybe(coins, 0.5, lambda: [("blur", coins.between(0.1, 2.0))])


def middle(h, w):
    short = round(SIZE * 256 / 224)
    height, width = (short * side // min(h, w) for side in (h, w))
    top, left = (round((side - SIZE) / 2) for side in (height, width))
    return [("resize", height, width), ("crop", top, left, SIZE, SIZE)]


def literal_moco_v1(coins, h, w):
    return (
        crop(coins, h, w, 0.2)
        + gray(coins)
        + maybe(coins, 1.0, lambda: jitter(coins, 0.4, 0.4, 0.4, 0.4))
        + flip(coins)
    )


def literal_moco_v2(coins, h, w, low=0.2):
    return (
        crop(coins, h, w, low)
        + maybe(coins, 0.8, lambda: jitter(coins, 0.4, 0.4, 0.4, 0.1))
        + gray(coins)
        + blur(coins)
        + flip(coins)
    )


def literal_instdisc(coins, h, w):
    return literal_moco_v1(coins, h, w)


def literal_supervised(coins, h, w):
    return literal_moco_v2(coins, h, w, low=0.08)


def literal_simclr(coins, h, w):
    kernel = 2 * (SIZE // 10 // 2) + 1
    return (
        crop(coins, h, w, 0.08)
        + flip(coins)
        + maybe(coins, 0.8, lambda: jitter(coins, 0.8, 0.8, 0.8, 0.2))
        + gray(coins)
        + maybe(coins, 0.5, lambda: [("gaussian_blur", kernel, coins.between(0.1, 2.0))])
    )


def literal_linear(coins, h, w):
    return crop(coins, h, w, 0.08) + flip(coins)


def literal_center(coins, h, w):
    return middle(h, w)


def literal_ladder_flip(coins, h, w):
    return middle(h, w) + flip(coins)


def literal_ladder_crop(coins, h, w):
    return crop(coins, h, w, 0.2) + flip(coins)


def literal_ladder_jitter(coins, h, w):
    return (
        crop(coins, h, w, 0.2)
        + maybe(coins, 0.8, lambda: jitter(coins, 0.4, 0.4, 0.4, 0.1))
        + flip(coins)
    )


def literal_ladder_gray(coins, h, w):
    return (
        crop(coins, h, w, 0.2)
        + maybe(coins, 0.8, lambda: jitter(coins, 0.4, 0.4, 0.4, 0.1))
        + gray(coins)
        + flip(coins)
    )


literal_ladder_blur = literal_moco_v2


def literal_supervised_flip(coins, h, w):
    return literal_ladder_flip(coins, h, w)


def literal_supervised_crop(coins, h, w):
    return crop(coins, h, w, 0.08) + flip(coins)


def literal_supervised_jitter(coins, h, w):
    return (
        crop(coins, h, w, 0.08)
        + maybe(coins, 0.8, lambda: jitter(coins, 0.4, 0.4, 0.4, 0.1))
        + flip(coins)
    )


def literal_supervised_gray(coins, h, w):
    return (
        crop(coins, h, w, 0.08)
        + maybe(coins, 0.8, lambda: jitter(coins, 0.4, 0.4, 0.4, 0.1))
        + gray(coins)
        + flip(coins)
    )


literal_supervised_blur = literal_supervised


@pytest.mark.parametrize("name", RECIPES)
def test_draws_the_steps_written_out(name):
    made, literal = recipe(name, SIZE), globals()[f"literal_{name}"]
    shown = set()
    for index in range(60):
        for number in (0, 1):
            drawn = made.draw(47, 61, number, seed=1, epoch=2, index=index)
            expected = literal(Coins(1, 2, index, number), 47, 61)
            assert [(d.function.__name__, *d.parameters) for d in drawn] == expected
            shown.add(tuple(d.function.__name__ for d in drawn))
    assert len(shown) > 1 or name == "center"


def test_pixels_follow_what_is_drawn():
    image, made = photo(), recipe("moco_v2", SIZE)
    for number, view in enumerate(made(image, **ADDRESS)):
        expected = image
        for done in made.draw(47, 61, number, **ADDRESS):
            expected = done.function(expected, *done.parameters)
        assert np.array_equal(view.permute(1, 2, 0).numpy(), expected)


def test_names_and_counts():
    counts = dict.fromkeys(("moco_v1", "moco_v2", "simclr"), 2)
    counts |= dict.fromkeys(("instdisc", "supervised", "linear", "center"), 1)
    assert all(RECIPES[name] is getattr(views, name) for name in counts)
    counts |= {f"ladder_{rung}": 2 for rung in RUNGS}
    counts |= {f"supervised_{rung}": 1 for rung in RUNGS}
    assert {name: recipe(name, SIZE).count for name in RECIPES} == counts
    assert {recipe(name, SIZE).name for name in RECIPES} == set(counts)
    assert [len(recipe(n, SIZE)(photo())) for n in counts] == list(counts.values())


def test_the_ladder_is_cumulative_and_ends_in_moco_v2():
    assert views.ladder("blur", SIZE).steps == views.moco_v2(SIZE).steps
    assert views.ladder("blur", SIZE, scale=0.08, count=1).steps == views.supervised(SIZE).steps
    assert views.ladder("crop", SIZE, scale=0.08).steps == views.linear(SIZE).steps
    for row, rung in enumerate(RUNGS, start=1):
        assert views.ladder(row, SIZE) == views.ladder(rung, SIZE)
    sizes = [len(views.ladder(rung, SIZE).steps) for rung in RUNGS]
    assert sizes == [2, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="flip, crop, jitter, gray, blur or 1 to 5, but got 6"):
        views.ladder(6)


def test_a_crop_scale_is_the_lower_end_or_both():
    assert views.moco_v2(SIZE, scale=0.3) == views.moco_v2(SIZE, scale=(0.3, 1.0))
    for scale in (0, 1.5, (0.5, 0.2), (0.2, 1.1)):
        with pytest.raises(ValueError, match=r"crop scale of shares from 0 to 1, but got"):
            views.moco_v2(SIZE, scale=scale)


def moments(values):
    """Mean and its standard error, column by column."""
    values = np.array(values, dtype=float)
    return values.mean(0), values.std(0) / math.sqrt(len(values))


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 120), (60, 500)])
@pytest.mark.parametrize("low", [0.08, 0.2])
def test_crops_are_distributed_as_torchvisions(low, height, width):
    """Also of images too long for most crops, and where torchvision falls back to the middle."""
    made, image = views.linear(SIZE, scale=low), torch.empty(3, height, width)
    ours = [
        made.draw(height, width, 0, seed=0, epoch=0, index=n)[0].parameters for n in range(6000)
    ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = [
            v1.RandomResizedCrop.get_params(image, [low, 1.0], [3 / 4, 4 / 3]) for _ in range(6000)
        ]

    def features(boxes):
        top, left, h, w = np.array(boxes, dtype=float).T
        return np.stack([top, left, h, w, h * w, w / h, top**2, left**2, (h * w) ** 2], 1)

    (ours, error), (theirs, other) = moments(features(ours)), moments(features(theirs))
    assert (np.abs(ours - theirs) <= 4.5 * np.sqrt(error**2 + other**2) + 1e-9).all()


def test_jitter_is_distributed_as_torchvisions():
    """Factors uniform, every order equally often."""
    made = views.moco_v1(SIZE)
    orders, factors = {}, []
    for index in range(6000):
        drawn = [
            d for d in made.draw(40, 40, 0, seed=0, epoch=0, index=index)
            if d.function in (pixels.brightness, pixels.contrast, pixels.saturation, pixels.hue)
        ]  # fmt: skip
        names = tuple(d.function.__name__ for d in drawn)
        orders[names] = orders.get(names, 0) + 1
        factors.append([d.parameters[0] for d in sorted(drawn, key=lambda d: d.function.__name__)])
    assert len(orders) == 24
    assert all(abs(n - 250) < 4.5 * math.sqrt(250) for n in orders.values())
    low, high = np.min(factors, 0), np.max(factors, 0)  # brightness, contrast, hue, saturation
    assert np.allclose(low, [0.6, 0.6, -0.4, 0.6], atol=0.002)
    assert np.allclose(high, [1.4, 1.4, 0.4, 1.4], atol=0.002)
    mean, error = moments(factors)
    assert (np.abs(mean - [1, 1, 0, 1]) < 4.5 * error).all()
    assert (np.abs(np.corrcoef(np.array(factors).T) - np.eye(4)) < 0.07).all()


@pytest.mark.parametrize(
    ("name", "shares"),
    [
        ("moco_v2", {"hue": 0.8, "grayscale": 0.2, "blur": 0.5, "flip": 0.5}),
        ("moco_v1", {"hue": 1.0, "grayscale": 0.2, "blur": 0.0, "flip": 0.5}),
        ("simclr", {"hue": 0.8, "grayscale": 0.2, "gaussian_blur": 0.5, "flip": 0.5}),
    ],
)
def test_how_often_each_is_done(name, shares):
    made = recipe(name, SIZE)
    drawn = [made.draw(40, 40, 0, seed=0, epoch=0, index=n) for n in range(4000)]
    for function, share in shares.items():
        found = np.mean([any(d.function.__name__ == function for d in ds) for ds in drawn])
        assert abs(found - share) <= 4.5 * math.sqrt(share * (1 - share) / 4000)


def test_a_view_is_a_pure_function_of_its_address():
    """Other seed, epoch, image or view number: other views. The same again: the same."""
    image, made = photo(), recipe("moco_v2", SIZE)
    seen = set()
    for seed in (0, 1):
        for epoch in (0, 1):
            for index in (0, 1):
                first = made(image, seed=seed, epoch=epoch, index=index)
                torch.rand(1), random.random()
                again = made(Image.fromarray(image), seed=seed, epoch=epoch, index=index)
                assert [v.dtype for v in first] == [torch.uint8] * 2
                assert [tuple(v.shape) for v in first] == [(3, SIZE, SIZE)] * 2
                assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
                seen |= {view.numpy().tobytes() for view in first}
    assert len(seen) == 2 * 2 * 2 * 2


def test_these_are_the_numbers_of_version_3():
    """Other numbers are other results: they need another version of the protocol."""
    drawn = recipe("moco_v2", 224).draw(375, 500, 1, seed=0, epoch=1, index=2)
    assert repr(drawn) == DRAWN


DRAWN = (
    "[crop(34, 102, 314, 269), resize(224, 224), hue(-0.08246), saturation(1.378), "
    "contrast(0.6001), brightness(1.171), blur(0.3984), flip()]"
)


def test_another_process_draws_the_same():
    code = (
        "from goodtransfer import views\n"
        "print(views.moco_v2(224).draw(375, 500, 1, seed=0, epoch=1, index=2))"
    )
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    assert printed == DRAWN


def test_every_generator_stays_as_it_was():
    def states():
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()

    before = states()
    for name in RECIPES:
        recipe(name, SIZE)(photo())
    assert states() == before


def test_two_views_of_a_file(tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(photo()).save(path)
    made = recipe("supervised", SIZE)  # of one view, here asked for two
    expected = [made.view(photo(), number, **ADDRESS) for number in (0, 1)]
    for source in (path, str(path), path.read_bytes()):
        query, key = TwoViews(made)(source, **ADDRESS)
        assert torch.equal(query, expected[0])
        assert torch.equal(key, expected[1])
    assert not torch.equal(query, key)
    with pytest.raises(views.ImageReadError, match="at most 100 pixels"):
        TwoViews(made, max_pixels=100)(path)


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), "u1"), np.zeros((4, 4, 3)), np.zeros((4, 4, 4), "u1")]
)
def test_what_is_no_rgb_image(image):
    with pytest.raises(ValueError, match=r"RGB image of uint8 \(H, W, 3\), but got \w+ \(4, 4"):
        recipe("center", SIZE)(image)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 40), (33, 2), (300, 9)])
def test_the_smallest_images_have_views(name, height, width):
    for view in recipe(name, SIZE)(photo(width, height), **ADDRESS):
        assert tuple(view.shape) == (3, SIZE, SIZE)


def test_an_array_turned_from_bgr():
    """As OpenCV's users have it: a view with steps backwards."""
    image, made = photo(), recipe("moco_v2", SIZE)
    turned = image[:, :, ::-1].copy()[:, :, ::-1]
    assert torch.equal(made(turned, **ADDRESS)[0], made(image, **ADDRESS)[0])


@pytest.mark.parametrize("turned", [False, True])
def test_the_middle_of_a_very_long_image(turned):
    """A line of pixels is not made into gigabytes on the way; what shows is the same."""
    image = np.zeros((20, 9000, 3), np.uint8)
    image[:, 4500:] = 200
    image = image.transpose(1, 0, 2).copy() if turned else image
    made = recipe("center", SIZE)
    sizes = [
        d.parameters for d in made.draw(*image.shape[:2], 0, **ADDRESS) if len(d.parameters) == 2
    ]
    assert max(max(size) for size in sizes) == 16 * round(SIZE * 256 / 224)
    (view,) = made(image, **ADDRESS)
    view = view.transpose(1, 2) if turned else view
    assert (view[:, :, 0] == 0).all()
    assert (view[:, :, -1] == 200).all()


def test_a_step_of_ones_own():
    """Anything that draws operations will do; recipes reach worker processes of any start method."""
    made = Recipe("mine", 1, (*views.center(SIZE).steps, posterize))
    (view,) = pickle.loads(pickle.dumps(made))(photo(), **ADDRESS)
    assert set(view.unique().tolist()) <= {0, 64, 128, 192}


def posterize(random, height, width):
    yield Operation(np.bitwise_and, (np.uint8(0xC0),))


def test_an_unknown_name_is_answered_with_the_known():
    with pytest.raises(
        ValueError, match=r"views to be one of moco_v1, .*center, .*, but got 'dino'"
    ):
        recipe("dino", SIZE)
