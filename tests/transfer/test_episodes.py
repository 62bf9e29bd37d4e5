"""Episodes: what is drawn, and all classifiers at once against upstream's numbers and its loop."""

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from goodtransfer.transfer import episodes as module
from goodtransfer.transfer.episodes import (
    Episodes,
    Heads,
    accuracies,
    best_rate,
    check_enough,
    epoch_orders,
    initial_heads,
    mean_ci95,
    sample_episodes,
    train_heads,
)

sys.path.insert(0, str(Path(__file__).parent))
from literal_few_shot import hard_features, literal_accuracy, literal_episode


def problem(count=6, epochs=20, dtype=torch.float64, separation=0.3, **drawn):
    """Hard features, episodes of them, starts and orders."""
    values, labels = hard_features(separation=separation)
    episodes = sample_episodes(labels, episodes=count, **drawn)
    chance = torch.Generator().manual_seed(3)
    way, shot = episodes.support.shape[1:]
    heads = initial_heads(count, way, 64, chance)
    orders = epoch_orders(count, epochs, way * shot, chance)
    return values.to(dtype), episodes, Heads(*(v.to(dtype) for v in heads)), orders


def one_by_one(features, episodes, heads, orders, lr, **options):
    """Scores of upstream's loop over the episodes (E, W * Q, W)."""
    return torch.stack([
        literal_episode(features[s], features[q], len(s), weight, bias, order, lr, **options)
        for _, s, q, weight, bias, order in zip(*episodes, *heads, orders, strict=True)
    ])  # fmt: skip


# --- Training


@pytest.mark.data
@pytest.mark.parametrize("shot", [1, 5])
def test_upstreams_numbers(shared, shot):
    folder = shared / f"parity/fewshot_{shot}shot"
    data, run = (
        load_file(folder / "data.safetensors"),
        json.loads((folder / "run.json").read_text()),
    )
    per_class = data["features"].shape[1]
    first = (data["episode_classes"] * per_class).unsqueeze(2)
    episodes = Episodes(
        data["episode_classes"], first + data["support_ids"], first + data["query_ids"]
    )
    heads, orders = Heads(data["init_weight"], data["init_bias"]), data["epoch_permutations"]
    scores = train_heads(data["features"].flatten(0, 1), episodes, heads, orders, [0.01])
    torch.testing.assert_close(scores[0], data["final_query_scores"], rtol=1e-5, atol=1e-5)
    assert accuracies(scores[0]).tolist() == data["accuracy_percent"].tolist()
    assert mean_ci95(accuracies(scores[0])) == pytest.approx((run["mean"], run["ci95"]))


@pytest.mark.parametrize(
    ("way", "shot", "batch", "weight_decay"),
    [
        (5, 5, 4, 1e-3),  # the last batch has one image
        (5, 1, 4, 1e-3),
        (4, 2, 4, 1e-3),  # no ragged batch
        (3, 3, 2, 0.02),
        (2, 1, 4, 1e-3),  # all in one batch that is not full
        (7, 2, 1, 0.0),
    ],
)
def test_all_at_once_is_one_by_one(way, shot, batch, weight_decay):
    """In 64 bits, so that only algebra is compared."""
    drawn = {"way": way, "shot": shot, "queries": 4}
    given = problem(**drawn)
    lrs, options = (0.01, 0.5, 10.0), {"batch": batch, "weight_decay": weight_decay}
    scores = train_heads(*given, lrs, **options)
    assert scores.shape == (3, 6, 4 * way, way)
    for lr, found in zip(lrs, scores, strict=True):
        expected = one_by_one(*given, lr, **options)
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)
        literal = [literal_accuracy(episode, way) for episode in expected]
        assert accuracies(found).tolist() == pytest.approx(literal)


@pytest.mark.parametrize(("shot", "separation"), [(1, 0.45), (5, 0.25)])
def test_the_protocol_in_32_bits_on_hard_features(shot, separation):
    given = problem(8, 100, torch.float32, separation, shot=shot)
    (scores,), expected = train_heads(*given, [0.01]), one_by_one(*given, 0.01)
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=2e-5)
    literal = [literal_accuracy(episode, 5) for episode in expected]
    assert accuracies(scores).tolist() == pytest.approx(literal)
    assert 35 < sum(literal) / 8 < 55  # where a wrong step would show


def test_any_number_of_episodes_fits_in_memory(monkeypatch):
    given = problem(count=5, epochs=3)
    together = train_heads(*given, (0.01, 0.1))
    sizes, original = [], module._train
    monkeypatch.setattr(module, "_train", lambda *a: sizes.append(len(a[0])) or original(*a))
    for limit, expected in ((1, [1] * 5), (2 * 25 * (25 + 2 * 5), [2, 2, 1])):
        monkeypatch.setattr(module, "_CHUNK_ELEMENTS", limit)
        torch.testing.assert_close(train_heads(*given, (0.01, 0.1)), together)
        assert sizes == expected
        sizes.clear()


# --- What is drawn


