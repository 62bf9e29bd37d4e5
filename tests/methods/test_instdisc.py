"""InstDisc's bank, Z and negatives through steps, accumulation and resume; and its sentences."""

import math
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

import goodtransfer.methods.instdisc as instdisc_module
from goodtransfer.callbacks import OnlineKNN, OnlineProbe
from goodtransfer.encoders import OwnTrunk, build
from goodtransfer.methods.instdisc import InstDisc

sys.path.insert(0, str(Path(__file__).parent))
from toy_inputs import PairDataset, assert_same_state, encoder, state

SMALL = {"num_images": 32, "negatives": 5, "dim": 6}


def loader(count=32, batch_size=8, dtype=torch.float32):
    items = [((views[0],), y, i) for views, y, i in PairDataset(count, dtype=dtype)]
    return DataLoader(items, batch_size=batch_size)


def fit(module, options, batches=None, callbacks=(), ckpt_path=None, **trainer):
    trainer = {"max_epochs": 1, "callbacks": list(callbacks), **options, **trainer}
    trainer = pl.Trainer(**trainer)
    trainer.fit(module, batches if batches is not None else loader(), ckpt_path=ckpt_path)
    return trainer


# --- the paper's settings ---


def test_defaults_are_upstream_s():
    module = InstDisc(encoder(), num_images=4)
    expected = {
        "loss": "nce", "temperature": 0.07, "momentum": 0.5, "dim": 128, "lr": 0.03,
        "weight_decay": 1e-4, "schedule": "step", "views": "instdisc",
    }  # fmt: skip
    assert {name: module.hparams[name] for name in expected} == expected
    assert module.negatives == 4096
    assert InstDisc(encoder(), loss="softmax").negatives == 65_536
    for loss, negatives in (("nce", "auto"), ("softmax", None), ("softmax", 7)):
        given = InstDisc(encoder(), loss=loss, negatives=negatives).hparams
        assert given["negatives"] == negatives  # what loggers show is what was passed
    assert module.head.weight.shape == (128, 12)


# --- the step ---


class Before(pl.Callback):
    """Bank, queries and numbers of each step, before it is made; the loss, after."""

    def __init__(self):
        self.banks, self.queries, self.index, self.losses, self.accuracies = [], [], [], [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        (view,), _, index = batch
        with torch.no_grad():
            hidden = module.head(module.encoder(view)[5].mean((2, 3)))
        self.queries.append(F.normalize(hidden, dim=1))
        self.banks.append(module.bank.rows.clone())
        self.index.append(index.tolist())

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))
        self.accuracies.append(float(trainer.callback_metrics["pretext_acc"]))


class Draws:
    """In place of ``_draw``: keeps what it gives."""

    def __init__(self, module):
        self.given, self.original = [], module._draw
        module._draw = self

    def __call__(self, shape, batch_idx):
        self.given.append(self.original(shape, batch_idx))
        return self.given[-1]


def dot(a, b):
    return sum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True))


def test_nce_and_the_bank_by_hand(trainer_options):
    """Three steps, a term at a time; Z is that of the first for all of them."""
    before = Before()
    module = InstDisc(encoder(batch_norm=False), temperature=0.5, **SMALL).double()
    draws = Draws(module)
    options = {**trainer_options, "limit_train_batches": 3, "max_epochs": 2}
    fit(module, options, loader(dtype=torch.float64), [before], precision="64-true")
    z = None
    for step in range(6):
        rows, numbers = before.banks[step], draws.given[step]
        assert numbers.shape == (8, 5)
        scores = [
            [dot(query, rows[number]) / 0.5 for number in (own, *drawn)]
            for query, own, drawn in zip(
                before.queries[step], before.index[step], numbers.tolist(), strict=True
            )
        ]
        if z is None:
            z = 32 * sum(math.exp(s) for row in scores for s in row) / (8 * 6)
        total = won = 0
        for positive, *negatives in scores:
            p, noise = math.exp(positive) / z, 5 / 32
            total -= math.log(p / (p + noise + 1e-7)) / 8
            for negative in negatives:
                total -= math.log(noise / (math.exp(negative) / z + noise + 1e-7)) / 8
            won += positive >= max(negatives)
        assert before.losses[step] == pytest.approx(total, rel=1e-10)
        assert before.accuracies[step] == pytest.approx(100 * won / 8)
        after = before.banks[step + 1] if step < 5 else module.bank.rows
        for number in range(32):
            if number in before.index[step]:
                query = before.queries[step][before.index[step].index(number)]
                expected = F.normalize(0.5 * rows[number] + 0.5 * query, dim=0)
                torch.testing.assert_close(after[number], expected, rtol=1e-10, atol=1e-12)
            else:
                assert torch.equal(after[number], rows[number])
    assert module.normalizer.item() == pytest.approx(z, rel=1e-12)


