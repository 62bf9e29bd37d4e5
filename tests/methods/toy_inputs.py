"""Tiny loaders and encoders for the tests of methods."""

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from goodtransfer.encoders import OwnTrunk


class PairDataset(Dataset):
    """Seeded noise images in [0, 1]: two views, a label of 4 classes, the index."""

    def __init__(self, count=32, size=16, labelled=True, dtype=torch.float32):
        generator = torch.Generator().manual_seed(0)
        self.images = torch.rand(count, 3, size, size, generator=generator, dtype=dtype)
        self.labelled = labelled

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        views = self.images[i], self.images[i].flip(2)
        return (views, i % 4, i) if self.labelled else (views,)


def loader(count=32, batch_size=8, **arguments):
    return DataLoader(PairDataset(count, **arguments), batch_size=batch_size, drop_last=True)


class ConvTrunk(nn.Module):
    """Two convolutions with batch norm, or without."""

    def __init__(self, batch_norm=True):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.bn1 = nn.BatchNorm2d(8) if batch_norm else nn.Identity()
        self.conv2 = nn.Conv2d(8, 12, 3, stride=2, padding=1)

    def forward(self, x):
        return torch.tanh(self.conv2(torch.tanh(self.bn1(self.conv1(x)))))


def encoder(batch_norm=True, seed=0):
    torch.manual_seed(seed)
    return OwnTrunk(ConvTrunk(batch_norm))


def state(module):
    """A copy of everything a module holds."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_same_state(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name
