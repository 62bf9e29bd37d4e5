"""Momentum contrast, v1 and v2 (He et al. 2020; Chen et al. 2020b), and room for Eq. 2.

Shapes: N = images of one rank's batch, K = queue, C = feature dimension.
"""

from copy import deepcopy
from typing import Any, Literal, NamedTuple

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from goodtransfer.callbacks.epoch_count import EpochCount
from goodtransfer.callbacks.finite import FiniteCheck
from goodtransfer.distributed import bn_groups as count_bn_groups
from goodtransfer.distributed import encode_shuffled, gather, share, split_batch_norm
from goodtransfer.encoders import Encoder, pooled
from goodtransfer.losses import full_precision, info_nce_rows
from goodtransfer.methods import checks
from goodtransfer.momentum import NO_LABEL, KeyQueue, ema_update, equal_share
from goodtransfer.optim import Schedule, sgd
from goodtransfer.views import as_batch
from goodtransfer.weights import describe_input, load_encoder, restore_input

Exclude = Literal["none", "image", "label"]
Unfilled = Literal["noise", "masked"]
BNGroups = int | Literal["auto"]


class Keys(NamedTuple):
    """What one forward adds to the queue: of all ranks, rank-major."""

    keys: Tensor
    labels: Tensor | None
    indices: Tensor | None


class Contrast(NamedTuple):
    """What one forward compares with the queue: of this rank, without gradient."""

    queries: Tensor
    positives: Tensor
    labels: Tensor | None
    indices: Tensor | None


