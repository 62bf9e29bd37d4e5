"""Optimizer and schedules of the pretrainings, as the official code has them: per epoch."""

import math
from collections.abc import Iterable
from typing import Literal

import pytorch_lightning as pl
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

Schedule = Literal["cosine", "step"]

STEP_MILESTONES = (0.6, 0.8)  # epochs 120 and 160 of 200


def cosine(epoch: int, epochs: int) -> float:
    """Factor on the learning rate in ``epoch`` (from 0) of ``epochs``; never quite 0.

    Source: facebookresearch/moco@132aea9, main_moco.py, ``adjust_learning_rate``.
    """
    return 0.5 * (1 + math.cos(math.pi * epoch / epochs))


def step(epoch: int, epochs: int, milestones: Iterable[float] = STEP_MILESTONES) -> float:
    """A tenth more after each milestone, given as a share of all epochs."""
    return float(0.1 ** sum(epoch >= round(share * epochs) for share in milestones))


SCHEDULES = {"cosine": cosine, "step": step}


def sgd(
    parameters: Iterable[nn.Parameter],
    trainer: pl.Trainer,
    *,
    lr: float,
    weight_decay: float,
    schedule: Schedule,
    momentum: float = 0.9,
) -> OptimizerLRScheduler:
    """SGD with a schedule over ``trainer.max_epochs``, decay on every parameter.

    BN and biases decay too, as upstream (protocol 1.3); the learning rate is taken as given.

    Raises:
        ValueError: if the trainer does not know its number of epochs.
    """
    epochs = trainer.max_epochs
    if epochs is None or epochs < 1:
        raise ValueError(
            f"Expected Trainer(max_epochs=...) of at least 1, since the {schedule} schedule spans "
            f"it, but got {epochs}. max_steps may end a run earlier, but cannot replace it."
        )
    optimizer = SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay)
    factor = SCHEDULES[schedule]
    scheduler = LambdaLR(optimizer, lambda epoch: factor(epoch, epochs))
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": scheduler, "interval": "epoch"},
    }
