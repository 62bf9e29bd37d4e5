"""What all data modules share: a folder, a loader, and what is done about what cannot be read."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch.utils.data import Dataset

from goodtransfer.data.loader import EpochSampler, ResumableLoader, loader
from goodtransfer.data.skip import OnError, Skips


class DataModule(pl.LightningDataModule):
    """A data set in a folder; its arguments are explained by the classes that users call."""

    def __init__(
        self,
        root: str | Path,
        *,
        batch_size: int,
        num_workers: int,
        seed: int,
        on_error: OnError,
        max_pixels: int,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"Expected `batch_size` to be positive, but got {batch_size}.")
        self.root, self.batch_size = Path(root).expanduser(), batch_size
        self.num_workers, self.seed, self.max_pixels = num_workers, seed, max_pixels
        self._skips = Skips(on_error)

    @property
    def expected(self) -> Mapping[str, int]:
        """Images of each part, and ``"classes"``, as published; empty for data of your own."""
        return {}

    @property
    def class_names(self) -> list[str]:
        """Of the labels, in their order; empty for images without labels."""
        return []

    def label_names(self, part: str) -> list[str]:
        """Names of the labels of a part: ``class_names``, where a data set has no other."""
        return self.class_names

    @property
    def skipped(self) -> list[str]:
        """What ``on_error="skip"`` has skipped so far, by this rank."""
        return self._skips.skipped

    def teardown(self, stage: str) -> None:
        self._skips.report()

    def on_exception(self, exception: BaseException) -> None:
        """Name the file that a dead loader process was reading: torch notices at any line of a step."""
        trainer: Any = self.trainer
        for given in (trainer.train_dataloader, trainer.val_dataloaders, trainer.test_dataloaders):
            for dealt in given if isinstance(given, list) else [given]:
                fault = dealt.fault() if isinstance(dealt, ResumableLoader) else None
                if fault and fault not in str(exception):
                    exception.add_note(fault)

    def _images_of_a_step(self) -> int:
        """On each rank, over all micro-batches."""
        return self.batch_size * getattr(self.trainer, "accumulate_grad_batches", 1)

    def _batches(
        self,
        dataset: Dataset[Any],
        sampler: EpochSampler,
        collate: Callable[[list[Any]], Any],
        *,
        batch_size: int | None = None,
    ) -> ResumableLoader:
        size, workers = batch_size or self.batch_size, self.num_workers
        return loader(dataset, sampler, batch_size=size, num_workers=workers, collate=collate)
