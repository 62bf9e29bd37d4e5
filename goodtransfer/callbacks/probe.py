"""A linear probe that trains beside the method, on features it cannot change.

Shapes: N = images of a batch, D = feature dimension.
"""

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD

from goodtransfer.distributed import gather


class OnlineProbe(pl.Callback):
    """Batch norm and a linear classifier on the detached features of every training batch.

    Cheap news while a method trains, not the readout of the tables
    (:class:`goodtransfer.LinearProbe`): the features come from training views and move on. The
    method and the global generator stay as they are, bit for bit; the probe's weights and momentum
    are in the checkpoint. Every rank trains the same probe on the batch of all ranks, which equals
    averaged gradients with batch norm over all ranks. Images labelled -1 are left out.

    Any LightningModule will do whose training and validation steps return
    ``{"features": (N, D), "label": (N,)}``.

    Args:
        lr: of SGD with momentum 0.9.
        num_classes: classes; None takes the data module's.

    Logs, in percent: ``online_train_acc`` of each training batch, before the probe learns from it,
    and ``online_acc`` in validation.

    Raises:
        ValueError: for an ``lr`` that is not above 0, without the number of classes, for labels that
            it does not cover, or for steps that return no features or labels.
    """

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
        features, labels = (gather(x)[0] for x in labelled_features(outputs, "training_step"))
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
        log_accuracy(pl_module, "online_train_acc", logits.argmax(1), labels)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._parts is None:
            return  # the sanity check, before any training
        features, labels = labelled_features(outputs, "validation_step")
        self._parts = probe, _ = _moved(self._parts, features)
        predicted = probe.eval()(features).argmax(1)
        log_accuracy(pl_module, "online_acc", predicted, labels, sync_dist=True)

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


def labelled_features(outputs: Any, step: str) -> tuple[Tensor, Tensor]:
    """Features (N, D) in fp32 and labels (N,) that a step returned, without images labelled -1."""
    given = outputs if isinstance(outputs, Mapping) else {}
    features, label = given.get("features"), given.get("label")
    if features is None or label is None:
        missing = "features" if features is None else "label"
        raise ValueError(
            f"Expected {step} to return a dict with `features` and `label` to probe, but got no "
            f"`{missing}`: give the method a loader with labels and return both, or remove the "
            "online callbacks."
        )
    known = label >= 0
    return features.detach().float()[known], label[known]


def log_accuracy(
    pl_module: pl.LightningModule,
    name: str,
    predicted: Tensor,
    labels: Tensor,
    *,
    sync_dist: bool = False,
) -> None:
    """Log percent correct, weighted by the number of labels (which may be 0)."""
    correct = (predicted == labels).float().sum() / max(1, len(labels))
    pl_module.log(name, 100 * correct, batch_size=len(labels), sync_dist=sync_dist)
