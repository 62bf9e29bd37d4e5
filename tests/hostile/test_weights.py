"""Weight files broken by chance, and such as are made to take for ever; tests/weights has the rest."""

import io
import json
import os
import pickle
import struct
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save as safetensors
from safetensors.torch import save_file

from goodtransfer import load_encoder, save_encoder
from goodtransfer.encoders import build
from goodtransfer.weights import inspect, load_head, read_provenance
from goodtransfer.weights.files import read

sys.path.insert(0, str(Path(__file__).parent))
from forked import assert_clean, outcomes
from mutations import CASES, dice, mutated

READERS = (load_encoder, inspect, read, load_head, read_provenance)


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(0)
    return build("resnet10w8").state_dict()


def bytes_of(content, legacy=False):
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


def checkpoint(weights):
    """As Lightning writes ours."""
    named = {f"encoder.{name}": value for name, value in weights.items()}
    given = {"encoder": "resnet10w8", "normalization": [[0.5] * 3, [0.25] * 3]}
    settings = {"encoder": "resnet10w8", "lr": 0.03}
    return {"state_dict": named, "hyper_parameters": settings, "input": given, "epoch": 3}


def good(kind, weights):
    """Files of a kind, with the ending that they have."""
    arrays = {f"stem.{name}": value.numpy() for name, value in weights.items()}
    header = {
        "encoder": "resnet10w8",
        "normalization": [[0.5] * 3, [0.25] * 3],
        "origin": {"seed": 1},
    }
    return {
        "safetensors": [
            (safetensors(dict(weights), {"goodtransfer": json.dumps(header)}), ".safetensors"),
            (safetensors(dict(weights)), ".bin"),
        ],
        "torch": [
            (bytes_of(dict(weights)), ".pth"),
            (bytes_of({"state_dict": dict(weights), "arch": "resnet10"}, legacy=True), ".pth.tar"),
            (bytes_of(checkpoint(weights)), ".ckpt"),
        ],
        "pickle": [
            (pickle.dumps({"model": arrays, "__author__": "x"}, protocol=2), ".pkl"),
            (pickle.dumps({"model": arrays, "matching_heuristics": True}, protocol=4), ".pkl"),
        ],
    }[kind]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["safetensors", "torch", "pickle"])
def test_broken_weights(kind, weights, tmp_path):
    files = good(kind, weights)

    def case(number):
        random = dice(kind, number)
        content, suffix = files[number % len(files)]
        path = tmp_path / f"net{suffix}"
        path.write_bytes(mutated(content, random, files[-1][0]))
        READERS[number % 2 if random.random() < 0.7 else random.randrange(5)](path)

    for content, suffix in files:
        (tmp_path / f"net{suffix}").write_bytes(content)
        assert len(read(tmp_path / f"net{suffix}").tensors) == len(weights)
    assert_clean(outcomes(case, CASES[kind], tmp_path, gigabytes=2), CASES[kind])


def refused(path, readers=(load_encoder, inspect, read), seconds=10):
    """In a process of its own, which neither hangs nor fills the memory; one sentence from each."""
    found = outcomes(
        lambda n: readers[n](path), len(readers), path.parent, seconds=seconds, gigabytes=1
    )
    assert found == ["one sentence"] * len(readers)


# --- Pickles that are small and want much


PICKLES = {
    "a place for four billion values": b"\x80\x02}r\xff\xff\xff\xff.",
    "a place for four billion values, as text": b"(dp4294967290\n.",
    "text of four gigabytes": b"\x80\x02X\xff\xff\xff\xffab.",
    "bytes of 2^60": b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"ab.",
    "a bytearray of 2^40": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"ab.",
    "a frame of 2^62": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"}.",
    "a number of a megabyte": b"\x80\x02\x8b" + struct.pack("<i", 2**20) + b"\x7f" * 2**20 + b".",
    "a number of a megabyte, as text": b"I" + b"9" * 2**20 + b"\n.",
    "lists in lists": b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".",
    "marks alone": b"\x80\x02" + b"(" * 10**5 + b".",
    "nothing on the stack": b"\x80\x020.",
    "no end": b"\x80\x02" + b"N0" * 10**5,
}


