"""COCO: its images to pretrain on, and its objects to detect; also your own sets in its format."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray

from goodtransfer.data.coco_instances import Instances, read_instances
from goodtransfer.data.coco_masks import in_runs, polygons_of, unpack
from goodtransfer.data.detection import (
    DetectionDataModule,
    DetectionDataset,
    Record,
    Records,
    Target,
)
from goodtransfer.data.files import listed, scan_flat
from goodtransfer.data.images import ImageDataModule, Parts


class COCODataModule(ImageDataModule):
    """Views and indices of COCO's images, without labels: every label is -1 (protocol 1.10).

    Expected tree (no annotations are read)::

        ROOT/train2017/000000000009.jpg   118,287 images
        ROOT/val2017/000000000139.jpg   5,000 images

    Source: https://cocodataset.org.

    Args:
        root: the folder that holds the splits' folders.
        train: folder of the images to train on, such as ``train2014``.
        val: folder of the images to report on; None where there is none.
        options: those of :class:`ImageDataModule`.

    Raises:
        FileNotFoundError: for a missing folder.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        train: str = "train2017",
        val: str | None = "val2017",
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        self.train, self.val = train, val

    @property
    def expected(self) -> Mapping[str, int]:
        official = (self.train, self.val) == ("train2017", "val2017")
        return {"train": 118_287, "val": 5_000} if official else {}

    def read(self) -> Parts:
        val = None if self.val is None else scan_flat(_folder(self.root, self.val))
        return Parts([], scan_flat(_folder(self.root, self.train)), val)


@dataclass(frozen=True, eq=False)
class COCORecord(Record):
    """What is known of an image; boxes as the file has them.

    Attributes:
        id: COCO's number of the image.
        crowd: whether an object is a group that COCO's score ignores (n,).
        area: of its outline in square pixels, by which COCO's score sorts it (n,).
        outline: from where to where its mask is packed (n, 2); None where masks are not read.
    """

    id: int
    crowd: NDArray[np.bool_]
    area: NDArray[np.float32]
    outline: NDArray[np.int64] | None = None


class COCODetectionDataModule(DetectionDataModule):
    """Images, boxes, labels and, if asked for, masks, in the format of COCO's ``instances`` files.

    Expected tree::

        ROOT/train2017/000000000009.jpg   118,287 images, 117,266 with an object to train on
        ROOT/val2017/000000000139.jpg   5,000 images
        ROOT/annotations/instances_train2017.json   860,001 objects
        ROOT/annotations/instances_val2017.json   36,781 objects

    Source: https://cocodataset.org. A target has ``boxes`` (x, y, x + width, y + height),
    ``labels``, ``image_id``, ``crowd`` bool (n,), ``area`` float32 (n,) as the file has it, and with
    ``masks=True`` ``masks`` bool (n, H, W). With ``masks="polygons"`` those of a training target are a
    list: of each object its polygons, float64 arrays (x, y, x, y, ...), or bool (H, W) where the file
    has run lengths instead. Labels number the categories in the order of their ids; images are in
    the order of theirs.

    **Training sees what detectron2 trains on**: no crowds, boxes clipped to the image, and no object
    whose box is then without area, or whose mask is without a pixel or a polygon; ``skip_empty``
    leaves out images with nothing but crowds. (Two boxes of train2017 have no height.) **Test targets
    keep every object as it is in the file.**

    Args:
        root: the folder that holds ``annotations`` and the splits' folders.
        train: splits to train on, such as ``train2014``.
        test: split to report on.
        masks: read the outlines, too, as pixels; ``"polygons"``, as detectron2, to train on what the
            file has (which takes more memory), while test targets have pixels.
        options: see :class:`DetectionDataModule`.

    Raises:
        FileNotFoundError: at set-up, for a missing file, folder or image.
        ValueError: at set-up, for an entry that cannot be used (the message names file and id) or
            splits of different categories; for other ``masks``.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        train: str | Sequence[str] = "train2017",
        test: str = "val2017",
        masks: bool | Literal["polygons"] = False,
        **options: Any,
    ) -> None:
        super().__init__(root, train=train, test=test, **options)
        if masks not in (False, True, "polygons"):
            raise ValueError(
                f"Expected `masks` to be False, True or 'polygons', but got {masks!r}."
            )
        self.masks = masks
        self._categories: dict[int, str] = {}
        self._outlines = bytearray()  # of all splits, one after the other

    @property
    def class_names(self) -> list[str]:
        """Of the categories, in the order of their ids."""
        return list(self._known().values())

    @property
    def category_ids(self) -> list[int]:
        """COCO's number of each label, as result files have it."""
        return list(self._known())

    def image_ids(self, part: str = "test") -> list[int]:
        """COCO's number of each image, as result files have it, in order of ``image_id``."""
        ids: list[int] = self.records(part).images["id"].tolist()
        return ids

    @property
    def expected(self) -> Mapping[str, int]:
        if self.splits != {"train": ("train2017",), "test": ("val2017",)}:
            return {}
        train = 117_266 if self._choices()["skip_empty"] else 118_287
        return {"train": train, "test": 5_000, "classes": 80}

    def fingerprint(self) -> str:
        """Sixteen hex digits that change with the annotations, or the images' names or sizes."""
        digest = hashlib.sha256()
        for split in (split for part in self.splits.values() for split in part):
            with _annotations(self.root, split).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
            files = scan_flat(_folder(self.root, split))
            sizes = [os.stat(path).st_size for path, _ in files]
            digest.update(repr((split, files.names.tolist(), sizes)).encode())
        return digest.hexdigest()[:16]

    def read(self, split: str) -> Records[COCORecord]:
        source, folder = _annotations(self.root, split), _folder(self.root, split)
        leave_out = self._skips.leave_out
        found = read_instances(source, folder, outlines=bool(self.masks), leave_out=leave_out)
        self._categories = self._categories or found.categories
        if found.categories != self._categories:
            odd = sorted(set(found.categories.items()) ^ set(self._categories.items()))
            raise ValueError(
                f"Expected the same categories in all splits, but {source} differs in {odd[:3]}: "
                "correct the files, or pass other splits."
            )
        return self._packed(split, source, found)

    def to_train_on(self, records: Records[COCORecord], skip_empty: bool) -> Records[COCORecord]:
        # The rules and their order are those of detectron2 v0.6: data/build.py,
        # filter_images_with_only_crowd_annotations; data/dataset_mapper.py, "iscrowd";
        # data/detection_utils.py, transform_instance_annotations and filter_empty_instances.
        single: NDArray[np.bool_] = ~records.objects["crowd"]
        records = super().to_train_on(records.with_objects(single), skip_empty)
        sides = np.stack([records.images[side] for side in ("width", "height")], axis=1)
        limits = np.tile(sides, 2).repeat(records.counts, axis=0).astype(np.float32)
        boxes = records.objects["boxes"].clip(0, limits)
        filled = (boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3])
        if self.masks:
            start, end = records.objects["outline"].T
            filled &= start < end
        objects = {**records.objects, "boxes": boxes}
        clipped = Records(COCORecord, records.files, records.images, objects, records.counts)
        return clipped.with_objects(filled)

    def dataset(self, records: Records[COCORecord], **options: Any) -> DetectionDataset:
        options |= {"skips": self._skips, "max_pixels": self.max_pixels}
        return COCODataset(records, self._outlines, **options)

    def training_dataset(self, **options: Any) -> DetectionDataset:
        return super().training_dataset(polygons=self.masks == "polygons", **options)

    def _known(self) -> dict[int, str]:
        """The categories, from whichever split is read first."""
        if not self._categories:
            self.records("test")
        return self._categories

    def _packed(self, split: str, source: Path, found: Instances) -> Records[COCORecord]:
        """Image by image, its objects in the order of the file."""
        _, images, objects = found
        numbers = {image.id: number for number, image in enumerate(images)}
        owners = np.array([numbers[thing.image_id] for thing in objects], np.int64)
        columns: dict[str, NDArray[Any]] = {
            "boxes": np.array([thing.box for thing in objects], np.float32).reshape(-1, 4),
            "labels": np.array([thing.label for thing in objects], np.int64),
            "crowd": np.array([thing.crowd for thing in objects], np.bool_),
            "area": np.array([thing.area for thing in objects], np.float32),
        }
        if self.masks:
            outlines = [thing.outline for thing in objects]
            if self.masks != "polygons":  # run lengths take less memory
                sizes = {image.id: (image.height, image.width) for image in images}
                outlines = [in_runs(thing.outline, *sizes[thing.image_id]) for thing in objects]
            ends = np.cumsum([len(self._outlines), *map(len, outlines)])
            columns["outline"] = np.stack([ends[:-1], ends[1:]], axis=1)
            self._outlines += b"".join(outlines)
        order = np.argsort(owners, kind="stable")
        sides = np.array([(i.id, i.width, i.height) for i in images], np.int64).reshape(-1, 3)
        return Records(
            COCORecord,
            listed(self.root, [f"{split}/{image.file_name}" for image in images], None, source),
            dict(zip(("id", "width", "height"), sides.T, strict=True)),
            {key: column[order] for key, column in columns.items()},
            np.bincount(owners, minlength=len(images)),
        )


