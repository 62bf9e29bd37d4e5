"""Weight files: our own bit for bit, others by name, and everything doubtful refused."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from goodtransfer import load_encoder, save_encoder
from goodtransfer.encoders import IMAGENET, Normalization, build, pooled, torchvision_input
from goodtransfer.weights import (
    Provenance,
    describe_input,
    inspect,
    load_head,
    read_provenance,
    restore_input,
)

sys.path.insert(0, str(Path(__file__).parent))
from compared import refused

HALF = Normalization((0.5, 0.4, 0.3), (0.25, 0.5, 1.0))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def _scrambled(network):
    """Weights and statistics that no initialisation gives."""
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.ndim == 0:
                tensor.fill_(int(torch.randint(1, 99, ())))
            else:
                tensor.mul_(torch.empty_like(tensor).uniform_(0.8, 1.2))
            if tensor.ndim == 1:
                tensor.add_(torch.rand_like(tensor) / 10)
    return network.eval()


@pytest.fixture(scope="module")
def resnets():
    torch.manual_seed(1)
    return {
        name: _scrambled(torchvision.models.get_model(name)) for name in ("resnet18", "resnet50")
    }


@pytest.fixture
def resnet18(resnets):
    return resnets["resnet18"]


def _assert_equal(encoder, weights):
    """Every tensor of the encoder is the file's, bit for bit."""
    for name, value in encoder.state_dict().items():
        assert value.dtype == weights[name].dtype
        assert torch.equal(value, weights[name]), name


# --- our own files ---


def test_an_encoder_and_its_head_come_back_bit_for_bit(tmp_path):
    encoder = _scrambled(build("resnet10w32"))
    encoder.set_normalization(HALF)
    head = nn.Linear(256, 7)
    origin = {"method": "ExemplarMoCo", "seed": 3, "temperature": 0.1, "fidelity": ["a", None]}
    path = save_encoder(tmp_path / "encoder.safetensors", encoder, head=head, **origin)

    loaded = load_encoder(path)
    assert loaded.name == "resnet10w32"
    assert loaded.normalization == HALF
    assert loaded.state_dict().keys() == encoder.state_dict().keys()
    _assert_equal(loaded, encoder.state_dict())
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    assert torch.equal(loaded.eval()(images)[5], encoder(images)[5])

    again = load_head(path)
    assert torch.equal(again.weight, head.weight)
    assert torch.equal(again.bias, head.bias)
    assert read_provenance(path) == Provenance("resnet10w32", HALF, origin)
    assert [file.name for file in tmp_path.iterdir()] == ["encoder.safetensors"]


def test_an_encoder_without_weights_comes_back(tmp_path):
    path = save_encoder(tmp_path / "e.safetensors", build("pixels8"), data="toy")
    assert load_encoder(path).name == "pixels8"
    assert load_head(path) is None
    assert inspect(path).fault == ""


def test_a_file_is_plain_safetensors_with_one_header(tmp_path):
    path = save_encoder(tmp_path / "e.safetensors", build("resnet10w32"), data="toy")
    with safe_open(path, "pt") as file:
        metadata, names = file.metadata(), set(file.keys())
    assert names == build("resnet10w32").state_dict().keys()
    assert json.loads(metadata["goodtransfer"]) == {
        "encoder": "resnet10w32",
        "normalization": [list(IMAGENET.mean), list(IMAGENET.std)],
        "origin": {"data": "toy"},
    }


def test_what_a_file_does_not_hold_is_none(tmp_path, resnet18):
    path = save_encoder(tmp_path / "e.safetensors", build("resnet10w32"))
    assert load_head(path) is None
    foreign = tmp_path / "foreign.safetensors"
    save_file(resnet18.state_dict(), foreign)
    assert read_provenance(foreign) is None
    assert load_head(foreign) is None
    assert read_provenance(tmp_path / "x.pth") is None


