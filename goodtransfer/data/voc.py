"""PASCAL VOC detection, and any data set in the layout of a VOCdevkit."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml import ElementTree
from numpy.typing import NDArray
from tqdm import tqdm

from goodtransfer.data.detection import (
    Columns,
    DetectionDataModule,
    Record,
    Records,
)
from goodtransfer.data.files import EXTENSIONS, inside, listed
from goodtransfer.data.fingerprint import voc_fingerprint, voc_list
from goodtransfer.distributed import rank
from goodtransfer.foreign import content, plain, shown

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip

# Images that the official lists name.
PUBLISHED = MappingProxyType({"2007/trainval": 5_011, "2007/test": 4_952, "2012/trainval": 11_540})

_ANNOTATION = 2**24  # bytes; VOC's largest has 20,000

Box = tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class VOCRecord(Record):
    """Attributes: those of :class:`Record`; ``difficult`` (n,), whether VOC's score leaves it out."""

    difficult: NDArray[np.bool_]


class VOCDetectionDataModule(DetectionDataModule):
    """Images, boxes, labels and difficult flags, in the layout of PASCAL VOC.

    Expected tree, as unpacked from http://host.robots.ox.ac.uk/pascal/VOC (``ROOT`` may also be the
    folder VOCdevkit itself; any image format will do)::

        ROOT/VOCdevkit/VOC2007/JPEGImages/000005.jpg
        ROOT/VOCdevkit/VOC2007/Annotations/000005.xml
        ROOT/VOCdevkit/VOC2007/ImageSets/Main/trainval.txt   5,011 images (VOC2012: 11,540)
        ROOT/VOCdevkit/VOC2007/ImageSets/Main/test.txt       4,952 images

    A target has ``boxes``, ``labels``, ``image_id`` and ``difficult`` bool (n,). Files count pixels
    from 1 and include the last one, so ``boxes`` are (xmin - 1, ymin - 1, xmax, ymax), as in
    detectron2. Difficult objects are trained on too.

    Args:
        root: the folder that holds ``VOCdevkit``.
        train: splits to train on; the "07+12" of the literature is ``("2007/trainval",
            "2012/trainval")``.
        test: split to report on.
        class_names: the classes, in the order of the labels.
        options: see :class:`DetectionDataModule`.

    Raises:
        FileNotFoundError: at set-up, for a missing split, annotation or image.
        ValueError: at set-up, for an annotation that cannot be used; the message names the file. For
            ``class_names`` that are none, or not different.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        train: str | Sequence[str] = ("2007/trainval",),
        test: str = "2007/test",
        class_names: Sequence[str] = VOC_CLASSES,
        **options: Any,
    ) -> None:
        super().__init__(root, train=train, test=test, **options)
        if len(set(class_names)) < max(len(class_names), 1):
            raise ValueError(
                f"Expected argument `class_names` to be different names, but got {class_names}."
            )
        self._class_names = list(class_names)

    @property
    def class_names(self) -> list[str]:
        """As given."""
        return self._class_names

    @property
    def expected(self) -> Mapping[str, int]:
        if self._class_names != list(VOC_CLASSES) or not set(self._splits()) <= set(PUBLISHED):
            return {}
        sums = {part: sum(PUBLISHED[s] for s in splits) for part, splits in self.splits.items()}
        return sums | {"classes": len(VOC_CLASSES)}

    def fingerprint(self) -> str:
        """Sixteen hex digits that change with the splits or the annotations' sizes."""
        return voc_fingerprint(self.root, self._splits()).digest

    def read(self, split: str) -> Records[VOCRecord]:
        year, names = voc_list(self.root, split)
        source = year / "ImageSets" / "Main" / f"{split.partition('/')[2]}.txt"
        folder = year / "JPEGImages"
        files = os.listdir(folder) if folder.is_dir() else []
        images = {os.path.splitext(f)[0]: f for f in files if f.lower().endswith(EXTENSIONS)}
        numbers = {name: number for number, name in enumerate(self.class_names)}
        quick = len(names) <= 2000 or rank() > 0
        paths: list[str] = []
        found: list[Annotation] = []
        for name in tqdm(names, f"annotations of {split}", unit="file", leave=False, disable=quick):
            try:
                if inside(name, source) not in images:
                    raise FileNotFoundError(
                        f"Expected an image at {folder / name}.jpg, because the split {split} lists "
                        "it: add the file, or take the line from the list."
                    )
                found.append(read_annotation(year / "Annotations" / f"{name}.xml", numbers))
                paths.append(f"{year.name}/JPEGImages/{images[name]}")
            except (OSError, ValueError) as fault:
                self._skips.leave_out(fault)
        objects: Columns = {
            "boxes": np.array([b for a in found for b in a.boxes], np.float32).reshape(-1, 4),
            "labels": np.array([label for a in found for label in a.labels], np.int64),
            "difficult": np.array([flag for a in found for flag in a.difficult], np.bool_),
        }
        sizes = np.array([(a.width, a.height) for a in found], np.int64).reshape(-1, 2)
        return Records(
            VOCRecord,
            listed(year.parent, paths, None, source),
            {"width": sizes[:, 0], "height": sizes[:, 1]},
            objects,
            np.array([len(a.labels) for a in found], np.int64),
        )

    def _splits(self) -> list[str]:
        return [split for part in self.splits.values() for split in part]


