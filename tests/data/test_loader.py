"""The order of an epoch over ranks, and runs cut in the middle that go on as if never cut."""

import hashlib
import subprocess
import sys
from collections import Counter
from itertools import chain

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DistributedSampler

from goodtransfer.data import ImageNetDataModule, loader, make_imagefolder
from goodtransfer.data.files import scan_flat
from goodtransfer.data.images import ImageDataset, collate
from goodtransfer.data.loader import EpochSampler, GroupedSampler, ResumableLoader
from goodtransfer.views import recipe


def numbers(sampler, epoch=0):
    sampler.set_epoch(epoch)
    addresses = list(sampler)
    assert {e for e, _ in addresses} <= {epoch}
    assert len(addresses) == len(sampler)
    return [number for _, number in addresses]


def on_ranks(monkeypatch, ranks, epoch=0, kind=EpochSampler, **arguments):
    """What each of ``ranks`` ranks reads in an epoch."""
    monkeypatch.setattr(loader, "world_size", lambda: ranks)
    dealt = []
    for rank in range(ranks):
        monkeypatch.setattr(loader, "rank", lambda rank=rank: rank)
        dealt.append(numbers(kind(**arguments), epoch))
    return dealt


def test_an_epoch_is_a_permutation_of_its_own():
    sampler = EpochSampler(50, shuffle=True, seed=3, drop_last=True)
    epochs = [numbers(sampler, epoch) for epoch in range(3)]
    assert all(sorted(order) == list(range(50)) for order in epochs)
    assert len({tuple(order) for order in epochs}) == 3
    assert numbers(sampler, 1) == epochs[1]
    assert numbers(EpochSampler(50, shuffle=True, seed=4, drop_last=True)) != epochs[0]
    assert numbers(EpochSampler(50, shuffle=False, drop_last=False), 7) == list(range(50))


def test_lightning_leaves_it_alone():
    """Under DDP it would put its own sampler in place of any other kind."""
    assert isinstance(EpochSampler(3, shuffle=True, drop_last=True), DistributedSampler)


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("shuffle", [True, False])
def test_ranks_share_one_permutation_round_robin(monkeypatch, ranks, shuffle):
    """So a batch of all ranks is the batch that one rank with all of it would see."""
    arguments = {"count": 12, "shuffle": shuffle, "seed": 5, "drop_last": True, "epoch": 2}
    [alone] = on_ranks(monkeypatch, 1, **arguments)
    dealt = on_ranks(monkeypatch, ranks, **arguments)
    for rank, own in enumerate(dealt):
        assert own == alone[rank::ranks]