class COCODataset(DetectionDataset):
    """Images, their objects and, where the records have outlines, their masks.

    Args:
        records: of the images.
        outlines: packed masks, to which the records point.
        polygons: give masks as polygons, where there are some.
        options: see :class:`DetectionDataset`.
    """

    def __init__(
        self,
        records: Records[COCORecord],
        outlines: bytearray,
        *,
        polygons: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(records, **options)
        self.outlines, self.polygons = outlines, polygons

    def target(self, number: int) -> Target:
        target: Any = super().target(number)
        if "outline" in target:
            sides = [int(self.records.images[side][number]) for side in ("height", "width")]
            rows = target.pop("outline").tolist()
            packed = [bytes(self.outlines[a:b]) for a, b in rows]
            target["masks"] = (
                [polygons_of(outline) or unpack([outline], *sides)[0] for outline in packed]
                if self.polygons
                else unpack(packed, *sides)
            )
        return cast(Target, target)

    def mirror(self, target: Target, width: int) -> None:
        super().mirror(target, width)
        masks = target.get("masks", ())
        if isinstance(masks, torch.Tensor):
            target["masks"] = masks.flip(-1)
        elif masks:
            target["masks"] = [_mirrored(mask, width) for mask in masks]


def _mirrored(mask: Any, width: int) -> Any:
    """One object's mask: its pixels (H, W), or its polygons."""
    if isinstance(mask, torch.Tensor):
        return mask.flip(-1)
    for polygon in mask:
        polygon[::2] = width - polygon[::2]
    return mask


def _folder(root: Path, split: str) -> Path:
    folder = root / split
    if not folder.is_dir():
        raise FileNotFoundError(
            f"Expected a folder of images at {folder}, such as {root}/train2017: correct the root "
            "or the split."
        )
    return folder


def _annotations(root: Path, split: str) -> Path:
    path = root / "annotations" / f"instances_{split}.json"
    if not path.is_file():
        there = ", ".join(sorted(file.name for file in path.parent.glob("*.json"))) or "none"
        raise FileNotFoundError(
            f"Expected the objects of {split!r} at {path}, but there is no such file; annotations "
            f"found: {there}.\nThe expected tree is:\n  {root}/{split}/000000000001.jpg\n  {path}"
        )
    return path
