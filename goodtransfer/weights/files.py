"""Reading weight files: tensors and plain types only, never code.

What a file is, is told by its first bytes. Safetensors are parsed by that library; torch's files by
``torch.load(weights_only=True)``; other pickles, detectron2's, by a reader that knows numpy arrays alone
(:mod:`.pickles`). Settings that old checkpoints carry (argparse.Namespace and its like) become inert
stand-ins; any other foreign class or function is refused by its name, before anything runs.
"""

import json
import math
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from goodtransfer.encoders import Normalization
from goodtransfer.foreign import plain
from goodtransfer.weights.expansion import check_expansion
from goodtransfer.weights.pickles import HARMLESS, read_arrays

HEADER = "goodtransfer"
SUFFIXES = {".safetensors", ".pth", ".pt", ".ckpt", ".tar", ".pkl", ".bin", ".torch", ".pyth"}
# Where the tensors lie inside of a checkpoint; VISSL's lie deepest.
_WRAPPERS = (
    "state_dict", "model_state_dict", "classy_state_dict", "base_model", "model", "model_state",
    "trunk", "blobs",
)  # fmt: skip
_STAND_INS: list[Any] = [(stand_in, name) for name, stand_in in HARMLESS.items()]
_LONGEST = 1000  # letters of a name
_ZIP, _LEGACY = b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


@dataclass(frozen=True)
class Provenance:
    """Where an encoder comes from, kept in the header of its file.

    Attributes:
        encoder: name that rebuilds the architecture.
        normalization: the input convention, or None.
        origin: plain values: method, data, seed, versions, ...

    >>> Provenance("resnet50", None, {"method": "MoCoV2", "seed": 0}).origin["method"]
    'MoCoV2'
    """

    encoder: str
    normalization: Normalization | None
    origin: Mapping[str, Any] = field(default_factory=dict)


class Content(NamedTuple):
    """A file, read.

    Attributes:
        tensors: by name.
        around: what the dict around the tensors says of itself: its names, and its author.
        provenance: of our own files and Lightning checkpoints.
        classifies: whether the ``head`` of such a file, if any, is a classifier. In a checkpoint it may
            be a projection, as MoCo v1's; only modules with a classifier have ``num_classes``.
    """

    tensors: dict[str, Tensor]
    around: tuple[str, ...]
    provenance: Provenance | None
    classifies: bool = True


def read(path: str | Path) -> Content:
    """A weight file of any kind, without running code.

    Raises:
        FileNotFoundError: naming the path; for a folder, too.
        ValueError: for a damaged file, one that holds more than tensors and plain types,
            or no tensors.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        inside = sorted(p.name for p in path.iterdir() if p.suffix in SUFFIXES)[:3]
        raise FileNotFoundError(
            f"Expected a weight file, but {path} is a folder: name a file in it"
            + (f", e.g. {', '.join(inside)}." if inside else ".")
        )
    if not path.is_file():
        raise FileNotFoundError(f"Expected a weight file, but there is none at {path}.")
    with path.open("rb") as file:
        start = file.read(16)
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        return _read_safetensors(path)
    if not start:
        raise ValueError(f"Expected a weight file, but {path} is empty.")
    if start.startswith((_ZIP, _LEGACY)) or path.suffix != ".pkl":
        content = _load_torch(path)
    else:
        check_expansion(path, pickles=1)
        content = read_arrays(path)
    own, around = _of_checkpoint(path, content), []
    settings = content.get("hyper_parameters") if isinstance(content, dict) else None
    classifies = not isinstance(settings, dict) or "num_classes" in settings
    if isinstance(content, dict):
        # Texts alone: to write out lists of lists can take for ever.
        told = (*content, content.get("__author__"))
        around = [name for name in told if isinstance(name, str)]
    for key in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    tensors = _tensors(content)
    if not tensors:
        raise ValueError(f"Expected a state dict in {path}, but found no tensors by name.")
    _check_sizes(path, tensors)
    around += _pixel_statistics(tensors)
    return Content(tensors, tuple(around), own, classifies)


def _pixel_statistics(tensors: dict[str, Tensor]) -> list[str]:
    """What a detector's own mean and deviation tell of its input; they are taken out."""
    mean, std = tensors.pop("pixel_mean", None), tensors.pop("pixel_std", None)
    if mean is None or mean.numel() != 3:
        return []
    if mean.flatten()[0] >= mean.flatten()[2]:
        return ["pixel_mean of RGB"]
    divided = std is not None and bool((std != 1).any())
    return [] if divided else ["pixel_mean of BGR"]  # BGR that is divided is neither kind


def read_provenance(path: str | Path) -> Provenance | None:
    """What one of our files or Lightning checkpoints says of itself; None for anybody else's.

    Args:
        path: such files end in ``.safetensors``, ``.ckpt`` or ``.pkl``; no other is opened.

    Raises:
        FileNotFoundError: for such a path without a file.
        ValueError: for a file that cannot be read.

    >>> from tempfile import TemporaryDirectory
    >>> from goodtransfer.encoders import build
    >>> from goodtransfer.weights import save_encoder
    >>> with TemporaryDirectory() as folder:
    ...     path = save_encoder(f"{folder}/mine.safetensors", build("resnet10w8"), seed=7)
    ...     read_provenance(path).encoder
    'resnet10w8'
    """
    path = Path(path).expanduser()
    if path.suffix == ".safetensors":
        return _read_safetensors(path, header_only=True).provenance
    return read(path).provenance if path.suffix in (".ckpt", ".pkl") else None


