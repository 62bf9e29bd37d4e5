"""Noise-contrastive estimation against a memory bank, InstDisc's loss (Wu et al. 2018, Sec. 3.3).

Shapes: N = queries, K = negatives of each, M = rows of the bank (images), C = feature dimension.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from goodtransfer.losses.infonce import full_precision

# Upstream's, in both of its denominators.
_EPS = 1e-7

# With fewer rows than this times the indices of a query, all scores cost less than those wanted: a
# matrix product does some twenty multiplications in the time in which one value is looked up.
_DENSE = 16

# Floats of the rows that are looked up at once: 64 MiB, and on the CPU what its cache holds.
_BLOCK_ELEMENTS = {"cpu": 2**18}
_BLOCK_ELEMENTS_ACCELERATOR = 2**24


def nce(scores: Tensor, *, images: int, normalizer: Tensor | float) -> Tensor:
    """Mean NCE loss: telling each image's own row from K rows drawn as noise.

    ``-log(P / (P + K/M)) - sum over the negatives of log((K/M) / (P_k + K/M))``, ``P = exp(score) / Z``.

    Source: zhirongw/lemniscate.pytorch@f7cfe29, lib/NCECriterion.py.

    Args:
        scores: (N, 1 + K), of the own row first: dot products of query and row, over the temperature.
        images: M; noise is uniform over them.
        normalizer: Z, estimated once by :func:`nce_normalizer`.

    Returns:
        The mean over the N queries, in fp32 (fp64 for fp64 scores).

    >>> nce(torch.zeros(1, 2), images=1, normalizer=1.0)  # P = 1 = K/M: two coins, 2 log 2
    tensor(1.3863)
    """
    return nce_rows(scores, images=images, normalizer=normalizer).mean()


def nce_rows(scores: Tensor, *, images: int, normalizer: Tensor | float) -> Tensor:
    """As :func:`nce`, for each query by itself: (N,).

    Args:
        scores: (N, 1 + K), of the own row first.
        images: M.
        normalizer: Z.

    >>> scores = torch.tensor([[0.0, 0.0], [2.0, -2.0]])
    >>> nce_rows(scores, images=1, normalizer=1.0)  # twice log 2, and twice log(1 + exp(-2))
    tensor([1.3863, 0.2539])
    """
    scores = full_precision(scores)
    noise = scores.new_tensor((scores.shape[1] - 1) / images)
    denominator = noise + _EPS
    # log(P / noise), of which both terms are sigmoids: exact also where P over- or underflows.
    z = torch.as_tensor(normalizer, dtype=scores.dtype, device=scores.device)
    odds = scores - z.log() - denominator.log()
    from_noise = F.logsigmoid(-odds[:, 1:]) + (noise / denominator).log()
    return -F.logsigmoid(odds[:, 0]) - from_noise.sum(1)


def nce_normalizer(scores: Tensor, images: int) -> Tensor:
    """Z as estimated from a batch: ``M * mean(exp(score))`` over queries and drawn rows, own included.

    Source: zhirongw/lemniscate.pytorch@f7cfe29, lib/NCEAverage.py.

    Args:
        scores: (N, 1 + K).
        images: M.

    Returns:
        Z, a scalar in fp32 (fp64 for fp64 scores).

    >>> nce_normalizer(torch.zeros(2, 4), images=10)
    tensor(10.)
    """
    return images * full_precision(scores).exp().mean()


def bank_scores(queries: Tensor, rows: Tensor, indices: Tensor) -> Tensor:
    """Dot products of each query with rows of a bank of its own; gradient to the queries.

    The N x K x C rows never exist at once (512 MiB of 256 queries, 4,096 rows, 128 dimensions): they
    are looked up in blocks, and again for the gradient. A small bank is multiplied whole.

    Args:
        queries: (N, C).
        rows: (M, C), the bank, which must not change before the backward pass.
        indices: (N, K) of rows.

    Returns:
        The scores (N, K), in fp32 (fp64 for fp64 queries), also under autocast.

    >>> rows = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> bank_scores(torch.tensor([[2.0, 3.0]]), rows, torch.tensor([[1, 1, 0]]))
    tensor([[3., 3., 2.]])
    """
    with torch.autocast(queries.device.type, enabled=False):
        queries = full_precision(queries)
        rows = rows.to(queries.dtype)
        if len(rows) <= _DENSE * indices.shape[1]:
            return (queries @ rows.T).gather(1, indices)
        scores: Tensor = _Scores.apply(queries, rows, indices)
        return scores


class _Scores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, rows: Tensor, indices: Tensor) -> Tensor:
        ctx.save_for_backward(rows, indices)
        scores = queries.new_empty(indices.shape)
        for block in _blocks(indices, rows):
            looked_up = _look_up(rows, indices[block])  # b x K x C
            scores[block] = (looked_up @ queries[block].unsqueeze(2)).squeeze(2)
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        rows, indices = ctx.saved_tensors
        pull = grad.new_empty(len(grad), rows.shape[1])
        for block in _blocks(indices, rows):
            pull[block] = (grad[block].unsqueeze(1) @ _look_up(rows, indices[block])).squeeze(1)
        return pull, None, None


def _look_up(rows: Tensor, indices: Tensor) -> Tensor:
    # Twice as fast on the CPU as rows[indices].
    return rows.index_select(0, indices.flatten()).view(*indices.shape, -1)


def _blocks(indices: Tensor, rows: Tensor) -> list[slice]:
    """Queries whose rows fit into one block."""
    elements = _BLOCK_ELEMENTS.get(rows.device.type, _BLOCK_ELEMENTS_ACCELERATOR)
    size = max(1, elements // max(1, indices.shape[1] * rows.shape[1]))
    return [slice(start, start + size) for start in range(0, len(indices), size)]
