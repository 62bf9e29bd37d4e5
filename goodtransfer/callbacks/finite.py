"""Numbers gone wrong: NaN and Inf end a run at the step they arise in, with what is needed to see why."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch import Tensor


class FiniteCheck(pl.Callback):
    """Stop when the loss, a gradient or a new key is NaN or infinite; methods and tasks bring it themselves.

    All but the linear readout, whose largest rates may diverge.

    The batch of that step is saved as ``nonfinite_step_STEP_rank_RANK.pt`` in the trainer's folder:
    ``torch.load`` gives step, epoch, batch, and which numbers were wrong.

    Under ``precision="16-mixed"`` on a GPU infinite gradients are no failure while the scaler, which skips
    that step and halves its scale, has one of 1 or more.

    On a GPU the check waits for each step to end, as a progress bar that shows the loss does.

    Raises:
        FloatingPointError: in the step, naming it, what is wrong, the images' indices and the file.
    """

    def __init__(self) -> None:
        self._batch: Any = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._batch = batch

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor
    ) -> None:
        if not loss.isfinite():
            parts = getattr(pl_module, "losses", {})  # a task's, of this batch
            told = ", ".join(f"{name} {value.item():.3g}" for name, value in parts.items())
            self._stop(trainer, pl_module, f"the loss is {loss.item()}" + f" ({told})" * bool(told))
        for held in getattr(pl_module, "held", ())[-1:]:  # of this forward
            if not held.keys.isfinite().all():
                self._stop(trainer, pl_module, "keys for the queue are not finite")

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Of each batch, also where several are accumulated: the next one would be blamed.
        precision = trainer.precision_plugin
        scaler = precision.scaler if isinstance(precision, MixedPrecision) else None
        if scaler is not None and scaler.get_scale() >= 1:
            return
        grads = [p.grad for p in pl_module.parameters() if p.grad is not None]
        if not grads:
            return
        # A sum is finite where all are, but for an overflow, which is looked at once more.
        sums = torch.stack([norm.float() for norm in torch._foreach_norm(grads)])
        if not sums.isfinite().all():
            wrong = [
                name
                for name, p in pl_module.named_parameters()
                if p.grad is not None and not p.grad.isfinite().all()
            ]
            if wrong:
                more = f" and of {len(wrong) - 3} more" if len(wrong) > 3 else ""
                what = f"gradients of {', '.join(wrong[:3])}{more} are not finite"
                self._stop(trainer, pl_module, what)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._batch = None

    def _stop(self, trainer: pl.Trainer, pl_module: pl.LightningModule, what: str) -> None:
        step, indices = trainer.global_step, _indices(self._batch)
        folder = Path(trainer.default_root_dir)
        file = folder / f"nonfinite_step_{step:06d}_rank_{trainer.global_rank}.pt"
        known = {"step": step, "epoch": trainer.current_epoch, "what": what, "indices": indices}
        folder.mkdir(parents=True, exist_ok=True)
        torch.save({**known, "batch": _plain(self._batch)}, file)
        images = "without indices" if indices is None else f"of images {_listed(indices)}"
        raise FloatingPointError(
            f"Expected finite numbers, but in step {step} {what}, on a batch {images}: it is kept in "
            f"{file}. Lower the learning rate, or look at those images and the encoder's weights."
        )


def _indices(batch: Any) -> list[int] | None:
    """Of ``((view, ...), label, index)``, or of a task's targets, the ``image_id`` of each or of all."""
    if not isinstance(batch, tuple | list) or len(batch) < 2:
        return None
    if len(batch) > 2:
        return batch[2].tolist() if isinstance(batch[2], Tensor) else None
    targets = batch[1] if isinstance(batch[1], tuple | list) else [batch[1]]
    known = [t["image_id"] for t in targets if isinstance(t, Mapping) and "image_id" in t]
    return [int(n) for number in known for n in torch.as_tensor(number).reshape(-1)] or None


def _listed(indices: list[int], shown: int = 8) -> str:
    more = f" and {len(indices) - shown} more" if len(indices) > shown else ""
    return ", ".join(map(str, indices[:shown])) + more


def _plain(batch: Any) -> Any:
    """Tuples and lists of tensors on the CPU, which ``torch.load`` reads without running code."""
    if isinstance(batch, np.ndarray | np.generic):  # polygons
        number = batch.dtype.kind in "biufc"
        batch = torch.from_numpy(np.array(batch)) if number else batch.tolist()
    if isinstance(batch, Tensor):
        return batch.detach().cpu()
    if isinstance(batch, tuple | list):
        return [_plain(part) for part in batch]
    if isinstance(batch, dict):
        return {name: _plain(part) for name, part in batch.items()}
    return batch
