"""A scale of seconds for the study's tests; run as a script, it makes a study to be killed."""

import sys

from goodtransfer.study.protocol import K1M, K64, SCALES, VOC07, Linear, Scale

TINY = Scale(
    "tiny",
    every={"encoder": "resnet10w8", "size": 16, "batch_size": 10, "epochs": 3, "crop": 0.5},
    queue_sizes={K64: 16, K1M: 24},
    linear=Linear(epochs=2, batch_size=10, size=16),
    voc07=VOC07(
        batch=8,
        accumulate=2,
        iterations=2,
        milestones=(1,),
        warmup=1,
        short_sides=(64,),
        test_side=64,
        precise_bn=2,
        anchor_sizes=(16, 32),
        rpn_batch=32,
        proposals_train=(200, 50),
        proposals_test=(100, 20),
        rois=16,
        roi_size=4,
    ),
    toy={"train": 40, "val": 20, "size": 24, "seed": 0},
    toy_voc={"train": 12, "test": 8, "size": 64, "seed": 0},
)
SCALES["tiny"] = TINY

if __name__ == "__main__":
    from goodtransfer.cli import main

    raise SystemExit(
        main(["study", "run", "--scale", "tiny", "--table", "3", "--out", sys.argv[1]])
    )
