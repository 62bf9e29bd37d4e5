"""The leak of batch norm: found in a network that learnt it, and looked for without a trace."""

import csv
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from pytorch_lightning.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from goodtransfer.callbacks.bn_leak import BNLeak, bn_leak
from goodtransfer.distributed import permutation
from goodtransfer.encoders import OwnTrunk
from goodtransfer.methods import ExemplarMoCo, MoCoV2, SupervisedCE

sys.path.insert(0, str(Path(__file__).parents[1] / "methods"))
from toy_inputs import PairDataset, assert_same_state, encoder, loader, state

one_group = pytest.mark.filterwarnings("ignore:With bn_groups=1 on one device:UserWarning")
SMALL = {"queue_size": 16, "dim": 6}


def normalised(x, members):
    """Batch norm by its formula: each row by the mean and variance of the rows beside it."""
    out = torch.empty_like(x)
    for rows in members:
        mean = x[rows].mean((0, 2, 3), keepdim=True)
        variance = x[rows].var((0, 2, 3), unbiased=False, keepdim=True)
        out[rows] = (x[rows] - mean) / (variance + 1e-5).sqrt()
    return out


def literal_encode(trunk, head, images, members):
    x = trunk.conv1(trunk_input(images))
    norm = trunk.bn1
    x = normalised(x, members) * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)
    features = torch.tanh(trunk.conv2(torch.tanh(x))).mean((2, 3))
    return F.normalize(head(features), dim=1)


def trunk_input(images):
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
    return (images - mean.view(3, 1, 1)) / std.view(3, 1, 1)


def literal_accuracy(module, batch, query_members, key_members):
    """Percent of queries nearer to their key than to every negative, one after the other."""
    (a, b), label, _ = batch
    q = literal_encode(module.encoder.trunk, module.head, a, query_members)
    k = literal_encode(module.key_encoder.trunk, module.key_head, b, key_members)
    won = 0
    for i in range(len(a)):
        others = [
            float(q[i] @ key)
            for key, other in zip(module.queue.keys, module.queue.labels, strict=True)
            if other != label[i] or module.exclude == "none"
        ]
        won += float(q[i] @ k[i]) >= max(others)
    return 100 * won / len(a)


def trained(method=MoCoV2, **arguments):
    """After some steps, so that the queue holds keys and the two networks differ."""
    arguments = {"queue_size": 64, "dim": 6, "lr": 0.003} | arguments
    module = method(encoder(), **arguments)
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=4, max_epochs=4, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(PairDataset(64, size=8), batch_size=32))
    return module.train()


@one_group
@pytest.mark.filterwarnings("ignore:The queue .64 keys:UserWarning")
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("method", [MoCoV2, ExemplarMoCo])
def test_equals_a_literal_accuracy(groups, method):
    """Groups, permutation and filter written out; batch 5 of a step has its own permutation."""
    module = trained(method, bn_groups=groups)
    generator = torch.Generator().manual_seed(7)
    a, b = torch.rand(2, 32, 3, 8, 8, generator=generator)
    batch = ((a, (4 * a + b) / 5), torch.arange(32) % 4, torch.arange(100, 132))
    found = bn_leak(module, batch, 5)

    order = permutation(32, (4 << 20) + 5).tolist()

    def parts(count):
        return [list(range(g, 32, count)) for g in range(count)]

    def permuted(count):
        return [[order[place] for place in part] for part in parts(count)]

    with torch.no_grad():
        assert found == pytest.approx({
            "acc_as_trained": literal_accuracy(module, batch, parts(groups), permuted(groups)),
            "acc_separate_statistics": literal_accuracy(module, batch, parts(2), permuted(2)),
            "acc_shared_statistics": literal_accuracy(module, batch, parts(2), parts(2)),
            "gap": literal_accuracy(module, batch, parts(2), parts(2))
            - literal_accuracy(module, batch, parts(2), permuted(2)),
        })  # fmt: skip
    assert 0 < found["acc_separate_statistics"] < 100


