"""Instance discrimination with a memory bank (Wu et al. 2018; protocol 1.7).

Shapes: N = images of one rank's batch, M = images of the data set, K = negatives, C = feature
dimension.
"""

from random import Random
from typing import Any, Literal, NamedTuple

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from goodtransfer.callbacks.epoch_count import EpochCount
from goodtransfer.callbacks.finite import FiniteCheck
from goodtransfer.distributed import gather, rank, share
from goodtransfer.encoders import Encoder, pooled
from goodtransfer.losses import (
    bank_scores,
    full_precision,
    info_nce_rows,
    nce_normalizer,
    nce_rows,
)
from goodtransfer.methods import checks
from goodtransfer.momentum import MemoryBank
from goodtransfer.optim import Schedule, sgd
from goodtransfer.views import as_batch
from goodtransfer.weights import describe_input, load_encoder, restore_input

Loss = Literal["nce", "softmax"]
_ALL = 2**62  # negatives: the bank, whatever its size


class _Seen(NamedTuple):
    """What one forward leaves for the bank: of all ranks, rank-major."""

    indices: Tensor
    features: Tensor


class InstDisc(pl.LightningModule):
    """Every image is a class of its own, whose weight is its last feature: a row of the memory bank.

    The step follows the official code (zhirongw/lemniscate.pytorch@f7cfe29: lib/NCEAverage.py,
    LinearAverage.py). There a row is updated within the backward pass; here right after the
    optimizer's step, which gives the same numbers, once per step also under gradient accumulation,
    and before any callback saves a checkpoint.

    Batches are ``((view,), label, index)``, label optional (:class:`goodtransfer.views.Batch`). The
    defaults are for a batch of 256 in all; the learning rate is never rescaled. NCE wants a large data
    set: its Z is that of the first batch, when rows are noise, so where an epoch takes few steps all
    rows are replaced before the encoder has learned, and it may collapse: take the softmax there.

    Args:
        encoder: a name, a weight file (see ``weights.load_encoder``), or a module.
        num_images: M, with indices from 0 to M - 1; None takes the data module's.
        loss: ``"nce"``, or ``"softmax"`` over rows of the bank, as in upstream's updated model.
        negatives: K. For NCE of each image, drawn from the bank with replacement, its own row among
            them (upstream). For softmax drawn once per batch, without own rows; None is all of the
            bank, as is a K of M and more. ``"auto"`` is 4,096 for NCE and 65,536 for softmax.
        temperature: t of the scores, above 0.
        momentum: of a row, in its update.
        dim: C.
        lr: learning rate.
        weight_decay: on every parameter.
        schedule: per epoch, over ``trainer.max_epochs``: ``"cosine"`` or ``"step"``.
        views: name of the recipe a data module takes when its own ``views`` is None.
        seed: of the negatives, a function of it, the step and the rank.

    Attributes:
        bank: known from set-up on; the same on all ranks.
        normalizer: NCE's Z, estimated from the first batch of all ranks; 0 before.

    Logs: ``loss``, ``pretext_acc`` (%, the own row has the largest score) and ``lr``.

    Raises:
        ValueError: before the first step, for arguments, batches or trainers that cannot work.
    """

    bank: MemoryBank
    normalizer: Tensor

    # Equal on all ranks by construction: DDP need not send half a gigabyte at every step.
    _ddp_params_and_buffers_to_ignore = ("bank.rows", "normalizer")

    def __init__(
        self,
        encoder: str | nn.Module = "resnet50",
        *,
        num_images: int | None = None,
        loss: Loss = "nce",
        negatives: int | Literal["auto"] | None = "auto",
        temperature: float = 0.07,
        momentum: float = 0.5,
        dim: int = 128,
        lr: float = 0.03,
        weight_decay: float = 1e-4,
        schedule: Schedule = "step",
        views: str = "instdisc",
        seed: int = 0,
    ) -> None:
        super().__init__()
        checks.check_positive(temperature=temperature, lr=lr, dim=dim)
        checks.check_choice("loss", loss, Loss)
        checks.check_choice("schedule", schedule, Schedule)
        if not 0 <= momentum < 1:
            raise ValueError(f"Expected argument `momentum` in [0, 1), but got {momentum}.")
        if negatives is None and loss == "nce":
            raise ValueError(
                "Expected a number of `negatives`, which NCE draws, but got None: it is for "
                "loss='softmax' over all of the bank."
            )
        self.encoder: Encoder = checks.trained(load_encoder(encoder))
        self.save_hyperparameters(ignore="encoder")  # as given: it reads the local names
        self.hparams["encoder"] = self.encoder.name
        if negatives == "auto":
            negatives = {"nce": 4096, "softmax": 65_536}[loss]
        negatives = _ALL if negatives is None else negatives
        checks.check_positive(negatives=negatives)
        self.loss, self.negatives, self.temperature = loss, negatives, temperature
        self.momentum, self.dim, self.seed = momentum, dim, seed
        self.lr, self.weight_decay, self.schedule, self.views = lr, weight_decay, schedule, views
        self.head = nn.Linear(self.encoder.channels[5], dim)
        self.register_buffer("normalizer", torch.tensor(0.0))
        self._held: list[_Seen] = []
        if num_images is not None:
            self._add_bank(num_images)

    def _add_bank(self, num_images: int) -> None:
        checks.check_positive(num_images=num_images)
        self.bank = MemoryBank(num_images, self.dim).to(self.normalizer)
        self.hparams["num_images"] = num_images

    def setup(self, stage: str) -> None:
        if self.hparams["num_images"] is None:
            num_images = getattr(getattr(self.trainer, "datamodule", None), "num_images", None)
            if num_images is None:
                raise ValueError(
                    "Expected the number of images, but num_images=None and no data module knows "
                    "it: pass InstDisc(num_images=...)."
                )
            self._add_bank(num_images)

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor | None]:
        views, label, index = as_batch(batch)
        indices: Any = index  # there are some: on_train_batch_start has looked
        features = pooled(self.encoder, views[0])
        queries = F.normalize(full_precision(self.head(features)), dim=1)
        compare = {"nce": self._nce, "softmax": self._softmax}[self.loss]
        losses, won = compare(queries, indices, batch_idx)
        seen = _Seen(gather(indices)[0], gather(queries.detach())[0])
        self._held.append(seen)
        loss = losses.mean() * share(len(losses), len(seen.indices))
        self.log("lr", float(self.trainer.optimizers[0].param_groups[0]["lr"]))
        self.log("loss", loss.detach(), prog_bar=True)
        self.log("pretext_acc", 100 * won.float().mean(), prog_bar=True)
        return {"loss": loss, "features": features.detach(), "label": label}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)  # runs training_step and backward, then steps
        for seen in self._held:
            self.bank.update(*seen, self.momentum)
        self._held.clear()

    def _nce(self, queries: Tensor, index: Tensor, batch_idx: int) -> tuple[Tensor, Tensor]:
        """Losses (N,) and whether the own row won, bool (N,)."""
        drawn = self._draw((len(index), self.negatives), batch_idx)
        indices = torch.cat([index.unsqueeze(1), drawn], dim=1)
        scores = bank_scores(queries, self.bank.rows, indices) / self.temperature
        if not self._normalized:
            self._normalize(scores.detach())
        losses = nce_rows(scores, images=len(self.bank), normalizer=self.normalizer)
        return losses, scores[:, 0] >= scores[:, 1:].amax(1)

    def _softmax(self, queries: Tensor, index: Tensor, batch_idx: int) -> tuple[Tensor, Tensor]:
        """As :meth:`_nce`: the own row is the positive, and nobody's negative."""
        rows, images = self.bank.rows, len(self.bank)
        indices = torch.arange(images, device=self.device)
        keys = rows
        if self.negatives < images:
            indices = self._draw((self.negatives,), batch_idx)
            keys = rows[indices]
        return info_nce_rows(
            queries,
            rows[index],
            keys,
            temperature=self.temperature,
            query_labels=index,
            key_labels=indices,
        )

    def _draw(self, shape: tuple[int, ...], batch_idx: int) -> Tensor:
        """Indices of rows, the same after a resume."""
        chance = Random(repr((self.seed, self.trainer.global_step, batch_idx, rank())))
        generator = torch.Generator(self.device).manual_seed(chance.getrandbits(63))
        return torch.randint(len(self.bank), shape, generator=generator, device=self.device)

    def _normalize(self, scores: Tensor) -> None:
        """Set Z for good. The first loss needs it already, so that this does not wait for the step."""
        all_ranks, _ = gather(scores)
        self.normalizer.copy_(nce_normalizer(all_ranks, len(self.bank)))
        self._normalized = True

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor | None]:
        """Features for the callbacks that probe the encoder; changes nothing here."""
        views, label, index = as_batch(batch)
        return {"features": pooled(self.encoder, views[0]), "label": label, "index": index}

    test_step = validation_step

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return sgd(
            self.parameters(),
            self.trainer,
            lr=self.lr,
            weight_decay=self.weight_decay,
            schedule=self.schedule,
        )

    def on_train_start(self) -> None:
        checks.refuse_half_parameters(self)
        checks.check_image_count(self, len(self.bank))
        checks.check_equal_on_all_ranks(self.bank)
        checks.warn_of_small_bank(self)
        self._normalized = bool(self.normalizer > 0)  # asked once: it takes a wait for the GPU
        self._held.clear()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            checks.check_batch(self, batch, self.encoder, views=1)
            checks.check_index(self, as_batch(batch).index, len(self.bank))

    def configure_callbacks(self) -> list[pl.Callback]:
        return [FiniteCheck(), EpochCount()]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["input"] = describe_input(self.encoder)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        restore_input(self.encoder, checkpoint["input"])
