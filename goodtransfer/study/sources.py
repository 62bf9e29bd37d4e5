"""The data sets of a study: what each folder must hold, what the paper's held, what tells it apart.

No image is read here, and torch is imported for the user's own data only.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from goodtransfer.data import toy, toy_voc
from goodtransfer.data.files import class_numbers
from goodtransfer.data.fingerprint import fingerprint, voc_fingerprint
from goodtransfer.study.protocol import GIVEN
from goodtransfer.study.sizes import Size, part, toy_size
from goodtransfer.study.transfers import TRANSFERS

IMAGENET = "1,281,167 images of 1,000 classes"
VOC2007 = ("2007/trainval", "2007/test")
VOC2012 = "2012/trainval"
TOY = "toy world"
ENCODERS = "encoders"  # the folder, in a study's own, of the encoders that its user holds


class Found(NamedTuple):
    """Attributes: ``identity``, which changes with the data; ``text``, what to call it; ``size``."""

    identity: Any
    text: str
    size: Size


@dataclass(frozen=True)
class Source:
    """A data set.

    Attributes:
        root: name of the folder that holds it; several may share one.
        paper: what the paper's holds.
        find: looks into a folder; ``voc_splits`` matter to VOC alone.
    """

    root: str
    paper: str
    find: Callable[[Path, Sequence[str]], Found]


def _imagenet(root: Path, _: Sequence[str], classes: Sequence[str] = ()) -> Found:
    found = fingerprint(root, classes)
    size = f"{found.images:,} images of {found.classes:,} classes"
    text = "ImageNet" if size == IMAGENET else f"{root.name}, {size}"
    return Found(found.digest, text, Size(found.images, found.classes))


def _subset(name: str, subset: str) -> Callable[[Path, Sequence[str]], Found]:
    def find(root: Path, splits: Sequence[str]) -> Found:
        whole = _imagenet(root, splits)
        text = f"{subset} of {whole.text}"
        return Found([whole.identity, subset], text, part(whole.size, name))

    return find


def _places(root: Path, _: Sequence[str]) -> Found:
    from goodtransfer.data import PlacesDataModule

    data = PlacesDataModule(root)
    text = f"{data.num_images:,} images of {data.num_classes} scenes"
    return Found(data.fingerprint(), text, Size(data.num_images, data.num_classes))


def _coco_images(root: Path, _: Sequence[str]) -> Found:
    from goodtransfer.data import COCODataModule

    data = COCODataModule(root)
    return Found(data.fingerprint(), f"{data.num_images:,} images", Size(data.num_images))


def _synthia(root: Path, _: Sequence[str]) -> Found:
    from goodtransfer.data import SYNTHIADataModule

    data = SYNTHIADataModule(root)
    text = f"{data.num_images:,} frames of its sequences"
    return Found(data.fingerprint(), text, Size(data.num_images))


def _voc(root: Path, splits: Sequence[str]) -> Found:
    found = voc_fingerprint(root, splits)
    counts = zip(found.images, splits, strict=True)
    text = ", ".join(f"{count:,} of {name}" for count, name in counts)
    return Found(found.digest, text, Size(sum(found.images[:-1])))  # the last one is to test on


def _voc0712(root: Path, splits: Sequence[str]) -> Found:
    train, test = splits
    return _voc(root, (train, VOC2012, test))


def _coco(root: Path, _: Sequence[str]) -> Found:
    from goodtransfer.data import COCODetectionDataModule
    from goodtransfer.data.files import scan_flat

    counts = {name: len(scan_flat(root / name)) for name in ("train2017", "val2017")}
    text = ", ".join(f"{count:,} of {name}" for name, count in counts.items())
    return Found(COCODetectionDataModule(root).fingerprint(), text, Size(counts["train2017"]))


def _cityscapes(root: Path, _: Sequence[str]) -> Found:
    from goodtransfer.data import CityscapesDataModule

    data = CityscapesDataModule(root)
    text = f"{data.num_images:,} of train, {len(data.files('val')):,} of val"
    return Found(data.fingerprint(), text, Size(data.num_images))


def _mini_imagenet(root: Path, _: Sequence[str]) -> Found:
    from goodtransfer.data import MiniImageNetDataModule

    data = MiniImageNetDataModule(root)
    counts = {part: len(data.files(part)) for part in ("base", "validation", "novel")}
    text = ", ".join(f"{count:,} of {part}" for part, count in counts.items())
    size = Size(data.num_images, data.num_classes, counts["validation"] + counts["novel"])
    return Found([data.fingerprint(), counts], text, size)


def _celeba(root: Path, _: Sequence[str]) -> Found:
    from goodtransfer.data import CelebADataModule

    data = CelebADataModule(root, leave_out_mafl="test")
    text = f"{data.num_images:,} of train, without MAFL's test"
    return Found(data.fingerprint(), text, Size(data.num_images, data.num_classes))


def _mafl(root: Path, _: Sequence[str]) -> Found:
    from goodtransfer.data import MAFLDataModule

    data = MAFLDataModule(root)
    counts = len(data.files("train")), len(data.files("test"))
    text = "MAFL, {:,} to train on, {:,} to test on".format(*counts)
    return Found(data.fingerprint(), text, Size(counts[0]))


SOURCES: Mapping[str, Source] = {
    "imagenet": Source("imagenet", "ImageNet", _imagenet),
    # The lists of both subsets are unpublished.
    "imagenet10": Source("imagenet", "10 % of ImageNet", _subset("imagenet10", "10%")),
    "imagenet100": Source(
        "imagenet", "100 classes of ImageNet", _subset("imagenet100", "10% of classes")
    ),
    "places": Source("places", "2,448,873 images of 205 scenes", _places),
    "coco_images": Source("coco", "118,287 images", _coco_images),
    "synthia": Source("synthia", "365K frames of its sequences", _synthia),
    "voc0712": Source(
        "voc", "5,011 of 2007/trainval, 11,540 of 2012/trainval, 4,952 of 2007/test", _voc0712
    ),
    "voc": Source("voc", "5,011 of 2007/trainval, 4,952 of 2007/test", _voc),
    "coco": Source("coco", "118,287 of train2017, 5,000 of val2017", _coco),
    "cityscapes": Source("cityscapes", "2,975 of train, 500 of val", _cityscapes),
    "mini_imagenet": Source(
        "mini_imagenet",
        "38,400 of base, 9,600 of validation, 12,000 of novel",
        _mini_imagenet,
    ),
    "celeba": Source("celeba", "162,770 of train, or more", _celeba),
    "mafl": Source("celeba", "MAFL, 19,000 to train on, 1,000 to test on", _mafl),
    GIVEN: Source(ENCODERS, "unknown", lambda root, _: Found(GIVEN, "unknown", Size(0))),
}

# Module of `goodtransfer.data`, by name since importing it needs torch, and its arguments, of the data
# sets that a method pretrains on.
IMAGES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "imagenet": ("ImageNetDataModule", {}),
    "imagenet10": ("ImageNetDataModule", {"subset": "10%"}),
    "imagenet100": ("ImageNetDataModule", {"subset": "10% of classes"}),
    "places": ("PlacesDataModule", {}),
    "coco_images": ("COCODataModule", {}),
    "synthia": ("SYNTHIADataModule", {}),
    "mini_imagenet": ("MiniImageNetDataModule", {}),
    # MAFL's test faces are not trained on; the paper is silent (protocol 6.4).
    "celeba": ("CelebADataModule", {"leave_out_mafl": "test"}),
}

# Folders that a user may name, the option that does, and what it must hold.
ROOTS = {
    "imagenet": ("--data", "train/CLASS/ and val/CLASS/ images"),
    "voc": ("--voc", "VOCdevkit"),
    "coco": ("--coco", "train2017, val2017 and annotations"),
    "cityscapes": ("--cityscapes", "leftImg8bit and gtFine"),
    "places": ("--places", "Places205's or Places365's lists and images"),
    "synthia": ("--synthia", "SYNTHIA-SEQS-* folders"),
    "mini_imagenet": ("--mini-imagenet", "train.csv, val.csv, test.csv and their images"),
    "celeba": ("--celeba", "CelebA with MAFL's lists"),
}

# Those of them that something is transferred to.
MEASURED_ON = {SOURCES[transfer.data].root for transfer in TRANSFERS.values()}


def toy_source(name: str, arguments: Mapping[str, Any]) -> Found:
    """Of a data set of the toy world whose layout is drawn by these arguments."""
    drawn = {"toy": (toy.VERSION, toy_voc.VERSION), **arguments}
    return Found(drawn, TOY, toy_size(name, arguments))


def toy_classes(arguments: Mapping[str, Any], classes: Sequence[str]) -> Found:
    """Some classes of the toy world's ImageNet."""
    class_numbers(classes, toy.CLASSES, Path("train"))
    if set(classes) == set(toy.CLASSES):
        return toy_source("imagenet", arguments)
    found = toy_source("imagenet", {**arguments, "classes": classes})
    return found._replace(text=f"{len(classes)} classes of the {TOY}")


@cache
def find_classes(root: Path, classes: tuple[str, ...]) -> Found:
    """Some classes of a user's folder of classes, as if it had no others.

    Raises:
        ValueError: for a class that it does not have.
    """
    return _imagenet(root, (), classes)


@cache
def find(name: str, root: Path, voc_splits: tuple[str, ...]) -> Found:
    """What a user's folder holds.

    Raises:
        FileNotFoundError: for a folder without the data set, naming the tree.
    """
    return SOURCES[name].find(root, voc_splits)
