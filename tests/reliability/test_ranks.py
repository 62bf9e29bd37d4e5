"""Ranks agree: with each other, bit for bit, and with one process that has all their images."""

import math
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from goodtransfer.distributed import permutation

sys.path.insert(0, str(Path(__file__).parents[1] / "methods"))
sys.path.insert(0, str(Path(__file__).parent))
from ranks_run import BN_IMAGES, DEALT, EPOCHS, LARGE, METHODS, QUEUE, SMALL
from toy_inputs import PairDataset, encoder

SCRIPT = Path(__file__).with_name("ranks_run.py")
WORLDS = [1, 2, pytest.param(4, marks=pytest.mark.slow)]
# Sums in another order: float64 of a few steps, and float32 of a readout's 16.
CLOSE = {"rtol": 1e-8, "atol": 1e-11}
CLOSE_32 = {"rtol": 1e-3, "atol": 1e-4}
INTEGERS = ("queue.labels", "queue.indices", "queue.pointer", "queue.filled")
KEPT = [name for name in METHODS if name not in ("simclr", "supervised")]


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    """What each rank of a world saw, after one launch of it; of world 0 one process without a group."""
    out = tmp_path_factory.mktemp("ranks")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "LOCAL_"))}

    @cache
    def found(world):
        call = [sys.executable, str(SCRIPT), str(out), str(world)]
        environment = clean | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(call, capture_output=True, text=True, timeout=500, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
        return [torch.load(out / f"{world}_{r}.pt", weights_only=True) for r in range(world or 1)]

    return found


@pytest.fixture
def alone(launch):
    return launch(0)[0]


def of_one(alone, name, world):
    """The same method in one process; with negatives that are drawn by rank, as that world draws them."""
    return alone["methods"].get(f"{name} of {world}") or alone["methods"][f"{name} of 1"]


def assert_same(found, expected, where=""):
    """All numbers and words the same, NaN being itself."""
    assert type(found) is type(expected), where
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for name, value in expected.items():
            assert_same(found[name], value, f"{where} {name}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        for number, value in enumerate(expected):
            assert_same(found[number], value, f"{where} {number}")
    elif isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True, msg=where)
    else:
        assert found == expected or (math.isnan(found) and math.isnan(expected)), where


# --- Queue and bank


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", KEPT)
def test_memory_is_one(name, world, launch, alone):
    """After each step the same bits on every rank; integers those of one process, keys close to its."""
    ranks = [found["methods"][name]["steps"] for found in launch(world)]
    expected = of_one(alone, name, world)["steps"]
    assert len(expected) == EPOCHS * len(DEALT[world])
    for number, step in enumerate(expected):
        first, *others = (steps[number]["memory"] for steps in ranks)
        for other in others:
            assert_same(other, first)
        assert first.keys() == step["memory"].keys() != set()
        for part, value in step["memory"].items():
            if part in INTEGERS:
                assert torch.equal(first[part], value), (number, part)
            else:
                torch.testing.assert_close(first[part], value, **CLOSE)
    moved = {
        part for part, value in first.items() if not torch.equal(value, expected[0]["memory"][part])
    }
    assert moved >= ({"queue.keys", "queue.labels"} if "queue.keys" in first else {"bank.rows"})
    if "queue.keys" in first:
        assert int(first["queue.filled"]) == QUEUE
        assert int(first["queue.pointer"]) == EPOCHS * sum(map(sum, DEALT[world])) % QUEUE


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", METHODS)
def test_the_memory_starts_alike_without_being_sent_though_ranks_are_seeded_differently(
    name, world, launch, alone
):
    ranks = [found["methods"][name] for found in launch(world)]
    expected = of_one(alone, name, world)["start"]
    kept = [part for part in expected if part.startswith(("queue.", "bank.", "normalizer"))]
    assert bool(kept) == (name in KEPT)
    weight = "encoder.trunk.conv1.weight"
    for number, found in enumerate(ranks):
        assert_same({part: found["built"][part] for part in kept}, {p: expected[p] for p in kept})
        assert_same(found["start"], expected)  # by DDP also the weights, of rank 0
        assert torch.equal(found["built"][weight], expected[weight]) == (number == 0)


# --- Steps


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", METHODS)
def test_losses_gradients_and_weights_are_those_of_one_process(name, world, launch, alone):
    """With the joined batch, also of a last step in which the ranks have different numbers of images.

    Or of labels: cross-entropy leaves a third of the images out, of four ranks all that one has.
    """
    ranks = [found["methods"][name]["steps"] for found in launch(world)]
    expected = of_one(alone, name, world)["steps"]
    assert all(len(steps) == len(expected) for steps in ranks)
    for number, step in enumerate(expected):
        first, *others = (steps[number] for steps in ranks)
        losses = [first["loss"], *(other["loss"] for other in others)]
        assert sum(losses) / world == pytest.approx(step["loss"], rel=1e-9)
        if others:
            assert max(losses) - min(losses) > 1e-6  # the ranks have images of their own
        for part in ("gradients", "weights"):
            for other in others:
                assert_same(other[part], first[part])
            assert first[part].keys() == step[part].keys()
            for parameter, value in step[part].items():
                torch.testing.assert_close(
                    first[part][parameter], value, **CLOSE, msg=f"{number}: {part} of {parameter}"
                )
        assert max(float(g.abs().max()) for g in step["gradients"].values()) > 1e-3
        if first["drawn"] is not None:
            assert not any(torch.equal(first["drawn"], other["drawn"]) for other in others)
    assert not torch.equal(
        expected[0]["weights"]["encoder.trunk.conv1.weight"],
        expected[-1]["weights"]["encoder.trunk.conv1.weight"],
    )


@pytest.mark.parametrize("world", WORLDS)
def test_batch_norm_of_one_rank_alone_warns(world, launch):
    for found in launch(world):
        said = [text for text in found["methods"]["simclr"]["warnings"] if "batch norm" in text]
        assert len(said) == (world > 1)
        for text in said:
            assert f"over all {world} ranks, as SimCLR has it" in text
            assert "Trainer(sync_batchnorm=True)" in text


# --- What is sent


@pytest.mark.parametrize("world", WORLDS[1:])
@pytest.mark.parametrize("name", ["exemplar", "instdisc"])
def test_the_memory_is_never_sent(name, world, launch):
    """A fit writes as many bytes with a large one; with a queue that DDP knows of, all of it each step."""
    small, large = (
        sum(found["sent"][name][size] for found in launch(world)) for size in (SMALL, LARGE)
    )
    rows = LARGE * 6 * 8  # bytes of float64
    assert small > 10_000  # gradients, at least
    assert abs(large - small) < 4096  # messages printed once
    shown = sum(found["sent"]["shown"][LARGE] for found in launch(world))
    steps = EPOCHS * len(DEALT[world])
    assert shown - small > steps * (world - 1) * rows


# --- Shuffled batch norm


@pytest.mark.parametrize("world", WORLDS)
def test_shuffling_gives_keys_the_statistics_of_other_images(world, launch):
    """By the literal statistics of the images that a rank, or on one device a group, is dealt."""
    images = PairDataset(BN_IMAGES, dtype=torch.float64).images
    network, seen = encoder().double().eval(), []
    network.trunk.bn1.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    network(images)
    (maps,) = seen
    order = permutation(BN_IMAGES, seed=3)
    part = BN_IMAGES // world
    for number, ranked in enumerate(launch(world)):
        found, own = ranked["statistics"], slice(part * number, part * (number + 1))
        groups = 2 if world == 1 else 1
        literal = {}
        for name, numbers in (("shuffled", order[own]), ("plain", torch.arange(BN_IMAGES)[own])):
            parts = [maps[numbers[group::groups]] for group in range(groups)]
            each = [
                torch.stack([x.mean((0, 2, 3)), x.transpose(0, 1).flatten(1).var(1)]) for x in parts
            ]
            literal[name] = torch.stack(each).mean(0)
        for name, value in literal.items():
            torch.testing.assert_close(found[f"{name} keys"], value, **CLOSE)
            torch.testing.assert_close(found[f"{name} queries"], literal["plain"], **CLOSE)
        assert torch.equal(found["plain keys"], found["plain queries"])  # which gives a key away
        assert (found["shuffled encoded"] - found["plain encoded"]).abs().max() > 1e-4
        if world > 1:  # on one device these are means over its groups
            assert (found["shuffled keys"] - found["shuffled queries"]).abs().max() > 1e-3


# --- Metrics


@pytest.mark.parametrize("world", WORLDS)
def test_metrics_are_those_of_one_process(world, launch, alone):
    """Exactly: images are counted once, in one order, also where a rank saw none."""
    expected = alone["metrics"]["first"]
    assert 0 < float(expected["voc"]["AP50"]) < 100
    assert 0 < float(expected["coco"]["APseg50"]) < 100
    assert 0 < float(expected["city"]["mIoU"]) < 100
    assert float(expected["landmarks"]) > 1
    for found in (ranked["metrics"] for ranked in launch(world)):
        for dealt in ("dealt", "first", "last", "asked in between"):
            assert_same(found[dealt], expected, dealt)
        assert all("but no rank has seen any" in said for said in found["none"])


@pytest.mark.parametrize("world", WORLDS)
def test_a_readout_is_that_of_one_process(world, launch, alone):
    """Its accuracies exactly, though the images do not divide among the ranks."""
    expected = alone["probe"]
    assert (expected["images"], expected["selected"]) == (21, 30)
    for name, images in (("acc", 21), ("acc_lr30", 21)):
        right = expected["scores"][name] * images / 100
        assert right == pytest.approx(round(right), abs=1e-4)
    for found in (ranked["probe"] for ranked in launch(world)):
        torch.testing.assert_close(found["weights"], expected["weights"], **CLOSE_32)
        for name in ("scores", "selection_acc"):
            assert found[name] == expected[name]


@pytest.mark.parametrize("world", WORLDS)
def test_a_readout_weighs_labelled_images_alike(world, launch, alone):
    for found in (ranked["readout"] for ranked in launch(world)):
        torch.testing.assert_close(found, alone["readout"], **CLOSE_32)


@pytest.mark.parametrize("world", WORLDS)
def test_scores_beside_a_method_are_those_of_one_process(world, launch, alone):
    """An image that a sampler repeats counts once."""
    expected = alone["online"]
    assert (expected["dealt"], expected["scores"].keys()) == (
        21,
        {"acc_head", "online_acc", "knn_acc"},
    )
    for score in expected["scores"].values():
        assert score * 21 / 100 == pytest.approx(round(score * 21 / 100), abs=1e-4)
    assert 50 < expected["scores"]["knn_acc"] < 100
    for found in (ranked["online"] for ranked in launch(world)):
        assert found["dealt"] == {1: 21, 2: 22, 4: 24}[world]
        assert found["scores"] == expected["scores"]
