"""What MoCo's state does in a step, through accumulation, validation and resume; and its sentences."""

import csv
import math
import sys
import warnings
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

import goodtransfer.methods.moco as moco_module
from goodtransfer.methods import ExemplarMoCo, MoCoV1, MoCoV2
from goodtransfer.momentum import equal_share

sys.path.insert(0, str(Path(__file__).parent))
from toy_inputs import PairDataset, assert_same_state, encoder, loader, state

SMALL = {"queue_size": 16, "dim": 6}


def fit(module, options, batches=None, callbacks=(), ckpt_path=None, **trainer):
    trainer = {"max_epochs": 1, "callbacks": list(callbacks), **options, **trainer}
    trainer = pl.Trainer(**trainer)
    trainer.fit(module, batches if batches is not None else loader(), ckpt_path=ckpt_path)
    return trainer


class Log(pl.Callback):
    """Copies the logged metrics after each step."""

    def __init__(self):
        self.rows = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.rows.append({k: float(v) for k, v in trainer.callback_metrics.items()})


# --- labels of other shapes ---


def test_labels_that_are_no_classes_are_needed_or_left_out(trainer_options):
    """torchvision's CelebA gives 40 attributes an image."""
    attributes = [(views, torch.ones(40, dtype=torch.long)) for views, *_ in PairDataset()]
    batches = DataLoader(attributes, batch_size=8)
    ends = []
    for given in (batches, DataLoader([(v,) for v, _ in attributes], batch_size=8)):
        module = MoCoV2(encoder(), bn_groups=2, **SMALL)
        fit(module, trainer_options, given)
        ends.append(state(module))
    assert_same_state(*ends)
    with pytest.raises(
        ValueError, match=r"labels, \(N,\) integers .* for ExemplarMoCo, but the loader"
    ):
        fit(ExemplarMoCo(encoder(), bn_groups=2, **SMALL), trainer_options, batches)


# --- the paper's settings ---


def test_defaults_are_the_paper_s():
    expected = {
        MoCoV1: (65536, 0.07, False, "none", "step", "moco_v1"),
        MoCoV2: (65536, 0.2, True, "none", "cosine", "moco_v2"),
        ExemplarMoCo: (2**20, 0.1, True, "label", "cosine", "moco_v2"),
    }
    names = ("queue_size", "temperature", "mlp", "exclude", "schedule", "views")
    for method, values in expected.items():
        module = method(encoder(), queue_size=8) if method is ExemplarMoCo else method(encoder())
        hparams = dict(module.hparams)
        if method is ExemplarMoCo:
            import inspect

            hparams["queue_size"] = inspect.signature(method).parameters["queue_size"].default
        assert tuple(hparams[n] for n in names) == values
        assert (hparams["lr"], hparams["weight_decay"]) == (0.03, 1e-4)
        assert (hparams["momentum"], hparams["dim"]) == (0.999, 128)
        assert isinstance(module.head, nn.Sequential) == values[2]


# --- the step ---


def test_queries_train_keys_follow(trainer_options):
    module = MoCoV2(encoder(), momentum=0.9, **SMALL)
    key = {
        **dict(module.key_encoder.named_parameters()),
        **dict(module.key_head.named_parameters()),
    }
    before = {n: p.clone() for n, p in key.items()}
    fit(module, trainer_options, limit_train_batches=1)
    for name, parameter in key.items():
        assert not torch.equal(parameter, before[name]), name
        assert not parameter.requires_grad
        assert parameter.grad is None
    optimized = {id(p) for g in module.trainer.optimizers[0].param_groups for p in g["params"]}
    query = [*module.encoder.parameters(), *module.head.parameters()]
    assert optimized == {id(p) for p in query}


def test_key_side_starts_as_a_copy_including_batch_norm():
    trunk = encoder()
    trunk.trunk.bn1.running_mean.fill_(3.0)
    module = MoCoV2(trunk, **SMALL)
    assert_same_state(state(module.encoder), state(module.key_encoder))
    assert_same_state(state(module.head), state(module.key_head))


