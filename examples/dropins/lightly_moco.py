"""Exemplar in a MoCo loop of lightly's parts: ``Exemplar`` stands where ``NTXentLoss`` stood.

    pip install lightly; python examples/dropins/lightly_moco.py ROOT      # ROOT/CLASS/*.jpg

Its ten lines are Eq. 2 of the paper with a queue that keeps labels; the rest is a loop as lightly's
users write it, except that it hands the labels on.
"""

import sys
from collections.abc import Iterable
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from lightly.data import LightlyDataset
from lightly.models.modules import MoCoProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms import MoCoV2Transform
from torch import Tensor, nn
from torchvision.models import resnet18

from goodtransfer import KeyQueue, info_nce
from goodtransfer.distributed import gather


class Exemplar(nn.Module):
    """Keys of the query's class are no negatives; a label of -1 equals nothing."""

    def __init__(self, size: int = 65536, dim: int = 128, temperature: float = 0.1) -> None:
        super().__init__()
        self.queue, self.temperature = KeyQueue(size, dim), temperature

    def forward(self, query: Tensor, key: Tensor, label: Tensor) -> Tensor:
        query, key = F.normalize(query, dim=1), F.normalize(key, dim=1).detach()
        same = {"query_labels": label, "key_labels": self.queue.labels}
        loss = info_nce(query, key, self.queue.keys, temperature=self.temperature, **same)
        self.queue.enqueue(gather(key)[0], gather(label)[0])  # of all ranks
        return loss


class MoCo(nn.Module):
    """Two encoders of lightly's parts."""

    def __init__(self, backbone: nn.Module, features: int, dim: int = 128) -> None:
        super().__init__()
        self.query = nn.Sequential(backbone, MoCoProjectionHead(features, features, dim))
        self.key = deepcopy(self.query)
        deactivate_requires_grad(self.key)


def train(
    model: MoCo,
    criterion: Exemplar,
    loader: Iterable[Any],
    lr: float = 0.03,
    momentum: float = 0.999,
) -> list[float]:
    """One epoch; the loss of each step."""
    optimizer = torch.optim.SGD(model.query.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4)
    losses = []
    for (query_view, key_view), label, _ in loader:
        update_momentum(model.query, model.key, m=momentum)
        query = model.query(query_view)
        with torch.no_grad():
            key = model.key(key_view)
        loss = criterion(query, key, label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main(root: str) -> None:
    backbone = resnet18()
    backbone.fc = nn.Identity()
    data = LightlyDataset(root, transform=MoCoV2Transform(input_size=64))
    loader = torch.utils.data.DataLoader(data, batch_size=64, shuffle=True, drop_last=True)
    model, criterion = MoCo(backbone, features=512), Exemplar(size=1024)
    for epoch in range(20):
        losses = train(model, criterion, loader, momentum=0.99)
        print(f"epoch {epoch}: loss {sum(losses) / len(losses):.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
