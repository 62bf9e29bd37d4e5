"""Does the smoke study mean something? The order of its linear probes, and of its detectors.

    python examples/smoke_order.py OUT [--seeds 3]

Expected of the probes, each step by more than three standard errors on the test images: pixels <
untrained encoder < every method, and cross-entropy highest. Of the detectors: every one far above
the same network before its fine-tuning. Makes what is not done in OUT.
"""

import argparse
import math
from pathlib import Path

import pytorch_lightning as pl

from goodtransfer import Detection, VOCDetectionDataModule
from goodtransfer.data import toy
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

    images = study.scale.toy["imagenet"]["val"]
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

    before = before_fine_tuning(study)
    print(f"\nVOC07 AP50 in %; before fine-tuning {before:.1f}")
    for label, measured in summary(study):
        values = measured.get("voc07_AP50", [])
        failed += sum(value < before + 5 for value in values)
        if values:
            print(f"{label:>12}: " + "  ".join(f"{value:5.1f}" for value in values))
    return int(failed > 0)


def before_fine_tuning(study: Study) -> float:
    """AP50 of the detector that every row's fine-tuning starts from, on an untrained encoder."""
    data = VOCDetectionDataModule(study.root("voc"), class_names=toy.CLASSES, batch_size=8)
    task = Detection(study.scale.every["encoder"], **study.scale.protocol("voc07").arguments())
    trainer = pl.Trainer(
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        default_root_dir=study.out / "before",
    )
    return float(trainer.test(task, data, verbose=False)[0]["voc07_AP50"])


def gap(lower: float, higher: float, images: int) -> float:
    """(higher - lower) / standard error of the difference of two proportions, in percent.

    The errors of one image under two encoders correlate positively, so the true standard error is
    smaller and this count is on the safe side.
    """
    a, b = lower / 100, higher / 100
    return (b - a) / math.sqrt((a * (1 - a) + b * (1 - b)) / images)


if __name__ == "__main__":
    raise SystemExit(main())
