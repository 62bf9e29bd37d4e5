"""Optimizers and schedules: per epoch for pretraining, per iteration for dense tasks."""

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR

Schedule = Literal["cosine", "step"]

STEP_MILESTONES = (0.6, 0.8)  # epochs 120 and 160 of 200


def cosine(epoch: int, epochs: int) -> float:
    """Factor on the learning rate in an epoch; never quite 0.

    Source: facebookresearch/moco@132aea9, main_moco.py, ``adjust_learning_rate``.

    Args:
        epoch: counted from 0.
        epochs: of the whole run.

    >>> cosine(0, 200), cosine(100, 200), round(cosine(199, 200), 6)
    (1.0, 0.5, 6.2e-05)
    """
    return 0.5 * (1 + math.cos(math.pi * epoch / epochs))


def step(epoch: int, epochs: int, milestones: Iterable[float] = STEP_MILESTONES) -> float:
    """Factor on the learning rate in an epoch: a tenth, and again a tenth, at each milestone.

    Source: facebookresearch/moco@132aea9, main_moco.py, ``adjust_learning_rate``.

    Args:
        epoch: counted from 0.
        epochs: of the whole run.
        milestones: as shares of ``epochs``.

    >>> [round(step(epoch, 200), 3) for epoch in (119, 120, 160)]
    [1.0, 0.1, 0.01]
    """
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

    Args:
        parameters: of the module that is trained.
        trainer: for its ``max_epochs``.
        lr: learning rate.
        weight_decay: on every parameter.
        schedule: per epoch: ``"cosine"`` or ``"step"``.
        momentum: of SGD.

    Returns:
        What a LightningModule's ``configure_optimizers`` gives.

    Raises:
        ValueError: if the trainer does not know its number of epochs.

    >>> trainer = pl.Trainer(max_epochs=200, accelerator="cpu", logger=False)
    >>> plan = sgd(nn.Linear(2, 2).parameters(), trainer, lr=0.03, weight_decay=1e-4, schedule="cosine")
    >>> plan["optimizer"].param_groups[0]["lr"], plan["lr_scheduler"]["interval"]
    (0.03, 'epoch')
    """
    epochs = _epochs(trainer, schedule)
    optimizer = SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay)
    factor = SCHEDULES[schedule]
    scheduler = LambdaLR(optimizer, lambda epoch: factor(epoch, epochs))
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": scheduler, "interval": "epoch"},
    }


def _epochs(trainer: pl.Trainer, schedule: str) -> int:
    epochs = trainer.max_epochs
    if epochs is None or epochs < 1:
        raise ValueError(
            f"Expected Trainer(max_epochs=...) of at least 1, since the {schedule} schedule spans "
            f"it, but got {epochs}. max_steps may end a run earlier, but cannot replace it."
        )
    return epochs


class LARS(Optimizer):
    """SGD whose step is, for every tensor, a share of that tensor's own length (You et al. 2017).

    ``g = grad + decay * w; v = momentum * v + lr * trust * |w| / |g| * g; w = w - v``. Where w or g is
    0 the ratio is 1. The learning rate is within v, so that a schedule acts on what is added to it
    and not on what it holds, and the length of the loss or of its gradient does not matter.

    Source: google-research/simclr@0075cc0, lars_optimizer.py, with ``classic_momentum``.

    Args:
        parameters: tensors or groups of them; :func:`lars_groups` leaves out norms and biases. A
            group with ``adapt`` False is moved by plain SGD of that momentum.
        lr: learning rate.
        momentum: of v.
        weight_decay: added to the gradient, before its length is taken.
        trust: share of its own length that a tensor moves in a step, at ``lr`` 1.

    >>> w = nn.Parameter(torch.tensor([[3.0, 4.0]]))  # 5 long
    >>> w.grad = torch.tensor([[0.0, 1000.0]])
    >>> LARS([w], lr=1.0, trust=0.1).step()  # moves it by 0.5
    >>> w.data
    tensor([[3.0000, 3.5000]])
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
    ) -> None:
        values = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust}
        super().__init__(parameters, {**values, "adapt": True})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step(group)
        return loss

    def _step(self, group: dict[str, Any]) -> None:
        """One pass over memory for all tensors of a group, and no value that the CPU waits for."""
        weights: list[Tensor] = [w for w in group["params"] if w.grad is not None]
        if not weights:
            return
        grads = [w.grad for w in weights if w.grad is not None]
        if group["weight_decay"]:
            grads = list(torch._foreach_add(grads, weights, alpha=group["weight_decay"]))
        rates: Any = group["lr"]
        if group["adapt"]:
            rates = (rates * _ratios(weights, grads, group["trust"])).unbind()
        for w in weights:
            if "velocity" not in self.state[w]:
                self.state[w]["velocity"] = torch.zeros_like(w)
        velocities = [self.state[w]["velocity"] for w in weights]
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_add_(velocities, torch._foreach_mul(grads, rates))
        torch._foreach_sub_(weights, velocities)


