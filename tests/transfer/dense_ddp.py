"""What each of two ranks sees of a fit and a test of a dense task; ``test_dense_ddp.py`` reads it.

``dense_ddp.py TASK WORLD OUT [sync]`` leaves ``OUT/rank0.pt`` and ``OUT/rank1.pt``.
"""

import sys
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from goodtransfer.data import CityscapesDataModule, COCODetectionDataModule
from goodtransfer.transfer import COCODetection, Segmentation

sys.path.insert(0, str(Path(__file__).parent))
from small import SMALL

STEPS = 12


def city(root, ranks):
    """Four crops a step, without dropout, which is another on every rank."""
    module = Segmentation(
        "resnet10w8", num_classes=19, batch=4, iterations=STEPS, lr=0.05,
        network={"channels": 8, "aux_channels": 4, "dropout": 0.0},
    )  # fmt: skip
    view = {"crop": (32, 64), "nominal": (32, 64)}
    return module, CityscapesDataModule(root, batch_size=4 // ranks, **view)


def coco(root, ranks):
    module = COCO(
        "resnet10w8", num_classes=20, batch=8, iterations=2, milestones=(), warmup=0, lr=0.04,
        short_sides=(56, 64), test_side=64, precise_bn=2, detector={**SMALL, "mask_channels": 8},
    )  # fmt: skip
    return module, COCODetectionDataModule(root, masks="polygons", batch_size=8 // ranks)


class Seen(pl.Callback):
    """The loss of each step, and the network that is scored."""

    def __init__(self):
        self.losses, self.scored = [], {}

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))

    def on_test_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
        scored = module.network if isinstance(module, Segmentation) else module.detected_by
        self.scored = {name: value.clone() for name, value in scored.state_dict().items()}


class COCO(COCODetection):
    """Keeps the detector that was scored, whose statistics are its own."""

    def with_precise_bn(self):
        self.detected_by = super().with_precise_bn()
        return self.detected_by


def fitted(task, root, out, ranks, sync=False, **options):
    """The module after its fit and test, and what is told of both."""
    torch.manual_seed(0)
    module, data = {"city": city, "coco": coco}[task](root, ranks)
    seen = Seen()
    trainer = pl.Trainer(
        accelerator="cpu", devices=ranks, strategy="ddp" if ranks > 1 else "auto", max_epochs=-1,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, callbacks=[seen],
        enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=out,
        sync_batchnorm=sync, **options,
    )  # fmt: skip
    trainer.fit(module, data)
    (scores,) = trainer.test(module, data, verbose=False)
    return {
        "losses": seen.losses,
        "weights": {name: value.detach() for name, value in module.named_parameters()},
        "scored": seen.scored,
        "scores": scores,
        "fidelity": module.fidelity,
    }


class Sum(torch.autograd.Function):
    """Over the ranks; so is its gradient."""

    @staticmethod
    def forward(context, value):
        total = value.clone()
        dist.all_reduce(total)
        return total

    backward = forward


def synced(norm, x):
    """In place of ``nn.SyncBatchNorm.forward``, whose kernels PyTorch has for GPUs alone."""
    if not norm.training:
        return F.batch_norm(
            x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
        )
    shape = (1, -1, *[1] * (x.ndim - 2))
    dims = [d for d in range(x.ndim) if d != 1]
    count = Sum.apply(x.new_tensor(x.numel() / x.shape[1]))
    mean = Sum.apply(x.sum(dims)) / count
    centred = x - mean.view(shape)
    var = Sum.apply(centred.square().sum(dims)) / count
    with torch.no_grad():
        norm.num_batches_tracked.add_(1)
        part = norm.momentum or 1 / float(norm.num_batches_tracked)
        norm.running_mean.lerp_(mean, part)
        norm.running_var.lerp_(var * count / (count - 1), part)
    made = centred * (var + norm.eps).rsqrt().view(shape)
    return made * norm.weight.view(shape) + norm.bias.view(shape)


def main(task: str, root: str, out: str, sync: str = "") -> None:
    torch.set_num_threads(1)
    nn.SyncBatchNorm.forward = synced
    DistributedDataParallel._passing_sync_batchnorm_handle = lambda *_: None  # it refuses CPUs
    options = {"precision": "64-true"} if task == "city" else {}
    found = fitted(task, root, Path(out), 2, bool(sync), **options)
    torch.save(found, Path(out) / f"rank{dist.get_rank()}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
