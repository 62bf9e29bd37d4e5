"""One image of any data module with all that is known of it, as pictures and checks need it."""

from collections.abc import Callable
from functools import partial, singledispatch
from typing import NamedTuple

import numpy as np
import pytorch_lightning as pl
from numpy.typing import NDArray
from torch import Tensor

from goodtransfer.data.detection import DetectionDataModule, DetectionDataset
from goodtransfer.data.files import Files
from goodtransfer.data.images import ImageDataModule
from goodtransfer.data.mafl import MAFLDataModule, MAFLDataset
from goodtransfer.data.segmentation import SegmentationDataModule, SegmentationDataset
from goodtransfer.views import decode
from goodtransfer.views.pixels import to_tensor
from goodtransfer.views.segmentation import IGNORE


class Sample(NamedTuple):
    """An image, whole and unaugmented.

    Attributes:
        image: uint8 RGB (3, H, W).
        names: of its class, or of the class of each object.
        boxes: of its n objects (n, 4) as (x1, y1, x2, y2) in pixels.
        masks: of its n objects, bool (n, H, W).
        classes: train id of each pixel (H, W), 255 where it does not count.
        landmarks: (k, 2) as (x, y) in pixels.
    """

    image: Tensor
    names: tuple[str, ...] = ()
    boxes: Tensor | None = None
    masks: Tensor | None = None
    classes: Tensor | None = None
    landmarks: Tensor | None = None


class Part(NamedTuple):
    """A part of a data set.

    Attributes:
        files: its images.
        labels: class of each image or object; empty where only pixels have one.
        sample: image ``number`` of it; OSError or ValueError where a file cannot be used.
    """

    files: Files
    labels: NDArray[np.int64]
    sample: Callable[[int], Sample]


@singledispatch
def parts(module: pl.LightningDataModule) -> dict[str, Part]:
    """The parts of a data module by name, those that have images.

    Raises:
        ValueError: for a part that the data set should have and has not.
    """
    raise ValueError(f"Expected a data module of goodtransfer, but got {type(module).__name__}.")


# What reads a sample is a function of this file and its first arguments, so that it can be sent to
# processes that are started in any way.


@parts.register
def _(module: ImageDataModule) -> dict[str, Part]:
    def part(name: str) -> Part:
        files = module.files(name)
        read = partial(_classified, files, module.label_names(name), module.max_pixels)
        return Part(files, files.labels, read)

    return {name: part(name) for name in module.parts}


def _classified(files: Files, names: list[str], max_pixels: int, number: int) -> Sample:
    label = int(files.labels[number])
    known = (names[label],) if 0 <= label < len(names) else ()
    return Sample(to_tensor(decode(files.path(number), max_pixels=max_pixels)), known)


@parts.register
def _(module: DetectionDataModule) -> dict[str, Part]:
    def part(name: str) -> Part:
        records = module.records(name)
        read = partial(_detected, module.dataset(records), module.class_names)
        return Part(records.files, records.objects["labels"], read)

    return {name: part(name) for name in ("train", "test")}


def _detected(dataset: DetectionDataset, class_names: list[str], number: int) -> Sample:
    image, target = dataset.item(0, number)
    names = tuple(class_names[int(label)] for label in target["labels"])
    return Sample(image, names, target["boxes"], target.get("masks"))


@parts.register
def _(module: SegmentationDataModule) -> dict[str, Part]:
    def part(name: str) -> Part:
        pairs = module.files(name)
        dataset = SegmentationDataset(pairs, module.label_reader())
        read = partial(_segmented, dataset, module.class_names)
        return Part(pairs.images, np.zeros(0, dtype=np.int64), read)

    return {name: part(name) for name in module.parts}


def _segmented(dataset: SegmentationDataset, class_names: list[str], number: int) -> Sample:
    image, target = dataset.item(0, number)
    there = sorted(set(target["classes"].flatten().tolist()) - {IGNORE})
    return Sample(image, tuple(class_names[n] for n in there), classes=target["classes"])


@parts.register
def _(module: MAFLDataModule) -> dict[str, Part]:
    def part(name: str) -> Part:
        faces = module.faces(name)
        dataset = MAFLDataset(faces, size=module.size, max_pixels=module.max_pixels)
        return Part(faces.files, np.zeros(0, dtype=np.int64), partial(_landmarked, dataset))

    return {name: part(name) for name in ("train", "test")}


def _landmarked(dataset: MAFLDataset, number: int) -> Sample:
    image, target = dataset.item(0, number)
    return Sample(image, landmarks=target["landmarks"])
