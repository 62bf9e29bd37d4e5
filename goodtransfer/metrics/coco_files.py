"""COCO's average precision from its files, or from what they say (protocol 3.5), in percent."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pycocotools import mask as rle

from goodtransfer.metrics.coco_engines import Engine, Entry, IoUType, count


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
    try:
        return json.loads(Path(given).read_bytes()), str(given)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"Expected JSON at {given}, but it cannot be parsed ({error}): replace the file."
        ) from error


class _Reader:
    """Takes of each entry what is needed, checked; engines write into what they are given."""

    def __init__(self, iou_type: IoUType) -> None:
        self.iou_type = iou_type
        self.images: dict[int, Entry] = {}

    def read(self, what: str, entries: Any, source: str) -> list[Entry]:
        """A list: of images, of categories, or of what is in images that were read before."""
        if not isinstance(entries, Sequence) or isinstance(entries, str):
            raise ValueError(
                f"Expected a list with each {what} in {source}, but got {entries!r:.100}: pass what "
                "COCO's `instances` files have, and a list of results."
            )
        parse: Callable[[Entry], Entry] = getattr(self, f"_{what}")
        parsed = []
        for number, entry in enumerate(entries):
            try:
                parsed.append(parse(entry))
            except Exception as error:  # pycocotools raises nothing more special
                raise ValueError(
                    f"Expected {what} number {number} of {source} as COCO's files have it, but it "
                    f"is {entry!r:.200} ({type(error).__name__}: {error}): correct it."
                ) from error
        return parsed

    def _image(self, entry: Entry) -> Entry:
        sides = ("height", "width") if self.iou_type == "segm" else ()
        image = {key: int(entry[key]) for key in ("id", *sides)}
        self.images[image["id"]] = image
        return image

    def _category(self, entry: Entry) -> Entry:
        return {"id": int(entry["id"])}

    def _annotation(self, entry: Entry) -> Entry:
        (area,) = _finite(entry["area"])
        return self._placed(entry) | {"area": area, "iscrowd": int(entry.get("iscrowd", 0))}

    def _result(self, entry: Entry) -> Entry:
        (score,) = _finite(entry["score"])
        return self._placed(entry) | {"score": score}

    def _placed(self, entry: Entry) -> Entry:
        image, category = int(entry["image_id"]), int(entry["category_id"])
        if image not in self.images:
            raise ValueError(f"there is no image {image}")
        placed: Entry = {"image_id": image, "category_id": category}
        if self.iou_type == "bbox":
            x, y, width, height = entry["bbox"]
            placed["bbox"] = _finite(x, y, width, height)
        else:
            size = [self.images[image][side] for side in ("height", "width")]
            placed["segmentation"] = _as_runs(entry["segmentation"], *size)
        return placed


def _finite(*numbers: Any) -> list[float]:
    """As floats; pycocotools matches a box of NaN with anything."""
    floats = [float(number) for number in numbers]
    if not all(map(math.isfinite, floats)):
        raise ValueError(f"{floats} is not finite")
    return floats


def _as_runs(segmentation: Any, height: int, width: int) -> Entry:
    """A mask as compressed run lengths, by COCO.annToRLE's rule."""
    if isinstance(segmentation, list) or isinstance(segmentation["counts"], list):
        segmentation = rle.frPyObjects(segmentation, height, width)
    if isinstance(segmentation, list):
        segmentation = rle.merge(segmentation)
    size = [int(side) for side in segmentation["size"]]
    if size != [height, width]:
        raise ValueError(f"a mask of {size} in an image of {[height, width]}")
    return {"size": size, "counts": segmentation["counts"]}
