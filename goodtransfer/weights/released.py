"""The paper's released files by name, and weights at an address: downloaded once, checked ever after."""

import hashlib
import os
import re
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from filelock import FileLock
from tqdm import tqdm

URL = (
    "https://frontiers.blob.core.windows.net/pretraining/checkpoints/pil_pretrained_models/"
    "good_transfer"
)
_STEPS = ("f", "fr", "frc", "frcg")
_AUGMENTATIONS = ("flip", "crop", "colour jitter", "grayscale")
_SETS = {
    "imagenet1over10": "a tenth of ImageNet", "imagenet100": "100 classes of ImageNet",
    "places": "Places", "celeba": "CelebA", "coco": "COCO", "synthia": "Synthia",
}  # fmt: skip


def _released() -> dict[str, str]:
    words = {
        "exemplar_v1": "Exemplar v1 on ImageNet (Table 3)",
        "exemplar_v2": "Exemplar v2 on ImageNet (Table 3)",
    }
    for family, method in (("moco_v2", "MoCo-v2"), ("supervised", "cross-entropy")):
        words[f"{family}_imagenet"] = f"{method} on ImageNet (Tables 1 and 2)"
        for count, step in enumerate(_STEPS, start=1):
            ladder = ", ".join(_AUGMENTATIONS[:count])
            words[f"{family}_imagenet_aug_{step}"] = f"{method} on ImageNet, {ladder} (Table 1)"
        words |= {
            f"{family}_{name}": f"{method} on {data} (Table 2)" for name, data in _SETS.items()
        }
    return words


# Name -> what it is.
RELEASED = _released()
# The authors' own spelling.
_FILES = {"moco_v2_places": "moco_v2_palces"}


def address(name: str) -> str:
    """Where the authors keep the file of a released name."""
    return f"{URL}/{_FILES.get(name, name)}.pth"


def cache() -> Path:
    """The folder of downloads: ``weights`` in ``GOODTRANSFER_CACHE``, or in ~/.cache/goodtransfer."""
    home = os.environ.get("GOODTRANSFER_CACHE")
    return (Path(home) if home else Path.home() / ".cache" / "goodtransfer") / "weights"


def place(source: str) -> Path | None:
    """Where the download of a released name or an address lies or will lie; None for other words."""
    if source in RELEASED:
        return cache() / f"{source}.pth"
    if re.match(r"https?://", source):
        digest = hashlib.sha256(source.encode()).hexdigest()[:8]
        file = re.sub(r"[^\w.-]", "_", re.split(r"[?#]", source)[0].rpartition("/")[2])[-80:]
        return cache() / f"{digest}-{file or 'weights'}"
    return None


def fetched(source: str) -> str:
    """The path of a released name or an address, downloaded if need be; another word as it is."""
    path = place(source)
    if path is None:
        return source
    return str(download(address(source) if source in RELEASED else source, path))


def download(url: str, path: Path) -> Path:
    """The file at an address, once: a break is resumed, and what comes is held to the first hash.

    Beside it lie NAME.part while it is incomplete, and NAME.sha256, recorded at the first download.

    Raises:
        ConnectionError: without a connection, or after a break; what has come stays.
        ValueError: for a file that is not what was first downloaded.
    """
    if path.is_file():  # it came there whole
        _check(path, path)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with FileLock(f"{path}.lock"):  # of several processes one downloads
        if path.is_file():
            return path
        try:
            _transfer(url, part)
        except HTTPError as error:
            raise ConnectionError(
                f"Expected a weight file at {url}, but the server says {error.code} {error.reason}: "
                f"look whether it has moved, or get it elsewhere and put it at {path}."
            ) from error
        except (OSError, HTTPException) as error:
            have = part.stat().st_size if part.is_file() else 0
            raise ConnectionError(
                f"Expected to download {url}, but the connection failed "
                f"({getattr(error, 'reason', None) or error}) after {have:,} bytes: try again, it "
                f"goes on from there, or get the file elsewhere and put it at {path}."
            ) from error
        _check(part, path)
        os.replace(part, path)
        _mark(part).unlink(missing_ok=True)
    return path


def _mark(part: Path) -> Path:
    """What tells the version of an incomplete file."""
    return part.with_name(part.name + ".version")


def _transfer(url: str, part: Path) -> None:
    """Fetch what is not there yet."""
    mark = _mark(part)
    have = part.stat().st_size if part.is_file() and mark.is_file() else 0
    request = Request(url, headers={"User-Agent": "goodtransfer"})
    if have:
        # The server sends the rest only if its file is the one that was begun.
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", mark.read_text(encoding="ascii"))
    try:
        response = urlopen(request, timeout=30)
    except HTTPError as error:
        if error.code != 416:  # there is no rest
            raise
        part.unlink()
        return _transfer(url, part)
    with response:
        resumed = response.status == 206
        have = have if resumed else 0
        left = response.headers.get("Content-Length")
        version = response.headers.get("ETag") or response.headers.get("Last-Modified")
        if version and not version.startswith("W/"):
            mark.write_text(version, encoding="ascii")
        elif not resumed:
            mark.unlink(missing_ok=True)
        total = have + int(left) if left else None
        _copy(response, part, resumed, total)
    if total is not None and part.stat().st_size != total:
        raise ConnectionError(f"it broke off, of {total:,} bytes")
    return None


def _copy(response: Any, part: Path, resumed: bool, total: int | None) -> None:
    name = part.name.removesuffix(".part")
    start = part.stat().st_size if resumed else 0
    with (
        part.open("ab" if resumed else "wb") as file,
        tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=name, disable=None) as bar,
    ):
        while block := response.read(1 << 20):
            file.write(block)
            bar.update(len(block))


def _check(file: Path, path: Path) -> None:
    """Hold a file to the hash recorded for ``path``, or record it."""
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    record = path.with_name(path.name + ".sha256")
    if not record.is_file():
        record.write_text(f"{found}  {path.name}\n", encoding="ascii")
        return
    known = record.read_text(encoding="ascii").partition(" ")[0]
    if known != found:
        raise ValueError(
            f"Expected {file} to be what was downloaded first (sha256 {known[:16]}...), but it is "
            f"{found[:16]}...: it was damaged or exchanged; remove it, and {record.name} too if the "
            "new one is meant."
        )
