"""InfoNCE against a queue of keys, and Eq. 2 of the paper, streamed over the queue.

Shapes: N = queries, K = keys, C = feature dimension.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Elements of one N x chunk block of logits: about 1 MiB of fp32 stays in a core's cache on the CPU;
# an accelerator wants fewer, larger kernels.
_BLOCK_ELEMENTS = {"cpu": 2**18}
_BLOCK_ELEMENTS_ACCELERATOR = 2**24


def info_nce(
    queries: Tensor,
    positives: Tensor,
    keys: Tensor,
    *,
    temperature: float,
    query_labels: Tensor | None = None,
    key_labels: Tensor | None = None,
) -> Tensor:
    """Mean InfoNCE loss; with labels, Eq. 2 of the paper (same-label keys are no negatives).

    ``-log(exp(q.p/t) / (exp(q.p/t) + sum over j with label_j != label_q of exp(q.k_j/t)))``

    The N x K logits never exist: the keys are read in blocks, with a running maximum, a running sum
    and, in the same pass, the running gradient of the queries.

    Args:
        queries: (N, C), unit length in the paper; any scale is computed correctly.
        positives: (N, C), the positive key of each query. Never filtered.
        keys: (K, C), the queue of earlier keys. Must not require grad.
        temperature: t, above 0.
        query_labels: (N,) integers. A negative label equals nothing: all keys stay negatives.
        key_labels: (K,) integers, given together with ``query_labels``.

    Returns:
        The mean over the N queries, in fp32 (fp64 for fp64 queries), also under autocast.

    Raises:
        ValueError: for shapes that do not fit, keys that require grad, only one kind of labels, or a
            temperature that is not above 0.

    >>> q = torch.tensor([[1.0, 0.0]])
    >>> info_nce(q, q, torch.tensor([[0.0, 1.0]]), temperature=1.0)  # log(1 + exp(0 - 1))
    tensor(0.3133)

    A second key is the query's double, but of its class, so that nothing changes:

    >>> keys, labels = torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([5, 3])
    >>> info_nce(q, q, keys, temperature=1.0, query_labels=torch.tensor([3]), key_labels=labels)
    tensor(0.3133)
    """
    losses, _ = info_nce_rows(
        queries,
        positives,
        keys,
        temperature=temperature,
        query_labels=query_labels,
        key_labels=key_labels,
    )
    return losses.mean()


def info_nce_rows(
    queries: Tensor,
    positives: Tensor,
    keys: Tensor,
    *,
    temperature: float,
    query_labels: Tensor | None = None,
    key_labels: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As :func:`info_nce`, for each query by itself.

    Args:
        queries: (N, C).
        positives: (N, C).
        keys: (K, C).
        temperature: above 0.
        query_labels: (N,) integers, or None.
        key_labels: (K,) integers, or None.

    Returns:
        The losses (N,), and whether the positive has the largest logit, bool (N,).

    Raises:
        ValueError: as :func:`info_nce`.

    >>> q, keys = torch.eye(2), torch.tensor([[0.0, 1.0]])
    >>> info_nce_rows(q, q[[0, 0]], keys, temperature=1.0)  # the second is nearer to the key
    (tensor([0.3133, 1.3133]), tensor([ True, False]))
    """
    _check(queries, positives, keys, temperature, query_labels, key_labels)
    if query_labels is not None:
        # Negative means "no label" on both sides, so no query may keep what a key may have.
        nothing = torch.iinfo(query_labels.dtype).min
        query_labels = torch.where(query_labels < 0, nothing, query_labels)
    losses, won = _InfoNCE.apply(queries, positives, keys, temperature, query_labels, key_labels)
    return losses, won


