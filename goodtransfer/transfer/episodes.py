"""Few-shot episodes: drawn by a seed, and their classifiers trained all at once (protocol 5.2).

Shapes: E = episodes, W = classes of one (way), S = support images of a class (shot), Q = its
queries, n = W * S, D = feature dimension, R = learning rates. Rows of an episode are class-major.
"""

import random
from collections.abc import Iterator, Sequence
from math import sqrt
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

_CHUNK_ELEMENTS = 2**18  # of the episodes trained at once: 1 MiB of fp32, as caches hold

MOMENTUM = DAMPENING = 0.9


class Episodes(NamedTuple):
    """Row numbers of images, by episode and by the episode's own label, 0 to W - 1.

    Attributes:
        classes: the class behind each of the episode's labels (E, W).
        support: rows of the images to train on (E, W, S).
        query: rows of the images to classify (E, W, Q).
    """

    classes: Tensor
    support: Tensor
    query: Tensor


class Heads(NamedTuple):
    """One linear classifier for each episode.

    Attributes:
        weight: (E, W, D).
        bias: (E, W).
    """

    weight: Tensor
    bias: Tensor


def check_enough(
    labels: Tensor,
    *,
    way: int,
    images: int,
    part: str = "the",
    names: Sequence[str] | None = None,
) -> None:
    """See that episodes can be drawn.

    Args:
        labels: class of each image, -1 for none (N,).
        way: classes of an episode.
        images: of each of its classes, support and query together.
        part: what to call the classes, such as ``"novel"``.
        names: of the classes, by label.

    Raises:
        ValueError: for too few classes, or a class with too few images, naming it.
    """
    counts = {label: len(rows) for label, rows in _rows_by_class(labels).items()}
    if len(counts) < way:
        raise ValueError(
            f"Expected at least {way} classes for episodes of {way}, but {part} images are of "
            f"{len(counts)}: lower `way`, or give more classes."
        )
    label = min(counts, key=lambda label: counts[label])
    if counts[label] < images:
        name = f"class {label}" + (f" ({names[label]})" if names else "")
        raise ValueError(
            f"Expected at least {images} images of every class, support and queries of an episode, "
            f"but {part} {name} has {counts[label]}: lower `shots` or `queries`, or give more "
            "images."
        )


def _rows_by_class(labels: Tensor) -> dict[int, list[int]]:
    rows: dict[int, list[int]] = {label: [] for label in sorted(set(labels.tolist())) if label >= 0}
    for row, label in enumerate(labels.tolist()):
        if label >= 0:
            rows[label].append(row)
    return rows


def sample_episodes(
    labels: Tensor,
    *,
    episodes: int = 600,
    way: int = 5,
    shot: int = 5,
    queries: int = 15,
    seed: int = 0,
) -> Episodes:
    """Draw classes without replacement, then images of each, without replacement.

    Args:
        labels: class of each image, -1 for an image that belongs to none (N,).
        episodes: how many; each is drawn anew from all classes.
        way: classes of an episode.
        shot: support images of a class.
        queries: query images of a class.
        seed: what all of it depends on.
    """
    images = shot + queries
    check_enough(labels, way=way, images=images)
    rows = _rows_by_class(labels)
    chance = random.Random(seed)
    classes = [chance.sample(list(rows), way) for _ in range(episodes)]
    drawn = torch.tensor([[chance.sample(rows[c], images) for c in each] for each in classes])
    return Episodes(torch.tensor(classes), drawn[:, :, :shot], drawn[:, :, shot:])


def initial_heads(episodes: int, way: int, features: int, generator: torch.Generator) -> Heads:
    """Classifiers as ``nn.Linear`` starts them: weight and bias from U(-1/sqrt(D), 1/sqrt(D))."""
    weight = torch.rand(episodes, way, features, generator=generator)
    bias = torch.rand(episodes, way, generator=generator)
    return Heads(*((2 * values - 1) / sqrt(features) for values in (weight, bias)))


def epoch_orders(episodes: int, epochs: int, images: int, generator: torch.Generator) -> Tensor:
    """A permutation of the support images for every epoch of every episode (E, epochs, n)."""
    return torch.rand(episodes, epochs, images, generator=generator).argsort(-1)