@pytest.mark.parametrize("saved", [HALF, None])
def test_the_input_convention_is_the_files_unless_told(saved, tmp_path):
    encoder = build("resnet10w32")
    encoder.set_normalization(saved)
    path = save_encoder(tmp_path / "e.safetensors", encoder)
    assert load_encoder(path).normalization == saved
    assert load_encoder(path, normalize=IMAGENET).normalization == IMAGENET
    assert load_encoder(path, normalize=None).normalization is None

    described = json.loads(json.dumps(describe_input(encoder)))  # plain types
    other = build("resnet10w32")
    restore_input(other, described)
    assert other.normalization == saved


@pytest.mark.parametrize("name", ["timm:tf_efficientnet_lite0", "torchvision:squeezenet1_1"])
@torch.no_grad()
def test_other_libraries_networks_come_back_too(name, tmp_path):
    encoder = _scrambled(build(name))
    path = save_encoder(tmp_path / "e.safetensors", encoder)
    loaded = load_encoder(str(path))
    assert loaded.name == name
    assert loaded.normalization == encoder.normalization
    _assert_equal(loaded, encoder.state_dict())


def test_saving_replaces_the_file_at_once(tmp_path, monkeypatch):
    path = save_encoder(tmp_path / "e.safetensors", build("resnet10w32"), run=1)

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("pathlib.Path.write_bytes", fail)
    with pytest.raises(OSError, match="disk full"):
        save_encoder(path, build("resnet10w32"), run=2)
    assert read_provenance(path).origin == {"run": 1}


def test_name_at_file_keeps_the_input_convention_of_our_files(tmp_path):
    encoder = build("resnet10w32")
    encoder.set_normalization(HALF)
    path = save_encoder(tmp_path / "e.safetensors", encoder)
    assert load_encoder(f"resnet10w32@{path}").normalization == HALF


def test_our_file_with_missing_tensors_isrefused(tmp_path):
    path = save_encoder(tmp_path / "e.safetensors", build("resnet10w32"))
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {n: file.get_tensor(n) for n in list(file.keys())[:9]}
    save_file(tensors, path, metadata=metadata)
    assert "9 of 72 tensors match" in refused(path)


@pytest.mark.parametrize("file", ["encoder.pth", "no_folder/encoder.safetensors"])
def test_a_place_that_could_not_be_read_again_isrefused(file, tmp_path):
    with pytest.raises(ValueError, match=r"ending in \.safetensors in a folder that exists"):
        save_encoder(tmp_path / file, build("resnet10w32"))
    assert list(tmp_path.iterdir()) == []


# --- names and modules ---


def test_a_form_that_nobody_knows_isrefused(tmp_path):
    with pytest.raises(ValueError, match="`to` to be one of safetensors, .* but got 'pytorch'"):
        save_encoder(tmp_path / "net.pth", build("resnet10w8"), to="pytorch")


@pytest.mark.parametrize(
    "word", ["~/a@b/net.pth", "resnet10w8@~/a@b/net.pth", Path("~/a@b/net.pth")]
)
def test_paths_from_home_and_with_an_at(word, tmp_path, monkeypatch):
    """What lies beside the file is read there, too."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a@b").mkdir()
    torch.save(build("resnet10w8").state_dict(), tmp_path / "a@b" / "net.pth")
    told = {"image_mean": list(HALF.mean), "image_std": list(HALF.std)}
    (tmp_path / "a@b" / "config.json").write_text(json.dumps(told))
    encoder = load_encoder(word)
    assert (encoder.name, encoder.normalization) == ("resnet10w8", HALF)


def test_names_and_modules(resnet18):
    assert load_encoder("resnet10w32").name == "resnet10w32"
    encoder = load_encoder(resnet18, normalize=HALF)
    assert encoder.normalization == HALF
    _assert_equal(encoder, resnet18.state_dict())
    assert load_encoder(encoder) is encoder


@pytest.mark.parametrize("name", ["resnet50@pretrained", "nonsense@pretrained"])
def test_only_libraries_with_downloads_are_pretrained(name):
    assert name in refused(name)


def test_torchvisions_own_input_convention_is_taken(monkeypatch):
    """Of a network whose weights want another than ImageNet's; these are not downloaded here."""

    def undownloaded(model, weights):
        assert weights == "DEFAULT"
        return torchvision.models.get_model(model, weights=None)

    monkeypatch.setattr("goodtransfer.weights.encoder.get_model", undownloaded)
    for suffix in ("", "@pretrained"):
        with torch.device("meta"):  # a hundred million values that nobody looks at
            encoder = load_encoder(f"torchvision:efficientnet_v2_l{suffix}")
        assert encoder.normalization == Normalization((0.5,) * 3, (0.5,) * 3)
        assert load_encoder(f"torchvision:squeezenet1_1{suffix}").normalization == IMAGENET
    for name in torchvision.models.list_models(module=torchvision.models):
        expected = (0.5,) * 3 if name == "efficientnet_v2_l" else IMAGENET.mean
        assert torchvision_input(name).mean == expected


