"""NCE against the formula as Python loops, and against the official code, bank and all."""

import json
import math
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from goodtransfer.losses import bank_scores, info_nce, nce, nce_normalizer, nce_rows
from goodtransfer.momentum import MemoryBank

nce_module = import_module("goodtransfer.losses.nce")  # the function has its name


def literal_nce(scores, images, z, eps=1e-7):
    """Protocol 1.7, a term at a time."""
    total = 0.0
    for positive, *negatives in scores.tolist():
        k, pn = len(negatives), 1 / images
        p = math.exp(positive) / z
        total += math.log(p / (p + k * pn + eps))
        for negative in negatives:
            p = math.exp(negative) / z
            total += math.log(k * pn / (p + k * pn + eps))
    return -total / len(scores)


def problem(n=6, k=20, images=50, c=16, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(images, c, generator=generator, dtype=dtype)
    queries = F.normalize(torch.randn(n, c, generator=generator, dtype=dtype), dim=1)
    indices = torch.randint(images, (n, k), generator=generator)
    return queries.requires_grad_(), F.normalize(rows, dim=1), indices


@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
@pytest.mark.parametrize("z", [1.0, 1234.5, 5e9])
def test_equals_the_loops(temperature, z):
    queries, rows, indices = problem()
    scores = bank_scores(queries, rows, indices) / temperature
    loss = nce(scores, images=50, normalizer=z)
    assert loss.item() == pytest.approx(literal_nce(scores, 50, z), rel=1e-12)
    assert nce_rows(scores, images=50, normalizer=z).mean() == loss


def test_the_normalizer_is_the_mean_times_the_images():
    queries, rows, indices = problem()
    scores = bank_scores(queries, rows, indices) / 0.07
    terms = [math.exp(s) for row in scores.tolist() for s in row]
    expected = 50 * sum(terms) / len(terms)
    assert nce_normalizer(scores, 50).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.data
def test_three_steps_of_the_official_code(shared):
    """Loss, probabilities, gradient, Z and the bank, with upstream's temperature of fp32."""
    folder = shared / "parity/instdisc_nce"
    run = json.loads((folder / "run.json").read_text())
    d = load_file(folder / "data.safetensors")
    temperature = float(torch.tensor(run["T"], dtype=torch.float32))
    bank, z = MemoryBank(run["N"], run["C"]).double(), None
    bank.rows.copy_(d["memory_init"])
    for step, official in enumerate(run["runs"]["f64"]):
        features, y = d["features"][step].double().requires_grad_(), d["y"][step]
        indices = torch.cat([y.unsqueeze(1), d["negatives"][step]], dim=1)
        scores = bank_scores(features, bank.rows, indices) / temperature
        z = nce_normalizer(scores.detach(), run["N"]) if z is None else z
        loss = nce(scores, images=run["N"], normalizer=z)
        assert loss.item() == pytest.approx(official["loss"], rel=1e-9)
        assert z.item() == pytest.approx(official["Z"], rel=1e-9)
        name = f"f64.step{step + 1}"
        torch.testing.assert_close(
            scores.exp() / z, d[f"{name}.probabilities"], rtol=1e-9, atol=1e-12
        )
        (grad,) = torch.autograd.grad(loss, features)
        torch.testing.assert_close(grad, d[f"{name}.grad_features"], rtol=1e-9, atol=1e-10)
        bank.update(y, features.detach(), run["momentum"])
        torch.testing.assert_close(bank.rows, d[f"{name}.memory"], rtol=1e-12, atol=1e-13)


@pytest.mark.data
def test_three_steps_of_the_official_softmax(shared):
    """Over all of the bank: InfoNCE whose positive is the own row, and no negative."""
    folder = shared / "parity/instdisc_nce"
    run = json.loads((folder / "run.json").read_text())
    d = load_file(folder / "data.safetensors")
    temperature = float(torch.tensor(run["T"], dtype=torch.float32))
    bank = MemoryBank(run["N"], run["C"]).double()
    bank.rows.copy_(d["memory_init"])
    for step, official in enumerate(run["runs"]["f64.softmax"]):
        features, y = d["features"][step].double().requires_grad_(), d["y"][step]
        indices = {"query_labels": y, "key_labels": torch.arange(run["N"])}
        loss = info_nce(features, bank.rows[y], bank.rows, temperature=temperature, **indices)
        assert loss.item() == pytest.approx(official["loss"], rel=1e-9)
        (grad,) = torch.autograd.grad(loss, features)
        name = f"f64.softmax.step{step + 1}"
        torch.testing.assert_close(grad, d[f"{name}.grad_features"], rtol=1e-9, atol=1e-10)
        bank.update(y, features.detach(), run["momentum"])
        torch.testing.assert_close(bank.rows, d[f"{name}.memory"], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("dense", "block"), [(16, 2**18), (0, 1), (0, 7 * 16 * 20), (0, 2**18)])
def test_scores_and_their_gradient_by_both_ways(dense, block, monkeypatch):
    """Whole products and blocks of one, of some and of all queries; a number may come twice."""
    monkeypatch.setattr(nce_module, "_DENSE", dense)
    monkeypatch.setitem(nce_module._BLOCK_ELEMENTS, "cpu", block)
    queries, rows, indices = problem(n=17)
    indices[:, 3] = indices[:, 0]
    weights = torch.rand(17, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    scores = bank_scores(queries, rows, indices)
    (grad,) = torch.autograd.grad((weights * scores).sum(), queries)
    for i, query in enumerate(queries.detach()):
        pull = torch.zeros(16, dtype=torch.float64)
        for k, number in enumerate(indices[i].tolist()):
            assert scores[i, k].item() == pytest.approx(float(query @ rows[number]), rel=1e-12)
            pull += weights[i, k] * rows[number]
        torch.testing.assert_close(grad[i], pull, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dense", [0, 16])
def test_autocast_changes_nothing_beyond_the_rounding_of_the_input(dense, monkeypatch):
    monkeypatch.setattr(nce_module, "_DENSE", dense)
    queries, rows, indices = problem(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = bank_scores(queries, rows, indices)
    assert torch.equal(under_autocast, bank_scores(queries, rows, indices))
    low = queries.detach().bfloat16().requires_grad_()
    scores = bank_scores(low, rows, indices)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, bank_scores(low.float(), rows, indices))
    assert torch.autograd.grad(scores.sum(), low)[0].dtype == torch.bfloat16


def test_extreme_scores_stay_finite_in_fp32():
    """exp(score) over- and underflows; its logarithm does not."""
    scores = torch.tensor([[200.0, -200.0, 300.0], [-500.0, 0.0, 90.0]], requires_grad=True)
    loss = nce(scores, images=50, normalizer=1e4)
    assert loss.item() == pytest.approx(literal_nce(scores.double(), 50, 1e4), rel=1e-5)
    assert torch.autograd.grad(loss, scores)[0].isfinite().all()
