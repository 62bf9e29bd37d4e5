"""MAFL: five landmarks on aligned faces of CelebA."""

import hashlib
import os
import random
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from goodtransfer.data.celeba import IMAGES, TREE, mafl_names
from goodtransfer.data.files import Files, listed, missing
from goodtransfer.data.images import per_class_share
from goodtransfer.data.lists import found
from goodtransfer.data.loader import EpochSampler, ResumableLoader
from goodtransfer.data.module import DataModule
from goodtransfer.data.skip import OnError, Skips
from goodtransfer.distributed import world_size
from goodtransfer.foreign import lines, shown
from goodtransfer.views import MAX_PIXELS, decode, pixels

LANDMARKS = ("lefteye", "righteye", "nose", "leftmouth", "rightmouth")  # left in the image
# What becomes of their order when left and right change places.
MIRRORED = (1, 0, 2, 4, 3)

_LISTS = {"train": "training", "test": "testing"}
_POINTS = ("list_landmarks_align_celeba.txt", "Anno/list_landmarks_align_celeba.txt")
_HEADING = [f"{landmark}_{axis}" for landmark in LANDMARKS for axis in "xy"]
# Of an aligned image; its rows 30 to 207 are read (protocol 6.4).
_SIZE, _TOP = (178, 218), 30


class Target(TypedDict):
    """What is known of N faces.

    ``landmarks`` is float32 (N, 5, 2): x, y of left eye, right eye, nose, left and right corner of the
    mouth, left and right as seen in the image, in pixels of the view. Coordinates are continuous: the
    view spans 0 to ``size`` both ways, and the middle of its first pixel is (0.5, 0.5).
    ``image_id`` is int64 (N,): the image's number in its part.
    """

    landmarks: Tensor
    image_id: Tensor


Item = tuple[Tensor, Target]


class Faces(NamedTuple):
    """Images and their landmarks.

    Attributes:
        files: the images, without labels.
        landmarks: as annotated, int64 (N, 5, 2): numbers of the pixels, counted from 0.
    """

    files: Files
    landmarks: NDArray[np.int64]

    def take(self, which: NDArray[np.bool_]) -> "Faces":
        """Some of them, by a mask."""
        return Faces(self.files.take(which), self.landmarks[which])


