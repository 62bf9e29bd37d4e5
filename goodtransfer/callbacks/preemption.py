"""SIGTERM, as schedulers send it before they take a machine away: save, and say that it was not success."""

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint
from pytorch_lightning.utilities import rank_zero_info
from pytorch_lightning.utilities.exceptions import SIGTERMException

from goodtransfer.callbacks.epoch_count import count_epoch
from goodtransfer.distributed import gather, world_size

_CODE = 128 + signal.SIGTERM


class SaveOnSigterm(pl.Callback):
    """At SIGTERM save at the end of the next optimizer step, and end with exit code 143.

    Lightning by itself stops after whatever batch it is in, which loses gradients that were being
    accumulated, and ends with exit code 0, which schedulers read as success. Here all ranks agree on the
    step, also where only one of them was told. The run goes on with ``ckpt_path=callback.path``, which is
    printed.

    Args:
        path: of the checkpoint; None is ``preempted.ckpt`` beside those of the trainer's
            ``ModelCheckpoint``, or in its ``default_root_dir``.

    >>> SaveOnSigterm("runs/preempted.ckpt").path.as_posix()
    'runs/preempted.ckpt'
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path)
        self._told = False
        self._before: Any = None
        self._step = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        # After all that learns or logs in a step, such as `OnlineProbe`: it belongs to what is saved.
        of: Any = trainer
        others = [callback for callback in of.callbacks if callback is not self]
        saving = [callback for callback in others if isinstance(callback, Checkpoint)]
        of.callbacks = [c for c in others if c not in saving] + [self, *saving]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._told, self._step = False, trainer.global_step
        if threading.current_thread() is threading.main_thread():  # which alone hears signals
            # In place of Lightning's, which talks to the other ranks from within the handler.
            self._before = signal.signal(signal.SIGTERM, self._hear)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._told = True

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        count_epoch(trainer)  # what is saved is to be gone on from, also without `EpochCount`

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        stepped, self._step = trainer.global_step != self._step, trainer.global_step
        if not (stepped and self._any_told(pl_module)):
            return
        self._save(trainer)
        self._told = False
        # Lightning then ends the fit once it has logged this step.
        trainer._signal_connector.received_sigterm = True

    def _save(self, trainer: pl.Trainer) -> None:
        if self.path is None:
            saved = trainer.checkpoint_callback
            folder = saved.dirpath if isinstance(saved, ModelCheckpoint) else None
            self.path = Path(folder or trainer.default_root_dir) / "preempted.ckpt"
        trainer.save_checkpoint(self.path)
        rank_zero_info(f"SIGTERM: step {trainer.global_step} is saved, go on from {self.path}")

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._restore()
        if self._any_told(pl_module):  # it came after the last step
            self._save(trainer)
            raise SIGTERMException(_CODE)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self._restore()
        if isinstance(exception, SIGTERMException):
            exception.code = _CODE

    def _any_told(self, pl_module: pl.LightningModule) -> bool:
        if world_size() == 1:
            return self._told
        told, _ = gather(torch.tensor([int(self._told)], device=pl_module.device))
        return bool(told.any())

    def _restore(self) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None
