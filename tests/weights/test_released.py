"""Released names, and downloads from a real server that breaks off, goes on, and changes its file."""

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from goodtransfer import load_encoder
from goodtransfer.cli import main
from goodtransfer.encoders import build
from goodtransfer.weights import inspect, released


class Handler(BaseHTTPRequestHandler):
    """A file with an ETag, by ranges; `server.breaks` bytes are sent before the line is cut."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get("Range")))
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        tag = f'"{hashlib.md5(content).hexdigest()}"' if self.server.tags else None
        start, asked = 0, self.headers.get("Range")
        if asked and self.server.ranges and self.headers.get("If-Range") in (None, tag):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_error(416)
                return
        self.send_response(206 if start else 200)
        if tag:
            self.send_header("ETag", tag)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        stop = len(content) if self.server.breaks is None else self.server.breaks
        self.wfile.write(content[start:stop])
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The authors' server, and a cache of its own."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.asked, server.breaks, server.ranges, server.tags = {}, [], None, True, True
    monkeypatch.setattr(released, "URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("GOODTRANSFER_CACHE", str(tmp_path / "cache"))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(0)
    return build("resnet10w8").state_dict()


@pytest.fixture
def content(weights, tmp_path):
    """A file as the authors release it: official MoCo's names."""
    state = {f"module.encoder_q.{name}": value for name, value in weights.items()}
    torch.save({"state_dict": state, "arch": "resnet50", "epoch": 200}, tmp_path / "released.pth")
    return (tmp_path / "released.pth").read_bytes()


def test_every_released_name():
    """As the links of the authors' page have it, whose one slip is theirs."""
    assert len(released.RELEASED) == 24
    names = {released.address(name).rpartition("/")[2] for name in released.RELEASED}
    for family in ("moco_v2", "supervised"):
        rungs = ("", "_aug_f", "_aug_fr", "_aug_frc", "_aug_frcg")
        for end in (*rungs, "1over10", "100"):
            assert f"{family}_imagenet{end}.pth" in names
        for data in ("celeba", "coco", "synthia"):
            assert f"{family}_{data}.pth" in names
    assert {"exemplar_v1.pth", "exemplar_v2.pth", "supervised_places.pth"} <= names
    assert released.address("moco_v2_places").endswith("/good_transfer/moco_v2_palces.pth")
    assert released.address("exemplar_v1") == (
        "https://frontiers.blob.core.windows.net/pretraining/checkpoints/pil_pretrained_models/"
        "good_transfer/exemplar_v1.pth"
    )


def test_a_released_name_loads_and_is_fetched_once(server, content, weights):
    server.files["/exemplar_v2.pth"] = content
    for _ in range(2):
        encoder = load_encoder("exemplar_v2")
        assert all(torch.equal(encoder.state_dict()[n], v) for n, v in weights.items())
    assert inspect("exemplar_v2").dialect == "official MoCo, below module.encoder_q."
    assert load_encoder("resnet10w8@exemplar_v2").name == "resnet10w8"
    assert server.asked == [("/exemplar_v2.pth", None)]
    folder = released.cache()
    assert {path.name for path in folder.iterdir()} == {
        "exemplar_v2.pth", "exemplar_v2.pth.sha256", "exemplar_v2.pth.lock",
    }  # fmt: skip
    recorded = (folder / "exemplar_v2.pth.sha256").read_text()
    assert recorded == f"{hashlib.sha256(content).hexdigest()}  exemplar_v2.pth\n"


def test_an_address_loads(server, content):
    server.files["/some/net.pth?key=1"] = content
    url = f"{released.URL}/some/net.pth?key=1"
    assert load_encoder(url).name == "resnet10w8"
    assert inspect(f"resnet10w8@{url}").fault == ""
    assert len(server.asked) == 1
    assert load_encoder(url, dialect="moco").name == "resnet10w8"


def broken(server, breaks):
    server.breaks = breaks
    with pytest.raises(ConnectionError, match=r"goes on from there") as caught:
        load_encoder("exemplar_v1")
    server.breaks = None
    return str(caught.value)


