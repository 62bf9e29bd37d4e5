"""Dilated trunks against torchvision's, and against what a dilated map must be."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import resnet50, resnet101

from goodtransfer.encoders import as_encoder, build

TRUNKS = [
    "resnet18",
    "resnet10w8",
    "torchvision:mobilenet_v2",
    "torchvision:mobilenet_v3_small",
    "timm:tf_efficientnet_lite0",
    "timm:resnetv2_50",
    "timm:regnety_002",
]


@pytest.mark.parametrize("network", [resnet50, resnet101])
def test_equals_torchvision_s_dilated_resnet(network):
    torch.manual_seed(0)
    plain, dilated = network(), network(replace_stride_with_dilation=[False, True, True]).eval()
    dilated.load_state_dict(plain.state_dict())
    encoder = as_encoder(plain).eval()
    ours = encoder.dilated(8)
    assert ours.strides == {1: 2, 2: 4, 3: 8, 4: 8, 5: 8}
    image = torch.rand(1, 3, 97, 129)  # sides that no stride divides
    with torch.no_grad():
        x = dilated.maxpool(dilated.relu(dilated.bn1(dilated.conv1(ours.normalize(image)))))
        c4 = dilated.layer3(dilated.layer2(dilated.layer1(x)))
        found = ours(image, stages=(4, 5))
        assert torch.equal(found[4], c4)
        assert torch.equal(found[5], dilated.layer4(c4))


@pytest.mark.parametrize("name", TRUNKS)
def test_every_trunk_keeps_its_weights_and_gets_its_strides_back(name):
    torch.manual_seed(0)
    encoder = build(name).eval()
    dilated = encoder.dilated(8)
    image = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        found, plain = dilated(image, stages=(4, 5)), encoder(image)[5]
        assert [tuple(maps.shape[2:]) for maps in found.values()] == [(8, 12), (8, 12)]
        assert [maps.shape[1] for maps in found.values()] == [
            encoder.channels[4],
            encoder.channels[5],
        ]
        back = dilated.dilated(32)
        assert back.strides == encoder.strides
        assert torch.equal(back(image)[5], plain)
        assert torch.equal(encoder(image)[5], plain)  # the original is as it was
    for mine, theirs in zip(encoder.parameters(), dilated.parameters(), strict=True):
        assert mine is theirs
    assert list(dilated.state_dict()) == list(encoder.state_dict())


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "torchvision:mobilenet_v2"])
def test_every_fourth_pixel_is_the_plain_map(name):
    """Taps that are spread see the same pixels: away from the border, the two maps agree."""
    torch.manual_seed(0)
    encoder = build(name).eval().double()
    image = torch.zeros(1, 3, 512, 512, dtype=torch.double)
    image[..., 224:288, 224:288] = torch.rand(3, 64, 64)
    with torch.no_grad():
        plain, fine = encoder(image)[5], encoder.dilated(8)(image)[5][..., ::4, ::4]
    middle = (..., slice(7, 9), slice(7, 9))
    assert torch.allclose(fine[middle], plain[middle], rtol=1e-4, atol=1e-6)


def test_training_moves_the_statistics_of_both():
    encoder = build("resnet10w8").train()
    dilated = encoder.dilated(8)
    before = encoder.layer4[0].bn1.running_mean.clone()
    dilated(torch.rand(2, 3, 64, 64))
    assert not torch.equal(encoder.layer4[0].bn1.running_mean, before)


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")  # PyTorch on what it costs
@pytest.mark.parametrize("name", ["timm:convnext_atto", "torchvision:convnext_tiny"])
def test_patches_become_windows(name):
    found = build(name).eval().dilated(8)(torch.rand(1, 3, 64, 96), stages=(4, 5))
    assert [tuple(maps.shape[2:]) for maps in found.values()] == [(8, 12), (8, 12)]


def test_poolings_become_windows():
    """VGG's last two, of 2 x 2 pixels: side by side, then with one between them and a border around."""
    trunk = build("torchvision:vgg11").dilated(8)
    *_, fourth, fifth = (m for m in trunk.modules() if isinstance(m, nn.MaxPool2d))
    x = torch.rand(9, 9)
    framed = F.pad(x, (1, 1, 1, 1), value=-1.0)
    near = [[x[i : i + 2, j : j + 2].max() for j in range(8)] for i in range(8)]
    wide = [[framed[i : i + 3 : 2, j : j + 3 : 2].max() for j in range(9)] for i in range(9)]
    assert torch.equal(fourth(x[None])[0], torch.tensor(near))
    assert torch.equal(fifth(x[None])[0], torch.tensor(wide))


@pytest.mark.parametrize(("name", "stage"), [("torchvision:densenet121", 4), ("timm:resnet18d", 4)])
def test_what_cannot_be_dilated_is_a_sentence(name, stage):
    with pytest.raises(ValueError, match=f"to stride 8, but stage {stage} of {name} cannot, since"):
        build(name).dilated(8)