class MoCo(pl.LightningModule):
    """Instance discrimination against a queue of momentum-encoded keys.

    The step follows the official code (facebookresearch/moco@132aea9: moco/builder.py). There the
    key encoder moves and the keys are enqueued within the forward pass; here both happen right
    after the optimizer's step, which gives the same numbers (its first move changes nothing), once
    per step also under gradient accumulation, and before any callback saves a checkpoint.

    Batches are ``((query view, key view), label, index)``, label and index optional
    (:class:`goodtransfer.views.Batch`). The defaults are MoCo-v2's, for a batch of 256 in all; the
    learning rate is never rescaled.

    Args:
        encoder: a name, a weight file (see ``weights.load_encoder``), or a module.
        queue_size: K.
        temperature: t of the loss, above 0.
        momentum: m of the key encoder.
        dim: C.
        mlp: a hidden layer in the head (v2), or a single linear layer (v1).
        exclude: which keys are no negatives: ``"none"``; ``"image"``, earlier keys of the query's
            own image; ``"label"``, keys of the query's class (Eq. 2).
        unfilled: what the queue's free slots are at the start: ``"noise"``, negatives as in the
            official code, or ``"masked"``, nothing.
        bn_groups: parts of the batch that have BN statistics of their own: a number, or ``"auto"``
            for parts of 32 images, and at least two on one device (shuffle-BN runs over all).
        lr: learning rate.
        weight_decay: on every parameter.
        schedule: per epoch, over ``trainer.max_epochs``: ``"cosine"`` or ``"step"``.
        views: name of the recipe a data module takes when its own ``views`` is None.
        allow_queue_resize: load a checkpoint whose queue has another size.

    Logs: ``loss``, ``pretext_acc`` (%, the positive has the largest logit), ``lr``, ``queue_fill``
    and, as shares of all query-key pairs, ``filtered`` (left out by ``exclude``) and ``own_image``
    (negatives that are the query's own image, from an earlier step; needs indices).

    Attributes:
        queue: the keys of earlier steps, also while the loss and its gradient are computed.
        contrast: what the last forward compared with them, for callbacks.
        held: what the step under way will add to the queue, a part for each forward.

    Raises:
        ValueError: before the first step, for arguments, batches or trainers that cannot work.
    """

    def __init__(
        self,
        encoder: str | nn.Module = "resnet50",
        *,
        queue_size: int = 65536,
        temperature: float = 0.2,
        momentum: float = 0.999,
        dim: int = 128,
        mlp: bool = True,
        exclude: Exclude = "none",
        unfilled: Unfilled = "noise",
        bn_groups: BNGroups = "auto",
        lr: float = 0.03,
        weight_decay: float = 1e-4,
        schedule: Schedule = "cosine",
        views: str = "moco_v2",
        allow_queue_resize: bool = False,
    ) -> None:
        super().__init__()
        checks.check_positive(temperature=temperature, lr=lr, queue_size=queue_size, dim=dim)
        checks.check_choice("exclude", exclude, Exclude)
        checks.check_choice("unfilled", unfilled, Unfilled)
        checks.check_choice("schedule", schedule, Schedule)
        if not 0 <= momentum <= 1:
            raise ValueError(f"Expected argument `momentum` in [0, 1], but got {momentum}.")
        self.encoder: Encoder = checks.trained(load_encoder(encoder))
        self.save_hyperparameters(ignore="encoder")
        self.hparams["encoder"] = self.encoder.name
        self.queue_size, self.temperature, self.momentum = queue_size, temperature, momentum
        self.exclude, self.unfilled, self.bn_groups = exclude, unfilled, bn_groups
        self.lr, self.weight_decay, self.schedule, self.views = lr, weight_decay, schedule, views

        features = self.encoder.channels[5]
        self.head: nn.Module = nn.Linear(features, dim)
        if mlp:
            self.head = nn.Sequential(nn.Linear(features, features), nn.ReLU(), self.head)
        self.key_encoder = deepcopy(self.encoder).requires_grad_(False)
        self.key_head = deepcopy(self.head).requires_grad_(False)
        self.queue = KeyQueue(queue_size, dim, allow_resize=allow_queue_resize)
        # Equal on all ranks by construction: DDP need not send half a gigabyte at every step.
        self._ddp_params_and_buffers_to_ignore = [
            f"queue.{n}" for n, _ in self.queue.named_buffers()
        ]
        self.contrast: Contrast | None = None
        self.held: list[Keys] = []

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor | None]:
        (query_view, key_view), label, index = as_batch(batch)
        features, queries = self._encode_queries(query_view)
        keys, own = self._encode_keys(key_view, batch_idx)
        losses, won = self._against_queue(queries, keys[own], label, index)
        loss = losses.mean() * share(len(losses), len(keys))
        self.held.append(Keys(keys, _gathered(label), _gathered(index)))  # enqueued after the step
        self.contrast = Contrast(queries.detach(), keys[own], label, index)
        self._log_step(self.contrast, loss, won)
        return {"loss": loss, "features": features.detach(), "label": label}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)  # runs training_step and backward, then steps
        ema_update(self.encoder, self.key_encoder, self.momentum)
        ema_update(self.head, self.key_head, self.momentum)
        for keys in self.held:
            self.queue.enqueue(*keys)
        self.held.clear()

    def _log_step(self, contrast: Contrast, loss: Tensor, won: Tensor) -> None:
        every = max(1, getattr(self.trainer, "log_every_n_steps", 1))
        if (self.trainer.global_step + 1) % every == 0:  # the steps whose values Lightning writes
            self.log_dict(self.queue_shares(contrast.labels, contrast.indices))
            self.log("queue_fill", self.queue.filled / len(self.queue))
        self.log("lr", float(self.trainer.optimizers[0].param_groups[0]["lr"]))
        self.log("loss", loss.detach(), prog_bar=True)
        self.log("pretext_acc", 100 * won.float().mean(), prog_bar=True)

    def _encode_queries(
        self, images: Tensor, bn_groups: BNGroups | None = None
    ) -> tuple[Tensor, Tensor]:
        """Pooled features (N, F) and unit queries (N, C)."""
        with split_batch_norm(count_bn_groups(len(images), bn_groups or self.bn_groups)):
            features = pooled(self.encoder, images)
        return features, _unit(self.head(features))

    @torch.no_grad()
    def _encode_keys(
        self,
        images: Tensor,
        batch_idx: int,
        bn_groups: BNGroups | None = None,
        *,
        shuffle: bool = True,
    ) -> tuple[Tensor, slice]:
        """Unit keys of all ranks, and the slice of this rank's; no gradient, shuffled BN.

        Without ``shuffle`` those of this rank alone, each beside the images its query was beside.
        """

        def encode(images: Tensor) -> Tensor:
            with split_batch_norm(count_bn_groups(len(images), bn_groups or self.bn_groups)):
                return _unit(self.key_head(pooled(self.key_encoder, images)))

        if not shuffle:
            return encode(images), slice(None)
        seed = (self.global_step << 20) + batch_idx  # the same after a resume, on all ranks
        return encode_shuffled(encode, images, seed=seed)

    def _against_queue(
        self, queries: Tensor, positives: Tensor, label: Tensor | None, index: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Losses (N,), and whether the positive has the largest logit, bool (N,)."""
        keys, query_same, key_same = self.negatives(label, index)
        return info_nce_rows(
            queries,
            positives,
            keys,
            temperature=self.temperature,
            query_labels=query_same,
            key_labels=key_same,
        )

    def negatives(
        self, label: Tensor | None, index: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The queue's keys, and what ``exclude`` compares of queries and keys.

        Args:
            label: of the queries, (N,) integers, or None.
            index: of their images, (N,) integers, or None.

        Returns:
            Keys (K, C), and the labels or indices of queries (N,) and keys (K,) that must differ; None
            twice where nothing is left out. K counts real keys alone with ``unfilled="masked"``.
        """
        keys, labels, indices = self._queued()
        return {
            "none": (keys, None, None),
            "image": (keys, index, indices),
            "label": (keys, label, labels),
        }[self.exclude]

    def queue_shares(self, label: Tensor | None, index: Tensor | None) -> dict[str, Tensor]:
        """``filtered`` and ``own_image``, as shares of all pairs of these images with the keys.

        Args:
            label: of the images, (N,) integers, or None.
            index: (N,) integers, or None.
        """
        keys, labels, indices = self._queued()
        zero = torch.zeros((), device=keys.device)
        own_image = zero if index is None else equal_share(index, indices)
        if self.exclude == "image":
            return {"filtered": own_image, "own_image": zero}
        if self.exclude == "none" or label is None:
            return {"filtered": zero, "own_image": own_image}
        if index is not None:  # a labelled image's own keys have its label, hence are left out
            own_image = equal_share(torch.where(label < 0, index, NO_LABEL), indices)
        return {"filtered": equal_share(label, labels), "own_image": own_image}

    def _queued(self) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, labels and indices of the slots that the loss reads."""
        slots = None if self.unfilled == "noise" else int(self.queue.filled)
        return self.queue.keys[:slots], self.queue.labels[:slots], self.queue.indices[:slots]

    @torch.no_grad()
    def pretext(
        self,
        batch: Any,
        batch_idx: int = 0,
        *,
        bn_groups: BNGroups | None = None,
        shuffle: bool = True,
    ) -> Tensor:
        """Whether the positive has the largest logit, bool (N,), as in a training step.

        Like a step in training mode it moves BN statistics, but nothing else.

        Args:
            batch: of this rank, ``((query view, key view), label, index)``.
            batch_idx: with the step, the seed of the permutation.
            bn_groups: other groups than those the method trains with.
            shuffle: without it a query and its key share their BN statistics.

        Raises:
            ValueError: for a batch that the method cannot train on.
        """
        self._check(batch)
        (query_view, key_view), label, index = as_batch(batch)
        _, queries = self._encode_queries(query_view, bn_groups)
        keys, own = self._encode_keys(key_view, batch_idx, bn_groups, shuffle=shuffle)
        return self._against_queue(queries, keys[own], label, index)[1]

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor | None]:
        """Features for the callbacks that probe the encoder; changes nothing here."""
        views, label, index = as_batch(batch)
        return {"features": pooled(self.encoder, views[0]), "label": label, "index": index}

    test_step = validation_step

    def configure_optimizers(self) -> OptimizerLRScheduler:
        parameters = [*self.encoder.parameters(), *self.head.parameters()]
        return sgd(
            parameters,
            self.trainer,
            lr=self.lr,
            weight_decay=self.weight_decay,
            schedule=self.schedule,
        )

    def on_train_start(self) -> None:
        checks.refuse_sync_batch_norm(self)
        checks.refuse_half_parameters(self)
        checks.warn_of_one_bn_group(self)
        checks.warn_of_own_images(self)
        checks.check_equal_on_all_ranks(self.queue)
        self.held.clear()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self._check(batch)

    def _check(self, batch: Any) -> None:
        needs = {"none": "", "image": "index", "label": "label"}[self.exclude]
        checks.check_batch(self, batch, self.encoder, views=2, needs=needs)

    def configure_callbacks(self) -> list[pl.Callback]:
        return [FiniteCheck(), EpochCount()]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["input"] = describe_input(self.encoder)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for encoder in (self.encoder, self.key_encoder):
            restore_input(encoder, checkpoint["input"])


class MoCoV1(MoCo):
    """MoCo v1 (protocol 1.3): linear head, t = 0.07, step schedule, its own augmentation order.

    Args: those of :class:`MoCo`.
    """

    def __init__(
        self,
        encoder: str | nn.Module = "resnet50",
        *,
        queue_size: int = 65536,
        temperature: float = 0.07,
        momentum: float = 0.999,
        dim: int = 128,
        mlp: bool = False,
        exclude: Exclude = "none",
        unfilled: Unfilled = "noise",
        bn_groups: BNGroups = "auto",
        lr: float = 0.03,
        weight_decay: float = 1e-4,
        schedule: Schedule = "step",
        views: str = "moco_v1",
        allow_queue_resize: bool = False,
    ) -> None:
        super().__init__(
            encoder,
            queue_size=queue_size,
            temperature=temperature,
            momentum=momentum,
            dim=dim,
            mlp=mlp,
            exclude=exclude,
            unfilled=unfilled,
            bn_groups=bn_groups,
            lr=lr,
            weight_decay=weight_decay,
            schedule=schedule,
            views=views,
            allow_queue_resize=allow_queue_resize,
        )


class MoCoV2(MoCo):
    """MoCo v2 (protocol 1.4), the defaults of :class:`MoCo`: MLP head, t = 0.2, cosine.

    Args: those of :class:`MoCo`.
    """


def _unit(x: Tensor) -> Tensor:
    """Rows of unit length, in fp32 at least, also under autocast."""
    return F.normalize(full_precision(x), dim=1)


def _gathered(x: Tensor | None) -> Tensor | None:
    return None if x is None else gather(x)[0]
