"""Exemplar in the manner of solo-learn's MoCoV2Plus: two views, two queues, a symmetric loss.

In ``MoCoV2Plus`` keep a ``LabelledQueues`` as ``self.queues``, and in ``training_step`` replace the
queue's clone, both losses and ``_dequeue_and_enqueue`` by one line::

    nce_loss = self.queues((q1, q2), (k1, k2), targets)  # batch is (indexes, views, targets)

solo-learn itself is not needed to try it: ``train`` is the same loop in plain torch.
"""

from collections.abc import Iterable
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from goodtransfer import KeyQueue, info_nce
from goodtransfer.distributed import gather
from goodtransfer.momentum import ema_update

Pair = tuple[Tensor, Tensor]


class LabelledQueues(nn.Module):
    """Each view's queries against the other view's queue, without keys of their own class (Eq. 2)."""

    def __init__(self, size: int = 65536, dim: int = 128, temperature: float = 0.1) -> None:
        super().__init__()
        self.queues = nn.ModuleList([KeyQueue(size, dim), KeyQueue(size, dim)])
        self.temperature = temperature

    def forward(self, queries: Pair, keys: Pair, label: Tensor) -> Tensor:
        losses = [
            info_nce(q, k, queue.keys, temperature=self.temperature,
                     query_labels=label, key_labels=queue.labels)
            for q, k, queue in zip(queries, keys[::-1], self.queues[::-1], strict=True)
        ]  # fmt: skip
        for k, queue in zip(keys, self.queues, strict=True):
            queue.enqueue(gather(k)[0], gather(label)[0])  # of all ranks
        return torch.stack(losses).mean()


def train(
    network: nn.Module,
    queues: LabelledQueues,
    loader: Iterable[Any],
    lr: float = 0.03,
    momentum: float = 0.99,
) -> list[float]:
    """One epoch of a backbone with its projector; the loss of each step."""
    momentum_network = deepcopy(network).requires_grad_(False)
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4)
    losses = []
    for _, views, targets in loader:
        q1, q2 = (F.normalize(network(view), dim=-1) for view in views)
        with torch.no_grad():
            k1, k2 = (F.normalize(momentum_network(view), dim=-1) for view in views)
        loss = queues((q1, q2), (k1, k2), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ema_update(network, momentum_network, momentum)
        losses.append(loss.item())
    return losses


def main() -> None:
    """Drawn noise, to see it run."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(3600, 128))
    images, label = torch.rand(64, 3, 32, 32), torch.arange(64) % 4
    batch = (torch.arange(64), (images, images.flip(3)), label)
    print(train(network, LabelledQueues(size=256), [batch] * 10))


if __name__ == "__main__":
    main()
