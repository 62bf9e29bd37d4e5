"""VOC's ground truth from its folder, as the analysis takes it, which knows no data sets."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from goodtransfer.analysis.detections import GroundTruth, voc_pixels
from goodtransfer.data.files import inside
from goodtransfer.data.fingerprint import voc_list
from goodtransfer.data.voc import read_annotation
from goodtransfer.metrics.voc import Objects


def read_voc(root: Path, split: str, class_names: Sequence[str]) -> GroundTruth:
    """The ground truth of a VOCdevkit, which ``root`` is or holds; its images are not needed.

    Args:
        root: the folder.
        split: YEAR/LIST, as ``2007/test``.
        class_names: of its annotations.

    Raises:
        FileNotFoundError: for a folder without a VOCdevkit, a list or an annotation.
        ValueError: for an annotation that cannot be read; the message names it.
    """
    year, listed = voc_list(root, split)
    source = year / "ImageSets" / "Main" / f"{split.partition('/')[2]}.txt"
    numbers = {name: number for number, name in enumerate(class_names)}
    found = [
        read_annotation(year / "Annotations" / f"{inside(name, source)}.xml", numbers)
        for name in listed
    ]
    boxes = np.array([box for each in found for box in each.boxes], np.float32)
    objects = Objects(
        np.repeat(np.arange(len(found)), [len(each.labels) for each in found]),
        np.array([label for each in found for label in each.labels], np.int64),
        voc_pixels(boxes),
        np.array([flag for each in found for flag in each.difficult], np.bool_),
    )
    sizes = np.array([(each.width, each.height) for each in found], np.int64).reshape(-1, 2)
    return GroundTruth(tuple(class_names), tuple(listed), objects, sizes)
