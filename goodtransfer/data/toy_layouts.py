"""The toy world in the layouts of the paper's data sets, so that drawn and real files read alike.

Places, CelebA with MAFL and mini-ImageNet are here; `toy` has ImageNet, `toy_voc` VOC, `toy_coco`
COCO, `toy_streets` SYNTHIA and Cityscapes. All take pixels and annotation from one description of
what is in an image, and an image depends on seed, split and number alone (a face on the number of
identities, too), so a longer split begins with the shorter one.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from goodtransfer.data import toy, toy_faces, toy_places
from goodtransfer.data.toy import CLASSES, make_imagefolder
from goodtransfer.data.toy_coco import make_coco
from goodtransfer.data.toy_picture import Drawing, Picture, draw, generator, invent
from goodtransfer.data.toy_places import PLACES
from goodtransfer.data.toy_streets import make_cityscapes, make_synthia
from goodtransfer.data.toy_voc import make_voc
from goodtransfer.data.toy_writing import numbers, save, save_lines, write_layout

__all__ = [
    "make_all",
    "make_celeba",
    "make_cityscapes",
    "make_coco",
    "make_imagefolder",
    "make_mini_imagenet",
    "make_places",
    "make_synthia",
    "make_voc",
]


# --- Places: a folder for each scene class


def make_places(root: str | Path, *, train: int, val: int, size: int = 128, seed: int = 0) -> Path:
    """Write ``ROOT/{train,val}/CLASS/00000001.jpg`` (Places365's "easy directory structure").

    The classes, `toy_places.PLACES`, take turns; none, one or two objects stand in the way.
    """

    def write(world: Path) -> None:
        for split, count in (("train", train), ("val", val)):
            for index in numbers(count):
                what = place_picture(seed, split, index)
                folder = world / split / PLACES[index % len(PLACES)]
                save(draw(what, size).pixels, folder / f"{index + 1:08d}.jpg")

    return write_layout(root, "Places", write, train=train, val=val, size=size, seed=seed)


def place_picture(seed: int, split: str, index: int) -> Picture:
    """Invent one image of Places."""
    random = generator(seed, f"places/{split}", index)
    return invent(random, objects=int(random.integers(3)), place=index % len(PLACES))


# --- CelebA: faces with identities and landmarks, and MAFL's lists


WIDTH = 178 / 218  # of an aligned CelebA image to its height
PARTITIONS = (0,) * 8 + (1, 2)  # train, val, test: the identities take turns
MAFL = {"testing": (0, 0.1), "training": (0.1, 0.5)}  # shares of the images, from, to


def make_celeba(
    root: str | Path, *, images: int, identities: int, size: int = 218, seed: int = 0
) -> Path:
    """Write ``ROOT/img_align_celeba/000001.jpg``, CelebA's lists beside it, and MAFL's in ``MAFL``.

    The identities, counted from 1, take turns. As in reality partitions share no identity, MAFL's
    images come from all of them, and its two lists share identities, are not in order and end
    without a line break.

    Args:
        root: folder to write.
        images: in all partitions.
        identities: at least 10, so that each partition has one; at most one an image.
        size: height of the images in pixels.
        seed: of everything that is drawn.
    """
    if not len(PARTITIONS) <= identities <= images:
        raise ValueError(
            f"Expected {len(PARTITIONS)} to {images} identities, so that no partition and no "
            f"identity is empty, but found {identities}: ask for other numbers."
        )

    def write(world: Path) -> None:
        names = [f"{index + 1:06d}.jpg" for index in range(images)]
        rows = []
        for index in numbers(images):
            pixels, points = _portrait(draw(face_picture(seed, identities, index), size))
            save(pixels, world / "img_align_celeba" / names[index])
            rows.append(names[index] + "".join(f" {number:4d}" for number in points)[1:])
        heading = " ".join(f"{point}_{axis}" for point in toy_faces.LANDMARKS for axis in "xy")
        landmarks = [str(images), heading, *rows]
        save_lines(world / "list_landmarks_align_celeba.txt", landmarks)
        turns = [(name, index % identities) for index, name in enumerate(names)]
        people = [f"{name} {identity + 1}" for name, identity in turns]
        save_lines(world / "identity_CelebA.txt", people)
        parts = [f"{name} {PARTITIONS[identity % len(PARTITIONS)]}" for name, identity in turns]
        save_lines(world / "list_eval_partition.txt", parts)
        (world / "MAFL").mkdir()
        for part, listed in mafl(names).items():
            (world / "MAFL" / f"{part}.txt").write_text("\n".join(listed))

    counts = {"images": images, "identities": identities}
    return write_layout(root, "CelebA", write, **counts, size=size, seed=seed)


def face_picture(seed: int, identities: int, index: int) -> Picture:
    """Invent one image of CelebA: a face before any place."""
    here, identity = generator(seed, "celeba", index), index % identities
    face = toy_faces.invent(identity, generator(seed, "identity", identity), here)
    place = toy_places.invent(here, int(here.integers(len(PLACES))))
    return Picture(face=face, place=place)


def _portrait(drawing: Drawing) -> tuple[NDArray[np.uint8], list[int]]:
    """The middle of the drawing in CelebA's proportion, and x, y of the landmarks in it."""
    size = len(drawing.pixels)
    width = round(WIDTH * size)
    left = (size - width) // 2
    points = [(round(x) - left, round(y)) for x, y in drawing.landmarks]
    return drawing.pixels[:, left : left + width], [number for point in points for number in point]


def mafl(names: list[str]) -> dict[str, list[str]]:
    """Testing and training lists, drawn image by image, so that they grow with the images."""
    place = dict(zip(names, np.random.default_rng(0).uniform(size=len(names)), strict=True))
    mixed = sorted(names, key=lambda name: place[name])
    return {of: [n for n in mixed if low <= place[n] < high] for of, (low, high) in MAFL.items()}


# --- mini-ImageNet: classes apart


# Every shape and every texture is in train; a class of val or test is a new pair of them.
SPLITS = ("train", "train", "val", "test")
# Heading and row of the lists, and path of the image: of class {0}, number {1}.
DIALECTS = {
    "ravi": ("filename,label", "{0}{1:08d}.jpg,{0}", "images/{0}{1:08d}.jpg"),
    "sicara": ("class_name,image_name", "{0},{0}_{1}.JPEG", "{0}/{0}_{1}.JPEG"),
}


def make_mini_imagenet(
    root: str | Path, *, per_class: int, size: int = 64, seed: int = 0, dialect: str = "ravi"
) -> Path:
    """Write ``ROOT/{train,val,test}.csv`` of 10, 5 and 5 of the classes, and their images.

    Args:
        root: folder to write.
        per_class: images of every class.
        size: side of the images in pixels.
        seed: of everything that is drawn.
        dialect: "ravi" has rows ``filename,label`` and images in ``images``; "sicara" has rows
            ``class_name,image_name`` and a folder of images for each class.
    """
    if dialect not in DIALECTS:
        raise ValueError(f"Expected one of {list(DIALECTS)}, but found {dialect!r}: take one.")
    heading, row, image = DIALECTS[dialect]

    def write(world: Path) -> None:
        rows: dict[str, list[str]] = {split: [] for split in SPLITS}
        for index in numbers(per_class * len(CLASSES)):
            number, label = divmod(index, len(CLASSES))
            called = f"n{label + 1:08d}", number + 1
            rows[mini_split(label)].append(row.format(*called))
            what = toy.invent(generator(seed, "mini_imagenet", index), label)
            save(toy.draw(what, size), world / image.format(*called))
        for split, lines in rows.items():
            save_lines(world / f"{split}.csv", [heading, *sorted(lines)])

    layout = f"mini-ImageNet, {dialect}"
    return write_layout(root, layout, write, per_class=per_class, size=size, seed=seed)


def mini_split(label: int) -> str:
    """The split that has this class of `toy.CLASSES`."""
    shape, texture = divmod(label, len(toy.TEXTURES))
    return SPLITS[(shape + texture) % len(SPLITS)]


# --- Everything


def make_all(
    root: str | Path, *, images: int = 2000, size: int = 128, seed: int = 0
) -> dict[str, Path]:
    """Write the toy world in every layout, each into a folder of its own.

    Args:
        root: folder to write into.
        images: of all layouts together; about, and not less than each needs for all its classes.
        size: height of the images in pixels; of CelebA's for each 128 of it 218, their true size.
        seed: of everything that is drawn.

    Returns:
        The folders by layout.

    Raises:
        ValueError: for images of fewer than 32 pixels, or where a folder holds something else.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     sorted(make_all(folder, images=1, size=32))
    ['celeba', 'cityscapes', 'coco', 'imagefolder', 'mini_imagenet', 'places', 'synthia', 'voc']
    """
    root = Path(root)
    rest = {"size": size, "seed": seed}

    def share(of_2000: int, least: int = 1) -> int:
        return max(least, of_2000 * images // 2000)

    return {
        "imagefolder": make_imagefolder(
            root / "imagefolder", train=share(300, 20), val=share(100, 20), **rest
        ),
        "places": make_places(root / "places", train=share(180, 6), val=share(60, 6), **rest),
        "celeba": make_celeba(
            root / "celeba",
            images=share(300, 20),
            identities=share(30, 10),
            size=size * 218 // 128,
            seed=seed,
        ),
        "coco": make_coco(root / "coco", train=share(150), val=share(50), **rest),
        "synthia": make_synthia(root / "synthia", frames=share(10), rand=share(100), **rest),
        "cityscapes": make_cityscapes(root / "cityscapes", train=share(80), val=share(40), **rest),
        "voc": make_voc(root / "voc", train=share(120), test=share(60), **rest),
        "mini_imagenet": make_mini_imagenet(
            root / "mini_imagenet", per_class=share(15), size=size, seed=seed
        ),
    }
