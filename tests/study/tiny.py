"""A scale of seconds for the study's tests; run as a script, it makes a study to be killed."""

import sys
from pathlib import Path

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
    from goodtransfer.study.plan import Study
    from goodtransfer.study.run import run_study

    run_study(Study.open(Path(sys.argv[1]), scale="tiny", tables=["3"]))
