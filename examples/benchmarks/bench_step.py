"""What a MoCo-v2 step costs over its two encoders: loss, queue, EMA and logging.

    python examples/benchmarks/bench_step.py        # resnet18, 64 px, batch 64, K=65,536, one thread

Three programs take turns in this process, a step each, and CPU seconds are compared step by step:

* **bare**: the same query and key networks, with the same BN grouping and memory format, a forward
  and backward through the query side (a plain sum as loss), a forward of the key side, and the same
  SGD step; gradients are zeroed as Lightning does. What a method cannot do without.
* **ours**: the whole of `MoCoV2`'s training step under a real `pl.Trainer`.
* **lightly**: MoCo as lightly's own example writes it, from its parts (no BN groups).

The price of BN groups is that of *bare* with them over *bare* without.
"""

import argparse
import copy
import logging
import statistics
import time
import warnings

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from goodtransfer import MoCoV2
from goodtransfer.distributed import bn_groups, split_batch_norm
from goodtransfer.encoders import build, pooled


class Views(Dataset):
    """Pre-made batches of two views, so that no data loading is timed."""

    def __init__(self, batch: int, size: int, steps: int) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (2, batch, 3, size, size)
        self.views = tuple(torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8))
        self.labels, self.steps = torch.randint(0, 10, (batch,), generator=generator), steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, i: int):
        return self.views, self.labels, torch.arange(len(self.labels)) + i * len(self.labels)


def head(features: int, dim: int = 128) -> nn.Module:
    return nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, dim))


class Bare:
    """Two networks and an optimizer, nothing else."""

    def __init__(self, encoder: str, views: tuple[Tensor, Tensor], groups: int) -> None:
        self.encoder = build(encoder).train()
        self.head, self.views, self.groups = head(self.encoder.channels[5]), views, groups
        self.key_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.key_head = copy.deepcopy(self.head).requires_grad_(False)
        parameters = [*self.encoder.parameters(), *self.head.parameters()]
        self.optimizer = torch.optim.SGD(parameters, lr=0.03, momentum=0.9, weight_decay=1e-4)

    def step(self) -> None:
        self.optimizer.zero_grad()
        with split_batch_norm(self.groups):
            queries = F.normalize(self.head(pooled(self.encoder, self.views[0])), dim=1)
            with torch.no_grad():
                F.normalize(self.key_head(pooled(self.key_encoder, self.views[1])), dim=1)
        queries.sum().backward()
        self.optimizer.step()


class Lightly(Bare):
    """lightly's MoCo example on the same trunk: its memory bank, loss and momentum update."""

    def __init__(self, encoder: str, views: tuple[Tensor, Tensor], queue: int) -> None:
        from lightly.loss import NTXentLoss
        from lightly.models import utils

        super().__init__(encoder, views, groups=1)
        self.utils, self.loss = utils, NTXentLoss(temperature=0.2, memory_bank_size=(queue, 128))

    def step(self) -> None:
        self.utils.update_momentum(self.encoder, self.key_encoder, m=0.999)
        self.utils.update_momentum(self.head, self.key_head, m=0.999)
        queries = self.head(pooled(self.encoder, self.views[0]))
        with torch.no_grad():
            images, order = self.utils.batch_shuffle(self.views[1])
            keys = self.key_head(pooled(self.key_encoder, images))
            keys = self.utils.batch_unshuffle(keys, order)
        loss = self.loss(queries, keys)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


class TakeTurns(pl.Callback):
    """After each of our steps, one of everybody else's; CPU seconds of each."""

    def __init__(self, others: dict[str, Bare], warm_up: int) -> None:
        self.others, self.warm_up = others, warm_up
        self.seconds: dict[str, list[float]] = {name: [] for name in ["ours", *others]}
        self.started: float | None = None

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        # From the end of this hook to its next start lies one whole turn of Lightning's loop.
        if self.started is not None:
            self.seconds["ours"].append(time.process_time() - self.started)
        for name, other in self.others.items():
            started = time.process_time()
            other.step()
            self.seconds[name].append(time.process_time() - started)
        self.started = time.process_time()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--queue", type=int, default=65536)
    parser.add_argument("--steps", type=int, default=25)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)

    data = Views(args.batch, args.size, args.steps)
    groups = bn_groups(args.batch)
    turns = TakeTurns(
        {
            "bare": Bare(args.encoder, data.views, groups),
            "bare, no BN groups": Bare(args.encoder, data.views, 1),
            "lightly": Lightly(args.encoder, data.views, args.queue),
        },
        warm_up=3,
    )
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, log_every_n_steps=10, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[turns],
    )  # fmt: skip
    method = MoCoV2(args.encoder, queue_size=args.queue, bn_groups=groups)
    trainer.fit(method, DataLoader(data, batch_size=None))

    seconds = {name: s[turns.warm_up :] for name, s in turns.seconds.items()}
    print(
        f"{args.encoder}, {args.size} px, batch {args.batch}, K={args.queue:,}, {groups} BN groups, "
        f"one thread, {len(seconds['ours'])} steps, CPU milliseconds"
    )
    for name, values in seconds.items():
        print(
            f"{name:>20}: median {1e3 * statistics.median(values):7.1f}  min {1e3 * min(values):7.1f}"
        )

    def ratio(a: str, b: str) -> str:
        pairs = [x / y for x, y in zip(seconds[a], seconds[b], strict=False)]
        return (
            f"{statistics.median(pairs):.3f} (median of pairs), "
            f"{min(seconds[a]) / min(seconds[b]):.3f} (minima)"
        )

    print(f"ours / bare: {ratio('ours', 'bare')}")
    print(f"price of BN groups, bare / bare without: {ratio('bare', 'bare, no BN groups')}")
    print(f"lightly / bare without BN groups: {ratio('lightly', 'bare, no BN groups')}")
    print(f"ours / lightly: {ratio('ours', 'lightly')}")


if __name__ == "__main__":
    main()