def test_ema_by_hand(trainer_options):
    module = MoCoV2(encoder(), momentum=0.75, **SMALL)
    start = state(module.key_encoder)
    fit(module, trainer_options, limit_train_batches=1)
    for name, p in module.encoder.named_parameters():
        expected = 0.75 * start[name] + 0.25 * p
        torch.testing.assert_close(dict(module.key_encoder.named_parameters())[name], expected)


def test_the_queue_holds_keys_labels_and_indices_of_earlier_batches(trainer_options):
    module = ExemplarMoCo(encoder(batch_norm=False), **SMALL)
    fit(module, trainer_options, limit_train_batches=3)  # 24 images through 16 slots
    slots = list(range(16, 24)) + list(range(8, 16))
    assert module.queue.indices.tolist() == slots
    assert module.queue.labels.tolist() == [i % 4 for i in slots]
    assert int(module.queue.pointer) == 8
    assert int(module.queue.filled) == 16


@pytest.mark.filterwarnings("ignore:The queue .16 keys:UserWarning")
@pytest.mark.parametrize("exclude", ["none", "image", "label"])
def test_loss_of_a_step_by_hand(exclude, trainer_options):
    """Two steps; the second one's loss from the queue as it stood, term by term."""
    batches = DataLoader(PairDataset(8), batch_size=8)  # of 8 images, so that a key meets its own
    module = MoCoV2(encoder(batch_norm=False), exclude=exclude, temperature=0.5, **SMALL)
    before = {}

    class Before(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            before["queue"] = state(module.queue)
            with torch.no_grad():
                (a, b), before["label"], before["index"] = batch
                before["q"] = F.normalize(module.head(module.encoder(a)[5].mean((2, 3))), dim=1)
                before["k"] = F.normalize(
                    module.key_head(module.key_encoder(b)[5].mean((2, 3))), dim=1
                )

    log = Log()
    options = trainer_options | {"log_every_n_steps": 1}
    fit(module, options, batches, [Before(), log], max_epochs=2)
    queue, total, dropped = before["queue"], 0.0, 0
    assert queue["indices"].tolist() == [*range(8), *[-1] * 8]
    for i in range(8):
        q = before["q"][i]
        positive = math.exp(float(q @ before["k"][i]) / 0.5)
        denominator = positive
        for key, label, index in zip(queue["keys"], queue["labels"], queue["indices"], strict=True):
            if (exclude == "label" and label == before["label"][i]) or (
                exclude == "image" and index == before["index"][i]
            ):
                dropped += 1
            else:
                denominator += math.exp(float(q @ key) / 0.5)
        total -= math.log(positive / denominator) / 8
    assert log.rows[1]["loss"] == pytest.approx(total, rel=1e-5)
    assert log.rows[1]["filtered"] == pytest.approx(dropped / (8 * 16))
    own = {"none": 8 / (8 * 16), "image": 0, "label": 0}[exclude]
    assert log.rows[1]["own_image"] == pytest.approx(own)
    assert log.rows[1]["queue_fill"] == 0.5
    assert log.rows[1]["lr"] == pytest.approx(0.015)  # cosine, epoch 1 of 2
    assert dropped == {"none": 0, "image": 8, "label": 16}[exclude]


def test_masked_slots_are_no_negatives(trainer_options):
    log = Log()
    module = MoCoV2(encoder(), unfilled="masked", **SMALL)
    fit(module, trainer_options, callbacks=[log], limit_train_batches=2)
    assert log.rows[0]["loss"] == 0
    assert log.rows[1]["loss"] > 0


# --- accumulation ---


def test_accumulating_four_equals_a_batch_four_times_as_large(trainer_options):
    def run(batch_size, accumulate):
        module = ExemplarMoCo(encoder(batch_norm=False), momentum=0.5, lr=0.5, **SMALL).double()
        batches = loader(batch_size=batch_size, dtype=torch.float64)
        fit(
            module,
            trainer_options,
            batches,
            accumulate_grad_batches=accumulate,
            precision="64-true",
        )
        return state(module), module.trainer.global_step

    (whole, steps), (parts, accumulated_steps) = run(16, 1), run(4, 4)
    assert steps == accumulated_steps == 2
    assert whole.keys() == parts.keys()
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], rtol=1e-9, atol=1e-11, msg=name)


