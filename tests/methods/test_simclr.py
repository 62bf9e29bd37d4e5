"""SimCLR's step by hand, and through resume."""

import math
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from goodtransfer.callbacks import OnlineKNN, OnlineProbe
from goodtransfer.encoders import OwnTrunk, build
from goodtransfer.methods.simclr import SimCLR, gather_with_gradient
from goodtransfer.optim import LARS

sys.path.insert(0, str(Path(__file__).parent))
from toy_inputs import PairDataset, assert_same_state, encoder, loader, state

SMALL = {"dim": 6, "warmup_epochs": 1}


def fit(module, options, batches=None, callbacks=(), ckpt_path=None, **trainer):
    trainer = {"max_epochs": 2, "callbacks": list(callbacks), **options, **trainer}
    trainer = pl.Trainer(**trainer)
    trainer.fit(module, batches if batches is not None else loader(), ckpt_path=ckpt_path)
    return trainer


def test_defaults_are_the_paper_s():
    module = SimCLR(encoder())
    expected = {
        "temperature": 0.1, "dim": 128, "lr": 0.3, "weight_decay": 1e-6, "warmup_epochs": 10,
        "views": "simclr",
    }  # fmt: skip
    assert {name: module.hparams[name] for name in expected} == expected
    linear, norm, relu, out, out_norm = module.head
    assert (linear.weight.shape, out.weight.shape) == ((12, 12), (128, 12))
    assert linear.bias is None
    assert out.bias is None
    assert isinstance(relu, nn.ReLU)
    trained = [p.requires_grad for p in (*norm.parameters(), *out_norm.parameters())]
    assert trained == [True, True, True, False]


# --- the step ---


def literal_loss(first, second, temperature):
    """The paper's Algorithm 1 on projected views, a term at a time."""
    z = torch.cat([first, second])
    z = z / z.norm(dim=1, keepdim=True)
    total, n = 0.0, len(first)
    for i in range(2 * n):
        similarity = [float(z[i] @ other) / temperature for other in z]
        denominator = sum(math.exp(s) for j, s in enumerate(similarity) if j != i)
        total -= math.log(math.exp(similarity[(i + n) % (2 * n)]) / denominator) / (2 * n)
    return total