def full_precision(x: Tensor) -> Tensor:
    """``x`` in fp32 at least: half types go up, fp64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def full_precision_linear(x: Tensor, layer: nn.Linear) -> Tensor:
    """``layer(x)`` in fp32 at least, also under autocast: in bfloat16 the logits of classes tie.

    >>> two = nn.Linear(1, 2, bias=False)
    >>> _ = two.weight.data.copy_(torch.tensor([[1.0], [1.001]]))
    >>> with torch.autocast("cpu", torch.bfloat16):
    ...     tied, told = two(torch.ones(1, 1)), full_precision_linear(torch.ones(1, 1), two)
    >>> tied.tolist(), told.argmax().item()
    ([[1.0, 1.0]], 1)
    """
    bias = None if layer.bias is None else full_precision(layer.bias)
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(full_precision(x), full_precision(layer.weight), bias)


class _InfoNCE(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        positives: Tensor,
        keys: Tensor,
        temperature: float,
        query_labels: Tensor | None,
        key_labels: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        with torch.autocast(queries.device.type, enabled=False):
            q, p = full_precision(queries) / temperature, full_precision(positives)
            positive = (q * p).sum(1)  # N
            needs_grad = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
            top, total, pull = _softmax_over_keys(
                q, positive, keys, query_labels, key_labels, weighted_keys=needs_grad
            )
            loss = top + total.log() - positive
            if needs_grad:
                share = (positive - top).exp() / total  # softmax of the positive, N
                toward_positive = (share - 1).unsqueeze(1)
                grad_q = (pull / total.unsqueeze(1) + toward_positive * p) / temperature
                ctx.save_for_backward(
                    grad_q.to(queries.dtype), (toward_positive * q).to(positives.dtype)
                )
        won = positive >= top
        ctx.mark_non_differentiable(won)
        return loss, won

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grad_q, grad_p = ctx.saved_tensors
        scale = grad_loss.unsqueeze(1)
        return (
            (scale * grad_q).to(grad_q.dtype) if ctx.needs_input_grad[0] else None,
            (scale * grad_p).to(grad_p.dtype) if ctx.needs_input_grad[1] else None,
            *[None] * 4,
        )


def _softmax_over_keys(
    q: Tensor,
    positive: Tensor,
    keys: Tensor,
    query_labels: Tensor | None,
    key_labels: Tensor | None,
    *,
    weighted_keys: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """One pass over the keys: the largest logit (N,), sum of exp(logit - largest) (N,) with the
    positive in both, and (N, C) the negatives weighted by their terms of that sum.
    """
    top, total, pull = positive.clone(), torch.ones_like(positive), torch.zeros_like(q)
    elements = _BLOCK_ELEMENTS.get(q.device.type, _BLOCK_ELEMENTS_ACCELERATOR)
    block_size = max(1, elements // max(1, len(q)))
    for start in range(0, len(keys), block_size):
        block = keys[start : start + block_size].to(q.dtype)
        logits = q @ block.T  # N x block
        if query_labels is not None and key_labels is not None:
            same = query_labels.unsqueeze(1) == key_labels[start : start + block_size]
            logits.masked_fill_(same, -torch.inf)
        new_top = torch.maximum(top, logits.amax(1))
        shrink = (top - new_top).exp_()
        weights = logits.sub_(new_top.unsqueeze(1)).exp_()
        total = total * shrink + weights.sum(1)
        if weighted_keys:
            pull = torch.addmm(pull * shrink.unsqueeze(1), weights, block)
        top = new_top
    return top, total, pull


def _check(
    queries: Tensor,
    positives: Tensor,
    keys: Tensor,
    temperature: float,
    query_labels: Tensor | None,
    key_labels: Tensor | None,
) -> None:
    if not temperature > 0:
        raise ValueError(f"Expected argument `temperature` to be above 0, but got {temperature}.")
    shapes = tuple(queries.shape), tuple(positives.shape), tuple(keys.shape)
    fits = queries.ndim == 2 and shapes[0] == shapes[1] and keys.ndim == 2
    if not fits or keys.shape[1] != queries.shape[1]:
        raise ValueError(
            "Expected `queries` and `positives` of shape (N, C) and `keys` of shape (K, C), "
            f"but got {shapes[0]}, {shapes[1]} and {shapes[2]}."
        )
    if keys.requires_grad:
        raise ValueError(
            "Expected `keys` without gradient (they are the queue of earlier keys), but they "
            "require grad: pass keys.detach(), or put the one key to be trained in `positives`."
        )
    if (query_labels is None) != (key_labels is None):
        raise ValueError("Expected `query_labels` and `key_labels` together, but got only one.")
    if query_labels is not None and key_labels is not None:
        labels = tuple(query_labels.shape), tuple(key_labels.shape)
        if labels != (shapes[0][:1], shapes[2][:1]):
            raise ValueError(
                f"Expected `query_labels` of shape {shapes[0][:1]} and `key_labels` of shape "
                f"{shapes[2][:1]}, but got {labels[0]} and {labels[1]}."
            )
