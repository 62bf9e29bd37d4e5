"""The diagnosis on the real objects of VOC2007 test and what two published detectors found of them."""

import sys
from pathlib import Path

import numpy as np
import pytest

from goodtransfer.analysis.error_measures import measure
from goodtransfer.analysis.errors import diagnose
from goodtransfer.metrics.voc import Detections

sys.path.insert(0, str(Path(__file__).parent))
import literal_errors as literal
from voc2007_objects import voc2007_test


@pytest.fixture(scope="module")
def voc2007(shared):
    return voc2007_test(
        shared / "data/metrics_reference/hoiem_voc2007/VOC2007_annotations_test.mat"
    )


@pytest.mark.data
def test_the_real_ground_truth_of_voc2007_is_what_is_published(voc2007):
    objects = voc2007.objects
    assert (len(voc2007.images), len(objects.labels)) == (4952, 14_976)
    assert (~objects.difficult).sum() == 12_032
    assert voc2007.images[0] == "000001"
    assert voc2007.sizes[0].tolist() == [353, 500]
    inside = objects.boxes[:, 2:] <= voc2007.sizes[objects.images]
    assert inside.all()
    assert objects.boxes.min() == 1


@pytest.mark.data
@pytest.mark.parametrize("detector", ["fel", "ved"])
def test_real_detections_of_two_published_detectors(detector, voc2007, shared):
    """Which objects they found and how surely is known; the boxes are the objects' own, and again
    half as wide, and again as of the next class."""
    folder, objects = shared / "data/metrics_reference/hoiem_voc2007", voc2007.objects
    parts, recall = [], {}
    for label, name in enumerate(voc2007.class_names):
        file = folder / f"gt_{detector}_{name}.txt"
        if not file.is_file():
            continue
        lines = [line.split() for line in file.read_text().splitlines()[1:]]
        rows = np.flatnonzero((objects.labels == label) & ~objects.difficult)
        assert len(lines) == len(rows)
        hit = np.array([line[0] == "1" for line in lines])
        score = np.array([float(line[1]) for line in lines])[hit]
        recall[label] = hit.mean()
        boxes, images = objects.boxes[rows[hit]], objects.images[rows[hit]]
        narrow = boxes.astype(float)
        narrow[:, 2] = boxes[:, 0] + (boxes[:, 2] - boxes[:, 0]) // 2.5
        for lower, again, called in (
            (0, boxes, label),
            (1, narrow, label),
            (2, boxes, (label + 1) % 20),
        ):
            parts.append((images, np.full(len(images), called), score - lower, again))
    found = Detections(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    assert len(recall) == 7
    diagnosis = diagnose(found, voc2007)
    rows, there = literal.as_rows(found, voc2007)
    for label in recall:
        errors = diagnosis.classes[label]
        mine = [rows[row] for row in literal.in_order(label, rows)]
        similar = set(np.flatnonzero(diagnosis.similar[label]).tolist())
        expected = literal.errors_of(label, mine, there, similar)
        assert [column.tolist() for column in (errors.strong, errors.weak, errors.kinds, errors.nearest)] == [
            list(column) for column in expected
        ]  # fmt: skip
    read = measure(diagnosis, interpolation="area")
    for label, share in recall.items():
        assert read.shares[label].sum() == pytest.approx(100)
        assert read.trend[label, 0].sum() == pytest.approx(100)
        assert read.shares[label, 0] > 80 * share
    assert np.isfinite(read.ap).all()
