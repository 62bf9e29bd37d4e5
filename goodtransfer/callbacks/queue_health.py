"""What is in MoCo's queue while it trains: how old, of which classes, how near to the queries.

Shapes: N = queries of one rank, M = those compared with all keys, K = keys, C = feature dimension.
"""

from collections import deque
from typing import Any, NamedTuple, Protocol

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger
from torch import Tensor

from goodtransfer.distributed import gather
from goodtransfer.momentum import KeyQueue

_QUERIES = 256  # of each rank, compared with all keys: their share of a step stays the same
_SIMILARITIES = 2**22  # at once: 16 MiB of fp32
_BINS = 64


class Histogram(NamedTuple):
    """Counts of ``len(counts)`` bins between ``len(counts) + 1`` edges."""

    counts: NDArray[np.int64]
    edges: NDArray[np.float64]


class HasQueue(Protocol):
    """What the callback asks of a method; see :class:`goodtransfer.methods.moco.MoCo`."""

    queue: KeyQueue
    contrast: Any
    held: list[Any]

    def negatives(
        self, label: Tensor | None, index: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Keys, and the labels of queries and keys that must differ."""

    def queue_shares(self, label: Tensor | None, index: Tensor | None) -> dict[str, Tensor]:
        """``filtered`` and ``own_image``."""


class QueueHealth(pl.Callback):
    """Log what the loss of a step met in the queue: the keys of earlier steps, before its own.

    For MoCoV1, MoCoV2 and ExemplarMoCo. Values are of the images of all ranks; of a step that
    accumulates several batches they are of its first one. Scalars go to every logger, histograms
    (``NAME_histogram``) to TensorBoard and W&B. A logged step costs about 2 % of one of resnet18 at
    64 px with K = 65,536 on a CPU (``examples/benchmarks/bench_queue_health.py``).

    Logs, of the queue's real keys:

    * ``health/fill``: their share of the K slots.
    * ``health/age_median``, ``health/age_max``: age in optimizer steps; the step before gave keys
      of age 1. By the number of keys that each step added, whatever the batches' sizes; it is in
      the checkpoint. Keys from before the callback was there are taken for steps of one size.
    * ``health/classes``, ``health/class_share_max``: how many labels they have, and the share of
      the most frequent one among the labelled keys.

    And of the pairs of a query with what the loss takes for keys (with ``unfilled="noise"`` free
    slots, too):

    * ``health/filtered``: the share that ``exclude`` leaves out.
    * ``health/own_image``: the share whose key is an earlier one of the query's image, not left out.
    * ``health/hard_negative_similarity_{p50,p95,p99}``: a query's largest similarity to a key that
      is not left out; quantiles over at most 256 queries of each rank.
    * ``health/positive_similarity_{p05,p50,p95}``: of all queries with their own keys.

    Args:
        every_n_steps: log the steps whose number, from 1, it divides.

    Attributes:
        values: the scalars logged last.
        histograms: counts and edges, of ``health/age``, ``health/class`` (keys by label),
            ``health/positive_similarity`` and ``health/hard_negative_similarity``.

    Raises:
        ValueError: for ``every_n_steps`` below 1; before the first step, for a method without such a
            queue.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        if every_n_steps < 1:
            raise ValueError(
                f"Expected argument `every_n_steps` to be above 0, but got {every_n_steps}."
            )
        self.every_n_steps = every_n_steps
        self.values: dict[str, float] = {}
        self.histograms: dict[str, Histogram] = {}
        self._added: deque[int] = deque()  # keys of each step that is still in the queue

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not hasattr(pl_module, "queue_shares"):
            raise ValueError(
                "Expected a method with a queue of keys for QueueHealth (MoCoV1, MoCoV2 or "
                f"ExemplarMoCo), but got {type(pl_module).__name__}: remove the callback."
            )

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor
    ) -> None:
        # The last hook that knows the queries and comes before their keys are in the queue.
        method: HasQueue = pl_module  # type: ignore[assignment]
        due = (trainer.global_step + 1) % self.every_n_steps == 0
        if due and len(method.held) == 1:
            self._measure(method, trainer.accumulate_grad_batches)
            self._write(trainer)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any
    ) -> None:
        method: HasQueue = pl_module  # type: ignore[assignment]
        self._added.append(sum(len(held.keys) for held in method.held))
        while sum(self._added) - self._added[0] >= len(method.queue):
            self._added.popleft()

    @torch.no_grad()
    def _measure(self, method: HasQueue, batches: int) -> None:
        queue, seen = method.queue, method.contrast
        filled = int(queue.filled)
        of_step = batches * len(method.held[0].keys)
        ages = key_ages([*self._added], filled, of_before=of_step)
        labels = queue.labels[:filled]
        labels = labels[labels >= 0]
        classes, counts = torch.unique(labels, return_counts=True)
        positive, _ = gather((seen.queries * seen.positives).sum(1))
        hardest, _ = gather(self._hardest(method))
        hardest = hardest[hardest > -torch.inf]  # a query may have no negative
        shares = method.queue_shares(_gathered(seen.labels), _gathered(seen.indices))
        values: dict[str, Any] = {"fill": filled / len(queue), "classes": len(classes), **shares}
        if filled:
            values |= {"age_median": ages.median(), "age_max": ages.max()}
        if len(classes):
            values["class_share_max"] = counts.max() / counts.sum()
        values |= _quantiles("positive_similarity", positive, (5, 50, 95))
        values |= _quantiles("hard_negative_similarity", hardest, (50, 95, 99))
        self.values = {f"health/{name}": float(value) for name, value in values.items()}
        spread = {
            "age": ages,
            "class": labels,
            "positive_similarity": positive,
            "hard_negative_similarity": hardest,
        }
        self.histograms = {f"health/{name}": histogram(x) for name, x in spread.items() if len(x)}

    def _hardest(self, method: HasQueue) -> Tensor:
        """Largest similarity of each query to a negative, (M,)."""
        seen = method.contrast
        keys, query_same, key_same = method.negatives(seen.labels, seen.indices)
        if query_same is not None:
            query_same = query_same[:_QUERIES]
        return hardest_negatives(seen.queries[:_QUERIES], keys, query_same, key_same)

    def _write(self, trainer: pl.Trainer) -> None:
        step = trainer.global_step
        for logger in trainer.loggers:
            logger.log_metrics(self.values, step=step)
            if isinstance(logger, TensorBoardLogger):
                for name, (counts, edges) in self.histograms.items():
                    _add_to_tensorboard(logger, f"{name}_histogram", counts, edges, step)
            elif isinstance(logger, WandbLogger):
                import wandb

                drawn: dict[str, Any] = {
                    f"{name}_histogram": wandb.Histogram(np_histogram=(counts, edges))
                    for name, (counts, edges) in self.histograms.items()
                }
                logger.log_metrics(drawn, step=step)

    def state_dict(self) -> dict[str, Any]:
        return {"added": [*self._added]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._added = deque(state_dict["added"])


def key_ages(added: list[int], filled: int, *, of_before: int) -> Tensor:
    """Age of each of the newest ``filled`` keys in steps, newest first: (filled,).

    Args:
        added: how many keys each step added, oldest first; the last one's keys have age 1.
        filled: keys in the queue.
        of_before: how many keys each step before those of ``added`` added.

    >>> key_ages([3, 2, 2], 6, of_before=2)
    tensor([1, 1, 2, 2, 3, 3])
    >>> key_ages([2], 5, of_before=2)
    tensor([1, 1, 2, 2, 3])
    """
    unknown = max(0, filled - sum(added))
    sizes = [*reversed(added), *[of_before] * -(-unknown // of_before)]
    steps = torch.arange(1, len(sizes) + 1)
    return steps.repeat_interleave(torch.tensor(sizes, dtype=torch.long))[:filled]


def hardest_negatives(
    queries: Tensor, keys: Tensor, query_labels: Tensor | None, key_labels: Tensor | None
) -> Tensor:
    """Each query's largest similarity to a key of another label, (N,); -inf where it has none.

    The N x K similarities never exist at once. A negative label equals nothing.

    Args:
        queries: (N, C).
        keys: (K, C).
        query_labels: (N,), or None: every key is a negative.
        key_labels: (K,), with ``query_labels``.

    >>> q, keys = torch.eye(2), torch.tensor([[0.9, 0.1], [0.5, 0.5]])
    >>> hardest_negatives(q, keys, torch.tensor([7, -1]), torch.tensor([7, -1]))
    tensor([0.5000, 0.5000])
    """
    top = queries.new_full((len(queries),), -torch.inf)
    block_size = max(1, _SIMILARITIES // max(1, len(queries)))
    for start in range(0, len(keys), block_size):
        block = slice(start, start + block_size)
        similarity = queries @ keys[block].to(queries.dtype).T  # N x block
        if query_labels is not None and key_labels is not None:
            same = (query_labels.unsqueeze(1) == key_labels[block]) & (key_labels[block] >= 0)
            similarity.masked_fill_(same, -torch.inf)
        top = torch.maximum(top, similarity.amax(1))
    return top


def histogram(values: Tensor) -> Histogram:
    """Equal bins from the least to the largest value; of integers one for each, where few."""
    array = values.cpu().numpy()
    if values.is_floating_point():
        return Histogram(*np.histogram(array, bins=_BINS))
    low, high = int(array.min()), int(array.max())
    edges = np.linspace(low - 0.5, high + 0.5, min(_BINS, high - low + 1) + 1)
    return Histogram(*np.histogram(array, bins=edges))


def _quantiles(name: str, values: Tensor, percents: tuple[int, ...]) -> dict[str, Tensor]:
    """The quantiles of a vector as ``name_p05``, ...; none of an empty one."""
    if not len(values):
        return {}
    found = values.quantile(values.new_tensor(percents) / 100)
    return {f"{name}_p{p:02d}": q for p, q in zip(percents, found, strict=True)}


def _add_to_tensorboard(
    logger: TensorBoardLogger,
    name: str,
    counts: NDArray[np.int64],
    edges: NDArray[np.float64],
    step: int,
) -> None:
    middles = (edges[:-1] + edges[1:]) / 2
    logger.experiment.add_histogram_raw(
        name,
        min=edges[0],
        max=edges[-1],
        num=counts.sum(),
        sum=counts @ middles,
        sum_squares=counts @ middles**2,
        bucket_limits=edges[1:],
        bucket_counts=counts,
        global_step=step,
    )


def _gathered(x: Tensor | None) -> Tensor | None:
    return None if x is None else gather(x)[0]
