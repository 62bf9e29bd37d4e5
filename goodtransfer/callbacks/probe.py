"""A linear probe that trains beside the method, on features it cannot change.

Shapes: N = images of a batch, D = feature dimension.
"""

from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD

from goodtransfer.callbacks.online import OnlineAccuracy, labelled
from goodtransfer.distributed import gather


class OnlineProbe(OnlineAccuracy):
    """Batch norm and a linear classifier on the detached features of every training batch.

    Cheap news while a method trains, not the readout of the tables
    (:class:`goodtransfer.LinearProbe`): the features come from training views and move on. The
    method and the global generator stay as they are, bit for bit; the probe's weights and momentum
    are in the checkpoint. Every rank trains the same probe on the batch of all ranks, which equals
    averaged gradients with batch norm over all ranks. Images labelled -1 are left out.

    Any LightningModule will do whose training and validation steps return
    ``{"features": (N, D), "label": (N,)}``, in validation best with ``"index": (N,)``, by which an
    image that comes to several ranks counts once.

    Args:
        lr: of SGD with momentum 0.9.
        num_classes: classes; None takes the data module's.

    Logs, in percent: ``online_train_acc`` of each training batch, before the probe learns from it,
    and ``online_acc`` in validation.

    Raises:
        ValueError: for an ``lr`` that is not above 0, without the number of classes, for labels that
            it does not cover, or for steps that return no features or labels.
    """

    logged = "online_acc"

    def __init__(self, lr: float = 0.1, num_classes: int | None = None) -> None:
        if not lr > 0:
            raise ValueError(f"Expected argument `lr` to be above 0, but got {lr}.")
        self.lr, self.num_classes = lr, num_classes
        self._classes = 0  # known from setup on
        self._parts: tuple[nn.Sequential, SGD] | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        data: Any = getattr(trainer, "datamodule", None)
        known = self.num_classes or getattr(data, "num_classes", None)
        if not known:
            raise ValueError(
                "Expected the number of classes, but num_classes=None and there is no data module "
                "to ask: pass OnlineProbe(num_classes=...)."
            )
        self._classes = known

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        step = labelled(outputs, "training_step")
        features, labels = gather(step.features)[0], gather(step.label)[0]
        if len(labels) < 2:
            return  # batch norm needs two images
        if int(labels.max()) >= self._classes:
            raise ValueError(
                f"Expected labels below num_classes={self._classes}, but got {int(labels.max())}: "
                "pass OnlineProbe(num_classes=...) with the number of classes in the data."
            )
        if self._parts is None:
            self._parts = self._build(features.shape[1], self._classes)
        self._parts = probe, optimizer = _moved(self._parts, features)
        logits = probe.train()(features)
        optimizer.zero_grad()
        F.cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        right = (logits.argmax(1) == labels).float().mean()
        pl_module.log("online_train_acc", 100 * right, batch_size=len(labels))

    def predict(self, features: Tensor) -> Tensor | None:
        if self._parts is None:
            return None
        self._parts = probe, _ = _moved(self._parts, features)
        predicted: Tensor = probe.eval()(features).argmax(1)
        return predicted

    def state_dict(self) -> dict[str, Any]:
        if self._parts is None:
            return {}
        probe, optimizer = self._parts
        return {"probe": probe.state_dict(), "optimizer": optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        classes, features = state_dict["probe"]["1.weight"].shape
        self._parts = probe, optimizer = self._build(features, classes)
        probe.load_state_dict(state_dict["probe"])
        optimizer.load_state_dict(state_dict["optimizer"])

    def _build(self, features: int, classes: int) -> tuple[nn.Sequential, SGD]:
        # A convex problem needs no random start, and skip_init draws nothing.
        linear = nn.utils.skip_init(nn.Linear, features, classes)  # type: ignore[no-untyped-call]
        for parameter in linear.parameters():
            nn.init.zeros_(parameter)
        probe = nn.Sequential(nn.BatchNorm1d(features, affine=False), linear)
        return probe, SGD(probe.parameters(), lr=self.lr, momentum=0.9)


@torch.inference_mode(False)  # what validation moves must still be fit for training
def _moved(parts: tuple[nn.Sequential, SGD], features: Tensor) -> tuple[nn.Sequential, SGD]:
    """Probe and optimizer on the device of the features."""
    probe, optimizer = parts
    if next(probe.parameters()).device == features.device:
        return parts
    moved = SGD(probe.to(features.device).parameters())
    moved.load_state_dict(optimizer.state_dict())  # with momentum, lr and all
    return probe, moved
