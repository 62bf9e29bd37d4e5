"""The training view of segmentation against its description, written out once more.

The literal versions follow mmsegmentation's Resize, RandomCrop, RandomFlip, PhotoMetricDistortion and
Pad, in plain numpy and Python; the last two work on BGR, as upstream.
"""

import colorsys
import math
import random
from collections import Counter

import cv2
import numpy as np
import pytest
import torch

from goodtransfer.views import segmentation
from goodtransfer.views.segmentation import FILL, IGNORE, SegmentationView, dominated

SMALL = SegmentationView(crop=(12, 20), scale=(0.5, 2.0), nominal=(24, 40))


def photo(height=30, width=46, seed=0):
    """Noise over a gradient: every pixel counts, and colours differ."""
    generator = np.random.default_rng(seed)
    ramp = np.linspace(0, 120, width)[None, :, None] * np.array([1.0, 0.5, 0.2])
    return (ramp + generator.integers(0, 130, (height, width, 3))).astype(np.uint8)


def class_map(height=30, width=46, seed=0):
    """Blocks of classes; class 0 has most, so that many crops have more than three quarters of it."""
    generator = np.random.default_rng(seed)
    blocks = generator.choice([0, 0, 0, 0, 1, 2, IGNORE], (height // 6 + 1, width // 6 + 1))
    return blocks.repeat(6, axis=0).repeat(6, axis=1)[:height, :width].astype(np.uint8)


# --- What is drawn


def literal_draw(view, classes, seed, epoch, index):
    """Size, part, flip and the colour operations as (name, parameter), in upstream's words."""
    stream = random.Random(f"{seed}/{epoch}/{index}")

    def uniform(low, high):
        return stream.random() * (high - low) + low

    def randint(low, high):  # without `high`, as numpy's
        return low + int(stream.random() * (high - low))

    def heads():
        return stream.random() < 0.5

    height, width = classes.shape
    ratio = uniform(*view.scale)
    nominal_h, nominal_w = view.nominal if view.nominal else (height, width)
    scale = int(nominal_w * ratio), int(nominal_h * ratio)
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    new_h, new_w = int(height * factor + 0.5), int(width * factor + 0.5)
    seen = literal_nearest(classes, new_h, new_w)

    def get_crop_bbox():
        top = randint(0, max(new_h - view.crop[0], 0) + 1)
        left = randint(0, max(new_w - view.crop[1], 0) + 1)
        return top, left

    top, left = get_crop_bbox()
    for _ in range(10):
        inside = seen[top : top + view.crop[0], left : left + view.crop[1]]
        counts = Counter(inside.ravel().tolist())
        counts.pop(255, None)
        if len(counts) > 1 and max(counts.values()) / sum(counts.values()) < 0.75:
            break
        top, left = get_crop_bbox()
    flip = heads()
    colours = []
    if heads():
        colours.append(("brightness", uniform(-32, 32)))
    early = heads()
    if early and heads():
        colours.append(("contrast", uniform(0.5, 1.5)))
    if heads():
        colours.append(("saturation", uniform(0.5, 1.5)))
    if heads():
        colours.append(("hue", randint(-18, 18)))
    if not early and heads():
        colours.append(("contrast", uniform(0.5, 1.5)))
    part = top, left, min(view.crop[0], new_h), min(view.crop[1], new_w)
    return (new_h, new_w), part, flip, colours


def literal_nearest(classes, height, width):
    made = np.empty((height, width), dtype=np.uint8)
    steps = [1 / (new / old) for new, old in zip(made.shape, classes.shape, strict=True)]
    for y in range(height):
        for x in range(width):
            row, column = (math.floor(at * step) for at, step in zip((y, x), steps, strict=True))
            made[y, x] = classes[min(row, len(classes) - 1), min(column, classes.shape[1] - 1)]
    return made


def drawn_by(view, classes, seed=0, epoch=0, index=0):
    drawn = view.draw(classes, seed=seed, epoch=epoch, index=index)
    colours = [(done.function.__name__, *done.parameters) for done in drawn.colours]
    return drawn.size, drawn.part, drawn.flip, colours


@pytest.mark.parametrize(
    ("view", "size"),
    [
        (SMALL, (30, 46)),
        (SMALL, (46, 30)),  # upstream fits the long side in the long side
        (SegmentationView((12, 20), (0.5, 2.0), None), (30, 46)),
        (SegmentationView((40, 12), (0.25, 1.0), (24, 40)), (30, 46)),  # never high enough
    ],
)
def test_everything_is_drawn_as_upstream_describes(view, size):
    redrawn = 0
    for index in range(60):
        classes = class_map(*size, seed=index)
        expected = literal_draw(view, classes, seed=3, epoch=1, index=index)
        assert drawn_by(view, classes, 3, 1, index) == expected
        (height, width), (top, left, h, w), *_ = expected
        assert top + h <= height
        assert left + w <= width
        first = random.Random(f"3/1/{index}")
        _, y, x = (first.random() for _ in range(3))
        redrawn += (top, left) != (int(y * (height - h + 1)), int(x * (width - w + 1)))
    assert redrawn > 5  # or the rule of three quarters was not tried


def test_the_papers_crop_of_cityscapes_is_never_padded():
    view, classes = SegmentationView(), np.zeros((1024, 2048), dtype=np.uint8)
    sizes = []
    for index in range(30):
        (height, width), part, *_ = drawn_by(view, classes, index=index)
        assert abs(width - 2 * height) <= 1
        assert part[2:] == (512, 1024)
        sizes.append(height / 1024)
    assert 0.5 <= min(sizes) < 0.7
    assert 1.8 < max(sizes) <= 2.0


@pytest.mark.parametrize("value", [4, IGNORE])
def test_after_ten_more_draws_the_last_one_stands(value):
    """One class everywhere, or none that counts: each crop is refused, eleven are drawn."""
    classes = np.full((60, 60), value, dtype=np.uint8)
    view = SegmentationView((20, 20), (1.0, 1.0), None)
    for index in range(10):
        stream = random.Random(f"0/0/{index}")
        numbers = [stream.random() for _ in range(1 + 2 * 11)]
        _, part, *_ = drawn_by(view, classes, index=index)
        assert part == (int(numbers[-2] * 41), int(numbers[-1] * 41), 20, 20)


@pytest.mark.parametrize(
    ("counts", "refused"),
    [
        ({0: 75, 1: 25}, True),  # exactly three quarters is too much
        ({0: 74, 1: 26}, False),
        ({0: 74, 1: 26, IGNORE: 300}, False),  # pixels that do not count make no share
        ({0: 15, 1: 5, IGNORE: 80}, True),
        ({7: 100}, True),
        ({IGNORE: 100}, True),
        ({0: 50, 254: 50}, False),
    ],
)
def test_three_quarters_of_the_pixels_that_count(counts, refused):
    classes = np.concatenate([np.full(n, c, dtype=np.uint8) for c, n in counts.items()])
    assert dominated(classes.reshape(-1, 5)) is refused


def test_ranges_and_shares_of_what_is_drawn():
    view, classes = SegmentationView((2, 2), (0.5, 2.0), None), np.eye(4, dtype=np.uint8)
    drawn = [drawn_by(view, classes, index=index) for index in range(2000)]
    assert sum(flip for _, _, flip, _ in drawn) / 2000 == pytest.approx(0.5, abs=0.05)
    values = {"brightness": [], "contrast": [], "saturation": [], "hue": []}
    early = late = 0
    for *_, colours in drawn:
        names = [name for name, _ in colours]
        for name, value in colours:
            values[name].append(value)
        between = {"saturation", "hue"} & set(names)
        if "contrast" in names and between:
            before = set(names[: names.index("contrast")]) & between
            early, late = early + (not before), late + bool(before)
            assert before in (set(), between)
        assert "brightness" not in names[1:]
    assert early / (early + late) == pytest.approx(0.5, abs=0.06)
    for name, (low, high) in {
        "brightness": (-32, 32), "contrast": (0.5, 1.5), "saturation": (0.5, 1.5),
    }.items():  # fmt: skip
        assert len(values[name]) / 2000 == pytest.approx(0.5, abs=0.05)
        assert low <= min(values[name]) < low + 0.02 * (high - low)
        assert high - 0.02 * (high - low) < max(values[name]) < high
    assert len(values["hue"]) / 2000 == pytest.approx(0.5, abs=0.05)
    assert set(values["hue"]) == set(range(-18, 18))


# --- The pixels that follow


def literal_bilinear(image, height, width):
    """Four neighbours around the pixel's centre, at the border the outermost again."""
    made = np.empty((height, width, 3))
    for y in range(height):
        for x in range(width):
            at = [
                min(max((i + 0.5) * old / new - 0.5, 0), old - 1)
                for i, old, new in zip((y, x), image.shape, (height, width), strict=False)
            ]
            (top, left), (down, right) = ([math.floor(a) for a in at], [math.ceil(a) for a in at])
            fy, fx = at[0] - top, at[1] - left
            upper = image[top, left] * (1 - fx) + image[top, right] * fx
            lower = image[down, left] * (1 - fx) + image[down, right] * fx
            made[y, x] = upper * (1 - fy) + lower * fy
    return made


@pytest.mark.parametrize("size", [(15, 23), (7, 40), (60, 92), (31, 46), (30, 46)])
def test_resizing(size):
    image, classes = photo(), class_map()
    made = segmentation.resized(image, *size)
    assert np.abs(made - literal_bilinear(image, *size)).max() < 1  # OpenCV's weights have 11 bits
    assert (segmentation.resized_classes(classes, *size) == literal_nearest(classes, *size)).all()


def literal_convert(values, alpha=1.0, beta=0.0):
    """Multiply and add in 32 bits, clip, and cut the fraction off."""
    made = np.empty(values.shape, dtype=np.uint8)
    for place, value in np.ndenumerate(values):
        wide = np.float32(np.float32(value) * np.float32(alpha)) + np.float32(beta)
        made[place] = int(min(max(wide, 0), 255))
    return made


def literal_colour(bgr, name, parameter):
    if name == "brightness":
        return literal_convert(bgr, beta=parameter)
    if name == "contrast":
        return literal_convert(bgr, alpha=parameter)
    hsv = cv2.cvtColor(bgr, cv2.COLOR_BGR2HSV)
    if name == "saturation":
        hsv[..., 1] = literal_convert(hsv[..., 1], alpha=parameter)
    else:
        hsv[..., 0] = (hsv[..., 0].astype(int) + parameter) % 180
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("brightness", (-32.0, -7.3, 0.0, 0.9, 31.99)),
        ("contrast", (0.5, 0.777, 1.0, 1.4999)),
        ("saturation", (0.5, 0.777, 1.0, 1.4999)),
        ("hue", (-18, -1, 0, 5, 17)),
    ],
)
def test_colours_are_upstreams_bit_for_bit_in_rgb(name, parameters):
    image = photo()
    for parameter in parameters:
        bgr = np.ascontiguousarray(image[..., ::-1])
        expected = literal_colour(bgr, name, parameter)[..., ::-1]
        assert (getattr(segmentation, name)(image, parameter) == expected).all()


