"""Encoders against the libraries their weights come from, value by value."""

import sys
from copy import deepcopy

import pytest
import timm
import torch
import torchvision
from torch import nn

from goodtransfer.encoders import (
    IMAGENET,
    Encoder,
    Normalization,
    OwnTrunk,
    ResNet,
    SequentialTrunk,
    as_encoder,
    build,
    pooled,
)
from goodtransfer.encoders.trunks import TimmTrunk

TIMM = "timm:tf_efficientnet_lite0"


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def _lived_in(network):
    """Give batch norm statistics and scales as training would, so that they are seen to matter."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
    return network.eval()


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@torch.no_grad()
def test_every_stage_equals_torchvision(name):
    theirs = _lived_in(torchvision.models.get_model(name))
    ours = build(name).eval()
    ours.set_normalization(None)
    weights = {k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")}
    ours.load_state_dict(weights)
    images = torch.rand(2, 3, 70, 65)

    x = theirs.relu(theirs.bn1(theirs.conv1(images)))
    expected = {1: x}
    x = theirs.maxpool(x)
    for stage in range(2, 6):
        x = expected[stage] = getattr(theirs, f"layer{stage - 1}")(x)
    found = ours(images, stages=(1, 2, 3, 4, 5))
    assert found.keys() == expected.keys()
    for stage, features in expected.items():
        assert torch.equal(found[stage], features), stage
        assert ours(images, stages=(stage,)).keys() == {stage}

    theirs.fc = nn.Identity()
    torch.testing.assert_close(pooled(ours, images), theirs(images), rtol=1e-6, atol=1e-6)


def test_resnet_starts_as_torchvision_does():
    for name, tensor in build("resnet50").state_dict().items():
        if tensor.ndim == 4:  # He's normal over fan_out, with a gain of sqrt(2)
            fan_out = tensor.shape[0] * tensor.shape[2] * tensor.shape[3]
            assert float(tensor.std()) == pytest.approx((2 / fan_out) ** 0.5, rel=0.05), name
        elif name.endswith(("weight", "running_var")):
            assert torch.equal(tensor, torch.ones_like(tensor)), name
        else:
            assert torch.equal(tensor, torch.zeros_like(tensor)), name


def test_images_are_normalised_by_the_encoder():
    encoder = build("pixels4")  # shows what a network would get
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    expected = torch.empty(2, 3, 4, 4)
    for channel in range(3):
        mean, std = IMAGENET.mean[channel], IMAGENET.std[channel]
        expected[:, channel] = (images[:, channel] / 255 - mean) / std
    expected = expected.flatten(1)[..., None, None]

    torch.testing.assert_close(encoder(images)[5], expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(encoder(images / 255)[5], expected, rtol=0, atol=1e-6)

    encoder.set_normalization(Normalization((0.5, 0.25, 0.0), (0.5, 1.0, 2.0)))
    black = encoder(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))[5].view(3, 16)
    assert torch.equal(black, torch.tensor([[-1.0], [-0.25], [0.0]]).expand(3, 16))

    encoder.set_normalization(None)
    assert encoder.normalization is None
    assert torch.equal(encoder(images)[5].flatten(), images.flatten() / 255)
    assert encoder(images.to(torch.float64))[5].dtype == torch.float64


def test_normalisation_follows_the_module_and_stays_out_of_the_weights():
    encoder = build("resnet10w32").to(torch.float64)
    assert not {"mean", "std"} & encoder.state_dict().keys()
    encoder.set_normalization(Normalization((0.5,) * 3, (0.5,) * 3))
    assert encoder.mean.dtype == torch.float64
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert encoder(images)[5].dtype == torch.float64


# By hand, from the networks' definitions. SqueezeNet ends at stride 16.
GEOMETRY = {
    "resnet50": ({1: 64, 2: 256, 3: 512, 4: 1024, 5: 2048}, {1: 2, 2: 4, 3: 8, 4: 16, 5: 32}),
    "resnet10w32": ({1: 32, 2: 32, 3: 64, 4: 128, 5: 256}, {1: 2, 2: 4, 3: 8, 4: 16, 5: 32}),
    "torchvision:squeezenet1_1": ({1: 64, 2: 128, 3: 256, 5: 512}, {1: 2, 2: 4, 3: 8, 5: 16}),
    "torchvision:mobilenet_v2": (
        {1: 16, 2: 24, 3: 32, 4: 96, 5: 1280},
        {1: 2, 2: 4, 3: 8, 4: 16, 5: 32},
    ),
    TIMM: ({1: 16, 2: 24, 3: 40, 4: 112, 5: 1280}, {1: 2, 2: 4, 3: 8, 4: 16, 5: 32}),
    "pixels48": ({5: 3 * 48 * 48}, {5: 48}),
}


@pytest.mark.parametrize("name", GEOMETRY)
@torch.no_grad()
def test_channels_and_strides_are_those_of_the_maps(name):
    encoder = build(name).eval()
    channels, strides = GEOMETRY[name]
    assert encoder.name == name
    assert encoder.channels == channels
    assert encoder.strides == strides
    size = 48 if name == "pixels48" else 64
    for stage, features in encoder(torch.rand(1, 3, size, size), stages=tuple(strides)).items():
        assert features.shape[1] == channels[stage], stage
        # Networks round their last, partial positions up or down.
        assert abs(features.shape[-1] - size / strides[stage]) <= 1, stage


@torch.no_grad()
def test_a_torchvision_trunk_gives_the_maps_of_its_features():
    encoder = _lived_in(build("torchvision:mobilenet_v2"))
    encoder.set_normalization(None)
    images = torch.rand(1, 3, 64, 64)
    x, by_channels = images, {}
    for block in encoder.features:
        x = block(x)
        by_channels[x.shape[1]] = x
    for stage, features in encoder(images, stages=(1, 2, 3, 4, 5)).items():
        assert torch.equal(features, by_channels[encoder.channels[stage]]), stage


@torch.no_grad()
def test_a_timm_trunk_gives_timms_features():
    encoder = _lived_in(build(TIMM))
    theirs = timm.create_model("tf_efficientnet_lite0", features_only=True).eval()
    theirs.load_state_dict(encoder.network.state_dict(), strict=False)  # it has no conv_head
    images = torch.rand(1, 3, 64, 64)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in encoder.normalization)
    found = encoder(images, stages=(1, 2, 3, 4, 5))
    for stage, features in zip((1, 2, 3, 4), theirs((images - mean) / std), strict=False):
        torch.testing.assert_close(found[stage], features)
    whole = encoder.network.forward_features((images - mean) / std)
    torch.testing.assert_close(found[5], whole)


def test_deeper_stages_do_not_run():
    encoder, ran = build("resnet10w32"), []
    for number in range(1, 5):
        layer = encoder.get_submodule(f"layer{number}")
        layer.register_forward_hook(lambda *_, number=number: ran.append(number))
    images = torch.rand(2, 3, 32, 32)
    encoder(images, stages=(2,))
    assert ran == [1]
    ran.clear()
    encoder(images, stages=(4, 2))
    assert ran == [1, 2, 3]
    ran.clear()
    encoder(images)
    assert ran == [1, 2, 3, 4]


def test_an_unknown_stage_is_a_sentence():
    with pytest.raises(ValueError, match=r"stages of resnet10w32 among \[1, 2, 3, 4, 5\].*\[7\]"):
        build("resnet10w32").eval()(torch.rand(1, 3, 32, 32), stages=(7,))
    with pytest.raises(ValueError, match=r"torchvision:squeezenet1_1 among \[1, 2, 3, 5\].*\[4\]"):
        build("torchvision:squeezenet1_1")(torch.rand(1, 3, 32, 32), stages=(4,))


@pytest.mark.parametrize(
    "name", ["resnet51", "resnet", "resnet18w", "ResNet50", "vgg11", "timm:", "pixels", "", "a:b"]
)
def test_an_unknown_name_is_a_sentence(name):
    with pytest.raises(ValueError, match="Expected an encoder name like resnet50") as caught:
        build(name)
    assert repr(name) in str(caught.value)


def test_an_unknown_timm_name_is_a_sentence():
    with pytest.raises(
        ValueError, match="network timm knows, but got 'tf_efficientnet_lite99'"
    ) as e:
        build("timm:tf_efficientnet_lite99")
    assert "tf_effic" in str(e.value).split("near it")[1]


def test_a_missing_timm_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'goodtransfer\[timm\]'"):
        build(TIMM)


@pytest.mark.parametrize("name", ["resnet10w32", "torchvision:squeezenet1_1", TIMM, "pixels32"])
@torch.no_grad()
def test_a_copy_equals_and_is_independent(name):
    encoder = build(name).eval()
    copy = deepcopy(encoder)
    images = torch.rand(1, 3, 32, 32)
    before = encoder(images)[5].clone()
    assert torch.equal(copy(images)[5], before)
    for parameter in copy.parameters():
        parameter.add_(1)
    copy.set_normalization(None)
    assert torch.equal(encoder(images)[5], before)
    assert encoder.normalization is not None


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_torchvision_resnet_keeps_its_weights(name):
    theirs = _lived_in(torchvision.models.get_model(name))
    encoder = as_encoder(theirs)
    assert isinstance(encoder, ResNet)
    assert encoder.name == name
    assert encoder.normalization == IMAGENET
    for key, value in encoder.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[key]), key


def _dilated():
    return torchvision.models.resnet50(replace_stride_with_dilation=[False, True, True])


def _caffe():
    """Stride in the first 1x1, as Caffe's and MSRA's weights want it: the same tensors."""
    network = torchvision.models.resnet50()
    network.layer2[0].conv1.stride, network.layer2[0].conv2.stride = (2, 2), (1, 1)
    return network


def _small_images():
    network = torchvision.models.resnet18()
    network.conv1, network.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return network


def _group_norm():
    return torchvision.models.resnet18(norm_layer=lambda channels: nn.GroupNorm(8, channels))


@pytest.mark.parametrize(
    "network",
    [_dilated, _caffe, _small_images, _group_norm, torchvision.models.wide_resnet50_2],
)
@torch.no_grad()
def test_a_changed_resnet_keeps_computing_what_it_did(network):
    theirs = _lived_in(network())
    encoder = as_encoder(theirs).eval()
    encoder.set_normalization(None)
    images = torch.rand(1, 3, 64, 64)
    expected = images
    for child in list(theirs.children())[:-2]:  # without pooling and classifier
        expected = child(expected)
    assert torch.equal(encoder(images)[5], expected)
    assert encoder.strides[5] == 64 // expected.shape[-1]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("torchvision:mobilnet_v2", "near it: mobilenet_v2"),
        ("torchvision:deeplabv3_resnet50", "near it: "),  # would download its backbone
        ("timm:resnt50", "near it: resnet50"),
        ("timm:vit_tiny_patch16_224", r"takes \(224, 224\) only"),
        ("torchvision:swin_t", r"maps \(N, C, H, W\)"),  # channels last
    ],
)
def test_a_network_that_cannot_be_a_trunk_is_a_sentence(name, sentence, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ValueError, match=f"^Expected .*{sentence}"):
        build(name)


def test_a_torchvision_trunk_keeps_its_weights():
    theirs = torchvision.models.squeezenet1_1().eval()
    encoder = as_encoder(theirs)
    encoder.set_normalization(None)
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(encoder(images)[5], theirs.features(images))


class _Own(nn.Module):
    def __init__(self, flat):
        super().__init__()
        self.conv, self.flat = nn.Conv2d(3, 5, 3, stride=4, padding=1), flat

    def forward(self, x):
        return self.conv(x).mean((2, 3)) if self.flat else self.conv(x)


@torch.no_grad()
def test_an_own_module_is_wrapped():
    images = torch.rand(2, 3, 16, 16)
    own = _Own(flat=False)
    encoder = as_encoder(own)
    assert (encoder.channels, encoder.strides) == ({5: 5}, {5: 4})
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in IMAGENET)
    assert torch.equal(encoder(images)[5], own((images - mean) / std))

    flat = _Own(flat=True)
    encoder = OwnTrunk(flat, normalization=None)
    assert torch.equal(encoder(images)[5], flat(images)[..., None, None])
    assert torch.equal(pooled(encoder, images), flat(images))
    assert as_encoder(encoder) is encoder


class _Odd(nn.Module):
    def forward(self, x):
        return {"out": x}


def test_what_gives_no_map_is_a_sentence():
    with pytest.raises(ValueError, match=r"Expected _Odd to give a tensor .* but got dict"):
        as_encoder(_Odd())


def test_measuring_leaves_the_mode_and_statistics_alone():
    theirs = torchvision.models.mobilenet_v2().train()
    encoder = as_encoder(theirs)
    assert all(module.training for module in encoder.modules())
    assert int(theirs.features[0][1].num_batches_tracked) == 0
    assert isinstance(encoder, Encoder)


@pytest.mark.parametrize(
    "name",
    [
        "resnet10w32",
        "resnet50",
        "torchvision:mobilenet_v2",
        "torchvision:vgg11",
        "torchvision:resnext50_32x4d",
        "timm:tf_efficientnet_lite0",
        "timm:resnet18",
        "timm:convnext_atto",
        pytest.param(
            "timm:densenet121",
            marks=pytest.mark.skipif(
                not hasattr(timm.models.DenseNet, "forward_intermediates"), reason="of an old timm"
            ),
        ),
    ],
)
@torch.no_grad()
def test_trunk_and_last_stage_make_the_whole(name):
    encoder = build(name).eval()
    trunk, last_stage = encoder.split(4)
    images = torch.rand(2, 3, 96, 96)
    c4 = trunk(images)
    assert torch.equal(c4, encoder(images, stages=(4,))[4])
    torch.testing.assert_close(last_stage(c4), encoder(images)[5])
    own = {id(p) for p in encoder.parameters()}
    assert {id(p) for p in last_stage.parameters()} <= own


@pytest.mark.parametrize(
    ("name", "stage"), [("pixels48", 4), ("torchvision:squeezenet1_1", 4), ("resnet18", 1)]
)
def test_a_last_stage_that_cannot_be_run_alone_is_a_sentence(name, stage):
    with pytest.raises(ValueError, match=f"run alone on stage {stage}'s map, but that of {name}"):
        build(name).split(stage)


def test_the_input_convention_follows_a_module_to_its_device():
    """As of a module on a GPU, which "meta" stands for here."""
    chain = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(4, 8, 3, stride=2)).to("meta")
    for encoder in (OwnTrunk(chain), SequentialTrunk("mine", chain)):
        assert encoder.mean.device == encoder.std_of_uint8.device == torch.device("meta")
        assert encoder(torch.zeros(1, 3, 64, 64, device="meta"))[5].shape == (1, 8, 15, 15)


def test_a_timm_without_maps_is_told():
    with pytest.raises(ValueError, match="cannot for timm:own: pip install -U timm"):
        TimmTrunk("timm:own", nn.Linear(1, 1), None)
