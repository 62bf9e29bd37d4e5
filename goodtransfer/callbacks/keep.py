"""Encoders of epochs on the way, each a file of its own."""

from collections.abc import Iterable
from pathlib import Path

import pytorch_lightning as pl

from goodtransfer.weights import save_encoder


class KeepEncoders(pl.Callback):
    """Save ``pl_module.encoder`` after some epochs, to see how transfer grows (Figure 4).

    Files are ``epoch_010.safetensors`` and so on; ``load_encoder`` reads them. An epoch that is trained
    again after a resume writes the same file again.

    Args:
        folder: for the files.
        epochs: counted from 1.

    Raises:
        OSError: at the end of such an epoch, for a folder that cannot be made or written to.

    >>> KeepEncoders("encoders", range(10, 200, 20)).path(10).as_posix()
    'encoders/epoch_010.safetensors'
    """

    def __init__(self, folder: str | Path, epochs: Iterable[int]) -> None:
        self.folder, self.epochs = Path(folder), frozenset(epochs)

    def path(self, epoch: int) -> Path:
        """Where the encoder of an epoch is."""
        return self.folder / f"epoch_{epoch:03}.safetensors"

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        if epoch in self.epochs and trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            encoder = pl_module.encoder
            save_encoder(self.path(epoch), encoder, epoch=epoch)  # type: ignore[arg-type]
