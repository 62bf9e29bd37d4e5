"""The toy world for detection: several objects in an image, written as PASCAL VOC's VOCdevkit.

The objects are those of `toy_picture`: one to three of them over one background. Now and then one is
tiny, or cut by the image's border, and then `difficult`, as VOC calls what its score leaves out.
Boxes are tight around the masks.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from goodtransfer.data import toy, toy_picture
from goodtransfer.data.toy import CLASSES, JPEG_QUALITY, Array, Scene, check, write_once
from goodtransfer.data.toy_picture import RADIUS, Picture, box, generator, scatter

VERSION = 1  # raise it with any change of pixels or boxes
LIMIT = 500_000  # images of a split; where test begins, so that trainval can grow
FIRST = {"trainval": 1, "test": LIMIT + 1}
OBJECTS = 3  # at most in an image


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
    random = generator(seed, split, index)
    count = int(random.integers(1, OBJECTS, endpoint=True))
    return Picture(scatter(random, count, first=index % len(CLASSES)))


def draw(what: Picture, size: int) -> tuple[NDArray[np.uint8], list[Annotation]]:
    """Paint the picture (size x size x RGB), and tell what is in it."""
    drawing = toy_picture.draw(what, size)
    told = zip(what.objects, drawing.masks, strict=True)
    return drawing.pixels, [_annotation(thing, covered) for thing, covered in told]


def _annotation(what: Scene, covered: Array) -> Annotation:
    visible = float(covered.sum()) / (math.pi * (what.radius * len(covered)) ** 2)
    x1, y1, x2, y2 = box(covered)
    return Annotation(
        name=what.class_name,
        box=(x1 + 1, y1 + 1, x2, y2),
        truncated=visible < 0.95,
        difficult=visible < 0.5 or what.radius < RADIUS[0],
    )


# --- The folder


def make_voc(
    root: str | Path, *, train: int, test: int, train2012: int = 0, size: int = 128, seed: int = 0
) -> Path:
    """Write the world as ``ROOT/VOCdevkit/VOC2007``; return at once if it is there.

    Train on its ``2007/trainval``, test on ``2007/test``, with ``class_names=toy.CLASSES``. An image
    depends on seed, split and number alone, so a longer split begins with the shorter one.
    The folder appears whole or not at all: it is drawn beside ``root`` and renamed.

    Args:
        root: folder to write; may not hold anything else.
        train: images of ``trainval``, whose names count from 000001.
        test: images of ``test``, whose names count from 500001.
        train2012: images of ``2012/trainval``, in ``VOC2012`` beside it.
        size: side of the images in pixels.
        seed: of everything that is drawn.

    Raises:
        ValueError: for a split without images, or where ``root`` holds something else.
    """
    if not 0 < min(train, test) <= max(train, test, train2012) < LIMIT or train2012 < 0:
        raise ValueError(
            f"Expected 1 to {LIMIT - 1} images in each split, but found train={train}, test={test} and "
            f"train2012={train2012}: change them."
        )
    check(size, seed, at_least=32)  # a tiny object would have no pixel

    def write(world: Path) -> None:
        years = world / "VOCdevkit"
        _write_year(years / "VOC2007", {"trainval": train, "test": test}, size, seed)
        if train2012:
            _write_year(years / "VOC2012", {"trainval": train2012}, size, seed)

    wanted = {
        "layout": "VOCdevkit",
        "version": f"{toy.VERSION}.{VERSION}",
        "train": train,
        "test": test,
        "train2012": train2012,
        "size": size,
        "seed": seed,
    }
    return write_once(root, wanted, write)


def _write_year(year: Path, splits: Mapping[str, int], size: int, seed: int) -> None:
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (year / name).mkdir(parents=True)
    for split, count in splits.items():
        names = [f"{FIRST[split] + index:06d}" for index in range(count)]
        drawn_from = split if year.name == "VOC2007" else f"{year.name}/{split}"
        for index, name in enumerate(names):
            pixels, annotations = draw(picture(seed, drawn_from, index), size)
            image = year / "JPEGImages" / f"{name}.jpg"
            Image.fromarray(pixels).save(image, quality=JPEG_QUALITY)
            text = _xml(year.name, image.name, size, annotations)
            (year / "Annotations" / f"{name}.xml").write_text(text)
        (year / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names) + "\n")


def _xml(year: str, image: str, size: int, annotations: list[Annotation]) -> str:
    objects = "".join(
        OBJECT.format(a.name, int(a.truncated), int(a.difficult), *a.box) for a in annotations
    )
    return IMAGE.format(year, image, size, objects)


IMAGE = """\
<annotation>
\t<folder>{0}</folder>
\t<filename>{1}</filename>
\t<source><database>The toy world</database></source>
\t<size><width>{2}</width><height>{2}</height><depth>3</depth></size>
\t<segmented>0</segmented>
{3}</annotation>
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
