"""Loading a ResNet-50 of every dialect, beside merely reading its file: what telling and matching cost.

    OMP_NUM_THREADS=1 python examples/benchmarks/bench_weights.py

For each dialect a checkpoint is written (official MoCo's with two encoders, queue and optimizer, as its
authors save it) and loaded five times. Reading is what the library at hand does alone: torch.load,
safetensors' load_file, pickle.load. "Beyond reading" is the median of load_encoder less that of
reading, and has to stay below one second; building the network is within it. Times are of the CPU, so
that neighbours on the machine do not count.
"""

import pickle
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from goodtransfer import load_encoder, save_encoder
from goodtransfer.encoders import build

LIMIT, REPEATS = 1.0, 5


def below(prefix: str, weights: dict[str, Any]) -> dict[str, Any]:
    return {prefix + name: value for name, value in weights.items()}


def checkpoints(folder: Path) -> dict[str, Path]:
    """A file of each dialect."""
    encoder = build("resnet50")
    weights = encoder.state_dict()
    momenta = {n: {"momentum_buffer": torch.zeros_like(v)} for n, v in enumerate(weights.values())}
    moco = below("module.encoder_q.", weights) | below("module.encoder_k.", weights)
    children = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    written = {
        "official MoCo": {
            "state_dict": moco | {"module.queue": torch.rand(128, 65536)},
            "optimizer": {"state": momenta},
            "arch": "resnet50",
        },
        "solo-learn": {
            "state_dict": below("backbone.", weights) | {"projector.0.weight": torch.rand(9, 9)}
        },
        "lightly": {
            "state_dict": {
                f"backbone.{children[name.split('.')[0]]}.{name.partition('.')[2]}": value
                for name, value in weights.items()
            }
        },
        "VISSL": {
            "classy_state_dict": {
                "base_model": {"model": {"trunk": below("_feature_blocks.", weights)}}
            }
        },
        "half precision": {
            name: value.half() if value.ndim else value for name, value in weights.items()
        },
    }
    files = {}
    for name, content in written.items():
        files[name] = folder / f"{name.replace(' ', '_')}.pth"
        torch.save(content, files[name])
    for form, suffix in (
        ("safetensors", ".safetensors"),
        ("torchvision", ".pth"),
        ("timm", ".safetensors"),
        ("detectron2", ".pkl"),
    ):
        files[form] = save_encoder(folder / f"{form}{suffix}", encoder, to=form)  # type: ignore
    return files


def alone(path: Path) -> Any:
    """Reading by the file's own library."""
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".pkl":
        return pickle.loads(path.read_bytes())  # written above
    return torch.load(path, weights_only=True)


def median(job: Callable[[], Any]) -> float:
    seconds = []
    for _ in range(REPEATS):
        start = time.process_time()
        job()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds)


def main() -> None:
    warnings.simplefilter("ignore")  # half precision is said
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        print(f"{'dialect':<16}{'MB':>8}{'reading s':>12}{'loading s':>12}{'beyond s':>12}")
        for name, path in checkpoints(Path(folder)).items():
            reading = median(lambda path=path: alone(path))  # type: ignore[misc]
            loading = median(lambda path=path: load_encoder(path))  # type: ignore[misc]
            worst = max(worst, loading - reading)
            size = path.stat().st_size / 1e6
            print(
                f"{name:<16}{size:>8.0f}{reading:>12.3f}{loading:>12.3f}{loading - reading:>12.3f}"
            )
    print(f"worst {worst:.3f} s beyond reading, limit {LIMIT} s")
    if worst > LIMIT:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
