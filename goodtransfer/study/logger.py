"""What a cell shows and keeps while it runs: one bar, and curves as an append-only file."""

import json
import os
import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only
from tqdm import tqdm

from goodtransfer.study import whole


class CurveLogger(Logger):
    """A JSON object per logged step. On a resume it is cut back to the checkpoint's step."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self._last = path, ""
        path.touch()  # a fit may end before its first row

    @property
    def name(self) -> str:
        """Lightning asks for it."""
        return "curves"

    @property
    def version(self) -> str:
        """Lightning asks for it."""
        return ""

    @rank_zero_only
    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """The run's arguments are in ``run.json``."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append a row, unless it is the last one once more."""
        row = json.dumps({"step": step, **metrics}) + "\n"
        if row == self._last:
            return
        self._last = row
        with self.path.open("a") as file:
            file.write(row)

    @rank_zero_only
    def cut(self, step: int) -> None:
        """Drop the rows of steps that will be made again."""
        if self.path.is_file():
            rows = self.path.read_text().splitlines(keepends=True)
            kept = [row for row in rows if row.endswith("\n") and json.loads(row)["step"] < step]
            whole.write(self.path, "".join(kept))  # a kill leaves all rows, or those kept


class CellBar(pl.Callback):
    """One progress bar for a whole fit, in steps; and the curves cut where the fit goes on."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.bar: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if isinstance(trainer.logger, CurveLogger):
            trainer.logger.cut(trainer.global_step)
        total, done = int(trainer.estimated_stepping_batches), trainer.global_step
        # Below the study's bar, or rarely into a log.
        place: Any = (
            {"position": 1, "mininterval": 1.0} if sys.stderr.isatty() else {"mininterval": 60.0}
        )
        self.bar = tqdm(
            total=total, initial=done, desc=self.title, unit="step", leave=False,
            disable=not trainer.is_global_zero or bool(os.environ.get("TQDM_DISABLE")), **place,
        )  # fmt: skip
        if done:
            tqdm.write(f"{self.title}: going on at step {done} of {total}", file=sys.stderr)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self.bar.update(trainer.global_step - self.bar.n)
        if isinstance(trainer.logger, CurveLogger):
            # Lightning logs a step after it has been saved, so that a kill in between would lose its row.
            trainer._logger_connector.update_train_step_metrics()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        shown = {k: f"{float(v):.3g}" for k, v in trainer.progress_bar_metrics.items()}
        self.bar.set_postfix(shown)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self.bar is not None:
            self.bar.close()
