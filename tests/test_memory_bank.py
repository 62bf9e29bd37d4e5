"""The memory bank row by row: its start, its updates, its checksum."""

import math

import pytest
import torch

from goodtransfer.momentum import MemoryBank


def test_rows_start_uniform_equal_for_every_seed_and_nothing_is_drawn():
    torch.manual_seed(1)
    a = MemoryBank(1000, 12)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    b = MemoryBank(1000, 12)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(a.rows, b.rows)
    limit = 1 / math.sqrt(12 / 3)
    assert a.rows.abs().max() <= limit
    assert a.rows.min() == pytest.approx(-limit, rel=1e-3)
    assert a.rows.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.02)
    assert len(a) == 1000


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_an_update_row_by_row(momentum):
    bank = MemoryBank(10, 3).double()
    expected = bank.rows.clone()
    generator = torch.Generator().manual_seed(0)
    for numbers in ([4], [2, 9, 0], [7, 3, 7, 7, 1, 3], list(range(10))):
        features = torch.randn(len(numbers), 3, generator=generator, dtype=torch.float64)
        bank.update(torch.tensor(numbers), features, momentum)
        for number in set(numbers):
            last = max(place for place, n in enumerate(numbers) if n == number)
            mixed = momentum * expected[number] + (1 - momentum) * features[last]
            expected[number] = mixed / math.sqrt(float(mixed @ mixed))
        torch.testing.assert_close(bank.rows, expected, rtol=1e-12, atol=1e-14)


def test_checksum_tells_banks_apart():
    a, b = MemoryBank(8, 4), MemoryBank(8, 4)
    assert torch.equal(a.checksum(), b.checksum())
    b.rows[[0, 1]] = b.rows[[1, 0]]
    assert not torch.equal(a.checksum(), b.checksum())
