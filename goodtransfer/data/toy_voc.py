"""The toy world for detection: several objects in an image, written as PASCAL VOC's VOCdevkit.

The objects are those of `toy`, smaller: one to three of them over one background, without overlap.
Now and then one is tiny, or cut by the image's border, and then `difficult`, as VOC calls what its
score leaves out. Masks are those of `toy`; boxes are tight around them.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from goodtransfer.data import toy
from goodtransfer.data.toy import (
    CLASSES,
    CORNERS,
    JPEG_QUALITY,
    Array,
    Scene,
    as_bytes,
    check,
    invent,
    mask,
    paint,
    write_once,
)

SPLITS = ("trainval", "test")
VERSION = 1  # raise it with any change of pixels or boxes
LIMIT = 500_000  # images of a split; where test begins, so that trainval can grow
FIRST = {"trainval": 1, "test": LIMIT + 1}

# The world: uniform ranges, lengths in units of the image's side.
OBJECTS = 3  # at most in an image
RADIUS = (0.1, 0.25)  # of the disc of an object's area: 26 to 64 pixels across, of 128
TINY_RADIUS = (0.04, 0.06)
OUTSIDE = (0.2, 0.4)  # of a cut object's centre beyond the border, in units of its radius
HARD = 0.2  # share of objects, after an image's first, that are tiny or cut
GAP = 0.02  # between objects, at least
TRIES = 20  # to find an object a free place, before it is left out

# How far from its centre a shape of radius 1 reaches.
REACH = {"disc": 1.0} | {s: max(math.hypot(*corner) for corner in CORNERS[s]) for s in CORNERS}


@dataclass(frozen=True)
class Picture:
    """What is in one image: objects that do not overlap, over the background of the first."""

    objects: tuple[Scene, ...]


@dataclass(frozen=True)
class Annotation:
    """What VOC tells of an object, ``box`` in pixels from 1, the last ones included."""

    name: str
    box: tuple[int, int, int, int]
    truncated: bool
    difficult: bool


def picture(seed: int, split: str, index: int) -> Picture:
    """Invent one image from these three alone; the classes of the first objects take turns.

    >>> [thing.class_name for thing in picture(0, "test", 25).objects][0]
    'disc-dots'
    """
    kind = len(toy.SPLITS) + SPLITS.index(split)  # other draws than those of toy's splits
    random = np.random.default_rng([seed, kind, index])
    objects: list[Scene] = []
    for number in range(random.integers(1, OBJECTS, endpoint=True)):
        label = int(random.integers(len(CLASSES))) if number else index % len(CLASSES)
        what = invent(random, label)
        hard = number > 0 and random.uniform() < HARD
        for _ in range(TRIES):
            what = _placed(random, what, hard)
            if all(_apart(what, other) for other in objects):
                objects.append(what)
                break
    return Picture(tuple(objects))


def _placed(random: np.random.Generator, what: Scene, hard: bool) -> Scene:
    """The object at a size and place; the texture is scaled with it."""
    tiny, cut = (True, False) if hard and random.uniform() < 0.5 else (False, hard)
    radius = float(random.uniform(*(TINY_RADIUS if tiny else RADIUS)))
    x, y = (float(p) for p in random.uniform(radius, 1 - radius, size=2))
    if cut:
        x = -radius * float(random.uniform(*OUTSIDE))
        x = 1 - x if random.uniform() < 0.5 else x
        x, y = (x, y) if random.uniform() < 0.5 else (y, x)
    return replace(what, centre=(x, y), radius=radius, period=what.period * radius / what.radius)


def _apart(one: Scene, other: Scene) -> bool:
    reach = one.radius * REACH[one.shape] + other.radius * REACH[other.shape]
    return math.dist(one.centre, other.centre) > reach + GAP


def draw(what: Picture, size: int) -> tuple[NDArray[np.uint8], list[Annotation]]:
    """Paint the picture (size x size x RGB), and tell what is in it."""
    pixels: Array = np.empty((size, size, 3), dtype=np.float32)
    pixels[:] = what.objects[0].background
    annotations = []
    for thing in what.objects:
        covered = mask(thing, size)
        pixels = paint(thing, covered, pixels)
        annotations.append(_annotation(thing, covered))
    return as_bytes(pixels), annotations


def _annotation(what: Scene, covered: Array) -> Annotation:
    visible = float(covered.sum()) / (math.pi * (what.radius * len(covered)) ** 2)
    return Annotation(
        name=what.class_name,
        box=box(covered),
        truncated=visible < 0.95,
        difficult=visible < 0.5 or what.radius < RADIUS[0],
    )


def box(covered: Array) -> tuple[int, int, int, int]:
    """First and last column and row, counted from 1, of the pixels that are covered by half."""
    rows, columns = np.nonzero(covered >= 0.5)
    x1, y1, x2, y2 = columns.min(), rows.min(), columns.max(), rows.max()
    return int(x1) + 1, int(y1) + 1, int(x2) + 1, int(y2) + 1


# --- The folder


def make_voc(root: str | Path, *, train: int, test: int, size: int = 128, seed: int = 0) -> Path:
    """Write the world as ``ROOT/VOCdevkit/VOC2007``; return at once if it is there.

    Train on its ``2007/trainval``, test on ``2007/test``, with ``class_names=toy.CLASSES``. An image
    depends on seed, split and number alone, so a longer split begins with the shorter one.
    The folder appears whole or not at all: it is drawn beside ``root`` and renamed.

    Args:
        root: folder to write; may not hold anything else.
        train: images of ``trainval``, whose names count from 000001.
        test: images of ``test``, whose names count from 500001.
        size: side of the images in pixels.
        seed: of everything that is drawn.

    Raises:
        ValueError: for a split without images, or where ``root`` holds something else.
    """
    if not 0 < min(train, test) <= max(train, test) < LIMIT:
        raise ValueError(
            f"Expected 1 to {LIMIT - 1} images in each split, but found train={train} and "
            f"test={test}: change them."
        )
    check(size, seed, at_least=32)  # a tiny object would have no pixel

    def write(world: Path) -> None:
        year = world / "VOCdevkit" / "VOC2007"
        for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (year / name).mkdir(parents=True)
        for split, count in zip(SPLITS, (train, test), strict=True):
            _write_split(year, split, count, size, seed)

    wanted = {
        "layout": "VOCdevkit",
        "version": f"{toy.VERSION}.{VERSION}",
        "train": train,
        "test": test,
        "size": size,
        "seed": seed,
    }
    return write_once(root, wanted, write)


def _write_split(year: Path, split: str, count: int, size: int, seed: int) -> None:
    names = [f"{FIRST[split] + index:06d}" for index in range(count)]
    for index, name in enumerate(names):
        pixels, annotations = draw(picture(seed, split, index), size)
        image = year / "JPEGImages" / f"{name}.jpg"
        Image.fromarray(pixels).save(image, quality=JPEG_QUALITY)
        (year / "Annotations" / f"{name}.xml").write_text(_xml(image.name, size, annotations))
    (year / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names) + "\n")


def _xml(image: str, size: int, annotations: list[Annotation]) -> str:
    objects = "".join(
        OBJECT.format(a.name, int(a.truncated), int(a.difficult), *a.box) for a in annotations
    )
    return IMAGE.format(image, size, objects)


IMAGE = """\
<annotation>
\t<folder>VOC2007</folder>
\t<filename>{0}</filename>
\t<source><database>The toy world</database></source>
\t<size><width>{1}</width><height>{1}</height><depth>3</depth></size>
\t<segmented>0</segmented>
{2}</annotation>
"""
OBJECT = """\
\t<object>
\t\t<name>{}</name>
\t\t<pose>Unspecified</pose>
\t\t<truncated>{}</truncated>
\t\t<difficult>{}</difficult>
\t\t<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>
\t</object>
"""