def test_loss_by_hand_and_the_views_share_batch_norm(trainer_options):
    expected, seen, features = [], [], []

    class ByHand(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            both = torch.cat(batch[0])

            def norm(x, layer, dims):
                mean, var = x.mean(dims, keepdim=True), x.var(dims, keepdim=True, correction=0)
                shape = [1, -1, *[1] * (x.ndim - 2)]
                x = (x - mean) / (var + layer.eps).sqrt()
                return x * layer.weight.view(shape) + layer.bias.view(shape)

            with torch.no_grad():
                trunk, head = module.encoder.trunk, module.head
                x = trunk.conv1(module.encoder.normalize(both))
                x = torch.tanh(norm(x, trunk.bn1, (0, 2, 3)))
                x = torch.tanh(trunk.conv2(x)).mean((2, 3))
                features.append(x[: len(batch[1])])
                x = norm(head[0](x), head[1], 0).clamp(min=0)
                x = norm(head[3](x), head[4], 0)
            expected.append(literal_loss(*x.chunk(2), 0.2))

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            seen.append(float(outputs["loss"]))
            torch.testing.assert_close(outputs["features"], features[-1])  # of first views

    module = SimCLR(encoder(), temperature=0.2, **SMALL).double()
    batches = loader(dtype=torch.float64)
    fit(module, trainer_options, batches, [ByHand()], precision="64-true")
    assert seen == pytest.approx(expected, rel=1e-10)
    assert len(set(seen)) == 8
    assert torch.equal(module.head[4].bias, torch.zeros(6, dtype=torch.float64))


def test_lars_leaves_norms_and_biases_to_sgd_and_warms_up(trainer_options):
    rates = []

    class Rates(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    module = SimCLR(encoder(), **SMALL)
    (optimizer,) = fit(module, trainer_options, callbacks=[Rates()], max_epochs=3).optimizers
    assert isinstance(optimizer, LARS)
    weights, vectors = optimizer.param_groups
    names = {id(p): n for n, p in module.named_parameters()}
    assert {names[id(p)] for p in weights["params"]} == {
        "encoder.trunk.conv1.weight", "encoder.trunk.conv2.weight", "head.0.weight", "head.3.weight"
    }  # fmt: skip
    assert (weights["adapt"], weights["weight_decay"]) == (True, 1e-6)
    assert (vectors["adapt"], vectors["weight_decay"]) == (False, 0.0)
    assert {names[id(p)] for p in vectors["params"]} == {
        *(f"encoder.trunk.{n}" for n in ("conv1.bias", "conv2.bias", "bn1.weight", "bn1.bias")),
        *("head.1.weight", "head.1.bias", "head.4.weight"),
    }
    cosine = [0.15 * (1 + math.cos(math.pi * i / 8)) for i in range(8)]
    assert rates == pytest.approx([0.3 * i / 4 for i in range(4)] + cosine)


def test_four_steps_equal_two_and_two_to_the_bit(trainer_options, tmp_path):
    batches = loader(count=16)  # two steps an epoch

    def module(seed=0):
        return SimCLR(encoder(seed=seed), lr=3.0, **SMALL)

    straight = module()
    fit(straight, trainer_options, batches)
    assert straight.trainer.global_step == 4
    first = module()
    fit(first, trainer_options, batches, max_steps=2).save_checkpoint(tmp_path / "half.ckpt")
    torch.manual_seed(99)
    second = module(seed=5)
    fit(second, trainer_options, batches, ckpt_path=tmp_path / "half.ckpt")
    assert second.trainer.global_step == 4
    assert_same_state(state(straight), state(second))
    assert not torch.equal(second.head[0].weight, first.head[0].weight)
    a, b = (list(m.trainer.optimizers[0].state.values()) for m in (straight, second))
    assert len(a) == len(b) == 11
    assert all(torch.equal(x["velocity"], y["velocity"]) for x, y in zip(a, b, strict=True))


def test_a_checkpoint_rebuilds_the_module_and_probes_see_first_views(trainer_options, tmp_path):
    module, features = SimCLR("resnet10w8", dim=6, warmup_epochs=0), []

    class Features(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            features.append((outputs["features"].shape, outputs["label"].tolist()))

    callbacks = [OnlineKNN(k=3), OnlineProbe(num_classes=4), Features()]
    trainer = pl.Trainer(max_epochs=1, callbacks=callbacks, **trainer_options)
    trainer.fit(module, loader(size=32), loader(size=32))
    assert features == [((8, 64), [0, 1, 2, 3] * 2)] * 4
    assert {"knn_acc", "online_acc", "pretext_acc", "lr"} <= set(trainer.callback_metrics)
    trainer.save_checkpoint(tmp_path / "m.ckpt")
    loaded = SimCLR.load_from_checkpoint(tmp_path / "m.ckpt", weights_only=True)
    assert_same_state(state(module), state(loaded))
    assert loaded.hparams["encoder"] == "resnet10w8"


def test_a_checkpoint_knows_what_the_encoder_takes(trainer_options, tmp_path):
    own = OwnTrunk(encoder().trunk, normalization=None)
    fit(SimCLR(own, **SMALL), trainer_options).save_checkpoint(tmp_path / "m.ckpt")
    loaded = SimCLR.load_from_checkpoint(tmp_path / "m.ckpt", encoder=encoder(), weights_only=True)
    assert loaded.encoder.normalization is None


def test_validation_changes_nothing(trainer_options):
    def run(val):
        module = SimCLR(encoder(), **SMALL)
        trainer = pl.Trainer(max_epochs=2, **trainer_options)
        trainer.fit(module, loader(), val)
        before = state(module)
        trainer.test(module, loader(), verbose=False)
        assert_same_state(before, state(module))
        return before

    assert_same_state(run(None), run(loader()))


# --- learning, precision ---


class Losses(pl.Callback):
    def __init__(self):
        self.losses, self.accuracies = [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))
        self.accuracies.append(float(trainer.callback_metrics["pretext_acc"]))


def test_it_learns_to_tell_images_apart(trainer_options):
    """Images of patches; the other view of each is half noise."""
    torch.manual_seed(0)
    patches = F.interpolate(torch.rand(32, 3, 4, 4), size=16)
    noise = torch.rand(32, 3, 16, 16)
    items = [
        ((x, (x + y) / 2), i % 4, i) for i, (x, y) in enumerate(zip(patches, noise, strict=True))
    ]
    log = Losses()
    module = SimCLR(build("resnet10w8"), dim=16, warmup_epochs=1, lr=3.0)
    fit(module, trainer_options, DataLoader(items, batch_size=16), [log], max_epochs=12)
    first, last = (sum(log.losses[steps]) / 2 for steps in (slice(2), slice(-2, None)))
    assert last < 0.3 * first
    assert sum(log.accuracies[:2]) / 2 < 60
    assert sum(log.accuracies[-2:]) / 2 > 95


def test_bf16_trains_with_the_loss_in_fp32(trainer_options):
    seen, heads = [], []

    class Types(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            seen.append(outputs["loss"].dtype)

    module = SimCLR(encoder(), **SMALL)
    module.head[3].register_forward_hook(lambda _, __, out: heads.append(out.dtype))
    fit(module, trainer_options, callbacks=[Types()], precision="bf16-mixed")
    assert set(heads) == {torch.bfloat16}
    assert set(seen) == {torch.float32}


# --- sentences ---


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"temperature": 0.0}, "`temperature` to be above 0"),
        ({"lr": -0.3}, "`lr` to be above 0, but got -0.3"),
        ({"dim": 0}, "`dim` to be above 0"),
    ],
)
def test_bad_arguments(arguments, text):
    with pytest.raises(ValueError, match=text):
        SimCLR(encoder(), **{**SMALL, **arguments})


def test_bad_batches_and_trainers(trainer_options):
    one = DataLoader([(views[:1], y) for views, y, _ in PairDataset(32)], batch_size=8)
    with pytest.raises(ValueError, match="2 views per image for SimCLR, but the loader gives 1"):
        fit(SimCLR(encoder(), **SMALL), trainer_options, one)
    with pytest.raises(
        ValueError, match="`warmup_epochs` of at least 0 and below the 2 of Trainer.*pass a smaller"
    ):
        fit(SimCLR(encoder()), trainer_options)
    with pytest.raises(ValueError, match="in fp32.*small steps of SimCLR.*bf16-mixed"):
        fit(SimCLR(encoder(), **SMALL), trainer_options, precision="bf16-true")


# --- ranks: see tests/reliability ---


def test_one_rank_gathers_nothing():
    x = torch.ones(3, 2, requires_grad=True)
    rows, start = gather_with_gradient(x)
    assert rows is x
    assert start == 0
