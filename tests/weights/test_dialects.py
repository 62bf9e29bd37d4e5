"""Files of other libraries: told by their names, and computing what their own networks do.

torchvision, timm, lightly and segmentation-models-pytorch write their files themselves here. VISSL,
lightning-bolts, solo-learn, official MoCo, detectron2 and transformers are not installed: their names
are spelled out below, by a second renaming written from their sources (the official converters').
"""

import json
import pickle
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from goodtransfer import load_encoder
from goodtransfer.encoders import IMAGENET, Normalization, build
from goodtransfer.weights import inspect

sys.path.insert(0, str(Path(__file__).parent))
from compared import STAGES, assert_same_maps, refused, scrambled


@pytest.fixture(scope="module")
def narrow():
    """A ResNet-50 an eighth as wide, in torchvision's names."""
    torch.manual_seed(1)
    return scrambled(build("resnet50w8"))


@pytest.fixture(scope="module")
def resnet18():
    torch.manual_seed(2)
    return scrambled(torchvision.models.resnet18(num_classes=5))


# --- names spelled out a second time


def as_detectron2(weights):
    """tools/convert-torchvision-to-d2.py, and MoCo's detection/convert-pretrain.py."""
    found = {}
    for key, value in weights.items():
        name = key if "layer" in key else "stem." + key
        for t in (1, 2, 3, 4):
            name = name.replace(f"layer{t}", f"res{t + 1}")
        for t in (1, 2, 3):
            name = name.replace(f"bn{t}", f"conv{t}.norm")
        name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        found[name] = value.numpy()
    return found


def as_hugging_face(weights):
    """transformers' convert_resnet_to_pytorch.py walks both networks in the same order."""
    found = {}
    for key, value in weights.items():
        words = key.split(".")
        if words[0] in ("conv1", "bn1"):
            part = "convolution" if words[0] == "conv1" else "normalization"
            found[f"resnet.embedder.embedder.{part}.{words[-1]}"] = value
            continue
        stage, block, layer, *rest = words
        where = f"resnet.encoder.stages.{int(stage[-1]) - 1}.layers.{block}"
        if layer == "downsample":
            part = f"shortcut.{('convolution', 'normalization')[int(rest[0])]}"
        else:
            kind = "convolution" if layer.startswith("conv") else "normalization"
            part = f"layer.{int(layer[-1]) - 1}.{kind}"
        found[f"{where}.{part}.{words[-1]}"] = value
    return found


def as_children(weights):
    numbers = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    split = {key: key.partition(".") for key in weights}
    return {f"{numbers[head]}.{rest}": weights[key] for key, (head, _, rest) in split.items()}


def below(prefix, weights):
    return {prefix + name: value for name, value in weights.items()}


def zeros(weights):
    return {name: torch.zeros_like(value) for name, value in weights.items()}


def official_moco(weights, module="module."):
    state = below(f"{module}encoder_q.", weights) | below(f"{module}encoder_k.", zeros(weights))
    state |= {f"{module}encoder_q.fc.{i}.weight": torch.rand(4, 4) for i in (0, 2)}
    state |= {f"{module}queue": torch.rand(8, 4), f"{module}queue_ptr": torch.zeros(1).long()}
    return {"epoch": 199, "arch": "resnet50", "state_dict": state, "optimizer": {"state": {}}}


def vissl(weights):
    trunk = below("_feature_blocks.", weights)
    heads = {"0.clf.0.weight": torch.rand(4, 4)}
    model = {"trunk": trunk, "heads": heads}
    return {
        "phase_idx": 1,
        "iteration": 2,
        "loss": {},
        "classy_state_dict": {"base_model": {"model": model, "meters": {}}, "optim": {}},
    }


def lightning(weights, **beside):
    return {
        "pytorch-lightning_version": "2.5.0",
        "epoch": 3,
        "state_dict": weights | beside,
        "hyper_parameters": {"lr": 0.1},
        "callbacks": {},
    }