def test_a_break_is_resumed(server, content, weights):
    server.files["/exemplar_v1.pth"] = content
    assert "after 1,000 bytes" in broken(server, 1000)
    part = released.cache() / "exemplar_v1.pth.part"
    assert part.read_bytes() == content[:1000]
    assert "after 30,000 bytes" in broken(server, 30_000)
    encoder = load_encoder("exemplar_v1")
    assert all(torch.equal(encoder.state_dict()[n], v) for n, v in weights.items())
    assert [asked for _, asked in server.asked] == [None, "bytes=1000-", "bytes=30000-"]
    assert (released.cache() / "exemplar_v1.pth").read_bytes() == content
    assert not list(released.cache().glob("*.part*"))


@pytest.mark.parametrize("how", ["another file", "no ranges", "no tags"])
def test_what_cannot_be_resumed_starts_over(how, server, content):
    server.files["/exemplar_v1.pth"] = bytes(len(content)) if how == "another file" else content
    server.ranges, server.tags = how != "no ranges", how != "no tags"
    broken(server, 5000)
    server.files["/exemplar_v1.pth"] = content
    load_encoder("exemplar_v1")
    assert (released.cache() / "exemplar_v1.pth").read_bytes() == content


def test_a_complete_part_is_not_taken_for_a_rest(server, content):
    """Killed between the last byte and the renaming."""
    server.files["/exemplar_v1.pth"] = content
    broken(server, 1000)
    (released.cache() / "exemplar_v1.pth.part").write_bytes(content)
    load_encoder("exemplar_v1")
    assert (released.cache() / "exemplar_v1.pth").read_bytes() == content


def test_a_changed_file_is_refused(server, content):
    server.files["/exemplar_v2.pth"] = content
    load_encoder("exemplar_v2")
    path = released.cache() / "exemplar_v2.pth"
    damaged = bytearray(content)
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"to be what was downloaded first \(sha256 [0-9a-f]{16}"):
        load_encoder("exemplar_v2")

    path.unlink()  # and another one comes from the server
    server.files["/exemplar_v2.pth"] = bytes(damaged)
    with pytest.raises(ValueError, match="it was damaged or exchanged"):
        load_encoder("exemplar_v2")
    assert not path.exists()
    path.with_name(f"{path.name}.sha256").unlink()
    assert released.download(released.address("exemplar_v2"), path) == path


def test_a_missing_file_and_no_connection_are_told(server, monkeypatch, tmp_path, capsys):
    with pytest.raises(ConnectionError, match="but the server says 404 Not Found"):
        load_encoder("supervised_coco")
    server.shutdown()
    server.server_close()
    with pytest.raises(ConnectionError, match=r"connection failed \(.*refused.*\) after 0 bytes"):
        load_encoder("supervised_coco")
    monkeypatch.setattr(released, "URL", "https://nowhere.invalid")
    assert main(["weights", "inspect", "exemplar_v2"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("goodtransfer: error: Expected to download https://nowhere.invalid/")
    assert f"put it at {tmp_path / 'cache' / 'weights' / 'exemplar_v2.pth'}." in error
    with pytest.raises(ConnectionError, match="Expected to download https://nowhere.invalid/x.pth"):
        load_encoder("https://nowhere.invalid/x.pth")


def test_many_at_once_download_once(server, content):
    server.files["/exemplar_v2.pth"] = content
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(released.fetched, ["exemplar_v2"] * 4))) == 1
    assert len(server.asked) == 1


def test_a_file_put_there_by_hand_is_taken(server, content):
    released.cache().mkdir(parents=True)
    (released.cache() / "moco_v2_places.pth").write_bytes(content)
    assert load_encoder("moco_v2_places").name == "resnet10w8"
    assert server.asked == []


def test_list(server, content, capsys):
    server.files["/exemplar_v2.pth"] = content
    assert main(["weights", "list", "--download", "exemplar_v2"]) == 0
    assert capsys.readouterr().out == f"{released.cache() / 'exemplar_v2.pth'}\n"
    assert main(["weights", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 25
    assert lines[0].split(maxsplit=1) == ["exemplar_v1", "Exemplar v1 on ImageNet (Table 3)"]
    assert lines[1].split()[:2] == ["exemplar_v2", "here"]
    assert lines[-1] == f"folder of downloads: {released.cache()}"
    assert main(["weights", "list", "--urls"]) == 0
    assert f"{released.URL}/moco_v2_palces.pth" in capsys.readouterr().out
    assert main(["weights", "list", "--download", "exemplar_v3"]) == 2
    assert "but got 'exemplar_v3'" in capsys.readouterr().err
