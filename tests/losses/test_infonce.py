"""`info_nce` against Eq. 2 written as two Python loops, and against autograd on the dense formula."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import goodtransfer.losses.infonce as losses_module
from goodtransfer.losses import info_nce, info_nce_rows


def literal_eq2(queries, positives, keys, temperature, query_labels=None, key_labels=None):
    """Eq. 2 of the paper, a term at a time."""
    losses = []
    for i, (q, p) in enumerate(zip(queries.tolist(), positives.tolist(), strict=True)):
        positive = math.exp(sum(a * b for a, b in zip(q, p, strict=True)) / temperature)
        denominator = positive
        for j, k in enumerate(keys.tolist()):
            if query_labels is not None:
                y_i, y_j = int(query_labels[i]), int(key_labels[j])
                if y_i == y_j and y_i != -1:
                    continue
            denominator += math.exp(sum(a * b for a, b in zip(q, k, strict=True)) / temperature)
        losses.append(-math.log(positive / denominator))
    return torch.tensor(losses, dtype=torch.float64)


def dense(queries, positives, keys, temperature, query_labels=None, key_labels=None):
    """The formula as ports write it; its gradient comes from autograd."""
    logits = queries @ keys.T
    if query_labels is not None:
        same = (query_labels[:, None] == key_labels) & (query_labels[:, None] >= 0)
        logits = logits.masked_fill(same, -torch.inf)
    logits = torch.cat([(queries * positives).sum(1, keepdim=True), logits], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(queries), dtype=torch.long))


def problem(n=6, k=40, c=8, classes=4, seed=0, dtype=torch.float64, norm=True):
    generator = torch.Generator().manual_seed(seed)
    q, p, keys = (torch.randn(m, c, generator=generator, dtype=dtype) for m in (n, n, k))
    if norm:
        q, p, keys = (F.normalize(x, dim=1) for x in (q, p, keys))
    labels = [torch.randint(-1, classes, (m,), generator=generator) for m in (n, k)]
    return q.requires_grad_(), p.requires_grad_(), keys, *labels


@pytest.mark.parametrize("temperature", [0.05, 0.07, 0.1, 0.2, 1.0])
@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("block", [1, 7, 40, 4096])
def test_equals_the_double_loop(temperature, labelled, block, monkeypatch):
    q, p, keys, query_labels, key_labels = problem()
    monkeypatch.setitem(losses_module._BLOCK_ELEMENTS, "cpu", block * len(q))
    labels = {"query_labels": query_labels, "key_labels": key_labels} if labelled else {}
    rows, _ = info_nce_rows(q, p, keys, temperature=temperature, **labels)
    expected = literal_eq2(q, p, keys, temperature, *labels.values())
    torch.testing.assert_close(rows, expected, rtol=1e-12, atol=1e-12)
    assert info_nce(q, p, keys, temperature=temperature, **labels).item() == pytest.approx(
        float(expected.mean()), rel=1e-12
    )


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("norm", [False, True])
def test_gradients_equal_autograd_of_the_dense_formula(labelled, norm, monkeypatch):
    monkeypatch.setitem(losses_module._BLOCK_ELEMENTS, "cpu", 50)
    q, p, keys, query_labels, key_labels = problem(norm=norm)
    labels = (query_labels, key_labels) if labelled else (None, None)
    ours = info_nce(q, p, keys, temperature=0.1, query_labels=labels[0], key_labels=labels[1])
    expected = torch.autograd.grad(3 * dense(q, p, keys, 0.1, *labels), (q, p))
    got = torch.autograd.grad(3 * ours, (q, p))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_gradient_reaches_only_what_asks_for_it():
    q, p, keys, *_ = problem()
    p = p.detach()
    (grad,) = torch.autograd.grad(info_nce(q, p, keys, temperature=0.2), (q,))
    (expected,) = torch.autograd.grad(dense(q, p, keys, 0.2), (q,))
    torch.testing.assert_close(grad, expected)
    assert not info_nce(q.detach(), p, keys, temperature=0.2).requires_grad


@pytest.mark.parametrize("case", ["exemplar_tau07", "exemplar_tau10"])
@pytest.mark.data
def test_equals_the_literal_reading_of_eq2(case, shared):
    folder = shared / "parity" / case
    tau = json.loads((folder / "data.json").read_text())["tau"]
    d = load_file(folder / "data.safetensors")
    raw = d["raw_query"].requires_grad_()
    q, p = F.normalize(raw, dim=1), d["k"].requires_grad_()
    variants = {
        "": (d["y_query"], d["y_queue"], "loss_per_row"),
        "unlabelled query": (d["u_y_query"], d["y_queue"], "u_never_equal_loss_per_row"),
        "all one class": (d["y_query"], d["allsame_y_queue"], "allsame_loss_per_row"),
        "no labels": (d["y_query"], torch.full_like(d["y_queue"], -1), "plain_loss_per_row"),
    }
    for query_labels, key_labels, expected in variants.values():
        labels = {"query_labels": query_labels, "key_labels": key_labels}
        rows, _ = info_nce_rows(q, p, d["queue"], temperature=tau, **labels)
        torch.testing.assert_close(rows, d[expected], rtol=1e-12, atol=1e-12)
    plain = info_nce_rows(q, p, d["queue"], temperature=tau)[0]
    torch.testing.assert_close(plain, d["plain_loss_per_row"], rtol=1e-12, atol=1e-12)

    labels = {"query_labels": d["y_query"], "key_labels": d["y_queue"]}
    q = q.detach().requires_grad_()
    loss = info_nce(q, p, d["queue"], temperature=tau, **labels)
    assert loss.item() == pytest.approx(float(d["loss_mean"]), rel=1e-12)
    for grad, name in zip(torch.autograd.grad(loss, (q, p)), "qk", strict=True):
        torch.testing.assert_close(grad, d[f"grad_{name}_of_mean"], rtol=1e-11, atol=1e-13)
    through = info_nce(F.normalize(raw, dim=1), p, d["queue"], temperature=tau, **labels)
    (grad,) = torch.autograd.grad(through, raw)
    torch.testing.assert_close(grad, d["grad_raw_query_of_mean"], rtol=1e-11, atol=1e-13)

    labels["key_labels"] = d["allsame_y_queue"]
    loss = info_nce(q, p, d["queue"], temperature=tau, **labels)
    for grad, name in zip(torch.autograd.grad(loss, (q, p)), "qk", strict=True):
        torch.testing.assert_close(grad, d[f"allsame_grad_{name}_of_mean"], rtol=1e-11, atol=1e-13)


def test_a_perfect_match_costs_nothing_as_the_temperature_falls():
    q, _, keys, *_ = problem(n=8, k=64, c=32)
    for temperature in (1e-2, 1e-3):
        loss = info_nce(q, q.detach(), keys, temperature=temperature)
        assert loss.item() < 1e-9


@pytest.mark.parametrize("temperature", [0.01, 0.07])
def test_rows_without_negatives_cost_nothing_and_pull_nothing(temperature):
    q, p, keys, *_ = problem()
    labels = torch.zeros(len(q), dtype=torch.long), torch.zeros(len(keys), dtype=torch.long)
    rows, won = info_nce_rows(
        q, p, keys, temperature=temperature, query_labels=labels[0], key_labels=labels[1]
    )
    assert won.all()
    torch.testing.assert_close(rows, torch.zeros_like(rows), atol=1e-15, rtol=0)
    for grad in torch.autograd.grad(rows.sum(), (q, p)):
        torch.testing.assert_close(grad, torch.zeros_like(grad), atol=1e-15, rtol=0)


def test_an_empty_queue_costs_nothing():
    q, p, keys, *_ = problem()
    assert info_nce(q, p, keys[:0], temperature=0.1).item() == 0


def test_won_says_where_the_positive_has_the_largest_logit():
    q, p, keys, query_labels, key_labels = problem(n=64, k=5)
    _, won = info_nce_rows(q, p, keys, temperature=0.1)
    q, p = q.detach(), p.detach()
    assert won.tolist() == [bool(a @ b >= max(keys @ a)) for a, b in zip(q, p, strict=True)]
    assert 0 < won.sum() < len(won)
    _, filtered = info_nce_rows(
        q, p, keys, temperature=0.1, query_labels=query_labels, key_labels=key_labels
    )
    assert (filtered >= won).all()
    assert filtered.sum() > won.sum()


def test_extreme_logits_stay_finite_in_fp32():
    q, p, keys, *_ = problem(dtype=torch.float32)
    loss = info_nce(100 * q, p, keys, temperature=0.01)
    expected = dense(100 * q.double(), p.double(), keys.double(), 0.01)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing_beyond_the_rounding_of_the_input(dtype):
    q, p, keys, *_ = problem(dtype=torch.float32, k=300, c=64)
    with torch.autocast("cpu", dtype=dtype):
        under_autocast = info_nce(q, p, keys, temperature=0.07)
    assert under_autocast == info_nce(q, p, keys, temperature=0.07)
    low = q.detach().to(dtype).requires_grad_()
    loss = info_nce(low, p.to(dtype), keys.to(dtype), temperature=0.07)
    exact = info_nce(low.double(), p.to(dtype).double(), keys.to(dtype).double(), temperature=0.07)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)
    assert torch.autograd.grad(loss, low)[0].dtype == dtype


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"temperature": 0.0}, "`temperature` to be above 0, but got 0.0"),
        ({"temperature": -1.0}, "above 0, but got -1.0"),
        ({"keys": torch.zeros(4, 5)}, r"\(K, C\), but got \(6, 8\), \(6, 8\) and \(4, 5\)"),
        ({"positives": torch.zeros(5, 8)}, r"but got \(6, 8\), \(5, 8\)"),
        ({"keys": torch.zeros(4, 8, requires_grad=True)}, "without gradient.*keys.detach"),
        ({"query_labels": torch.zeros(6)}, "together, but got only one"),
        (
            {"query_labels": torch.zeros(6), "key_labels": torch.zeros(3)},
            r"`key_labels` of shape \(40,\), but got \(6,\) and \(3,\)",
        ),
    ],
)
def test_bad_arguments_get_a_sentence(change, text):
    q, p, keys, *_ = problem()
    arguments = {"queries": q, "positives": p, "keys": keys, "temperature": 0.1} | change
    with pytest.raises(ValueError, match=text):
        info_nce(**arguments)


def test_any_negative_label_equals_nothing():
    q, p, keys, *_ = problem()
    plain, _ = info_nce_rows(q, p, keys, temperature=0.1)
    for mine in (-1, -2, -7):
        for theirs in (-1, -2, -7):
            labels = {
                "query_labels": torch.full((len(q),), mine),
                "key_labels": torch.full((len(keys),), theirs),
            }
            assert torch.equal(info_nce_rows(q, p, keys, temperature=0.1, **labels)[0], plain)
