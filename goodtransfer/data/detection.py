"""Images and their objects: what all data sets for detection share."""

import os
import random
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NotRequired, TypedDict, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from goodtransfer.data.files import Files
from goodtransfer.data.loader import EpochSampler, GroupedSampler, ResumableLoader
from goodtransfer.data.module import DataModule
from goodtransfer.data.skip import OnError, Skips
from goodtransfer.distributed import world_size
from goodtransfer.views import MAX_PIXELS, decode

# How training images are read where neither the user nor the task says otherwise; as detectron2.
LOADER = {"flip": 0.5, "group_by_aspect_ratio": True, "skip_empty": True}

Columns = Mapping[str, NDArray[Any]]
Counts = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Record:
    """What is known of an image without reading it; a data set may add to it.

    Attributes:
        name: of the image file, without folder and ending.
        image: path of the image file.
        width: in pixels.
        height: in pixels.
        boxes: (x1, y1, x2, y2) of each object (n, 4), from 0 to width and height.
        labels: its class (n,).
    """

    name: str
    image: str
    width: int
    height: int
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]


R = TypeVar("R", bound=Record)


class Records(Generic[R]):
    """The records of many images, each made when it is asked for.

    They are packed in arrays, which all processes share: 860,001 objects of COCO as Python's would
    be copied into every worker, because reading one changes its reference count.

    Args:
        kind: of record.
        files: the images.
        images: an array (N,) for each attribute of a record that tells of the image: ``width``,
            ``height``, and what the kind adds.
        objects: an array (M, ...) for each that tells of its objects, image after image.
        counts: objects of each image (N,).
    """

    def __init__(
        self, kind: type[R], files: Files, images: Columns, objects: Columns, counts: Counts
    ) -> None:
        self.kind, self.files, self.images, self.objects = kind, files, images, objects
        self.counts, self._ends = counts, np.cumsum(counts)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> R:
        number = range(len(self))[number]
        name, _ = os.path.splitext(os.path.basename(self.files.name(number)))
        images = {key: column[number].item() for key, column in self.images.items()}
        objects: dict[str, Any] = self.objects_of(number)
        return self.kind(name=name, image=self.files.path(number), **images, **objects)

    def __iter__(self) -> Iterator[R]:
        return (self[number] for number in range(len(self)))

    def objects_of(self, number: int) -> dict[str, NDArray[Any]]:
        """Views of one image's rows of ``objects``."""
        end = self._ends[number]
        rows = slice(end - self.counts[number], end)
        return {key: column[rows] for key, column in self.objects.items()}

    def take(self, which: NDArray[np.bool_]) -> "Records[R]":
        """Some of the images (N,)."""
        objects = np.repeat(which, self.counts)
        return Records(
            self.kind,
            self.files.take(which),
            {key: column[which] for key, column in self.images.items()},
            {key: column[objects] for key, column in self.objects.items()},
            self.counts[which],
        )

    def with_objects(self, which: NDArray[np.bool_]) -> "Records[R]":
        """All images with some of their objects (M,)."""
        owners = np.repeat(np.arange(len(self)), self.counts)[which]
        objects = {key: column[which] for key, column in self.objects.items()}
        counts = np.bincount(owners, minlength=len(self))
        return Records(self.kind, self.files, self.images, objects, counts)


def joined(parts: Sequence[Records[R]]) -> Records[R]:
    """The records of several splits below one root, one after the other."""

    def columns(of: Sequence[Columns]) -> Columns:
        return {key: np.concatenate([each[key] for each in of]) for key in of[0]}

    files = [part.files for part in parts]
    names, labels = (
        np.concatenate(c) for c in zip(*((f.names, f.labels) for f in files), strict=True)
    )
    return Records(
        parts[0].kind,
        Files(files[0].root, names, labels),
        columns([part.images for part in parts]),
        columns([part.objects for part in parts]),
        np.concatenate([part.counts for part in parts]),
    )