WRITTEN = {
    "moco": official_moco,
    "moco without module": lambda w: official_moco(w, ""),
    "moco, key encoder alone": lambda w: below("module.encoder_k.", w),
    "module": lambda w: {"model": below("module.", w)},
    "vissl": vissl,
    "vissl, consolidated": lambda w: {"model_state_dict": below("trunk._feature_blocks.", w)},
    "bolts MoCo": lambda w: lightning(
        below("encoder_q.", w) | below("encoder_k.", zeros(w)), queue=torch.rand(4, 8)
    ),
    "bolts SimCLR": lambda w: lightning(
        below("encoder.", w), **{"projection.model.0.weight": torch.rand(4, 4)}
    ),
    "solo-learn": lambda w: lightning(
        below("backbone.", w) | below("momentum_backbone.", zeros(w)),
        **{"projector.0.weight": torch.rand(4, 4), "classifier.weight": torch.rand(4, 4)},
    ),
    "solo-learn 1.0": lambda w: lightning(
        below("encoder.", w) | below("momentum_encoder.", zeros(w)),
        **{"projector.0.weight": torch.rand(4, 4)},
    ),
    "lightly": lambda w: lightning(
        below("backbone.", as_children(w)) | below("backbone_momentum.", as_children(zeros(w)))
    ),
    "lightly's benchmark": lambda w: lightning(
        below("backbone.", w) | below("key_backbone.", zeros(w)),
        **{"projection_head.layers.0.weight": torch.rand(4, 4)},
    ),
    "children alone": as_children,
    "huggingface": as_hugging_face,
    "huggingface, no head": lambda w: {
        name.removeprefix("resnet."): value for name, value in as_hugging_face(w).items()
    },
    "compiled": lambda w: below("_orig_mod.", w),
    "student and teacher": lambda w: below("student.", w) | below("teacher.", zeros(w)),
    "SwAV": lambda w: below(
        "module.",
        w | {"projection_head.0.weight": torch.rand(4, 4), "prototypes.weight": torch.rand(4, 4)},
    ),
}
WORDS = {
    "moco": "official MoCo, below module.encoder_q.",
    "moco without module": "official MoCo, below encoder_q.",
    "moco, key encoder alone": "official MoCo, key encoder, below module.encoder_k.",
    "module": "torchvision's names below a prefix, below module.",
    "vissl": "VISSL, below _feature_blocks.",
    "vissl, consolidated": "VISSL, below trunk._feature_blocks.",
    "bolts MoCo": "lightning-bolts MoCo, below encoder_q.",
    "bolts SimCLR": "lightning-bolts, below encoder.",
    "solo-learn": "solo-learn, below backbone.",
    "solo-learn 1.0": "solo-learn, below encoder.",
    "lightly": "lightly, a ResNet's children in a Sequential, below backbone.",
    "lightly's benchmark": "lightly, below backbone.",
    "children alone": "lightly, a ResNet's children in a Sequential",
    "huggingface": "Hugging Face transformers, below resnet.",
    "huggingface, no head": "Hugging Face transformers",
    "compiled": "torchvision's names below a prefix, below _orig_mod.",
    "student and teacher": "torchvision's names below a prefix, below student.",
    "SwAV": "torchvision's names below a prefix, below module.",
}


@pytest.mark.filterwarnings("ignore:.*moving average:UserWarning")
@pytest.mark.parametrize("kind", WRITTEN)
def test_a_dialect_is_told_and_read(kind, narrow, tmp_path):
    path = tmp_path / "net.ckpt"
    torch.save(WRITTEN[kind](narrow.state_dict()), path)
    report = inspect(path)
    assert report.dialect == WORDS[kind]
    assert (report.architecture, report.stem) == ("resnet50w8", "7x7")
    assert (report.missing, report.unexpected, report.fault) == ((), (), "")
    assert len(report.matched) == report.wanted == 318
    assert report.parameters == sum(p.numel() for p in narrow.parameters())
    encoder = load_encoder(path)
    assert encoder.normalization == IMAGENET
    for name, value in narrow.state_dict().items():
        assert torch.equal(encoder.state_dict()[name], value), name


