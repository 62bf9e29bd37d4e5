"""Cross-entropy pretraining: its loss and step by hand, its classes from the data module."""

import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from goodtransfer.methods import InstDisc, MoCoV2, SimCLR, SupervisedCE
from goodtransfer.transfer import LinearProbe

sys.path.insert(0, str(Path(__file__).parent))
from toy_inputs import PairDataset, assert_same_state, encoder, state


def batches(count=32, **arguments):
    dataset = PairDataset(count, **arguments)
    return DataLoader([((v[0],), y, i) for v, y, i in dataset], batch_size=8)


def test_a_step_by_hand(trainer_options):
    """SGD with momentum and decay on every parameter, written out."""
    module = SupervisedCE(encoder(batch_norm=False), num_classes=4, lr=0.5).double()
    reference = SupervisedCE(encoder(batch_norm=False), num_classes=4).double()
    reference.load_state_dict(module.state_dict())
    trainer = pl.Trainer(max_epochs=1, limit_train_batches=2, **trainer_options)
    trainer.fit(module, batches(dtype=torch.float64))
    parameters, velocity = list(reference.parameters()), None
    for (view,), label, _ in list(batches(dtype=torch.float64))[:2]:
        logits = reference.head(reference.encoder(view)[5].mean((2, 3)))
        loss = -torch.log_softmax(logits, 1)[range(8), label].mean()
        grads = torch.autograd.grad(loss, parameters)
        grads = [g + 1e-4 * p for g, p in zip(grads, parameters, strict=True)]
        velocity = (
            grads
            if velocity is None
            else [0.9 * v + g for v, g in zip(velocity, grads, strict=True)]
        )
        with torch.no_grad():
            for p, v in zip(parameters, velocity, strict=True):
                p -= 0.5 * v
    for a, b in zip(module.parameters(), parameters, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_unlabelled_images_do_not_count():
    module = SupervisedCE(encoder(), num_classes=4)
    module.log = lambda *_, **__: None
    module._trainer = type(
        "T", (), {"optimizers": [type("O", (), {"param_groups": [{"lr": 0}]})]}
    )()
    images = PairDataset(8).images
    labels = torch.tensor([0, 1, 2, 3, -1, -1, -1, -1])
    loss = module.training_step(((images,), labels), 0)["loss"]
    logits = module(images)
    torch.testing.assert_close(loss, F.cross_entropy(logits[:4], labels[:4]), rtol=1e-3, atol=1e-3)


class Data(pl.LightningDataModule):
    num_classes = 4

    def train_dataloader(self):
        return batches()

    val_dataloader = test_dataloader = train_dataloader


def test_classes_come_from_the_data_module_and_stay_in_the_checkpoint(trainer_options, tmp_path):
    module = SupervisedCE("resnet10w8")
    trainer = pl.Trainer(max_epochs=1, **trainer_options)
    trainer.fit(module, Data())
    assert module.head.out_features == 4
    trainer.save_checkpoint(tmp_path / "m.ckpt")
    loaded = SupervisedCE.load_from_checkpoint(tmp_path / "m.ckpt", weights_only=True)
    assert_same_state(state(module), state(loaded))
    (tested,) = trainer.test(module, Data(), verbose=False)
    images, labels = PairDataset(32).images, torch.arange(32) % 4
    expected = 100 * float((module.eval()(images).argmax(1) == labels).float().mean())
    assert tested["acc_head"] == pytest.approx(expected)


def test_sentences(trainer_options):
    trainer = pl.Trainer(max_epochs=1, **trainer_options)
    with pytest.raises(ValueError, match=r"pass SupervisedCE\(num_classes=...\)"):
        trainer.fit(SupervisedCE(encoder()), batches())
    pairs = DataLoader(PairDataset(32), batch_size=8)
    with pytest.raises(
        ValueError, match="1 view per image for SupervisedCE, but the loader gives 2"
    ):
        trainer.fit(SupervisedCE(encoder(), num_classes=4), pairs)
    unlabelled = DataLoader([((v[0],),) for v, _, _ in PairDataset(32)], batch_size=8)
    with pytest.raises(ValueError, match="Expected labels.*SupervisedCE"):
        trainer.fit(SupervisedCE(encoder(), num_classes=4), unlabelled)

    low = DataLoader([((v[0],), y, i) for v, y, i in PairDataset(32)], batch_size=8)
    with pytest.raises(
        ValueError, match="labels from 0 to 2, or -1 for none, but a batch has 0 to 3"
    ):
        trainer.fit(SupervisedCE(encoder(), num_classes=3), low)


def test_classes_are_told_in_full_precision(trainer_options):
    """Rounded to bfloat16, these two classes tie, and the first one is taken."""
    module = SupervisedCE(encoder(), num_classes=3)
    module.head.weight.data.zero_()
    module.head.bias.data = torch.tensor([1.0, 1.001, 0.0])
    data = DataLoader([((v[0],), 1, i) for v, _, i in PairDataset(8)], batch_size=8)
    trainer = pl.Trainer(precision="bf16-mixed", **trainer_options)
    (scores,) = trainer.test(module, data, verbose=False)
    assert scores["acc_head"] == 100


@pytest.mark.parametrize(
    "method",
    [
        lambda given: SupervisedCE(given, num_classes=4),
        lambda given: MoCoV2(given, queue_size=8),
        SimCLR,
        lambda given: InstDisc(given, num_images=8),
    ],
)
def test_a_readout_s_frozen_encoder_is_trained(method):
    probe = LinearProbe(encoder(), num_classes=4)
    with pytest.warns(UserWarning, match="The encoder came frozen, as a readout leaves it"):
        module = method(probe.encoder)
    assert all(p.requires_grad for p in module.encoder.parameters())
    assert all(m.training for m in module.modules())


def test_a_part_that_is_frozen_on_purpose_stays_so():
    given = encoder()
    first = next(given.parameters()).requires_grad_(False)
    norm = next(m for m in given.modules() if isinstance(m, torch.nn.BatchNorm2d)).eval()
    module = SupervisedCE(given, num_classes=4)
    assert not next(module.encoder.parameters()).requires_grad
    assert sum(not p.requires_grad for p in module.parameters()) == 1
    assert first.requires_grad is False
    assert not norm.training
