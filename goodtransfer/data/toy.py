"""The toy world: 20 classes of textured shapes, drawn from a seed into an ImageNet-like folder.

It stands in for ImageNet where a run must finish in minutes without any download. A class is one of
five shapes filled with one of four textures. Nothing simpler than that may tell the class:

* colour: all shapes have the same area (the image cuts off a few tips), all textures show their
  dark and their light tone in equal parts, and the tones are drawn without looking at the class;
* single pixels: place, size, angle and the texture's phase are free, so dark and light swap places
  and every class has the same mean image.

An image is drawn from a `Scene`, the full description of what is in it, in units of the image's
side. Boxes, masks, landmarks and other layouts are written from the same description: see
`toy_voc` for images of several objects.
"""

import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.float32]
Point = tuple[float, float]
Colour = tuple[float, float, float]

SPLITS = ("train", "val")
MARKER = "toy.json"
VERSION = 1  # raise it with any change of the pixels: folders of the older world are then refused
JPEG_QUALITY = 95

# The world: uniform ranges, lengths in units of the image's side, brightness in 0..1.
RADIUS = (0.32, 0.38)  # of the disc of the object's area
SHIFT = 0.06  # of the centre from the middle of the image, each way
TURN = 0.8  # radians, each way; a full turn leaves an untrained encoder too little to go by
PERIOD = (0.24, 0.28)  # of the texture
BACKGROUND = (0.45, 0.55)  # brightness; the two tones lie symmetrically around it
CONTRAST = (0.32, 0.40)  # of a tone to the background
TINT = 0.06  # of each colour channel, each way

# --- Shapes, at the area of the unit disc: signed distance to the outline, negative inside.


def _area(corners: list[Point]) -> float:
    pairs = zip(corners, corners[1:] + corners[:1], strict=True)
    return abs(sum(ax * by - bx * ay for (ax, ay), (bx, by) in pairs)) / 2


def _star_shaped(radii: list[float]) -> list[Point]:
    """Corners at equal angles from the top, at these distances, then scaled to the disc's area."""
    turns = [2 * math.pi * i / len(radii) for i in range(len(radii))]
    corners = [(r * math.sin(t), -r * math.cos(t)) for r, t in zip(radii, turns, strict=True)]
    scale = math.sqrt(math.pi / _area(corners))
    return [(x * scale, y * scale) for x, y in corners]


def _cross(arm: float = 0.3) -> list[Point]:
    """Corners of a plus sign, its arms twice ``arm`` wide and 1 long, then scaled likewise."""
    quarter = [(-arm, -1.0), (arm, -1.0), (arm, -arm)]
    corners = list(quarter)
    for _ in range(3):
        quarter = [(-y, x) for x, y in quarter]
        corners += quarter
    scale = math.sqrt(math.pi / _area(corners))
    return [(x * scale, y * scale) for x, y in corners]


CORNERS = {
    "cross": _cross(),
    "square": _star_shaped([1.0] * 4),
    "star": _star_shaped([1.0, 0.38] * 5),
    "triangle": _star_shaped([1.0] * 3),
}