@pytest.mark.parametrize("name", PICKLES)
@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
def test_small_pickles_that_want_much(name, suffix, tmp_path):
    (tmp_path / f"net{suffix}").write_bytes(PICKLES[name])
    refused(tmp_path / f"net{suffix}")


def doubled(levels, value=None):
    for _ in range(levels):
        value = {"a": value, "b": value}
    return value


def test_a_dict_that_is_in_itself_a_billion_times(tmp_path):
    path = tmp_path / "net.pkl"
    path.write_bytes(pickle.dumps({"model": doubled(60)}, protocol=2))
    refused(path)
    endless = {}
    endless["model"] = endless
    path.write_bytes(pickle.dumps(endless, protocol=2))
    refused(path)


def twice(levels, make=list):
    value = "x"
    for _ in range(levels):
        value = make([value, value])
    return value


class Made:
    """Pickled as a call of something harmless, with what is not."""

    def __init__(self, *how):
        self.how = how

    def __reduce__(self):
        return self.how


def keyed(key):
    """A dict with this key, which would have to be hashed to be put in one here."""
    return Made(OrderedDict, (), None, None, iter([(key, 1)]))


@pytest.mark.parametrize("suffix", [".pkl", ".pth", ".legacy.pth"])
@pytest.mark.parametrize("name", ["author", "key", "dtype", "popped"])
def test_values_that_hold_one_another_a_billion_times(name, suffix, weights, tmp_path):
    """To write them out, to look one up, to compare: all would take for ever."""
    hidden = {
        "author": {"__author__": twice(60)},
        "key": {"names": keyed(twice(60, tuple))},
        "dtype": {"dtype": Made(np.dtype, (twice(60),))},
        "popped": {},
    }[name]
    path = tmp_path / f"net{suffix}"
    if name == "popped":  # lists that are filled once they lie in one another, and thrown away
        empty = b"".join(b"]q%c0" % n for n in range(40))
        filled = b"".join(b"h%ch%cah%ca0" % (n, n + 1, n + 1) for n in range(39))
        path.write_bytes(5 * (b"\x80\x02" + empty + filled + b"}."))  # as many as old torch writes
    elif suffix == ".pkl":
        model = {f"stem.{key}": value.numpy() for key, value in weights.items()}
        path.write_bytes(pickle.dumps({"model": model, **hidden}, protocol=2))
    else:
        path.write_bytes(
            bytes_of({"state_dict": dict(weights), **hidden}, legacy="legacy" in suffix)
        )
    refused(path)
    with pytest.raises(ValueError, match="hold one another so often"):
        read(path)


TWICE = b"".join(b"g%d\ng%d\nag%d\na0" % (n, n + 1, n + 1) for n in range(39))
DTYPE = b"cnumpy\ndtype\n(g0\ntR."


@pytest.mark.parametrize("start", [b"S'\xff'\n0", b"L0x1L\n0", b"I0x1\n0", b""])
def test_words_that_only_some_readers_know_hide_nothing(start, tmp_path):
    """In the text of the oldest protocol, where a list is a mark and a letter."""
    empty = b"".join(b"(lp%d\n0" % n for n in range(40))
    (tmp_path / "net.pkl").write_bytes(start + empty + TWICE + DTYPE)
    refused(tmp_path / "net.pkl")


@pytest.mark.parametrize("place", [8, 26, 30])
def test_an_archive_that_only_some_readers_open_hides_nothing(place, weights, tmp_path):
    """Flags, sizes or the name in the header beside the pickle, not in the list at the end."""
    path = tmp_path / "net.pth"
    torch.save({"state_dict": dict(weights), "names": keyed(twice(60, tuple))}, path)
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x03\x04") + place] ^= 1
    path.write_bytes(content)
    refused(path)


def test_settings_that_name_their_parents_are_read(weights, tmp_path):
    """As those of OmegaConf do, of which old checkpoints hold many."""
    settings = {}
    for number in range(2000):
        settings[f"option_{number}"] = {"value": number, "parent": settings}
    torch.save({"state_dict": dict(weights), "config": settings}, tmp_path / "net.pth")
    assert read(tmp_path / "net.pth").tensors.keys() == weights.keys()


