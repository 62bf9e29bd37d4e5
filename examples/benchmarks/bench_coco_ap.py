"""COCO's AP from files and by the metric, against pycocotools alone: time, and equal numbers.

    OMP_NUM_THREADS=1 python examples/benchmarks/bench_coco_ap.py --threads 1

The size of COCO val2017: 5,000 images, 36,781 objects of which 1 % are crowds, 100 detections an
image (a third of them near an object), 80 classes, boxes. Both engines take the same files in one
run. pycocotools alone is its own four lines: COCO, loadRes, COCOeval, and evaluate, accumulate and
summarize. Ours are `coco_ap` from the same files, and `COCODetectionAP.evaluation`, which is all that
its `compute` does, after its updates. Times are of the CPU, all threads together.
"""

import argparse
import contextlib
import io
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from goodtransfer.metrics.coco import COCODetectionAP
from goodtransfer.metrics.coco_engines import Engine
from goodtransfer.metrics.coco_files import coco_ap

CLASSES = 80
ALONE = "pycocotools alone"
ENGINES: tuple[Engine, ...] = ("pycocotools", "faster-coco-eval")


def problem(images: int, objects: int, per_image: int) -> tuple[dict[str, Any], list[Any]]:
    """Random objects, a third of them of one class as COCO's persons, and what a detector finds."""
    rng = np.random.default_rng(0)

    def boxes(n: int) -> np.ndarray:
        return np.concatenate([rng.integers(0, 400, (n, 2)), rng.integers(10, 200, (n, 2))], 1)

    def labels(n: int) -> np.ndarray:
        return np.where(rng.random(n) < 0.3, 0, rng.integers(0, CLASSES, n))

    where, label, box = np.sort(rng.integers(0, images, objects)), labels(objects), boxes(objects)
    things = [
        {
            "image_id": i,
            "category_id": c,
            "bbox": b,
            "area": b[2] * b[3] * 0.6,
            "iscrowd": int(crowd),
        }
        for i, c, b, crowd in zip(
            where.tolist(), label.tolist(), box.tolist(), rng.random(objects) < 0.01, strict=True
        )
    ]
    n = images * per_image
    image = np.repeat(np.arange(images), per_image)
    ends = np.searchsorted(where, np.arange(images + 1))
    count = np.diff(ends)[image]
    near = (rng.random(n) < 1 / 3) & (count > 0)
    target = (ends[image] + (rng.random(n) * count).astype(int))[near]
    found_label, found_box = labels(n), boxes(n).astype(float)
    found_label[near] = label[target]
    found_box[near] = box[target] + rng.normal(0, 8, (near.sum(), 4))
    found_box[:, 2:] = np.maximum(found_box[:, 2:], 1)
    score = np.where(near, rng.beta(4, 2, n), rng.beta(1, 8, n))
    columns = (image, found_label, found_box.round(2), score.round(3))
    found = [
        {"image_id": i, "category_id": c, "bbox": b, "score": s}
        for i, c, b, s in zip(*(column.tolist() for column in columns), strict=True)
    ]
    world = {
        "images": [{"id": i} for i in range(images)],
        "categories": [{"id": c} for c in range(CLASSES)],
        "annotations": [{**thing, "id": n} for n, thing in enumerate(things, 1)],
    }
    return world, found


def pycocotools_alone(world: Path, found: Path) -> list[float]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        there = COCO(str(world))
        run = COCOeval(there, there.loadRes(str(found)), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return [100 * float(stat) for stat in run.stats]


def filled_metric(world: dict[str, Any], found: list[Any], engine: Engine) -> COCODetectionAP:
    """The metric after all its updates, an image each."""
    metric = COCODetectionAP(CLASSES, engine=engine)
    images = len(world["images"])
    lists: list[list[Any]] = [[] for _ in range(2 * images)]
    for entry in found:
        lists[entry["image_id"]].append(entry)
    for entry in world["annotations"]:
        lists[images + entry["image_id"]].append(entry)

    def columns(entries: list[Any]) -> dict[str, Any]:
        boxes = torch.tensor([e["bbox"] for e in entries], dtype=torch.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = torch.tensor([e["category_id"] for e in entries], dtype=torch.long)
        return {"boxes": boxes, "labels": labels}

    for i in range(images):
        detected, there = lists[i], lists[images + i]
        scores = torch.tensor([e["score"] for e in detected], dtype=torch.float64)
        area = torch.tensor([e["area"] for e in there], dtype=torch.float64)
        crowd = torch.tensor([e["iscrowd"] for e in there], dtype=torch.bool)
        target = {**columns(there), "area": area, "crowd": crowd, "image_id": i}
        metric.update([{**columns(detected), "scores": scores}], [target])
    return metric


def by_files(world: Path, found: Path, engine: Engine) -> list[float]:
    return list(coco_ap(world, found, engine=engine).values())


def by_metric(metric: COCODetectionAP) -> list[float]:
    return list(metric.evaluation()["bbox"].stats.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--objects", type=int, default=36_781)
    parser.add_argument("--per-image", type=int, default=100)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    world, found = problem(args.images, args.objects, args.per_image)
    print(
        f"{args.images} images, {len(found)} detections, {args.objects} objects, {CLASSES} classes, "
        f"{args.threads} threads, best of {args.runs}"
    )
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder, "instances.json"), Path(folder, "results.json")
        for file, content in zip(files, (world, found), strict=True):
            file.write_text(json.dumps(content))
        works: dict[str, Callable[[], list[float]]] = {ALONE: partial(pycocotools_alone, *files)}
        for engine in ENGINES:
            works[f"coco_ap, {engine}"] = partial(by_files, *files, engine)
            works[f"the metric, {engine}"] = partial(by_metric, filled_metric(world, found, engine))
        del world, found
        seconds: dict[str, list[float]] = {name: [] for name in works}
        stats = {}
        for _ in range(args.runs):
            for name, work in works.items():
                started = time.process_time()
                stats[name] = work()
                seconds[name].append(time.process_time() - started)
    for name, times in seconds.items():
        apart = np.abs(np.subtract(stats[name], stats[ALONE])).max()
        print(
            f"{name + ':':<32}{min(times):8.2f} s, ratio {min(seconds[ALONE]) / min(times):5.2f}; "
            f"AP {stats[name][0]:.4f}, largest difference of {len(stats[name])} numbers {apart:.1e}"
        )


if __name__ == "__main__":
    main()
