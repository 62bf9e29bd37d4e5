"""Linear readout of frozen features (the paper's ImageNet column; protocol 2.1)."""

import warnings
from collections.abc import Sequence
from copy import deepcopy
from itertools import islice
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from goodtransfer.callbacks.epoch_count import EpochCount
from goodtransfer.callbacks.frozen import FrozenCheck
from goodtransfer.callbacks.pictures import Pictures, as_pixels, captioned, fitted
from goodtransfer.distributed import joint_mean
from goodtransfer.encoders import Encoder, pooled
from goodtransfer.losses import full_precision_linear
from goodtransfer.metrics.accuracy import Accuracy
from goodtransfer.optim import sgd
from goodtransfer.transfer.checks import check_encoder, resolve_classes
from goodtransfer.transfer.steps import validate_within_fit
from goodtransfer.views import Batch, as_batch, check_range
from goodtransfer.weights import describe_input, load_encoder, restore_input

LEARNING_RATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
MOCO_LR = 30.0
_NONE = -1  # chosen, until a validation has
_WONDERS = "Found .* in eval mode at the start of training"
_SIDE = 226  # pixels of a picture's images, their caption left out


class LinearProbe(pl.LightningModule):
    """Linear classifiers on the pooled last features of a frozen encoder, one per learning rate.

    MoCo's readout: SGD, momentum 0.9, no decay, 100 epochs, a tenth at 60 and 80 % of them, weights
    from N(0, 0.01). Its learning rate of 30 suits MoCo's small features; the paper does not say what
    it used for others, so all rates train in one pass over the same features and the validation
    set chooses. Give it images that are neither trained on nor reported: the data module's
    ``selection=0.1``.

    Batches are ``((view,), label, index)``, index optional (:class:`goodtransfer.views.Batch`).

    Args:
        encoder: a name, a weight file (see ``weights.load_encoder``), or a module; copied.
        num_classes: classes; None takes the data module's.
        lrs: the learning rates, for a batch of 256.
        head: a linear classifier that came with the encoder (``weights.load_head``), reported too.
        views: name of the recipe a data module takes when its own ``views`` is None.
        name: of the accuracies logged; ``"base_acc"`` for the base classes of mini-ImageNet.

    Logs, in percent: ``selection_acc`` in validation; in test ``acc`` (the chosen rate),
    ``acc_lr30`` (upstream's rate, where among ``lrs``) and ``acc_head`` (``head`` as it came).
    ``linear.png`` shows some test images with the class they are taken for.

    Attributes:
        chosen: the number of the rate that validation chose, -1 before.

    Raises:
        ValueError: for ``lrs`` that are not above 0, an encoder whose features cannot tell images
            apart, a data module or labels of another number of classes, or a test before any
            validation has chosen among several rates.
        RuntimeError: when any weight or BN statistic of the encoder moves during the fit.
    """

    lr_weights: Tensor
    chosen: Tensor

    def __init__(
        self,
        encoder: str | nn.Module = "resnet50",
        *,
        num_classes: int | None = None,
        lrs: Sequence[float] = LEARNING_RATES,
        head: nn.Linear | None = None,
        views: str = "linear",
        name: str = "acc",
    ) -> None:
        super().__init__()
        if not lrs or min(lrs) <= 0:
            raise ValueError(f"Expected argument `lrs` to be positive rates, but got {lrs}.")
        # A copy: the method that an encoder comes from may want to go on training it.
        own = deepcopy(encoder) if isinstance(encoder, nn.Module) else encoder
        self.encoder: Encoder = load_encoder(own).requires_grad_(False).eval()
        self.save_hyperparameters(ignore=["encoder", "head"])
        self.hparams["encoder"] = self.encoder.name
        self.lrs, self.views, self.prefix = tuple(lrs), views, name
        self.head = None if head is None else deepcopy(head).requires_grad_(False)
        self.register_buffer("lr_weights", torch.tensor(self.lrs), persistent=False)
        self.register_buffer("chosen", torch.tensor(_NONE))
        self.accuracy = Accuracy(len(self.lrs))
        self.head_accuracy = Accuracy(1)
        self.classifiers: nn.Linear | None = None
        if num_classes is not None:
            self._add_classifiers(num_classes)

    def _add_classifiers(self, num_classes: int) -> None:
        """All classifiers side by side in one layer, (rates * classes, features)."""
        self.num_classes = self.hparams["num_classes"] = num_classes
        layer = nn.Linear(self.encoder.channels[5], len(self.lrs) * num_classes)
        nn.init.normal_(layer.weight[:num_classes], std=0.01)
        with torch.no_grad():  # the same start for every rate
            layer.weight.copy_(layer.weight[:num_classes].repeat(len(self.lrs), 1))
        nn.init.zeros_(layer.bias)
        self.classifiers = layer

    def setup(self, stage: str) -> None:
        data = getattr(self.trainer, "datamodule", None)
        if stage == "fit" and len(self.lrs) > 1 and getattr(data, "selection", None) == 0:
            warnings.warn(
                "The learning rate is chosen on the images that are reported: keep a part of train "
                f"for the choice by {type(data).__name__}(selection=0.1).",
                stacklevel=2,
            )
        check_encoder(self.encoder, (5,), "LinearProbe")
        num_classes = resolve_classes(self.hparams["num_classes"], data, "LinearProbe")
        if self.classifiers is None:
            self._add_classifiers(num_classes)

    def on_fit_start(self) -> None:
        # Here it is the protocol: Lightning need not wonder.
        warnings.filterwarnings("ignore", message=_WONDERS)

    def on_train_start(self) -> None:  # by now it has
        ours = [f for f in warnings.filters if getattr(f[1], "pattern", None) != _WONDERS]
        warnings.filters[:] = ours  # type: ignore[index]

    def on_fit_end(self) -> None:
        # Resumed from a checkpoint of the last step, Lightning passes over the validation that was due.
        if int(self.chosen) == _NONE and len(self.lrs) > 1 and self._validated():
            validate_within_fit(self.trainer)

    def _validated(self) -> bool:
        """Whether the last epoch's end was one that is validated."""
        trainer, every = self.trainer, self.trainer.check_val_every_n_epoch
        return (
            trainer.enable_validation and every is not None and trainer.current_epoch % every == 0
        )

    def train(self, mode: bool = True) -> "LinearProbe":
        """The encoder stays in eval mode: its BN statistics are frozen, too."""
        super().train(mode)
        self.encoder.eval()
        return self

    def configure_callbacks(self) -> list[pl.Callback]:
        # No `FiniteCheck`: the largest rates may diverge, which spoils no other.
        return [EpochCount(), FrozenCheck("encoder"), Pictures("linear")]

    @torch.no_grad()
    def _features(self, images: Tensor) -> Tensor:
        return pooled(self.encoder, images).float()

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) to the chosen classifier's logits (N, num_classes)."""
        return self._logits(self._features(images))[:, self._choice()]

    def _choice(self) -> int:
        """The number of the rate that is reported."""
        chosen = int(self.chosen)
        if chosen == _NONE and len(self.lrs) > 1:
            raise ValueError(
                f"Expected validation images to have chosen one of {len(self.lrs)} learning rates, but "
                "none have: fit with a validation loader of labelled images (which never runs where "
                "check_val_every_n_epoch is above the epochs), or with one rate, lrs=(30.0,)."
            )
        return max(chosen, 0)

    def _logits(self, features: Tensor) -> Tensor:
        """Features (N, C) to (N, rates, classes)."""
        if self.classifiers is None:
            raise ValueError("Expected num_classes to be known, but this module was never set up.")
        logits = full_precision_linear(features, self.classifiers)
        return logits.view(len(features), len(self.lrs), self.num_classes)

    def _labels(self, batch: Batch) -> Tensor:
        return batch.labels_for("LinearProbe", self.num_classes)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        view = as_batch(batch).views[0]
        if batch_idx == 0 and view.is_floating_point() and self.encoder.normalization is not None:
            check_range(view)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        given = as_batch(batch)
        logits = self._logits(self._features(given.views[0])).float()
        label = self._labels(given)
        target = label.unsqueeze(1).expand(logits.shape[:2])  # -1 is no label
        logits = logits.transpose(1, 2)
        losses = F.cross_entropy(logits, target, ignore_index=-1, reduction="none")
        losses = joint_mean(losses, label >= 0)
        self.log("loss", losses.detach().nan_to_num(torch.inf).min(), prog_bar=True)
        # Each rate's loss times its rate, under SGD with rate 1, is SGD with that rate: gradients
        # of the classifiers are separate, momentum is linear in them, and there is no decay.
        return (losses * self.lr_weights).sum()

    def on_validation_epoch_start(self) -> None:
        self.accuracy.reset()  # the last one may have been interrupted
        self.head_accuracy.reset()

    def on_test_epoch_start(self) -> None:
        self.on_validation_epoch_start()
        self._choice()  # to say at once that there is none

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._score(batch)

    def test_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """The class (N,) that each image is taken for, by every classifier that is reported."""
        told, by_head = self._score(batch)
        found = {"predicted": told[:, self._choice()]}
        if MOCO_LR in self.lrs:
            found["predicted_lr30"] = told[:, self.lrs.index(MOCO_LR)]
        return found if by_head is None else {**found, "predicted_head": by_head}

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """The chosen classifier's logits (N, num_classes) of the batch's first view."""
        logits: Tensor = self(as_batch(batch).views[0])
        return logits

    def _score(self, batch: Any) -> tuple[Tensor, Tensor | None]:
        """Count the right ones of every classifier; their classes (N, rates), and the head's (N,)."""
        given = as_batch(batch)
        features, label = self._features(given.views[0]), self._labels(given)
        told = self._logits(features).argmax(2)
        self.accuracy.update(told, label, given.index)
        if self.head is None:
            return told, None
        by_head = full_precision_linear(features, self.head).argmax(1)
        self.head_accuracy.update(by_head, label, given.index)
        return told, by_head

    def drawings(self, batch: Any, outputs: dict[str, Tensor], first: int) -> list[Tensor]:
        """The first images of a test batch, captioned with the class they are taken for."""
        given, data = as_batch(batch), getattr(self.trainer, "datamodule", None)
        names = getattr(data, "class_names", None) or [str(c) for c in range(self.num_classes)]
        labels, guesses = given.labels_for("LinearProbe").tolist(), outputs["predicted"].tolist()
        rows = zip(given.views[0], labels, guesses, strict=True)
        return [
            captioned(
                fitted(as_pixels(image), _SIDE),
                names[guess],
                right=guess == label if label >= 0 else None,
            )
            for image, label, guess in islice(rows, first)
        ]

    def on_validation_epoch_end(self) -> None:
        accuracy, _ = self.accuracy.take(), self.head_accuracy.take()
        if accuracy is not None and not self.trainer.sanity_checking:
            if self.trainer.state.fn == "fit":  # Trainer.validate reports, and chooses nothing
                self.chosen.copy_(accuracy.argmax())
            self.log("selection_acc", accuracy.max(), prog_bar=True, sync_dist=True)

    def on_test_epoch_end(self) -> None:
        accuracy, head_accuracy = self.accuracy.take(), self.head_accuracy.take()
        if accuracy is None:
            return  # no image had a label
        chosen = self._choice()
        found = {self.prefix: accuracy[chosen], "chosen_lr": self.lr_weights[chosen]}
        if MOCO_LR in self.lrs:
            found[f"{self.prefix}_lr30"] = accuracy[self.lrs.index(MOCO_LR)]
        if head_accuracy is not None:
            found[f"{self.prefix}_head"] = head_accuracy[0]
        self.log_dict(found, sync_dist=True)  # the same on all ranks

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["input"] = describe_input(self.encoder)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        restore_input(self.encoder, checkpoint["input"])
        head = checkpoint["state_dict"].get("head.weight")
        if head is not None and self.head is None:
            self.head = nn.Linear(head.shape[1], head.shape[0]).requires_grad_(False)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        classifiers = [p for p in self.parameters() if p.requires_grad]
        return sgd(classifiers, self.trainer, lr=1.0, weight_decay=0.0, schedule="step")