@pytest.mark.parametrize("kind", ["moco", "lightly", "solo-learn"])
def test_basic_blocks_are_read_too(kind, resnet18, tmp_path):
    trunk = {n: v for n, v in resnet18.state_dict().items() if not n.startswith("fc.")}
    torch.save(WRITTEN[kind](trunk), tmp_path / "net.pth")
    encoder = load_encoder(tmp_path / "net.pth")
    assert encoder.name == "resnet18"
    assert_same_maps(encoder, load_encoder(resnet18), atol=0)


def test_the_key_encoder_alone_is_said(narrow, tmp_path):
    path = tmp_path / "net.pth"
    torch.save(below("module.encoder_k.", narrow.state_dict()), path)
    with pytest.warns(UserWarning, match="a moving average of the one trained"):
        load_encoder(path)
    torch.save(official_moco(narrow.state_dict()), path)
    with pytest.warns(UserWarning, match="a moving average"):
        key = load_encoder(path, dialect="moco-key")
    assert not any(value.any() for value in key.parameters())
    assert re.match("Expected a dialect among vissl, bolts, moco, ", refused(path, dialect="x"))


def test_two_trunks_are_refused(narrow, tmp_path):
    weights = narrow.state_dict()
    torch.save(below("left.", weights) | below("right.", weights), tmp_path / "net.pth")
    sentence = refused(tmp_path / "net.pth")
    assert "it holds 2, below 'left.' and 'right.'" in sentence


# --- files that the libraries write themselves


