"""KeepEncoders: the epochs asked for, each as its encoder was at the end of it."""

import sys
from pathlib import Path

import pytorch_lightning as pl
import torch

from goodtransfer.callbacks import KeepEncoders
from goodtransfer.methods import MoCoV2
from goodtransfer.weights import load_encoder, read_provenance

sys.path.insert(0, str(Path(__file__).parents[1] / "methods"))
from toy_inputs import assert_same_state, loader, state


class Encoders(pl.Callback):
    """The encoder after each epoch, counted from 1."""

    def __init__(self):
        self.after = {}

    def on_train_epoch_end(self, trainer, module):
        self.after[trainer.current_epoch + 1] = state(module.encoder)


def fit(folder, epochs, options, max_epochs, ckpt_path=None):
    encoders = Encoders()
    trainer = pl.Trainer(
        max_epochs=max_epochs, callbacks=[KeepEncoders(folder, epochs), encoders], **options
    )
    torch.manual_seed(0)
    module = MoCoV2("resnet10w8", queue_size=16, dim=6)
    trainer.fit(module, loader(size=32), ckpt_path=ckpt_path)
    return trainer, encoders.after


def test_a_file_for_each_epoch_asked_for_and_no_other(trainer_options, tmp_path):
    """Numbers, a range, and one that training never reaches."""
    _, after = fit(tmp_path / "a" / "b", range(1, 9, 2), trainer_options, max_epochs=4)
    files = sorted(path.name for path in (tmp_path / "a" / "b").iterdir())
    assert files == ["epoch_001.safetensors", "epoch_003.safetensors"]
    for epoch in (1, 3):
        path = tmp_path / "a" / "b" / f"epoch_00{epoch}.safetensors"
        assert_same_state(load_encoder(path).state_dict(), after[epoch])
        assert read_provenance(path).origin == {"epoch": epoch}
    assert not torch.equal(after[1]["conv1.weight"], after[3]["conv1.weight"])


def test_a_resume_writes_the_same_files(trainer_options, tmp_path):
    _, straight = fit(tmp_path / "straight", [3], trainer_options, max_epochs=3)
    options = trainer_options | {"max_steps": 8}  # two epochs of four steps
    trainer, _ = fit(tmp_path / "resumed", [3], options, max_epochs=3)
    assert not (tmp_path / "resumed").exists()
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    fit(tmp_path / "resumed", [3], trainer_options, 3, ckpt_path=tmp_path / "half.ckpt")
    (path,) = (tmp_path / "resumed").iterdir()
    assert_same_state(load_encoder(path).state_dict(), straight[3])
