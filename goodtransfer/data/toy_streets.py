"""The toy world with a class for every pixel: SYNTHIA's videos and frames, and Cityscapes."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from goodtransfer.data.toy_picture import Drawing, Picture, draw, generator, invent
from goodtransfer.data.toy_places import PLACES
from goodtransfer.data.toy_writing import numbers, save, write_layout

# --- SYNTHIA: video sequences by eight cameras, and single frames (RAND_CITYSCAPES)


SEQUENCES = ("SYNTHIA-SEQS-01-SPRING", "SYNTHIA-SEQS-02-SUMMER")
EYES = {"Stereo_Left": 0.0, "Stereo_Right": -0.02}  # how far objects are shifted
DIRECTIONS = ("Omni_F", "Omni_B", "Omni_L", "Omni_R")
OBJECTS = 4  # at most in a square
SWAY, ROUND = 0.06, 60  # of the camera: how far each way, and frames until it is back

# From Cityscapes' labelIds to SYNTHIA's number and colour. The earlier list, of the sequences, has no
# bus (told as car) and no motorcycle (told as bicycle); neither has terrain (told as sidewalk).
Ids = Mapping[int, tuple[int, tuple[int, int, int]]]
SEQUENCE_IDS: Ids = {
    23: (1, (128, 128, 128)),  # sky
    11: (2, (128, 0, 0)),  # building
    7: (3, (128, 64, 128)),  # road
    22: (4, (0, 0, 192)),  # sidewalk
    21: (6, (128, 128, 0)),  # vegetation
    26: (8, (64, 0, 128)),  # car
    28: (8, (64, 0, 128)),
    24: (10, (64, 64, 0)),  # pedestrian
    33: (11, (0, 128, 192)),  # bicycle
    32: (11, (0, 128, 192)),
}
RAND_IDS: Ids = {
    23: (1, (70, 130, 180)),  # sky
    11: (2, (70, 70, 70)),  # building
    7: (3, (128, 64, 128)),  # road
    22: (4, (244, 35, 232)),  # sidewalk
    21: (6, (107, 142, 35)),  # vegetation
    26: (8, (0, 0, 142)),  # car
    28: (19, (0, 60, 100)),  # bus
    24: (10, (220, 20, 60)),  # pedestrian
    33: (11, (119, 11, 32)),  # bicycle
    32: (12, (0, 0, 230)),  # motorcycle
}


def make_synthia(
    root: str | Path, *, frames: int, rand: int, size: int = 128, seed: int = 0
) -> Path:
    """Write two sequences, and ``ROOT/RAND_CITYSCAPES``, each with ``RGB``, ``GT/LABELS``, ``GT/COLOR``.

    In a sequence's folders lie ``Stereo_{Left,Right}/Omni_{F,B,L,R}/000000.png``. Consecutive frames
    are nearly the same: the camera sways slowly. Labels are 16-bit R, G, B images with the class in
    R, which is the last channel to OpenCV, and the instance in G.

    Args:
        root: folder to write.
        frames: of each of the eight cameras of a sequence.
        rand: single frames, of RAND_CITYSCAPES.
        size: side of the images in pixels.
        seed: of everything that is drawn.
    """

    def write(world: Path) -> None:
        for number, sequence in enumerate(SEQUENCES):
            for direction, folder in enumerate(DIRECTIONS):
                scene = number * len(DIRECTIONS) + direction
                for frame in numbers(frames):
                    for eye in EYES:
                        drawing = draw(sequence_picture(seed, scene, frame, eye), size)
                        name = f"{eye}/{folder}/{frame:06d}.png"
                        _save_labelled(world / sequence, name, drawing, SEQUENCE_IDS)
        for index in numbers(rand):
            drawing = draw(rand_picture(seed, index), size)
            _save_labelled(world / "RAND_CITYSCAPES", f"{index:07d}.png", drawing, RAND_IDS)

    return write_layout(root, "SYNTHIA", write, frames=frames, rand=rand, size=size, seed=seed)


def sequence_picture(seed: int, scene: int, frame: int, eye: str) -> Picture:
    """Invent one frame of a sequence; the scene is what both eyes of one direction see."""
    random = generator(seed, "synthia", scene)
    still = invent(random, objects=OBJECTS, place=scene % len(PLACES), hard=0)
    phase = float(random.uniform())
    sway = SWAY * math.sin(2 * math.pi * (frame / ROUND + phase))
    return still.shifted(sway + EYES[eye], sway)  # the place is far away: no parallax


def rand_picture(seed: int, index: int) -> Picture:
    """Invent one image of RAND_CITYSCAPES."""
    random = generator(seed, "synthia/rand", index)
    return invent(random, objects=int(random.integers(1, OBJECTS, endpoint=True)))


def _save_labelled(folder: Path, name: str, drawing: Drawing, ids: Ids) -> None:
    labels = np.zeros(drawing.pixels.shape, dtype=np.uint16)
    colours = np.zeros_like(drawing.pixels)
    for label, (number, colour) in ids.items():
        labels[drawing.classes == label, 0] = number
        colours[drawing.classes == label] = colour
    labels[..., 1] = drawing.instances
    save(drawing.pixels, folder / "RGB" / name)
    save(labels, folder / "GT" / "LABELS" / name)
    save(colours, folder / "GT" / "COLOR" / name)


# --- Cityscapes: wide images with classes and instances


CITY = "toytown"


def make_cityscapes(
    root: str | Path, *, train: int, val: int, size: int = 128, seed: int = 0
) -> Path:
    """Write ``ROOT/{leftImg8bit,gtFine}/{train,val}/toytown`` with labelIds and instanceIds.

    Images are ``size`` high and twice as wide. An instance is 1000 times its class plus its number in
    the class; a crowd, in one of four images, has the number of its class alone.
    """

    def write(world: Path) -> None:
        for split, count in (("train", train), ("val", val)):
            for index in numbers(count):
                what = city_picture(seed, split, index)
                drawing, name = draw(what, size), f"{CITY}_{index:06d}_000019"
                truth = world / "gtFine" / split / CITY / f"{name}_gtFine"
                image = world / "leftImg8bit" / split / CITY / f"{name}_leftImg8bit.png"
                save(drawing.pixels, image)
                save(drawing.classes, truth.with_name(f"{truth.name}_labelIds.png"))
                save(instance_ids(what, drawing), truth.with_name(f"{truth.name}_instanceIds.png"))

    return write_layout(root, "Cityscapes", write, train=train, val=val, size=size, seed=seed)


def city_picture(seed: int, split: str, index: int) -> Picture:
    """Invent one image of Cityscapes."""
    random = generator(seed, f"cityscapes/{split}", index)
    count = int(random.integers(2, 2 * OBJECTS))
    return invent(random, objects=count, crowd=index % 4 == 3, hard=0, wide=2)


def instance_ids(what: Picture, drawing: Drawing) -> NDArray[np.uint16]:
    """Cityscapes' instanceIds, H x W."""
    ids = drawing.classes.astype(np.uint16)
    seen: dict[int, int] = {}
    for number in range(1, len(what.objects) + 1):
        label = int(drawing.classes[drawing.instances == number][0])
        ids[drawing.instances == number] = 1000 * label + seen.get(label, 0)
        seen[label] = seen.get(label, 0) + 1
    return ids