def test_saturation_and_hue_are_what_they_say():
    """Against HSV in floating point, which knows no OpenCV."""
    image = photo()[::3, ::3]
    for name, parameter in (("saturation", 0.6), ("saturation", 1.3), ("hue", -18), ("hue", 11)):
        made = getattr(segmentation, name)(image, parameter).astype(float)
        expected = np.empty(image.shape)
        for place in np.ndindex(*image.shape[:2]):
            h, s, v = colorsys.rgb_to_hsv(*(image[place] / 255))
            h, s = (h, min(1, s * parameter)) if name == "saturation" else (h + parameter / 180, s)
            expected[place] = np.array(colorsys.hsv_to_rgb(h % 1, s, v)) * 255
        assert np.abs(made - expected).mean() < 1.5  # hue has 180 steps, of up to 4.25 each
        assert np.abs(made - expected).max() < 8
        assert np.abs(made - image).mean() > 5


def literal_view(view, image, classes, drawn):
    (height, width), (top, left, h, w), flip, colours = drawn
    bgr = cv2.resize(image[..., ::-1], (width, height), interpolation=cv2.INTER_LINEAR)
    bgr = bgr[top : top + h, left : left + w]
    classes = literal_nearest(classes, height, width)[top : top + h, left : left + w]
    if flip:
        bgr, classes = bgr[:, ::-1], classes[:, ::-1]
    for name, parameter in colours:
        bgr = literal_colour(np.ascontiguousarray(bgr), name, parameter)
    full_image = np.zeros((*view.crop, 3), dtype=np.uint8)
    full_image[:] = FILL
    full_classes = np.full(view.crop, 255, dtype=np.uint8)
    full_image[:h, :w], full_classes[:h, :w] = bgr[..., ::-1], classes
    return full_image, full_classes


