"""Loaders of torchvision and lightly train a method as they are."""

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from goodtransfer.methods import ExemplarMoCo, MoCoV2

COUNT = 8


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    for i in range(COUNT):
        path = tmp_path / "images" / f"class{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
    return tmp_path / "images"


def train(loader, options, method=MoCoV2):
    """Two steps; the labels and indices in the queue afterwards."""
    module = method("resnet10w8", queue_size=COUNT - 1, dim=8)
    before = module.head[0].weight.clone()
    trainer = pl.Trainer(max_epochs=1, **options)
    trainer.fit(module, loader)
    assert trainer.global_step == 2
    assert not torch.equal(module.head[0].weight, before)
    assert int(module.queue.filled) == COUNT - 1
    return sorted(module.queue.labels.tolist()), set(module.queue.indices.tolist())


@pytest.mark.parametrize("method", [MoCoV2, ExemplarMoCo])
def test_torchvisions_image_folder_with_two_crops(folder, trainer_options, method):
    """Batches are ``[[view, view], label]``, as in the official MoCo."""
    crop = transforms.Compose([transforms.RandomResizedCrop(32), transforms.ToTensor()])
    data = ImageFolder(str(folder), transform=lambda image: [crop(image), crop(image)])
    loader = DataLoader(data, batch_size=4)
    assert train(loader, trainer_options, method) == ([0, 0, 0, 1, 1, 1, 1], {-1})


def lightly_loader(folder, **arguments):
    data = pytest.importorskip("lightly.data")
    from lightly.transforms import MoCoV2Transform

    transform = MoCoV2Transform(input_size=32, **arguments)
    return DataLoader(data.LightlyDataset(str(folder), transform=transform), batch_size=4)


def test_lightlys_loader(folder, trainer_options):
    """Batches are ``[[view, view], label, file names]``."""
    loader = lightly_loader(folder, normalize=None)
    assert train(loader, trainer_options) == ([0, 0, 0, 1, 1, 1, 1], {-1})


def test_views_that_were_normalised_already_are_refused(folder, trainer_options):
    """Lightly's transforms normalise unless told; the encoder does so by itself."""
    with pytest.raises(ValueError, match=r"images in \[0, 1\] or uint8.*remove Normalize"):
        train(lightly_loader(folder), trainer_options)
