"""Supervised pretraining by cross-entropy, the paper's baseline (Sec. 2.1, protocol 1.2)."""

from typing import Any

import pytorch_lightning as pl
import torch.nn.functional as F
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from goodtransfer.callbacks.epoch_count import EpochCount
from goodtransfer.callbacks.finite import FiniteCheck
from goodtransfer.distributed import joint_mean
from goodtransfer.encoders import Encoder, pooled
from goodtransfer.losses import full_precision_linear
from goodtransfer.methods import checks
from goodtransfer.metrics.accuracy import Accuracy
from goodtransfer.momentum import NO_LABEL
from goodtransfer.optim import Schedule, sgd
from goodtransfer.views import Batch, as_batch
from goodtransfer.weights import describe_input, load_encoder, restore_input


class SupervisedCE(pl.LightningModule):
    """Softmax cross-entropy over class labels on one view per image.

    Batches are ``((view,), label, index)``, index optional (:class:`goodtransfer.views.Batch`); an image
    labelled -1 is left out of the loss.

    The paper gives epochs (200), cosine and augmentation, but no optimizer settings: lr 0.1 for a
    batch of 256 and decay 1e-4 are those of PyTorch's ImageNet example (protocol 0.1).

    Args:
        encoder: a name, a weight file (see ``weights.load_encoder``), or a module.
        num_classes: classes; None takes the data module's.
        lr: learning rate, never rescaled.
        weight_decay: on every parameter.
        schedule: per epoch, over ``trainer.max_epochs``: ``"cosine"`` or ``"step"``.
        views: name of the recipe a data module takes when its own ``views`` is None.

    Logs: ``loss``, ``train_acc`` (%), ``lr``, and ``acc_head`` (%) in validation and test: the
    classifier's own top-1.

    Raises:
        ValueError: before the first step, for arguments, batches or trainers that cannot work.
    """

    def __init__(
        self,
        encoder: str | nn.Module = "resnet50",
        *,
        num_classes: int | None = None,
        lr: float = 0.1,
        weight_decay: float = 1e-4,
        schedule: Schedule = "cosine",
        views: str = "supervised",
    ) -> None:
        super().__init__()
        checks.check_positive(lr=lr)
        checks.check_choice("schedule", schedule, Schedule)
        self.encoder: Encoder = checks.trained(load_encoder(encoder))
        self.save_hyperparameters(ignore="encoder")
        self.hparams["encoder"] = self.encoder.name
        self.lr, self.weight_decay, self.schedule, self.views = lr, weight_decay, schedule, views
        self.head: nn.Linear | None = None
        self.accuracy = Accuracy()
        if num_classes is not None:
            self._add_head(num_classes)

    def _add_head(self, num_classes: int) -> None:
        self.head = nn.Linear(self.encoder.channels[5], num_classes)
        self.hparams["num_classes"] = num_classes

    def setup(self, stage: str) -> None:
        if self.head is None:
            num_classes = getattr(getattr(self.trainer, "datamodule", None), "num_classes", None)
            if num_classes is None:
                raise ValueError(
                    "Expected the number of classes, but num_classes=None and there is no data "
                    "module to ask: pass SupervisedCE(num_classes=...)."
                )
            self._add_head(num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) to class logits (N, num_classes)."""
        return self._classify(pooled(self.encoder, images))

    def _classify(self, features: Tensor) -> Tensor:
        if self.head is None:
            raise ValueError("Expected num_classes to be known, but this module was never set up.")
        return full_precision_linear(features, self.head)

    def _labels(self, batch: Batch) -> Tensor:
        return batch.labels_for("SupervisedCE", self.hparams["num_classes"])

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor | None]:
        given = as_batch(batch)
        features, label = pooled(self.encoder, given.views[0]), self._labels(given)
        logits = self._classify(features)
        losses = F.cross_entropy(logits, label, ignore_index=NO_LABEL, reduction="none")
        loss = joint_mean(losses, label != NO_LABEL)
        self.log("loss", loss.detach(), prog_bar=True)
        self.log("train_acc", _percent_correct(logits, label), prog_bar=True)
        self.log("lr", float(self.trainer.optimizers[0].param_groups[0]["lr"]))
        return {"loss": loss, "features": features.detach(), "label": label}

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor | None]:
        given = as_batch(batch)
        features, label = pooled(self.encoder, given.views[0]), self._labels(given)
        self.accuracy.update(self._classify(features).argmax(1), label, given.index)
        return {"features": features, "label": label, "index": given.index}

    def on_validation_epoch_start(self) -> None:
        self.accuracy.reset()  # the last one may have been interrupted

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_epoch_end(self) -> None:
        accuracy = self.accuracy.take()
        if accuracy is not None:
            self.log("acc_head", accuracy[0], sync_dist=True)  # the same on all ranks

    on_test_epoch_end = on_validation_epoch_end

    test_step = validation_step

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Class logits (N, num_classes) of the batch's first view."""
        logits: Tensor = self(as_batch(batch).views[0])
        return logits

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return sgd(
            self.parameters(),
            self.trainer,
            lr=self.lr,
            weight_decay=self.weight_decay,
            schedule=self.schedule,
        )

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            checks.check_batch(self, batch, self.encoder, views=1, needs="label")

    def configure_callbacks(self) -> list[pl.Callback]:
        return [FiniteCheck(), EpochCount()]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["input"] = describe_input(self.encoder)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        restore_input(self.encoder, checkpoint["input"])


def _percent_correct(logits: Tensor, label: Tensor) -> Tensor:
    """Top-1 of the labelled images; 0 where none is."""
    return 100 * (logits.argmax(1) == label).sum() / (label >= 0).sum().clamp(min=1)
