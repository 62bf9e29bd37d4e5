"""SYNTHIA: drives through a drawn city, as images for pretraining or with the class of each pixel."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from goodtransfer.data.cityscapes import CITYSCAPES_CLASSES
from goodtransfer.data.files import Files, scan_flat
from goodtransfer.data.images import ImageDataModule, Parts
from goodtransfer.data.segmentation import Pairs, SegmentationDataModule
from goodtransfer.views.segmentation import IGNORE

RAND = "RAND_CITYSCAPES"
CAMERAS = tuple(
    f"{eye}/Omni_{way}" for eye in ("Stereo_Left", "Stereo_Right") for way in ("F", "B", "L", "R")
)

# Names by their number in a label file. The sequences' are explained in each of their downloads; also
# https://github.com/m-birke/automotive-segmentation-datasets/blob/af5e0aef52a8823dca25b78904d23f8c19421bbc/synthia_sequences.md
# and, in the same place, RAND_CITYSCAPES' in synthia_rand_cityscapes.md.
_FIRST = (
    "void", "sky", "building", "road", "sidewalk", "fence", "vegetation", "pole", "car",
    "traffic sign", "pedestrian", "bicycle",
)  # fmt: skip
SEQUENCE_NAMES = (*_FIRST, "lane marking", "reserved", "reserved", "traffic light")
RAND_NAMES = (
    *_FIRST, "motorcycle", "parking slot", "road work", "traffic light", "terrain", "rider",
    "truck", "bus", "train", "wall", "lane marking",
)  # fmt: skip
SEQUENCE_CLASSES = tuple(name for name in SEQUENCE_NAMES if name not in ("void", "reserved"))

Names = str | Sequence[str]


@dataclass(frozen=True)
class Frames:
    """Frames below the folder of SYNTHIA: of some sequences, by some cameras.

    Attributes:
        root: the folder that holds the sequences.
        sequences: folders to train on; None for every ``SYNTHIA-SEQS-*``.
        val: folders to report on, which are not trained on.
        cameras: such as ``"Stereo_Left/Omni_F"``; None for all. RAND_CITYSCAPES' has no name.
    """

    root: Path
    sequences: tuple[str, ...] | None
    val: tuple[str, ...]
    cameras: tuple[str, ...] | None

    def __post_init__(self) -> None:
        unknown = sorted(set(self.cameras or ()) - set(CAMERAS))
        if unknown:
            raise ValueError(
                f"Expected `cameras` of {', '.join(CAMERAS)}, but got {', '.join(unknown)}."
            )

    def files(self, part: str, kind: str) -> Files:
        """All of a part, unlabelled.

        Args:
            part: ``"train"`` or ``"val"``.
            kind: ``"RGB"`` or ``"GT/LABELS"``.

        Raises:
            FileNotFoundError: for a sequence that is not there, with the expected tree.
        """
        sequences = self.val if part == "val" else self._trained_on()
        names = [np.zeros(0, dtype="S1"), *(self._names(name, kind) for name in sequences)]
        packed = np.concatenate(names)
        return Files(self.root, packed, np.full(len(packed), -1))

    def _trained_on(self) -> list[str]:
        chosen = self.sequences
        if chosen is None:
            found = self.root.glob("SYNTHIA-SEQS-*")
            chosen = tuple(sorted(path.name for path in found if path.is_dir()))
            if not chosen:
                raise self._missing("SYNTHIA-SEQS-*", "RGB")
        return [name for name in chosen if name not in self.val]

    def _names(self, sequence: str, kind: str) -> NDArray[np.bytes_]:
        folder = self.root / sequence / kind
        if not folder.is_dir():
            raise self._missing(sequence, kind)
        names = scan_flat(folder).names
        if self.cameras and sequence != RAND:
            starts = [os.fsencode(f"{camera}/") for camera in self.cameras]
            names = names[np.any([np.char.startswith(names, start) for start in starts], axis=0)]
        return np.char.add(os.fsencode(f"{sequence}/{kind}/"), names)

    def _missing(self, sequence: str, kind: str) -> FileNotFoundError:
        return FileNotFoundError(
            f"Expected frames in {self.root / sequence / kind}, but there is no such folder.\n"
            f"The expected tree is:\n"
            f"  {self.root}/SYNTHIA-SEQS-01-DAWN/RGB/Stereo_Left/Omni_F/000000.png\n"
            f"  {self.root}/SYNTHIA-SEQS-01-DAWN/GT/LABELS/Stereo_Left/Omni_F/000000.png\n"
            f"  {self.root}/{RAND}/RGB/0000000.png\n"
            f"  {self.root}/{RAND}/GT/LABELS/0000000.png"
        )


class SYNTHIADataModule(ImageDataModule):
    """SYNTHIA's frames as images without labels, for pretraining.

    Expected tree, as unpacked (eight cameras: ``Stereo_{Left,Right}/Omni_{F,B,L,R}``)::

        ROOT/SYNTHIA-SEQS-01-DAWN/RGB/Stereo_Left/Omni_F/000000.png   1280 x 760 pixels
        ROOT/RAND_CITYSCAPES/RGB/0000000.png   9,400 single frames, only where named

    Source: http://synthia-dataset.net. The paper pretrains on 365K frames and does not say which
    (protocol 1.10). They must be of the video sequences, where consecutive frames are nearly the
    same.

    Args:
        root: the folder that holds the sequences.
        sequences: folders to train on; None for every ``SYNTHIA-SEQS-*``.
        val: folders to report on, which are not trained on. SYNTHIA has no official split.
        cameras: such as ``"Stereo_Left/Omni_F"``; None for all eight.
        options: those of :class:`ImageDataModule`.

    Raises:
        FileNotFoundError: for a sequence that is not there, with the expected tree.
        ValueError: for a camera that SYNTHIA does not have.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        sequences: Names | None = None,
        val: Names = (),
        cameras: Names | None = None,
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        self.frames = _frames(self.root, sequences, val, cameras)

    def read(self) -> Parts:
        train, val = (self.frames.files(part, "RGB") for part in ("train", "val"))
        return Parts([], train, val if len(val) else None)