def _distance_to_shape(shape: str, x: Array, y: Array) -> Array:
    """Nearest point of the outline; the sign from how often a ray to the right crosses it."""
    if shape == "disc":
        return np.hypot(x, y) - np.float32(1)
    nearest = np.full_like(x, np.inf)
    inside = np.zeros(x.shape, dtype=np.bool_)
    corners = CORNERS[shape]
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        ex, ey = bx - ax, by - ay
        along = np.clip(((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey), 0, 1)
        nearest = np.minimum(nearest, np.hypot(x - ax - along * ex, y - ay - along * ey))
        if ey:  # a level edge is crossed by no level ray
            inside ^= ((ay > y) != (by > y)) & (x < ax + (y - ay) * (ex / ey))
    return np.where(inside, -nearest, nearest)


# --- Textures, at period 1: signed distance to the border of the tones, negative where light;
# --- both tones cover half of the plane.


def _stripes(u: Array, v: Array) -> Array:
    distance: Array = np.abs(u - np.floor(u) - np.float32(0.5)) - np.float32(0.25)
    return distance


def _checks(u: Array, v: Array) -> Array:
    a, b = _stripes(u, v), _stripes(v, u)
    distance: Array = np.sign(a * b) * np.minimum(np.abs(a), np.abs(b))
    return distance


def _dots(u: Array, v: Array) -> Array:
    return np.hypot(u - np.round(u), v - np.round(v)) - np.float32(math.sqrt(0.5 / math.pi))


def _zigzag(u: Array, v: Array) -> Array:
    bend = 2 * np.abs(v / 2 - np.floor(v / 2) - np.float32(0.5))
    return _stripes(u + bend, v) / np.float32(math.sqrt(2))  # the borders run at 45 degrees


TEXTURES: dict[str, Callable[[Array, Array], Array]] = {
    "checks": _checks,
    "dots": _dots,
    "stripes": _stripes,
    "zigzag": _zigzag,
}
SHAPES = ("cross", "disc", "square", "star", "triangle")
# In alphabetical order, so that a label is the number ImageFolder gives to the class folder.
CLASSES = tuple(f"{shape}-{texture}" for shape in SHAPES for texture in TEXTURES)


@dataclass(frozen=True)
class Scene:
    """What is in one image; lengths in units of its side, angle in radians, colours in 0..1.

    ``radius`` is that of the disc with the object's area, so its outline may reach further out.
    """

    label: int
    centre: Point
    radius: float
    angle: float
    period: float
    phase: Point
    dark: Colour
    light: Colour
    background: Colour

    @property
    def class_name(self) -> str:
        """The class folder, such as ``disc-stripes``."""
        return CLASSES[self.label]

    @property
    def shape(self) -> str:
        """First half of the class."""
        return self.class_name.split("-")[0]

    @property
    def texture(self) -> str:
        """Second half of the class."""
        return self.class_name.split("-")[1]


def scene(seed: int, split: str, index: int) -> Scene:
    """Invent one image from these three alone; the classes take turns.

    >>> scene(0, "train", 25).class_name
    'disc-dots'
    """
    random = np.random.default_rng([seed, SPLITS.index(split), index])
    return invent(random, index % len(CLASSES))


def invent(random: np.random.Generator, label: int) -> Scene:
    """An object of the class, as the generator has it."""

    def between(low: float, high: float) -> float:
        return float(random.uniform(low, high))

    def tinted(brightness: float) -> Colour:
        r, g, b = (min(max(brightness + between(-TINT, TINT), 0.0), 1.0) for _ in range(3))
        return r, g, b

    background, contrast = between(*BACKGROUND), between(*CONTRAST)
    return Scene(
        label=label,
        centre=(0.5 + between(-SHIFT, SHIFT), 0.5 + between(-SHIFT, SHIFT)),
        radius=between(*RADIUS),
        angle=between(-TURN, TURN),
        period=between(*PERIOD),
        phase=(between(0, 2), between(0, 2)),
        dark=tinted(background - contrast),
        light=tinted(background + contrast),
        background=tinted(background),
    )


def _own_frame(what: Scene, size: int) -> tuple[Array, Array]:
    """Place of every pixel's middle as the object sees it: from its centre, turned with it."""
    middle = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)
    x, y = np.meshgrid(middle - np.float32(what.centre[0]), middle - np.float32(what.centre[1]))
    cos, sin = np.float32(math.cos(what.angle)), np.float32(math.sin(what.angle))
    return cos * x + sin * y, cos * y - sin * x


def mask(what: Scene, size: int) -> Array:
    """Share of each pixel that the object covers (size x size), for blending and for labels."""
    x, y = _own_frame(what, size)
    radius = np.float32(what.radius)
    distance = _distance_to_shape(what.shape, x / radius, y / radius) * radius
    covered: Array = np.clip(np.float32(0.5) - distance * np.float32(size), 0, 1)
    return covered


def draw(what: Scene, size: int) -> NDArray[np.uint8]:
    """Paint the scene (size x size x RGB), edges smoothed over one pixel."""
    return as_bytes(paint(what, mask(what, size), np.array(what.background, dtype=np.float32)))


