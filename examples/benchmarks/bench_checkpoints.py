"""What the queue adds to a checkpoint, whole and thinned, and what safety costs.

    python examples/benchmarks/bench_checkpoints.py FOLDER     # K = 2^20, ResNet-50

Each kind is saved and read in turn, several times, into FOLDER, which should be on the disk that is to be
used; the table has medians of wall seconds and megabytes. Lightning's own way of saving is the first row.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from lightning_fabric.plugins import TorchCheckpointIO

from goodtransfer import ExemplarMoCo
from goodtransfer.checkpoints import SafeCheckpointIO


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--queue-size", type=int, default=2**20)
    parser.add_argument("--encoder", default="resnet50")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    method = ExemplarMoCo(arguments.encoder, queue_size=arguments.queue_size)
    state = method.state_dict()
    # SGD's momentum, as a real checkpoint has it.
    momentum = [torch.zeros_like(p) for p in method.parameters() if p.requires_grad]
    whole = {"state_dict": state, "optimizer_states": momentum}
    bare = {n: v for n, v in state.items() if not n.startswith("queue.")}
    kinds = {
        "Lightning's own, whole": (TorchCheckpointIO(), whole),
        "safe, without any queue": (SafeCheckpointIO(), {**whole, "state_dict": bare}),
        "safe, whole": (SafeCheckpointIO(), whole),
        "safe, queue in bf16": (SafeCheckpointIO(queue="bf16"), whole),
        "safe, queue left out": (SafeCheckpointIO(queue="none"), whole),
    }
    saving, reading = ({name: [] for name in kinds} for _ in range(2))
    sizes = {}
    path = arguments.folder / "bench.ckpt"
    for _ in range(arguments.repeats):
        for name, (io, content) in kinds.items():
            io.save_checkpoint(content, path)  # so that there is one before, as in a run
            started = time.perf_counter()
            io.save_checkpoint(content, path)
            saved = time.perf_counter()
            io.load_checkpoint(path)
            reading[name].append(time.perf_counter() - saved)
            saving[name].append(saved - started)
            sizes[name] = path.stat().st_size / 1e6
            io.remove_checkpoint(path)
    base = statistics.median(saving["safe, without any queue"])
    print(f"{'':26}{'MB':>8}{'save, s':>9}{'read, s':>9}{'the queue adds, s':>19}")
    for name in kinds:
        save, read = (statistics.median(of[name]) for of in (saving, reading))
        print(f"{name:26}{sizes[name]:8.0f}{save:9.2f}{read:9.2f}{save - base:19.2f}")


if __name__ == "__main__":
    main()