class Annotation(NamedTuple):
    """What an XML file tells of an image; its objects' boxes, classes and flags."""

    width: int
    height: int
    boxes: list[Box]
    labels: list[int]
    difficult: list[bool]


def read_annotation(path: Path, numbers: Mapping[str, int]) -> Annotation:
    """The annotation of an image.

    Args:
        path: of the XML file.
        numbers: class name to label.

    Raises:
        FileNotFoundError: for a file that cannot be opened.
        ValueError: for one that is no XML, or has entities, which can expand to fill the memory; or
            where a value is missing or impossible.
    """
    try:
        # No annotation has a DTD, whose defaults of attributes can fill the memory as entities can.
        root = ElementTree.fromstring(content(path, _ANNOTATION), forbid_dtd=True)
    except OSError as error:
        raise FileNotFoundError(
            f"Expected an annotation at {path}, because a split lists it, but cannot read it "
            f"({error.strerror}): add the file, or take the line from the list."
        ) from None
    except (ParseError, ValueError, LookupError, MemoryError) as error:  # or an unknown encoding
        raise ValueError(
            f"Expected XML at {path}, but it cannot be parsed ({plain(str(error))}): replace the file."
        ) from error
    width, height = (int(_number(root, f"size/{side}", path)) for side in ("width", "height"))
    if not 1 <= min(width, height) <= max(width, height) < 2**31:
        raise ValueError(
            f"Expected the size of the image in {path}, but found {width} x {height}: some tools "
            "write 0, so write the true size into the file."
        )
    found = Annotation(width, height, [], [], [])
    for entry in root.iter("object"):
        # Direct children only: in VOC2012, the parts of an object have names and boxes as well.
        name = (entry.findtext("name") or "").strip()
        if name not in numbers:
            near = " or ".join(repr(n) for n in get_close_matches(name, numbers))
            raise ValueError(
                f"Expected objects of {len(numbers)} classes in {path}, but found a "
                f"{shown(name)}"
                f"{near and f' (perhaps {near}?)'}: correct the file, or pass class_names=... with "
                "your classes."
            )
        found.boxes.append(_box(entry, (width, height), path))
        found.labels.append(numbers[name])
        flagged = entry.find("difficult") is not None  # objects without the flag are not difficult
        found.difficult.append(flagged and _number(entry, "difficult", path) != 0)
    return found


def _box(entry: Element, size: tuple[int, int], path: Path) -> Box:
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


def _number(parent: Element, tag: str, path: Path) -> float:
    text = parent.findtext(tag)
    try:
        number = float(text or "")
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(
            f"Expected a number in <{tag}> of {path}, but found {shown(text)}: correct the file."
        )
    return number