def test_an_honest_file_may_share_and_hold_itself(weights, tmp_path):
    settings = {"shared": [("a", 1)] * 50}
    settings["parent"] = settings
    path = tmp_path / "net.pth"
    torch.save({"state_dict": dict(weights), "more": settings, "again": [settings] * 9}, path)
    assert read(path).tensors.keys() == weights.keys()


# --- Names


def test_a_hundred_thousand_beginnings_of_a_name(tmp_path):
    path = tmp_path / "net.safetensors"
    empty = torch.zeros(0)
    save_file({f"{n}.conv1.weight": empty for n in range(20_000)}, path)
    found = outcomes(lambda n: (inspect, load_encoder)[n](path), 2, tmp_path, seconds=60)
    assert found == ["a result", "one sentence"]


@pytest.mark.parametrize(
    "name", ["a.\n.conv1.weight", "\x1b[2J.conv1.weight", "x" * 900 + ".conv1.weight", "\u202e"]
)
def test_names_are_printed_on_one_line(name, weights, tmp_path, capsys):
    path = tmp_path / "net.safetensors"
    save_file(dict(weights) | {f"layer1.{name}": torch.zeros(2)}, path)
    report = inspect(path)
    for line in str(report).splitlines():
        assert line.isprintable()
        assert len(line) < 2500
    with pytest.raises(ValueError, match="1 unexpected") as caught:
        load_encoder(path)
    assert str(caught.value).isprintable()


def test_a_name_of_a_megabyte_is_refused(weights, tmp_path):
    torch.save(dict(weights) | {"x." * 500_000: torch.zeros(2)}, tmp_path / "net.pth")
    refused(tmp_path / "net.pth")


def test_the_origin_is_printed_on_one_line(tmp_path):
    path = save_encoder(
        tmp_path / "e.safetensors", build("pixels8"), method="a\nb\x1b[2J", note="x" * 10**5
    )
    (line,) = [line for line in str(inspect(path)).splitlines() if "provenance" in line]
    assert line.isprintable()
    assert "method a\\nb\\x1b[2J" in line
    assert len(line) < 1000


# --- What a header, or a file beside, says


