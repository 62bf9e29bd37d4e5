"""When a cell's checkpoint is saved."""

from contextlib import suppress

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from goodtransfer import SupervisedCE
from goodtransfer.study import fitting


class Events(pl.Callback):
    def __init__(self):
        self.seen = []

    def on_save_checkpoint(self, trainer, module, checkpoint):
        self.seen.append((trainer.global_step, trainer.fit_loop.batch_idx))

    def on_validation_end(self, trainer, module):
        self.seen.append("validated")


class Stopped(SupervisedCE):
    """Killed at a batch."""

    at = -1

    def training_step(self, batch, batch_idx):
        if batch_idx == self.at:
            raise KeyError("killed")
        return super().training_step(batch, batch_idx)


def fitted(folder, at=-1, **options):
    """What happened in an epoch of eight batches, going on from what is in the folder."""
    folder.mkdir(exist_ok=True)
    images, labels = torch.rand(32, 3, 16, 16), torch.arange(32) % 3
    loader = DataLoader([((x,), y) for x, y in zip(images, labels, strict=True)], batch_size=4)
    events = Events()
    trainer = fitting.cell_trainer("cell", folder, 1, callbacks=[events], **options)
    module = Stopped("resnet10w8", num_classes=3, lr=0.01)
    module.at = at
    with suppress(KeyError):
        trainer.fit(module, loader, loader, ckpt_path=fitting.checkpoint(folder))
    return events.seen


def test_it_is_saved_within_an_epoch_and_at_its_end_once_validated(tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "EVERY", 3)
    assert fitted(tmp_path) == [(3, 2), (6, 5), "validated", (8, 7)]
    monkeypatch.setattr(fitting, "EVERY", 8)
    assert fitted(tmp_path / "b") == ["validated", (8, 7)]


@pytest.mark.filterwarnings("ignore:You're resuming from a")
def test_no_step_is_saved_again_while_gradients_are_accumulated(tmp_path, monkeypatch):
    """Lightning alone saves step 2 once more, in the middle of the third (see `EpochCount`)."""
    monkeypatch.setattr(fitting, "EVERY", 2)
    assert fitted(tmp_path, at=4, accumulate_grad_batches=2) == [(2, 3)]
    assert fitted(tmp_path, accumulate_grad_batches=2) == ["validated", (4, 7)]
