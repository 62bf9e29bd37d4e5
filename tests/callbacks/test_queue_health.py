"""QueueHealth against a queue kept as a plain list, pair by pair."""

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from torch.utils.data import DataLoader

from goodtransfer.callbacks import queue_health
from goodtransfer.callbacks.queue_health import QueueHealth, hardest_negatives, histogram, key_ages
from goodtransfer.methods import ExemplarMoCo, MoCoV1, MoCoV2, SupervisedCE

sys.path.insert(0, str(Path(__file__).parents[1] / "methods"))
from toy_inputs import PairDataset, assert_same_state, encoder, loader, state

own_images = pytest.mark.filterwarnings("ignore:The queue .* keys.:UserWarning")


class PartlyLabelled(PairDataset):
    """Every fifth image has no label."""

    def __getitem__(self, i):
        views, label, index = super().__getitem__(i)
        return views, -1 if i % 5 == 0 else label, index


class Literal(pl.Callback):
    """A list of (key, label, index, step it came in), oldest first, and the values by counting.

    For an encoder without batch norm, whose keys do not depend on the images beside them.
    """

    def __init__(self):
        self.entries, self.pending, self.rows, self.step = None, [], [], 0

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if self.entries is None:
            self.entries = [(key, -1, -1, None) for key in module.queue.keys.clone()]
        if trainer.global_step > self.step:
            self.entries = (self.entries + self.pending)[-len(module.queue) :]
            self.step, self.pending = trainer.global_step, []
        (a, b), labels, indices = batch
        with torch.no_grad():
            q = F.normalize(module.head(module.encoder(a)[5].mean((2, 3))), dim=1)
            k = F.normalize(module.key_head(module.key_encoder(b)[5].mean((2, 3))), dim=1)
        images = list(zip(q, k, labels.tolist(), indices.tolist(), strict=True))
        if not self.pending:
            self.rows.append(self.values(module, images))
        self.pending += [(key, label, index, self.step) for _, key, label, index in images]

    def values(self, module, images):
        real = [e for e in self.entries if e[3] is not None]
        read = self.entries if module.unfilled == "noise" else real
        filtered = own = 0
        hardest = []
        for query, _, label, index in images:
            negatives = []
            for key, key_label, key_index, _ in read:
                same = {
                    "none": False,
                    "image": index == key_index,
                    "label": label == key_label >= 0,
                }
                filtered += same[module.exclude]
                if not same[module.exclude]:
                    own += index == key_index
                    negatives.append(float(query @ key))
            hardest += [max(negatives)] if negatives else []
        pairs = max(1, len(images) * len(read))
        positive = [float(query @ key) for query, key, *_ in images]
        ages = sorted(self.step - came for *_, came in real)
        labels = [label for _, label, _, _ in real if label >= 0]
        values = {
            "fill": len(real) / len(self.entries),
            "classes": len(set(labels)),
            "filtered": filtered / pairs,
            "own_image": own / pairs,
            **{f"positive_similarity_p{p:02}": np.percentile(positive, p) for p in (5, 50, 95)},
        }
        if real:
            values |= {"age_median": ages[(len(ages) - 1) // 2], "age_max": ages[-1]}
            values["class_share_max"] = max(labels.count(x) for x in labels) / len(labels)
        if hardest:
            for p in (50, 95, 99):
                values[f"hard_negative_similarity_p{p}"] = np.percentile(hardest, p)
        return {f"health/{name}": value for name, value in values.items()}


class Keep(pl.Callback):
    """The callback's values after each step in which they changed."""

    def __init__(self, health):
        self.health, self.rows = health, []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if self.health.values and self.health.values not in self.rows[-1:]:
            self.rows.append(self.health.values)


def run(options, method=ExemplarMoCo, batches=None, every=1, extra=(), module=None, **arguments):
    fit = {k: arguments.pop(k) for k in ("max_epochs", "accumulate_grad_batches") if k in arguments}
    ckpt_path = arguments.pop("ckpt_path", None)
    health = QueueHealth(every_n_steps=every)
    kept = Keep(health)
    module = (
        module
        or method(
            encoder(batch_norm=False), **{"queue_size": 20, "dim": 6, "lr": 0.5} | arguments
        ).double()
    )
    callbacks = [*extra, health, kept]
    trainer = pl.Trainer(**{"max_epochs": 2, "callbacks": callbacks} | options | fit)
    trainer.fit(module, batches or uneven(), ckpt_path=ckpt_path)
    return health, kept.rows, trainer


def uneven(count=28):
    """Batches of 8, 8, 8 and 4."""
    return DataLoader(PartlyLabelled(count, dtype=torch.float64), batch_size=8)


@own_images
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        (MoCoV1, {"queue_size": 21}),
        (MoCoV2, {"queue_size": 60}),
        (MoCoV2, {"exclude": "image", "unfilled": "masked"}),
        (ExemplarMoCo, {"momentum": 0.9}),
        (ExemplarMoCo, {"queue_size": 5, "unfilled": "masked"}),
    ],
)
def test_equals_a_queue_kept_as_a_list(method, arguments, accumulate, trainer_options):
    """Uneven batches, steps of 24 and of 4 keys, wraps, and keys without label."""
    literal = Literal()
    _, rows, trainer = run(
        trainer_options, method, extra=[literal], accumulate_grad_batches=accumulate, **arguments
    )
    assert len(rows) == trainer.global_step == {1: 8, 3: 4}[accumulate]
    for row, expected in zip(rows, literal.rows, strict=True):
        assert row == pytest.approx(expected, rel=1e-6, abs=1e-9)
    seen = {name: {row.get(name) for row in rows} for name in rows[-1]}
    assert all(len(values) > 1 for name, values in seen.items() if "similarity" in name)


