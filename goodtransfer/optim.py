"""Optimizers and schedules: per epoch for pretraining, per iteration for dense tasks."""

import math
from collections.abc import Iterable
from typing import Any, Literal

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


def warmup_step(
    iteration: int, milestones: Iterable[int], warmup: int, warmup_factor: float = 1e-3
) -> float:
    """Factor on the learning rate in ``iteration`` (from 0): linear warm-up, tenths at milestones.

    Source: detectron2@02b5c4e2, ``WarmupMultiStepLR``, with the factor of its defaults.
    """
    alpha = iteration / warmup if iteration < warmup else 1.0
    return (warmup_factor * (1 - alpha) + alpha) * 0.1 ** sum(iteration >= m for m in milestones)


def without_norm_decay(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups: weights and biases decay, those of norm layers do not.

    Source: detectron2@02b5c4e2, ``get_default_optimizer_params`` with WEIGHT_DECAY_NORM 0.
    """
    norms = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm)
    of_norms = {
        id(p) for m in module.modules() if isinstance(m, norms) for p in m.parameters(recurse=False)
    }
    parameters = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if id(p) not in of_norms], "weight_decay": weight_decay},
        {"params": [p for p in parameters if id(p) in of_norms], "weight_decay": 0.0},
    ]


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


def poly(iteration: int, iterations: int, power: float = 0.9, floor: float = 0.0) -> float:
    """Factor on the learning rate in ``iteration`` (from 0): falling to ``floor``, a share of it.

    Source: mmsegmentation's ``schedule_40k`` (protocol 4.3), whose ``min_lr`` is 0.01 of the rate.
    """
    return float((1 - floor) * (1 - iteration / iterations) ** power + floor)
