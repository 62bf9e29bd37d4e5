"""One picture of the toy world: objects, a crowd, a place or a face, and all that is told of them.

Every layout takes pixels and annotation from the same `Drawing` of the same `Picture`. The objects
are those of `toy`, smaller and without overlap; now and then one is tiny, or cut by the border. A
crowd is a few tiny objects of one class that are told as one region, as COCO and Cityscapes do.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from goodtransfer.data import toy, toy_faces, toy_places
from goodtransfer.data.toy import CLASSES, CORNERS, Array, Point, Scene
from goodtransfer.data.toy_faces import Face
from goodtransfer.data.toy_places import Place

# What is drawn from one seed. Only append here: the place in the list is part of the draw.
STREAMS = (
    *("train", "val", "trainval", "test"),
    *("places/train", "places/val", "identity", "celeba", "coco/train", "coco/val"),
    *("synthia", "synthia/rand", "cityscapes/train", "cityscapes/val", "mini_imagenet"),
    "VOC2012/trainval",
)

# Numbers that Cityscapes gives to its classes (labelIds).
UNLABELED = 0
PERSON = 24
SHAPE_IDS = {"cross": 32, "disc": 26, "square": 28, "star": 33, "triangle": PERSON}
# which are motorcycle, car, bus, bicycle, person

# The world: uniform ranges, lengths in units of the image's side.
RADIUS = (0.1, 0.25)  # of the disc of an object's area: 26 to 64 pixels across, of 128
TINY_RADIUS = (0.04, 0.06)
OUTSIDE = (0.2, 0.4)  # of a cut object's centre beyond the border, in units of its radius
HARD = 0.2  # share of objects, after an image's first, that are tiny or cut
GAP = 0.02  # between objects, at least
TRIES = 20  # to find an object a free place, before it is left out; as many may make up a crowd
SPREAD = 0.18  # of a crowd's objects from its middle, each way

# How far from its centre a shape of radius 1 reaches.
REACH = {"disc": 1.0} | {s: max(math.hypot(*corner) for corner in CORNERS[s]) for s in CORNERS}


@dataclass(frozen=True)
class Picture:
    """What is in one image; ``wide`` is its width in units of its height.

    Without a place the background is that of the first object.
    """

    objects: tuple[Scene, ...] = ()
    crowd: tuple[Scene, ...] = ()
    place: Place | None = None
    face: Face | None = None
    wide: int = 1

    def shifted(self, objects: float, place: float) -> "Picture":
        """The same after these moves to the right, in units of the image's height."""
        return replace(
            self,
            objects=tuple(_moved(thing, objects) for thing in self.objects),
            crowd=tuple(_moved(thing, objects) for thing in self.crowd),
            place=self.place and self.place.shifted(place),
            face=self.face and replace(self.face, head=_moved(self.face.head, objects)),
        )


@dataclass(frozen=True)
class Drawing:
    """A picture as pixels, and what is told of it.

    Shapes: H = height, W = width. The instances are the objects in their order, then the crowd, then
    the face. ``masks`` has the share of each pixel that they cover; the maps hold what covers a
    pixel by half.

    Attributes:
        pixels: H x W x RGB.
        masks: H x W for every instance.
        instances: H x W, the number of the instance from 1, 0 behind them.
        classes: H x W, Cityscapes' labelIds.
        landmarks: (x, y) of the face's points in pixels, 0 being the middle of the first one.
    """

    pixels: NDArray[np.uint8]
    masks: tuple[Array, ...]
    instances: NDArray[np.uint8]
    classes: NDArray[np.uint8]
    landmarks: tuple[Point, ...]


def generator(seed: int, stream: str, index: int) -> np.random.Generator:
    """Source of what is drawn for one image of a stream."""
    return np.random.default_rng([seed, STREAMS.index(stream), index])


# --- Inventing


def invent(
    random: np.random.Generator,
    *,
    objects: int,
    place: int | None = None,
    crowd: bool = False,
    hard: float = HARD,
    wide: int = 1,
) -> Picture:
    """A picture of so many objects at most, in a place of this class or of any."""
    label = int(random.integers(len(toy_places.PLACES))) if place is None else place
    where = toy_places.invent(random, label)
    group = _crowd(random) if crowd else ()
    things = scatter(random, objects, hard=hard, wide=wide, among=group)
    return Picture(things, group, where, wide=wide)


def scatter(
    random: np.random.Generator,
    count: int,
    *,
    first: int | None = None,
    hard: float = HARD,
    wide: int = 1,
    among: tuple[Scene, ...] = (),
) -> tuple[Scene, ...]:
    """So many objects, less those that find no free place among the others.

    Args:
        random: decides everything.
        count: of the objects.
        first: class of the first one, any if not given.
        hard: share of objects, after the first, that are tiny, or cut by the border of a square: 0 in a
            wide picture.
        wide: width of the picture.
        among: objects that are there already.
    """
    objects: list[Scene] = []
    for number in range(count):
        given = first if number == 0 else None
        what = toy.invent(random, int(random.integers(len(CLASSES))) if given is None else given)
        is_hard = number > 0 and random.uniform() < hard
        for _ in range(TRIES):
            what = _placed(random, what, is_hard, wide)
            if all(_apart(what, other) for other in (*among, *objects)):
                objects.append(what)
                break
    return tuple(objects)


