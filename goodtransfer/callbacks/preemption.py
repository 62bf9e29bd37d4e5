"""SIGTERM, as schedulers send it before they take a machine away: save, and say that it was not success."""

import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import SIGTERMException

from goodtransfer.distributed import gather


class SaveOnSigterm(pl.Callback):
    """At SIGTERM save at the end of the next optimizer step, and end with exit code 143.

    Lightning by itself stops after whatever batch it is in, which loses gradients that were being
    accumulated, and ends with exit code 0, which schedulers read as success. Here all ranks agree on the
    step, also where only one of them was told. The run goes on with ``ckpt_path=callback.path``.

    Args:
        path: of the checkpoint.

    >>> SaveOnSigterm("runs/preempted.ckpt").path.as_posix()
    'runs/preempted.ckpt'
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._told = False
        self._before: Any = None
        self._step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._told, self._step = False, trainer.global_step
        if threading.current_thread() is threading.main_thread():  # which alone hears signals
            # In place of Lightning's, which talks to the other ranks from within the handler.
            self._before = signal.signal(signal.SIGTERM, self._hear)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._told = True

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        stepped, self._step = trainer.global_step != self._step, trainer.global_step
        if not stepped:
            return
        told, _ = gather(torch.tensor([int(self._told)], device=pl_module.device))
        if not told.any():
            return
        trainer.save_checkpoint(self.path)
        # Lightning then ends the fit once it has logged this step.
        trainer._signal_connector.received_sigterm = True

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        if isinstance(exception, SIGTERMException):
            exception.code = 128 + signal.SIGTERM

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None
            if self._told and not trainer.received_sigterm:  # it came after the last step
                os.kill(os.getpid(), signal.SIGTERM)