def test_episodes_of_distinct_classes_and_images():
    labels = torch.tensor([-1, *([4, 7, 2, 9] * 6), -1])
    episodes = sample_episodes(labels, episodes=50, way=3, shot=2, queries=4)
    classes, support, query = episodes
    assert (classes.shape, support.shape, query.shape) == ((50, 3), (50, 3, 2), (50, 3, 4))
    for episode in range(50):
        assert len(set(classes[episode].tolist())) == 3
        images = torch.cat([support[episode], query[episode]], dim=1)
        assert len(set(images.flatten().tolist())) == 18
        assert (labels[images] == classes[episode].unsqueeze(1)).all()
    assert set(classes.flatten().tolist()) == {2, 4, 7, 9}


def test_episodes_depend_on_the_seed_alone():
    labels = torch.arange(8).repeat_interleave(20)
    first = sample_episodes(labels, episodes=20, seed=1)
    torch.manual_seed(5)
    again, other = (sample_episodes(labels, episodes=20, seed=seed) for seed in (1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_classes_and_images_are_drawn_uniformly():
    labels = torch.arange(6).repeat_interleave(7)
    count = 3000
    episodes = sample_episodes(labels, episodes=count, way=2, shot=1, queries=2, seed=0)
    pairs = Counter(map(tuple, episodes.classes.tolist()))  # ordered: labels are drawn, too
    assert len(pairs) == 30
    assert max(abs(n - count / 30) for n in pairs.values()) < 4 * (count / 30) ** 0.5
    for rows, per in ((episodes.support, 1), (episodes.query, 2)):
        images = torch.bincount(rows.flatten(), minlength=42).double()
        expected = count * 2 * per / 42
        assert (images - expected).abs().max() < 4 * expected**0.5


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([0, 1, 2, -1] * 9, {}, "at least 5 classes for episodes of 5, but the images are of 3"),
        ([0, 1, 2] * 9, {"way": 3, "images": 10}, "at least 10 images .* the class 0 has 9: lower"),
        (
            [0, 1] * 9 + [2] * 4,
            {"way": 3, "part": "novel", "names": ["cat", "dog", "cow"]},
            r"at least 6 images of every class, .* but novel class 2 \(cow\) has 4: lower `shots`",
        ),
    ],
)
def test_too_few(labels, options, message):
    with pytest.raises(ValueError, match=message):
        check_enough(torch.tensor(labels), **{"way": 5, "images": 6, **options})
    enough = [c for c in range(5) for _ in range(10)]
    check_enough(torch.tensor(enough), way=5, images=10)


def test_sampling_checks_first():
    labels = torch.arange(5).repeat_interleave(19)
    with pytest.raises(ValueError, match="at least 20 images .* class 0 has 19"):
        sample_episodes(labels, shot=5)
    assert sample_episodes(labels, shot=4, episodes=1).query.shape == (1, 5, 15)


def test_heads_start_as_pytorchs():
    weight, bias = initial_heads(300, 5, 64, torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    linear = nn.Linear(64, 1500)
    for ours, theirs in ((weight, linear.weight), (bias, linear.bias)):
        assert ours.abs().max().item() == pytest.approx(theirs.abs().max().item(), rel=0.01)
        assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.05)
        assert abs(ours.mean().item()) < 4 * 0.125 / 3**0.5 / ours.numel() ** 0.5
    assert (weight.shape, bias.shape) == ((300, 5, 64), (300, 5))
    again = initial_heads(300, 5, 64, torch.Generator().manual_seed(0))
    assert torch.equal(again.weight, weight)


def test_every_epoch_has_a_permutation_of_its_own():
    orders = epoch_orders(200, 30, 3, torch.Generator().manual_seed(0))
    assert orders.shape == (200, 30, 3)
    found = Counter(map(tuple, orders.flatten(0, 1).tolist()))
    assert set(found) == {(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)}
    assert max(abs(n - 1000) for n in found.values()) < 4 * 1000**0.5


# --- Scores


def test_accuracy_by_hand():
    scores = torch.tensor([
        [[2.0, 1], [0, 1], [0, 3], [5, 4]],  # queries of class 0, 0, 1, 1: right, wrong, right, wrong
        [[1.0, 0], [1, 0], [0, 1], [0, 1]],
    ])  # fmt: skip
    assert accuracies(scores).tolist() == [50, 100]
    assert accuracies(scores.unsqueeze(0)).tolist() == [[50, 100]]


def test_mean_and_interval():
    accuracy = torch.tensor([20.0, 40.0, 90.0, 50.0], dtype=torch.float64)
    mean, interval = mean_ci95(accuracy)
    assert mean == 50
    assert interval == pytest.approx(1.96 * np.std([20, 40, 90, 50]) / np.sqrt(4))


def test_the_best_rate_is_the_smallest_of_equals():
    accuracy = torch.tensor([[40, 40], [30, 60], [60, 30], [20, 30]], dtype=torch.float64)
    assert best_rate(accuracy, (0.01, 1.0, 0.1, 10.0)) == 0.1
    assert best_rate(accuracy[[0, 3]], (5.0, 0.1)) == 5.0
