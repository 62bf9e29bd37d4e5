"""PASCAL VOC detection, and any data set in the layout of a VOCdevkit."""

import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypedDict
from xml.etree import ElementTree

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from goodtransfer.data.files import EXTENSIONS
from goodtransfer.data.fingerprint import voc_fingerprint, voc_list
from goodtransfer.data.loader import EpochSampler, GroupedSampler, ResumableLoader, loader
from goodtransfer.distributed import rank, world_size
from goodtransfer.views import decode

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip

# How training images are read where neither the user nor the task says otherwise; as detectron2.
LOADER = {"flip": 0.5, "group_by_aspect_ratio": True, "skip_empty": True}

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of an image without reading it.

    Attributes:
        name: as the split lists it, such as ``000001``.
        image: path of the image file.
        width: in pixels.
        height: in pixels.
        boxes: (x1, y1, x2, y2) of each object, from 0 to width and height.
        labels: its class.
        difficult: whether VOC's score leaves it out.
    """

    name: str
    image: str
    width: int
    height: int
    boxes: tuple[Box, ...]
    labels: tuple[int, ...]
    difficult: tuple[bool, ...]


class Target(TypedDict):
    """The n objects of an image: a plain dictionary."""

    boxes: Tensor
    labels: Tensor
    difficult: Tensor
    image_id: int


Item = tuple[Tensor, Target]


class VOCDataset(Dataset[Item]):
    """Images and their objects; an item is asked for by (epoch, number).

    Args:
        records: of the images.
        flip: probability of a horizontal flip.
        seed: of the flips.
    """

    def __init__(self, records: Sequence[Record], *, flip: float = 0.0, seed: int = 0) -> None:
        self.records, self.flip, self.seed = records, flip, seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, address: tuple[int, int] | int) -> Item:
        epoch, number = address if isinstance(address, tuple) else (0, address)
        record = self.records[number]
        pixels = decode(record.image)
        if pixels.shape[:2] != (record.height, record.width):
            raise ValueError(
                f"Expected {record.image} to be {record.width} x {record.height} pixels, as its "
                f"annotation says, but it is {pixels.shape[1]} x {pixels.shape[0]}: the boxes are "
                "of another image, so replace one of the two files."
            )
        boxes = torch.tensor(record.boxes, dtype=torch.float32).reshape(-1, 4)
        if random.Random(f"{self.seed}/{epoch}/{number}").random() < self.flip:
            pixels = pixels[:, ::-1]
            boxes[:, [0, 2]] = record.width - boxes[:, [2, 0]]
        image = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
        return image, {
            "boxes": boxes,
            "labels": torch.tensor(record.labels, dtype=torch.int64),
            "difficult": torch.tensor(record.difficult, dtype=torch.bool),
            "image_id": number,
        }


def collate(items: list[Item]) -> tuple[list[Tensor], list[Target]]:
    """Lists, since images differ in size."""
    return [image for image, _ in items], [target for _, target in items]


class VOCDetectionDataModule(pl.LightningDataModule):
    """Images, boxes, labels and difficult flags, in the layout of PASCAL VOC.

    Expected tree, as unpacked from http://host.robots.ox.ac.uk/pascal/VOC (``ROOT`` may also be the
    folder VOCdevkit itself; any image format will do)::

        ROOT/VOCdevkit/VOC2007/JPEGImages/000005.jpg
        ROOT/VOCdevkit/VOC2007/Annotations/000005.xml
        ROOT/VOCdevkit/VOC2007/ImageSets/Main/trainval.txt   5,011 images (VOC2012: 11,540)
        ROOT/VOCdevkit/VOC2007/ImageSets/Main/test.txt       4,952 images

    A batch is ``(images, targets)``, two lists: an image is uint8 RGB (3, H, W) at its own size, a
    target a dictionary of ``boxes`` float32 (n, 4) as (x1, y1, x2, y2) in pixels from 0 to W and H,
    ``labels`` int64 (n,) from 0, ``difficult`` bool (n,), and ``image_id``, the image's number in
    :meth:`records`. Files count pixels from 1 and include the last one, so ``boxes`` are
    (xmin - 1, ymin - 1, xmax, ymax), as in detectron2. Difficult objects are trained on too.

    Args:
        root: the folder that holds ``VOCdevkit``.
        train: splits to train on; the "07+12" of the literature is ``("2007/trainval",
            "2012/trainval")``.
        test: split to report on, read in order; over several ranks, its first images may be read
            twice to fill the last round, which ``image_id`` tells.
        class_names: the classes, in the order of the labels.
        batch_size: images per step **on each rank** (the paper: 2 on each of 8 GPUs).
        loader: how training images are read: ``flip`` (probability of a horizontal flip, 0.5),
            ``group_by_aspect_ratio`` (wide and high images in batches of their own, True) and
            ``skip_empty`` (leave out images without objects, True). None takes
            ``recommended_loader()`` of the task it is fitted with, if it has one.
        num_workers: loader processes.
        seed: of order and flips.

    ``val_dataloader`` and ``test_dataloader`` both give ``test``: VOC's protocol selects nothing.

    Raises:
        FileNotFoundError: at set-up, for a missing split, annotation or image.
        ValueError: at set-up, for an annotation that cannot be used; the message names the file.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        train: str | Sequence[str] = ("2007/trainval",),
        test: str = "2007/test",
        class_names: Sequence[str] = VOC_CLASSES,
        batch_size: int = 2,
        loader: Mapping[str, Any] | None = None,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"Expected `batch_size` to be positive, but got {batch_size}.")
        if len(set(class_names)) < max(len(class_names), 1):
            raise ValueError(
                f"Expected argument `class_names` to be different names, but got {class_names}."
            )
        self.root, self.loader = Path(root).expanduser(), loader
        self.splits = {"train": (train,) if isinstance(train, str) else tuple(train)}
        self.splits["test"] = (test,)
        self.class_names = list(class_names)
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self._records: dict[str, list[Record]] = {}
        self._choices()  # refuses a wrong `loader` at once

    @property
    def num_classes(self) -> int:
        """Number of classes, background not counted."""
        return len(self.class_names)

    @property
    def num_images(self) -> int:
        """Number of training images, after ``skip_empty``."""
        return len(self.records("train"))

    def fingerprint(self) -> str:
        """Sixteen hex digits that change with the splits or the annotations' sizes."""
        return voc_fingerprint(self.root, [s for part in self.splits.values() for s in part]).digest

    def records(self, part: str) -> list[Record]:
        """What is known of the images of ``"train"`` or ``"test"``, in order of ``image_id``."""
        if part not in self._records:
            self._records[part] = [r for split in self.splits[part] for r in self._scan(split)]
        records = self._records[part]
        if part == "test":
            return records
        filled = [record for record in records if record.boxes]
        if not filled:
            raise ValueError(
                f"Expected objects to train on, but all {len(records)} images of "
                f"{', '.join(self.splits[part])} in {self.root} are without: pass other splits."
            )
        return filled if self._choices()["skip_empty"] else records

    def setup(self, stage: str) -> None:
        self.records("test")
        step = self._images_of_a_step()
        if stage == "fit" and self.num_images < step * world_size():
            raise ValueError(
                f"Expected at least one step, but {', '.join(self.splits['train'])} in {self.root} "
                f"has {self.num_images} images for {world_size()} ranks x batch_size="
                f"{self.batch_size} x {step // self.batch_size} micro-batches: lower them."
            )

    def train_dataloader(self) -> ResumableLoader:
        choices, records = self._choices(), self.records("train")
        order: dict[str, Any] = {
            "shuffle": True,
            "seed": self.seed,
            "drop_last": True,
            "multiple": self._images_of_a_step(),
        }
        sampler = EpochSampler(len(records), **order)
        if choices["group_by_aspect_ratio"]:
            wide = [int(record.width > record.height) for record in records]
            sampler = GroupedSampler(wide, batch_size=self.batch_size, **order)
        return self._loader(VOCDataset(records, flip=choices["flip"], seed=self.seed), sampler)

    def val_dataloader(self) -> ResumableLoader:
        return self.test_dataloader()

    def test_dataloader(self) -> ResumableLoader:
        records = self.records("test")
        sampler = EpochSampler(len(records), shuffle=False, drop_last=False)
        return self._loader(VOCDataset(records), sampler)

    def _images_of_a_step(self) -> int:
        """On each rank, over all micro-batches."""
        return self.batch_size * getattr(self.trainer, "accumulate_grad_batches", 1)

    def _loader(self, dataset: VOCDataset, sampler: EpochSampler) -> ResumableLoader:
        return loader(
            dataset,
            sampler,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate=collate,
        )

    def _choices(self) -> dict[str, Any]:
        """The user's, else the task's, else detectron2's way to read training images."""
        given = self.loader
        if given is None:
            task: Any = getattr(self.trainer, "lightning_module", None)
            given = task.recommended_loader() if hasattr(task, "recommended_loader") else {}
        unknown = sorted(set(given) - set(LOADER))
        if unknown:
            raise ValueError(
                f"Expected `loader` to have the keys {', '.join(LOADER)}, but got {unknown}."
            )
        choices = LOADER | dict(given)
        if not 0 <= choices["flip"] <= 1:
            raise ValueError(f"Expected loader's `flip` in [0, 1], but got {choices['flip']}.")
        return choices

    def _scan(self, split: str) -> Iterator[Record]:
        """Read the annotations of a split, and no image: their sizes are in the annotations."""
        year, names = voc_list(self.root, split)
        numbers = {name: number for number, name in enumerate(self.class_names)}
        folder = year / "JPEGImages"
        files = os.listdir(folder) if folder.is_dir() else []
        images = {os.path.splitext(f)[0]: f for f in files if f.lower().endswith(EXTENSIONS)}
        quick = len(names) <= 2000 or rank() > 0
        for name in tqdm(names, f"annotations of {split}", unit="file", leave=False, disable=quick):
            if name not in images:
                raise FileNotFoundError(
                    f"Expected an image at {folder / name}.jpg, because the split {split} lists "
                    "it: add the file, or take the line from the list."
                )
            path = year / "Annotations" / f"{name}.xml"
            yield read_annotation(path, str(folder / images[name]), numbers)


