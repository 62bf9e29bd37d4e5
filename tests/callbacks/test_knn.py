"""The vote against a literal Python loop, and the bank of OnlineKNN."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from goodtransfer.callbacks import knn, knn_predict
from goodtransfer.callbacks.knn import OnlineKNN


def literal_votes(queries, bank, labels, k, temperature, num_classes):
    for query in queries.tolist():
        scored = []
        for row, label in zip(bank.tolist(), labels.tolist(), strict=True):
            scored.append((sum(a * b for a, b in zip(query, row, strict=True)), label))
        scored.sort(reverse=True)
        votes = [0.0] * num_classes
        for cosine, label in scored[:k]:
            votes[label] += math.exp(cosine / temperature)
        yield votes.index(max(votes))


def unit_rows(count, seed, dim=5):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, dim, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("k", [1, 3, 20, 64, 100])  # of 64
@pytest.mark.parametrize("temperature", [0.05, 0.07, 1.0])
def test_equals_a_literal_loop(k, temperature, monkeypatch):
    monkeypatch.setattr(knn, "_SIMILARITIES", 64 * 7)  # seven queries at once, of 40
    queries, bank = unit_rows(40, seed=0), unit_rows(64, seed=1)
    labels = torch.randint(4, (64,), generator=torch.Generator().manual_seed(2))
    expected = list(literal_votes(queries, bank, labels, k, temperature, 4))
    got = knn_predict(queries, bank, labels, k=k, temperature=temperature, num_classes=4)
    assert got.tolist() == expected
    assert len(set(expected)) > 1


def test_a_tiny_temperature_leaves_the_nearest_alone():
    queries, bank, labels = unit_rows(9, seed=3), unit_rows(30, seed=4), torch.arange(30)
    got = knn_predict(queries.float(), bank.float(), labels, k=5, temperature=1e-6, num_classes=30)
    assert got.tolist() == (queries @ bank.T).argmax(1).tolist()


class Log(SimpleNamespace):
    def log(self, name, value, sync_dist):
        self.name, self.value = name, float(value)


def train(callback, features, label):
    callback.on_train_batch_end(None, None, {"features": features, "label": label}, None, 0)


def validate(callback, features, label):
    log = Log(name=None, device="cpu")
    callback.on_validation_epoch_start(None, log)
    callback.on_validation_batch_end(None, log, {"features": features, "label": label}, None, 0)
    callback.on_validation_epoch_end(None, log)
    return log


def test_scores_by_the_last_unit_features_with_a_label():
    """Two clusters in the bank; a third was pushed out, a fourth has no label."""
    x, y, z = torch.eye(3)
    callback = OnlineKNN(k=3, size=4)
    train(callback, torch.stack([z, z, z]), torch.tensor([2, 2, 2]))
    train(callback, torch.stack([5 * x, z]), torch.tensor([0, -1]))
    train(callback, torch.stack([x + 0.1 * y, 9 * y, y]), torch.tensor([0, 1, 1]))
    bank = callback.state_dict()
    torch.testing.assert_close(bank["keys"].norm(dim=1), torch.ones(4))
    assert sorted(bank["labels"].tolist()) == [0, 0, 1, 1]
    queries = torch.stack([100 * x, y, z + 0.5 * y, x, y])
    log = validate(callback, queries, torch.tensor([0, 1, 1, 1, -1]))
    assert (log.name, log.value) == ("knn_acc", 75.0)


def test_noise_of_the_unfilled_bank_has_no_vote():
    callback = OnlineKNN(k=20, size=50)
    train(callback, torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([1, 0]))
    queries = F.normalize(torch.randn(30, 2, generator=torch.Generator().manual_seed(0)))
    label = (queries[:, 0] > queries[:, 1]).long()
    assert validate(callback, queries, label).value == 100


def test_silent_while_the_bank_is_empty():
    callback, features = OnlineKNN(), torch.eye(3)
    assert validate(callback, features, torch.arange(3)).name is None
    train(callback, features, torch.tensor([-1, -1, -1]))
    assert validate(callback, features, torch.arange(3)).name is None


def test_a_bank_of_another_size_keeps_the_newest():
    callback = OnlineKNN(k=1, size=6)
    train(callback, torch.eye(6), torch.arange(6))
    smaller = OnlineKNN(k=1, size=2)
    smaller.load_state_dict(callback.state_dict())
    assert sorted(smaller.state_dict()["labels"].tolist()) == [4, 5]


@pytest.mark.parametrize("wrong", [{"k": 0}, {"size": 0}, {"temperature": 0.0}])
def test_refuses_nonsense(wrong):
    with pytest.raises(ValueError, match="Expected `k`, `temperature` and `size` to be above 0"):
        OnlineKNN(**wrong)