@torch.no_grad()
def train_heads(
    features: Tensor,
    episodes: Episodes,
    heads: Heads,
    orders: Tensor,
    lrs: Sequence[float],
    *,
    batch: int = 4,
    weight_decay: float = 1e-3,
) -> Tensor:
    """Train a classifier for every episode and learning rate on its support images, as upstream.

    Softmax cross-entropy, SGD with momentum 0.9 and dampening 0.9, decay of weights and biases
    (wyharveychen/CloserLookFewShot@e03aca8: methods/baselinefinetune.py).

    A gradient is a sum of support features, so a weight never leaves ``a * W_0 + C^T X``, with X the
    support features (n, D): what is trained is the scalar ``a`` and ``C`` (n, W), on the products of
    features, without ever touching features again. The bias is the weight of a feature that is 1.

    Args:
        features: of all images (N, D).
        episodes: which rows they are of.
        heads: to start from; every learning rate starts from the same.
        orders: of the support images in each epoch (E, epochs, n); batches are consecutive entries.
        lrs: learning rates (R,).
        batch: images of a step; the last one of an epoch has what is left.
        weight_decay: of weights and biases.

    Returns:
        The trained classifiers' scores of the queries (R, E, W * Q, W).
    """
    count, way, shot = episodes.support.shape
    images = way * shot
    of_one = images * (images + len(lrs) * way)
    chunks = torch.split(torch.arange(count), max(1, _CHUNK_ELEMENTS // of_one))
    scores = []
    for chunk in tqdm(chunks, "episodes", leave=False, disable=None, delay=2):
        kernel, start = _products(features, *([v[chunk] for v in of] for of in (episodes, heads)))
        order = orders[chunk].to(features.device, torch.long)
        learnt = kernel[:, :images], start[:, :images], order
        share, coefficients = _train(*learnt, lrs, batch, weight_decay)
        moved = torch.einsum("eqn,enrw->reqw", kernel[:, images:], coefficients)
        scores.append(share.view(-1, 1, 1, 1) * start[:, images:] + moved)
    return torch.cat(scores, dim=1)


def _products(
    features: Tensor, episodes: Sequence[Tensor], heads: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Of support images and queries (m = n + W * Q): the products with the support images
    (E, m, n), and the scores by the starting classifiers (E, m, W).
    """
    kernel, start = [], []
    for _, support, query, weight, bias in zip(*episodes, *heads, strict=True):
        x = features[torch.cat([support.flatten(), query.flatten()]).to(features.device)]
        kernel.append(x @ x[: support.numel()].T + 1)
        start.append(x @ weight.to(x).T + bias.to(x))
    return torch.stack(kernel), torch.stack(start)


def _train(
    kernel: Tensor,
    start: Tensor,
    orders: Tensor,
    lrs: Sequence[float],
    batch: int,
    weight_decay: float,
) -> tuple[Tensor, Tensor]:
    """The share ``a`` of the start that is left (R, 1), and the coefficients C (E, n, R, W)."""
    (count, epochs, images), way = orders.shape, start.shape[2]
    rates = kernel.new_tensor(lrs).unsqueeze(1)
    target = torch.arange(way, device=kernel.device).repeat_interleave(images // way)
    truth = F.one_hot(target, way).to(kernel).expand(count, -1, -1)
    batches = [(rows, min(rows + batch, images)) for rows in range(0, images, batch)]
    share = _shares(lrs, epochs * len(batches), weight_decay, kernel)
    coefficients = kernel.new_zeros(count, images, len(lrs), way)
    velocity = torch.zeros_like(coefficients)
    fresh = 1.0  # PyTorch does not dampen the first gradient
    for order in orders.unbind(1):
        # Within an epoch all is kept in its order, where a batch is a slice.
        products = _reordered(_reordered(kernel, order).transpose(1, 2), order).transpose(1, 2)
        first, targets = (_reordered(rows, order).unsqueeze(2) for rows in (start, truth))
        coefficients, velocity = (_reordered(rows, order) for rows in (coefficients, velocity))
        for begin, end in batches:
            scores = products[:, begin:end] @ coefficients.flatten(2)
            scores = scores.view(count, end - begin, len(lrs), way)
            scores.addcmul_(first[:, begin:end], next(share))
            gradient = scores.softmax(-1).sub_(targets[:, begin:end])
            velocity.mul_(MOMENTUM).add_(coefficients, alpha=fresh * weight_decay)
            velocity[:, begin:end].add_(gradient, alpha=fresh / (end - begin))
            coefficients.addcmul_(velocity, rates, value=-1)
            fresh = 1 - DAMPENING
        back = order.argsort(1)
        coefficients, velocity = (_reordered(rows, back) for rows in (coefficients, velocity))
    return next(share), coefficients


def _shares(
    lrs: Sequence[float], steps: int, weight_decay: float, like: Tensor
) -> Iterator[Tensor]:
    """The share of the start that is left, (R, 1), before each step and after the last."""
    rates = torch.tensor(lrs, dtype=torch.float64).unsqueeze(1)
    share, velocity, fresh = torch.ones_like(rates), torch.zeros_like(rates), 1.0
    shares = [share]
    for _ in range(steps):
        velocity = MOMENTUM * velocity + fresh * weight_decay * share
        share, fresh = share - rates * velocity, 1 - DAMPENING
        shares.append(share)
    return iter(torch.stack(shares).to(like.dtype).to(like.device))


def _reordered(rows: Tensor, order: Tensor) -> Tensor:
    """Rows (E, n, ...) in another order (E, n)."""
    index = order.view(*order.shape, *[1] * (rows.ndim - 2)).expand(-1, -1, *rows.shape[2:])
    return rows.gather(1, index)


def accuracies(scores: Tensor) -> Tensor:
    """Percent of the queries classified right, of scores (..., W * Q, W), in float64."""
    queries, way = scores.shape[-2:]
    truth = torch.arange(way, device=scores.device).repeat_interleave(queries // way)
    return 100 * (scores.argmax(-1) == truth).cpu().double().mean(-1)


def mean_ci95(accuracy: Tensor) -> tuple[float, float]:
    """Mean and 95 % interval, 1.96 times the population's deviation / sqrt(E), of (E,) episodes."""
    return float(accuracy.mean()), 1.96 * float(accuracy.std(correction=0)) / sqrt(len(accuracy))


def best_rate(accuracy: Tensor, lrs: Sequence[float]) -> float:
    """The learning rate of the highest mean accuracy, of (R, E); of equals the smallest."""
    means = accuracy.mean(1).tolist()
    return min(zip(lrs, means, strict=True), key=lambda pair: (-round(pair[1], 6), pair[0]))[0]
