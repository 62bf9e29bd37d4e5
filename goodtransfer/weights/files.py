"""Reading and writing weight files: tensors and plain types only, never code."""

import json
import os
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from goodtransfer.encoders import Encoder, Normalization

HEADER = "goodtransfer"


@dataclass(frozen=True)
class Provenance:
    """Where an encoder comes from, kept in the header of its file.

    Attributes:
        encoder: name that rebuilds the architecture.
        normalization: the input convention, or None.
        origin: plain values: method, data, seed, versions, ...
    """

    encoder: str
    normalization: Normalization | None
    origin: Mapping[str, Any] = field(default_factory=dict)


def save_encoder(
    path: str | Path, encoder: Encoder, *, head: nn.Linear | None = None, **origin: Any
) -> Path:
    """Write an encoder (and a linear classifier on it) as safetensors with its provenance.

    Args:
        path: ends in ``.safetensors``.
        encoder: its weights and input convention.
        head: e.g. the classifier of SupervisedCE.
        origin: JSON values on where the weights come from.
    """
    path = Path(path)
    if path.suffix != ".safetensors" or not path.parent.is_dir():
        raise ValueError(
            f"Expected a file ending in .safetensors in a folder that exists, but got {path}."
        )
    tensors = dict(encoder.state_dict())
    if head is not None:
        tensors |= {f"head.{name}": value for name, value in head.state_dict().items()}
    header = Provenance(encoder.name, encoder.normalization, origin)
    metadata = {"format": "pt", HEADER: json.dumps(asdict(header))}
    temporary = path.with_name(path.name + ".tmp")
    contiguous = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    temporary.write_bytes(save(contiguous, metadata=metadata))  # save_file would bar other users
    os.replace(temporary, path)
    return path


def read_provenance(path: str | Path) -> Provenance | None:
    """What one of our files or Lightning checkpoints says of itself; None for anybody else's."""
    path = Path(path).expanduser()
    if path.suffix == ".ckpt":
        content = _load_torch(path)
        if not isinstance(content, dict) or "input" not in content:
            return None
        return Provenance(
            content["hyper_parameters"]["encoder"],
            _normalization(content["input"]["normalization"]),
        )
    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(HEADER)
    except SafetensorError as error:
        raise ValueError(f"Expected a safetensors file, but {path} is damaged: {error}") from error
    if text is None:
        return None
    header = json.loads(text)
    return Provenance(header["encoder"], _normalization(header["normalization"]), header["origin"])


def _normalization(values: Any) -> Normalization | None:
    return values and Normalization(*(tuple(channels) for channels in values))


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a file by name: safetensors, or a torch file loaded without running code.

    Raises:
        FileNotFoundError: naming the path.
        ValueError: for a damaged file, one that holds more than tensors, or no tensors.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"Expected a weight file, but there is none at {path}.")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(
                f"Expected a safetensors file, but {path} is damaged: {error}"
            ) from error
    content = _load_torch(path)
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    tensors = (
        {k: v for k, v in content.items() if isinstance(v, Tensor)}
        if isinstance(content, dict)
        else {}
    )
    if not tensors:
        raise ValueError(f"Expected a state dict in {path}, but found no tensors by name.")
    return tensors


def _load_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        raise ValueError(
            f"Expected {path} to hold tensors and plain types only, but it cannot be loaded safely: "
            f"{(str(error).splitlines() or [type(error).__name__])[0]}"
        ) from error
