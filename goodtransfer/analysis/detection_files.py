"""Detections and ground truth from files: the study's, COCO's and VOC's."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from goodtransfer.analysis.detections import GroundTruth, checked, voc_pixels
from goodtransfer.foreign import lines, parsed_json, plain, shown
from goodtransfer.metrics.images import check_columns
from goodtransfer.metrics.voc import Detections, Ints, Objects

# What the study writes, by the letters that numpy has for kinds of numbers.
_KINDS = {"images": "iu", "labels": "iu", "scores": "fiu", "boxes": "fiu"}

FORMATS = (
    "a `detections.safetensors` of the study, COCO's results as .json, or a folder of VOC's "
    "`comp4_det_test_CLASS.txt`"
)


def read_detections(path: Path, truth: GroundTruth) -> Detections:
    """Detections of any of the three formats, of images and classes of ``truth``.

    Scores and boxes are taken as they stand: in VOC's text they are rounded, in the others not.

    Args:
        path: a ``detections.safetensors`` that the study wrote; COCO's results as ``.json``; or a
            folder with VOC's ``comp4_det_test_CLASS.txt`` for each class.
        truth: the ground truth.

    Raises:
        FileNotFoundError: for a missing file, also that of one class.
        ValueError: for what cannot be read or is impossible; the message names file and value.

    >>> from tempfile import TemporaryDirectory
    >>> truth = GroundTruth(["cat"], ["000001"], Objects([0], [0], [[1, 1, 10, 10]], [False]))
    >>> with TemporaryDirectory() as folder:
    ...     file = Path(folder, "comp4_det_test_cat.txt")
    ...     _ = file.write_text("000001 0.9 2.0 3.0 9.0 9.5")  # image, score, x1, y1, x2, y2
    ...     found = read_detections(Path(folder), truth)
    >>> found.scores.tolist(), found.boxes.tolist()
    ([0.9], [[2.0, 3.0, 9.0, 9.5]])
    """
    if path.is_dir():
        return _read_voc(path, truth)
    readers = {".json": _read_coco_results, ".safetensors": _read_safetensors}
    if path.suffix not in readers or not path.is_file():
        raise FileNotFoundError(f"Expected {FORMATS} at {path}, but found none: correct the path.")
    return readers[path.suffix](path, truth)


def class_names_in(path: Path) -> tuple[str, ...]:
    """The classes that a ``detections.safetensors`` of the study names; none for other formats."""
    if path.suffix != ".safetensors" or not path.is_file():
        return ()
    return tuple(_of_study(path)[0]["class_names"])


def read_coco(path: Path) -> GroundTruth:
    """COCO's ground truth from an ``instances`` file; a crowd need not be found.

    Images are named by their number. Classes are in the order of their numbers.

    Raises:
        FileNotFoundError: for a missing file.
        ValueError: for what cannot be read or is impossible; the message names the entry.
    """
    content = _json(path)
    lists = content if isinstance(content, Mapping) else {}
    images = _entries(lists.get("images"), "image", path, lambda e: (int(e["id"]), *_size(e)))
    parsed = _entries(
        lists.get("categories"), "category", path, lambda e: (int(e["id"]), plain(str(e["name"])))
    )
    categories = sorted(parsed)
    places = {number: place for place, (number, *_) in enumerate(images)}
    labels = {number: label for label, (number, _) in enumerate(categories)}
    rows = _entries(
        lists.get("annotations"),
        "annotation",
        path,
        lambda e: (*_placed(e, places, labels), bool(e.get("iscrowd", 0))),
    )
    image, label, boxes, crowd = _columns(rows, 4)
    objects = Objects(
        np.array(image, np.int64),
        np.array(label, np.int64),
        voc_pixels(boxes),
        np.array(crowd, np.bool_),
    )
    sizes = np.array([size for _, *size in images], np.int64).reshape(-1, 2)
    try:
        return GroundTruth(
            tuple(name for _, name in categories),
            tuple(str(number) for number, *_ in images),
            objects,
            sizes if (sizes > 0).all() else None,
            tuple(number for number, _ in categories),
        )
    except ValueError as error:
        raise ValueError(f"Expected COCO's ground truth in {path}: {error}") from error


def _read_coco_results(path: Path, truth: GroundTruth) -> Detections:
    places = {int(name): place for place, name in enumerate(truth.images) if truth.category_ids}
    labels = {number: label for label, number in enumerate(truth.category_ids)}
    if not labels:
        raise ValueError(
            f"Expected COCO's ground truth as .json with COCO's results {path}, but got a folder: "
            "a result has the number of its class, which only that file explains."
        )
    rows = _entries(
        _json(path), "result", path, lambda e: (*_placed(e, places, labels), *_finite(e["score"]))
    )
    image, label, boxes, scores = _columns(rows, 4)
    found = Detections(
        np.array(image, np.int64),
        np.array(label, np.int64),
        np.array(scores, np.float64),
        voc_pixels(boxes),
    )
    return checked(found, truth, lambda row: f"result number {row} of {path}")


def _placed(
    entry: Any, places: Mapping[int, int], labels: Mapping[int, int]
) -> tuple[int, int, list[float]]:
    for key, known in (("image_id", places), ("category_id", labels)):
        if entry[key] not in known:
            raise ValueError(f"the ground truth has no {key} {shown(entry[key])}")
    x, y, width, height = _finite(*entry["bbox"])
    if min(width, height) < 0:
        raise ValueError("a bbox is x, y, width, height")
    return places[entry["image_id"]], labels[entry["category_id"]], [x, y, x + width, y + height]


def _finite(*numbers: Any) -> list[float]:
    floats = [float(number) for number in numbers]
    if not all(map(math.isfinite, floats)):
        raise ValueError(f"{floats} is not finite")
    return floats


def _size(entry: Any) -> tuple[int, int]:
    size = int(entry.get("width", 0)), int(entry.get("height", 0))
    if max(size) >= 2**31:
        raise ValueError("no image is that large")
    return size


def _entries(entries: Any, what: str, path: Path, parse: Callable[[Any], Any]) -> list[Any]:
    if not isinstance(entries, list):
        raise ValueError(
            f"Expected a list with each {what} in {path}, but found {shown(entries, 100)}: pass what "
            "COCO's `instances` files have as --gt, and a list of results."
        )
    parsed = []
    for number, entry in enumerate(entries):
        try:
            parsed.append(parse(entry))
        except (
            LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError,
        ) as error:  # fmt: skip
            raise ValueError(
                f"Expected {what} number {number} of {path} as COCO's files have it, but found "
                f"{shown(entry)} ({type(error).__name__}: {plain(str(error))}): correct it."
            ) from error
    return parsed


def _columns(rows: Sequence[Any], count: int) -> list[Sequence[Any]]:
    return list(zip(*rows, strict=True)) if rows else [()] * count


def _json(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"Expected a file at {path}, but there is none: correct the path.")
    return parsed_json(path)


def _of_study(path: Path) -> tuple[dict[str, list[str]], dict[str, NDArray[Any]]]:
    """Names of images and classes, and the columns, that the study wrote into the file."""
    from safetensors import safe_open

    try:
        with safe_open(path, "np") as file:
            described = file.metadata() or {}
            names = {k: list(map(str, json.loads(described[k]))) for k in ("images", "class_names")}
            return names, {key: file.get_tensor(key) for key in {*file.keys()} & {*_KINDS}}
    except Exception as error:  # a damaged file can make the reader raise anything
        raise ValueError(
            f"Expected detections with the names of their images and classes in {path}, but cannot "
            f"read them ({type(error).__name__}: {plain(str(error))}): pass the file that the study "
            "wrote."
        ) from error


def _read_safetensors(path: Path, truth: GroundTruth) -> Detections:
    header, columns = _of_study(path)
    missing = sorted({*Detections._fields} - {*columns})
    if missing:
        raise ValueError(
            f"Expected images, labels, scores and boxes in {path}, but {missing[0]} is missing: "
            "pass the file that the study wrote."
        )
    odd = [
        f"{key} {columns[key].dtype}"
        for key in _KINDS
        if columns[key].size and columns[key].dtype.kind not in _KINDS[key]
    ]
    if odd:
        raise ValueError(
            f"Expected whole numbers as images and labels in {path}, and real ones as scores and "
            f"boxes, but found {', '.join(odd)}: pass the file that the study wrote."
        )
    columns = {key: columns[key] for key in Detections._fields}
    check_columns(str(path), columns, len(header["class_names"]))
    numbers: dict[str, Ints] = {}
    for key, known in (("images", truth.images), ("class_names", truth.class_names)):
        named = header[key]
        column = columns["images" if key == "images" else "labels"].astype(np.int64)
        used = np.unique(column)
        unnamed = used[(used < 0) | (used >= len(named))]
        places = {name: place for place, name in enumerate(known)}
        unknown = [named[u] for u in used if 0 <= u < len(named) and named[u] not in places]
        if len(unnamed) or unknown:
            raise ValueError(
                f"Expected {key} of the ground truth in {path}, but found "
                f"{shown((unknown or unnamed.tolist())[0])}: pass the ground truth that it was made on."
            )
        numbers[key] = np.array([places.get(name, -1) for name in named], np.int64)[column]
    found = Detections(
        numbers["images"],
        numbers["class_names"],
        columns["scores"].astype(np.float64),
        voc_pixels(columns["boxes"]),
    )
    return checked(found, truth, lambda row: f"row {row} of {path}")


def _read_voc(folder: Path, truth: GroundTruth) -> Detections:
    """A class each file: of each detection image, score, x1, y1, x2, y2."""
    files: dict[str, Path] = {}
    for file in sorted(folder.glob("comp*_det_*_*.txt")):
        name = file.stem.split("_", 3)[3]
        if name in files or name not in truth.class_names:
            raise ValueError(
                f"Expected one comp4_det_test_CLASS.txt for each class of the ground truth "
                f"({', '.join(truth.class_names):.200}) in {folder}, but found {file.name}"
                f"{f' beside {files[name].name}' if name in files else ''}: take it away, or name "
                "your classes."
            )
        files[name] = file
    missing = [name for name in truth.class_names if name not in files]
    if missing:
        raise FileNotFoundError(
            f"Expected comp4_det_test_{missing[0]}.txt in {folder}, but there is none: add it, empty "
            "if nothing was found."
        )
    places = {name: place for place, name in enumerate(truth.images)}
    rows = [
        (*_parsed(line, places, f"line {number} of {files[name]}"), label, number)
        for label, name in enumerate(truth.class_names)
        for number, line in enumerate(lines(files[name]), 1)
        if line.strip()
    ]
    image, scores, boxes, labels, numbers = _columns(rows, 5)
    found = Detections(
        np.array(image, np.int64),
        np.array(labels, np.int64),
        np.array(scores, np.float64),
        np.array(boxes, np.float64).reshape(-1, 4),
    )
    return checked(
        found, truth, lambda row: f"line {numbers[row]} of {files[truth.class_names[labels[row]]]}"
    )


def _parsed(line: str, places: Mapping[str, int], where: str) -> tuple[int, float, list[float]]:
    image, *numbers = line.encode(errors="surrogateescape").decode(errors="replace").split()
    if image not in places:
        raise ValueError(
            f"Expected images of the ground truth, but {where} is of {shown(image)}: pass the split that "
            "was detected on."
        )
    try:
        score, x1, y1, x2, y2 = map(float, numbers)
    except ValueError:
        raise ValueError(
            f"Expected image, score, x1, y1, x2 and y2, but {where} is {shown(line.strip(), 100)}: "
            "correct it."
        ) from None
    return places[image], score, [x1, y1, x2, y2]
