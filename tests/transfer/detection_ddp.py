"""What each of two ranks sees of a fit and a test of Detection; ``test_detection_ddp.py`` reads it."""

import sys
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.distributed as dist

from goodtransfer.data import VOCDetectionDataModule
from goodtransfer.data.toy import CLASSES
from goodtransfer.transfer import Detection

sys.path.insert(0, str(Path(__file__).parent))
from small import SMALL


def main(world: str, out: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    module = Detection(
        "resnet10w8", num_classes=20, batch=8, iterations=2, milestones=(), warmup=0, lr=0.04,
        short_sides=(56, 64), test_side=64, precise_bn=2, detector=SMALL,
    )  # fmt: skip
    scored, original = [], module.with_precise_bn
    module.with_precise_bn = lambda: scored.append(original()) or scored[-1]
    data = VOCDetectionDataModule(world, class_names=CLASSES, batch_size=4)
    trainer = pl.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=-1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, default_root_dir=out,
    )  # fmt: skip
    trainer.fit(module, data)
    scores = trainer.test(module, data, verbose=False)[0]
    found = {
        "weights": module.detector.state_dict(),
        "scored": scored[0].state_dict(),
        "scores": scores,
        "fidelity": module.fidelity,
        "steps": trainer.global_step,
    }
    torch.save(found, out / f"rank{dist.get_rank()}.pt")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
