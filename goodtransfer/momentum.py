"""What methods remember: MoCo's queue and momentum (EMA) encoder, InstDisc's memory bank."""

import math
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NO_LABEL = -1


class KeyQueue(nn.Module):
    """First-in first-out memory of K keys with their labels and image indices (MoCo, Alg. 1).

    Exact at any batch size: it wraps, and of a batch larger than itself it keeps the newest K.
    All state is in buffers, written in place, so that a checkpoint holds it and a resumed run goes
    on with the same negatives. Free slots hold unit-length noise with label and index -1, which
    count as negatives as in the official code. The noise has its own fixed seed: DDP neither
    synchronises nor broadcasts the queue, so the ranks must start alike by themselves.

    Args:
        size: K, the number of keys.
        dim: C, the feature dimension.
        allow_resize: let ``load_state_dict`` take a queue of another size, keeping its newest keys.
            Without it such a checkpoint is refused, since other negatives are another experiment.

    Attributes:
        keys: (K, C) fp32; the order is of storage, ``pointer`` is the oldest slot once full.
        labels: (K,) int64, -1 where there is none.
        indices: (K,) int64, data set index of the key's image, -1 where unknown.
        pointer: int64 scalar, the slot that the next key takes.
        filled: int64 scalar, how many slots hold real keys.

    Raises:
        ValueError: for a size or a dimension below 1, or the state of a queue of another size.

    >>> queue = KeyQueue(size=3, dim=1)
    >>> queue.enqueue(torch.tensor([[1.0], [2.0]]), labels=torch.tensor([7, 8]))
    >>> queue.enqueue(torch.tensor([[3.0], [4.0]]))  # the last one takes the place of the oldest
    >>> queue.keys.flatten(), queue.labels, queue.pointer
    (tensor([4., 2., 3.]), tensor([-1,  8, -1]), tensor(1))
    """

    keys: Tensor
    labels: Tensor
    indices: Tensor
    pointer: Tensor
    filled: Tensor

    def __init__(self, size: int, dim: int, *, allow_resize: bool = False) -> None:
        super().__init__()
        if size < 1 or dim < 1:
            raise ValueError(f"Expected `size` and `dim` to be positive, but got {size} and {dim}.")
        self.allow_resize = allow_resize
        noise = torch.randn(size, dim, generator=torch.Generator().manual_seed(0))
        self.register_buffer("keys", F.normalize(noise, dim=1))
        self.register_buffer("labels", torch.full((size,), NO_LABEL))
        self.register_buffer("indices", torch.full((size,), NO_LABEL))
        self.register_buffer("pointer", torch.tensor(0))
        self.register_buffer("filled", torch.tensor(0))

    def __len__(self) -> int:
        return len(self.keys)

    @torch.no_grad()
    def enqueue(
        self, keys: Tensor, labels: Tensor | None = None, indices: Tensor | None = None
    ) -> None:
        """Overwrite the oldest slots.

        Args:
            keys: (B, C), oldest first; of more than K the last K.
            labels: (B,) integers; None is -1 for each.
            indices: (B,) integers; None is -1 for each.
        """
        count = len(keys)
        newest = slice(max(0, count - len(self)), None)
        offsets = torch.arange(count, device=self.keys.device)[newest]
        slots = (self.pointer + offsets) % len(self)
        self.keys[slots] = keys[newest].to(self.keys)
        self.labels[slots] = NO_LABEL if labels is None else labels[newest].to(self.labels)
        self.indices[slots] = NO_LABEL if indices is None else indices[newest].to(self.indices)
        self.pointer.add_(count).remainder_(len(self))
        self.filled.add_(count).clamp_(max=len(self))

    def checksum(self) -> Tensor:
        """Float64 (5,): equal on two ranks only if, practically, their queues are equal."""
        slots = torch.linspace(1, 2, len(self), device=self.keys.device, dtype=torch.float64)
        columns = (self.keys.sum(1), self.labels, self.indices)
        sums = [column.double() @ slots for column in columns]
        return torch.stack([*sums, self.pointer.double(), self.filled.double()])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        saved = state_dict.get(prefix + "keys")
        if saved is not None and not len(saved):  # see `checkpoints.SafeCheckpointIO(queue="none")`
            warnings.warn(
                "The checkpoint was saved without its queue, which starts empty: negatives are "
                f"{len(self):,} noise vectors until as many keys have come.",
                stacklevel=2,
            )
            state_dict.update(_under(prefix, KeyQueue(len(self), self.keys.shape[1])))
        elif saved is not None and len(saved) != len(self):
            if not self.allow_resize:
                raise ValueError(
                    f"Expected a queue of {len(self)} keys, but the checkpoint holds {len(saved)}: "
                    f"set queue_size={len(saved)}, or allow_queue_resize=True to keep the newest."
                )
            state_dict.update(self._resized(state_dict, prefix))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _resized(self, state_dict: dict[str, Any], prefix: str) -> dict[str, Tensor]:
        """The saved keys, oldest first, put through an empty queue of this size."""
        names = ("keys", "labels", "indices", "pointer", "filled")
        keys, labels, indices, pointer, filled = (state_dict[prefix + name] for name in names)
        oldest_first = (torch.arange(len(keys)) + int(pointer)) % len(keys)
        real = oldest_first[len(keys) - int(filled) :]
        resized = KeyQueue(len(self), keys.shape[1])
        resized.enqueue(keys[real], labels[real], indices[real])
        return _under(prefix, resized)