class Target(TypedDict):
    """The n objects of an image: a plain dictionary; each data set says which keys it has."""

    boxes: Tensor
    labels: Tensor
    difficult: NotRequired[Tensor]
    crowd: NotRequired[Tensor]
    area: NotRequired[Tensor]
    masks: NotRequired[Any]
    image_id: int


Item = tuple[Tensor, Target]


class DetectionDataset(Dataset[Item]):
    """Images and their objects; an item is asked for by (epoch, number).

    Args:
        records: of the images.
        flip: probability of a horizontal flip.
        seed: of the flips.
        skips: what to do about an image that cannot be read; None raises.
        max_pixels: of an image that is decoded.
    """

    def __init__(
        self,
        records: Records[Any],
        *,
        flip: float = 0.0,
        seed: int = 0,
        skips: Skips | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.records, self.flip, self.seed, self.max_pixels = records, flip, seed, max_pixels
        self.reading = (skips or Skips("raise")).reading(len(records), records.files.path)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, address: tuple[int, int] | int) -> Item:
        epoch, number = address if isinstance(address, tuple) else (0, address)
        return self.reading(number, lambda number: self.item(epoch, number))

    def target(self, number: int) -> Target:
        """The objects of an image, as they stand in the file."""
        objects = self.records.objects_of(number).items()
        target: Any = {key: torch.from_numpy(rows.copy()) for key, rows in objects}
        target["image_id"] = number
        return cast(Target, target)

    def mirror(self, target: Target, width: int) -> None:
        """Flip the objects with their image."""
        target["boxes"][:, [0, 2]] = width - target["boxes"][:, [2, 0]]

    def item(self, epoch: int, number: int) -> Item:
        """Image ``number`` itself; OSError or ValueError where it cannot be used."""
        record = self.records[number]
        pixels = decode(record.image, max_pixels=self.max_pixels)
        if pixels.shape[:2] != (record.height, record.width):
            raise ValueError(
                f"Expected {record.image} to be {record.width} x {record.height} pixels, as its "
                f"annotation says, but it is {pixels.shape[1]} x {pixels.shape[0]}: the boxes are "
                "of another image, so replace one of the two files."
            )
        target = self.target(number)
        if random.Random(f"{self.seed}/{epoch}/{number}").random() < self.flip:
            pixels = pixels[:, ::-1]
            self.mirror(target, record.width)
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy()), target


def collate(items: list[Item]) -> tuple[list[Tensor], list[Target]]:
    """Lists, since images differ in size."""
    return [image for image, _ in items], [target for _, target in items]


