"""Run by test_instdisc_ddp.py as a user's script: two gloo ranks, and what each saw."""

import sys
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from goodtransfer.distributed import rank
from goodtransfer.methods.instdisc import InstDisc

sys.path.insert(0, str(Path(__file__).parent))
from toy_inputs import PairDataset, encoder


class Record(pl.Callback):
    """Per step: loss, numbers, negatives, Z, bank and head; once: the buffers that DDP sends."""

    def __init__(self):
        self.steps, self.sent = [], []

    def on_train_start(self, trainer, module):
        wrapped, own = trainer.strategy.model, dict(module.named_buffers())
        self.sent += [n for n, b in own.items() if any(b is m for m in wrapped.modules_buffers)]

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.steps.append({
            "loss": float(outputs["loss"]),
            "index": batch[2].tolist(),
            "drawn": module.drawn,
            "normalizer": module.normalizer.clone(),
            "bank": module.bank.rows.clone(),
            "head": module.head.weight.detach().clone(),
        })  # fmt: skip


class Watched(InstDisc):
    def _draw(self, shape, batch_idx):
        self.drawn = super()._draw(shape, batch_idx)
        return self.drawn


def main(out):
    torch.set_num_threads(1)
    record = Record()
    module = Watched(encoder(batch_norm=False), num_images=32, negatives=5, dim=6, lr=0.5).double()
    items = [((views[0],), y, i) for views, y, i in PairDataset(32, dtype=torch.float64)]
    trainer = pl.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", precision="64-true", max_epochs=2,
        logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[record],
    )  # fmt: skip
    trainer.fit(module, DataLoader(items, batch_size=4))
    torch.save({"steps": record.steps, "sent": record.sent}, out / f"rank{rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
