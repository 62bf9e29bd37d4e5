"""Detection with another number of images a step than the paper's 16: two ways, never mixed."""

from collections.abc import Sequence
from typing import NamedTuple

PAPER_BATCH = 16  # images a step: 8 GPUs of 2


class Schedule(NamedTuple):
    """What a run does, counted in its own optimizer steps."""

    lr: float
    iterations: int
    milestones: tuple[int, ...]
    warmup: int
    eval_iters: tuple[int, ...]


def scaled(
    batch: int,
    lr: float,
    iterations: int,
    milestones: Sequence[int],
    warmup: int,
    eval_iters: Sequence[int] = (),
) -> Schedule:
    """The schedule of 16 images a step at another batch: *batch b*.

    Source: detectron2@02b5c4e2, ``DefaultTrainer.auto_scale_workers``.

    >>> scaled(2, lr=0.02, iterations=9_000, milestones=(6_000, 8_000), warmup=100)
    Schedule(lr=0.0025, iterations=72000, milestones=(48000, 64000), warmup=800, eval_iters=())
    """
    factor = PAPER_BATCH / batch

    def steps(counts: Sequence[int]) -> tuple[int, ...]:
        return tuple(round(count * factor) for count in counts)

    iterations, warmup = steps((iterations, warmup))
    return Schedule(lr / factor, iterations, steps(milestones), warmup, steps(eval_iters))


def fidelity(batch: int, accumulated: int, normalised: int) -> str:
    """What a run changes: images a step, how they are gathered, and how many batch norm sees.

    >>> fidelity(16, 8, 2)
    'accumulated to 16 images a step, BN over 2 images (paper: 16)'
    >>> fidelity(2, 1, 2)
    'batch 2 (paper: 16), learning rate x 2/16 and steps x 16/2, BN over 2 images (paper: 16)'
    """
    parts = []
    if batch != PAPER_BATCH:
        parts.append(
            f"batch {batch} (paper: {PAPER_BATCH}), learning rate x {batch}/{PAPER_BATCH} "
            f"and steps x {PAPER_BATCH}/{batch}"
        )
    if accumulated > 1:
        parts.append(f"accumulated to {batch} images a step")
    if normalised != PAPER_BATCH:
        parts.append(f"BN over {normalised} images (paper: {PAPER_BATCH})")
    return ", ".join(parts) or "16 images a step, as in the paper"
