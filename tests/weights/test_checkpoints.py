"""Encoders out of our own Lightning checkpoints, written by a Trainer, whatever they were trained in."""

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from goodtransfer import (
    Detection,
    InstDisc,
    LinearProbe,
    MoCoV1,
    MoCoV2,
    Segmentation,
    SimCLR,
    SupervisedCE,
    load_encoder,
)
from goodtransfer.cli import main
from goodtransfer.encoders import Normalization, build
from goodtransfer.weights import inspect, load_classifier, load_head, read_provenance

HALF = Normalization((0.5, 0.4, 0.3), (0.25, 0.5, 1.0))
MODULES = {
    "MoCoV2": (lambda: MoCoV2("resnet10w8", queue_size=64), "resnet10w8", "encoder."),
    "SimCLR, caffe's strides": (lambda: SimCLR("resnet50w8-caffe"), "resnet50w8-caffe", "encoder."),
    "a module of the user's": (
        lambda: SupervisedCE(build("resnet10w8"), num_classes=3), "resnet10w8", "encoder.",
    ),
    "timm's": (
        lambda: SupervisedCE("timm:resnet10t", num_classes=3), "timm:resnet10t", "encoder.model.",
    ),
    "torchvision's": (
        lambda: SupervisedCE("torchvision:squeezenet1_1", num_classes=3),
        "torchvision:squeezenet1_1", "",
    ),
    "LinearProbe": (lambda: LinearProbe("resnet10w8", num_classes=3), "resnet10w8", "encoder."),
    "Detection": (
        lambda: Detection("resnet50w8", num_classes=3), "resnet50w8", "detector.encoder.",
    ),
    "Segmentation": (
        lambda: Segmentation("resnet50w8", num_classes=3), "resnet50w8", "network.encoder.",
    ),
}  # fmt: skip


def _saved(module, path, trainer_options):
    trainer = pl.Trainer(**trainer_options)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path, weights_only=False)
    return path


@pytest.mark.parametrize("kind", MODULES)
def test_an_encoder_comes_out_of_a_checkpoint(kind, trainer_options, tmp_path):
    torch.manual_seed(0)
    make, name, prefix = MODULES[kind]
    module = make()
    inner = getattr(module, "detector", getattr(module, "network", module)).encoder
    with torch.no_grad():
        for parameter in inner.parameters():
            parameter.add_(0.1)
    inner.set_normalization(HALF)
    path = _saved(module, tmp_path / "last.ckpt", trainer_options)

    report = inspect(path)
    assert (report.fault, report.missing, report.unexpected) == ("", (), ())
    assert report.dialect == ("goodtransfer" + f", below {prefix}" * bool(prefix))
    assert read_provenance(path).encoder == name
    encoder = load_encoder(path)
    assert encoder.name == name
    assert encoder.normalization == HALF
    expected = inner.state_dict()
    assert expected.keys() == encoder.state_dict().keys()
    assert all(torch.equal(value, expected[n]) for n, value in encoder.state_dict().items())


@pytest.mark.parametrize("kind", ["MoCoV1", "InstDisc"])
def test_a_projection_is_no_classifier(kind, trainer_options, tmp_path):
    make = {
        "MoCoV1": lambda: MoCoV1("resnet10w8", queue_size=64),
        "InstDisc": lambda: InstDisc("resnet10w8", num_images=9, loss="softmax"),
    }[kind]
    module = make()
    assert isinstance(module.head, nn.Linear)
    path = _saved(module, tmp_path / "last.ckpt", trainer_options)
    assert load_head(path) is None
    assert load_classifier(path) is None
    out = tmp_path / "theirs.pth"
    assert main(["weights", "convert", str(path), str(out), "--to", "torchvision"]) == 0
    assert not [name for name in torch.load(out) if name.startswith("fc.")]


@pytest.mark.parametrize("kind", ["SupervisedCE", "LinearProbe"])
def test_a_classifier_comes_out_of_a_checkpoint(kind, trainer_options, tmp_path):
    module = {
        "SupervisedCE": lambda: SupervisedCE("resnet10w8", num_classes=3),
        "LinearProbe": lambda: LinearProbe("resnet10w8", num_classes=3, head=nn.Linear(64, 3)),
    }[kind]()
    path = _saved(module, tmp_path / "last.ckpt", trainer_options)
    for read in (load_head, load_classifier):
        found = read(path)
        assert torch.equal(found.weight, module.head.weight)
        assert torch.equal(found.bias, module.head.bias)
