"""The toy world: 20 classes of textured shapes, drawn from a seed into an ImageNet-like folder.

It stands in for ImageNet where a run must finish in minutes without any download. A class is one of
five shapes filled with one of four textures. Nothing simpler than that may tell the class:

* colour: every shape covers the same area, every texture shows its dark and its light tone in equal
  parts, and the tones are drawn without looking at the class;
* single pixels: place, size, angle and the texture's phase are free, so dark and light swap places
  and the mean image of every class is the same grey.

Every image is drawn from a `Scene`, the full description of what is in it, in units of the image's
side. Boxes, masks, landmarks and other layouts are to be written from the same description.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.float32]
Colour = tuple[float, float, float]

SPLITS = ("train", "val")
JPEG_QUALITY = 95
MARKER = "toy.json"
VERSION = 1  # raise it with every change of the pixels: a folder of an older world is then refused


# --- shapes: signed distance to the outline, negative inside, in the object's own frame ---


def _polygon(x: Array, y: Array, corners: list[tuple[float, float]]) -> Array:
    """Signed distance to a simple polygon: nearest edge, with the sign from crossing parity."""
    nearest = np.full_like(x, np.inf)
    inside = np.zeros(x.shape, dtype=bool)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        ex, ey = bx - ax, by - ay
        along = np.clip(((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey), 0, 1)
        nearest = np.minimum(nearest, np.hypot(x - ax - along * ex, y - ay - along * ey))
        crosses = (ay > y) != (by > y)
        if ey:
            inside ^= crosses & (x < ax + (y - ay) * ex / ey)
    return np.where(inside, -nearest, nearest)


def _spokes(radii: list[float]) -> list[tuple[float, float]]:
    """The corners at equal angles and the given distances from the centre, the first one on top."""
    turns = [2 * math.pi * i / len(radii) for i in range(len(radii))]
    return [(r * math.sin(t), -r * math.cos(t)) for r, t in zip(radii, turns, strict=True)]


_TRIANGLE = _spokes([1.0] * 3)
_SQUARE = _spokes([1.0] * 4)
_STAR = _spokes([1.0, 0.38] * 5)
_ARM = 0.3
_CROSS = [(x * s, y * s) for s in (1,) for x, y in [
    (-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM),
    (_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM)]]


def _area(corners: list[tuple[float, float]]) -> float:
    pairs = zip(corners, corners[1:] + corners[:1], strict=True)
    return abs(sum(ax * by - bx * ay for (ax, ay), (bx, by) in pairs)) / 2


def _unit(corners: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Scaled to the area of the unit disc, so that the amount of colour does not tell the shape."""
    scale = math.sqrt(math.pi / _area(corners))
    return [(x * scale, y * scale) for x, y in corners]


CORNERS = {"square": _unit(_SQUARE), "triangle": _unit(_TRIANGLE), "star": _unit(_STAR),
           "cross": _unit(_CROSS)}
SHAPES = ("disc", *CORNERS)


def _outline(shape: str, x: Array, y: Array) -> Array:
    return np.hypot(x, y) - 1 if shape == "disc" else _polygon(x, y, CORNERS[shape])


# --- textures: signed distance to the border between the tones, both covering half the plane ---


def _wave(u: Array) -> Array:
    """Distance to the nearest change of a square wave of period 1, negative in its first half."""
    return np.abs(u - np.floor(u) - 0.5) - 0.25


def _stripes(u: Array, v: Array) -> Array:
    return _wave(u)


def _checks(u: Array, v: Array) -> Array:
    a, b = _wave(u), _wave(v)
    return np.sign(a * b) * np.minimum(np.abs(a), np.abs(b))


def _dots(u: Array, v: Array) -> Array:
    return np.hypot(u - np.round(u), v - np.round(v)) - np.float32(math.sqrt(0.5 / math.pi))


def _zigzag(u: Array, v: Array) -> Array:
    return _wave(u + 2 * np.abs(v / 2 - np.floor(v / 2) - 0.5)) / np.float32(math.sqrt(2))


TEXTURES: dict[str, Callable[[Array, Array], Array]] = {
    "stripes": _stripes, "checks": _checks, "dots": _dots, "zigzag": _zigzag}
CLASSES = tuple(f"{shape}-{texture}" for shape in SHAPES for texture in TEXTURES)

# World parameters
RADIUS = (0.26, 0.34)
PERIOD = (0.17, 0.21)
SHIFT = 0.1
TURN = math.pi
TINT = 0.1
CONTRAST = (0.25, 0.4)
GREY = (0.45, 0.55)


@dataclass(frozen=True)
class Scene:
    """One image in words; lengths in units of the image's side, colours in 0..1."""

    label: int
    shape: str
    texture: str
    centre: tuple[float, float]
    radius: float
    angle: float
    period: float
    phase: tuple[float, float]
    dark: Colour
    light: Colour
    background: Colour

    @property
    def name(self):
        return f"{self.shape}-{self.texture}"


def scene(seed: int, split: str, index: int) -> Scene:
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    label = index % len(CLASSES)
    shape, texture = CLASSES[label].split("-")

    def tinted(grey: float) -> Colour:
        r, g, b = np.clip(grey + rng.uniform(-TINT, TINT, 3), 0, 1)
        return float(r), float(g), float(b)

    cx, cy = 0.5 + rng.uniform(-SHIFT, SHIFT, 2)
    grey = rng.uniform(*GREY)
    contrast = rng.uniform(*CONTRAST)
    px, py = rng.uniform(0, 2, 2)
    return Scene(label, shape, texture, (float(cx), float(cy)), float(rng.uniform(*RADIUS)),
                 float(rng.uniform(-TURN, TURN)), float(rng.uniform(*PERIOD)), (float(px), float(py)),
                 tinted(grey - contrast), tinted(grey + contrast), tinted(grey))


def draw(what: Scene, size: int) -> NDArray[np.uint8]:
    grid = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)
    x, y = np.meshgrid(grid - np.float32(what.centre[0]), grid - np.float32(what.centre[1]))
    c, s = np.float32(math.cos(what.angle)), np.float32(math.sin(what.angle))
    x, y = c * x + s * y, c * y - s * x
    r, p = np.float32(what.radius), np.float32(what.period)
    inside = np.clip(0.5 - _outline(what.shape, x / r, y / r) * r * size, 0, 1)
    u, v = x / p + np.float32(what.phase[0]), y / p + np.float32(what.phase[1])
    lit = np.clip(0.5 - TEXTURES[what.texture](u, v) * p * size, 0, 1)[..., None]
    dark, light, back = (np.array(k, np.float32) for k in (what.dark, what.light, what.background))
    fill = dark + lit * (light - dark)
    pixels = back + inside[..., None] * (fill - back)
    return (pixels * 255 + 0.5).astype(np.uint8)


def make_imagefolder(root, *, train=2000, val=2000, size=64, seed=0):
    root = Path(root)
    for split, n in (("train", train), ("val", val)):
        for name in CLASSES:
            (root / split / name).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            sc = scene(seed, split, i)
            Image.fromarray(draw(sc, size)).save(
                root / split / sc.name / f"{i:05d}.jpg", quality=JPEG_QUALITY)
    (root / MARKER).write_text(json.dumps({}))
    return root