def paint(what: Scene, covered: Array, behind: Array) -> Array:
    """The object over what is behind it, where its mask covers that; colours in 0..1."""
    size = len(covered)
    x, y = _own_frame(what, size)
    period = np.float32(what.period)
    u, v = x / period + np.float32(what.phase[0]), y / period + np.float32(what.phase[1])
    border = TEXTURES[what.texture](u, v) * period
    lit = np.clip(np.float32(0.5) - border * np.float32(size), 0, 1)[..., None]
    dark, light = (np.array(colour, dtype=np.float32) for colour in (what.dark, what.light))
    fill = dark + lit * (light - dark)
    painted: Array = behind + covered[..., None] * (fill - behind)
    return painted


def as_bytes(pixels: Array) -> NDArray[np.uint8]:
    """Colours in 0..1 as an image has them."""
    rounded: NDArray[np.uint8] = (pixels * 255 + 0.5).astype(np.uint8)
    return rounded


# --- The folder


def make_imagefolder(
    root: str | Path, *, train: int = 2000, val: int = 2000, size: int = 64, seed: int = 0
) -> Path:
    """Write the world as ``ROOT/{train,val}/CLASS/NUMBER.jpg``; return at once if it is there.

    An image depends on seed, split and number alone, so a longer split begins with the shorter one.
    The folder appears whole or not at all: it is drawn beside ``root`` and renamed.

    Args:
        root: folder to write; may not hold anything else.
        train: images of the training split, at least one per class.
        val: images of the validation split, likewise.
        size: side of the images in pixels.
        seed: of everything that is drawn.

    Raises:
        ValueError: for a split that leaves classes empty, or where ``root`` holds something else.
    """
    if min(train, val) < len(CLASSES):
        raise ValueError(
            f"Expected at least {len(CLASSES)} images in each split, one per class, but found "
            f"train={train} and val={val}: ask for more images."
        )
    check(size, seed)

    def write(world: Path) -> None:
        for split, count in (("train", train), ("val", val)):
            _write_split(world / split, split, count, size, seed)

    wanted = {"version": VERSION, "train": train, "val": val, "size": size, "seed": seed}
    return write_once(root, wanted, write)


def _write_split(folder: Path, split: str, count: int, size: int, seed: int) -> None:
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
    for index in range(count):
        what = scene(seed, split, index)
        path = folder / what.class_name / f"{index:06d}.jpg"
        Image.fromarray(draw(what, size)).save(path, quality=JPEG_QUALITY)


# --- Any layout of the world


def check(size: int, seed: int, at_least: int = 16) -> None:
    """Refuse a size or seed that nothing can be drawn with."""
    if size < at_least or seed < 0:
        raise ValueError(
            f"Expected a size of at least {at_least} pixels and a seed of at least 0, but found "
            f"size={size} and seed={seed}: change them."
        )


def write_once(
    root: str | Path, wanted: Mapping[str, object], write: Callable[[Path], None]
) -> Path:
    """Have the folder written, unless it is there; it appears whole or not at all.

    Args:
        root: the folder.
        wanted: what tells this world from others, kept in the folder.
        write: is given an absent folder to write into, which is then renamed.

    Raises:
        ValueError: where ``root`` holds something else.
    """
    root = Path(root)
    if _is_there(root, wanted):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f".{root.name}-", dir=root.parent, ignore_cleanup_errors=True
    ) as aside:
        world = Path(aside) / "world"  # below, because a temporary folder itself is private
        write(world)
        (world / MARKER).write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")
        try:
            os.replace(world, root)
        except OSError:
            if not _is_there(root, wanted):  # else another process has been faster
                raise
    return root


def _is_there(root: Path, wanted: Mapping[str, object]) -> bool:
    """Whether ``root`` holds the wanted world; an absent or empty folder is free to be written."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        found = json.loads((root / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if found == wanted:
        return True
    content = f"the toy world {found}" if found else f"something without a readable {MARKER}"
    raise ValueError(
        f"Expected the toy world {wanted} at {root}, but found {content}: "
        f"name another folder, remove this one, or ask for the arguments it was made with."
    )
