"""VOC's ground truth from its folder, as the analysis takes it, which knows no data sets."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from goodtransfer.analysis.detections import GroundTruth, voc_pixels
from goodtransfer.data import VOCDetectionDataModule
from goodtransfer.metrics.voc import Objects


def read_voc(root: Path, split: str, class_names: Sequence[str]) -> GroundTruth:
    """The ground truth of a VOCdevkit, which ``root`` is or holds.

    Args:
        root: the folder.
        split: YEAR/LIST, as ``2007/test``.
        class_names: of its annotations.

    Raises:
        FileNotFoundError: for a folder without a VOCdevkit, a list or an annotation.
        ValueError: for an annotation that cannot be read; the message names it.
    """
    records = VOCDetectionDataModule(root, test=split, class_names=class_names).records("test")
    objects = Objects(
        np.repeat(np.arange(len(records)), records.counts),
        records.objects["labels"],
        voc_pixels(records.objects["boxes"]),
        records.objects["difficult"],
    )
    sizes = np.stack([records.images["width"], records.images["height"]], 1)
    return GroundTruth(tuple(class_names), tuple(r.name for r in records), objects, sizes)
