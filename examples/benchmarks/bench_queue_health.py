"""What QueueHealth and BNLeak cost beside the steps they watch.

    python examples/benchmarks/bench_queue_health.py   # resnet18, 64 px, batch 64, K=65,536, one thread

One `MoCoV2` trains under a real `pl.Trainer` with a TensorBoard logger and a full queue. In every
step the CPU seconds spent in the callbacks' hooks are taken apart from the rest, so that each cost
stands beside the very step that it came on top of. Every second step is a logged one; at the default
`every_n_steps` the others are many more, so the share of a step is

    (logged + (every_n_steps - 1) * unlogged) / every_n_steps / rest of a step
"""

import argparse
import inspect
import logging
import statistics
import tempfile
import time
import warnings

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.loggers import TensorBoardLogger
from torch.utils.data import DataLoader, Dataset

from goodtransfer import MoCoV2
from goodtransfer.callbacks.bn_leak import BNLeak
from goodtransfer.callbacks.queue_health import QueueHealth


class Views(Dataset):
    """Pre-made batches of two views, so that no data loading is timed."""

    def __init__(self, batch: int, size: int, steps: int) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (2, batch, 3, size, size)
        self.views = tuple(torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8))
        self.labels, self.steps = torch.randint(0, 1000, (batch,), generator=generator), steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, i: int):
        return self.views, self.labels, torch.arange(len(self.labels)) + i * len(self.labels)


class Timed:
    """Adds up the CPU seconds of some hooks of a callback."""

    def __init__(self, callback: pl.Callback, hooks: list[str]) -> None:
        self.seconds = 0.0
        for hook in hooks:
            setattr(callback, hook, self._timed(getattr(callback, hook)))

    def _timed(self, hook):
        def timed(*args):
            started = time.process_time()
            hook(*args)
            self.seconds += time.process_time() - started

        return timed

    def taken(self) -> float:
        seconds, self.seconds = self.seconds, 0.0
        return seconds


class Turns(pl.Callback):
    """Rows (health, leak, rest of the step): CPU seconds from one batch's end to the next one's."""

    def __init__(self, health: Timed, leak: Timed) -> None:
        self.health, self.leak = health, leak
        self.rows: list[tuple[float, float, float]] = []
        self.started = time.process_time()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        total = time.process_time() - self.started
        health, leak = self.health.taken(), self.leak.taken()
        self.rows.append((health, leak, total - health - leak))
        self.started = time.process_time()


def fill(method: MoCoV2) -> None:
    """A full queue of labelled keys."""
    generator = torch.Generator().manual_seed(1)
    count = len(method.queue)
    keys = F.normalize(torch.randn(count, 128, generator=generator), dim=1)
    labels = torch.randint(0, 1000, (count,), generator=generator)
    method.queue.enqueue(keys, labels, torch.arange(count) + 10**7)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--queue", type=int, default=65536)
    parser.add_argument("--steps", type=int, default=30)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)

    method = MoCoV2(args.encoder, queue_size=args.queue)
    fill(method)
    health, leak = QueueHealth(every_n_steps=2), BNLeak(batches=4)
    turns = Turns(
        Timed(health, ["on_before_backward", "on_before_optimizer_step"]),
        Timed(leak, ["on_train_batch_start"]),
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=1, log_every_n_steps=10, logger=TensorBoardLogger(folder),
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            callbacks=[health, leak, turns],
        )  # fmt: skip
        data = Views(args.batch, args.size, args.steps)
        trainer.fit(method, DataLoader(data, batch_size=None))

    rows = turns.rows[2:]  # the first two warm up; rows of even steps stay at even places
    step = statistics.median(rest for *_, rest in rows)
    unlogged, logged = (statistics.median(h for h, *_ in rows[i::2]) for i in range(2))
    beside = statistics.median(h / rest for h, _, rest in rows[1::2])
    leaks = [(lk, rest) for _, lk, rest in rows[-leak.batches :]]
    every = inspect.signature(QueueHealth).parameters["every_n_steps"].default
    print(
        f"{args.encoder}, {args.size} px, batch {args.batch}, K={args.queue:,}, one thread, "
        f"{len(rows)} steps, medians of CPU milliseconds"
    )
    print(f"step without callbacks: {1e3 * step:8.2f}")
    print(f"QueueHealth, a logged step: {1e3 * logged:8.2f}, {beside:.2%} of that step")
    print(f"QueueHealth, another step: {1e3 * unlogged:8.3f}")
    share = (logged + (every - 1) * unlogged) / every / step
    print(f"QueueHealth every {every} steps: {share:.3%} of a step")
    print(
        f"BNLeak, a measured batch: {1e3 * statistics.median(lk for lk, _ in leaks):8.2f}, "
        f"{statistics.median(lk / rest for lk, rest in leaks):.2f} steps, {leak.batches} an epoch"
    )


if __name__ == "__main__":
    main()
