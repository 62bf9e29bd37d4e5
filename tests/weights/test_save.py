"""Every form written, read back, and loaded strictly by the library whose form it is."""

import itertools
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import load_file
from torch import nn

from goodtransfer import load_encoder, save_encoder
from goodtransfer.encoders import IMAGENET, Normalization, build
from goodtransfer.weights import inspect, load_classifier, read_provenance
from goodtransfer.weights.save import SUFFIXES_OF

sys.path.insert(0, str(Path(__file__).parent))
from compared import STAGES, assert_same_maps, scrambled

FORMS = ("safetensors", "torchvision", "timm", "smp", "detectron2")


@pytest.fixture(scope="module", params=["resnet50w8", "resnet18"])
def encoder(request):
    torch.manual_seed(0)
    return scrambled(build(request.param))


@pytest.fixture(scope="module")
def resnet50():
    torch.manual_seed(0)
    return scrambled(build("resnet50"))


@pytest.fixture
def head():
    return nn.Linear(2048, 3)


@pytest.mark.parametrize("pair", list(itertools.product(FORMS, FORMS)), ids="-".join)
def test_a_forward_pass_survives_every_pair_of_forms(pair, encoder, tmp_path):
    held = encoder
    for number, form in enumerate(pair):
        for suffix in SUFFIXES_OF[form]:
            path = save_encoder(tmp_path / f"{number}{suffix}", held, to=form)
            found = load_encoder(path)
            assert found.name == encoder.name
            assert_same_maps(found, encoder)
        held = found


@torch.no_grad()
def test_torchvision_and_smp_load_it_strictly(resnet50, head, tmp_path):
    import segmentation_models_pytorch as smp

    images = torch.rand(2, 3, 64, 64)
    x, features = resnet50.normalize(images), resnet50(images)[5].mean((2, 3))
    for suffix, read in ((".pth", torch.load), (".safetensors", load_file)):
        path = save_encoder(tmp_path / f"net{suffix}", resnet50, head=head, to="torchvision")
        theirs = torchvision.models.resnet50(num_classes=3).eval()
        theirs.load_state_dict(read(path), strict=True)
        torch.testing.assert_close(theirs(x), head(features), rtol=0, atol=1e-5)
        assert torch.equal(load_classifier(path).weight, head.weight)

        path = save_encoder(tmp_path / f"bare{suffix}", resnet50, to="torchvision")
        theirs.fc = nn.Identity()
        theirs.load_state_dict(read(path), strict=True)
        assert load_classifier(path) is None

    path = save_encoder(tmp_path / "smp.pth", resnet50, to="smp")
    theirs = smp.DeepLabV3("resnet50", encoder_weights=None).eval()
    smp_encoder = smp.encoders.get_encoder("resnet50", weights=None).eval()
    for module in (theirs.encoder, smp_encoder):
        module.load_state_dict(torch.load(path), strict=True)
    expected = resnet50(images, stages=STAGES)
    for stage, found in zip(STAGES, smp_encoder(x)[2:], strict=True):
        torch.testing.assert_close(found, expected[stage], rtol=0, atol=1e-5)


@torch.no_grad()
def test_timm_loads_it_strictly(resnet50, head, tmp_path):
    timm = pytest.importorskip("timm")
    images = torch.rand(2, 3, 64, 64)
    for classes, given in ((0, None), (3, head)):
        for suffix in (".pth", ".safetensors"):
            path = save_encoder(tmp_path / f"t{suffix}", resnet50, head=given, to="timm")
            theirs = timm.create_model("resnet50", num_classes=classes, checkpoint_path=path).eval()
            features = resnet50(images)[5].mean((2, 3))
            expected = features if given is None else given(features)
            found = theirs(resnet50.normalize(images))
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["timm:tf_efficientnet_lite0", "torchvision:squeezenet1_1"])
def test_other_networks_go_to_their_own_library(name, tmp_path):
    library, _, model = name.partition(":")
    encoder = scrambled(build(name))
    path = save_encoder(tmp_path / "net.pth", encoder, to=library)
    assert_equal = load_encoder(f"{name}@{path}").state_dict()
    assert all(torch.equal(assert_equal[n], v) for n, v in encoder.state_dict().items())
    if library == "timm":
        import timm

        timm.create_model(model, num_classes=0).load_state_dict(torch.load(path), strict=True)
    with pytest.raises(ValueError, match=f"but got {name}: write it as safetensors"):
        save_encoder(tmp_path / "net.pth", encoder, to="smp")
    with pytest.raises(ValueError, match="Expected a ResNet to write for detectron2"):
        save_encoder(tmp_path / "net.pkl", encoder, to="detectron2")


