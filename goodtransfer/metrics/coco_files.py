"""COCO's average precision from its files, or from what they say (protocol 3.5), in percent."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pycocotools import mask as rle

from goodtransfer.foreign import parsed_json, plain, shown
from goodtransfer.metrics.coco_engines import Engine, Entry, IoUType, count
from goodtransfer.run_lengths import SIDE, FaultError, check_polygon, compressed

_FAR = 2.0**31  # pixels; beyond it, areas and overlaps of boxes are no longer numbers


def coco_ap(
    ground_truth: str | Path | Mapping[str, Any],
    results: str | Path | Sequence[Mapping[str, Any]],
    iou_type: IoUType = "bbox",
    *,
    engine: Engine = "auto",
) -> dict[str, float]:
    """COCOeval's twelve numbers in percent: ``AP``, ``AP50``, ``AP75``, ``APs`` .. ``ARl``.

    A number is NaN where COCOeval says -1: no object (of that size) is there to be found. As by
    COCOeval, results of categories that the ground truth lacks count as nothing. As by detectron2,
    the size of a mask is its own, also where a result has a box, too.

    Args:
        ground_truth: what an ``instances`` file has, or the file: ``images``, ``categories`` and
            ``annotations``. One of these needs no ``id``, and is no crowd without ``iscrowd``.
        results: what a results file has, or the file; it may be empty, which is AP 0.
        iou_type: ``"bbox"`` for boxes (x, y, width, height), ``"segm"`` for masks.
        engine: what counts; ``"auto"`` is faster-coco-eval where installed.

    Raises:
        FileNotFoundError: for a missing file.
        ModuleNotFoundError: for an engine that is not installed.
        ValueError: for what cannot be read; the message names the entry.

    >>> thing = {"image_id": 7, "category_id": 1, "bbox": [2, 1, 8, 9], "area": 72}
    >>> world = {"images": [{"id": 7}], "categories": [{"id": 1}], "annotations": [thing]}
    >>> found = [{"image_id": 7, "category_id": 1, "bbox": [2, 1, 8, 8], "score": 0.9}]  # IoU 8/9
    >>> round(coco_ap(world, found)["AP"])
    80
    """
    if iou_type not in get_args(IoUType):
        raise ValueError(
            f"Expected argument `iou_type` to be one of {get_args(IoUType)}, but got {iou_type!r}."
        )
    world, source = _content(ground_truth, "`ground_truth`")
    found, found_in = _content(results, "`results`")
    lists = world if isinstance(world, Mapping) else {}
    reader = _Reader(iou_type)
    images = reader.read("image", lists.get("images"), source)
    categories = reader.read("category", lists.get("categories"), source)
    objects = reader.read("annotation", lists.get("annotations"), source)
    detections = reader.read("result", found, found_in)
    return count(images, categories, objects, detections, iou_type, engine).stats


def _content(given: Any, name: str) -> tuple[Any, str]:
    """What a file says, and what to call it."""
    if not isinstance(given, str | Path):
        return given, name
    if not Path(given).is_file():
        raise FileNotFoundError(
            f"Expected {name} at {given}, but there is no such file: correct the path."
        )
    return parsed_json(given), str(given)


class _Reader:
    """Takes of each entry what is needed, checked; engines write into what they are given."""

    def __init__(self, iou_type: IoUType) -> None:
        self.iou_type = iou_type
        self.images: dict[int, Entry] = {}

    def read(self, what: str, entries: Any, source: str) -> list[Entry]:
        """A list: of images, of categories, or of what is in images that were read before."""
        if not isinstance(entries, Sequence) or isinstance(entries, str):
            raise ValueError(
                f"Expected a list with each {what} in {source}, but got {shown(entries, 100)}: pass what "
                "COCO's `instances` files have, and a list of results."
            )
        parse: Callable[[Entry], Entry] = getattr(self, f"_{what}")
        parsed = []
        for number, entry in enumerate(entries):
            try:
                parsed.append(parse(entry))
            except Exception as error:  # pycocotools raises nothing more special
                fault = (
                    f"as COCO's files have it, but it is {shown(entry)} ({type(error).__name__}: "
                    f"{plain(str(error))})"
                )
                raise ValueError(
                    f"Expected {what} number {number} of {source} "
                    f"{error if isinstance(error, FaultError) else fault}: correct it."
                ) from error
        return parsed

    def _image(self, entry: Entry) -> Entry:
        sides = ("height", "width") if self.iou_type == "segm" else ()
        image = {"id": _id(entry["id"])} | {side: int(entry[side]) for side in sides}
        if not all(0 <= image[side] < SIDE for side in sides):
            raise ValueError(f"an image of height and width {[image[side] for side in sides]}")
        self.images[image["id"]] = image
        return image

    def _category(self, entry: Entry) -> Entry:
        return {"id": _id(entry["id"])}

    def _annotation(self, entry: Entry) -> Entry:
        (area,) = _finite(entry["area"])
        return self._placed(entry) | {"area": area, "iscrowd": int(bool(entry.get("iscrowd", 0)))}

    def _result(self, entry: Entry) -> Entry:
        (score,) = _finite(entry["score"])
        return self._placed(entry) | {"score": score}

    def _placed(self, entry: Entry) -> Entry:
        image, category = _id(entry["image_id"]), _id(entry["category_id"])
        if image not in self.images:
            raise ValueError(f"there is no image {image}")
        placed: Entry = {"image_id": image, "category_id": category}
        if self.iou_type == "bbox":
            x, y, width, height = entry["bbox"]
            placed["bbox"] = _finite(x, y, width, height)
            if max(map(abs, placed["bbox"])) > _FAR:
                raise ValueError("a box far outside of any image")
        else:
            size = [self.images[image][side] for side in ("height", "width")]
            placed["segmentation"] = _as_runs(entry["segmentation"], *size)
        return placed


def _id(number: Any) -> int:
    """As the engines can keep it."""
    if abs(int(number)) >= 2**63:
        raise ValueError("an id of more than 64 bits")
    return int(number)


def _finite(*numbers: Any) -> list[float]:
    """As floats; pycocotools matches a box of NaN with anything."""
    floats = [float(number) for number in numbers]
    if not all(map(math.isfinite, floats)):
        raise ValueError(f"{floats} is not finite")
    return floats


def _as_runs(segmentation: Any, height: int, width: int) -> Entry:
    """A mask as compressed run lengths, by COCO.annToRLE's rule."""
    if isinstance(segmentation, list):
        for polygon in segmentation:
            check_polygon(polygon, height, width)
        runs = rle.merge(rle.frPyObjects(segmentation, height, width))
    else:
        size = [int(side) for side in segmentation["size"]]
        if size != [height, width]:
            raise ValueError(f"a mask of {size} in an image of {[height, width]}")
        runs = compressed(segmentation, height, width)
    return {"size": [height, width], "counts": runs["counts"]}
