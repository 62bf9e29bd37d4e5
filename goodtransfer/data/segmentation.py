"""Images with the class of each pixel: what all data sets for segmentation share."""

import hashlib
import os
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from goodtransfer.data.files import Files
from goodtransfer.data.label_maps import LabelReader
from goodtransfer.data.loader import EpochSampler, ResumableLoader
from goodtransfer.data.module import DataModule
from goodtransfer.data.skip import OnError, Skips
from goodtransfer.distributed import world_size
from goodtransfer.views import MAX_PIXELS, decode
from goodtransfer.views.pixels import to_tensor
from goodtransfer.views.segmentation import SegmentationView, Size


class Target(TypedDict):
    """What is known of an image, or of a batch: train ids (H, W), and the image's number."""

    classes: Tensor
    image_id: Tensor


Item = tuple[Tensor, Target]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Images, and the label file of each."""

    images: Files
    labels: Files

    def __len__(self) -> int:
        return len(self.images)


class SegmentationDataModule(DataModule):
    """Images and the class of each pixel; a subclass tells which files, and what labels mean.

    A batch is ``(images, target)``: images uint8 RGB (N, 3, H, W), target a dictionary of
    ``classes``, train ids uint8 (N, H, W) with 255 for pixels that do not count, and ``image_id``
    int64 (N,). Training images are crops, by
    :class:`~goodtransfer.views.segmentation.SegmentationView`; they and their order depend on
    ``seed`` alone, not on workers or ranks. Validation and test give the images to report on,
    whole, each a batch, in order; over several ranks, the first may come twice to fill the last
    round, which ``image_id`` tells.

    Args:
        root: the folder of the data set.
        batch_size: crops per step **on each rank** (the paper: 2 on each of 4 GPUs).
        crop: height and width of a training crop in pixels.
        scale: least and greatest ratio that training images are resized by.
        nominal: height and width that a training image is fitted in at ratio 1; None is its own.
        num_workers: loader processes.
        seed: of order and crops.
        on_error: ``"raise"``, or ``"skip"`` images that cannot be used, or whose labels cannot:
            each gives its place to the next one, and all are logged and listed in ``skipped``.
        max_pixels: an image or a label that claims to be larger is not decoded.

    Raises:
        FileNotFoundError: at set-up, for a missing folder, or an image or a label without the other.
        ValueError: at set-up, for a part without images, or too few for a step; when read, for a label
            of another size than its image, or with unknown classes.
    """

    label_format = (1, 8)
    """Channels of a label file and bits of each; the class is in the last, as OpenCV orders them."""

    def __init__(
        self,
        root: str | Path,
        *,
        batch_size: int = 2,
        crop: Size = (512, 1024),
        scale: tuple[float, float] = (0.5, 2.0),
        nominal: Size | None = (1024, 2048),
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
        self.view = SegmentationView(crop, scale, nominal)
        self._parts: dict[str, Pairs] = {}

    @property
    @abstractmethod
    def class_names(self) -> list[str]:
        """Of the train ids, in their order."""

    @property
    @abstractmethod
    def train_ids(self) -> Mapping[int, int]:
        """Train id of every number that a label file may hold, 255 for pixels that do not count."""

    @abstractmethod
    def read(self, part: str) -> Pairs:
        """The files of ``"train"`` or ``"val"``, none of them opened."""

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def num_images(self) -> int:
        """Number of training images."""
        return len(self.files("train"))

    def files(self, part: str) -> Pairs:
        """The images and labels of ``"train"`` or ``"val"``, in the order of ``image_id``.

        Raises:
            ValueError: for a part without images.
        """
        pairs = self._read(part)
        if not len(pairs):
            raise ValueError(
                f"Expected images of {part!r} in {self.root}, but {type(self).__name__} finds none "
                "there: choose more of the data set, or leave out this part."
            )
        return pairs

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts with images, as :meth:`files` takes them."""
        return tuple(part for part in ("train", "val") if len(self._read(part)))

    def label_reader(self) -> LabelReader:
        """What reads a label file as train ids."""
        return LabelReader(*self.label_format, self.train_ids, self.max_pixels)

    def fingerprint(self) -> str:
        """Sixteen hex digits that change with the names or sizes of the files, or the classes."""
        digest = hashlib.sha256(repr((self.class_names, sorted(self.train_ids.items()))).encode())
        for pairs in map(self._read, ("train", "val")):
            for files in (pairs.images, pairs.labels):
                sizes = [os.stat(path).st_size for path, _ in files]
                digest.update(repr((files.names.tolist(), sizes)).encode())
        return digest.hexdigest()[:16]

    def setup(self, stage: str) -> None:
        if stage != "fit":
            self.files("val")
            return
        self._read("val")  # its faults now, not after an epoch
        step = self._images_of_a_step()
        if self.num_images < step * world_size():
            raise ValueError(
                f"Expected at least one step, but {self.root} has {self.num_images} images to train "
                f"on for {world_size()} ranks x batch_size={self.batch_size} x "
                f"{step // self.batch_size} micro-batches: lower them."
            )

    def train_dataloader(self) -> ResumableLoader:
        pairs, step = self.files("train"), self._images_of_a_step()
        order = EpochSampler(
            len(pairs), shuffle=True, seed=self.seed, drop_last=True, multiple=step
        )
        return self._loader(pairs, order, self.batch_size, self.view)

    def val_dataloader(self) -> ResumableLoader | list[Any]:
        return self.test_dataloader() if len(self._read("val")) else []

    def test_dataloader(self) -> ResumableLoader:
        pairs = self.files("val")
        return self._loader(pairs, EpochSampler(len(pairs), shuffle=False, drop_last=False), 1)

    def paired(self, images: Files, labels: Files, wanted: NDArray[np.bytes_]) -> Pairs:
        """The images that have a label, with it; an image or a label without the other is a fault.

        Args:
            images: of a part.
            labels: of a part, in any order.
            wanted: name of each image's label.

        Raises:
            FileNotFoundError: for the first without the other, where faults are not skipped.
        """
        _, kept, found = np.intersect1d(wanted, labels.names, return_indices=True)
        for number in np.setdiff1d(np.arange(len(images)), kept):
            place = labels.root / os.fsdecode(bytes(wanted[number]))
            self._skips.leave_out(
                FileNotFoundError(
                    f"Expected a label at {place}, because there is an image at "
                    f"{images.path(number)}: add the label, or remove the image."
                )
            )
        for number in np.setdiff1d(np.arange(len(labels)), found):
            self._skips.leave_out(
                FileNotFoundError(
                    f"Expected an image below {images.root} for the label {labels.path(number)}, but "
                    "found none of its name: add the image, or remove the label."
                )
            )
        return Pairs(images.take(kept), labels.take(found))

    def _read(self, part: str) -> Pairs:
        if part not in self._parts:
            self._parts[part] = self.read(part)
        return self._parts[part]

    def _loader(
        self, pairs: Pairs, order: EpochSampler, size: int, view: SegmentationView | None = None
    ) -> ResumableLoader:
        labels = self.label_reader()
        dataset = SegmentationDataset(pairs, labels, view, seed=self.seed, skips=self._skips)
        return self._batches(dataset, order, collate, batch_size=size)