@pytest.mark.parametrize("view", [SMALL, SegmentationView((40, 12), (0.25, 1.0), (24, 40))])
def test_a_view_equals_its_steps_written_out(view):
    for index in range(25):
        image, classes = photo(seed=index), class_map(seed=index)
        made = view(image, classes, seed=5, epoch=2, index=index)
        expected = literal_view(view, image, classes, literal_draw(view, classes, 5, 2, index))
        for ours, theirs, shape in zip(made, expected, ((*view.crop, 3), view.crop), strict=True):
            assert (ours.dtype, ours.shape) == (np.uint8, shape)
            assert (ours == theirs).all()


def test_padding_is_zero_after_imagenets_normalisation():
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    assert np.abs((np.array(FILL) - mean) / std).max() < 0.01


def test_classes_stay_on_their_pixels():
    """A picture of the class map itself, not resized: whatever is drawn, both agree."""
    classes, view = class_map(60, 92), SegmentationView((12, 20), (1.0, 1.0), None)
    picture = np.repeat(classes[..., None], 3, axis=2)
    for index in range(20):
        drawn = view.draw(classes, seed=0, epoch=0, index=index)
        plain = segmentation.Drawn(drawn.size, drawn.part, drawn.flip, (), drawn.padded)
        assert (plain.image(picture)[..., 0] == drawn.classes(classes)).all()


