"""Top-1 by a literal count: each labelled image once, over ranks of which one saw nothing."""

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.utils.data import DataLoader

from goodtransfer import LinearProbe, SupervisedCE
from goodtransfer.metrics import Accuracy


def literal(batches, classifiers):
    """The first time that an image comes counts; one without a number counts each time."""
    right, seen, count = [0] * classifiers, set(), 0
    for predicted, labels, numbers in batches:
        for row, label, number in zip(predicted.tolist(), labels.tolist(), numbers, strict=True):
            if label < 0 or number in seen:
                continue
            seen |= {number} - {None}
            count += 1
            right = [r + (p == label) for r, p in zip(right, row, strict=True)]
    return [100 * r / count for r in right]


def made(seed, images, numbered=True):
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(-1, 3, (images,), generator=draw)
    predicted = torch.randint(0, 3, (images, 4), generator=draw)
    index = torch.randint(0, 30, (images,), generator=draw)
    return predicted, labels, index if numbered else None


@pytest.mark.parametrize("numbered", [True, False])
def test_equals_a_literal_count(numbered):
    batches = [made(seed, images, numbered) for seed, images in enumerate((7, 1, 20, 9))]
    accuracy = Accuracy(4)
    for batch in batches:
        accuracy.update(*batch)
    told = [(p, y, [None] * len(y) if i is None else i.tolist()) for p, y, i in batches]
    expected = literal(told, 4)
    assert len(set(expected)) > 2
    assert accuracy.take().tolist() == pytest.approx(expected)
    assert accuracy.take() is None  # a fresh start


def test_without_labels_there_is_none():
    accuracy = Accuracy()
    accuracy.update(torch.zeros(3, dtype=torch.long), torch.full((3,), -1))
    assert accuracy.take() is None


def _rank(number, folder):
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=number, world_size=2)
    accuracy = Accuracy(4)
    if number == 1:
        accuracy.update(*made(5, 12))
    torch.save(accuracy.take(), f"{folder}/{number}.pt")
    dist.barrier()  # gloo of PyTorch 2.6 waits for ever where the other is gone
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_rank_that_saw_no_image_takes_part(tmp_path):
    mp.start_processes(_rank, args=(str(tmp_path),), nprocs=2, start_method="fork")
    predicted, labels, index = made(5, 12)
    expected = literal([(predicted, labels, index.tolist())], 4)
    for number in range(2):
        assert torch.load(tmp_path / f"{number}.pt").tolist() == pytest.approx(expected)


@pytest.mark.parametrize("kind", [SupervisedCE, LinearProbe])
def test_a_validation_that_was_interrupted_leaves_nothing_for_the_next(kind, trainer_options):
    """What it counted was of other weights."""

    class Stop(pl.Callback):
        def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, loader=0):
            if batch_idx == 1:
                raise RuntimeError("interrupted")

    images = torch.rand(12, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    rows = [((image,), n % 2, n) for n, image in enumerate(images)]
    loader = DataLoader(rows, batch_size=4)
    torch.manual_seed(0)
    module = kind("resnet10w8", num_classes=2)
    with pytest.raises(RuntimeError, match="interrupted"):
        pl.Trainer(callbacks=[Stop()], **trainer_options).validate(module, loader, verbose=False)
    (layer,) = [m for m in module.children() if isinstance(m, torch.nn.Linear)]
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(torch.tensor([1.0, 0.0]).repeat(len(layer.bias) // 2))  # all are class 0
    (found,) = pl.Trainer(**trainer_options).validate(module, loader, verbose=False)
    assert found[{SupervisedCE: "acc_head", LinearProbe: "selection_acc"}[kind]] == 50
