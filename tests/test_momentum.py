"""The queue against a plain Python list, through wrap, resize and reload; EMA by hand."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from goodtransfer.momentum import KeyQueue, ema_update, equal_share


def keys_from(start, count, dim=2):
    """Keys that can be told apart: key n is (n, n)."""
    return torch.arange(start, start + count, dtype=torch.float32).unsqueeze(1).repeat(1, dim)


def oldest_first(queue):
    filled, pointer = int(queue.filled), int(queue.pointer)
    start = pointer if filled == len(queue) else 0
    order = [(start + i) % len(queue) for i in range(filled)]
    return [(float(queue.keys[s, 0]), int(queue.labels[s]), int(queue.indices[s])) for s in order]


@pytest.mark.parametrize(
    ("size", "batch", "steps"), [(10, 3, 8), (10, 10, 3), (10, 1, 25), (10, 4, 2)]
)
def test_holds_the_last_keys_in_order(size, batch, steps):
    queue, expected = KeyQueue(size, 2), []
    for n in range(0, steps * batch, batch):
        numbers = torch.arange(n, n + batch)
        queue.enqueue(keys_from(n, batch), numbers % 4, numbers + 100)
        expected = [*expected, *((float(i), int(i % 4), int(i + 100)) for i in numbers)][-size:]
        assert oldest_first(queue) == expected
        assert int(queue.pointer) == (n + batch) % size


@pytest.mark.parametrize("batch", [11, 23, 40])
def test_keeps_the_newest_of_a_batch_larger_than_itself(batch):
    queue = KeyQueue(10, 2)
    queue.enqueue(keys_from(0, 3))
    queue.enqueue(keys_from(3, batch), torch.arange(batch), torch.arange(batch))
    newest = [(float(3 + i), i, i) for i in range(batch - 10, batch)]
    assert oldest_first(queue) == newest
    assert int(queue.pointer) == (3 + batch) % 10


def test_ragged_batches_wrap_exactly():
    queue, expected = KeyQueue(7, 2), []
    for n in [3, 1, 5, 2, 7, 4, 9, 1]:
        start = len(expected)
        queue.enqueue(keys_from(start, n))
        expected += [(float(i), -1, -1) for i in range(start, start + n)]
        assert oldest_first(queue) == expected[-7:]


def test_free_slots_are_unit_noise_without_label_equal_for_every_seed():
    torch.manual_seed(1)
    a = KeyQueue(64, 16)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    b = KeyQueue(64, 16)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(a.keys, b.keys)
    torch.testing.assert_close(a.keys.norm(dim=1), torch.ones(64))
    assert (a.labels == -1).all()
    assert (a.indices == -1).all()
    assert int(a.filled) == 0


def test_all_state_is_saved_and_loaded():
    queue = KeyQueue(5, 2)
    queue.enqueue(keys_from(0, 7), torch.arange(7), torch.arange(7))
    fresh = KeyQueue(5, 2)
    fresh.load_state_dict(queue.state_dict())
    for each in (queue, fresh):
        each.enqueue(keys_from(7, 3))
    assert oldest_first(fresh) == oldest_first(queue)
    assert set(queue.state_dict()) == {"keys", "labels", "indices", "pointer", "filled"}


def test_enqueue_takes_what_it_is_given_without_keeping_a_graph():
    queue = KeyQueue(4, 2)
    queue.enqueue(keys_from(0, 2).double().requires_grad_())
    assert queue.keys.dtype == torch.float32
    assert not queue.keys.requires_grad


@pytest.mark.parametrize("enqueued", [3, 6, 9])
@pytest.mark.parametrize("size", [4, 12])
def test_another_size_needs_permission_and_keeps_the_newest(enqueued, size):
    queue = KeyQueue(6, 2)
    queue.enqueue(keys_from(0, enqueued), torch.arange(enqueued), torch.arange(enqueued))
    with pytest.raises(ValueError, match=f"queue of {size} keys, but the checkpoint holds 6"):
        KeyQueue(size, 2).load_state_dict(queue.state_dict())
    resized = KeyQueue(size, 2, allow_resize=True)
    resized.load_state_dict(queue.state_dict())
    assert oldest_first(resized) == oldest_first(queue)[-size:]


def test_checksum_tells_queues_apart():
    a = KeyQueue(8, 4)
    b = deepcopy(a)
    assert torch.equal(a.checksum(), b.checksum())
    for change in ("keys", "labels", "indices", "pointer", "filled"):
        c = deepcopy(a)
        tensor = getattr(c, change)
        tensor.view(-1)[0] += 1
        assert not torch.equal(a.checksum(), c.checksum()), change
    c = deepcopy(a)
    c.keys[[0, 1]] = c.keys[[1, 0]]
    assert not torch.equal(a.checksum(), c.checksum())


def test_equal_share_counts_pairs():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        q = torch.randint(-1, 5, (13,), generator=generator)
        k = torch.randint(-1, 5, (31,), generator=generator)
        pairs = sum(int(a == b and a >= 0) for a in q for b in k)
        assert float(equal_share(q, k)) == pytest.approx(pairs / (13 * 31))
    assert float(equal_share(q, k[:0])) == 0


def test_ema_moves_parameters_only():
    online = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    target = deepcopy(online)
    for p in online.parameters():
        p.data.add_(torch.randn_like(p))
    online[1].running_mean.fill_(5)
    online[1].num_batches_tracked.fill_(100)
    before = [p.clone() for p in target.parameters()]
    ema_update(online, target, 0.9)
    for old, q, k in zip(before, online.parameters(), target.parameters(), strict=True):
        torch.testing.assert_close(k, old * 0.9 + q * (1 - 0.9), rtol=1e-6, atol=1e-7)
    assert torch.equal(target[1].running_mean, torch.zeros(2))
    assert int(target[1].num_batches_tracked) == 0


def test_bad_sizes_get_a_sentence():
    with pytest.raises(ValueError, match="positive, but got 0 and 2"):
        KeyQueue(0, 2)
