"""NaN and Inf end a run in the step they arise in, and leave what is needed to see why."""

import sys
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch.utils.data import DataLoader

from goodtransfer import ExemplarMoCo, InstDisc, SimCLR, SupervisedCE
from goodtransfer.callbacks import FiniteCheck

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "methods"))
from toy_inputs import PairDataset, encoder


def moco():
    return ExemplarMoCo(encoder(), queue_size=12, dim=6, bn_groups=2)


METHODS = {
    "moco": moco,
    "instdisc": lambda: InstDisc(encoder(), num_images=32, dim=6, loss="softmax"),
    "simclr": lambda: SimCLR(encoder(), dim=6, warmup_epochs=0),
    "supervised": lambda: SupervisedCE(encoder(), num_classes=4),
}


class Spoilt(PairDataset):
    """One image is NaN."""

    def __init__(self, number, views=2):
        super().__init__()
        self.number, self.views = number, views

    def __getitem__(self, i):
        views, label, index = super().__getitem__(i)
        views = tuple(v * (float("nan") if i == self.number else 1) for v in views)[: self.views]
        return views, label, index


@pytest.mark.parametrize("name", METHODS)
def test_a_nan_names_the_step_and_keeps_the_batch(name, trainer_options, tmp_path, monkeypatch):
    monkeypatch.setattr("goodtransfer.methods.checks.check_range", lambda view: None)
    data = Spoilt(21, views=1 if name in ("instdisc", "supervised") else 2)
    loader = DataLoader(data, batch_size=8, shuffle=False)
    trainer = pl.Trainer(max_epochs=1, **trainer_options)
    file = tmp_path / "nonfinite_step_000002_rank_0.pt"
    said = r"in step 2 the loss is nan, on a batch of images 16, 17, .*23: it is kept in .*"
    with pytest.raises(FloatingPointError, match=said + file.name):
        trainer.fit(METHODS[name](), loader)
    kept = torch.load(file, weights_only=True)
    assert (kept["step"], kept["epoch"], kept["indices"]) == (2, 0, list(range(16, 24)))
    (views, labels, _indices) = kept["batch"]
    assert torch.equal(labels, torch.arange(16, 24) % 4)
    assert views[0][5].isnan().all()
    assert views[0][4].isfinite().all()


def test_a_kept_batch_of_polygons_can_be_opened(trainer_options, tmp_path):
    """COCO's polygons are numpy arrays, which ``torch.load`` refuses."""
    trainer, check = pl.Trainer(**trainer_options), FiniteCheck()
    polygon = np.array([1.0, 2.0, 9.0, 2.0, 5.0, 8.0])
    check._batch = (
        [torch.zeros(3, 8, 8)],
        [{"image_id": 7, "masks": [[polygon], [polygon[::-1]]]}],
    )
    with pytest.raises(FloatingPointError, match="of images 7"):
        check._stop(trainer, None, "a test's end")
    (file,) = tmp_path.glob("nonfinite_*.pt")
    _, (target,) = torch.load(file, weights_only=True)["batch"]
    for [kept], expected in zip(target["masks"], (polygon, polygon[::-1]), strict=True):
        assert kept.tolist() == expected.tolist()


class Spoil(pl.Callback):
    """Puts Inf into a gradient, or into a new key, of one step."""

    def __init__(self, step, what):
        self.step, self.what = step, what

    def on_after_backward(self, trainer, module):
        if self.what == "gradient" and trainer.global_step == self.step:
            module.encoder.trunk.conv1.weight.grad[0, 0, 0, 0] = float("inf")

    def on_before_zero_grad(self, trainer, module, optimizer):
        if self.what == "key" and trainer.global_step == self.step and module.held:
            module.held[-1].keys[2, 0] = float("inf")


def test_an_infinite_gradient_names_the_parameter(trainer_options):
    trainer = pl.Trainer(max_epochs=1, callbacks=[Spoil(1, "gradient")], **trainer_options)
    with pytest.raises(
        FloatingPointError, match=r"in step 1 gradients of encoder\.\S*conv1.weight are"
    ):
        trainer.fit(moco(), DataLoader(PairDataset(), batch_size=8))


def test_of_several_batches_of_a_step_the_one_is_blamed_that_it_arose_in(trainer_options):
    """The first of two, though the step comes after the second."""
    callbacks, two = [Spoil(1, "gradient")], {"accumulate_grad_batches": 2}
    trainer = pl.Trainer(max_epochs=1, callbacks=callbacks, **two, **trainer_options)
    with pytest.raises(FloatingPointError, match="in step 1 gradients .* of images 16, 17, 18"):
        trainer.fit(moco(), DataLoader(PairDataset(), batch_size=8))


def test_a_key_that_is_not_finite_never_enters_the_queue(trainer_options):
    module = moco()
    trainer = pl.Trainer(max_epochs=1, callbacks=[Spoil(1, "key")], **trainer_options)
    with pytest.raises(FloatingPointError, match="in step 1 keys for the queue are not finite"):
        trainer.fit(module, DataLoader(PairDataset(), batch_size=8))
    assert module.queue.keys.isfinite().all()
    assert int(module.queue.filled) == 8  # of step 0


def test_a_skipped_step_of_the_scaler_is_no_failure(trainer_options):
    """On a CPU Lightning makes bf16 of 16-mixed, so the scaler is given to it."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1000)
    plugin = MixedPrecision("16-mixed", device="cpu", scaler=scaler)
    before = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            weights = module.encoder.trunk.conv1.weight.detach().clone()
            before.append((weights, scaler.get_scale()))

    callbacks = [Spoil(1, "gradient"), Watch()]
    trainer = pl.Trainer(max_epochs=1, callbacks=callbacks, plugins=[plugin], **trainer_options)
    trainer.fit(moco(), DataLoader(PairDataset(), batch_size=8))
    (first, _), (second, halved), (third, _), _ = before
    assert torch.equal(first, second)  # the step was skipped
    assert halved == 512.0
    assert not torch.equal(second, third)


def test_a_gradient_that_no_scale_makes_finite_is_one(trainer_options):
    """At a scale below 1 nothing overflows for the scale's sake, and all steps would be skipped."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    plugin = MixedPrecision("16-mixed", device="cpu", scaler=scaler)
    callbacks = [Spoil(1, "gradient"), Spoil(2, "gradient")]  # a skipped step is counted, too
    trainer = pl.Trainer(max_epochs=1, callbacks=callbacks, plugins=[plugin], **trainer_options)
    with pytest.raises(FloatingPointError, match="in step 2 gradients of"):
        trainer.fit(moco(), DataLoader(PairDataset(), batch_size=8))
    assert scaler.get_scale() == 0.5


def test_it_is_there_once_however_it_is_given(trainer_options):
    trainer = pl.Trainer(max_epochs=1, callbacks=[FiniteCheck()], **trainer_options)
    trainer.fit(moco(), DataLoader(PairDataset(), batch_size=8))
    assert sum(isinstance(c, FiniteCheck) for c in trainer.callbacks) == 1