OTHERS = (
    "timm:tf_efficientnet_lite0", "timm:resnet18", "torchvision:mobilenet_v2",
    "torchvision:resnext50_32x4d",
)  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("name", OTHERS)
def test_a_classifier_of_another_network_has_its_librarys_name(name, tmp_path):
    torch.manual_seed(0)
    library, _, model = name.partition(":")
    encoder = scrambled(build(name))
    head = nn.Linear(encoder.channels[5], 3)
    path = save_encoder(tmp_path / "net.pth", encoder, head=head, to=library)
    if library == "timm":
        timm = pytest.importorskip("timm")
        theirs = timm.create_model(model, num_classes=3, checkpoint_path=path).eval()
    else:
        theirs = torchvision.models.get_model(model, num_classes=3).eval()
        theirs.load_state_dict(torch.load(path), strict=True)
    images = torch.rand(2, 3, 64, 64)
    expected = head(encoder(images)[5].mean((2, 3)))
    torch.testing.assert_close(theirs(encoder.normalize(images)), expected, rtol=1e-4, atol=1e-4)
    found = load_encoder(f"{name}@{path}").state_dict()
    assert all(torch.equal(found[n], v) for n, v in encoder.state_dict().items())


@pytest.mark.parametrize(
    "name",
    ["torchvision:squeezenet1_1",  # a convolution
     "torchvision:mobilenet_v3_small",  # two layers
     "torchvision:densenet121",  # the names fit, but a ReLU is before it
     "timm:convnext_atto"],  # a norm, whose weights are the trunk's
)  # fmt: skip
def test_a_classifier_that_is_more_than_linear_is_not_written(name, tmp_path):
    torch.manual_seed(0)
    encoder = scrambled(build(name))
    with pytest.raises(ValueError, match=f"all of the classifier of {name}, but there it is more"):
        save_encoder(
            tmp_path / "net.pth",
            encoder,
            head=nn.Linear(encoder.channels[5], 3),
            to=name.partition(":")[0],
        )
    assert list(tmp_path.iterdir()) == []


def test_a_pickle_for_detectron2(encoder, tmp_path):
    """Names of C4's trunk, as its own heuristics match them: by the ends of the model's names."""
    path = save_encoder(tmp_path / "R.pkl", encoder, to="detectron2", method="MoCoV2", seed=1)
    content = pickle.loads(path.read_bytes())
    model = content.pop("model")
    assert content.pop("matching_heuristics") is True
    assert content.pop("__author__") == "goodtransfer"
    assert json.loads(content.pop("goodtransfer"))["origin"] == {"method": "MoCoV2", "seed": 1}
    assert content == {}
    assert all(type(value) is np.ndarray for value in model.values())
    assert {"stem.conv1.weight", "stem.conv1.norm.running_var", "res2.0.shortcut.norm.bias"
            if encoder.name == "resnet50w8" else "res3.0.shortcut.norm.bias",
            "res5.1.conv2.weight", "res5.1.conv2.norm.running_mean"} <= model.keys()  # fmt: skip
    assert not any(name.endswith("num_batches_tracked") for name in model)
    weights = encoder.state_dict()
    assert (model["res4.1.conv2.norm.bias"] == weights["layer3.1.bn2.bias"].numpy()).all()
    assert (
        model["res4.0.shortcut.weight"] == weights["layer3.0.downsample.0.weight"].numpy()
    ).all()
    assert read_provenance(path).origin == {"method": "MoCoV2", "seed": 1}


def test_the_input_convention_goes_along_or_is_refused(tmp_path):
    half = Normalization((0.5, 0.4, 0.3), (0.25, 0.5, 1.0))
    undivided = Normalization(IMAGENET.mean, (1 / 255,) * 3)
    for normalization, forms in ((half, FORMS[:1] + FORMS[-1:]), (undivided, FORMS), (None, FORMS)):
        encoder = scrambled(build("resnet18"))
        encoder.conv1.weight.data /= 255
        encoder.set_normalization(normalization)
        for form in FORMS:
            path = tmp_path / f"net{SUFFIXES_OF[form][0]}"
            if form not in forms:
                with pytest.raises(ValueError, match=r"takes \(0.5, 0.4, 0.3\), which such a file"):
                    save_encoder(path, encoder, to=form)
                continue
            save_encoder(path, encoder, to=form)
            options = {} if normalization else {"normalize": None}
            assert_same_maps(load_encoder(path, **options), encoder)  # std goes into conv1


def test_caffes_strides_are_kept_or_refused(tmp_path):
    encoder = scrambled(build("resnet50w8-caffe"))
    for form, file in (("safetensors", "e.safetensors"), ("detectron2", "e.pkl")):
        found = load_encoder(save_encoder(tmp_path / file, encoder, to=form))
        assert found.name == "resnet50w8-caffe"
        assert_same_maps(found, encoder, atol=0)
    with pytest.raises(
        ValueError, match="Expected strides in the 3x3, as timm's ResNets have them"
    ):
        save_encoder(tmp_path / "e.pth", encoder, to="timm")
    assert inspect(tmp_path / "e.pkl").dialect == "goodtransfer, detectron2, torchvision's kind"


def test_a_suffix_that_the_library_does_not_read_is_refused(tmp_path):
    for form, file in (("detectron2", "e.pth"), ("torchvision", "e.pkl"), ("safetensors", "e.bin")):
        with pytest.raises(ValueError, match=r"Expected a file ending in \.\w+"):
            save_encoder(tmp_path / file, build("resnet10w8"), to=form)
    assert list(tmp_path.iterdir()) == []
