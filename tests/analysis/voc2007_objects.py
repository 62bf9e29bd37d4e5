"""All objects of VOC2007 test from the toolbox's MATLAB file, without scipy."""

import struct
import zlib

import numpy as np

from goodtransfer.analysis.detections import GroundTruth
from goodtransfer.metrics.voc import Objects

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
NUMBERS = {1: "i1", 2: "u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 9: "<f8", 16: "u1"}


def elements(data):
    """Type and content of one after the other."""
    place = 0
    while place < len(data):
        kind, size = struct.unpack_from("<II", data, place)
        start, step = place + 8, 8 + size + -size % 8
        if kind >> 16:  # a small one has its size in the upper half, and its content at once
            kind, size, start, step = kind & 0xFFFF, kind >> 16, place + 4, 8
        yield kind, data[start : start + size]
        place += step


def matrix(content):
    """An array (flat), or of a struct array the fields of each, unread."""
    (_, flags), _, _, *rest = elements(content)
    if flags[0] != 2:
        kind, values = rest[0]
        return np.frombuffer(values, NUMBERS[kind])
    (_, length), (_, names), *fields = rest
    width = struct.unpack("<i", length)[0]
    names = [
        bytes(names[i : i + width]).split(b"\0")[0].decode() for i in range(0, len(names), width)
    ]
    values = [value for _, value in fields]
    return [
        dict(zip(names, values[i : i + len(names)], strict=True))
        for i in range(0, len(values), len(names))
    ]


def voc2007_test(path):
    """The ground truth in ``VOC2007_annotations_test.mat``."""
    with path.open("rb") as file:
        ((_, packed),) = elements(memoryview(file.read())[128:])
    ((_, whole),) = elements(memoryview(zlib.decompress(packed)))
    (ann,) = matrix(whole)
    records = matrix(ann["rec"])
    names = [bytes(matrix(r["filename"]).astype(np.uint8)).decode().split(".")[0] for r in records]
    sizes = np.array([matrix(r["imgsize"])[:2] for r in records], np.int64)
    columns = []
    for label, there in enumerate(matrix(ann["gt"])):
        boxes = matrix(there["bbox"]).reshape(4, -1).T  # MATLAB's order is by column
        rows = (matrix(there["rnum"]).astype(np.int64) - 1, np.full(len(boxes), label), boxes)
        columns.append((*rows, matrix(there["isdiff"]) != 0))
    objects = Objects(*(np.concatenate(column) for column in zip(*columns, strict=True)))
    return GroundTruth(CLASSES, names, objects, sizes)