@own_images
def test_every_kind_of_pair_was_met(trainer_options):
    """What the comparison above rests on: own images, filtered or not, beside unlabelled ones."""
    _, rows, _ = run(trainer_options, ExemplarMoCo, queue_size=60)
    assert 0 < rows[-1]["health/own_image"] < rows[-1]["health/filtered"] < 1
    _, rows, _ = run(trainer_options, MoCoV2, queue_size=60)
    assert rows[-1]["health/filtered"] == 0
    assert rows[-1]["health/own_image"] > 0
    assert rows[-1]["health/age_max"] == 7
    assert rows[-1]["health/classes"] == 4


def test_ages_by_hand():
    assert key_ages([4, 4, 1], 9, of_before=4).tolist() == [1, 2, 2, 2, 2, 3, 3, 3, 3]
    assert key_ages([4, 4, 1], 7, of_before=4).tolist() == [1, 2, 2, 2, 2, 3, 3]
    assert key_ages([9], 5, of_before=9).tolist() == [1] * 5
    assert key_ages([], 0, of_before=8).tolist() == []
    assert key_ages([], 3, of_before=2).tolist() == [1, 1, 2]


@own_images
@pytest.mark.parametrize("accumulate", [1, 3])
def test_resume_knows_the_ages(accumulate, trainer_options, tmp_path):
    options = {"accumulate_grad_batches": accumulate, "queue_size": 60}
    _, straight, _ = run(trainer_options, max_epochs=4, **options)
    _, first, trainer = run(trainer_options, max_epochs=2, **options)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    _, second, _ = run(trainer_options, max_epochs=4, ckpt_path=tmp_path / "half.ckpt", **options)
    ages = [[row.get("health/age_median"), row.get("health/age_max")] for row in straight]
    assert [[r.get("health/age_median"), r.get("health/age_max")] for r in first + second] == ages
    assert [row["health/fill"] for row in first + second] == [r["health/fill"] for r in straight]
    assert len({tuple(pair) for pair in ages}) > 3


@own_images
def test_a_queue_older_than_the_callback_counts_steps_of_one_size(trainer_options, tmp_path):
    module = MoCoV2(encoder(batch_norm=False), queue_size=30, dim=6).double()
    batches = loader(dtype=torch.float64)
    trainer = pl.Trainer(max_epochs=1, **trainer_options)
    trainer.fit(module, batches)
    trainer.save_checkpoint(tmp_path / "without.ckpt")
    _, rows, _ = run(
        trainer_options, MoCoV2, batches, queue_size=30, ckpt_path=tmp_path / "without.ckpt"
    )
    # 30 keys, 8 a step: 8, 8, 8 and the newest 6 of a fourth.
    assert [row["health/age_max"] for row in rows] == [4] * 4
    assert [row["health/age_median"] for row in rows] == [2] * 4