@pytest.mark.data
def test_pretrained_weights_keep_a_name_that_rebuilds_them(shared, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(shared / "weights" / "torch_home"))
    encoder = load_encoder("torchvision:squeezenet1_1@pretrained")
    loaded = load_encoder(save_encoder(tmp_path / "e.safetensors", encoder))
    assert loaded.name == "torchvision:squeezenet1_1"
    _assert_equal(loaded, encoder.state_dict())


# --- files of torchvision, of wrappers and of official code ---


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_depth_is_read_off_a_torchvision_file(name, resnets, tmp_path):
    weights = resnets[name].state_dict()
    torch.save(weights, tmp_path / "net.pth")
    save_file(weights, tmp_path / "net.safetensors")
    for file in ("net.pth", "net.safetensors"):
        encoder = load_encoder(tmp_path / file)
        assert encoder.name == name
        assert encoder.normalization == IMAGENET
        _assert_equal(encoder, weights)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@torch.no_grad()
def test_a_loaded_file_computes_what_torchvision_does(name, resnets, tmp_path):
    torch.save(resnets[name].state_dict(), tmp_path / "net.pth")
    encoder = load_encoder(tmp_path / "net.pth").eval()
    images = torch.rand(2, 3, 64, 64)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in IMAGENET)
    x = (images - mean) / std
    for child in list(resnets[name].children())[:-2]:  # without pooling and classifier
        x = child(x)
    assert torch.equal(encoder(images)[5], x)


def _plain(weights):
    return weights


def _checkpoint(weights):
    return {"epoch": 199, "arch": "resnet18", "state_dict": weights, "optimizer": {"lr": [0.1]}}


def _prefixed(prefix):
    return lambda weights: {prefix + name: value for name, value in weights.items()}


def _official_moco(weights):
    """As facebookresearch/moco saves it: both encoders, the MLP heads and the queue."""
    trunk = {name: value for name, value in weights.items() if not name.startswith("fc.")}
    state = {
        "module.queue": torch.rand(128, 64),
        "module.queue_ptr": torch.zeros(1, dtype=torch.long),
    }
    for side, factor in (("q", 1), ("k", 0)):
        state |= {f"module.encoder_{side}.{name}": value * factor for name, value in trunk.items()}
        state |= {f"module.encoder_{side}.fc.{i}.weight": torch.rand(4, 4) for i in (0, 2)}
    return _checkpoint(state)


@pytest.mark.parametrize(
    "written",
    [
        _plain,
        _checkpoint,
        _prefixed("module."),
        _prefixed("module.encoder_q."),
        _prefixed("encoder."),
        _prefixed("backbone."),
        lambda weights: _checkpoint(_prefixed("module.")(weights)),
        _official_moco,
        lambda weights: {"model": weights},
    ],
    ids=[
        "plain",
        "checkpoint",
        "module",
        "encoder_q",
        "encoder",
        "backbone",
        "checkpoint of module",
        "official MoCo",
        "model",
    ],
)
def test_wrappers_around_a_state_dict_are_seen_through(written, resnet18, tmp_path):
    path = tmp_path / "net.pth.tar"
    torch.save(written(resnet18.state_dict()), path)
    for spec in (path, f"resnet18@{path}"):
        encoder = load_encoder(spec)
        assert encoder.name == "resnet18"
        _assert_equal(encoder, resnet18.state_dict())


