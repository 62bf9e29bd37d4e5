"""What MoCo needs to know of other ranks, and of batch norm: gather, shuffle-BN, BN in groups."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

PAPER_BN_BATCH = 32  # images per GPU in MoCo, hence in the paper: 256 on 8 GPUs


def world_size() -> int:
    """Number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number among the ranks; 0 without a process group."""
    return dist.get_rank() if world_size() > 1 else 0


@torch.no_grad()
def gather(x: Tensor) -> tuple[Tensor, list[int]]:
    """The rows of all ranks, rank-major and without gradient, and each rank's row count.

    The ranks may hold different numbers of rows (a ragged last batch): rows are padded to the
    largest number for the exchange only.

    Args:
        x: (B, ...), of any B.

    Returns:
        The rows (sum of B, ...), and B of each rank.

    >>> gather(torch.tensor([5.0, 6.0]))  # one rank
    (tensor([5., 6.]), [2])
    """
    if world_size() == 1:
        return x, [len(x)]
    count = torch.tensor([len(x)], device=x.device)
    counts = [torch.empty_like(count) for _ in range(world_size())]
    dist.all_gather(counts, count)
    sizes: list[int] = torch.cat(counts).tolist()  # one wait for the GPU
    padded = x.new_zeros(max(sizes), *x.shape[1:])
    padded[: len(x)] = x
    rows = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(rows, padded)
    return torch.cat([r[:size] for r, size in zip(rows, sizes, strict=True)]), sizes


def share(rows: int, total: int) -> float:
    """What a mean over this rank's rows is multiplied by, so that DDP's mean over ranks is that over all.

    Exactly 1 where the ranks have equally many.

    >>> share(8, 8)
    1.0
    """
    return rows * world_size() / total


def joint_mean(losses: Tensor, known: Tensor) -> Tensor:
    """What DDP averages to the mean over the known rows of all ranks, however many each of them has.

    Args:
        losses: (B, ...), of any B, 0 in rows that are not known.
        known: which rows count, (B,) of bool.

    Returns:
        (...); 0 where no rank has a known row.

    >>> joint_mean(torch.tensor([6.0, 0.0, 2.0]), torch.tensor([True, False, True]))
    tensor(4.)
    """
    count = known.sum()
    if world_size() > 1:
        dist.all_reduce(count)
    return losses.sum(0) * world_size() / count.clamp(min=1)


def permutation(count: int, seed: int) -> Tensor:
    """A permutation that is equal on all ranks and leaves every global generator alone."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def encode_shuffled(
    encode: Callable[[Tensor], Tensor], images: Tensor, *, seed: int
) -> tuple[Tensor, slice]:
    """Shuffle-BN (MoCo, Sec. 3.3): each rank encodes images of all ranks.

    So a query and its key never share BN statistics, which would tell the key from the negatives.
    On one device the permutation alone hides nothing: run it inside :class:`split_batch_norm`.

    Args:
        encode: images (B, ...) to keys (B, C).
        images: this rank's images, (B, ...).
        seed: of the permutation; the same on all ranks, another one each step.

    Returns:
        The keys of all ranks in their original order, rank-major, (sum of B, C), and the slice of
        this rank's own.

    >>> encode_shuffled(lambda images: 10 * images, torch.arange(3.0), seed=0)
    (tensor([ 0., 10., 20.]), slice(0, 3, None))
    """
    everything, sizes = gather(images)
    start = sum(sizes[: rank()])
    own = slice(start, start + sizes[rank()])
    order = permutation(len(everything), seed).to(images.device)
    shuffled, _ = gather(encode(everything[order[own]]))
    keys = torch.empty_like(shuffled)
    keys[order] = shuffled
    return keys, own


def bn_groups(batch: int, setting: int | str = "auto") -> int:
    """How many BN groups a batch is split in: the largest divisor of it up to the wanted number.

    ``"auto"`` wants groups of 32 images, the paper's batch per GPU. On one device it is never one
    group, unless 1 is asked for, since the key's statistics then give it away: where no divisor is
    small enough it is the smallest there is, with a warning for a prime number of images.

    Args:
        batch: images of this rank.
        setting: the wanted number of groups, or ``"auto"``.

    >>> bn_groups(256), bn_groups(16), bn_groups(35), bn_groups(66, 4), bn_groups(35, 2)
    (8, 2, 5, 3, 5)
    """
    wanted = setting if isinstance(setting, int) else batch // PAPER_BN_BATCH
    groups = max(g for g in range(1, max(1, wanted) + 1) if batch % g == 0)
    if groups > 1 or setting == 1 or world_size() > 1:
        return groups
    smallest = next((g for g in range(2, batch // 2 + 1) if batch % g == 0), None)
    if smallest is None:
        warnings.warn(
            f"A batch of {batch} images cannot be split into batch norm groups of several images, "
            "so that keys are given away by their statistics: use an even batch_size, drop_last=True.",
            stacklevel=2,
        )
    return smallest or 1


class split_batch_norm(TorchFunctionMode):  # noqa: N801 - a context manager, used as a verb
    """Within it every batch norm in training mode normalises each of ``groups`` parts alone.

    What several GPUs do to a batch, on one device: image n belongs to group ``n % groups``; the
    running statistics move by the mean over groups. Any module that calls ``F.batch_norm`` is
    covered (torchvision's, timm's), without converting modules or renaming parameters. By
    reshaping (N, C, ...) to (N / groups, groups * C, ...), as in MoCo's own single-GPU demo:
    https://colab.research.google.com/github/facebookresearch/moco/blob/colab-notebook/colab/moco_cifar10_demo.ipynb

    Args:
        groups: their number, which divides the batch; 1 changes nothing.

    >>> with split_batch_norm(2):
    ...     F.batch_norm(torch.tensor([[0.0], [5.0], [2.0], [9.0]]), None, None, training=True)
    tensor([[-1.0000],
            [-1.0000],
            [ 1.0000],
            [ 1.0000]])
    """

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.batch_norm and self.groups > 1:
            return _grouped_batch_norm(self.groups, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _grouped_batch_norm(
    groups: int,
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    # torch.batch_norm, not F.batch_norm: in a compiled encoder that would come back here.
    cudnn = torch.backends.cudnn.enabled
    if not training:
        return torch.batch_norm(
            x, weight, bias, running_mean, running_var, False, momentum, eps, cudnn
        )
    channels = x.shape[1]

    def tiled(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.repeat(groups)

    mean, var = tiled(running_mean), tiled(running_var)
    split = x.reshape(len(x) // groups, groups * channels, *x.shape[2:])
    scale, shift = tiled(weight), tiled(bias)
    out = torch.batch_norm(split, scale, shift, mean, var, True, momentum, eps, cudnn)
    for running, moved in ((running_mean, mean), (running_var, var)):
        if running is not None and moved is not None:
            running.copy_(moved.view(groups, channels).mean(0))
    return out.reshape(x.shape)
