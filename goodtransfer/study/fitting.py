"""What all cells fit with: a plain Trainer, its checkpoint, its loader processes."""

import logging
import os
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from goodtransfer.callbacks import SaveOnSigterm
from goodtransfer.checkpoints import SafeCheckpointIO, newest_whole
from goodtransfer.study import demands
from goodtransfer.study.logger import CellBar, CurveLogger

LAST = "last.ckpt"
# Steps between two checkpoints within an epoch: minutes on a GPU. An epoch of COCO's detection is hours, and
# not every scheduler's SIGTERM comes to a cell.
EVERY = 1_000


def cell_trainer(
    title: str,
    work: Path,
    epochs: int,
    *,
    callbacks: list[pl.Callback] | None = None,
    **options: Any,
) -> pl.Trainer:
    """A Trainer that says nothing but its bar, with its checkpoint in ``work``.

    It is saved after each epoch, every ``EVERY`` steps within one, and at SIGTERM.
    """
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for hint in (
        "does not have many workers",
        "exists and is not empty",
        "treespec, LeafSpec",
        "`srun` command is available",  # a cell is one process, on a cluster too
        "smaller than the logging interval",
    ):
        warnings.filterwarnings("ignore", message=f".*{hint}.*")
    file: Any = {"dirpath": work, "filename": Path(LAST).stem, "enable_version_counter": False}
    last = [
        ModelCheckpoint(**file, save_on_train_epoch_end=True),
        _WithinEpochs(**file, every_n_train_steps=EVERY),
    ]
    return pl.Trainer(
        max_epochs=epochs,
        devices=1,  # batch sizes are over all; many devices are for `goodtransfer fit`
        logger=CurveLogger(work / "curves.jsonl"),
        # A step is logged and saved when all else has had its part in it.
        callbacks=[*last, *(callbacks or []), CellBar(title), SaveOnSigterm(work / LAST)],
        plugins=[SafeCheckpointIO()],
        default_root_dir=work,
        num_sanity_val_steps=0,
        log_every_n_steps=10,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


class _WithinEpochs(ModelCheckpoint):
    """Not at the end of one, whose validation a resumed run would pass over: another saves after it."""

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            super().on_train_batch_end(trainer, *args)


def checkpoint(work: Path) -> Path | None:
    """The checkpoint to go on from, if there is one that can be read."""
    try:
        return newest_whole(work / LAST)
    except FileNotFoundError:
        return None
    except ValueError as error:
        warnings.warn(f"Starting over: {error}", stacklevel=2)
        return None


def workers() -> int:
    """Loader processes: a core of its own for each beside a GPU, half of the cores where there is none.

    GOODTRANSFER_CORES says how many cores a cell has beside others. Threads that outnumber the free cores
    wait for each other in a spin: on two busy cores that made a step eight times as expensive.
    """
    cores = min(found := demands.cores(), int(os.environ.get("GOODTRANSFER_CORES", found)))
    if torch.cuda.is_available():
        return min(16, cores - 1)
    torch.set_num_threads(max(1, cores - min(8, cores // 2)))
    return min(8, cores // 2)


def plain(metrics: Any) -> dict[str, float]:
    """Logged numbers in plain types."""
    return {name: float(value) for name, value in metrics.items()}