HEADERS = {
    "an infinite mean": {"normalization": [[1e999, 0, 0], [1, 1, 1]]},
    "no number as a mean": {"normalization": [[float("nan"), 0, 0], [1, 1, 1]]},
    "nothing to divide by": {"normalization": [[0, 0, 0], [0, 0, 0]]},
    "a mean of four hundred digits": {"normalization": [[10**400, 0, 0], [1, 1, 1]]},
    "a mean without end": {"normalization": [[], []]},
    "an encoder of a megabyte": {"encoder": "resnet10w" + "9" * 10**6},
    "an encoder that is a list": {"encoder": ["resnet10w8"]},
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_cannot_be(name, weights, tmp_path):
    path = tmp_path / "net.safetensors"
    header = {"encoder": "resnet10w8", "normalization": None, "origin": {}} | HEADERS[name]
    save_file(dict(weights), path, metadata={"goodtransfer": json.dumps(header)})
    refused(path, (load_encoder, inspect, read_provenance))


def test_a_header_that_names_an_unknown_network(tmp_path):
    """What it names is looked up among names: nothing is fetched, and no path is followed."""
    pytest.importorskip("timm")  # which makes a folder when it is imported, so not in the case
    for name in ("timm:hf_hub:a/b", "timm:resnet50.no_such_tag", "timm:local-dir:/etc", "torchvision:x",
                 "../../etc/passwd", "https://a.b/c", "exemplar_v2", "resnet50@/etc/passwd"):  # fmt: skip
        path = tmp_path / "net.safetensors"
        header = {"encoder": name, "normalization": None, "origin": {}}
        save_file({"w": torch.zeros(2)}, path, metadata={"goodtransfer": json.dumps(header)})
        (told,) = outcomes(lambda _, path=path: load_encoder(path), 1, tmp_path, seconds=30)
        assert told == "one sentence", (name, told)


@pytest.mark.parametrize(
    "settings",
    ['{"image_mean": [1e999, 0, 0], "image_std": [1, 1, 1]}', "[1, 2]", "7",
     f'{{"image_mean": [{10**400}, 0, 0], "image_std": [1, 1, 1]}}',
     '{"image_mean": [0, 0, 0], "image_std": [1, NaN, 1]}',
     '{"image_mean": [0, 0, 0], "image_std": [1, -1, 1]}',
     "[" * 100_000, '{"pretrained_cfg": {"mean": 7}}', "\0", '{"image_mean": "abc", "image_std": "abc"}'],
)  # fmt: skip
def test_settings_beside_the_weights_that_cannot_be(settings, weights, tmp_path):
    """They are then as if they were not there: the dialect's own input convention holds."""
    path = tmp_path / "net.pth"
    torch.save(dict(weights), path)
    expected = load_encoder(path).normalization
    (tmp_path / "config.json").write_text(settings)
    assert load_encoder(path).normalization == expected
    (tmp_path / "config.json").unlink()
    os.mkfifo(tmp_path / "config.json")
    assert outcomes(lambda _: load_encoder(path), 1, tmp_path, seconds=5) == ["a result"]


def test_settings_beside_the_weights_without_end(weights, tmp_path):
    """No such file has more than some thousand bytes."""
    path, told = tmp_path / "net.pth", '{"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}'
    torch.save(dict(weights), path)
    expected = load_encoder(path).normalization
    for file in ("config.json", "preprocessor_config.json"):
        (tmp_path / file).write_text(told.ljust(2**24 + 1))
        assert load_encoder(path).normalization == expected
        (tmp_path / file).write_text(told.ljust(2**24))
        assert load_encoder(path).normalization.mean == (0, 0, 0)
        (tmp_path / file).unlink()


@pytest.mark.parametrize(
    "head",
    [{"head.weight": torch.zeros(3, 4)}, {"head.weight": torch.zeros(()), "head.bias": torch.zeros(3)},
     {"head.weight": torch.zeros(10**9, 0), "head.bias": torch.zeros(3)},
     {"head.weight": torch.zeros(3, 4), "head.bias": torch.zeros(4)}],
)  # fmt: skip
def test_half_a_classifier(head, weights, tmp_path):
    path = tmp_path / "net.safetensors"
    header = {"encoder": "resnet10w8", "normalization": None, "origin": {}}
    save_file(dict(weights) | head, path, metadata={"goodtransfer": json.dumps(header)})
    refused(path, (load_head,))


# --- Types and kinds of tensors


@pytest.mark.parametrize(
    "kind", ["F4", "F6_E2M3", "F8_E8M0", "F8_E4M3", "F8_E5M2", "BF16", "C64", "U64", "BOOL", "I8"]
)
def test_every_type_that_safetensors_knows(kind, tmp_path):
    bits = {"F4": 4, "F6_E2M3": 6, "BF16": 16, "C64": 64, "U64": 64}.get(kind, 8)
    size = 8 * bits // 8
    entry = {"dtype": kind, "shape": [8], "data_offsets": [0, size]}
    content = json.dumps({"conv1.weight": entry}).encode()
    path = tmp_path / "net.safetensors"
    path.write_bytes(struct.pack("<Q", len(content)) + content + bytes(size))
    found = outcomes(lambda n: (read, load_encoder)[n](path), 2, tmp_path)
    assert found[0] in ("a result", "one sentence")
    assert found[1] == "one sentence"


def test_tensors_without_values_are_refused(weights, tmp_path):
    path = tmp_path / "net.pth"
    torch.save(dict(weights) | {"conv1.weight": torch.empty(8, 3, 7, 7, device="meta")}, path)
    refused(path)
    torch.save(dict(weights) | {"conv1.weight": torch.zeros(8, 3, 7, 7).to_sparse()}, path)
    refused(path)


def test_a_pipe_is_no_weight_file(tmp_path):
    for suffix in (".pth", ".safetensors", ".pkl"):
        os.mkfifo(tmp_path / f"net{suffix}")
        refused(tmp_path / f"net{suffix}", seconds=5)


def test_arrays_of_a_pickle_are_still_read(weights, tmp_path):
    """Of every protocol, with values that come twice."""
    shared = np.arange(6, dtype=np.float32).reshape(2, 3)
    for protocol in range(6):
        path = tmp_path / "net.pkl"
        path.write_bytes(pickle.dumps({"model": {"a": shared, "b": shared}, "blobs": {}}, protocol))
        found = read(path).tensors
        assert found["a"].tolist() == found["b"].tolist() == [[0, 1, 2], [3, 4, 5]]
