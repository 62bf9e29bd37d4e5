"""A scale of seconds for the study's tests; run as a script, it makes a study to be killed."""

import sys

from goodtransfer.study.protocol import K1M, K64, SCALES, Linear, Scale

TINY = Scale(
    "tiny",
    every={"encoder": "resnet10w8", "size": 16, "batch_size": 10, "epochs": 3, "crop": 0.5},
    queue_sizes={K64: 16, K1M: 24},
    linear=Linear(epochs=2, batch_size=10, size=16),
    toy={"train": 40, "val": 20, "size": 24, "seed": 0},
)
SCALES["tiny"] = TINY

if __name__ == "__main__":
    from goodtransfer.cli import main

    raise SystemExit(
        main(["study", "run", "--scale", "tiny", "--table", "3", "--out", sys.argv[1]])
    )
