"""SimCLR (Chen et al. 2020a; protocol 1.8).

Shapes: N = images of one rank's batch, C = feature dimension.
"""

from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
import torch.nn.functional as F
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from goodtransfer.callbacks.epoch_count import EpochCount
from goodtransfer.callbacks.finite import FiniteCheck
from goodtransfer.distributed import gather, rank, world_size
from goodtransfer.encoders import Encoder, pooled
from goodtransfer.losses import full_precision, nt_xent_rows
from goodtransfer.methods import checks
from goodtransfer.optim import lars
from goodtransfer.views import as_batch
from goodtransfer.weights import describe_input, load_encoder, restore_input


class SimCLR(pl.LightningModule):
    """An image's two views find each other among the views of the batch.

    Batches are ``((view, view), label, index)``, label and index optional
    (:class:`goodtransfer.views.Batch`). Negatives are the other images of the batch, of all ranks;
    under gradient accumulation those of the micro-batch alone, so that a larger batch cannot be had
    that way. Batch norm runs over all ranks upstream: pass ``Trainer(sync_batchnorm=True)``.

    The settings are those of the paper and its first code (google-research/simclr@0075cc0: run.py,
    model_util.py) for a batch of 256 in all: 0.3 x 256 / 256 is the learning rate, which is never
    rescaled (at their 4,096 it is 4.8). The loss is the paper's mean over views; the code's is twice
    that, which LARS does not see in the weights, but in norms and biases. The code also starts the
    last scale of each residual block at 0; here the encoder is trained as it comes.

    Args:
        encoder: a name, a weight file (see ``weights.load_encoder``), or a module.
        temperature: t of the loss, above 0.
        dim: C.
        lr: learning rate of LARS.
        weight_decay: on weights, not on norms and biases.
        warmup_epochs: in which the learning rate rises from 0 in a line, before a cosine takes it back
            to 0 by the end of ``trainer.max_epochs``, both per step.
        views: name of the recipe a data module takes when its own ``views`` is None.

    Logs: ``loss``, ``pretext_acc`` (%, the positive has the largest logit) and ``lr``.

    Raises:
        ValueError: before the first step, for arguments, batches or trainers that cannot work.
    """

    def __init__(
        self,
        encoder: str | nn.Module = "resnet50",
        *,
        temperature: float = 0.1,
        dim: int = 128,
        lr: float = 0.3,
        weight_decay: float = 1e-6,
        warmup_epochs: int = 10,
        views: str = "simclr",
    ) -> None:
        super().__init__()
        checks.check_positive(temperature=temperature, lr=lr, dim=dim)
        self.encoder: Encoder = checks.trained(load_encoder(encoder))
        self.save_hyperparameters(ignore="encoder")
        self.hparams["encoder"] = self.encoder.name
        self.temperature, self.lr, self.weight_decay = temperature, lr, weight_decay
        self.warmup_epochs, self.views = warmup_epochs, views
        features = self.encoder.channels[5]
        self.head = nn.Sequential(
            nn.Linear(features, features, bias=False),
            nn.BatchNorm1d(features),
            nn.ReLU(),
            nn.Linear(features, dim, bias=False),
            nn.BatchNorm1d(dim),
        )
        self.head[4].bias.requires_grad_(False)  # upstream's has none (center=False)

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor | None]:
        views, label, _ = as_batch(batch)
        features = pooled(self.encoder, torch.cat(views))  # 2N, so that both share batch norm
        projected = F.normalize(full_precision(self.head(features)), dim=1)
        everything, start = gather_with_gradient(projected)
        losses, won = nt_xent_rows(projected, everything, start, temperature=self.temperature)
        # This rank's part of the mean over all views, whose mean over ranks that is; with batches of
        # one size the mean of its own.
        loss = world_size() * losses.sum() / len(everything)
        self.log("lr", float(self.trainer.optimizers[0].param_groups[0]["lr"]))
        self.log("loss", loss.detach(), prog_bar=True)
        self.log("pretext_acc", 100 * won.float().mean(), prog_bar=True)
        return {"loss": loss, "features": features[: len(views[0])].detach(), "label": label}

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor | None]:
        """Features for the callbacks that probe the encoder; changes nothing here."""
        views, label, index = as_batch(batch)
        return {"features": pooled(self.encoder, views[0]), "label": label, "index": index}

    test_step = validation_step

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return lars(
            self.parameters(),
            self.trainer,
            lr=self.lr,
            weight_decay=self.weight_decay,
            warmup_epochs=self.warmup_epochs,
        )

    def on_train_start(self) -> None:
        checks.refuse_half_parameters(self)
        checks.warn_of_local_batch_norm(self)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            checks.check_batch(self, batch, self.encoder, views=2)

    def configure_callbacks(self) -> list[pl.Callback]:
        return [FiniteCheck(), EpochCount()]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["input"] = describe_input(self.encoder)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        restore_input(self.encoder, checkpoint["input"])


def gather_with_gradient(x: Tensor) -> tuple[Tensor, int]:
    """The rows of all ranks, rank-major, and where this rank's begin; gradient to this rank's rows.

    Rows z_r of rank r enter the losses of all W ranks, L = (L_1 + ... + L_W) / W in all. Backward sums
    what every rank's loss asks of them, dL_1/dz_r + ... + dL_W/dz_r = W dL/dz_r. From there rank r gets
    W dL/dz_r dz_r/dw for its weights, and DDP's mean over ranks is the sum of dL/dz_r dz_r/dw: the
    gradient of L, as one device has it with the batch of all. Without the sum the share of a view as a
    negative of other ranks would be lost.
    """
    if world_size() == 1:
        return x, 0
    rows, start = _Gather.apply(x)
    return rows, start


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, int]:
        rows, sizes = gather(x)
        start = sum(sizes[: rank()])
        ctx.own = slice(start, start + len(x))
        return rows, start

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: None) -> Tensor:
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        own: Tensor = total[ctx.own]
        return own