# --- nothing outside a training step ---


def test_validation_sanity_check_and_test_change_nothing(trainer_options):
    module = ExemplarMoCo(encoder(), **SMALL)
    trainer = pl.Trainer(max_epochs=1, **trainer_options)
    trainer.fit(module, loader(), loader())
    before = state(module)
    trainer.validate(module, loader(), verbose=False)
    trainer.test(module, loader(), verbose=False)
    assert_same_state(before, state(module))

    class SanityOnly(pl.Callback):
        def on_sanity_check_start(self, trainer, module):
            self.before = state(module)

        def on_sanity_check_end(self, trainer, module):
            assert_same_state(self.before, state(module))
            self.ran = True

    check = SanityOnly()
    pl.Trainer(max_epochs=1, num_sanity_val_steps=2, callbacks=[check], **trainer_options).fit(
        ExemplarMoCo(encoder(), **SMALL), loader(), loader()
    )
    assert check.ran


def test_validating_in_between_does_not_change_the_training(trainer_options):
    def run(val):
        module = ExemplarMoCo(encoder(), **SMALL)
        pl.Trainer(max_epochs=2, **trainer_options).fit(module, loader(), val)
        return state(module)

    assert_same_state(run(None), run(loader()))


# --- checkpoints ---


def test_resumed_equals_straight_to_the_bit(trainer_options, tmp_path):
    def module():
        return ExemplarMoCo(encoder(), momentum=0.9, **SMALL)

    straight = module()
    fit(straight, trainer_options, max_epochs=4)
    first = module()
    fit(first, trainer_options, max_epochs=4, limit_train_batches=4,
        callbacks=[StopAfter(2)]).save_checkpoint(tmp_path / "half.ckpt")  # fmt: skip
    assert first.trainer.current_epoch == 2
    torch.manual_seed(99)
    second = ExemplarMoCo(encoder(seed=5), momentum=0.9, **SMALL)
    fit(second, trainer_options, max_epochs=4, ckpt_path=tmp_path / "half.ckpt")
    assert_same_state(state(straight), state(second))
    saved = torch.load(tmp_path / "half.ckpt", weights_only=True)["state_dict"]
    assert {f"queue.{n}" for n in ("keys", "labels", "indices", "pointer", "filled")} <= set(saved)


class StopAfter(pl.Callback):
    def __init__(self, epochs):
        self.epochs = epochs

    def on_train_epoch_end(self, trainer, module):
        trainer.should_stop = trainer.current_epoch + 1 >= self.epochs


def test_a_checkpoint_rebuilds_the_module_without_the_original_file(trainer_options, tmp_path):
    module = ExemplarMoCo("resnet10w8", queue_size=16, dim=6, temperature=0.3)
    module.encoder.set_normalization(None)
    fit(module, trainer_options, loader(size=32)).save_checkpoint(tmp_path / "m.ckpt")
    loaded = ExemplarMoCo.load_from_checkpoint(tmp_path / "m.ckpt", weights_only=True)
    assert_same_state(state(module), state(loaded))
    assert loaded.temperature == 0.3
    assert loaded.hparams["encoder"] == "resnet10w8"
    assert loaded.encoder.normalization is None


# --- batch norm must not tell the key from the negatives ---


