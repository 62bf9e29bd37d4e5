"""DeepLab-v3's network against its parts, written out."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from goodtransfer.encoders import OwnTrunk, build
from goodtransfer.transfer.deeplab import DeepLabV3


def network(**changes):
    torch.manual_seed(0)
    return DeepLabV3(build("resnet10w8"), 5, **{"channels": 16, "aux_channels": 8, **changes})


def literal(network, images):
    """The forward pass of protocol 4.1 in eval mode, branch by branch."""
    maps = network.encoder(images, stages=(4, 5))
    x, parts = maps[5], network.decoder.aspp
    _, convolution, norm, _ = parts.convs[-1]
    pooled = norm(convolution(x.mean((2, 3), keepdim=True))).relu().expand(-1, -1, *x.shape[2:])
    branches = [branch(x) for branch in parts.convs[:-1]] + [pooled]
    assert [b[0].dilation[0] for b in parts.convs[1:-1]] == [12, 24, 36]
    joined = parts.project(torch.cat(branches, 1))
    hidden = F.relu(network.decoder.bn(network.decoder.conv(joined)))
    logits = network.classifier(hidden)
    return F.interpolate(logits, images.shape[2:], mode="bilinear", align_corners=False)


def test_forward_is_the_protocol_s():
    net, images = network().eval(), torch.rand(2, 3, 48, 72)
    with torch.no_grad():
        logits, auxiliary = net(images)
        assert torch.allclose(logits, literal(net, images), atol=1e-5)
    assert auxiliary is None
    assert net.encoder.strides[5] == 8


def test_widths_are_the_paper_s():
    net = DeepLabV3(build("resnet50"), 19)
    shapes = {name: tuple(p.shape) for name, p in net.named_parameters()}
    assert shapes["decoder.aspp.project.0.weight"] == (512, 2560, 1, 1)
    assert shapes["decoder.conv.weight"] == (512, 512, 3, 3)
    assert shapes["classifier.weight"] == (19, 512, 1, 1)
    assert shapes["auxiliary.0.weight"] == (256, 1024, 3, 3)
    assert shapes["auxiliary.4.weight"] == (19, 256, 1, 1)
    dropped = [m.p for m in net.modules() if isinstance(m, nn.Dropout | nn.Dropout2d)]
    assert dropped == [0.1, 0.1]


def test_the_auxiliary_head_is_a_convolution_on_stage_4():
    net, images = network(dropout=0.0).train(), torch.rand(2, 3, 48, 72)
    _, auxiliary = net(images)
    conv, norm, _, _, last = net.auxiliary
    x = conv(net.encoder(images, stages=(4,))[4])
    x = (x - x.mean((0, 2, 3), keepdim=True)) / (
        x.var((0, 2, 3), keepdim=True, correction=0) + 1e-5
    ).sqrt()
    assert norm.weight.eq(1).all()
    expected = F.interpolate(last(x.relu()), (48, 72), mode="bilinear", align_corners=False)
    assert torch.allclose(auxiliary, expected, atol=1e-4)


def test_without_the_auxiliary_head_one_stage_is_enough():
    trunk = OwnTrunk(nn.Sequential(nn.Conv2d(3, 4, 3, stride=16, padding=1), nn.ReLU()))
    net = DeepLabV3(trunk, 3, channels=8, aux_channels=0).train()
    logits, auxiliary = net(torch.rand(2, 3, 32, 48))
    assert auxiliary is None
    assert logits.shape == (2, 3, 32, 48)


def test_it_is_fp32_after_bf16():
    net = network().eval()
    with torch.autocast("cpu", torch.bfloat16):
        logits, _ = net(torch.rand(1, 3, 32, 32))
    assert logits.dtype == torch.float32


def test_a_trunk_without_stage_4():
    with pytest.raises(ValueError, match=r"stage 4, 5 for segmentation, but .* and lacks 4"):
        DeepLabV3(build("torchvision:squeezenet1_1"), 3)


def test_a_trunk_that_cannot_be_dilated():
    with pytest.raises(ValueError, match="stage 4 of torchvision:densenet121 cannot"):
        DeepLabV3(build("torchvision:densenet121"), 3)
