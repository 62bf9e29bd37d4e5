"""What a cell asks of a machine: bounds for schedulers, not measurements."""

import os
from dataclasses import dataclass, replace
from math import ceil

from goodtransfer.study.cost import work
from goodtransfer.study.plan import Cell, Study


@dataclass(frozen=True)
class Demand:
    """Cores, memory, GPUs and time of one cell.

    Attributes:
        threads: cores.
        mem_mb: MB of memory.
        gpu: how many GPUs.
        runtime: minutes, after which a scheduler may stop it; it goes on from its checkpoint.
    """

    threads: int
    mem_mb: int
    gpu: int
    runtime: int


# Of a scale's pretraining, of the paper's 200 epochs on ImageNet by MoCo.
_SCALES = {
    "paper": Demand(threads=12, mem_mb=64_000, gpu=1, runtime=7 * 24 * 60),
    "small": Demand(threads=4, mem_mb=8_000, gpu=0, runtime=12 * 60),
    "smoke": Demand(threads=1, mem_mb=3_000, gpu=0, runtime=60),
}
# Parts of that time.
_KINDS = {"linear": 0.5, "coco": 0.5, "few_shot": 0.1, "landmarks": 0.1}
_OTHER_KIND = 0.25
_FLOPS = 8.4e18  # of those 200 epochs, by `work`


def demand(study: Study, cell: Cell) -> Demand:
    """Of a cell on a machine of its own: a longer pretraining has longer, and an untrained one is saved."""
    full = _SCALES.get(study.scale.name, _SCALES["smoke"])
    part = _KINDS.get(cell.kind, _OTHER_KIND)
    if cell.kind == "pretrain":
        part = max(1.0, work(study, cell).flops / _FLOPS) if cell.row.trains else 0.01
    return replace(full, runtime=ceil(full.runtime * part))


def share(study: Study, cell: Cell, jobs: int, gpus: int) -> Demand:
    """Of a cell beside others on this machine: its part of the cores, and a GPU if there is one."""
    own = demand(study, cell)
    memory = min(own.mem_mb, memory_mb())
    return Demand(max(1, cores() // jobs), memory, min(1, gpus), own.runtime)


def cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_mb() -> int:
    """All memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
