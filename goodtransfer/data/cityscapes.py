"""Cityscapes: streets of 50 cities, 19 classes (protocol 4)."""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from goodtransfer.data.files import scan_flat
from goodtransfer.data.segmentation import Pairs, SegmentationDataModule
from goodtransfer.views.segmentation import IGNORE

# Number in a label file, name and colour of the classes that count, in the order of their train ids:
# https://github.com/mcordts/cityscapesScripts/blob/4b832633e8bac481b6ee053f4332d43eb4cffdfc/cityscapesscripts/helpers/labels.py
_CLASSES = (
    (7, "road", (128, 64, 128)),
    (8, "sidewalk", (244, 35, 232)),
    (11, "building", (70, 70, 70)),
    (12, "wall", (102, 102, 156)),
    (13, "fence", (190, 153, 153)),
    (17, "pole", (153, 153, 153)),
    (19, "traffic light", (250, 170, 30)),
    (20, "traffic sign", (220, 220, 0)),
    (21, "vegetation", (107, 142, 35)),
    (22, "terrain", (152, 251, 152)),
    (23, "sky", (70, 130, 180)),
    (24, "person", (220, 20, 60)),
    (25, "rider", (255, 0, 0)),
    (26, "car", (0, 0, 142)),
    (27, "truck", (0, 0, 70)),
    (28, "bus", (0, 60, 100)),
    (31, "train", (0, 80, 100)),
    (32, "motorcycle", (0, 0, 230)),
    (33, "bicycle", (119, 11, 32)),
)
# All numbers from 0 to 33 have a name; 255 is -1, a licence plate, in eight bits.
_NUMBERS = (*range(34), 255)

CITYSCAPES_CLASSES = tuple(name for _, name, _ in _CLASSES)
PALETTE = tuple(colour for _, _, colour in _CLASSES)
"""The official colour (R, G, B) of each train id, for pictures."""

TRAIN_IDS: Mapping[int, int] = MappingProxyType(
    dict.fromkeys(_NUMBERS, IGNORE) | {number: id_ for id_, (number, *_) in enumerate(_CLASSES)}
)
"""Train id of each number in a label file (labelIds)."""

_IMAGE, _LABEL = b"_leftImg8bit.png", b"_gtFine_labelIds.png"


class CityscapesDataModule(SegmentationDataModule):
    """Cityscapes with fine annotations: 2048 x 1024 pixels, 19 classes.

    Expected tree, as unpacked from ``leftImg8bit_trainvaltest.zip`` and ``gtFine_trainvaltest.zip``::

        ROOT/leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png   2,975 images
        ROOT/leftImg8bit/val/frankfurt/...                                     500 images
        ROOT/gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png

    Source: https://www.cityscapes-dataset.com. The labels read are ``labelIds``, which every download
    has; ``labelTrainIds``, which a script of theirs makes, are not needed. Of the test images no
    labels are published.

    Args: those of :class:`SegmentationDataModule`; ``root`` holds ``leftImg8bit`` and ``gtFine``.

    Raises:
        FileNotFoundError: for a missing folder, with the expected tree; for an image without its
            label, or a label without its image.
        ValueError: when read, for a label of another size than its image, or with unknown classes.
    """

    palette = PALETTE
    expected = MappingProxyType({"train": 2_975, "val": 500, "classes": 19})

    @property
    def class_names(self) -> list[str]:
        return list(CITYSCAPES_CLASSES)

    @property
    def train_ids(self) -> Mapping[int, int]:
        return TRAIN_IDS

    def read(self, part: str) -> Pairs:
        folders = [self.root / kind / part for kind in ("leftImg8bit", "gtFine")]
        for folder in folders:
            if not folder.is_dir():
                raise FileNotFoundError(
                    f"Expected a folder of cities at {folder}.\nThe expected tree is:\n"
                    f"  {self.root}/leftImg8bit/{part}/CITY/*_leftImg8bit.png\n"
                    f"  {self.root}/gtFine/{part}/CITY/*_gtFine_labelIds.png"
                )
        images, labels = map(scan_flat, folders)
        labels = labels.take(np.char.endswith(labels.names, _LABEL))
        wanted = [name.replace(_IMAGE, _LABEL) for name in images.names.tolist()]
        return self.paired(images, labels, np.array(wanted, dtype=np.bytes_))