@own_images
def test_changes_nothing(trainer_options):
    def after(callbacks):
        module = ExemplarMoCo(encoder(), queue_size=20, dim=6)
        torch.manual_seed(4)
        pl.Trainer(max_epochs=2, callbacks=callbacks, **trainer_options).fit(module, loader())
        return state(module), torch.get_rng_state()

    (plain, random), (watched, random_watched) = after([]), after([QueueHealth(1)])
    assert_same_state(plain, watched)
    assert torch.equal(random, random_watched)


# --- the two functions ---


@pytest.mark.parametrize("block", [1, 7, 64, 10**6])
@pytest.mark.parametrize("labelled", [False, True])
def test_hardest_negatives_in_any_blocks(block, labelled, monkeypatch):
    monkeypatch.setattr(queue_health, "_SIMILARITIES", block)
    generator = torch.Generator().manual_seed(0)
    q, keys = (torch.randn(n, 4, generator=generator) for n in (7, 31))
    a, b = (torch.randint(-1, 3, (n,), generator=generator) for n in (7, 31))
    a[0], b[b == 2] = 2, 1
    found = hardest_negatives(q, keys, a if labelled else None, b if labelled else None)
    for i in range(7):
        others = [
            float(q[i] @ key)
            for key, label in zip(keys, b, strict=True)
            if not (labelled and label == a[i] and label >= 0)
        ]
        assert float(found[i]) == pytest.approx(max(others))
    alone = hardest_negatives(q[:1], keys[:2], torch.tensor([5]), torch.tensor([5, 5]))
    assert alone.tolist() == [-torch.inf]
    assert hardest_negatives(q, keys[:0], None, None).tolist() == [-torch.inf] * 7


def test_only_the_first_queries_meet_all_keys(trainer_options, monkeypatch):
    monkeypatch.setattr(queue_health, "_QUERIES", 3)
    sizes = []
    real = queue_health.hardest_negatives

    def recording(queries, keys, query_labels, key_labels):
        sizes.append((len(queries), len(keys), len(query_labels), len(key_labels)))
        return real(queries, keys, query_labels, key_labels)

    monkeypatch.setattr(queue_health, "hardest_negatives", recording)
    health, _, _ = run(trainer_options, max_epochs=1)
    assert sizes == [(3, 20, 3, 20)] * 4
    assert health.histograms["health/positive_similarity"].counts.sum() == 4


def test_histograms_count_every_value():
    few = histogram(torch.tensor([3, 5, 3, 3]))
    assert few.counts.tolist() == [3, 0, 1]
    assert few.edges.tolist() == [2.5, 3.5, 4.5, 5.5]
    assert histogram(torch.tensor([7])).counts.tolist() == [1]
    many = histogram(torch.arange(1000))
    assert len(many.counts) == 64
    assert many.counts.sum() == 1000
    values = torch.rand(500, generator=torch.Generator().manual_seed(0))
    counts, edges = histogram(values)
    for count, low, high in zip(counts[:-1], edges[:-1], edges[1:], strict=False):
        assert count == sum(low <= float(v) < high for v in values)


# --- loggers ---


def test_csv_gets_scalars_at_the_steps_asked_for(trainer_options, tmp_path):
    logger = CSVLogger(tmp_path, version="")
    options = trainer_options | {"logger": logger, "log_every_n_steps": 100}
    health, rows, _ = run(options, every=3, accumulate_grad_batches=1)
    written = list(
        csv.DictReader((tmp_path / "lightning_logs/metrics.csv").read_text().splitlines())
    )
    assert [int(row["step"]) for row in written] == [2, 5]
    for row, values in zip(written, rows, strict=True):
        assert {name: float(row[name]) for name in values} == pytest.approx(values, rel=1e-5)
    assert health.values == rows[-1]
    assert health.state_dict() == {"added": [8, 8, 4]}  # the steps that 20 keys come from