def positive_similarity(groups):
    """Mean q.k when both views are the same images and both networks are equal."""
    module = MoCoV2(encoder(), bn_groups=groups, **SMALL).train()
    module._trainer = type("T", (), {"global_step": 3})()
    images = PairDataset(32).images
    with torch.no_grad():
        _, q = module._encode_queries(images)
        keys, own = module._encode_keys(images, 0)
    return q, keys[own]


def test_batch_norm_leaks_without_groups_and_not_with_them():
    q, k = positive_similarity(groups=1)
    torch.testing.assert_close(q, k)  # same statistics: the key is its query to the last digit
    q, k = positive_similarity(groups=4)
    assert (q - k).abs().max() > 1e-3
    q, k = positive_similarity(groups="auto")
    assert (q - k).abs().max() > 1e-3


@pytest.mark.parametrize(("groups", "warned"), [(1, True), ("auto", False), (4, False)])
def test_one_group_on_one_device_warns(groups, warned, trainer_options, recwarn):
    warnings.simplefilter("always")
    fit(MoCoV2(encoder(), bn_groups=groups, **SMALL), trainer_options)
    assert any("share batch norm statistics" in str(w.message) for w in recwarn) == warned


# --- precision ---


def test_bf16_trains_with_the_loss_in_fp32(trainer_options, monkeypatch):
    """The encoders run in bf16; from the unit vectors on all is fp32."""
    seen = []
    real = moco_module.info_nce_rows

    def recording(queries, positives, keys, **arguments):
        losses, won = real(queries, positives, keys, **arguments)
        exact = real(queries.double(), positives.double(), keys.double(), **arguments)[0]
        seen.append((queries.dtype, positives.dtype, keys.dtype, losses.dtype))
        torch.testing.assert_close(losses.double(), exact, rtol=1e-5, atol=1e-6)
        return losses, won

    monkeypatch.setattr(moco_module, "info_nce_rows", recording)
    heads = []
    module = ExemplarMoCo(encoder(), **SMALL)
    module.head.register_forward_hook(lambda _, __, out: heads.append(out.dtype))
    fit(module, trainer_options, precision="bf16-mixed", max_epochs=2)
    assert set(heads) == {torch.bfloat16}
    assert set(seen) == {(torch.float32,) * 4}
    torch.testing.assert_close(module.queue.keys.norm(dim=1), torch.ones(16), rtol=1e-5, atol=1e-5)


def test_pure_half_precision_is_refused(trainer_options):
    """With m = 0.999 the key encoder would stand still in bf16."""
    with pytest.raises(ValueError, match="parameters in fp32.*bf16-mixed"):
        fit(
            MoCoV2(encoder(), **SMALL),
            trainer_options,
            callbacks=[Unchanged()],
            precision="bf16-true",
        )


def test_what_is_logged_reaches_the_logger(trainer_options, tmp_path):
    """Also with epochs shorter than Lightning's logging interval, and fresh, not steps old."""
    from pytorch_lightning.loggers import CSVLogger

    logger = CSVLogger(tmp_path, version="")
    fills = {}

    class Fill(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            fills[trainer.global_step] = float(module.queue.filled) / len(module.queue)

    options = trainer_options | {"logger": logger, "log_every_n_steps": 3}
    module = ExemplarMoCo(encoder(), queue_size=15, dim=6)
    fit(module, options, loader(16), [Fill()], max_epochs=4)  # 2 steps an epoch
    rows = list(csv.DictReader((tmp_path / "lightning_logs/metrics.csv").read_text().splitlines()))
    assert [int(row["step"]) for row in rows] == [2, 5]
    for row in rows:
        assert float(row["queue_fill"]) == pytest.approx(fills[int(row["step"])])
        assert {"loss", "pretext_acc", "filtered", "own_image", "lr"} <= {
            k for k, v in row.items() if v
        }
    assert float(rows[1]["lr"]) == pytest.approx(0.03 * 0.5 * (1 + math.cos(math.pi * 2 / 4)))


# --- sentences before training starts ---


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"temperature": 0.0}, "`temperature` to be above 0, but got 0.0"),
        ({"temperature": -0.1}, "`temperature` to be above 0"),
        ({"queue_size": 0}, "`queue_size` to be above 0"),
        (
            {"exclude": "labels"},
            "`exclude` to be one of 'none', 'image', 'label', but got 'labels'",
        ),
        ({"unfilled": "zero"}, "`unfilled` to be one of 'noise', 'masked'"),
        ({"schedule": "cos"}, "`schedule` to be one of 'cosine', 'step', but got 'cos'"),
        ({"momentum": 1.5}, r"`momentum` in \[0, 1\], but got 1.5"),
        ({"encoder": "resnet51"}, "encoder name like resnet50.*'resnet51'"),
    ],
)
def test_bad_arguments(arguments, text):
    with pytest.raises(ValueError, match=text):
        ExemplarMoCo(**{"encoder": encoder(), **SMALL, **arguments})