def test_a_view_is_a_pure_function_of_its_address():
    image, classes = photo(), class_map()

    def states():
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()

    before, kept, seen = states(), (image.copy(), classes.copy()), set()
    for seed, epoch, index in np.ndindex(2, 2, 2):
        first = SMALL(image, classes, seed=seed, epoch=epoch, index=index)
        again = SMALL(image, classes, seed=seed, epoch=epoch, index=index)
        assert all((a == b).all() for a, b in zip(first, again, strict=True))
        seen.add(first[0].tobytes())
    assert len(seen) == 8
    assert states() == before
    assert (kept[0] == image).all()
    assert (kept[1] == classes).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (300, 2)])
def test_the_smallest_images_have_views(size):
    image, classes = np.full((*size, 3), 9, dtype=np.uint8), np.zeros(size, dtype=np.uint8)
    made, told = SegmentationView((8, 8), (0.1, 0.2), None)(image, classes)
    assert (made.shape, told.shape) == ((8, 8, 3), (8, 8))
    assert 0 < (told == 0).sum() <= 64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crop": (0, 5)}, r"`crop` and `nominal` to be \(height, width\).*got \(0, 5\) and"),
        ({"nominal": (10, -1)}, r"got \(512, 1024\) and \(10, -1\)"),
        ({"scale": (2.0, 0.5)}, r"`scale` to be \(least, greatest\).*got \(2.0, 0.5\)"),
        ({"scale": (0.0, 0.5)}, r"ratio above 0, but got \(0.0, 0.5\)"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        SegmentationView(**arguments)


def test_a_map_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"of the image's size, but got \(30, 46\) and \(30, 45\)"):
        SMALL(photo(), class_map(30, 45))
