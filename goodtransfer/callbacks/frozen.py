"""Proof, while training, that a frozen module stays frozen."""

import pytorch_lightning as pl
import torch
from torch import Tensor


class FrozenCheck(pl.Callback):
    """Compare a submodule with itself as it was at the start of the fit, bit for bit.

    Weights and buffers: BN statistics move in training mode without any gradient, which is how
    linear readouts are spoilt unnoticed. MoCo checks the same at the end of its readout
    (facebookresearch/moco@132aea9: main_lincls.py, ``sanity_check``).

    Args:
        module: name of the submodule of the LightningModule, such as ``"encoder"``.

    Raises:
        RuntimeError: at the end of the epoch in which a tensor moved, naming it.
    """

    def __init__(self, module: str) -> None:
        self.module = module
        self._before: dict[str, Tensor] = {}

    def _state(self, pl_module: pl.LightningModule) -> dict[str, Tensor]:
        return pl_module.get_submodule(self.module).state_dict()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._before = {name: value.clone() for name, value in self._state(pl_module).items()}

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        now = self._state(pl_module)
        moved = [name for name, value in self._before.items() if not torch.equal(value, now[name])]
        if moved:
            raise RuntimeError(
                f"Expected `{self.module}` to stay frozen, but {len(moved)} of {len(now)} tensors "
                f"moved during training, among them {', '.join(moved[:3])}: keep it in eval mode "
                "and out of the optimizer."
            )
