"""Batch norm's statistics made anew before a score, as upstream (protocol 3.3)."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from copy import copy
from itertools import count, islice
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader
from tqdm import tqdm

from goodtransfer.distributed import world_size


@torch.no_grad()
def average_statistics(
    network: nn.Module,
    run: Callable[[int, Any], object],
    loader: Iterable[Any] | None,
    batches: int,
) -> None:
    """Make BN's statistics the true average over training batches and ranks; ends in eval mode.

    Source: fvcore's ``update_bn_stats`` as of MoCo's release, by detectron2's ``PreciseBN``.

    Args:
        network: whose statistics they are.
        run: sends a batch, given with its number, through the network.
        loader: is begun again when it ends; None leaves the statistics as they are.
        batches: how many; 0 leaves the statistics as they are.

    Raises:
        ValueError: for a loader without batches.
    """
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm)]
    if loader is None or not batches or not norms:
        network.eval()
        return
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over all batches
    network.train()
    bar = tqdm(islice(_forever(loader), batches), "precise BN", batches, leave=False, disable=None)
    for number, batch in enumerate(bar):
        run(number, batch)
    for buffer in (b for m in norms for b in (m.running_mean, m.running_var)):
        if world_size() > 1 and buffer is not None:
            dist.all_reduce(buffer)
            buffer /= world_size()
    network.eval()


def training_loader(trainer: pl.Trainer) -> Iterable[Any] | None:
    """A loader of its own from the data module; else the one that the fit has, if any."""
    data = getattr(trainer, "datamodule", None)
    if data is not None:
        if trainer.state.fn != "fit":
            data.setup("fit")  # where a user's module may make its training set
        return data.train_dataloader()  # type: ignore[no-any-return]
    if trainer.train_dataloader is None:
        warnings.warn(
            "Batch norm is scored with its running statistics, since there are no training images "
            "to make them precisely: pass the data module to Trainer.test, too.",
            stacklevel=2,
        )
    loader = copy(trainer.train_dataloader)
    if isinstance(loader, DataLoader):
        loader._iterator = None  # persistent workers go on with the fit's own batches
    return loader


def _forever(loader: Iterable[Any]) -> Iterator[Any]:
    """The loader's batches, epoch after epoch."""
    for epoch in count():
        sampler: Any = getattr(loader, "sampler", None)
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
        empty = True
        for batch in loader:
            empty = False
            yield batch
        if empty:
            raise ValueError(
                "Expected training batches to make batch norm's statistics, but the loader gave none: "
                "lower its batch_size, or pass precise_bn=0."
            )