def test_files_older_than_batch_counters_load(resnet18, tmp_path):
    weights = resnet18.state_dict()
    old = {name: v for name, v in weights.items() if not name.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "old.pth")
    encoder = load_encoder(tmp_path / "old.pth")
    assert torch.equal(encoder.layer4[1].bn2.running_var, weights["layer4.1.bn2.running_var"])


@pytest.mark.data
@torch.no_grad()
def test_timm_weights_compute_what_timm_does(shared):
    import timm

    path = shared / "weights" / "tf_efficientnet_lite0_timm.safetensors"
    theirs = timm.create_model("tf_efficientnet_lite0", checkpoint_path=str(path)).eval()
    encoder = load_encoder(f"timm:tf_efficientnet_lite0@{path}").eval()
    images = torch.rand(2, 3, 96, 96)
    mean, std = (torch.tensor(theirs.pretrained_cfg[k]).view(3, 1, 1) for k in ("mean", "std"))
    expected = theirs.forward_features((images - mean) / std)
    torch.testing.assert_close(encoder(images)[5], expected, rtol=0, atol=1e-6)
    logits = theirs.classifier(pooled(encoder, images))
    torch.testing.assert_close(logits, theirs((images - mean) / std), rtol=1e-5, atol=1e-5)


@pytest.mark.data
@pytest.mark.parametrize("file", ["torchvision_features", "caffe_imagenet_full"])
@torch.no_grad()
def test_squeezenet_weights_compute_what_torchvision_does(file, shared):
    path = shared / "weights" / f"squeezenet1_1_{file}.safetensors"
    theirs = torchvision.models.squeezenet1_1().eval()
    with safe_open(path, "pt") as opened:
        theirs.load_state_dict({k: opened.get_tensor(k) for k in opened.keys()}, strict=False)  # noqa: SIM118
    encoder = load_encoder(f"torchvision:squeezenet1_1@{path}").eval()
    images = torch.rand(2, 3, 96, 96)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in IMAGENET)
    expected = theirs.features((images - mean) / std)
    torch.testing.assert_close(encoder(images)[5], expected, rtol=0, atol=1e-6)


# --- what is refused ---


def test_a_deep_stem_isrefused(resnet18, tmp_path):
    weights = resnet18.state_dict() | {"conv1.weight": torch.rand(64, 3, 3, 3)}
    torch.save(weights, tmp_path / "deep.pth")
    assert re.match(r"Expected a 7x7 stem in .*deep.pth, but its conv1 is \(64, 3, 3, 3\)",
                    refused(tmp_path / "deep.pth"))  # fmt: skip

    weights["conv1.0.weight"] = weights.pop("conv1.weight")
    torch.save(weights, tmp_path / "deeper.pth")
    assert "its stem is of several 3x3 convolutions" in refused(tmp_path / "deeper.pth")


def test_a_wrong_depth_isrefused(resnet18, tmp_path):
    path = tmp_path / "net.pth"
    torch.save(resnet18.state_dict(), path)
    for partial in (False, True):  # another shape is never partial
        sentence = refused(f"resnet50@{path}", partial=partial)
        assert "to hold resnet50, but " in sentence
        assert "of another shape (layer1.0.conv1.weight (64, 64, 3, 3) instead of" in sentence
        assert "partial=True" not in sentence
    # A deeper network of the same blocks lacks some, and only then partial loading is offered.
    sentence = refused(f"resnet34@{path}")
    assert "80 missing (layer1.2.conv1.weight, " in sentence
    assert sentence.endswith("load with partial=True.")


def test_an_unknown_depth_isrefused(resnet18, tmp_path):
    weights = {n: v for n, v in resnet18.state_dict().items() if not n.startswith("layer3.1.")}
    torch.save(weights, tmp_path / "net.pth")
    sentence = refused(tmp_path / "net.pth")
    assert "its stages have (2, 2, 1, 2) blocks of kind BasicBlock" in sentence