class SYNTHIASegmentationDataModule(SegmentationDataModule):
    """SYNTHIA's frames with the class of each pixel.

    Expected tree: ``RGB`` as for :class:`SYNTHIADataModule`, and beside it labels of the same names::

        ROOT/SYNTHIA-SEQS-01-DAWN/GT/LABELS/Stereo_Left/Omni_F/000000.png
        ROOT/RAND_CITYSCAPES/GT/LABELS/0000000.png

    A label is a PNG of 16-bit R, G, B with the class in R, which OpenCV gives last, and the instance
    in G. PIL drops the lower byte, and with it every class, so a label that went through PIL is
    refused.

    Args:
        root: the folder that holds the sequences.
        classes: ``"own"`` for the sequences' 13, or ``"cityscapes"`` for those of Cityscapes' 19
            that have the same name; RAND_CITYSCAPES is read with the latter only. Lane markings,
            which are no class of Cityscapes, then do not count.
        sequences: folders to train on; None for every ``SYNTHIA-SEQS-*``. RAND_CITYSCAPES numbers
            its classes differently and cannot be mixed with them.
        val: folders to report on, which are not trained on. SYNTHIA has no official split.
        cameras: such as ``"Stereo_Left/Omni_F"``; None for all eight.
        options: see :class:`SegmentationDataModule`.

    Raises:
        FileNotFoundError: for a sequence that is not there, with the expected tree; for an image
            without its label, or a label without its image.
        ValueError: for a camera that SYNTHIA does not have, or folders and classes that do not go
            together.
    """

    label_format = (3, 16)

    def __init__(
        self,
        root: str | Path,
        *,
        classes: Literal["own", "cityscapes"] = "own",
        sequences: Names | None = None,
        val: Names = (),
        cameras: Names | None = None,
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        self.frames = _frames(self.root, sequences, val, cameras)
        if classes not in ("own", "cityscapes"):
            raise ValueError(f"Expected `classes` 'own' or 'cityscapes', but got {classes!r}.")
        folders = {*(self.frames.sequences or ["SYNTHIA-SEQS-*"]), *self.frames.val}
        self.classes, self._rand = classes, RAND in folders
        if self._rand and (classes == "own" or folders != {RAND}):
            raise ValueError(
                f"Expected {RAND} by itself and with classes='cityscapes', because the sequences "
                f"number their classes differently, but got {', '.join(sorted(folders))} with "
                f"classes={classes!r}."
            )

    @property
    def class_names(self) -> list[str]:
        return list(SEQUENCE_CLASSES if self.classes == "own" else CITYSCAPES_CLASSES)

    @property
    def train_ids(self) -> Mapping[int, int]:
        same = {name: number for number, name in enumerate(self.class_names)}
        same["pedestrian"] = same["person" if self.classes == "cityscapes" else "pedestrian"]
        names = RAND_NAMES if self._rand else SEQUENCE_NAMES
        return {number: same.get(name, IGNORE) for number, name in enumerate(names)}

    def read(self, part: str) -> Pairs:
        images, labels = (self.frames.files(part, kind) for kind in ("RGB", "GT/LABELS"))
        wanted = [name.replace(b"/RGB/", b"/GT/LABELS/") for name in images.names.tolist()]
        return self.paired(images, labels, np.array(wanted, dtype=np.bytes_))


def _frames(root: Path, sequences: Names | None, val: Names, cameras: Names | None) -> Frames:
    """Arguments as a user writes them: one name need not be in a list."""

    def several(names: Names) -> tuple[str, ...]:
        return (names,) if isinstance(names, str) else tuple(names)

    return Frames(
        root,
        None if sequences is None else several(sequences),
        several(val),
        None if cameras is None else several(cameras),
    )