@pytest.mark.parametrize("negatives", [None, 5, 31, 32, "auto"])
def test_softmax_by_hand(negatives, trainer_options):
    """Over all rows, or the own one and those drawn for the batch that are nobody's own."""
    before = Before()
    module = InstDisc(
        encoder(batch_norm=False),
        loss="softmax",
        temperature=0.5,
        **{**SMALL, "negatives": negatives},
    ).double()
    draws = Draws(module)
    fit(module, trainer_options, loader(dtype=torch.float64), [before], precision="64-true")
    drawn = negatives in (5, 31)
    assert len(draws.given) == (4 if drawn else 0)
    for step in range(4):
        rows, total, won = before.banks[step], 0.0, 0
        numbers = draws.given[step].tolist() if drawn else range(32)
        assert len(numbers) == (negatives if drawn else 32)
        for query, own in zip(before.queries[step], before.index[step], strict=True):
            positive = dot(query, rows[own]) / 0.5
            others = [dot(query, rows[number]) / 0.5 for number in numbers if number != own]
            denominator = sum(math.exp(s) for s in (positive, *others))
            total -= math.log(math.exp(positive) / denominator) / 8
            won += positive >= max(others)
        assert before.losses[step] == pytest.approx(total, rel=1e-10)
        assert before.accuracies[step] == pytest.approx(100 * won / 8)
    assert module.normalizer == 0


def test_accumulating_four_equals_a_batch_four_times_as_large(trainer_options):
    """By the softmax over all of the bank: NCE's negatives and Z are those of micro-batches."""

    def run(batch_size, accumulate):
        arguments = {**SMALL, "negatives": None, "lr": 0.5}
        module = InstDisc(encoder(batch_norm=False), loss="softmax", **arguments).double()
        batches = loader(batch_size=batch_size, dtype=torch.float64)
        options = {**trainer_options, "accumulate_grad_batches": accumulate, "max_epochs": 2}
        fit(module, options, batches, precision="64-true")
        return state(module), module.trainer.global_step

    (whole, steps), (parts, accumulated_steps) = run(16, 1), run(4, 4)
    assert steps == accumulated_steps == 4
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], rtol=1e-9, atol=1e-11, msg=name)


