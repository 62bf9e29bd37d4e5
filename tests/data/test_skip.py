"""on_error="skip": nothing silent, full batches, the same images for any workers and ranks."""

import logging

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

from goodtransfer import ImageNetDataModule
from goodtransfer.data import loader as loader_module
from goodtransfer.data.skip import Skips

BAD = {3, 4, 11}
COUNT = 12


@pytest.fixture
def root(tmp_path):
    """Images whose colour tells their number; three of them cannot be read, one with its neighbour."""
    for split, bad in (("train", BAD), ("val", {0})):
        for number in range(COUNT):
            path = tmp_path / split / "ab"[number % 2] / f"{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (9, 9), (number * 9, 0, 0)).save(path)
            if number in bad:
                path.write_bytes(path.read_bytes()[:50] if number % 2 else b"")
    return tmp_path


def module(root, **options):
    options = {"batch_size": 4, "size": 8, "views": "center", "on_error": "skip"} | options
    return ImageNetDataModule(root, **options)


def read(loader, epoch=0):
    loader.sampler.set_epoch(epoch)
    return [
        (b.index.tolist(), b.label.tolist(), (b.views[0][:, 0, 0, 0] // 9).tolist()) for b in loader
    ]


def numbers_on_disk(data):
    """Number in the list -> number in the file name."""
    return [int(path[-6:-4]) for path, _ in data.files("train")]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_the_next_readable_image_takes_the_place(root, workers):
    data = module(root, num_workers=workers)
    disk = numbers_on_disk(data)
    assert disk == [0, 2, 4, 6, 8, 10, 1, 3, 5, 7, 9, 11]  # class by class
    batches = read(data.train_dataloader())
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(0)).tolist()

    def stand_in(number):
        while disk[number] in BAD:
            number = (number + 1) % COUNT
        return number

    expected = [stand_in(number) for number in order]
    got = [(i, y, c) for batch in batches for i, y, c in zip(*batch, strict=True)]
    assert [i for i, _, _ in got] == expected
    assert [c for _, _, c in got] == [disk[i] for i in expected]
    assert [y for _, y, _ in got] == [disk[i] % 2 for i in expected]
    assert [len(batch[0]) for batch in batches] == [4, 4, 4]


def test_what_was_skipped_is_counted_logged_and_listed(root, caplog):
    data = module(root, num_workers=2)
    list(data.train_dataloader())
    list(data.test_dataloader())
    paths = [
        str(root / p)
        for p in ("train/a/04.png", "train/b/03.png", "train/b/11.png", "val/a/00.png")
    ]
    assert data.skipped == paths
    caplog.clear()
    data.teardown("fit")
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == "4 images or entries were skipped:" + "".join(
        f"\n  {path}" for path in paths
    )


def test_each_fault_is_logged_when_it_is_met(root, caplog):
    data = module(root)
    for _ in range(2):
        list(data.train_dataloader())
        messages = [record.getMessage() for record in caplog.records]
        assert len(messages) == 3  # and not again by the next loader
        assert all(m.startswith("skipped: Expected an image at ") for m in messages)


def test_loaders_leave_nothing_behind(root):
    """However many are made: shared memory, of which each takes a file descriptor, is there once."""
    data = module(root)
    for _ in range(5):
        data.train_dataloader(), data.test_dataloader()
    assert len(data._skips._readings) == 2
    raising = module(root, on_error="raise")
    raising.train_dataloader()
    assert raising._skips._readings == []


def test_a_trainer_lists_them_at_the_end(root, trainer_options, caplog):
    class Method(pl.LightningModule):
        views = "center"

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def training_step(self, batch, batch_idx):
            assert len(batch.index) == 4
            return self.weight * 0

        def validation_step(self, batch, batch_idx):
            pass

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trainer = pl.Trainer(max_epochs=2, limit_val_batches=0, **trainer_options)
    trainer.fit(Method(), datamodule=module(root, views=None))
    assert caplog.records[-1].getMessage().startswith("3 images or entries were skipped:\n  /")
    assert sum("skipped: Expected" in r.getMessage() for r in caplog.records) == 3


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_stay_in_step(root, monkeypatch, ranks):
    """Every rank reads as many batches, and what it would have read alone."""
    [alone] = [
        [i for batch in read(module(root, batch_size=1).train_dataloader()) for i in batch[0]]
    ]
    monkeypatch.setattr(loader_module, "world_size", lambda: ranks)
    for rank in range(ranks):
        monkeypatch.setattr(loader_module, "rank", lambda rank=rank: rank)
        own = read(module(root, batch_size=1).train_dataloader())
        assert [i for batch in own for i in batch[0]] == alone[rank::ranks]


def test_raise_is_the_default(root):
    data = ImageNetDataModule(root, batch_size=4, size=8, views="center")
    with pytest.raises(OSError, match=r"Expected an image at .*0(3|4)|11.png, but it cannot"):
        list(data.train_dataloader())
    assert data.skipped == []


def test_a_set_without_any_image(root):
    for path in (root / "train").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"not one of 12 can be read; the first is .*a/00.png"):
        list(module(root).train_dataloader())


def test_entries_are_left_out_or_raise(caplog):
    fault = ValueError("Expected a box in x.xml.")
    with pytest.raises(ValueError, match="a box in x.xml"):
        Skips("raise").leave_out(fault)
    skips = Skips("skip")
    skips.leave_out(fault)
    assert skips.skipped == ["Expected a box in x.xml."]
    assert caplog.records[0].getMessage() == "left out: Expected a box in x.xml."


def test_a_long_list_is_cut(caplog):
    skips = Skips("skip")
    for number in range(25):
        skips.leave_out(ValueError(str(number)))
    caplog.clear()
    skips.report()
    lines = caplog.records[0].getMessage().splitlines()
    assert lines[0] == "25 images or entries were skipped:"
    assert lines[1:] == [f"  {n}" for n in range(20)] + ["  and 5 more"]
    assert len(skips.skipped) == 25


def test_nothing_skipped_is_not_reported(caplog):
    skips = Skips("skip")
    assert skips.reading(3, str)(1, lambda number: number) == 1
    skips.report()
    assert not caplog.records


def test_an_unknown_way():
    with pytest.raises(ValueError, match="'raise' or 'skip', but got 'ignore'"):
        Skips("ignore")


def test_numbers_are_those_of_numpy_too():
    reading = Skips("skip").reading(2, str)
    assert reading(np.int64(1), lambda number: int(number)) == 1
