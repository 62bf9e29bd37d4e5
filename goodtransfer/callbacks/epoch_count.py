"""Lightning's counts of epochs and saved steps, kept right through a run that is resumed more than once."""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint


class EpochCount(pl.Callback):
    """Within an epoch one more has begun than has been gone through; methods bring this themselves.

    Lightning 2.6 forgets to count the epoch that it begins where it goes on from a checkpoint of an
    epoch's last batch. Nothing shows until that run is resumed once more: then the epoch starts over,
    with steps that an uninterrupted run does not have. (Its ``fit_loop.on_advance_start`` passes over
    ``increment_ready``; ``tests/reliability/test_kills.py`` fails without this.)

    Its ``ModelCheckpoint(every_n_train_steps=N)`` forgets which step it saved. Resumed from that step it
    saves again within the next one, whose accumulated gradients a second resume then has not.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint):
                callback._last_global_step_saved = trainer.global_step

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        count_epoch(trainer)


def count_epoch(trainer: pl.Trainer) -> None:
    """Count the epoch that a batch is of, where Lightning has not."""
    progress: Any = trainer.fit_loop.epoch_progress
    if progress.current.ready == progress.current.processed:
        progress.increment_ready()
        progress.increment_started()