def _under(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in module.state_dict().items()}


class MemoryBank(nn.Module):
    """A feature of every training image, by its index (InstDisc: Wu et al. 2018, Sec. 3.1).

    The rows are a buffer, written in place, so that a checkpoint holds them. They start uniform, and
    not of unit length, as upstream (zhirongw/lemniscate.pytorch@f7cfe29, lib/NCEAverage.py), from a
    fixed seed of their own: DDP does not send them, so the ranks must start alike by themselves.

    Args:
        size: M, the number of images.
        dim: C, the feature dimension.

    Attributes:
        rows: (M, C) fp32.

    Raises:
        ValueError: for a size or a dimension below 1, or the state of a bank of another size.

    >>> bank = MemoryBank(size=4, dim=2)
    >>> bank.update(torch.tensor([2]), torch.tensor([[3.0, 4.0]]), momentum=0.0)
    >>> bank.rows[2]
    tensor([0.6000, 0.8000])
    """

    rows: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        if size < 1 or dim < 1:
            raise ValueError(f"Expected `size` and `dim` to be positive, but got {size} and {dim}.")
        uniform = torch.rand(size, dim, generator=torch.Generator().manual_seed(0))
        self.register_buffer("rows", (2 * uniform - 1) / math.sqrt(dim / 3))

    def __len__(self) -> int:
        return len(self.rows)

    @torch.no_grad()
    def update(self, indices: Tensor, features: Tensor, momentum: float) -> None:
        """``row = unit(momentum * row + (1 - momentum) * feature)``, in place.

        Of an image that comes twice the last feature counts, and the earlier ones not at all.

        Args:
            indices: of the images, int64 (B,).
            features: (B, C).
            momentum: of the rows, from 0 to 1.
        """
        # Writing twice to a row would leave either, on an accelerator another on each rank.
        ordered, order = indices.sort(stable=True)
        last = F.pad(ordered[1:] != ordered[:-1], (0, 1), value=True)
        indices, features = ordered[last], features[order[last]].to(self.rows)
        mixed = momentum * self.rows[indices] + (1 - momentum) * features
        self.rows[indices] = F.normalize(mixed, dim=1)

    def checksum(self) -> Tensor:
        """Float64 (1,): equal on two ranks only if, practically, their rows are equal."""
        places = torch.linspace(1, 2, len(self), device=self.rows.device, dtype=torch.float64)
        return (self.rows.sum(1).double() @ places).unsqueeze(0)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        saved = state_dict.get(prefix + "rows")
        if saved is not None and len(saved) != len(self):
            raise ValueError(
                f"Expected a memory bank of {len(self)} images, but the checkpoint holds one of "
                f"{len(saved)}: its rows belong to the images it was trained on, so resume with those."
            )
        super()._load_from_state_dict(state_dict, prefix, *args)


def equal_share(queries: Tensor, keys: Tensor) -> Tensor:
    """Share of the N x K pairs with equal, non-negative labels, without building the pairs.

    >>> equal_share(torch.tensor([0, 1, -1, 7]), torch.tensor([0, 0, 1, -1]))  # 3 of 16
    tensor(0.1875)
    """
    ordered = queries.sort().values
    matches = torch.searchsorted(ordered, keys, right=True) - torch.searchsorted(ordered, keys)
    return matches[keys >= 0].sum() / max(1, queries.numel() * keys.numel())


@torch.no_grad()
def ema_update(online: nn.Module, target: nn.Module, momentum: float) -> None:
    """``target = momentum * target + (1 - momentum) * online``, over parameters only.

    Buffers stay: the key encoder keeps the BN statistics of its own batches, and counters such as
    ``num_batches_tracked`` are no averages. Source: facebookresearch/moco@132aea9,
    moco/builder.py, ``_momentum_update_key_encoder``.

    Args:
        online: the network that is trained.
        target: the one that follows, of the same parameters in the same order; changed in place.
        momentum: of its parameters, from 0 to 1.

    >>> online, target = nn.Linear(1, 1), nn.Linear(1, 1)
    >>> _ = nn.init.ones_(online.weight), nn.init.zeros_(target.weight)
    >>> ema_update(online, target, momentum=0.75)
    >>> target.weight.item()
    0.25
    """
    # One pass over memory for all parameters; torch's own EMA (swa_utils) calls the same.
    torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), 1 - momentum)