class SegmentationDataset(Dataset[Item]):
    """Images and their classes; an item is asked for by (epoch, number).

    Args:
        pairs: the files.
        labels: reads a label file.
        view: makes the training crop; None leaves images whole.
        seed: of the crops.
        skips: what to do about files that cannot be used; None raises.
    """

    def __init__(
        self,
        pairs: Pairs,
        labels: LabelReader,
        view: SegmentationView | None = None,
        *,
        seed: int = 0,
        skips: Skips | None = None,
    ) -> None:
        self.pairs, self.labels, self.view, self.seed = pairs, labels, view, seed
        self.reading = (skips or Skips("raise")).reading(len(pairs), pairs.images.path)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, address: tuple[int, int] | int) -> Item:
        epoch, number = address if isinstance(address, tuple) else (0, address)
        return self.reading(number, lambda number: self.item(epoch, number))

    def item(self, epoch: int, number: int) -> Item:
        """Image ``number`` itself; OSError or ValueError where it cannot be used."""
        path, label = self.pairs.images.path(number), self.pairs.labels.path(number)
        image, classes = decode(path, max_pixels=self.labels.max_pixels), self.labels(label)
        if image.shape[:2] != classes.shape:
            (height, width), (h, w) = image.shape[:2], classes.shape
            raise ValueError(
                f"Expected the label {label} to be {width} x {height} pixels, as its image is, but "
                f"it is {w} x {h}: replace one of the two files."
            )
        if self.view is not None:
            image, classes = self.view(image, classes, seed=self.seed, epoch=epoch, index=number)
        target = Target(classes=torch.from_numpy(classes), image_id=torch.tensor(number))
        return to_tensor(image), target


def collate(items: list[Item]) -> Item:
    """Stack images of one size into a batch."""
    images, targets = zip(*items, strict=True)
    classes = torch.stack([target["classes"] for target in targets])
    numbers = torch.stack([target["image_id"] for target in targets])
    return torch.stack(images), Target(classes=classes, image_id=numbers)
