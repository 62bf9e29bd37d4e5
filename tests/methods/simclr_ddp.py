"""Run by test_simclr.py as a user's script: two gloo ranks, and what each saw."""

import sys
import warnings
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from goodtransfer.distributed import rank
from goodtransfer.methods.simclr import SimCLR

sys.path.insert(0, str(Path(__file__).parent))
from toy_inputs import PairDataset, encoder

# Images of each rank in the steps of an epoch.
BATCHES = {
    "even": [[(0, 1, 2, 3), (4, 5, 6, 7)], [(8, 9, 10, 11), (12, 13, 14, 15)]],
    "ragged": [[(0, 1, 2), (3, 4, 5, 6, 7)], [(8, 9, 10, 11, 12, 13), (14, 15)]],
}


def batch(numbers):
    images = PairDataset(16, dtype=torch.float64)
    first, second = (torch.stack([images[i][0][v] for i in numbers]) for v in (0, 1))
    return (first, second), torch.tensor(numbers) % 4


def joined(case):
    return [batch(sum(parts, ())) for parts in BATCHES[case]]


def simclr():
    """Without batch norm in the encoder; that of the head is frozen, as one rank's is its own."""
    module = SimCLR(encoder(batch_norm=False), dim=6, lr=0.03, warmup_epochs=1)
    return module.double()


class FrozenHead(pl.Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        module.head.eval()


class Record(pl.Callback):
    """Per step: loss, gradients as the optimizer gets them, and the weights it leaves."""

    def __init__(self):
        self.steps = []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.gradients = {
            n: p.grad.clone() for n, p in module.named_parameters() if p.requires_grad
        }

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.steps.append({
            "loss": float(outputs["loss"]),
            "gradients": self.gradients,
            "weights": {n: p.detach().clone() for n, p in module.named_parameters()},
        })  # fmt: skip


def run(case):
    record = Record()
    trainer = pl.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", precision="64-true", max_epochs=2,
        logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False,
        callbacks=[record, FrozenHead()],
    )  # fmt: skip
    own = [batch(parts[trainer.global_rank]) for parts in BATCHES[case]]
    trainer.fit(simclr(), DataLoader(own, batch_size=None))
    return record.steps


if __name__ == "__main__":
    torch.set_num_threads(1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = {"even": run("even")}
    found |= {"warnings": [str(w.message) for w in caught], "ragged": run("ragged")}
    torch.save(found, Path(sys.argv[1]) / f"rank{rank()}.pt")
