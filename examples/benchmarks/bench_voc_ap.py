"""VOC detection AP matched at once, against detectron2's loop: time, and equal numbers.

    python examples/benchmarks/bench_voc_ap.py --threads 1

The size of VOC07 test: 4,952 images, 12,032 objects, 100 detections an image (a third of them near
an object), 20 classes, 10 thresholds. The loop is `tests/metrics/literal_voc.py`: one pass over the
detections per class and threshold, as detectron2 makes it, without its reading and writing of text.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

from goodtransfer.metrics.voc import IOU_THRESHOLDS, Detections, Objects, VOCDetectionAP, evaluate

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests/metrics"))
from literal_voc import by_image, voc_eval

CLASSES = 20


def problem(images: int, objects: int, per_image: int) -> tuple[Detections, Objects]:
    """Random objects, a third of them of one class as VOC's persons, and what a detector finds."""
    rng = np.random.default_rng(0)

    def boxes(n: int) -> np.ndarray:
        corner = rng.integers(1, 300, (n, 2))
        return np.concatenate([corner, corner + rng.integers(20, 200, (n, 2))], 1).astype(float)

    def labels(n: int) -> np.ndarray:
        return np.where(rng.random(n) < 0.3, 14, rng.integers(0, CLASSES, n))

    where = np.sort(rng.integers(0, images, objects))
    there = Objects(where, labels(objects), boxes(objects), rng.random(objects) < 0.2)

    n = images * per_image
    image = np.repeat(np.arange(images), per_image)
    ends = np.searchsorted(where, np.arange(images + 1))
    count = np.diff(ends)[image]
    near = (rng.random(n) < 1 / 3) & (count > 0)
    target = (ends[image] + (rng.random(n) * count).astype(int))[near]
    label, box = labels(n), boxes(n)
    label[near] = there.labels[target]
    box[near] = there.boxes[target] + rng.normal(0, 8, (near.sum(), 4))
    score = np.where(near, rng.beta(4, 2, n), rng.beta(1, 8, n))
    return Detections(image, label, np.round(score, 3), np.round(box, 1)), there


def filled_metric(detections: Detections, objects: Objects, images: int) -> VOCDetectionAP:
    """The metric after all its updates, an image each."""
    metric = VOCDetectionAP(CLASSES)
    shift = np.array([1, 1, 0, 0])
    ends, stops = (
        np.searchsorted(rows.images, np.arange(images + 1)) for rows in (detections, objects)
    )
    for i in range(images):
        found, there = slice(*ends[i : i + 2]), slice(*stops[i : i + 2])
        prediction = {
            "boxes": torch.tensor(detections.boxes[found] - shift, dtype=torch.float32),
            "scores": torch.tensor(detections.scores[found], dtype=torch.float32),
            "labels": torch.tensor(detections.labels[found]),
        }
        target = {
            "boxes": torch.tensor(objects.boxes[there] - shift, dtype=torch.float32),
            "labels": torch.tensor(objects.labels[there]),
            "difficult": torch.tensor(objects.difficult[there]),
            "image_id": i,
        }
        metric.update([prediction], [target])
    return metric


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=4952)
    parser.add_argument("--objects", type=int, default=12_032)
    parser.add_argument("--per-image", type=int, default=100)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    detections, objects = problem(args.images, args.objects, args.per_image)

    ours = []
    for _ in range(args.runs):
        started = time.perf_counter()
        evaluation = evaluate(detections, objects, CLASSES)
        ours.append(time.perf_counter() - started)

    files = by_image(range(args.images), detections, objects)  # not timed: it stands for the files
    started = time.perf_counter()
    literal = np.array([
        [voc_eval(*files, c, threshold, "11-point")[2] for c in range(CLASSES)]
        for threshold in IOU_THRESHOLDS
    ])  # fmt: skip
    theirs = time.perf_counter() - started

    metric = filled_metric(detections, objects, args.images)
    started = time.perf_counter()
    computed = metric.compute()
    whole = time.perf_counter() - started

    print(
        f"{args.images} images, {len(detections.images)} detections, {len(objects.images)} objects, "
        f"{CLASSES} classes, {len(IOU_THRESHOLDS)} thresholds, {args.threads} threads"
    )
    print(f"the loop, all {literal.size} cells, once: {theirs:8.2f} s")
    print(f"evaluate, best of {args.runs}:            {min(ours):8.3f} s")
    print(f"ratio: {theirs / min(ours):.0f}")
    print(f"largest difference of {literal.size} APs: {np.abs(literal - evaluation.ap).max():.1e}")
    print(
        f"VOCDetectionAP.compute (gathering, rounding, evaluate): {whole:.3f} s; AP "
        f"{float(computed['AP']):.4f}, the loop's {100 * literal.mean():.4f}"
    )


if __name__ == "__main__":
    main()