def _read_safetensors(path: Path, *, header_only: bool = False) -> Content:
    try:
        with safe_open(path, "pt") as file:
            own = (file.metadata() or {}).get(HEADER)
            names = [] if header_only else list(file.keys())
            tensors = {name: file.get_tensor(name) for name in names}
    except (
        Exception
    ) as error:  # it names types that torch lacks, claims sizes that nothing has, ...
        reason = plain(str(error).splitlines()[0]) if str(error) else type(error).__name__
        raise ValueError(f"Expected a safetensors file, but {path} is damaged: {reason}") from error
    if not (tensors or header_only or own):  # an encoder of pixels has none
        raise ValueError(f"Expected a state dict in {path}, but found no tensors by name.")
    return Content(tensors, (), _provenance(path, own))


def _provenance(path: Path, text: str | None) -> Provenance | None:
    """Our header, which is JSON."""
    if text is None:
        return None
    try:
        header = json.loads(text)
        normalization = _normalization(header["normalization"])
        return Provenance(_name(header["encoder"]), normalization, dict(header["origin"]))
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        raise ValueError(
            f"Expected {path} to tell where its weights come from, but its header is damaged "
            f"({type(error).__name__}): it was not written by this library, or changed since."
        ) from error


def _of_checkpoint(path: Path, content: Any) -> Provenance | None:
    """What our Lightning checkpoints, and the pickles that we write for detectron2, say."""
    if not isinstance(content, dict):
        return None
    if isinstance(content.get(HEADER), str):
        return _provenance(path, content[HEADER])
    settings, given = content.get("hyper_parameters"), content.get("input")
    if not isinstance(settings, dict) or not isinstance(given, dict):
        return None
    try:
        name = _name(given.get("encoder") or settings.get("encoder", "")).partition("@")[0]
        return Provenance(name, _normalization(given.get("normalization")))
    except (TypeError, ValueError, OverflowError):
        return None


def _name(text: Any) -> str:
    """What an encoder can be called."""
    if not isinstance(text, str) or len(text) > _LONGEST:
        raise TypeError
    return text


def _normalization(values: Any) -> Normalization | None:
    if not values:
        return None
    mean, std = (tuple(float(channel) for channel in channels) for channels in values)
    if not all(map(math.isfinite, mean + std)) or min(std) <= 0:
        raise ValueError("no mean and standard deviation")
    return Normalization(mean, std)


def _tensors(content: Any) -> dict[str, Tensor]:
    if not isinstance(content, dict):
        return {}
    found = {}
    for name, value in content.items():
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(value)
        if isinstance(value, Tensor) and isinstance(name, str):
            found[name] = value.detach()
    return found


# --- torch's files


def _load_torch(path: Path) -> Any:
    _check_zip(path)
    check_expansion(
        path, pickles=5
    )  # of old torch: a number, a version, the machine, content, storages
    try:
        with torch.serialization.safe_globals(_STAND_INS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken pickle can make the reader raise anything
        raise ValueError(
            f"Expected {path} to hold tensors and plain types only, but it cannot be loaded safely: "
            f"{_reason(error)}"
        ) from error


def _reason(error: Exception) -> str:
    """What torch found, without its advice to trust the file."""
    text = str(error)
    named = re.search(r"GLOBAL (\S+) was not an allowed", text) or re.search(
        r"unsupported GLOBAL (\S+) whose module", text
    )
    if named:
        return (
            f"it asks for {plain(named[1])}, which is code or a whole object; save its state_dict() alone "
            "where it comes from, or get it as safetensors."
        )
    text = text.partition("WeightsUnpickler error: ")[2] or text
    return plain((text.strip().splitlines() or [type(error).__name__])[0])


def _check_zip(path: Path) -> None:
    """Refuse archives that are larger inside than outside."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            inside = sum(entry.file_size for entry in archive.infolist())
    except Exception as error:  # zipfile's of every kind
        raise ValueError(
            f"Expected a torch file, but {path} is damaged: {plain(str(error))}"
        ) from error
    size = path.stat().st_size
    if inside > size:
        raise ValueError(
            f"Expected a torch file, which is not compressed, but {path} of {size:,} bytes unpacks "
            f"to {inside:,}: it was not written by torch.save, and may be made to fill the memory."
        )


def _check_sizes(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that claim more than the file holds, as one that is repeated along an axis does."""
    size = path.stat().st_size
    for name, tensor in tensors.items():
        usual = tensor.layout == torch.strided and not (tensor.is_quantized or tensor.is_meta)
        if not usual or tensor.numel() * tensor.element_size() > size or len(name) > _LONGEST:
            raise ValueError(
                f"Expected {path} of {size:,} bytes to hold plain tensors, but {plain(name)} claims to be of "
                f"{tuple(tensor.shape)}, {tensor.dtype}, {tensor.layout}: get the weights elsewhere."
            )
