"""Files made to harm: each is refused in one sentence, and none of them runs."""

import argparse
import io
import json
import os
import pickle
import re
import resource
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from safetensors.torch import save_file

from goodtransfer import load_encoder, save_encoder
from goodtransfer.encoders import build
from goodtransfer.weights import inspect, load_head, read_provenance
from goodtransfer.weights.files import read

sys.path.insert(0, str(Path(__file__).parent))
from compared import refused


class Payload:
    """Pickled as a call of any function: whoever unpickles it runs the command."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(0)
    return build("resnet10w8").state_dict()


@pytest.fixture
def trap(tmp_path):
    """A file that must not appear."""
    return tmp_path / "trap"


def sentence(path, read=load_encoder):
    found = refused(path, read)
    assert len(found) < 700
    return found


COMMANDS = {
    "posix.system": lambda trap: Payload(os.system, f"touch {trap}"),
    "eval": lambda trap: Payload(eval, f"open({str(trap)!r}, 'w')"),
    "exec": lambda trap: Payload(exec, f"open({str(trap)!r}, 'w')"),
    "commands.check_call": lambda trap: Payload(subprocess.check_call, ["touch", str(trap)]),
    "numpy.load": lambda trap: Payload(np.load, str(trap), None, True),
    "torch.serialization.load": lambda trap: Payload(torch.load, str(trap)),
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("legacy", [False, True])
def test_commands_in_torch_files_do_not_run(name, legacy, weights, trap, tmp_path):
    path = tmp_path / "net.pth"
    content = {"state_dict": dict(weights), "args": COMMANDS[name](trap)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    for reader in (load_encoder, inspect, read):
        told = sentence(path, reader)  # PyTorch 2.6 has the module before the name
        assert re.search(rf"it asks for (\w+\.)?{re.escape(name)}, which is code", told)
    assert not trap.exists()


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_in_detectron2_pickles_do_not_run(name, weights, trap, tmp_path):
    path = tmp_path / "net.pkl"
    model = {f"stem.{n}": v.numpy() for n, v in weights.items()}
    path.write_bytes(pickle.dumps({"model": model, "x": COMMANDS[name](trap)}, protocol=2))
    assert "to hold numpy arrays and plain types only, but it holds" in sentence(path)
    assert name.rpartition(".")[2] in sentence(path)
    assert not trap.exists()
    if name == "posix.system":  # it would have
        pickle.loads(path.read_bytes())
        assert trap.exists()


RAW = {
    "system": b"cposix\nsystem\n(S'touch {trap}'\ntR.",
    "a dotted name": b"\x80\x04\x8c\x05numpy\x8c\x0aload.__doc__\x93.",
    "an attribute of numpy": b"\x80\x04\x8c\x05numpy\x8c\x0bf2py.os.abc\x93.",
    "a new object": b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n)\x81.",
    "a state for a function": b"\x80\x02cnumpy.core.multiarray\nscalar\nN}X\x01\x00\x00\x00aK\x01s\x86b.",
    "an extension": b"\x80\x02\x82\x01.",
    "a persistent id": b"\x80\x02X\x01\x00\x00\x00aQ.",
    "an endless length": b"\x80\x02X\xff\xff\xff\x7fab.",
    "nothing": b"\x80\x02.",
    "deep tuples": b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b".",
}


@pytest.mark.parametrize("name", RAW)
@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
def test_raw_pickles_are_refused(name, suffix, trap, tmp_path):
    path = tmp_path / f"net{suffix}"
    path.write_bytes(RAW[name].replace(b"{trap}", str(trap).encode()))
    sentence(path)
    assert not trap.exists()


def test_arrays_of_detectron2_pickles_are_of_numbers(tmp_path):
    path = tmp_path / "net.pkl"
    for value in (
        np.array([{"a": 1}], dtype=object),
        np.array(["text"]),
        np.zeros(2, "datetime64[s]"),
    ):
        path.write_bytes(pickle.dumps({"model": {"stem.conv1.weight": value}}, protocol=2))
        assert "to hold numpy arrays and plain types only" in sentence(path)
    # A shape that the bytes do not fill, as numpy itself would allocate it.
    data = pickle.dumps({"model": {"w": np.zeros(200, np.float32)}}, protocol=2)
    size = b"K\xc8\x85"  # (200,)
    assert data.count(size) == 1
    path.write_bytes(data.replace(size, b"J\xff\xff\xff\x7f\x85"))
    assert "an array of shape (2147483647,) in 800 bytes" in sentence(path)


def test_old_settings_are_read_without_their_classes(weights, tmp_path):
    """argparse.Namespace and its like, in both formats of torch; what they say is kept, inert."""
    settings = argparse.Namespace(arch="resnet10", lr=0.03, nested=argparse.Namespace(a=1))
    content = {
        "state_dict": OrderedDict(weights),
        "args": settings,
        "best": np.float64(71.1),
        "meters": defaultdict(list, a=[1]),
        "array": np.zeros(3),
    }
    for legacy in (False, True):
        path = tmp_path / f"{legacy}.pth.tar"
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
        found = load_encoder(path)
        assert all(torch.equal(found.state_dict()[n], v) for n, v in weights.items())


def test_settings_of_packages_that_are_not_there(weights, tmp_path, monkeypatch):
    """OmegaConf's and VISSL's classes are neither needed nor imported; here they are made up."""
    for name in ("omegaconf.dictconfig.DictConfig", "vissl.utils.hydra_config.AttrDict"):
        module, _, kind = name.rpartition(".")
        base = dict if kind == "AttrDict" else object
        made = type(kind, (base,), {"__module__": module, "__setstate__": lambda *_: 1 / 0})
        stand = type(sys)(module)
        setattr(stand, kind, made)
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, stand)
            patch.setitem(sys.modules, module.partition(".")[0], stand)
            value = made()
            if base is dict:
                value["lr"] = 1
            else:
                value.__dict__["_content"] = {"lr": 1}
            torch.save({"model": dict(weights), "config": value}, tmp_path / "net.torch")
            load_encoder(tmp_path / "net.torch")
        load_encoder(tmp_path / "net.torch")


def with_callbacks(weights, called):
    """A checkpoint of Lightning before 1.5, by hand: its callbacks' classes are keys of a dict."""
    content = bytes_of({"state_dict": dict(weights), "callbacks": "HERE"})
    classes = (
        b"cpytorch_lightning.callbacks.model_checkpoint\nModelCheckpoint\n",
        b"cpytorch_lightning.callbacks.early_stopping\nEarlyStopping\n",
    )
    call = b"X\x04\x00\x00\x00trap\x85R" if called else b""
    entries = b"".join(name + call + b"}X\x04\x00\x00\x00bestK\x01ss" for name in classes)
    return rewritten(content, b"X\x04\x00\x00\x00HERE", b"}" + entries)


