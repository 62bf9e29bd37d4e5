"""What counts COCO's average precision: pycocotools, or faster-coco-eval, which does so in C++."""

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle

IoUType = Literal["bbox", "segm"]
Engine = Literal["auto", "pycocotools", "faster-coco-eval"]
Entry: TypeAlias = dict[str, Any]  # of a JSON file

# In the order of COCOeval.summarize:
# https://github.com/cocodataset/cocoapi/blob/8c9bcc3cf640524c4c20a9c40e89cb6a2f2fa0e9/PythonAPI/pycocotools/cocoeval.py#L460-L474
STATS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


class Evaluation(NamedTuple):
    """What COCOeval says, in percent; NaN where it says -1, as there is no such object to find.

    Attributes:
        stats: its twelve numbers.
        per_class: AP of each category, in the order of their ids (C,).
    """

    stats: dict[str, float]
    per_class: NDArray[np.float64]


def chosen(engine: Engine) -> Engine:
    """The engine by name; ``"auto"`` is faster-coco-eval where installed, else pycocotools.

    Raises:
        ModuleNotFoundError: for one that is not installed.
        ValueError: for one that is not known.
    """
    if engine not in get_args(Engine):
        raise ValueError(
            f"Expected argument `engine` to be one of {get_args(Engine)}, but got {engine!r}."
        )
    fast: Engine = "faster-coco-eval"
    there = find_spec("faster_coco_eval") is not None
    if engine == fast and not there:
        raise ModuleNotFoundError(f"Engine {fast!r} needs it: pip install 'goodtransfer[coco]'")
    if engine == "auto":
        return fast if there else "pycocotools"
    return engine


def count(
    images: Sequence[Entry],
    categories: Sequence[Entry],
    objects: Sequence[Entry],
    found: Sequence[Entry],
    iou_type: IoUType,
    engine: Engine,
) -> Evaluation:
    """Evaluate what was found; the entries are written into.

    Args:
        images: with ``id``.
        categories: with ``id``.
        objects: with ``image_id``, ``category_id``, ``area``, ``iscrowd``, and ``bbox`` or
            ``segmentation`` in compressed run lengths.
        found: with ``image_id``, ``category_id``, ``score``, and ``bbox`` or ``segmentation``.
        iou_type: of which of the two.
        engine: what counts.
    """
    run = _run(images, categories, objects, found, iou_type, engine)
    with redirect_stdout(io.StringIO()):
        for step in (run.evaluate, run.accumulate, run.summarize):
            step()
    precision = np.asarray(run.eval["precision"])[:, :, :, 0, -1]  # threshold, recall, category
    stats = dict(zip(STATS, _percent(run.stats).tolist(), strict=True))
    return Evaluation(stats, _percent(precision.mean((0, 1))))


def _run(
    images: Sequence[Entry],
    categories: Sequence[Entry],
    objects: Sequence[Entry],
    found: Sequence[Entry],
    iou_type: IoUType,
    engine: Engine,
) -> Any:
    """The program, with what it counts."""
    for entry in found:  # as COCO.loadRes does, which fails where nothing was found
        entry.update(area=_area(entry, iou_type), iscrowd=0)
    for entries in (objects, found):
        for number, entry in enumerate(entries, 1):  # by 0 both engines mean that nothing matches
            entry["id"] = number

    coco, evaluator = _programs(chosen(engine))
    sides = []
    with redirect_stdout(io.StringIO()):
        for entries in (objects, found):
            side = coco()
            side.dataset = {"images": images, "categories": categories, "annotations": entries}
            side.createIndex()
            sides.append(side)
        return evaluator(*sides, iou_type)


class Outcomes(NamedTuple):
    """What became of the n detections of one category at T thresholds of the IoU, best score first.

    Attributes:
        images: they are in (n,), as the images' ids.
        counts: 1 as true, -1 as false, 0 as nothing (T, n).
        objects: images of the objects to be found, one each.
    """

    images: NDArray[np.int64]
    counts: NDArray[np.int8]
    objects: NDArray[np.int64]


def outcomes(
    images: Sequence[Entry],
    categories: Sequence[Entry],
    objects: Sequence[Entry],
    found: Sequence[Entry],
    iou_type: IoUType,
) -> list[Outcomes]:
    """Of each category, by pycocotools, of all sizes and the best 100 detections of an image.

    The arguments are those of :func:`count`.
    """
    run = _run(images, categories, objects, found, iou_type, "pycocotools")
    run.params.areaRng, run.params.areaRngLbl = run.params.areaRng[:1], ["all"]
    run.params.maxDets = run.params.maxDets[-1:]
    with redirect_stdout(io.StringIO()):
        run.evaluate()
    every = np.array(run.evalImgs, dtype=object).reshape(len(categories), len(images))
    return [_joined([of for of in row if of is not None]) for row in every]


def _joined(images: Sequence[Entry]) -> Outcomes:
    """In the order of COCOeval.accumulate."""
    empty = np.zeros((10, 0))
    scores = np.concatenate([np.zeros(0), *(of["dtScores"] for of in images)])
    order = np.argsort(-scores, kind="mergesort")
    matched, ignored = (
        np.concatenate([empty, *(of[name] for of in images)], 1)[:, order]
        for name in ("dtMatches", "dtIgnore")
    )
    counts = np.where(ignored.astype(bool), 0, np.where(matched > 0, 1, -1))
    where = [np.full(len(of["dtScores"]), of["image_id"]) for of in images]
    there = [
        np.full(int((~np.asarray(of["gtIgnore"], bool)).sum()), of["image_id"]) for of in images
    ]
    none = np.zeros(0, np.int64)
    return Outcomes(
        np.concatenate([none, *where])[order].astype(np.int64),
        np.ascontiguousarray(counts, np.int8),  # safetensors keeps the bytes as they lie
        np.concatenate([none, *there]).astype(np.int64),
    )


def _area(entry: Entry, iou_type: IoUType) -> float:
    if iou_type == "segm":  # one by one: pycocotools 2.0.11 takes no more than 255 at once
        return float(rle.area(entry["segmentation"]))
    _, _, width, height = entry["bbox"]
    return float(width * height)


def _percent(fractions: Any) -> NDArray[np.float64]:
    return np.where(np.less(fractions, 0), np.nan, 100 * np.asarray(fractions, np.float64))


def _programs(engine: Engine) -> tuple[Any, Any]:
    """COCO and COCOeval."""
    if engine == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        return COCO, COCOeval
    import faster_coco_eval

    return faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster
