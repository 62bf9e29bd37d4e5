"""The toy world's people: a face is known by its geometry and by the texture of its cap.

Proportions and texture belong to the identity; tones, size, place, angle and the texture's phase to
the single image. Every part shows the dark and the light tone in equal parts on a skin of their
mean: eyes are white with a pupil of half their area, nose and mouth have a lit and a shaded side.
So a larger eye or mouth leaves the face's mean colour, and colour does not tell who it is.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from goodtransfer.data import toy
from goodtransfer.data.toy import CLASSES, Array, Point, Scene
from goodtransfer.data.toy_places import tone

LANDMARKS = ("lefteye", "righteye", "nose", "leftmouth", "rightmouth")  # left in the image

# Of an identity: uniform ranges, in units of half the head's height.
ASPECT = (0.68, 0.86)  # width of the head to its height
EYES = (0.27, 0.45)  # of an eye's middle from the nose line
EYE = (0.08, 0.13)  # radius of an eye
NOSE = (0.08, 0.3)  # of the nose's tip below the middle of the head
MOUTH = (0.2, 0.42)  # half the width of the mouth
# The same for everyone.
EYE_LEVEL, NOSE_TOP, MOUTH_LEVEL, CAP_LEVEL = -0.15, -0.05, 0.52, -0.42
NOSE_WIDTH, MOUTH_HEIGHT = 0.09, 0.09

# Of an image: uniform ranges, in units of its side, radians and brightness.
RADIUS = (0.34, 0.4)  # half the height of the head
SHIFT = 0.04  # of its middle from the middle of the image, each way
TURN = 0.2
PERIOD = (0.09, 0.11)  # of the cap's texture
SKIN = (0.38, 0.62)
CONTRAST = (0.24, 0.3)


@dataclass(frozen=True)
class Face:
    """A face; ``head`` has its place, its tones (skin as ``background``) and the cap's texture.

    The lengths are in units of ``head.radius``, half the height of the head.
    """

    identity: int
    head: Scene
    aspect: float
    eyes: float
    eye: float
    nose: float
    mouth: float

    def landmarks(self) -> tuple[Point, ...]:
        """The five of ``LANDMARKS``, in units of the image's side."""
        own = [
            (-self.eyes, EYE_LEVEL),
            (self.eyes, EYE_LEVEL),
            (0.0, self.nose),
            (-self.mouth, MOUTH_LEVEL),
            (self.mouth, MOUTH_LEVEL),
        ]
        (x, y), r = self.head.centre, self.head.radius
        cos, sin = r * math.cos(self.head.angle), r * math.sin(self.head.angle)
        return tuple((x + cos * u - sin * v, y + sin * u + cos * v) for u, v in own)


def invent(identity: int, who: np.random.Generator, here: np.random.Generator) -> Face:
    """A face of the identity: ``who`` decides what belongs to that, ``here`` what to the image."""
    skin, contrast = here.uniform(*SKIN), here.uniform(*CONTRAST)
    head = replace(
        toy.invent(here, label=int(who.integers(len(CLASSES)))),  # its texture is the cap's
        centre=(0.5 + float(here.uniform(-SHIFT, SHIFT)), 0.5 + float(here.uniform(-SHIFT, SHIFT))),
        radius=float(here.uniform(*RADIUS)),
        angle=float(here.uniform(-TURN, TURN)),
        period=float(here.uniform(*PERIOD)),
        dark=tone(here, skin - contrast),
        light=tone(here, skin + contrast),
        background=tone(here, skin),
    )
    geometry = (float(who.uniform(*reach)) for reach in (ASPECT, EYES, EYE, NOSE, MOUTH))
    return Face(identity, head, *geometry)


def mask(what: Face, size: int) -> Array:
    """Share of each pixel that the head covers (size x size)."""
    return _oval(*_own_frame(what, size), what.head.radius * size, (0, 0), (what.aspect, 1))


def paint(what: Face, covered: Array, behind: Array) -> Array:
    """The face over what is behind it, where its mask covers that; colours in 0..1."""
    head, size = what.head, len(covered)
    u, v = _own_frame(what, size)
    scale = head.radius * size
    dark, light, skin = (
        np.array(colour, dtype=np.float32) for colour in (head.dark, head.light, head.background)
    )
    pixels = behind + covered[..., None] * (skin - behind)
    pixels = toy.paint(head, covered * _smooth(v - CAP_LEVEL, scale), pixels)
    for side in (-what.eyes, what.eyes):
        for radius, fill in ((what.eye, light), (what.eye / math.sqrt(2), dark)):
            pupil = _oval(u, v, scale, (side, EYE_LEVEL), (radius, radius))
            pixels = pixels + pupil[..., None] * (fill - pixels)
    middle = (what.nose + NOSE_TOP) / 2
    nose = _oval(u, v, scale, (0, middle), (NOSE_WIDTH, what.nose - middle))
    mouth = _oval(u, v, scale, (0, MOUTH_LEVEL), (what.mouth, MOUTH_HEIGHT))
    for part, shade in ((nose, _smooth(u, scale)), (mouth, _smooth(v - MOUTH_LEVEL, scale))):
        pixels = pixels + part[..., None] * (light + shade[..., None] * (dark - light) - pixels)
    return pixels


def _own_frame(what: Face, size: int) -> tuple[Array, Array]:
    """Place of every pixel's middle as the face sees it, in units of its radius."""
    head = what.head
    middle = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)
    x, y = np.meshgrid(middle - np.float32(head.centre[0]), middle - np.float32(head.centre[1]))
    cos, sin = (np.float32(f(head.angle) / head.radius) for f in (math.cos, math.sin))
    return cos * x + sin * y, cos * y - sin * x


def _oval(u: Array, v: Array, scale: float, middle: Point, axes: Point) -> Array:
    """Share of each pixel in the oval; ``scale`` is the length of the unit in pixels."""
    reach = np.hypot((u - middle[0]) / axes[0], (v - middle[1]) / axes[1])
    return _smooth((reach - 1) * min(axes), scale)


def _smooth(distance: Array, scale: float) -> Array:
    """Share of each pixel on the negative side of the border."""
    covered: Array = np.clip(np.float32(0.5) - distance * np.float32(scale), 0, 1)
    return covered