def read_annotation(path: Path, image: str, numbers: Mapping[str, int]) -> Record:
    """The record of an image.

    Args:
        path: of the XML file.
        image: of the image file, which is not opened.
        numbers: class name to label.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"Expected an annotation at {path}, because a split lists it: add the file, or take "
            "the line from the list."
        ) from None
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(
            f"Expected XML at {path}, but it cannot be parsed ({error}): replace the file."
        ) from error
    width, height = (int(_number(root, f"size/{side}", path)) for side in ("width", "height"))
    if min(width, height) < 1:
        raise ValueError(
            f"Expected the size of the image in {path}, but found {width} x {height}: some tools "
            "write 0, so write the true size into the file."
        )
    boxes, labels, difficult = [], [], []
    for entry in root.iter("object"):
        # Direct children only: in VOC2012, the parts of an object have names and boxes as well.
        name = (entry.findtext("name") or "").strip()
        if name not in numbers:
            near = " or ".join(repr(n) for n in get_close_matches(name, numbers))
            raise ValueError(
                f"Expected objects of {len(numbers)} classes in {path}, but found a {name!r}"
                f"{near and f' (perhaps {near}?)'}: correct the file, or pass class_names=... with "
                "your classes."
            )
        boxes.append(_box(entry, (width, height), path))
        labels.append(numbers[name])
        flagged = entry.find("difficult") is not None  # objects without the flag are not difficult
        difficult.append(flagged and _number(entry, "difficult", path) != 0)
    return Record(path.stem, image, width, height, tuple(boxes), tuple(labels), tuple(difficult))


def _box(entry: ElementTree.Element, size: tuple[int, int], path: Path) -> Box:
    """An object's box in continuous coordinates."""
    # Mostly integers; two files of VOC2012 have "45.70000076293945" and the like.
    found = [_number(entry, f"bndbox/{s}", path) for s in ("xmin", "ymin", "xmax", "ymax")]
    (width, height), (x1, y1, x2, y2) = size, found
    # None of the 14,976 boxes of VOC2007 test is outside its image, but tools that count pixels
    # from 0 and those that round up are out by one. More than that is of another image.
    if min(x1, y1) < 0 or x2 > width + 1 or y2 > height + 1:
        raise ValueError(
            f"Expected boxes inside the image of {width} x {height} pixels in {path}, but found "
            f"xmin, ymin, xmax, ymax = {found}: correct the file."
        )
    box = max(x1 - 1, 0.0), max(y1 - 1, 0.0), min(x2, width), min(y2, height)
    if not (box[0] < box[2] and box[1] < box[3]):
        raise ValueError(
            f"Expected xmin <= xmax and ymin <= ymax in {path}, but found "
            f"xmin, ymin, xmax, ymax = {found}: correct the file or remove the object."
        )
    return box


def _number(parent: ElementTree.Element, tag: str, path: Path) -> float:
    text = parent.findtext(tag)
    try:
        return float(text or "")
    except ValueError:
        raise ValueError(
            f"Expected a number in <{tag}> of {path}, but found {text!r}: correct the file."
        ) from None