class Broken(pl.Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if batch_idx == 1:
            raise RuntimeError("after two of the four batches of a step")


def test_nothing_of_a_broken_step_reaches_the_bank(trainer_options):
    module = InstDisc(encoder(), **SMALL)
    with pytest.raises(RuntimeError, match="two of the four"):
        fit(module, trainer_options, callbacks=[Broken()], accumulate_grad_batches=4)
    before = module.bank.rows.clone()
    fit(module, trainer_options, loader(count=8))
    assert torch.equal(module.bank.rows[8:], before[8:])
    assert not torch.equal(module.bank.rows[:8], before[:8])


class SkipsBatchOne(InstDisc):
    def training_step(self, batch, batch_idx):
        return None if batch_idx == 1 else super().training_step(batch, batch_idx)


@pytest.mark.filterwarnings("ignore:.training_step. returned .None.:UserWarning")
def test_a_batch_that_is_skipped_leaves_the_bank(trainer_options):
    banks = []

    class Banks(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            banks.append(module.bank.rows.clone())

    fit(SkipsBatchOne(encoder(), **SMALL), trainer_options, callbacks=[Banks()])
    first, second, third, fourth = banks
    assert not torch.equal(first, second)
    assert torch.equal(second, third)
    assert not torch.equal(third, fourth)


def test_negatives_depend_on_seed_step_batch_and_rank_alone(monkeypatch):
    module = InstDisc(encoder(), **SMALL)
    module._trainer = trainer = type("T", (), {"global_step": 3})()

    def draw(seed=0, step=3, batch_idx=1, rank=0, shape=(4, 100)):
        module.seed, trainer.global_step = seed, step
        monkeypatch.setattr(instdisc_module, "rank", lambda: rank)
        before = torch.get_rng_state()
        drawn = module._draw(shape, batch_idx)
        assert torch.equal(torch.get_rng_state(), before)
        return drawn

    first = draw()
    torch.rand(3)
    assert torch.equal(first, draw())
    for changed in ({"seed": 1}, {"step": 4}, {"batch_idx": 2}, {"rank": 1}):
        assert not torch.equal(first, draw(**changed)), changed
    counts = torch.bincount(draw(shape=(32, 2000)).flatten(), minlength=32)
    assert len(counts) == 32  # every row, about as often
    assert (counts - 2000).abs().max() < 4.5 * math.sqrt(2000)


def test_nothing_but_a_training_step_changes_anything(trainer_options):
    module = InstDisc(encoder(), **SMALL)
    trainer = pl.Trainer(max_epochs=1, **trainer_options)
    trainer.fit(module, loader(), loader())
    before = state(module)
    trainer.validate(module, loader(count=40), verbose=False)  # of indices that have no row
    trainer.test(module, loader(), verbose=False)
    assert_same_state(before, state(module))

    def run(val):
        module = InstDisc(encoder(), **SMALL)
        pl.Trainer(max_epochs=2, **trainer_options).fit(module, loader(), val)
        return state(module)

    assert_same_state(run(None), run(loader()))


# --- checkpoints ---


@pytest.mark.parametrize("loss", ["nce", "softmax"])
def test_four_steps_equal_two_and_two_to_the_bit(loss, trainer_options, tmp_path):
    batches = loader(count=16)  # two steps an epoch

    def module(seed=0):
        return InstDisc(encoder(seed=seed), loss=loss, **SMALL)

    straight = module()
    fit(straight, trainer_options, batches, max_epochs=2)
    assert straight.trainer.global_step == 4
    first = module()
    fit(first, trainer_options, batches, max_epochs=2, max_steps=2).save_checkpoint(
        tmp_path / "half.ckpt"
    )
    torch.manual_seed(99)
    second = module(seed=5)
    fit(second, trainer_options, batches, max_epochs=2, ckpt_path=tmp_path / "half.ckpt")
    assert second.trainer.global_step == 4
    assert_same_state(state(straight), state(second))
    assert not torch.equal(second.bank.rows, first.bank.rows)
    saved = torch.load(tmp_path / "half.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(saved["bank.rows"], first.bank.rows)
    assert (saved["normalizer"] > 0) == (loss == "nce")
    assert torch.equal(second.normalizer, first.normalizer)


class Data(pl.LightningDataModule):
    num_images, num_classes = 32, 4

    def train_dataloader(self):
        return loader()

    val_dataloader = train_dataloader


def test_images_come_from_the_data_module_and_stay_in_the_checkpoint(trainer_options, tmp_path):
    module = InstDisc("resnet10w8", negatives=5, dim=6)
    knn, probe = OnlineKNN(k=3), OnlineProbe()
    trainer = pl.Trainer(max_epochs=1, callbacks=[knn, probe], **trainer_options)
    trainer.fit(module, Data())
    assert len(module.bank) == 32
    assert {"knn_acc", "online_acc", "online_train_acc", "lr"} <= set(trainer.callback_metrics)
    trainer.save_checkpoint(tmp_path / "m.ckpt")
    loaded = InstDisc.load_from_checkpoint(tmp_path / "m.ckpt", weights_only=True)
    assert_same_state(state(module), state(loaded))
    assert loaded.hparams["num_images"] == 32
    assert loaded.hparams["encoder"] == "resnet10w8"


def test_a_bank_made_at_set_up_has_the_module_s_type(trainer_options):
    module = InstDisc(encoder(), negatives=5, dim=6).double()
    module._trainer = type("T", (), {"datamodule": Data()})()
    module.setup("fit")
    assert module.bank.rows.dtype == torch.float64


def test_a_checkpoint_knows_what_the_encoder_takes(trainer_options, tmp_path):
    own = OwnTrunk(encoder().trunk, normalization=None)
    fit(InstDisc(own, **SMALL), trainer_options).save_checkpoint(tmp_path / "m.ckpt")
    loaded = InstDisc.load_from_checkpoint(
        tmp_path / "m.ckpt", encoder=encoder(), weights_only=True
    )
    assert loaded.encoder.normalization is None


def test_a_bank_of_other_images_is_refused(trainer_options, tmp_path):
    fit(InstDisc(encoder(), **SMALL), trainer_options).save_checkpoint(tmp_path / "m.ckpt")
    other = InstDisc(encoder(), **{**SMALL, "num_images": 40})
    with pytest.raises(ValueError, match="bank of 40 images, but the checkpoint holds one of 32"):
        fit(other, trainer_options, max_epochs=2, ckpt_path=tmp_path / "m.ckpt")


# --- learning, precision ---


@pytest.mark.parametrize(("loss", "falls_by"), [("nce", 0.8), ("softmax", 0.8)])
def test_it_learns_to_tell_images_apart(loss, falls_by, trainer_options):
    torch.manual_seed(0)
    patches = torch.rand(32, 3, 4, 4)
    items = [((image,), i % 4, i) for i, image in enumerate(F.interpolate(patches, size=16))]
    before = Before()
    module = InstDisc(
        build("resnet10w8"), num_images=32, loss=loss, negatives=16, dim=16, temperature=0.5
    )
    fit(module, trainer_options, DataLoader(items, batch_size=8), [before], max_epochs=12)
    first, last = (sum(before.losses[steps]) / 4 for steps in (slice(4), slice(-4, None)))
    assert last < first - falls_by
    assert sum(before.accuracies[:4]) / 4 < 60
    assert sum(before.accuracies[-4:]) / 4 > 95


@pytest.mark.parametrize("loss", ["nce", "softmax"])
def test_bf16_trains_with_the_loss_and_the_bank_in_fp32(loss, trainer_options):
    seen = []

    class Outputs(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            seen.append((outputs["loss"].dtype, module.bank.rows.dtype))

    module = InstDisc(encoder(), loss=loss, **SMALL)
    heads = []
    module.head.register_forward_hook(lambda _, __, out: heads.append(out.dtype))
    fit(module, trainer_options, callbacks=[Outputs()], precision="bf16-mixed")
    assert set(heads) == {torch.bfloat16}
    assert set(seen) == {(torch.float32, torch.float32)}
    torch.testing.assert_close(module.bank.rows.norm(dim=1), torch.ones(32), rtol=1e-5, atol=1e-5)


# --- sentences before training starts ---


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"loss": "nse"}, "`loss` to be one of 'nce', 'softmax', but got 'nse'"),
        ({"temperature": 0.0}, "`temperature` to be above 0"),
        ({"momentum": 1.0}, r"`momentum` in \[0, 1\), but got 1.0"),
        ({"negatives": None}, "number of `negatives`, which NCE draws, but got None"),
        ({"negatives": 0}, "`negatives` to be above 0"),
        ({"num_images": 0}, "`num_images` to be above 0"),
        ({"schedule": "cos"}, "`schedule` to be one of 'cosine', 'step'"),
    ],
)
def test_bad_arguments(arguments, text):
    with pytest.raises(ValueError, match=text):
        InstDisc(encoder(), **{**SMALL, **arguments})


