"""Does the smoke study mean something? The order of its linear probes, over seeds.

    python examples/smoke_order.py OUT [--seeds 3]

Expected, each step by more than three standard errors on the test images:
pixels < untrained encoder < every method, and cross-entropy highest. Makes what is not done in OUT.
"""

import argparse
import math
from pathlib import Path

from goodtransfer.study import Study
from goodtransfer.study.report import summary
from goodtransfer.study.run import run_study


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    study = Study.open(args.out, scale="smoke", seeds=args.seeds)
    run_study(study)

    images = study.scale.toy["val"]
    accuracy = {label: measured["acc"] for label, measured in summary(study)}
    methods = [label for label in accuracy if label not in ("Pixels", "Untrained", "Supervised")]
    steps = [("Pixels", "Untrained")]
    steps += [("Untrained", method) for method in methods]
    steps += [(method, "Supervised") for method in methods]

    print(f"\nlinear probe, top-1 % on {images:,} test images")
    for label, values in accuracy.items():
        print(f"{label:>12}: " + "  ".join(f"{value:5.1f}" for value in values))
    print("\ndifference in standard errors, by seed")
    failed = 0
    for lower, higher in steps:
        errors = [gap(a, b, images) for a, b in zip(accuracy[lower], accuracy[higher], strict=True)]
        failed += sum(e <= 3 for e in errors)
        print(f"{lower:>12} < {higher:<12} " + "  ".join(f"{e:5.1f}" for e in errors))
    print("\nall steps exceed three standard errors" if not failed else f"\n{failed} steps do not")
    return int(failed > 0)


def gap(lower: float, higher: float, images: int) -> float:
    """(higher - lower) / standard error of the difference of two proportions, in percent.

    The errors of one image under two encoders correlate positively, so the true standard error is
    smaller and this count is on the safe side.
    """
    a, b = lower / 100, higher / 100
    return (b - a) / math.sqrt((a * (1 - a) + b * (1 - b)) / images)


if __name__ == "__main__":
    raise SystemExit(main())