def test_a_partial_match_is_refused_unless_allowed(resnet18, tmp_path):
    weights = resnet18.state_dict()
    kept = {n: v for n, v in weights.items() if not n.startswith("layer4.1.bn2.")}
    kept["layer5.extra"] = torch.rand(2)
    path = tmp_path / "net.pth"
    torch.save(kept, path)
    sentence = refused(path)
    assert "115 of 120 tensors match" in sentence
    assert "4 missing (layer4.1.bn2.weight, layer4.1.bn2.bias," in sentence
    assert "1 unexpected (layer5.extra, ...)" in sentence

    with pytest.warns(UserWarning, match="115 of 120 tensors match, 4 missing"):
        encoder = load_encoder(path, partial=True)
    assert torch.equal(encoder.conv1.weight, weights["conv1.weight"])
    assert torch.equal(encoder.layer4[1].bn2.weight, torch.ones(512))


def test_nothing_in_common_is_refused_even_partially(tmp_path):
    torch.save({"w": torch.rand(2)}, tmp_path / "net.pth")
    sentence = refused(f"resnet18@{tmp_path / 'net.pth'}", partial=True)
    assert "0 of 120 tensors match" in sentence
    assert "torchvision's names" in refused(tmp_path / "net.pth")


class _Foreign:
    """Pickled as a call: whoever unpickles it runs code of the file's author."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_code_in_a_pickle_does_not_run(resnet18, tmp_path):
    trap = tmp_path / "trap"
    torch.save({"state_dict": resnet18.state_dict(), "extra": _Foreign(trap)}, tmp_path / "net.pth")
    for spec in (tmp_path / "net.pth", f"resnet18@{tmp_path / 'net.pth'}"):
        assert "to hold tensors and plain types only" in refused(spec)
    assert not trap.exists()
    torch.load(tmp_path / "net.pth", weights_only=False)["extra"].close()
    assert trap.exists()  # it would have


def test_a_whole_pickled_module_isrefused(resnet18, tmp_path):
    torch.save(resnet18, tmp_path / "net.pth")
    assert "to hold tensors and plain types only" in refused(tmp_path / "net.pth")


def test_damaged_files_arerefused(tmp_path, resnet18):
    whole = save_encoder(tmp_path / "whole.safetensors", build("resnet10w32")).read_bytes()
    cut = tmp_path / "cut.safetensors"
    for length in (len(whole) - 1, len(whole) // 2, 100, 0):
        cut.write_bytes(whole[:length])
        assert re.match(
            r"Expected a safetensors file, but .*cut.safetensors is damaged", refused(cut)
        )
        with pytest.raises(ValueError, match="is damaged"):
            read_provenance(cut)

    torch.save(resnet18.state_dict(), tmp_path / "whole.pth")
    half = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(half[: len(half) // 2])
    (tmp_path / "text.pth").write_text("not a weight file")
    for name in ("cut.pth", "text.pth"):
        assert name in refused(tmp_path / name)


def test_an_empty_file_isrefused(tmp_path):
    (tmp_path / "net.pth").touch()
    assert "net.pth" in refused(tmp_path / "net.pth")


def test_a_file_without_named_tensors_isrefused(tmp_path):
    for content in ([torch.rand(2)], {"epoch": 3}, torch.rand(2)):
        torch.save(content, tmp_path / "net.pth")
        assert "found no tensors by name" in refused(tmp_path / "net.pth")


@pytest.mark.parametrize("file", ["none.pth", "none.safetensors", "none.ckpt", "folder/none"])
def test_a_missing_file_is_named(file, tmp_path):
    path = tmp_path / file
    for spec in (path, str(path), f"resnet18@{path}"):
        with pytest.raises(FileNotFoundError, match=f"Expected a weight file.*{file}"):
            load_encoder(spec)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="Expected a weight file"):
        load_encoder(tmp_path)