def bytes_of(content):
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def rewritten(content, old, new):
    """A torch file with other words in its pickle."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(out, "w") as target:
        for entry in source.infolist():
            data = source.read(entry)
            if entry.filename.endswith("data.pkl"):
                assert data.count(old) == 1
                data = data.replace(old, new)
            target.writestr(entry.filename, data)
    return out.getvalue()


@pytest.mark.parametrize("called", [False, True])
def test_classes_of_callbacks_are_read_and_never_called(called, weights, tmp_path, monkeypatch):
    ran = []
    for kind in (pl.callbacks.ModelCheckpoint, pl.callbacks.EarlyStopping):
        monkeypatch.setattr(kind, "__init__", lambda *words: ran.append(words))
    path = tmp_path / "old.ckpt"
    path.write_bytes(with_callbacks(weights, called))
    found = load_encoder(path).state_dict()
    assert all(torch.equal(found[name], value) for name, value in weights.items())
    assert ran == []


# --- safetensors


def safetensors(header, body=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


F32 = {"dtype": "F32", "shape": [2, 2]}
HEADERS = {
    "a huge length": safetensors({}, length=2**60),
    "a length beyond the file": safetensors({}, length=10**6),
    "overlapping offsets": safetensors(
        {"a": F32 | {"data_offsets": [0, 16]}, "b": F32 | {"data_offsets": [8, 24]}}, bytes(24)
    ),
    "offsets beyond the file": safetensors({"a": F32 | {"data_offsets": [0, 16]}}, bytes(8)),
    "a hole": safetensors({"a": F32 | {"data_offsets": [8, 24]}}, bytes(24)),
    "an absurd shape": safetensors(
        {"a": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 16]}}, bytes(16)
    ),
    "deep JSON": safetensors(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "no JSON": safetensors(b"{not json"),
    "an unknown type": safetensors(
        {"a": F32 | {"dtype": "CODE", "data_offsets": [0, 16]}}, bytes(16)
    ),
}


@pytest.mark.parametrize("name", HEADERS)
def test_absurd_safetensors_are_refused(name, tmp_path):
    for suffix in (".safetensors", ".bin"):
        path = tmp_path / f"net{suffix}"
        path.write_bytes(HEADERS[name])
        for reader in (load_encoder, inspect, load_head):
            assert "Expected a safetensors file, but " in sentence(path, reader)


@pytest.mark.parametrize(
    "header",
    ["[" * 100_000, "{}", '{"encoder": "resnet10w8", "normalization": 3, "origin": {}}', "null"],
    ids=["deep", "empty", "a number", "null"],
)
def test_a_damaged_header_of_ours_is_refused(header, weights, tmp_path):
    path = tmp_path / "net.safetensors"
    save_file(dict(weights), path, metadata={"goodtransfer": header})
    for reader in (load_encoder, read_provenance):
        assert "its header is damaged" in sentence(path, reader)


def test_a_header_cannot_ask_for_a_giant(tmp_path):
    path = save_encoder(tmp_path / "e.safetensors", build("pixels8"))
    header = {"encoder": "resnet101w99999", "normalization": None, "origin": {}}
    save_file({"w": torch.zeros(2)}, path, metadata={"goodtransfer": json.dumps(header)})
    assert "none of its tensors is longer than 2" in sentence(path)


# --- torch archives


def archive(path, numel, size, stride, data=bytes(16), compression=zipfile.ZIP_STORED):
    """A torch file of one tensor that claims what it likes."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            if value == "the storage":
                return ("storage", torch.FloatStorage, "0", "cpu", numel)
            return None

    tensor = Payload(
        torch._utils._rebuild_tensor_v2, "the storage", 0, (size,), (stride,), False, OrderedDict()
    )
    content = io.BytesIO()
    Pickler(content, 2).dump({"conv1.weight": tensor})
    with zipfile.ZipFile(path, "w", compression) as out:
        out.writestr("net/data.pkl", content.getvalue())
        out.writestr("net/byteorder", "little")
        out.writestr("net/data/0", data)
        out.writestr("net/version", "3\n")