def test_bad_batches_and_trainers(trainer_options):
    class Unchanged(pl.Callback):
        def on_train_batch_end(self, *_):
            pytest.fail("a training step was made")

    def refused(text, batches=None, **arguments):
        module = InstDisc(encoder(), **{**SMALL, **arguments})
        with pytest.raises(ValueError, match=text):
            fit(module, trainer_options, batches, [Unchanged()])

    pairs = list(PairDataset(32))
    refused(
        r"number of images.*no data module knows it: pass InstDisc\(num_images=...\)",
        num_images=None,
    )
    refused("at most 31 images.*training set has 32: pass InstDisc.num_images=32", num_images=31)
    far = DataLoader([(views[:1], y, i + 30) for views, y, i in pairs], batch_size=8)
    refused("from 0 to 31 for InstDisc, but the loader gives 30 to 37: pass num_images", far)
    without = DataLoader([(views[:1], y) for views, y, _ in pairs], batch_size=8)
    refused("Expected image indices for InstDisc, whose memory bank", without)
    shifted = DataLoader([(views[:1], y, i - 1) for views, y, i in pairs], batch_size=8)
    refused("but the loader gives -1 to 6", shifted)
    two = DataLoader(PairDataset(32), batch_size=8)
    refused("1 view per image for InstDisc, but the loader gives 2.* returns 1 crop\\.", two)


def test_half_parameters_are_refused(trainer_options):
    with pytest.raises(ValueError, match="in fp32.*small steps of InstDisc.*bf16-mixed"):
        fit(InstDisc(encoder(), **SMALL), trainer_options, precision="bf16-true")


def test_more_negatives_than_rows_warn(trainer_options):
    with pytest.warns(
        UserWarning, match="draws 32 negatives from a memory bank of 32 rows.*softmax"
    ):
        fit(InstDisc(encoder(), **{**SMALL, "negatives": 32}), trainer_options)
