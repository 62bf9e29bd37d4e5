"""COCO's average precision of boxes and masks over the images of all ranks (protocol 3.5).

It is counted by pycocotools or, where that is installed, by faster-coco-eval, which counts the same
several times faster; from files it is :func:`goodtransfer.metrics.coco_files.coco_ap`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from pycocotools import mask as rle
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from goodtransfer.metrics.coco_engines import (
    Engine,
    Entry,
    Evaluation,
    IoUType,
    Outcomes,
    chosen,
    count,
    outcomes,
)
from goodtransfer.metrics.images import ImageMetric, check_columns, copies, pairs

_IMAGE, _DETECTION, _OBJECT, _CROWD = range(4)
_COLUMNS = {
    "boxes": torch.float64,
    "scores": torch.float64,
    "labels": torch.long,
    "crowd": torch.long,
    "area": torch.float64,
}
_NO_MASK = {"size": (0, 0), "counts": b""}
_STATES = {
    "rows": torch.zeros(0, 5, dtype=torch.float64),
    "tags": torch.zeros(0, 3, dtype=torch.long),
    "counts": torch.zeros(0, dtype=torch.uint8),
}


class _Seen(NamedTuple):
    """Images, numbered in the order of their ids, and what is in them."""

    ids: list[int]
    images: list[Entry]
    objects: list[Entry]
    found: list[Entry]


class COCODetectionAP(ImageMetric):
    """COCO's AP over the images of all ranks, in percent: ``APbox``, ``APbox50``, ``APbox75``.

    With masks also ``APseg``, ``APseg50``, ``APseg75``. An image counts once, however many ranks
    saw it (the first copy), and equal scores go in the order of image ids, whoever saw which image
    first. What was seen stays on the CPU, masks as run lengths.

    Args:
        num_classes: C.
        masks: score masks, too.
        engine: what counts; ``"auto"`` is faster-coco-eval where installed.

    Raises:
        ValueError: for another engine, or for updates that do not fit.
        ModuleNotFoundError: for an engine that is not installed, naming the extra.

    Two objects, and three detections of which the second is wrong. Up to half of the objects are found
    at a precision of 1, the rest at 2/3:

    >>> boxes = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60], [20, 20, 30, 30]])
    >>> labels = torch.zeros(3, dtype=torch.long)
    >>> found = {"boxes": boxes, "scores": torch.tensor([0.9, 0.8, 0.7]), "labels": labels}
    >>> there = {"boxes": boxes[[0, 2]], "labels": labels[:2], "image_id": 7}
    >>> ap = COCODetectionAP(num_classes=1)
    >>> ap.update([found], [there])
    >>> round(ap.compute()["APbox50"].item(), 2)  # at recalls of 0, 0.01, ...: (51 * 1 + 50 * 2/3) / 101
    83.5
    """

    rows: list[Tensor]  # (n, 5): box, and score or area; before those of an image, height and width
    tags: list[Tensor]  # (n, 3): label, kind, bytes of the mask; before those of an image, its id
    counts: list[Tensor]  # the bytes of all masks
    higher_is_better = True

    def __init__(self, num_classes: int, *, masks: bool = False, engine: Engine = "auto") -> None:
        super().__init__()
        self.num_classes, self.masks, self.engine = num_classes, masks, chosen(engine)
        for name, empty in _STATES.items():
            self.add_rows(name, empty)

    def update(
        self, predictions: Sequence[Mapping[str, Any]], targets: Sequence[Mapping[str, Any]]
    ) -> None:
        """Add images: one prediction and one target each.

        Boxes are (x1, y1, x2, y2) of the original image. Masks are bool (n, H, W), or a list of
        compressed run lengths as pycocotools has them, ``{"size": [H, W], "counts": ...}``.

        Args:
            predictions: ``boxes`` (n, 4), ``scores`` (n,), ``labels`` (n,) from 0, and ``masks``
                where they are scored.
            targets: ``boxes`` (m, 4), ``labels`` (m,), ``image_id``, an integer, ``masks`` where
                they are scored, ``crowd`` (m,) bool, unless none is, and ``area`` (m,), unless it
                is that of the masks or, without them, of the boxes.

        Raises:
            ValueError: for keys that are missing, columns that do not fit, or labels out of range.
        """
        for prediction, target in pairs(predictions, targets):
            found = self._columns("a prediction", prediction, "boxes", "scores", "labels")
            there = self._columns("a target", target, "boxes", "labels", "image_id")
            self._add(int(target["image_id"]), found, there)

    def _columns(self, what: str, given: Mapping[str, Any], *keys: str) -> Entry:
        keys = (*keys, "masks") if self.masks else keys
        if not set(keys) <= set(given):
            raise ValueError(f"Expected {what} to have {keys}, but got {tuple(given)}.")
        columns: Entry = {
            name: given[name].to("cpu", kind) for name, kind in _COLUMNS.items() if name in given
        }
        check_columns(what, columns, self.num_classes)
        odd = [name for name, column in columns.items() if not column.isfinite().all()]
        if odd:  # pycocotools matches a box of NaN with anything
            raise ValueError(
                f"Expected finite numbers in {what}, but its {' and '.join(odd)} have others: leave "
                "such rows out."
            )
        n = len(columns["labels"])
        masks = _packed(what, given["masks"], n) if self.masks else [_NO_MASK] * n
        return {**columns, "masks": masks}

    def _add(self, image: int, found: Entry, there: Entry) -> None:
        masks, labels, boxes = found["masks"] + there["masks"], there["labels"], there["boxes"]
        sizes = {mask["size"] for mask in masks} or {(0, 0)}
        if len(sizes) > 1:
            raise ValueError(
                f"Expected the masks of image {image} to have its size, but got {sorted(sizes)}: "
                "bring those of the prediction to the size of the image."
            )
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        if self.masks:
            areas = boxes.new_tensor([float(rle.area(mask)) for mask in there["masks"]])
        start = boxes.new_tensor([[*sizes.pop(), 0, 0, 0]])
        detections = torch.column_stack([found["boxes"], found["scores"]])
        objects = torch.column_stack([boxes, there.get("area", areas)])
        self.rows.append(torch.cat([start, detections, objects]))

        numbers = [labels.new_tensor([image]), found["labels"], labels]
        kinds = [
            labels.new_tensor([_IMAGE]),
            torch.full_like(found["labels"], _DETECTION),
            _OBJECT + there.get("crowd", torch.zeros_like(labels)),
        ]
        lengths = labels.new_tensor([0, *(len(mask["counts"]) for mask in masks)])
        self.tags.append(torch.stack([torch.cat(numbers), torch.cat(kinds), lengths], 1))
        counts = b"".join(mask["counts"] for mask in masks)
        self.counts.append(torch.from_numpy(np.frombuffer(counts, np.uint8).copy()))

    def joined(self, name: str) -> Tensor:
        return super().joined(name).cpu()

    def sync(
        self, dist_sync_fn: Callable[..., Any] | None = None, *args: Any, **kwargs: Any
    ) -> None:
        """As the other metrics', by way of the device, where alone NCCL gathers."""

        def gather(state: Tensor, group: Any) -> Any:
            return (dist_sync_fn or gather_all_tensors)(state.to(self.device), group=group)

        super().sync(gather, *args, **kwargs)

    def compute(self) -> dict[str, Tensor]:
        """``APbox`` and so on, in percent: 0-d, float64, on the CPU; NaN without any object.

        Raises:
            RuntimeError: when no rank has seen an image.
        """
        evaluations = zip(("box", "seg"), self._evaluate().values(), strict=False)
        return {
            f"AP{name}{at}": torch.tensor(evaluation.stats[f"AP{at}"], dtype=torch.float64)
            for name, evaluation in evaluations
            for at in ("", "50", "75")
        }

    def evaluation(self) -> dict[IoUType, Evaluation]:
        """What stands behind :meth:`compute`: all twelve numbers, and AP per class, over all ranks.

        By ``"bbox"`` and, with masks, ``"segm"``. All ranks must ask for it.
        """
        with self.sync_context(dist_sync_fn=self.dist_sync_fn):
            return self._evaluate()

    def outcomes(self) -> dict[IoUType, list[Outcomes]]:
        """What became of every detection, by label, to be counted anew over other images.

        By ``"bbox"`` and, with masks, ``"segm"``; images are numbered in the order of their ids. All
        ranks must ask for it.
        """
        with self.sync_context(dist_sync_fn=self.dist_sync_fn):
            seen = self._seen()
        categories = [{"id": label} for label in range(self.num_classes)]
        return {
            kind: outcomes(seen.images, categories, seen.objects, seen.found, kind)
            for kind in self._kinds()
        }

    def results(
        self, image_ids: Sequence[int] | None = None, category_ids: Sequence[int] | None = None
    ) -> list[Entry]:
        """What was found on all ranks, as COCO's results files have it; all ranks must ask for it.

        Args:
            image_ids: COCO's number by ``image_id``, where that is another.
            category_ids: COCO's number of each label; without them a label is one.
        """
        with self.sync_context(dist_sync_fn=self.dist_sync_fn):
            seen = self._seen()
        for entry in seen.found:
            image, label = seen.ids[entry["image_id"]], entry["category_id"]
            entry["image_id"] = image if image_ids is None else image_ids[image]
            entry["category_id"] = label if category_ids is None else category_ids[label]
            if self.masks:
                entry["segmentation"]["counts"] = entry["segmentation"]["counts"].decode()
        return seen.found

    def _evaluate(self) -> dict[IoUType, Evaluation]:
        seen, categories = self._seen(), [{"id": label} for label in range(self.num_classes)]
        return {
            kind: count(seen.images, categories, seen.objects, seen.found, kind, self.engine)
            for kind in self._kinds()
        }

    def _kinds(self) -> tuple[IoUType, ...]:
        return ("bbox", "segm") if self.masks else ("bbox",)

    def _seen(self) -> _Seen:
        rows, tags, counts = (self.joined(name).numpy() for name in _STATES)
        self.seen("rows")
        numbers, kinds, lengths = tags.T
        starts = kinds == _IMAGE
        ids, first, images, kept = copies(numbers, starts)

        rows[:, 2:4] -= rows[:, :2]
        sizes = rows[starts][first, :2].astype(int).tolist()
        ends = np.cumsum(lengths)

        def entries(at: Any, name: str) -> list[Entry]:
            """Of those rows, their last number under that name."""
            columns = (images, numbers, rows[:, :4], rows[:, 4], ends - lengths, ends)
            made = []
            for image, label, box, number, a, b in zip(
                *(column[at].tolist() for column in columns), strict=True
            ):
                entry = {"image_id": image, "category_id": label, "bbox": box, name: number}
                if self.masks:
                    entry["segmentation"] = {"size": sizes[image], "counts": bytes(counts[a:b])}
                made.append(entry)
            return made

        objects = kept[kinds[kept] >= _OBJECT]
        there = entries(objects, "area")
        for entry, kind in zip(there, kinds[objects].tolist(), strict=True):
            entry["iscrowd"] = int(kind == _CROWD)
        return _Seen(
            ids.tolist(),
            [{"id": n, "height": h, "width": w} for n, (h, w) in enumerate(sizes)],
            there,
            entries(kept[kinds[kept] == _DETECTION], "score"),
        )


def _packed(what: str, masks: Tensor | Sequence[Entry], n: int) -> list[Entry]:
    """Masks as compressed run lengths, with size and counts of one type each."""
    shape = tuple(masks.shape) if isinstance(masks, Tensor) else (len(masks), "H", "W")
    if len(shape) != 3 or shape[0] != n:
        raise ValueError(
            f"Expected masks ({n}, H, W) or {n} run lengths in {what}, but got {shape}: give every "
            "box a mask of the size of the image."
        )
    if isinstance(masks, Tensor):
        columns = masks.bool().transpose(1, 2).contiguous()  # run lengths go down the columns
        masks = rle.encode(columns.cpu().numpy().view(np.uint8).transpose(2, 1, 0))
    packed = []
    for mask in masks:
        counts, (height, width) = mask["counts"], mask["size"]
        counts = counts.encode() if isinstance(counts, str) else counts
        packed.append({"size": (int(height), int(width)), "counts": counts})
    return packed