CLAIMS = {
    "a larger storage": (2**33, 2**33, 1),
    "a larger tensor": (4, 2**33, 1),
    "a repeated number": (4, 10**12, 0),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_tensors_that_claim_too_much_are_refused(name, tmp_path):
    archive(tmp_path / "net.pth", *CLAIMS[name])
    sentence(tmp_path / "net.pth", read)


def test_zip_bombs_are_refused(tmp_path):
    path = tmp_path / "net.pth"
    archive(path, 2**26, 2**26, 1, bytes(2**28), zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 10**6
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "unpacks to 268,43" in sentence(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


@pytest.mark.parametrize("legacy", [False, True])
def test_truncated_files_are_refused(legacy, weights, tmp_path):
    path = tmp_path / "net.pth"
    torch.save(dict(weights), path, _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    for length in (len(whole) - 1, len(whole) * 2 // 3, 2000, 200, 20, 3):
        path.write_bytes(whole[:length])
        sentence(path)


def test_flipped_bytes_are_refused_or_read(weights, tmp_path):
    """Damage anywhere ends in a sentence or in tensors, never in another exception."""
    rng = np.random.default_rng(0)
    for suffix in (".pth", ".pkl", ".safetensors"):
        path = tmp_path / f"net{suffix}"
        if suffix == ".pth":
            torch.save(dict(weights), path)
        elif suffix == ".pkl":
            path.write_bytes(pickle.dumps({"model": {n: v.numpy() for n, v in weights.items()}}))
        else:
            save_file(dict(weights), path)
        whole = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(30):
            broken = whole.copy()
            broken[rng.integers(0, 3000, 20)] = rng.integers(0, 256, 20)
            path.write_bytes(broken.tobytes())
            try:
                read(path)
            except ValueError as error:
                assert str(error).startswith("Expected")  # noqa: PT017


@pytest.mark.parametrize("name", ["conv1.weight", "layer1.0.conv1.weight", "layer1.0.conv2.weight"])
@pytest.mark.parametrize("shape", [(), (3,), (0, 3, 7, 7), (8, 8, 0, 1)])
def test_odd_shapes_are_told(name, shape, weights, tmp_path):
    torch.save(dict(weights) | {name: torch.zeros(shape)}, tmp_path / "net.pth")
    sentence(tmp_path / "net.pth")
    assert inspect(tmp_path / "net.pth").fault


# --- places without a file


def test_a_folder_names_its_files(weights, tmp_path):
    torch.save(dict(weights), tmp_path / "net.pth")
    with pytest.raises(
        FileNotFoundError, match=r"is a folder: name a file in it, e.g. net\.pth\.$"
    ):
        load_encoder(tmp_path)


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".ckpt", ".bin"])
def test_an_empty_file_is_told(suffix, tmp_path):
    (tmp_path / f"net{suffix}").touch()
    assert sentence(tmp_path / f"net{suffix}").endswith("is empty.")
