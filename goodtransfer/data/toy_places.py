"""The toy world's scenes: six places, told apart by the skyline and by the ground, not by colour.

A place is what lies behind the objects of a picture. Its tones are dealt to sky, skyline and ground
without looking at the class, and the stripes of the ground have the mean of the plain one. The two
skylines, hills and towers, run through the same heights: one smoothly, the other in steps. They go
on beyond the picture's borders, so that a picture may be wide or its camera may turn.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from goodtransfer.data.toy import TEXTURES, TINT, Array, Colour

SKYLINES = ("flat", "hills", "towers")
GROUNDS = ("plain", "striped")
# In alphabetical order, so that a label is the number ImageFolder gives to the class folder.
PLACES = tuple(f"{skyline}-{ground}" for skyline in SKYLINES for ground in GROUNDS)

# Numbers that Cityscapes gives to its classes (labelIds).
SKY = 23
SKYLINE_IDS = {"flat": SKY, "hills": 21, "towers": 11}  # vegetation, building
GROUND_IDS = {"plain": 7, "striped": 22}  # road, terrain

# The world: uniform ranges, lengths in units of the image's side, brightness in 0..1.
HORIZON = (0.45, 0.65)
HEIGHT = (0.02, 0.3)  # of the skyline above the horizon
STEP = (0.1, 0.16)  # from one height to the next
STEPS = 16  # until the skyline repeats
MIDDLE = (0.45, 0.55)  # brightness of the middle tone
CONTRAST = (0.2, 0.26)  # of the other two to it
STRIPES = 0.1  # contrast of the ground's stripes to its tone
PERIOD = (0.5, 0.8)  # of the stripes, as seen one unit below the horizon


@dataclass(frozen=True)
class Place:
    """What lies behind the objects; lengths in units of the image's side, colours in 0..1.

    ``left`` is where along the skyline the picture begins, ``vanishing`` where on the horizon the
    stripes meet.
    """

    label: int
    horizon: float
    heights: tuple[float, ...]
    step: float
    left: float
    vanishing: float
    period: float
    sky: Colour
    far: Colour
    ground: Colour

    @property
    def class_name(self) -> str:
        """The class folder, such as ``towers-striped``."""
        return PLACES[self.label]

    @property
    def skyline(self) -> str:
        """First half of the class."""
        return self.class_name.split("-")[0]

    @property
    def floor(self) -> str:
        """Second half of the class: what the ground is like."""
        return self.class_name.split("-")[1]

    def shifted(self, by: float) -> "Place":
        """The place as seen when everything has moved to the right by so much."""
        return replace(self, left=self.left - by, vanishing=self.vanishing + by)


def tone(random: np.random.Generator, brightness: float) -> Colour:
    """A colour of about this brightness."""
    r, g, b = np.clip(brightness + random.uniform(-TINT, TINT, size=3), 0, 1)
    return float(r), float(g), float(b)


def invent(random: np.random.Generator, label: int) -> Place:
    """A place of the class, as the generator has it."""
    middle, contrast = random.uniform(*MIDDLE), random.uniform(*CONTRAST)
    sky, far, ground = middle + contrast * random.permutation([-1.0, 0.0, 1.0])
    return Place(
        label=label,
        horizon=float(random.uniform(*HORIZON)),
        heights=tuple(float(h) for h in random.uniform(*HEIGHT, size=STEPS)),
        step=float(random.uniform(*STEP)),
        left=float(random.uniform(0, 2)),
        vanishing=float(random.uniform(0, 1)),
        period=float(random.uniform(*PERIOD)),
        sky=tone(random, sky),
        far=tone(random, far),
        ground=tone(random, ground),
    )


def draw(what: Place, size: int) -> tuple[Array, NDArray[np.uint8]]:
    """Colours in 0..1 (size x size x RGB) and Cityscapes' labelIds (size x size)."""
    middle = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)
    x, y = np.meshgrid(middle, middle)
    depth = y - np.float32(what.horizon)
    above = depth + _height(what, x)
    pixels: Array = np.empty((size, size, 3), dtype=np.float32)
    pixels[:] = what.sky
    for below, fill in ((above, np.array(what.far)), (depth, _ground(what, x, depth))):
        covered = np.clip(np.float32(0.5) + below * np.float32(size), 0, 1)[..., None]
        pixels += covered * (fill.astype(np.float32) - pixels)
    far = np.where(above > 0, SKYLINE_IDS[what.skyline], SKY)
    return pixels, np.where(depth > 0, GROUND_IDS[what.floor], far).astype(np.uint8)


def _height(what: Place, x: Array) -> Array:
    """Of the skyline above the horizon; a flat one stays far below it."""
    if what.skyline == "flat":
        return np.full_like(x, -1)
    along = (x + np.float32(what.left)) / np.float32(what.step)
    before = np.floor(along)
    share = along - before if what.skyline == "hills" else np.zeros_like(x)
    smooth = (1 - np.cos(np.float32(math.pi) * share)) / 2
    heights = np.array(what.heights, dtype=np.float32)
    low, high = (heights[(before.astype(int) + i) % len(heights)] for i in (0, 1))
    height: Array = low + smooth * (high - low)
    return height


def _ground(what: Place, x: Array, depth: Array) -> Array:
    """Colours of the ground; its stripes lie flat, so they run together at the horizon."""
    ground: Array = np.broadcast_to(np.array(what.ground, dtype=np.float32), (*x.shape, 3))
    if what.floor == "plain":
        return ground
    size = len(x)
    depth, aside = np.maximum(depth, np.float32(0.5 / size)), x - np.float32(what.vanishing)
    period = np.float32(what.period) * depth
    border = TEXTURES["stripes"](aside / period, depth) * period  # along the row
    border *= depth / np.hypot(depth, aside)  # straight across the stripe
    lit = np.clip(np.float32(0.5) - border * np.float32(size), 0, 1)[..., None]
    striped: Array = ground + np.float32(STRIPES) * (2 * lit - 1)
    return striped