def test_timms_files(tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs = scrambled(timm.create_model("resnet50"))
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    cfg = {"architecture": "resnet50", "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    (tmp_path / "config.json").write_text(json.dumps(cfg))
    encoder = load_encoder(tmp_path / "model.safetensors")
    assert encoder.name == "resnet50"
    assert encoder.normalization == Normalization((0.5,) * 3, (0.25,) * 3)  # the file beside it
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = theirs.forward_features((x - 0.5) / 0.25)
        torch.testing.assert_close(encoder.eval()(x)[5], expected, rtol=0, atol=1e-5)

    deep = timm.create_model("resnet26d")
    torch.save(deep.state_dict(), tmp_path / "deep.pth")
    sentence = refused(tmp_path / "deep.pth")
    assert re.match("Expected a 7x7 stem in .*, but its stem is of several 3x3 conv", sentence)
    assert inspect(tmp_path / "deep.pth").stem == "3x3, deep"
    encoder = load_encoder(f"timm:resnet26d@{tmp_path / 'deep.pth'}")
    assert encoder.name == "timm:resnet26d"
    assert encoder.normalization == Normalization((0.5,) * 3, (0.25,) * 3)


@pytest.mark.parametrize("name", ["resnetaa50", "resnetblur50.in1k"])
def test_an_anti_aliased_resnet_is_none_of_torchvisions(name, tmp_path):
    """It has the very names and shapes of a ResNet-50; only the file beside tells."""
    timm = pytest.importorskip("timm")
    theirs = timm.create_model(name.partition(".")[0])
    path = tmp_path / "pytorch_model.bin"
    torch.save(theirs.state_dict(), path)
    (tmp_path / "config.json").write_text(json.dumps({"architecture": name}))
    assert refused(path).endswith(f"says {name}, which may run the same tensors otherwise: name it "
                                  f"`timm:{name}@{path}`.")  # fmt: skip
    assert inspect(path).architecture is None
    if "." not in name:
        encoder = load_encoder(f"timm:{name}@{path}").eval()
        x = torch.rand(1, 3, 64, 64)
        with torch.no_grad():
            expected = theirs.eval().forward_features(encoder.normalize(x))
            assert torch.equal(encoder(x)[5], expected)
    for plain in ("resnet50", "resnet50.a1_in1k", "tv_resnet50", "gluon_resnet50_v1b", None, 7):
        (tmp_path / "config.json").write_text(json.dumps({"architecture": plain}))
        assert load_encoder(path).name == "resnet50"


def test_lightlys_files(resnet18, tmp_path):
    """The backbone of lightly's examples in its own MoCo, saved by Lightning's state dict."""
    heads = pytest.importorskip("lightly.models.modules")

    class MoCo(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = nn.Sequential(*list(resnet18.children())[:-1])
            self.projection_head = heads.MoCoProjectionHead(512, 512, 128)
            self.backbone_momentum = nn.Sequential(
                *list(torchvision.models.resnet18().children())[:-1]
            )
            self.projection_head_momentum = heads.MoCoProjectionHead(512, 512, 128)

    torch.save({"state_dict": MoCo().state_dict()}, tmp_path / "lightly.ckpt")
    assert inspect(tmp_path / "lightly.ckpt").aside == 120 + 2 * 4
    assert_same_maps(load_encoder(tmp_path / "lightly.ckpt"), load_encoder(resnet18), atol=0)

    small = pytest.importorskip("lightly.models").ResNetGenerator("resnet-18")
    torch.save(nn.Sequential(*list(small.children())[:-1]).state_dict(), tmp_path / "cifar.pth")
    sentence = refused(tmp_path / "cifar.pth")
    assert "names begin with '0.weight'" in sentence or "(64, 3, 3, 3)" in sentence


def test_smps_files(tmp_path):
    import segmentation_models_pytorch as smp

    torch.manual_seed(0)
    model = scrambled(smp.Unet("resnet18", encoder_weights=None, classes=3))
    torch.save(model.state_dict(), tmp_path / "unet.pth")
    torch.save(model.encoder.state_dict(), tmp_path / "encoder.pth")
    for file, words in (
        ("unet.pth", "segmentation-models-pytorch, below encoder."),
        ("encoder.pth", "torchvision, timm or smp, without a classifier"),
    ):
        assert inspect(tmp_path / file).dialect == words
        encoder = load_encoder(tmp_path / file, normalize=None).eval()
        x = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            expected, found = model.encoder(x), encoder(x, stages=(1, *STAGES))
        for stage in (1, *STAGES):
            assert torch.equal(found[stage], expected[stage])


def test_transformers_files(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(downsample_in_bottleneck=True)
    theirs = scrambled(transformers.ResNetForImageClassification(config))
    theirs.save_pretrained(tmp_path)
    encoder = load_encoder(tmp_path / "model.safetensors", normalize=None).eval()
    assert encoder.name == "resnet50-caffe"
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = theirs.resnet(x, output_hidden_states=True).hidden_states
        found = encoder(x, stages=STAGES)
    for stage in STAGES:
        assert torch.equal(found[stage], expected[stage - 1])


def test_torchvisions_other_networks_by_name(tmp_path):
    wide = torchvision.models.wide_resnet50_2()
    torch.save(wide.state_dict(), tmp_path / "wide.pth")
    assert "its first block is of 128 channels with 128 in a group" in refused(
        tmp_path / "wide.pth"
    )
    named = load_encoder(f"torchvision:wide_resnet50_2@{tmp_path / 'wide.pth'}")
    assert torch.equal(named.features.layer4[2].conv3.weight, wide.layer4[2].conv3.weight)


@torch.no_grad()
def test_torchvisions_own_densenet(tmp_path):
    """Its file has names of 2017, which torchvision's builder renames while it loads them."""
    torch.manual_seed(0)
    theirs = scrambled(torchvision.models.densenet121())
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", name): value
           for name, value in theirs.state_dict().items()}  # fmt: skip
    assert "features.denseblock1.denselayer1.norm.1.running_mean" in old
    torch.save(old, tmp_path / "densenet121-a639ec97.pth")
    path = f"torchvision:densenet121@{tmp_path / 'densenet121-a639ec97.pth'}"
    encoder, x = load_encoder(path).eval(), torch.rand(1, 3, 64, 64)
    assert torch.equal(encoder(x)[5], theirs.features(encoder.normalize(x)))


# --- detectron2 and Detectron


def pickled(path, content):
    path.write_bytes(pickle.dumps(content, protocol=2))
    return path


@pytest.mark.parametrize("author", ["torchvision", "MOCO"])
def test_converted_pickles_of_detectron2(author, narrow, tmp_path):
    model = as_detectron2(narrow.state_dict() | {"fc.weight": torch.rand(5, 256)})
    content = {"model": model, "__author__": author, "matching_heuristics": True}
    path = pickled(tmp_path / "R-50.pkl", content)
    report = inspect(path)
    assert (report.dialect, report.fault) == ("detectron2, torchvision's kind", "")
    assert_same_maps(load_encoder(path), narrow, atol=0)
    for protocol in (3, 4, 5):
        path.write_bytes(pickle.dumps(content, protocol=protocol))
        assert_same_maps(load_encoder(path), narrow, atol=0)


def caffe2(weights):
    """Detectron's names: BN is a scale and a shift, conv1 takes BGR, and has a bias that none uses."""
    found = {"conv1_b": np.ones(8, np.float32), "fc1000_b": np.ones(5, np.float32)}
    branch = {"conv1": "2a", "conv2": "2b", "conv3": "2c"}
    for key, value in weights.items():
        layer, _, kind = key.rpartition(".")
        if kind in ("running_mean", "running_var", "num_batches_tracked"):
            continue
        if layer == "conv1":
            found["conv1_w"] = value.flip(1).numpy()
        elif layer == "bn1":
            found["res_conv1_bn_" + {"weight": "s", "bias": "b"}[kind]] = value.numpy()
        else:
            stage, block, *rest = layer.split(".")
            norm = rest[0].startswith("bn") or rest[-1] == "1"
            part = "1" if rest[0] == "downsample" else branch["conv" + rest[0][-1]]
            end = {"weight": "bn_s", "bias": "bn_b"}[kind] if norm else "w"
            found[f"res{int(stage[-1]) + 1}_{block}_branch{part}_{end}"] = value.numpy()
    return found


@pytest.fixture(scope="module")
def caffe():
    """Our own network of caffe's kind: RGB in [0, 1], undivided, strides in the 1x1."""
    torch.manual_seed(3)
    encoder = scrambled(build("resnet50w8-caffe"))
    encoder.set_normalization(Normalization(IMAGENET.mean, (1 / 255,) * 3))
    for name, value in encoder.state_dict().items():
        if "running" in name:  # the identity
            value.fill_(0 if name.endswith("mean") else 1 - 1e-5)
    encoder.conv1.weight.data /= 100
    return encoder


def test_caffes_network_strides_in_the_first_1x1(caffe):
    block = caffe.layer2[0]
    assert (block.conv1.stride, block.conv2.stride) == ((2, 2), (1, 1))
    assert caffe.layer1[0].conv1.stride == (1, 1)
    assert caffe.dilated(8).layer4[0].conv1.stride == (1, 1)


@pytest.mark.filterwarnings("ignore:.*BGR:UserWarning")
@pytest.mark.parametrize("blobs", [False, True])
def test_caffe_pickles_of_detectron(caffe, blobs, tmp_path):
    model = caffe2(caffe.state_dict()) | {"fc1000_w": np.ones((5, 256), np.float32)}
    path = pickled(tmp_path / "R-50.pkl", {"blobs": model} if blobs else model)
    assert (inspect(path).fault, inspect(path).aside) == ("", 3)
    encoder = load_encoder(path)
    assert encoder.name == "resnet50w8-caffe"
    assert encoder.normalization == caffe.normalization
    assert_same_maps(encoder, caffe, atol=0)
    assert_same_maps(load_encoder(f"resnet50w8@{path}"), caffe, atol=0)  # never another stride

    # What detectron2 does: BGR in 0 ... 255 less PIXEL_MEAN, through conv1 as it is in the file.
    images = torch.rand(2, 3, 64, 64)
    bgr = 255 * images.flip(1) - torch.tensor([103.53, 116.28, 123.675]).view(3, 1, 1)
    theirs = torch.from_numpy(model["conv1_w"])
    with torch.no_grad():
        expected = caffe.relu(caffe.bn1(nn.functional.conv2d(bgr, theirs, stride=2, padding=3)))
        torch.testing.assert_close(encoder.eval()(images, stages=(1,))[1], expected)


@pytest.mark.filterwarnings("ignore:.*BGR:UserWarning")
def test_trained_detectors_of_detectron2(caffe, narrow, tmp_path):
    def detector(encoder, flip):
        model = {n: torch.from_numpy(v) for n, v in as_detectron2(encoder.state_dict()).items()}
        if flip:
            model["stem.conv1.weight"] = model["stem.conv1.weight"].flip(1)
        names = {n: f"{'roi_heads' if n.startswith('res5') else 'backbone'}.{n}" for n in model}
        other = {"roi_heads.box_predictor.cls_score.weight": torch.rand(3, 4)}
        return {names[n]: v for n, v in model.items()} | other

    mean = torch.tensor([103.53, 116.28, 123.675]).view(3, 1, 1)
    cases = (
        (caffe, {"model": detector(caffe, True) | {"pixel_mean": mean}}, {}),
        (narrow, {"model": detector(narrow, False) | {"pixel_mean": mean.flip(0)}}, {}),
        (caffe, {"model": detector(caffe, True)}, {"dialect": "detectron2-caffe"}),
        (narrow, {"model": detector(narrow, False)}, {"dialect": "detectron2"}),
    )
    for encoder, content, options in cases:
        torch.save(content | {"iteration": 9}, tmp_path / "model_final.pth")
        if options:
            sentence = refused(tmp_path / "model_final.pth")
            assert "load with dialect='detectron2' for" in sentence
        assert_same_maps(load_encoder(tmp_path / "model_final.pth", **options), encoder, atol=1e-5)
    numpy = {name: value.numpy() for name, value in detector(caffe, True).items()}
    zoo = {"model": numpy, "__author__": "Detectron2 Model Zoo"}
    assert_same_maps(load_encoder(pickled(tmp_path / "model_final.pkl", zoo)), caffe)


@pytest.mark.filterwarnings("ignore:.*BGR:UserWarning")
def test_detectors_of_group_norm_are_none_of_frozen_batch_norm(caffe, tmp_path):
    """Scale and shift without statistics, as in Detectron's files, but of a norm that has none."""
    model = {name: value for name, value in as_detectron2(caffe.state_dict()).items()
             if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))}  # fmt: skip
    zoo = {"model": below("backbone.bottom_up.", model), "__author__": "Detectron2 Model Zoo"}
    path = pickled(tmp_path / "model_final.pkl", zoo)
    assert "106 statistics of batch norm missing (bn1.running_mean, " in refused(path)


# --- odd contents


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_cast_and_said(dtype, narrow, tmp_path):
    path = tmp_path / "net.pth"
    torch.save({n: v.to(dtype) if v.ndim else v for n, v in narrow.state_dict().items()}, path)
    name = str(dtype).removeprefix("torch.")
    assert inspect(path).dtypes == (name,)
    with pytest.warns(UserWarning, match=f"{name} is cast to float32"):
        encoder = load_encoder(path)
    for key, value in narrow.state_dict().items():
        assert encoder.state_dict()[key].dtype == value.dtype
        assert torch.equal(encoder.state_dict()[key], value.to(dtype).to(value.dtype))


def test_integers_are_no_weights(narrow, tmp_path):
    path = tmp_path / "net.pth"
    torch.save({n: v.to(torch.int8) for n, v in narrow.state_dict().items()}, path)
    assert "not of floats (conv1.weight torch.int8, " in refused(path, partial=True)


def test_lost_statistics_are_named(narrow, tmp_path):
    torch.save(dict(narrow.named_parameters()), tmp_path / "net.pth")
    sentence = refused(tmp_path / "net.pth")
    assert "106 statistics of batch norm missing (bn1.running_mean" in sentence
    with pytest.warns(UserWarning, match="159 of 318 tensors match"):
        load_encoder(tmp_path / "net.pth", partial=True)


def test_sixty_per_cent_are_refused(narrow, tmp_path):
    weights = list(narrow.state_dict().items())
    strange = {name.replace("layer3", "stage3"): value for name, value in weights}
    torch.save(strange, tmp_path / "net.pth")
    sentence = refused(f"resnet50w8@{tmp_path / 'net.pth'}")
    assert "204 of 318 tensors match, 95 missing (layer3.0.conv1.weight, " in sentence
    assert "0 unexpected" in sentence
