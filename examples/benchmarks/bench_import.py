"""What importing goodtransfer costs, in fresh processes.

    python examples/benchmarks/bench_import.py

`import goodtransfer` must not load torch; the methods are timed against the libraries they need.
"""

import statistics
import subprocess
import sys

CASES = {
    "import goodtransfer": "import goodtransfer",
    "torch, torchvision, pytorch_lightning": "import torch, torchvision, pytorch_lightning",
    "... and the methods": (
        "import torch, torchvision, pytorch_lightning; s = clock(); import goodtransfer.methods"
    ),
}
TEMPLATE = """
import sys, time
clock = time.perf_counter
s = clock()
{code}
print(clock() - s)
"""


def seconds(code: str) -> float:
    call = [sys.executable, "-c", TEMPLATE.format(code=code)]
    return float(subprocess.run(call, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    for name, code in CASES.items():
        seconds(code)  # fill the file cache
        values = [seconds(code) for _ in range(5)]
        print(f"{name:>40}: median {statistics.median(values):.3f} s, min {min(values):.3f} s")


if __name__ == "__main__":
    main()
