"""NT-Xent against the paper's Algorithm 1 as Python loops, and against three official codes."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from goodtransfer.losses import nt_xent, nt_xent_rows


def literal_algorithm_1(first, second, temperature):
    """Pairs are z_2k-1 and z_2k, counted from 1; a term at a time."""
    z = [v for pair in zip(first.tolist(), second.tolist(), strict=True) for v in pair]

    def s(i, j):
        return sum(a * b for a, b in zip(z[i - 1], z[j - 1], strict=True))

    def ell(i, j):
        others = [k for k in range(1, len(z) + 1) if k != i]
        denominator = sum(math.exp(s(i, k) / temperature) for k in others)
        return -math.log(math.exp(s(i, j) / temperature) / denominator)

    n = len(first)
    return sum(ell(2 * k - 1, 2 * k) + ell(2 * k, 2 * k - 1) for k in range(1, n + 1)) / (2 * n)


def problem(n=5, c=8, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    both = torch.randn(2, n, c, generator=generator, dtype=dtype)
    first, second = F.normalize(both, dim=2)
    return first.requires_grad_(), second.requires_grad_()


@pytest.mark.parametrize("temperature", [0.05, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("n", [1, 2, 7])
def test_equals_algorithm_1(n, temperature):
    first, second = problem(n)
    loss = nt_xent(first, second, temperature=temperature)
    expected = literal_algorithm_1(first, second, temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-12, abs=1e-13)
    assert (n == 1) == (abs(expected) < 1e-12)  # a lone pair has no negatives


@pytest.mark.data
@pytest.mark.parametrize("case", [0, 1, 2])
def test_equals_the_official_codes(case, shared):
    folder = shared / "parity/simclr_ntxent"
    run = json.loads((folder / "run.json").read_text())["cases"][case]
    d = {k.split(".")[1]: v for k, v in load_file(folder / "data.safetensors").items()
         if k.startswith(f"c{case}.")}  # fmt: skip
    hidden = d["hidden"].requires_grad_()
    first, second = F.normalize(hidden, dim=1).chunk(2)
    loss = nt_xent(first, second, temperature=run["temperature"])
    assert loss.item() == pytest.approx(run["sthalles_loss_mean"], rel=1e-12)
    assert loss.item() == pytest.approx(run["lightly_loss_mean"], rel=1e-12)
    twice = run["google_loss_sum_of_both_directions"]
    assert 2 * loss.item() == pytest.approx(twice, rel=1e-9)
    (grad,) = torch.autograd.grad(loss, hidden)
    for name, factor in (("sthalles", 1), ("lightly", 1), ("google", 2)):
        torch.testing.assert_close(factor * grad, d[f"{name}_grad"], rtol=1e-9, atol=1e-11)


def test_a_part_of_the_views_against_all_of_them():
    """What a rank computes: rows of its own, wherever they stand, and their partners."""
    first, second = problem(6)
    whole, won = nt_xent_rows(torch.cat([first, second]), temperature=0.1)
    ranks = [slice(0, 2), slice(2, 6)]  # of 2 and of 4 images
    everything = torch.cat([torch.cat([first[r], second[r]]) for r in ranks])
    for rows, start in zip(ranks, (0, 4), strict=True):
        views = torch.cat([first[rows], second[rows]])
        part, part_won = nt_xent_rows(views, everything, start, temperature=0.1)
        of_whole = torch.arange(12).view(2, 6)[:, rows].flatten()
        torch.testing.assert_close(part, whole[of_whole], rtol=1e-12, atol=1e-12)
        assert torch.equal(part_won, won[of_whole])


def test_won_says_where_the_other_view_is_the_nearest():
    first, noise = problem(16, c=3)
    views = F.normalize(torch.cat([first, first + 0.3 * noise]).detach(), dim=1)
    _, won = nt_xent_rows(views, temperature=0.1)
    for i, view in enumerate(views):
        similarity = [float(view @ other) if i != j else -2.0 for j, other in enumerate(views)]
        assert bool(won[i]) == (similarity.index(max(similarity)) == (i + 16) % 32)
    assert 0 < won.sum() < 32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing_beyond_the_rounding_of_the_input(dtype):
    first, second = problem(32, c=64, dtype=torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        under_autocast = nt_xent(first, second, temperature=0.07)
    assert under_autocast == nt_xent(first, second, temperature=0.07)
    low = first.detach().to(dtype), second.detach().to(dtype)
    loss = nt_xent(*low, temperature=0.07)
    exact = nt_xent(*(x.double() for x in low), temperature=0.07)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)


def test_extreme_logits_stay_finite_in_fp32():
    first, second = problem(dtype=torch.float32)
    loss = nt_xent(100 * first, second, temperature=0.01)
    expected = nt_xent(100 * first.double(), second.double(), temperature=0.01)
    assert loss.isfinite()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, (first, second)))


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_bad_temperatures(temperature):
    with pytest.raises(ValueError, match=f"`temperature` to be above 0, but got {temperature}"):
        nt_xent(*problem(), temperature=temperature)


def test_bad_shapes():
    with pytest.raises(ValueError, match=r"one shape \(N, C\), but got \(5, 8\) and \(4, 8\)"):
        nt_xent(problem()[0], problem(4)[0], temperature=0.1)
