"""Run by test_ddp.py as a user's script: two gloo ranks, strategy="ddp", nothing else set."""

import json
import sys
from pathlib import Path

import pytorch_lightning as pl
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader

import goodtransfer.distributed as distributed
from goodtransfer.data import ImageNetDataModule, make_imagefolder
from goodtransfer.distributed import rank
from goodtransfer.methods import ExemplarMoCo

sys.path.insert(0, str(Path(__file__).parent))
from parity import build, named
from toy_inputs import encoder

OPTIONS = {
    "accelerator": "cpu",
    "devices": 2,
    "strategy": "ddp",
    "max_epochs": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Record(pl.Callback):
    """Per step: loss, queue, query network, and this rank's memory of what it held."""

    def __init__(self):
        self.steps = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.steps.append({
            "loss": float(outputs["loss"]),
            "index": batch[2].tolist() if len(batch) > 2 else [],
            "queue": {n: v.clone() for n, v in module.queue.state_dict().items()},
            "query": {n: v.clone() for n, v in query_state(module).items()},
        })  # fmt: skip


def query_state(module):
    return named(module.encoder.trunk, module.head)


def official(shared):
    """The recorded 2-rank run: this rank's images, and the recorded permutations."""
    case = shared / "parity/moco_v2_shuffle_2rank"
    run = json.loads((case / "run.json").read_text())
    inputs, expected = (load_file(case / f"{n}.safetensors") for n in ("inputs", "run_f64"))
    module = build(case, run)  # bn_groups="auto": one group of 8 per rank
    real = distributed.permutation
    distributed.permutation = lambda count, seed: expected[f"step{(seed >> 20) + 1}.perm"]
    record = Record()
    trainer = pl.Trainer(use_distributed_sampler=False, callbacks=[record], **OPTIONS)
    own = trainer.global_rank
    rows = slice(own * run["batch_per_rank"], (own + 1) * run["batch_per_rank"])
    batches = [((q[rows], k[rows]),) for q, k in inputs["images"].double()]
    trainer.fit(module, DataLoader(batches, batch_size=None))
    distributed.permutation = real
    buffers = {
        f"{side}_buffer.{name}": value.clone()
        for side, network in (("query", module.encoder.trunk), ("key", module.key_encoder.trunk))
        for name, value in network.named_buffers()
    }
    return {"steps": record.steps, "buffers": buffers}


def folder(out):
    """Our data module under DDP: Lightning leaves its sampler alone."""
    root = make_imagefolder(out / "toy", train=40, val=20, size=24)
    data = ImageNetDataModule(root, batch_size=5, size=24, seed=3)
    record = Record()
    trainer = pl.Trainer(callbacks=[record], num_sanity_val_steps=0, **OPTIONS | {"max_epochs": 2})
    trainer.fit(ExemplarMoCo(encoder(), queue_size=12, dim=6), data)
    return [step["index"] for step in record.steps]


if __name__ == "__main__":
    shared, out = Path(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    results = {"folder": folder(out)}
    if shared.is_dir():
        results["official"] = official(shared)
    torch.save(results, out / f"rank{rank()}.pt")
