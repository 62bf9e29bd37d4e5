"""The drop-ins of ``examples/dropins``, with lightly's real parts and as plain torch, against Eq. 2."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples/dropins"))
import solo_moco

CLASSES, SIDE, DIM, K = 3, 32, 8, 10


def eq2(query, positive, label, keys, labels, temperature):
    """The mean over queries of Eq. 2, term by term."""
    losses = []
    for q, p, own in zip(query, positive, label.tolist(), strict=True):
        top = torch.exp(q @ p / temperature)
        below = top
        for k, other in zip(keys, labels.tolist(), strict=True):
            if other != own or own < 0:
                below = below + torch.exp(q @ k / temperature)
        losses.append(-torch.log(top / below))
    return sum(losses) / len(losses)


def unit(x):
    return x / x.norm(dim=1, keepdim=True)


def state(queue):
    return queue.keys.clone(), queue.labels.clone()


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 5, stride=4), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )  # fmt: skip


def equal(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.fixture
def lightly_loader(tmp_path):
    """Batches of 4 random images in three classes, as lightly gives them."""
    data = pytest.importorskip("lightly.data")
    from lightly.transforms import MoCoV2Transform

    random = np.random.default_rng(0)
    for number in range(16):
        path = tmp_path / f"class{number % CLASSES}" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(path)
    images = data.LightlyDataset(str(tmp_path), transform=MoCoV2Transform(input_size=SIDE))
    return DataLoader(images, batch_size=4, shuffle=True)


def test_lightly(lightly_loader):
    import lightly_moco

    class Watched(lightly_moco.Exemplar):
        steps = 0

        def forward(self, query, key, label):
            before = state(self.queue)
            loss = super().forward(query, key, label)
            literal = eq2(unit(query), unit(key), label, *before, self.temperature)
            equal(loss, literal)
            for a, b in zip(
                *(torch.autograd.grad(of, query, retain_graph=True) for of in (loss, literal)),
                strict=True,
            ):
                equal(a, b)
            self.steps += 1
            self.enqueued += zip(unit(key).tolist(), label.tolist(), strict=True)
            return loss

    torch.manual_seed(1)
    model = lightly_moco.MoCo(network(), features=6, dim=DIM)
    criterion = Watched(size=K, dim=DIM, temperature=0.2)
    criterion.enqueued = []
    start = [p.clone() for p in model.parameters()]
    losses = lightly_moco.train(model, criterion, lightly_loader, momentum=0.9)
    losses += lightly_moco.train(model, criterion, lightly_loader, momentum=0.9)
    assert criterion.steps == len(losses) == 8
    assert all(map(math.isfinite, losses))
    # Of 32 keys the last ten, the oldest at the pointer, where the queue has wrapped three times.
    order = [(int(criterion.queue.pointer) + n) % K for n in range(K)]
    keys, labels = zip(*criterion.enqueued[-K:], strict=True)
    equal(criterion.queue.keys[order], torch.tensor(keys))
    assert criterion.queue.labels[order].tolist() == list(labels)
    assert set(criterion.queue.labels.tolist()) == set(range(CLASSES))
    assert all(not torch.equal(a, b) for a, b in zip(start, model.parameters(), strict=True))
    assert not any(p.requires_grad for p in model.key.parameters())


def test_without_labels_lightlys_filter_is_lightlys_own_loss():
    """With -1 for every label Eq. 2 is the loss that the drop-in replaces."""
    losses = pytest.importorskip("lightly.loss")
    import lightly_moco

    torch.manual_seed(0)
    ours = lightly_moco.Exemplar(size=K, dim=DIM, temperature=0.2)
    theirs = losses.NTXentLoss(temperature=0.2, memory_bank_size=(K, DIM))
    query, key = torch.randn(5, DIM, requires_grad=True), torch.randn(5, DIM)
    theirs.memory_bank.bank = ours.queue.keys.clone()
    equal(ours(query, key, torch.full((5,), -1)), theirs(query, key))


def test_solo_learn_style():
    class Watched(solo_moco.LabelledQueues):
        steps = 0

        def forward(self, queries, keys, label):
            before = [state(queue) for queue in self.queues]
            loss = super().forward(queries, keys, label)
            (q1, q2), (k1, k2), (first, second) = queries, keys, before
            literal = eq2(q1, k2, label, *second, self.temperature) / 2
            literal = literal + eq2(q2, k1, label, *first, self.temperature) / 2
            equal(loss, literal)
            for found, expected in zip(
                *(torch.autograd.grad(of, queries, retain_graph=True) for of in (loss, literal)),
                strict=True,
            ):
                equal(found, expected)
            for queue, new in zip(self.queues, keys, strict=True):
                slots = [(int(queue.pointer) - len(new) + n) % K for n in range(len(new))]
                equal(queue.keys[slots], new)
                assert torch.equal(queue.labels[slots], label)
            self.steps += 1
            return loss

    generator = torch.Generator().manual_seed(0)
    batches = [
        (
            torch.arange(4),
            tuple(torch.rand(4, 3, SIDE, SIDE, generator=generator) for _ in range(2)),
            torch.randint(-1, CLASSES, (4,), generator=generator),
        )
        for _ in range(6)
    ]
    assert -1 in torch.cat([label for _, _, label in batches])
    model = nn.Sequential(network(), nn.Linear(6, DIM))
    start = [p.clone() for p in model.parameters()]
    queues = Watched(size=K, dim=DIM, temperature=0.2)
    losses = solo_moco.train(model, queues, batches, momentum=0.9)
    assert queues.steps == len(losses) == 6
    assert all(map(math.isfinite, losses))
    assert all(not torch.equal(a, b) for a, b in zip(start, model.parameters(), strict=True))