def _ratios(weights: list[Tensor], grads: list[Tensor], trust: float) -> Tensor:
    """``trust * |w| / |g|`` of each tensor, and 1 where either is 0."""
    w, g = (torch.stack(torch._foreach_norm(tensors)) for tensors in (weights, grads))
    return torch.where((w > 0) & (g > 0), trust * w / g, 1.0)


def lars_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for :class:`LARS`: norms and biases neither decay nor adapt.

    Upstream tells them by name ("batch_normalization", "bias"); they are the vectors.
    """
    trained = [p for p in parameters if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0, "adapt": False},
    ]


def warmup_cosine(iteration: int, iterations: int, warmup: int) -> float:
    """Factor on the learning rate in an iteration: from 0 up in a line, then a cosine to 0.

    The first step moves nothing. Source: google-research/simclr@0075cc0, model_util.py,
    ``learning_rate_schedule``.

    Args:
        iteration: counted from 0.
        iterations: of the whole run.
        warmup: the iteration from which it falls.

    >>> [round(warmup_cosine(i, 10, warmup=2), 2) for i in (0, 1, 2, 6, 10)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if iteration < warmup:
        return iteration / warmup
    return cosine(iteration - warmup, iterations - warmup)


def lars(
    parameters: Iterable[nn.Parameter],
    trainer: pl.Trainer,
    *,
    lr: float,
    weight_decay: float,
    warmup_epochs: int,
    momentum: float = 0.9,
) -> OptimizerLRScheduler:
    """LARS with a warm-up and a cosine, per iteration, over ``trainer.max_epochs``.

    Args:
        parameters: of the module that is trained; norms and biases neither decay nor adapt.
        trainer: for its ``max_epochs`` and the length of its loader.
        lr: learning rate at the end of the warm-up, taken as given.
        weight_decay: on weights.
        warmup_epochs: in which the learning rate rises from 0.
        momentum: of LARS.

    Returns:
        What a LightningModule's ``configure_optimizers`` gives.

    Raises:
        ValueError: if the trainer does not know its number of epochs, or they all are warm-up, or
            its loader has no length.

    >>> trainer = pl.Trainer(max_epochs=5, accelerator="cpu", logger=False)
    >>> lars([], trainer, lr=0.3, weight_decay=1e-6, warmup_epochs=10)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: Expected `warmup_epochs` of at least 0 and below the 5 of Trainer(max_epochs=...
    """
    epochs = _epochs(trainer, "cosine")
    if not 0 <= warmup_epochs < epochs:
        raise ValueError(
            f"Expected `warmup_epochs` of at least 0 and below the {epochs} of Trainer(max_epochs="
            f"...), but got {warmup_epochs}: train longer, or pass a smaller one (0 for a short trial)."
        )
    each = _steps_an_epoch(trainer)
    optimizer = LARS(lars_groups(parameters, weight_decay), lr, momentum=momentum)
    scheduler = LambdaLR(
        optimizer, lambda iteration: warmup_cosine(iteration, epochs * each, warmup_epochs * each)
    )
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
    }


def _steps_an_epoch(trainer: pl.Trainer) -> int:
    """Optimizer steps; the last batches of an epoch make one even where they are too few."""
    _ = trainer.estimated_stepping_batches  # has the loader made, so that its length is known
    batches = trainer.num_training_batches
    if math.isinf(batches):
        raise ValueError(
            "Expected a training loader with a length, since the warm-up spans epochs, but this one "
            "has none: pass Trainer(limit_train_batches=...)."
        )
    return math.ceil(batches / trainer.accumulate_grad_batches)


def poly(iteration: int, iterations: int, power: float = 0.9, floor: float = 0.0) -> float:
    """Factor on the learning rate in an iteration, falling from 1 to ``floor``.

    Source: mmsegmentation's ``schedule_40k`` (protocol 4.3), whose ``min_lr`` is 0.01 of the rate.

    Args:
        iteration: counted from 0.
        iterations: of the whole run.
        power: of the part that is left; 1 is a line.
        floor: the factor at the end.

    >>> [round(poly(i, 10, floor=0.01), 3) for i in (0, 5, 10)]
    [1.0, 0.541, 0.01]
    """
    return float((1 - floor) * (1 - iteration / iterations) ** power + floor)