def _placed(random: np.random.Generator, what: Scene, hard: bool, wide: int) -> Scene:
    """The object at a size and place."""
    tiny, cut = (True, False) if hard and random.uniform() < 0.5 else (False, hard)
    radius = float(random.uniform(*(TINY_RADIUS if tiny else RADIUS)))
    x, y = (float(p) for p in random.uniform(radius, (wide - radius, 1 - radius)))
    if cut:
        x = -radius * float(random.uniform(*OUTSIDE))
        x = 1 - x if random.uniform() < 0.5 else x
        x, y = (x, y) if random.uniform() < 0.5 else (y, x)
    return _scaled(what, (x, y), radius)


def _crowd(random: np.random.Generator) -> tuple[Scene, ...]:
    """Tiny objects of one class close to each other."""
    label, middle = int(random.integers(len(CLASSES))), random.uniform(0.25, 0.75, size=2)
    crowd: list[Scene] = []
    for _ in range(TRIES):
        x, y = (float(p) for p in middle + random.uniform(-SPREAD, SPREAD, size=2))
        radius = float(random.uniform(*TINY_RADIUS))
        what = _scaled(toy.invent(random, label), (x, y), radius)
        if all(_apart(what, other) for other in crowd):
            crowd.append(what)
    return tuple(crowd)


def _scaled(what: Scene, centre: Point, radius: float) -> Scene:
    """The object at this place and size; its texture is scaled with it."""
    return replace(what, centre=centre, radius=radius, period=what.period * radius / what.radius)


def _moved(what: Scene, by: float) -> Scene:
    return replace(what, centre=(what.centre[0] + by, what.centre[1]))


def _apart(one: Scene, other: Scene) -> bool:
    reach = one.radius * REACH[one.shape] + other.radius * REACH[other.shape]
    return math.dist(one.centre, other.centre) > reach + GAP


# --- Drawing


def draw(what: Picture, size: int) -> Drawing:
    """Paint the picture at this height, and tell what is in it."""
    parts = [_draw_square(what.shifted(-left, -left), size) for left in range(what.wide)]
    return Drawing(
        pixels=np.concatenate([part.pixels for part in parts], axis=1),
        masks=tuple(
            np.concatenate(masks, axis=1)
            for masks in zip(*(part.masks for part in parts), strict=True)
        ),
        instances=np.concatenate([part.instances for part in parts], axis=1),
        classes=np.concatenate([part.classes for part in parts], axis=1),
        landmarks=parts[0].landmarks,
    )


def _draw_square(what: Picture, size: int) -> Drawing:
    pixels, classes = _background(what, size)
    masks, labels = [], []
    for group in filter(None, (*((thing,) for thing in what.objects), what.crowd)):
        covers = [toy.mask(thing, size) for thing in group]
        for thing, covered in zip(group, covers, strict=True):
            pixels = toy.paint(thing, covered, pixels)
        masks.append(np.maximum.reduce(covers))
        labels.append(SHAPE_IDS[group[0].shape])
    if what.face:
        masks.append(toy_faces.mask(what.face, size))
        labels.append(PERSON)
        pixels = toy_faces.paint(what.face, masks[-1], pixels)
    instances = np.zeros_like(classes)
    for number, (covered, label) in enumerate(zip(masks, labels, strict=True), start=1):
        instances[covered >= 0.5] = number
        classes[covered >= 0.5] = label
    points = what.face.landmarks() if what.face else ()
    return Drawing(
        pixels=toy.as_bytes(pixels),
        masks=tuple(masks),
        instances=instances,
        classes=classes,
        landmarks=tuple((x * size - 0.5, y * size - 0.5) for x, y in points),
    )


def _background(what: Picture, size: int) -> tuple[Array, NDArray[np.uint8]]:
    if what.place:
        return toy_places.draw(what.place, size)
    pixels: Array = np.empty((size, size, 3), dtype=np.float32)
    pixels[:] = what.objects[0].background
    return pixels, np.full((size, size), UNLABELED, dtype=np.uint8)


def box(covered: Array) -> tuple[int, int, int, int]:
    """(x1, y1, x2, y2) around the pixels that are covered by half, in continuous coordinates."""
    rows, columns = np.nonzero(covered >= 0.5)
    x1, y1, x2, y2 = columns.min(), rows.min(), columns.max(), rows.max()
    return int(x1), int(y1), int(x2) + 1, int(y2) + 1
