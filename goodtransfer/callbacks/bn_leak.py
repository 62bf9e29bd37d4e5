"""How much batch norm tells a MoCo network which key is the positive."""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from torch import Tensor

from goodtransfer.distributed import gather


class HasPretext(Protocol):
    """What the detector asks of a method; see :class:`goodtransfer.methods.moco.MoCo`."""

    def pretext(
        self, batch: Any, batch_idx: int = 0, *, bn_groups: Any = None, shuffle: bool = True
    ) -> Tensor:
        """Whether the positive has the largest logit, bool (N,), as in a training step."""


class BNLeak(pl.Callback):
    """Measure in each epoch what sharing batch norm statistics is worth; see :func:`bn_leak`.

    For MoCoV1, MoCoV2 and ExemplarMoCo. On the last batches of an epoch, each before its step, so
    that the queue holds no keys of theirs; of a loader that does not know how many batches it has,
    on the first. A batch costs six forward passes, about one and a half steps.

    Args:
        every_n_epochs: measure in the epochs whose number, from 1, it divides.
        batches: in such an epoch. A few hundred images tell a gap to some points.
        threshold: gap, in points, above which to warn. A sound network has a gap, too, since with
            shared statistics its two views differ less. Of small networks on drawn images (that of
            ``tests/callbacks/test_bn_leak.py``, three seeds, 200 to 800 steps) it was 3 to 9 after
            training in 8 groups, 11 to 18 in 2, which hide half, and 23 to 29 in one.

    Logs: ``bn_leak/acc_as_trained``, ``bn_leak/acc_separate_statistics``,
    ``bn_leak/acc_shared_statistics`` and ``bn_leak/gap``, in percent and points, over all ranks.

    Attributes:
        values: what was logged last.

    Raises:
        ValueError: for numbers below 1; before the first step, for another method.
    """

    def __init__(
        self, every_n_epochs: int = 1, *, batches: int = 4, threshold: float = 20.0
    ) -> None:
        if every_n_epochs < 1 or batches < 1:
            raise ValueError(
                "Expected `every_n_epochs` and `batches` to be above 0, but got "
                f"{every_n_epochs} and {batches}."
            )
        self.every_n_epochs, self.batches, self.threshold = every_n_epochs, batches, threshold
        self.values: dict[str, float] = {}
        self._counts: Tensor | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        _check(pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._counts = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        known = not math.isinf(trainer.num_training_batches)
        first = max(0, int(trainer.num_training_batches) - self.batches) if known else 0
        due = (trainer.current_epoch + 1) % self.every_n_epochs == 0
        if due and first <= batch_idx < first + self.batches:
            with trainer.precision_plugin.train_step_context():
                counts = _count(pl_module, batch, batch_idx)
            self._counts = counts if self._counts is None else self._counts + counts

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._counts is None:
            return
        found = _percent(self._counts)
        self.values = {f"bn_leak/{name}": value for name, value in found.items()}
        pl_module.log_dict(self.values, sync_dist=True)
        if found["gap"] > self.threshold and trainer.is_global_zero:
            warnings.warn(
                "Batch norm gives keys away: where a query and its key share its statistics, "
                f"pretext accuracy is {found['acc_shared_statistics']:.0f} %, and "
                f"{found['acc_separate_statistics']:.0f} % where they do not: use "
                "bn_groups='auto', or a larger batch or more ranks for more groups.",
                stacklevel=2,
            )


def bn_leak(method: pl.LightningModule, batch: Any, batch_idx: int = 0) -> dict[str, float]:
    """Pretext accuracy of a MoCo method on a batch, with and without shared BN statistics.

    Batch norm makes a feature depend on the images beside it. If the query's and the key's are the
    same ones, a network can tell its key from the queue's by that alone ("The model appears to
    'cheat' the pretext task and easily finds a low-loss solution", MoCo, Sec. 3.3), and learns less
    of the images. So: the same images, networks and queue, batch norm in groups of 32 (the paper's
    batch per GPU; at least two on one device), and either

    * **separate**: the keys are permuted first, over all ranks, so that a key's group is another
      one than its query's, up to 1 / groups of the images; or
    * **shared**: they are not, so that both groups hold the same images.

    The gap between the two is what the statistics tell. ``acc_as_trained`` is with the method's own
    ``bn_groups``: on one device, with 1, it has shared statistics itself.

    The method is left as it was: BN buffers, queue, both networks and the generators.

    Args:
        method: MoCoV1, MoCoV2 or ExemplarMoCo, in training mode, its queue filled by training.
        batch: as in training, ``((query view, key view), label, index)``, on the method's device,
            whose keys are not in the queue.
        batch_idx: with the step, the seed of the permutation.

    Returns:
        ``acc_as_trained``, ``acc_separate_statistics``, ``acc_shared_statistics``, in percent of
        the images of all ranks, and ``gap``, shared minus separate.

    Raises:
        ValueError: for another method, one in eval mode, or a batch that it cannot train on.

    >>> from goodtransfer.methods import MoCoV2
    >>> method = MoCoV2("resnet10w8", queue_size=16, dim=8)
    >>> found = bn_leak(method, [torch.rand(2, 8, 3, 32, 32).unbind()])
    >>> sorted(found)
    ['acc_as_trained', 'acc_separate_statistics', 'acc_shared_statistics', 'gap']
    >>> int(method.queue.filled)
    0
    """
    _check(method)
    if not method.training:
        raise ValueError(
            "Expected a method in training mode, in which batch norm takes the statistics of the "
            "batch, but it is in eval mode: call method.train()."
        )
    return _percent(_count(method, batch, batch_idx))


def _check(method: pl.LightningModule) -> None:
    if not hasattr(method, "pretext"):
        raise ValueError(
            "Expected MoCoV1, MoCoV2 or ExemplarMoCo to measure what batch norm gives away, but "
            f"got {type(method).__name__}: remove BNLeak."
        )


def _count(module: pl.LightningModule, batch: Any, batch_idx: int) -> Tensor:
    """Images whose positive wins as trained, separate and shared, and all images, (4,)."""
    method: HasPretext = module  # type: ignore[assignment]
    won = []
    for passes in ({}, {"bn_groups": "auto"}, {"bn_groups": "auto", "shuffle": False}):
        with _untouched(module):
            won.append(method.pretext(batch, batch_idx, **passes))
    counts = torch.stack(
        [*(w.sum() for w in won), won[0].new_tensor(len(won[0]), dtype=torch.long)]
    )
    return gather(counts.unsqueeze(0))[0].sum(0)


def _percent(counts: Tensor) -> dict[str, float]:
    trained, separate, shared = (100 * counts[:3] / counts[3]).tolist()
    return {
        "acc_as_trained": trained,
        "acc_separate_statistics": separate,
        "acc_shared_statistics": shared,
        "gap": shared - separate,
    }


@contextmanager
def _untouched(module: pl.LightningModule) -> Iterator[None]:
    """Put buffers and generators back; the queue is large, and only an optimizer step changes it."""
    buffers = [b for name, b in module.named_buffers() if not name.startswith("queue.")]
    before = [b.clone() for b in buffers]
    devices = [module.device] if module.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        yield
    for buffer, value in zip(buffers, before, strict=True):
        buffer.copy_(value)