class Unchanged(pl.Callback):
    """Fails the test if a step was made."""

    def on_train_batch_end(self, *_):
        pytest.fail("a training step was made")


@pytest.mark.parametrize(
    ("items", "text"),
    [
        (lambda i: (PairDataset(32)[i][0],), "Expected labels.*ExemplarMoCo.*use MoCoV2"),
        (lambda i: (PairDataset(32)[i][0][:1], 1), "2 views per image for ExemplarMoCo.*gives 1"),
        (lambda i: (PairDataset(32)[i][0] * 2, 1), "2 views per image for ExemplarMoCo.*gives 4"),
        (
            lambda i: (tuple(4 * v - 2 for v in PairDataset(32)[i][0]), 1),
            r"images in \[0, 1\] or uint8.*remove Normalize",
        ),
    ],
)
def test_bad_batches(items, text, trainer_options):
    batches = DataLoader([items(i) for i in range(32)], batch_size=8)
    with pytest.raises(ValueError, match=text):
        fit(ExemplarMoCo(encoder(), **SMALL), trainer_options, batches, [Unchanged()])


def test_exclude_image_without_indices(trainer_options):
    batches = DataLoader([(v, y) for v, y, _ in PairDataset(32)], batch_size=8)
    with pytest.raises(ValueError, match="image indices.*MoCoV2"):
        fit(MoCoV2(encoder(), exclude="image", **SMALL), trainer_options, batches)


def test_sync_batch_norm_is_refused(trainer_options):
    with pytest.raises(ValueError, match="sync_batchnorm=True: it undoes the shuffling"):
        fit(
            MoCoV2(encoder(), **SMALL),
            trainer_options,
            callbacks=[Unchanged()],
            sync_batchnorm=True,
        )
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(encoder())
    with pytest.raises(ValueError, match="undoes the shuffling"):
        fit(MoCoV2(synced, **SMALL), trainer_options, callbacks=[Unchanged()])


@pytest.mark.parametrize(
    ("method", "end"),
    [(MoCoV2, "they count as negatives"), (ExemplarMoCo, "exclude='label' leaves them out")],
)
def test_a_queue_as_large_as_the_data_set_warns(method, end, trainer_options):
    text = f"64 keys.*32 images.*about 2.0 earlier keys of its own image, 3.12% of.*{end}"
    with pytest.warns(UserWarning, match=text):
        fit(method(encoder(), queue_size=64, dim=6), trainer_options)


def test_the_schedule_needs_to_know_the_epochs(trainer_options):
    with pytest.raises(ValueError, match=r"Trainer\(max_epochs=...\).*cosine"):
        fit(MoCoV2(encoder(), **SMALL), trainer_options, max_epochs=-1, max_steps=2)


def test_equal_share_is_what_is_logged():
    labels = torch.tensor([0, 1, 2, 3] * 2)
    assert float(equal_share(labels, labels)) == pytest.approx(0.25)
