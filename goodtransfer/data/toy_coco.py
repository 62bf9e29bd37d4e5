"""The toy world as COCO: objects with boxes and outlines, crowds, and images without any object."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from goodtransfer.data.toy import CLASSES, Array
from goodtransfer.data.toy_picture import Drawing, Picture, box, draw, generator, invent
from goodtransfer.data.toy_writing import numbers, save, write_layout

FIRST = {"train": 1, "val": 500_001}  # image number, so that the splits share none
# With gaps, as COCO's are, so that a category is not mistaken for a label.
CATEGORIES = tuple(1 + label + label // 2 for label in range(len(CLASSES)))
OBJECTS = 5  # at most in an image


def make_coco(root: str | Path, *, train: int, val: int, size: int = 128, seed: int = 0) -> Path:
    """Write ``ROOT/{train,val}2017/000000000001.jpg``, ``annotations/instances_{train,val}2017.json``.

    Of eight images in a row one shows no object, and one also a crowd.
    """

    def write(world: Path) -> None:
        for split, count in (("train", train), ("val", val)):
            images: list[dict[str, Any]] = []
            annotations: list[dict[str, Any]] = []
            for index in numbers(count):
                what, number = coco_picture(seed, split, index), FIRST[split] + index
                drawing, name = draw(what, size), f"{number:012d}.jpg"
                save(drawing.pixels, world / f"{split}2017" / name)
                images.append(
                    {"id": number, "file_name": name, "width": size, "height": size, "license": 1}
                )
                for told in _annotations(what, drawing):
                    annotations.append({"id": len(annotations) + 1, "image_id": number, **told})
            path = world / "annotations" / f"instances_{split}2017.json"
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(COCO | {"images": images, "annotations": annotations}))

    return write_layout(root, "COCO", write, train=train, val=val, size=size, seed=seed)


COCO = {
    "info": {"description": "The toy world", "version": "1.0", "year": 2017},
    "licenses": [{"id": 1, "name": "None needed: the images are drawn", "url": ""}],
    "images": [],
    "annotations": [],
    "categories": [
        {"id": number, "name": name, "supercategory": name.split("-")[0]}
        for number, name in zip(CATEGORIES, CLASSES, strict=True)
    ],
}


def coco_picture(seed: int, split: str, index: int) -> Picture:
    """Invent one image of COCO."""
    random = generator(seed, f"coco/{split}", index)
    count = 0 if index % 8 == 7 else int(random.integers(1, OBJECTS, endpoint=True))
    return invent(random, objects=count, crowd=index % 8 == 3)


def _annotations(what: Picture, drawing: Drawing) -> Iterable[dict[str, Any]]:
    """What COCO tells of every object and, as the last one, of the crowd."""
    things = [*what.objects, *what.crowd[:1]]
    for number, (thing, covered) in enumerate(zip(things, drawing.masks, strict=True)):
        x1, y1, x2, y2 = box(covered)
        crowd = number == len(what.objects)
        yield {
            "category_id": CATEGORIES[thing.label],
            "segmentation": _runs(covered) if crowd else _polygons(covered),
            "area": float((covered >= 0.5).sum()),
            "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
            "iscrowd": int(crowd),
        }


def _polygons(covered: Array) -> list[list[float]]:
    """Outlines a quarter of a pixel inside the pixels covered by half, as x, y, x, y, ...

    OpenCV traces through the middles of pixels, so the outline is that of half as large ones.
    """
    fine = np.repeat(np.repeat((covered >= 0.5).astype(np.uint8), 2, axis=0), 2, axis=1)
    outlines, _ = cv2.findContours(fine, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [((outline.ravel() + 0.5) / 2).tolist() for outline in outlines]


def _runs(covered: Array) -> dict[str, list[int]]:
    """COCO's uncompressed run lengths: down the columns, beginning with what is not covered."""
    flat = np.concatenate([[False], (covered >= 0.5).ravel(order="F")])
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]), flat.size - 1)
    return {"counts": np.diff(ends, prepend=0).tolist(), "size": list(covered.shape)}