class MAFLDataModule(DataModule):
    """Faces and their five landmarks (Table 5).

    Expected tree; lists and images may also lie in ``Anno`` and ``Img``, as CelebA's download has
    them, and MAFL's lists in ROOT::

        ROOT/img_align_celeba/000001.jpg            CelebA's aligned images, 178 x 218 pixels
        ROOT/list_landmarks_align_celeba.txt        two lines of heading, then x, y of five points
        ROOT/MAFL/training.txt                      19,000 file names
        ROOT/MAFL/testing.txt                       1,000

    Source: http://mmlab.ie.cuhk.edu.hk/projects/CelebA.html, and MAFL's lists from
    https://github.com/zhzhanp/TCDCN-face-alignment.

    A batch is ``(images, target)``: images uint8 RGB (N, 3, ``size``, ``size``), the target a
    :class:`Target`. As in the literature (protocol 6.4; the paper is silent), an image is rows 30 to
    207 of the aligned one, resized. An annotated x, y is taken for the middle of that pixel, so it
    becomes (x + 0.5, y + 0.5 - 30) * ``size`` / 178; a point above or below the crop has a y outside
    of 0 to ``size``. A flipped image has x mirrored, and left and right exchanged.

    Args:
        root: the folder of the tree.
        batch_size: images per step **on each rank** (the paper: 128 in all).
        size: side of an image in pixels.
        flip: probability of a horizontal flip of training images; the paper does not say.
        selection: share of the training images that is not trained on and makes the validation set.
        num_workers: loader processes.
        seed: of order, flips and selection.
        drop_last: of the training loader.
        on_error: ``"raise"``, or ``"skip"`` faces that cannot be read: one with a faulty list entry is
            left out, an image that cannot be decoded gives its place to the next face.
        max_pixels: an image that claims to be larger is not decoded.

    ``val_dataloader`` gives the selection, or else the test faces; ``test_dataloader`` the latter.
    Flips and their order depend on ``seed`` alone, not on workers or ranks.

    Raises:
        FileNotFoundError: at set-up, for a missing list, or a listed image that is missing.
        ValueError: at set-up, for a line that cannot be used, naming the file and the line, or too few
            faces for a batch; for a ``size``, ``flip`` or ``selection`` out of range.
    """

    expected: Mapping[str, int] = MappingProxyType({"train": 19_000, "test": 1_000})

    def __init__(
        self,
        root: str | Path,
        *,
        batch_size: int = 128,
        size: int = 224,
        flip: float = 0.5,
        selection: float = 0.0,
        num_workers: int = 0,
        seed: int = 0,
        drop_last: bool = True,
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
        if size < 1:
            raise ValueError(f"Expected `size` to be positive, but got {size}.")
        if not (0 <= flip <= 1 and 0 <= selection < 1):
            raise ValueError(
                f"Expected `flip` in [0, 1] and `selection` in [0, 1), but got {flip} and {selection}."
            )
        self.size, self.flip, self.selection, self.drop_last = size, flip, selection, drop_last
        self._faces: dict[str, Faces] = {}

    @property
    def num_images(self) -> int:
        """Number of training images, after ``selection``."""
        return len(self.files("train"))

    def files(self, part: str) -> Files:
        """The images of ``"train"``, ``"selection"`` or ``"test"``, in the order of their numbers."""
        return self.faces(part).files

    def faces(self, part: str) -> Faces:
        """Images and landmarks of ``"train"``, ``"selection"`` or ``"test"``.

        Raises:
            ValueError: for a part without images.
        """
        if part not in self._faces:
            self._faces |= self._read("test" if part == "test" else "train")
        if not len(self._faces[part].files):
            raise ValueError(
                f"Expected faces of {part!r} in {self.root}, but MAFLDataModule finds none there: "
                "complete MAFL's lists, or choose another `selection`."
            )
        return self._faces[part]

    def fingerprint(self) -> str:
        """Sixteen hex digits that change with the images' names or sizes, or the landmarks."""
        digest = hashlib.sha256()
        for files, landmarks in (self.faces(part) for part in self._parts()):
            sizes = [os.stat(path).st_size for path, _ in files]
            digest.update(repr((files.names.tolist(), landmarks.tolist(), sizes)).encode())
        return digest.hexdigest()[:16]

    def setup(self, stage: str) -> None:
        for part in self._parts():
            self.faces(part)
        enough = self.num_images >= self.batch_size * world_size()
        if not enough and self.drop_last and stage == "fit":
            raise ValueError(
                f"Expected at least one batch, but {self.root} has {self.num_images} faces to train "
                f"on for {world_size()} x batch_size={self.batch_size}: lower it, or pass "
                "drop_last=False."
            )

    def train_dataloader(self) -> ResumableLoader:
        return self._loader("train", training=True)

    def val_dataloader(self) -> ResumableLoader:
        return self._loader("selection" if self.selection else "test")

    def test_dataloader(self) -> ResumableLoader:
        return self._loader("test")

    def _parts(self) -> tuple[str, ...]:
        return ("train", "selection", "test") if self.selection else ("train", "test")

    def _loader(self, part: str, *, training: bool = False) -> ResumableLoader:
        faces, drop_last = self.faces(part), training and self.drop_last
        dataset = MAFLDataset(
            faces,
            size=self.size,
            flip=self.flip if training else 0.0,
            seed=self.seed,
            skips=self._skips,
            max_pixels=self.max_pixels,
        )
        order = EpochSampler(len(dataset), shuffle=training, seed=self.seed, drop_last=drop_last)
        return self._batches(dataset, order, collate)

    def _read(self, part: str) -> dict[str, Faces]:
        """The faces of a list; those of train less the selection."""
        faces = self._listed(_LISTS[part])
        if part == "test":
            return {"test": faces}
        if not self.selection:
            return {"train": faces, "selection": faces.take(np.zeros(len(faces.files), np.bool_))}
        selected = per_class_share(faces.files, self.selection, self.seed, leave=1)
        return {"train": faces.take(~selected), "selection": faces.take(selected)}

    def _listed(self, part: str) -> Faces:
        """The faces of MAFL's list; one without an image or landmarks is a fault."""
        names = mafl_names(self.root, part, self._skips)
        source = found(self.root, *_POINTS, tree=TREE)
        rows = _rows(source, set(names))
        files = listed(found(self.root, *IMAGES, tree=TREE), names, None, source)
        lost, landmarks = set(missing(files)), {}
        for number, name in enumerate(names):
            try:
                if number in lost:
                    raise FileNotFoundError(
                        f"Expected an image at {files.path(number)}, because MAFL's list {part}.txt "
                        "names it: add the file, or take the line from the list."
                    )
                landmarks[number] = _points(name, rows, source)
            except (FileNotFoundError, ValueError) as fault:
                self._skips.leave_out(fault)
        kept = np.array(list(landmarks), dtype=np.int64)
        points = np.array(list(landmarks.values()), dtype=np.int64)
        return Faces(files.take(kept), points.reshape(-1, len(LANDMARKS), 2))


def _rows(source: Path, wanted: set[str]) -> dict[str, tuple[int, str]]:
    """Line number and landmarks, as text, of each wanted image."""
    rows, read = {}, lines(source)
    next(read, "")  # the number of images
    heading = next(read, "")
    if heading.split() != _HEADING:
        raise ValueError(
            f"Expected line 2 of {source} to be {' '.join(_HEADING)!r}, but got "
            f"{shown(heading.strip())}: take the list of the aligned images as published."
        )
    for place, line in enumerate(read, 3):
        name, _, numbers = line.partition(" ")
        if name in wanted:
            rows[name] = (place, numbers)
    return rows


def _points(name: str, rows: Mapping[str, tuple[int, str]], source: Path) -> list[int]:
    """x, y of the five landmarks of an image."""
    if name not in rows:
        raise ValueError(
            f"Expected landmarks of {name} in {source}, because MAFL lists it, but no line begins "
            "with that name: add one, or take the image from MAFL's list."
        )
    place, text = rows[name]
    try:
        numbers = [int(word) for word in text.split()]
    except ValueError:
        numbers = []
    inside = [0 <= number < side for number, side in zip(numbers, 5 * _SIZE, strict=False)]
    if len(numbers) != len(_HEADING) or not all(inside):
        raise ValueError(
            f"Expected {len(_HEADING)} whole numbers in line {place} of {source}, x from 0 to "
            f"{_SIZE[0] - 1} and y from 0 to {_SIZE[1] - 1}, but found {shown(text.strip())}: correct "
            "the line."
        )
    return numbers


class MAFLDataset(Dataset[Item]):
    """Faces and landmarks; an item is asked for by (epoch, number).

    Args:
        faces: images and landmarks.
        size: side of an image in pixels.
        flip: probability of a horizontal flip.
        seed: of the flips.
        skips: what to do about an image that cannot be read; None raises.
        max_pixels: of an image that is decoded.
    """

    def __init__(
        self,
        faces: Faces,
        *,
        size: int = 224,
        flip: float = 0.0,
        seed: int = 0,
        skips: Skips | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.faces, self.size, self.flip, self.seed = faces, size, flip, seed
        self.max_pixels = max_pixels
        self.reading = (skips or Skips("raise")).reading(len(faces.files), faces.files.path)

    def __len__(self) -> int:
        return len(self.faces.files)

    def __getitem__(self, address: tuple[int, int] | int) -> Item:
        epoch, number = address if isinstance(address, tuple) else (0, address)
        return self.reading(number, lambda number: self.item(epoch, number))

    def item(self, epoch: int, number: int) -> Item:
        """Image ``number`` itself; OSError or ValueError where it cannot be used."""
        path = self.faces.files.path(number)
        image = decode(path, max_pixels=self.max_pixels)
        if image.shape[1::-1] != _SIZE:
            raise ValueError(
                f"Expected an aligned image of {_SIZE[0]} x {_SIZE[1]} pixels at {path}, but it is "
                f"{image.shape[1]} x {image.shape[0]}: its landmarks are of another image."
            )
        view = pixels.crop(image, _TOP, 0, _SIZE[0], _SIZE[0])
        view = pixels.resize(view, self.size, self.size)
        landmarks = torch.tensor(self.faces.landmarks[number], dtype=torch.float32) + 0.5
        landmarks = (landmarks - torch.tensor([0, _TOP])) * (self.size / _SIZE[0])
        if random.Random(f"{self.seed}/{epoch}/{number}").random() < self.flip:
            view, landmarks = pixels.flip(view), mirrored(landmarks, self.size)
        return pixels.to_tensor(view), {"landmarks": landmarks, "image_id": torch.tensor(number)}


def mirrored(landmarks: Tensor, width: float) -> Tensor:
    """The landmarks (..., 5, 2) of an image of this width, flipped left to right.

    >>> mirrored(torch.tensor([[10., 1], [90, 2], [55, 3], [20, 4], [80, 5]]), 100).tolist()
    [[10.0, 2.0], [90.0, 1.0], [45.0, 3.0], [20.0, 5.0], [80.0, 4.0]]
    """
    return landmarks[..., MIRRORED, :] * torch.tensor([-1, 1]) + torch.tensor([width, 0])


def collate(items: list[Item]) -> Item:
    """Stack faces into a batch."""
    images, targets = zip(*items, strict=True)
    landmarks = torch.stack([target["landmarks"] for target in targets])
    image_id = torch.stack([target["image_id"] for target in targets])
    return torch.stack(images), {"landmarks": landmarks, "image_id": image_id}