@pytest.mark.parametrize("ranks", [2, 4, 5])
def test_what_does_not_fill_a_round(monkeypatch, ranks):
    """Dropped, or filled up with the first images; every rank reads equally many."""
    [order] = on_ranks(monkeypatch, 1, count=11, shuffle=True, drop_last=True)
    dropped = on_ranks(monkeypatch, ranks, count=11, shuffle=True, drop_last=True)
    rounds = 11 // ranks
    assert {len(own) for own in dropped} == {rounds}
    assert sorted(chain(*dropped)) == sorted(order[: rounds * ranks])
    padded = on_ranks(monkeypatch, ranks, count=11, shuffle=True, drop_last=False)
    missing = -11 % ranks
    assert {len(own) for own in padded} == {(11 + missing) // ranks}
    assert Counter(chain(*padded)) == Counter(order + order[:missing])


def test_more_ranks_than_twice_the_images(monkeypatch):
    dealt = on_ranks(monkeypatch, 5, count=2, shuffle=False, drop_last=False)
    assert {len(own) for own in dealt} == {1}


def test_rank_is_read_when_the_epoch_starts(monkeypatch):
    """Data modules build loaders before some strategies start the process group."""
    sampler = EpochSampler(10, shuffle=False, drop_last=True)
    monkeypatch.setattr(loader, "world_size", lambda: 2)
    monkeypatch.setattr(loader, "rank", lambda: 1)
    assert numbers(sampler) == [1, 3, 5, 7, 9]


GROUPS = [int(number % 5 < 2) for number in range(83)]


def batches_of(order, size):
    return [order[i : i + size] for i in range(0, len(order), size)]


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("drop_last", [True, False])
def test_grouped_batches_hold_one_group(monkeypatch, ranks, size, drop_last):
    """But for the last ones, of what is left of both; each rank reads what it did ungrouped."""
    arguments = {"shuffle": True, "seed": 2, "drop_last": drop_last}
    orders = set()
    for epoch in range(3):
        plain = on_ranks(monkeypatch, ranks, epoch, count=len(GROUPS), **arguments)
        dealt = on_ranks(
            monkeypatch, ranks, epoch, GroupedSampler, groups=GROUPS, batch_size=size, **arguments
        )
        for own, before in zip(dealt, plain, strict=True):
            assert Counter(own) == Counter(before)
            kinds = [{GROUPS[n] for n in batch} for batch in batches_of(own, size)]
            mixed = [i for i, kind in enumerate(kinds) if len(kind) > 1]
            left = sum(Counter(GROUPS[n] for n in own)[g] % size for g in (0, 1))
            assert all(i * size >= len(own) - left for i in mixed)
            assert left <= 2 * (size - 1)
        every = Counter(chain(*dealt))
        assert set(every) == set(range(len(GROUPS))) or drop_last
        assert max(every.values()) == 1 or not drop_last
        orders.add(tuple(chain(*dealt)))
    assert len(orders) == 3


def test_groups_are_read_as_they_fill_a_batch():
    """The leftovers keep their order, so that dropping the last ones spares no group."""
    sampler = GroupedSampler([0, 1, 1, 0, 1, 0, 0, 1], batch_size=2, shuffle=False, drop_last=True)
    assert numbers(sampler) == [1, 2, 0, 3, 5, 6, 4, 7]
    sampler = GroupedSampler([0, 1, 2, 0, 0, 1], batch_size=3, shuffle=False, drop_last=True)
    assert numbers(sampler) == [0, 3, 4, 1, 2, 5]


COUNT, BATCH = 22, 4  # five batches an epoch, and two images dropped


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for split, count in (("train", COUNT), ("val", 3)):
        (folder / split / "a").mkdir(parents=True)
        for i in range(count):
            pixels = generator.integers(0, 256, (10, 10, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / split / "a" / f"{i:02d}.png")
    return folder


def resumable(root, workers=0):
    return ResumableLoader(
        ImageDataset(scan_flat(root / "train"), recipe("moco_v2", 6)),
        sampler=EpochSampler(COUNT, shuffle=True, drop_last=True),
        batch_size=BATCH,
        num_workers=workers,
        collate_fn=collate,
        drop_last=True,
    )


def seen(batch):
    digest = hashlib.sha256(b"".join(v.numpy().tobytes() for v in batch.views)).hexdigest()[:12]
    return tuple(batch.index.tolist()), digest


@pytest.mark.parametrize("workers", [0, 2])
def test_state_counts_what_was_consumed(root, workers):
    """With workers, some batches are made beyond those; a resumed run must not lose them."""
    made = resumable(root, workers)
    made.sampler.set_epoch(1)
    whole, states = [], []
    for batch in made:
        whole.append(seen(batch))
        states.append(made.state_dict())
    dealt = {"ranks": 1, "batch_size": made.batch_size}
    assert states == [{"epoch": 1, "consumed": n} | dealt for n in (1, 2, 3, 4)] + [
        {"epoch": 2, "consumed": 0} | dealt
    ]
    for consumed, state in enumerate(states[:-1], start=1):
        resumed = resumable(root, workers)
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        assert [seen(batch) for batch in resumed] == whole[consumed:]
        resumed.sampler.set_epoch(1)
        assert [seen(batch) for batch in resumed] == whole  # only once


class Recorder(pl.LightningModule):
    """Trains nothing; keeps (epoch, indices, digest of the views) of every step."""

    views = "moco_v2"

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.steps = []

    def training_step(self, batch, batch_idx):
        self.steps.append((self.current_epoch, *seen(batch)))
        return self.weight * 0

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def run(root, folder, options, *, ckpt_path=None, workers=0, **arguments):
    """The steps that three epochs saw; each, and each epoch, leaves a checkpoint."""
    module = Recorder()
    data = ImageNetDataModule(root, batch_size=BATCH, size=6, num_workers=workers)
    saver = ModelCheckpoint(folder, filename="{step}", save_top_k=-1, every_n_train_steps=1)
    at_end = ModelCheckpoint(folder, filename="{epoch}-end", save_top_k=-1, every_n_epochs=1)
    options = options | {"enable_checkpointing": True, "callbacks": [saver, at_end]} | arguments
    trainer = pl.Trainer(max_epochs=3, **options)
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return module.steps


@pytest.mark.parametrize(
    ("arguments", "workers", "steps"),
    [
        ({}, 0, range(1, 15)),
        ({}, 2, (2, 5, 9)),
        ({"limit_val_batches": 0}, 0, (3, 5, 6)),
        ({"limit_train_batches": 3}, 0, range(1, 9)),
        ({"limit_train_batches": 3}, 2, (2, 3, 4)),
        ({"accumulate_grad_batches": 2}, 0, range(1, 9)),
        ({"val_check_interval": 2}, 0, (2, 3, 4, 5)),
    ],
    ids=str,
)
def test_a_cut_run_goes_on_as_if_never_cut(
    root, tmp_path, trainer_options, arguments, workers, steps
):
    straight = run(root, tmp_path, trainer_options, workers=workers, **arguments)
    batches = arguments.get("limit_train_batches", COUNT // BATCH)
    assert [epoch for epoch, *_ in straight] == [e for e in range(3) for _ in range(batches)]
    assert len(set(straight)) == len(straight)
    every = arguments.get("accumulate_grad_batches", 1)
    ends = [n + 1 for n in range(3 * batches)
            if (n % batches + 1) % every == 0 or n % batches + 1 == batches]  # fmt: skip
    for step in steps:
        ckpt_path = tmp_path / f"step={step}.ckpt"
        resumed = run(
            root, tmp_path, trainer_options, ckpt_path=ckpt_path, workers=workers, **arguments
        )
        assert resumed == straight[ends[step - 1] :], f"from step {step}"


@pytest.mark.parametrize("limit", [None, 3])
def test_a_run_goes_on_from_the_end_of_an_epoch(root, tmp_path, trainer_options, limit):
    straight = run(root, tmp_path, trainer_options, limit_train_batches=limit)
    for epoch in (0, 1):
        ckpt_path = tmp_path / f"epoch={epoch}-end.ckpt"
        resumed = run(
            root, tmp_path, trainer_options, ckpt_path=ckpt_path, limit_train_batches=limit
        )
        assert resumed == [step for step in straight if step[0] > epoch]


def test_a_cut_run_may_go_on_with_other_workers(root, tmp_path, trainer_options):
    straight = run(root, tmp_path, trainer_options)
    resumed = run(root, tmp_path, trainer_options, workers=2, ckpt_path=tmp_path / "step=7.ckpt")
    assert resumed == straight[7:]


def test_a_sanity_check_costs_no_batches(root, tmp_path, trainer_options):
    runs = [run(root, tmp_path, trainer_options, num_sanity_val_steps=steps) for steps in (0, 2)]
    assert runs[0] == runs[1]


def test_an_epoch_may_be_a_multiple_of_a_step():
    """Micro-batches of 2, three to a step: 20 images make 3 steps, and 2 are left for other epochs."""
    sampler = EpochSampler(20, shuffle=True, drop_last=True, multiple=6)
    assert len(sampler) == len(list(sampler)) == 18
    seen = set()
    for epoch in range(20):
        sampler.set_epoch(epoch)
        numbers = [number for _, number in sampler]
        assert len(set(numbers)) == 18
        seen |= set(numbers)
    assert seen == set(range(20))


# --- Other ranks, other batches


def _restored(state, *, ranks, batch_size, monkeypatch, count=24):
    """What the ranks of a resumed run read in the rest of its epoch."""
    monkeypatch.setattr(loader, "world_size", lambda: ranks)
    read = []
    for rank in range(ranks):
        monkeypatch.setattr(loader, "rank", lambda rank=rank: rank)
        sampler = EpochSampler(count, shuffle=True, seed=1, drop_last=True)
        batches = ResumableLoader(_Numbers(count), sampler=sampler, batch_size=batch_size)
        batches.load_state_dict(state)
        read += [number for batch in batches for number in batch.tolist()]
    return read


class _Numbers(torch.utils.data.Dataset):
    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, address):
        return address[1]


def test_ranks_may_change_between_epochs_and_every_image_is_read_once(monkeypatch):
    between = {"epoch": 1, "consumed": 0, "ranks": 2, "batch_size": 3}
    for ranks, size in ((1, 4), (2, 3), (4, 2)):
        read = _restored(between, ranks=ranks, batch_size=size, monkeypatch=monkeypatch)
        assert sorted(read) == list(range(24)), (ranks, size)


@pytest.mark.parametrize(("ranks", "size"), [(1, 3), (4, 3), (2, 6)])
def test_ranks_and_batches_may_not_change_within_one(ranks, size, monkeypatch):
    within = {"epoch": 1, "consumed": 2, "ranks": 2, "batch_size": 3}
    with pytest.raises(ValueError, match="saved by in the middle of epoch 1, but there are"):
        _restored(within, ranks=ranks, batch_size=size, monkeypatch=monkeypatch)


def test_the_rest_of_an_epoch_is_what_the_ranks_had_not_read(monkeypatch):
    whole = {"epoch": 1, "consumed": 0, "ranks": 2, "batch_size": 3}
    within = {**whole, "consumed": 2}
    first = _restored(whole, ranks=2, batch_size=3, monkeypatch=monkeypatch)
    rest = _restored(within, ranks=2, batch_size=3, monkeypatch=monkeypatch)
    assert rest == first[6:12] + first[18:]


ENDS = """
import sys
from goodtransfer.data import ImageNetDataModule

data = ImageNetDataModule(sys.argv[1], batch_size=4, size=16, num_workers=2, views="moco_v2")
data.setup("fit")
loader = data.train_dataloader()  # as long as the module, as in a notebook
for batch in loader:
    break
if sys.argv[2] == "error":
    raise RuntimeError("uncaught")
"""


@pytest.mark.parametrize(("how", "code"), [("end", 0), ("error", 1)])
def test_a_script_ends_though_its_loader_has_not(how, code, tmp_path):
    """Python ends its workers by SIGTERM then, and waits for them."""
    make_imagefolder(tmp_path / "toy", train=40, val=20, size=16)
    call = [sys.executable, "-c", ENDS, str(tmp_path / "toy"), how]
    done = subprocess.run(call, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