class Drops(nn.Module):
    """Batch norm and dropout, on both of which a pass leaves its mark."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2)
        self.norm, self.drop = nn.BatchNorm2d(8), nn.Dropout(0.3)

    def forward(self, x):
        return self.drop(torch.tanh(self.norm(self.conv(x))))


def test_leaves_no_trace(trainer_options):
    """Two fits, one watched: every weight, buffer, key and generator is equal, bit for bit."""

    def run(callbacks):
        torch.manual_seed(3)
        module = ExemplarMoCo(OwnTrunk(Drops()), momentum=0.9, lr=0.3, **SMALL)
        torch.manual_seed(4)
        pl.Trainer(max_epochs=2, callbacks=callbacks, **trainer_options).fit(module, loader())
        return state(module), torch.get_rng_state()

    watch = BNLeak(batches=3, threshold=100)
    (plain, random), (watched, random_watched) = run([]), run([watch])
    assert_same_state(plain, watched)
    assert torch.equal(random, random_watched)
    assert watch.values


def test_passes_differ_in_the_permutation_only(monkeypatch):
    """Dropout draws the same in each pass; without batch norm all three agree."""

    class OnlyDrops(Drops):
        def __init__(self):
            super().__init__()
            self.norm = nn.Identity()

    torch.manual_seed(0)
    module = MoCoV2(OwnTrunk(OnlyDrops()), queue_size=64, dim=6).train()
    drawn = []
    module.encoder.trunk.drop.register_forward_hook(lambda *_: drawn.append(torch.get_rng_state()))
    found = bn_leak(module, next(iter(loader())))
    assert len(drawn) == 3
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])
    assert set(found) == {
        "acc_as_trained",
        "acc_separate_statistics",
        "acc_shared_statistics",
        "gap",
    }


# --- a network that learns the leak ---


class Lit(Dataset):
    """Batches of 64 pairs: lights that differ from image to image, and so from batch to batch, and a
    patch of the image's own colour. Statistics tell batches apart; the patch tells images apart.
    """

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        generator = torch.Generator().manual_seed(i)

        def rand(*shape):
            return torch.rand(64, 3, *shape, generator=generator)

        light, colour = rand(1, 1) ** 4, rand(1, 1)
        views = []
        for _ in range(2):
            view = rand(12, 12) * light
            view[..., :3, :3] = (colour + 0.3 * rand(3, 3)) / 1.3
            views.append(view)
        return (tuple(views),)


class TwoNorms(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False)
        self.conv2 = nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(16), nn.BatchNorm2d(32)

    def forward(self, x):
        return torch.relu(self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x))))))


def leak_after(groups, options, seed=0, steps=400):
    torch.manual_seed(seed)
    trunk = OwnTrunk(TwoNorms(), normalization=None)
    module = MoCoV2(
        trunk, queue_size=512, dim=16, temperature=0.1, momentum=0.99, bn_groups=groups, lr=0.03
    )
    watch = BNLeak(batches=8)
    pl.Trainer(max_epochs=1, callbacks=[watch], **options).fit(
        module, DataLoader(Lit(steps), batch_size=None)
    )
    return watch.values


@one_group
def test_a_network_that_learnt_the_leak_is_told_from_one_that_could_not(trainer_options):
    with pytest.warns(UserWarning, match=r"gives keys away: .* pretext accuracy is \d+ %.*'auto'"):
        leaky = leak_after(1, trainer_options)
    sound = leak_after(8, trainer_options)  # warnings are errors: this one must not warn
    assert leaky["bn_leak/gap"] > 20
    assert sound["bn_leak/gap"] < 10
    # The leaky one, whose own groups hide nothing, looks the better of the two.
    assert leaky["bn_leak/acc_as_trained"] == pytest.approx(
        leaky["bn_leak/acc_shared_statistics"], abs=3
    )
    assert leaky["bn_leak/acc_as_trained"] > sound["bn_leak/acc_separate_statistics"]


# --- when and what it logs ---


class Spy(pl.Callback):
    """The batches on which a method is asked for more than its steps."""

    def __init__(self, images=32):
        self.images, self.seen = images, []

    def on_fit_start(self, trainer, module):
        real = module.pretext

        def pretext(batch, batch_idx, **passes):
            assert not module.held
            before = trainer.current_epoch * self.images + 8 * batch_idx
            assert int(module.queue.pointer) == before % len(module.queue)
            won = real(batch, batch_idx, **passes)
            self.seen.append((trainer.current_epoch, batch_idx, len(won), int(won.sum())))
            return won

        module.pretext = pretext


@pytest.mark.parametrize(("count", "sizes"), [(32, [8, 8, 8]), (28, [8, 8, 4]), (12, [8, 4])])
def test_last_batches_of_every_second_epoch_each_image_counting_once(
    count, sizes, trainer_options, tmp_path
):
    spy, logger = Spy(count), CSVLogger(tmp_path, version="")
    watch = BNLeak(2, batches=3, threshold=100)
    options = trainer_options | {"logger": logger, "log_every_n_steps": 100}
    trainer = pl.Trainer(max_epochs=5, callbacks=[watch, spy], **options)
    module = MoCoV2(encoder(), queue_size=9, dim=6)
    trainer.fit(module, DataLoader(PairDataset(count), batch_size=8))
    last = -(-count // 8)
    expected = [
        (epoch, batch_idx, size)
        for epoch in (1, 3)
        for batch_idx, size in zip(range(last - len(sizes), last), sizes, strict=True)
        for _ in range(3)
    ]
    assert [row[:3] for row in spy.seen] == expected
    rows = list(csv.DictReader((tmp_path / "lightning_logs/metrics.csv").read_text().splitlines()))
    rows = [row for row in rows if row.get("bn_leak/gap")]
    assert [int(row["epoch"]) for row in rows] == [1, 3]
    for row in rows:
        won = [w for epoch, _, _, w in spy.seen if epoch == int(row["epoch"])]
        trained, separate, shared = (100 * sum(won[i::3]) / sum(sizes) for i in range(3))
        logged = [float(row[f"bn_leak/{name}"]) for name in (
            "acc_as_trained", "acc_separate_statistics", "acc_shared_statistics", "gap",
        )]  # fmt: skip
        assert logged == pytest.approx([trained, separate, shared, shared - separate], abs=1e-4)
    assert watch.values["bn_leak/gap"] == pytest.approx(float(rows[-1]["bn_leak/gap"]), abs=1e-4)


class Endless(IterableDataset):
    def __iter__(self):
        yield from loader()


def test_of_a_loader_without_length_the_first_batches(trainer_options):
    spy = Spy()
    trainer = pl.Trainer(max_epochs=1, callbacks=[BNLeak(batches=2), spy], **trainer_options)
    trainer.fit(MoCoV2(encoder(), **SMALL), DataLoader(Endless(), batch_size=None))
    assert [row[1] for row in spy.seen] == [0, 0, 0, 1, 1, 1]


def test_as_trained_in_the_precision_of_the_training(trainer_options):
    heads = []
    module = MoCoV2(encoder(), **SMALL)
    module.key_head.register_forward_hook(lambda _, __, out: heads.append(out.dtype))
    trainer = pl.Trainer(
        max_epochs=1, callbacks=[BNLeak()], precision="bf16-mixed", **trainer_options
    )
    trainer.fit(module, loader())
    assert heads == [torch.bfloat16] * (4 + 4 * 3)


def rank_measures(rank, folder):
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    module, (views, label, index) = pair_of_ranks()
    own = slice(16 * rank, 16 * rank + 16)
    found = bn_leak(module, (tuple(v[own] for v in views), label[own], index[own]))
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()  # gloo of PyTorch 2.6 waits for ever where the other is gone
    dist.destroy_process_group()


def pair_of_ranks():
    module = MoCoV2(encoder(seed=2), queue_size=64, dim=6).train()
    generator = torch.Generator().manual_seed(7)
    a, b = torch.rand(2, 32, 3, 8, 8, generator=generator)
    module.queue.enqueue(F.normalize(module.head(torch.rand(64, 12, generator=generator)).detach()))
    return module, ((a, (2 * a + b) / 3), torch.arange(32), torch.arange(32))


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_two_ranks_hide_by_shuffling_and_share_without(tmp_path):
    mp.start_processes(rank_measures, args=(str(tmp_path),), nprocs=2, start_method="fork")
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert found[0] == found[1]
    module, batch = pair_of_ranks()
    order = permutation(32, 0).tolist()
    ranks = [list(range(16)), list(range(16, 32))]
    with torch.no_grad():
        separate = literal_accuracy(module, batch, ranks, [order[:16], order[16:]])
        shared = literal_accuracy(module, batch, ranks, ranks)
    assert 0 < separate < 100
    assert found[0] == pytest.approx({
        "acc_as_trained": separate,
        "acc_separate_statistics": separate,
        "acc_shared_statistics": shared,
        "gap": shared - separate,
    })  # fmt: skip


@pytest.mark.parametrize(
    ("item", "text"),
    [
        (lambda views: (views[:1], 0), "2 views per image for ExemplarMoCo, .* gives 1"),
        (lambda views: (views,), "Expected labels.*for ExemplarMoCo"),
    ],
)
def test_a_bad_first_batch_is_told_by_the_method_s_sentence(item, text, trainer_options):
    """Callbacks have the batch before the method does."""
    batches = DataLoader([item(views) for views, *_ in PairDataset(32)], batch_size=8)
    trainer = pl.Trainer(max_epochs=1, callbacks=[BNLeak()], **trainer_options)
    with pytest.raises(ValueError, match=text):
        trainer.fit(ExemplarMoCo(encoder(), **SMALL), batches)


def test_refusals(trainer_options):
    with pytest.raises(ValueError, match="training mode.*call method.train()"):
        bn_leak(MoCoV2(encoder(), **SMALL).eval(), next(iter(loader())))
    with pytest.raises(ValueError, match="Expected MoCoV1.*got SupervisedCE: remove BNLeak"):
        bn_leak(SupervisedCE(encoder(), num_classes=4), next(iter(loader())))
    with pytest.raises(ValueError, match="got SupervisedCE"):
        pl.Trainer(max_epochs=1, callbacks=[BNLeak()], **trainer_options).fit(
            SupervisedCE(encoder(), num_classes=4), loader()
        )
    with pytest.raises(ValueError, match="above 0, but got 0 and 4"):
        BNLeak(0)