class DetectionDataModule(DataModule):
    """Images and their objects; a subclass tells in :meth:`read` what a split holds.

    A batch is ``(images, targets)``, two lists: an image is uint8 RGB (3, H, W) at its own size, a
    target a dictionary of ``boxes`` float32 (n, 4) as (x1, y1, x2, y2) in pixels from 0 to W and H,
    ``labels`` int64 (n,) from 0, ``image_id``, the image's number in :meth:`records`, and what the
    data set adds. Flips and order depend on ``seed`` alone, not on workers or ranks.

    Args:
        root: the folder of the data set.
        train: splits to train on.
        test: split to report on, read in order; over several ranks, its first images may be read
            twice to fill the last round, which ``image_id`` tells.
        batch_size: images per step **on each rank** (the paper: 2 on each of 8 GPUs).
        loader: how training images are read: ``flip`` (probability of a horizontal flip, 0.5),
            ``group_by_aspect_ratio`` (wide and high images in batches of their own, True) and
            ``skip_empty`` (leave out images without objects, True). None takes
            ``recommended_loader()`` of the task it is fitted with, if it has one.
        num_workers: loader processes.
        seed: of order and flips.
        on_error: ``"raise"``, or ``"skip"`` images whose annotation is faulty or which cannot be
            read: the latter give their place to the next one, and all are listed in ``skipped``.
        max_pixels: an image that claims to be larger is not decoded.

    ``val_dataloader`` and ``test_dataloader`` both give ``test``: the protocol selects nothing.

    Raises:
        FileNotFoundError: at set-up, for what is missing on disk.
        ValueError: for a ``loader`` that cannot be; at set-up, for splits without images or objects,
            or too few for a step; when read, for an image of another size than its annotation says.
        OSError: when read, for an image that cannot be decoded.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        train: str | Sequence[str],
        test: str,
        batch_size: int = 2,
        loader: Mapping[str, Any] | None = None,
        num_workers: int = 0,
        seed: int = 0,
        on_error: OnError = "raise",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        super().__init__(
            root,
            batch_size=batch_size,
            num_workers=num_workers,
            seed=seed,
            on_error=on_error,
            max_pixels=max_pixels,
        )
        self.loader = loader
        self.splits = {"train": (train,) if isinstance(train, str) else tuple(train)}
        self.splits["test"] = (test,)
        self._found: dict[str, Records[Any]] = {}
        self._trained: dict[bool, Records[Any]] = {}
        self._choices()  # refuses a wrong `loader` at once

    @abstractmethod
    def read(self, split: str) -> Records[Any]:
        """The images of a split and their objects, without opening an image."""

    @property
    @abstractmethod
    def class_names(self) -> list[str]:
        """Of the labels, in their order."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Sixteen hex digits that change with the splits or the annotations."""

    @property
    def num_classes(self) -> int:
        """Number of classes, background not counted."""
        return len(self.class_names)

    @property
    def num_images(self) -> int:
        """Number of training images, after ``skip_empty``."""
        return len(self.records("train"))

    def records(self, part: str) -> Records[Any]:
        """What is known of the images of ``"train"`` or ``"test"``, in order of ``image_id``."""
        if part not in self._found:
            found = joined([self.read(split) for split in self.splits[part]])
            if not len(found):
                raise ValueError(
                    f"Expected images of {', '.join(self.splits[part])} in {self.root}, but none "
                    f"is left: {len(self.skipped)} were skipped, and `skipped` tells why."
                )
            self._found[part] = found
        if part == "test":
            return self._found[part]
        skip_empty = self._choices()["skip_empty"]
        if skip_empty not in self._trained:
            self._trained[skip_empty] = self.to_train_on(self._found[part], skip_empty)
        return self._trained[skip_empty]

    def to_train_on(self, records: Records[Any], skip_empty: bool) -> Records[Any]:
        """Of the training splits, the images and objects that training sees."""
        filled = records.counts > 0
        if not filled.any():
            raise ValueError(
                f"Expected objects to train on, but all {len(records)} images of "
                f"{', '.join(self.splits['train'])} in {self.root} are without: pass other splits."
            )
        return records.take(filled) if skip_empty else records

    def dataset(self, records: Records[Any], **options: Any) -> DetectionDataset:
        """What reads the images; ``options`` are of :class:`DetectionDataset`."""
        return DetectionDataset(records, skips=self._skips, max_pixels=self.max_pixels, **options)

    def training_dataset(self, **options: Any) -> DetectionDataset:
        """What reads the training images."""
        return self.dataset(self.records("train"), **options)

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
            wide = records.images["width"] > records.images["height"]
            sampler = GroupedSampler(wide.tolist(), batch_size=self.batch_size, **order)
        dataset = self.training_dataset(flip=choices["flip"], seed=self.seed)
        return self._batches(dataset, sampler, collate)

    def val_dataloader(self) -> ResumableLoader:
        return self.test_dataloader()

    def test_dataloader(self) -> ResumableLoader:
        records = self.records("test")
        sampler = EpochSampler(len(records), shuffle=False, drop_last=False)
        return self._batches(self.dataset(records), sampler, collate)

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
