"""Diagnosis of detection errors at the size of VOC07 test, and its bootstrap: CPU seconds, memory.

    OMP_NUM_THREADS=1 python examples/benchmarks/bench_errors.py

4,952 images, 12,032 objects of 20 classes and 2,944 difficult ones, 100 detections an image: a third
near an object, some of them of a wrong class. ``--models 2`` compares two of them, which takes twice
the bootstrap's time.
"""

import argparse
import resource
import time

import numpy as np

from goodtransfer.analysis.detections import GroundTruth
from goodtransfer.analysis.error_bootstrap import bootstrap, estimate
from goodtransfer.analysis.error_measures import flat, measure
from goodtransfer.analysis.errors import VOC_SIMILAR, diagnose
from goodtransfer.metrics.voc import Detections, Objects

CLASSES = sorted({"bottle", "pottedplant", "tvmonitor"}.union(*VOC_SIMILAR))
PERSON = CLASSES.index("person")


def labels(rng: np.random.Generator, n: int) -> np.ndarray:
    """A third of them persons."""
    return np.where(rng.random(n) < 0.3, PERSON, rng.integers(0, len(CLASSES), n))


def boxes(rng: np.random.Generator, n: int) -> np.ndarray:
    """Of 20 to 200 pixels in images of 500 x 500."""
    corner = rng.integers(1, 300, (n, 2))
    return np.concatenate([corner, corner + rng.integers(20, 200, (n, 2))], 1).astype(float)


def ground_truth(images: int, objects: int, difficult: int) -> GroundTruth:
    """Objects at random."""
    rng = np.random.default_rng(0)
    total = objects + difficult
    where = np.sort(rng.integers(0, images, total))
    flags = rng.permutation(np.arange(total) >= objects)
    there = Objects(where, labels(rng, total), boxes(rng, total), flags)
    return GroundTruth(CLASSES, [str(i) for i in range(images)], there, np.full((images, 2), 500))


def detected(truth: GroundTruth, per_image: int, seed: int) -> Detections:
    """What a detector finds."""
    rng, objects = np.random.default_rng(seed), truth.objects
    n = len(truth.images) * per_image
    image = np.repeat(np.arange(len(truth.images)), per_image)
    ends = np.searchsorted(objects.images, np.arange(len(truth.images) + 1))
    count = np.diff(ends)[image]
    near = (rng.random(n) < 1 / 3) & (count > 0)
    target = (ends[image] + (rng.random(n) * count).astype(int))[near]
    label, box = labels(rng, n), boxes(rng, n)
    label[near] = np.where(rng.random(near.sum()) < 0.9, objects.labels[target], label[near])
    box[near] = objects.boxes[target] + rng.normal(0, 8, (near.sum(), 4))
    box[:, 2:] = np.maximum(box[:, 2:], box[:, :2])
    score = np.where(near, rng.beta(4, 2, n), rng.beta(1, 8, n))
    return Detections(image, label, np.round(score, 3), np.round(box, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=4952)
    parser.add_argument("--objects", type=int, default=12_032)
    parser.add_argument("--difficult", type=int, default=2_944)
    parser.add_argument("--per-image", type=int, default=100)
    parser.add_argument("--models", type=int, default=1)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    truth = ground_truth(args.images, args.objects, args.difficult)
    found = [detected(truth, args.per_image, seed) for seed in range(args.models)]
    print(
        f"{args.images} images, {args.objects} objects of {len(CLASSES)} classes and "
        f"{args.difficult} difficult ones, {args.images * args.per_image} detections"
    )

    seconds = []
    for _ in range(args.runs):
        started = time.process_time()
        flat(measure(diagnose(found[0], truth)))
        seconds.append(time.process_time() - started)
    print(f"diagnosis, worst of {args.runs}: {max(seconds):.2f} CPU s; {memory()}")

    diagnoses = [diagnose(each, truth) for each in found]
    started = time.process_time()
    samples = bootstrap(diagnoses, args.resamples, progress=True)
    estimates = [
        estimate(flat(measure(diagnosis)), of)
        for diagnosis, of in zip(diagnoses, samples, strict=True)
    ]
    print(
        f"bootstrap, {args.resamples} resamples, {args.models} models: "
        f"{time.process_time() - started:.1f} CPU s; {memory()}; AP50 "
        + ", ".join(
            f"{e.value[-1, 25]:.2f} [{e.low[-1, 25]:.2f}, {e.high[-1, 25]:.2f}]" for e in estimates
        )
    )


def memory() -> str:
    """The most that this process has held so far."""
    return f"at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB"


if __name__ == "__main__":
    main()