def test_tensorboard_gets_histograms(trainer_options, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path)
    health, rows, _ = run(trainer_options | {"logger": logger}, every=3)
    logger.experiment.flush()
    events = EventAccumulator(logger.log_dir, size_guidance={"histograms": 0, "scalars": 0})
    events.Reload()
    for name in health.values:
        logged = [(e.step, e.value) for e in events.Scalars(name)]
        assert logged == [(s, pytest.approx(r[name])) for s, r in zip((2, 5), rows, strict=True)]
    assert len(health.histograms) == 4
    for name, (counts, edges) in health.histograms.items():
        first, last = events.Histograms(f"{name}_histogram")
        assert (first.step, last.step) == (2, 5)
        shown = last.histogram_value
        assert shown.num == counts.sum() == sum(shown.bucket)
        # TensorBoard drops empty bins at both ends.
        kept = dict(zip(shown.bucket_limit, shown.bucket, strict=True))
        full = {edge: count for edge, count in zip(edges[1:], counts, strict=True) if count}
        assert {edge: count for edge, count in kept.items() if count} == pytest.approx(full)
    ages = health.histograms["health/age"]
    assert ages.counts.tolist() == [8, 4, 8]  # after batches of 8, 8, 8, 4 and 8
    assert health.histograms["health/class"].counts.sum() < 20  # keys without label


def test_wandb_gets_histograms(trainer_options, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(save_dir=tmp_path, project="p")
    health, _, _ = run(trainer_options | {"logger": logger}, every=5)
    summary = logger.experiment.summary
    kept = {name: summary[f"{name}_histogram"] for name in health.histograms}
    scalars = {name: summary[name] for name in health.values}
    step = summary["trainer/global_step"]
    wandb.finish()
    assert step == 4
    assert scalars == pytest.approx(health.values)
    for name, (counts, edges) in health.histograms.items():
        assert kept[name]["_type"] == "histogram"
        assert list(kept[name]["values"]) == counts.tolist()
        assert list(kept[name]["bins"]) == pytest.approx(edges.tolist())


# --- two ranks ---


class Rows(pl.Callback):
    """Writes what this rank's callback held after each step."""

    def __init__(self, health, folder):
        self.health, self.folder, self.rows = health, folder, []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.rows.append({"values": self.health.values, "index": batch[2].tolist()})

    def on_train_end(self, trainer, module):
        torch.save(self.rows, self.folder / f"{trainer.global_rank}.pt")


@own_images
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("exclude", ["none", "label"])
def test_two_ranks_equal_one_process_with_the_joined_batches(exclude, trainer_options, tmp_path):
    def fresh():
        return MoCoV2(
            encoder(batch_norm=False), queue_size=20, dim=6, lr=0.5, exclude=exclude
        ).double()

    dataset = PartlyLabelled(32, dtype=torch.float64)
    health = QueueHealth(every_n_steps=1)
    logger = CSVLogger(tmp_path, version="")
    trainer = pl.Trainer(
        max_epochs=1,
        callbacks=[health, Rows(health, tmp_path)],
        **trainer_options | {"devices": 2, "strategy": "ddp_fork", "logger": logger},
    )
    trainer.fit(fresh(), DataLoader(dataset, batch_size=4))
    a, b = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2))
    assert [row["values"] for row in a] == [row["values"] for row in b]
    joined = [x["index"] + y["index"] for x, y in zip(a, b, strict=True)]
    batches = DataLoader(dataset, batch_sampler=joined)
    _, rows, _ = run(trainer_options, module=fresh(), batches=batches, max_epochs=1)
    assert len(rows) == 4
    for row, expected in zip(a, rows, strict=True):
        assert row["values"] == pytest.approx(expected, rel=1e-9)
    written = list(
        csv.DictReader((tmp_path / "lightning_logs/metrics.csv").read_text().splitlines())
    )
    assert len([row for row in written if row["health/fill"]]) == 4


def test_refusals(trainer_options):
    with pytest.raises(ValueError, match=r"queue of keys .* got SupervisedCE: remove the callback"):
        pl.Trainer(max_epochs=1, callbacks=[QueueHealth()], **trainer_options).fit(
            SupervisedCE(encoder(), num_classes=4), loader()
        )
    with pytest.raises(ValueError, match="`every_n_steps` to be above 0, but got 0"):
        QueueHealth(0)
