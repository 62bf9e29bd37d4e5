"""Streamed `info_nce` against the dense formula: time, extra memory and gradient error.

    python examples/benchmarks/bench_info_nce.py            # N=256, C=128, K=2^20, fp32

Both sides run in this process, in turn; the ratio is of the fastest run of each (wall) and of their
CPU seconds. Extra memory is the peak over the resident size just before, each in a fresh process.
"""

import argparse
import subprocess
import sys
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from goodtransfer.losses import info_nce


def dense(q: Tensor, p: Tensor, keys: Tensor, t: float, ql: Tensor, kl: Tensor) -> Tensor:
    """The formula as every port writes it: matmul, masked_fill, cross_entropy."""
    negatives = (q @ keys.T).masked_fill(ql.unsqueeze(1) == kl, -torch.inf)
    logits = torch.cat([(q * p).sum(1, keepdim=True), negatives], dim=1) / t
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long))


def streamed(q: Tensor, p: Tensor, keys: Tensor, t: float, ql: Tensor, kl: Tensor) -> Tensor:
    """Ours."""
    return info_nce(q, p, keys, temperature=t, query_labels=ql, key_labels=kl)


def unit(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Seeded unit vectors."""
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=dtype), dim=1)


def problem(n: int, c: int, k: int) -> tuple[Tensor, Tensor, Tensor, float, Tensor, Tensor]:
    """Queries, positives, keys, temperature and labels of 1,000 classes, as on ImageNet."""
    labels = torch.Generator().manual_seed(3)
    return (
        unit(n, c, seed=0).requires_grad_(),
        unit(n, c, seed=1),
        unit(k, c, seed=2),
        0.1,
        torch.randint(1000, (n,), generator=labels),
        torch.randint(1000, (k,), generator=labels),
    )


def gradient(side, arguments) -> Tensor:
    """Gradient of the loss with respect to the queries."""
    (grad,) = torch.autograd.grad(side(*arguments), arguments[0])
    return grad


def memory_mib(field: str) -> float:
    """`VmRSS` (now) or `VmHWM` (peak) of this process, from Linux' /proc."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field)) / 1024


def extra_memory(side, arguments) -> float:
    """Peak memory of one forward and backward over what was resident before it."""
    few = (*arguments[:2], arguments[2][:64], arguments[3], arguments[4], arguments[5][:64])
    gradient(side, few)  # threads and library workspaces exist from here on
    with open("/proc/self/clear_refs", "w") as refs:
        refs.write("5")  # the peak restarts from the current size
    before = memory_mib("VmRSS")
    gradient(side, arguments)
    return memory_mib("VmHWM") - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-n", type=int, default=256)
    parser.add_argument("-c", type=int, default=128)
    parser.add_argument("-k", type=int, default=2**20)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--memory-of", choices=["dense", "streamed"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    sides = {"dense": dense, "streamed": streamed}

    if args.memory_of:
        print(extra_memory(sides[args.memory_of], problem(args.n, args.c, args.k)))
        return

    arguments = problem(args.n, args.c, args.k)
    wall: dict[str, list[float]] = {name: [] for name in sides}
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    grads = {}
    for _ in range(args.runs):
        for name, side in sides.items():
            started, started_cpu = time.perf_counter(), time.process_time()
            grads[name] = gradient(side, arguments)
            wall[name].append(time.perf_counter() - started)
            cpu[name].append(time.process_time() - started_cpu)

    print(f"N={args.n} C={args.c} K={args.k} fp32, {args.threads} threads, best of {args.runs}")
    for name in sides:
        call = [sys.executable, __file__, "--memory-of", name, "-n", str(args.n)]
        call += ["-c", str(args.c), "-k", str(args.k)]
        extra = float(subprocess.run(call, check=True, capture_output=True, text=True).stdout)
        print(
            f"{name:>9}: {min(wall[name]):7.2f} s wall {min(cpu[name]):7.2f} s CPU {extra:8.0f} MiB extra"
        )
    print(
        f"ratio streamed / dense: {min(wall['streamed']) / min(wall['dense']):.3f} wall, "
        f"{min(cpu['streamed']) / min(cpu['dense']):.3f} CPU"
    )

    exact_arguments = [a.detach().double() for a in arguments[:3]] + list(arguments[3:])
    exact_arguments[0].requires_grad_()
    exact = gradient(dense, exact_arguments)
    for name, grad in grads.items():
        print(
            f"gradient error of {name} against float64: {float((grad - exact).norm() / exact.norm()):.1e}"
        )


if __name__ == "__main__":
    main()
