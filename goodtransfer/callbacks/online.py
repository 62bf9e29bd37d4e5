"""What the probes beside a method share: features and labels of a step, and their score in validation."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import pytorch_lightning as pl
from torch import Tensor

from goodtransfer.metrics.accuracy import Accuracy


class Labelled(NamedTuple):
    """Images of a step that have a label.

    Attributes:
        features: (N, D) in fp32, without gradient.
        label: (N,).
        images: their numbers, (N,), where the step returned them as ``"index"``.
    """

    features: Tensor
    label: Tensor
    images: Tensor | None


def labelled(outputs: Any, step: str) -> Labelled:
    """What a step returned, without images labelled -1.

    Raises:
        ValueError: for a step that returns no features or labels.
    """
    given = outputs if isinstance(outputs, Mapping) else {}
    features, label, index = (given.get(name) for name in ("features", "label", "index"))
    if features is None or label is None:
        missing = "features" if features is None else "label"
        raise ValueError(
            f"Expected {step} to return a dict with `features` and `label` to probe, but got no "
            f"`{missing}`: give the method a loader with labels and return both, or remove the "
            "online callbacks."
        )
    known = label >= 0
    return Labelled(
        features.detach().float()[known], label[known], None if index is None else index[known]
    )


class OnlineAccuracy(pl.Callback, ABC):
    """Top-1 of :meth:`predict` on the validation images, each once over all ranks and loaders.

    Where a validation step returns the images' numbers as ``"index"``, too: else an image that a
    sampler repeats counts as often as it comes.
    """

    logged: str  # the name of the accuracy
    _accuracy: Accuracy

    @abstractmethod
    def predict(self, features: Tensor) -> Tensor | None:
        """Classes (N,) of features (N, D); None before any training, on all ranks alike."""

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._accuracy = Accuracy().to(pl_module.device)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        features, label, index = labelled(outputs, "validation_step")
        predicted = self.predict(features)
        if predicted is None:
            return  # the sanity check
        if index is not None:  # images of another loader are others
            index = index + (dataloader_idx << 40)
        self._accuracy.update(predicted, label, index)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        accuracy = self._accuracy.take()
        if accuracy is not None:
            pl_module.log(self.logged, accuracy[0], sync_dist=True)  # the same on all ranks
