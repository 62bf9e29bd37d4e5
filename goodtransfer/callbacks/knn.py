"""A nearest-neighbour vote beside the method: the probe that learns nothing.

Shapes: N = queries, M = bank, D = feature dimension.
"""

from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from goodtransfer.callbacks.online import OnlineAccuracy, labelled
from goodtransfer.distributed import gather
from goodtransfer.momentum import KeyQueue

_SIMILARITIES = 2**24  # at once: 64 MiB of fp32


class OnlineKNN(OnlineAccuracy):
    """Classify validation images by the labels of the most similar training features.

    The bank holds the features of the last ``size`` training images (views as the method saw them,
    by the encoder of that step), the same on every rank, and is in the checkpoint. Images labelled
    -1 are left out. Asks of the LightningModule what :class:`goodtransfer.OnlineProbe` does.

    Args:
        k: neighbours that vote; all of the bank while it holds fewer.
        temperature: of the votes, ``exp(cosine / temperature)``.
        size: of the bank.

    Logs: ``knn_acc``, in percent, in validation.

    Raises:
        ValueError: for numbers that are not above 0, or for steps that return no features or labels.
    """

    logged = "knn_acc"

    def __init__(self, k: int = 20, temperature: float = 0.07, size: int = 4096) -> None:
        if k < 1 or size < 1 or not temperature > 0:
            raise ValueError(
                "Expected `k`, `temperature` and `size` to be above 0, but got "
                f"{k}, {temperature} and {size}."
            )
        self.k, self.temperature, self.size = k, temperature, size
        self._bank: KeyQueue | None = None

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
        if self._bank is None:
            self._bank = self._build(features.shape[1])
        _moved(self._bank, features).enqueue(F.normalize(features), labels)

    def predict(self, features: Tensor) -> Tensor | None:
        if self._bank is None or not int(self._bank.filled):
            return None
        bank, filled = _moved(self._bank, features), int(self._bank.filled)
        labels = bank.labels[:filled]
        return knn_predict(
            F.normalize(features),
            bank.keys[:filled],
            labels,
            k=self.k,
            temperature=self.temperature,
            num_classes=int(labels.max()) + 1,
        )

    def state_dict(self) -> dict[str, Any]:
        return {} if self._bank is None else dict(self._bank.state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._bank = self._build(state_dict["keys"].shape[1])
        self._bank.load_state_dict(state_dict)

    def _build(self, features: int) -> KeyQueue:
        return KeyQueue(self.size, features, allow_resize=True)


@torch.inference_mode(False)  # what validation moves must still be fit for training
def _moved(bank: KeyQueue, features: Tensor) -> KeyQueue:
    """Take the bank to the device of the features."""
    return bank.to(features.device)


@torch.no_grad()
def knn_predict(
    queries: Tensor,
    bank: Tensor,
    labels: Tensor,
    *,
    k: int,
    temperature: float,
    num_classes: int,
) -> Tensor:
    """Classes by the vote of the k most similar rows, weighted ``exp(cosine / temperature)``.

    As in Wu et al. 2018 (instance discrimination, Sec. 3.4). Neither the N x M similarities nor the
    N x k x classes one-hot votes exist at once.

    Args:
        queries: (N, D), unit length.
        bank: (M, D), unit length.
        labels: (M,), from 0 to ``num_classes - 1``.
        k: neighbours; at most M are taken.
        temperature: above 0; small ones let the nearest decide.
        num_classes: classes.

    Returns:
        The classes, int64 (N,).

    >>> bank = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    >>> labels = torch.tensor([0, 1, 1])
    >>> query = torch.tensor([[1.0, 0.0]])
    >>> knn_predict(query, bank, labels, k=3, temperature=0.07, num_classes=2)
    tensor([0])
    >>> knn_predict(query, bank, labels, k=3, temperature=10.0, num_classes=2)
    tensor([1])
    """
    predicted = labels.new_empty(len(queries))
    chunk = max(1, _SIMILARITIES // len(bank))
    for start in range(0, len(queries), chunk):
        similarity, nearest = (queries[start : start + chunk] @ bank.T).topk(min(k, len(bank)))
        # Relative to the nearest: the same winner, and no overflow at a small temperature.
        weights = ((similarity - similarity[:, :1]) / temperature).exp()
        votes = weights.new_zeros(len(weights), num_classes)
        predicted[start : start + chunk] = votes.scatter_add_(1, labels[nearest], weights).argmax(1)
    return predicted
