"""From a name, a file or a module to an encoder with its own input convention."""

import os
import warnings
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from torchvision.models import get_model

from goodtransfer.encoders import (
    Encoder,
    Normalization,
    as_encoder,
    build,
    from_torchvision,
    torchvision_input,
)
from goodtransfer.weights.files import SUFFIXES, read
from goodtransfer.weights.match import match, read_trunk
from goodtransfer.weights.released import fetched, place
from goodtransfer.weights.report import Report, named


def load_encoder(
    encoder: str | Path | nn.Module,
    *,
    normalize: Normalization | Literal["auto"] | None = "auto",
    partial: bool = False,
    dialect: str | None = None,
) -> Encoder:
    """An encoder, from whatever the user holds.

    Args:
        encoder: a name (``resnet50``, ``torchvision:NAME``, ``timm:NAME``: untrained); a weight
            file of ours or a ResNet of any dialect: depth, stem and input convention are read off
            it; ``NAME@FILE``, that architecture with that file; ``torchvision:NAME@pretrained`` or
            ``timm:NAME@pretrained``, downloaded by that library; a released name of the paper
            (``exemplar_v2``: ``released.RELEASED``) or an address, downloaded once; or a module.
        normalize: input convention; ``"auto"`` takes the weights' own, None switches it off.
        partial: allow names that are missing or left over; a warning counts them.
        dialect: whose names they are, for a file that does not tell: ``dialects.DIALECTS``.

    Raises:
        FileNotFoundError: for a path without a file.
        ValueError: for an unknown name, or a file that does not fit, with the names at fault.
        ModuleNotFoundError: for ``timm:`` without timm, naming the extra.

    >>> encoder = load_encoder("resnet10w8", normalize=Normalization((0.5,) * 3, (0.5,) * 3))
    >>> encoder.name, encoder.channels[5], encoder.normalization.mean
    ('resnet10w8', 64, (0.5, 0.5, 0.5))
    """
    if isinstance(encoder, str | Path):
        encoder = _resolve(encoder, partial, dialect)
    found = as_encoder(encoder)
    if normalize != "auto":
        found.set_normalization(normalize)
    return found


def inspect(encoder: str | Path, *, dialect: str | None = None) -> Report:
    """What a weight file holds, and how it fits the encoder that it is for.

    Args:
        encoder: the file, or ``NAME@FILE`` to see how it fits that architecture.
        dialect: whose names they are, for a file that does not tell: ``dialects.DIALECTS``.

    Raises:
        FileNotFoundError: for a path without a file.
        ValueError: for a file that cannot be read, or no file at all.

    >>> from tempfile import TemporaryDirectory
    >>> from goodtransfer.weights import save_encoder
    >>> with TemporaryDirectory() as folder:
    ...     path = save_encoder(f"{folder}/mine.pth", build("resnet10w8"), to="torchvision")
    ...     report = inspect(path)
    >>> report.dialect, report.architecture
    ('torchvision, timm or smp, without a classifier', 'resnet10w8')
    >>> len(report.matched), report.wanted, report.missing
    (72, 72, ())
    """
    name, path = name_and_path(encoder)
    if path is None:
        raise ValueError(f"Expected a weight file or NAME@FILE, but got {encoder}.")
    return match(path, name, dialect).report


def load_head(path: str | Path) -> nn.Linear | None:
    """The linear classifier that one of our encoder files holds.

    Args:
        path: the file.

    Returns:
        The classifier, features (N, C) to logits; None where the file has none, as a method's
        projection is none, or is not ours.

    Raises:
        FileNotFoundError: for a path without a file.
        ValueError: for a file that cannot be read.

    >>> from tempfile import TemporaryDirectory
    >>> from goodtransfer.weights import save_encoder
    >>> head = nn.Linear(64, 20)
    >>> with TemporaryDirectory() as folder:
    ...     path = save_encoder(f"{folder}/mine.safetensors", build("resnet10w8"), head=head)
    ...     load_head(path)
    Linear(in_features=64, out_features=20, bias=True)
    """
    tensors, _, provenance, classifies = read(fetched(str(path)))
    if provenance is None or not classifies or "head.weight" not in tensors:
        return None
    weight, bias = tensors["head.weight"], tensors.get("head.bias")
    if bias is None or weight.ndim != 2 or bias.shape != weight.shape[:1]:
        raise ValueError(
            f"Expected a linear classifier in {path}, but found head.weight of {tuple(weight.shape)} "
            f"and head.bias of {None if bias is None else tuple(bias.shape)}: the file is damaged."
        )
    return _linear(weight, bias)


def load_classifier(spec: str | Path, *, dialect: str | None = None) -> nn.Linear | None:
    """The linear classifier beside the trunk in a file of ours, of torchvision, timm or transformers.

    Projections to 128 dimensions and the like are none.

    Args:
        spec: what :func:`load_encoder` takes: a file, ``NAME@FILE``, or a name, which has none.
        dialect: whose names they are, for a file that does not tell: ``dialects.DIALECTS``.

    Returns:
        The classifier, features (N, C) to logits, or None.

    Raises:
        FileNotFoundError: for a path without a file.
        ValueError: for a file that cannot be read.

    >>> from tempfile import TemporaryDirectory
    >>> from goodtransfer.weights import save_encoder
    >>> head = nn.Linear(64, 20)
    >>> with TemporaryDirectory() as folder:
    ...     path = save_encoder(
    ...         f"{folder}/theirs.pth", build("resnet10w8"), head=head, to="torchvision"
    ...     )
    ...     load_head(path), load_classifier(path)
    (None, Linear(in_features=64, out_features=20, bias=True))
    """
    name, path = name_and_path(spec)
    if path is None or path == "pretrained":
        return None
    if (head := load_head(path)) is not None or name is not None:
        return head
    trunk = read_trunk(path, read(path), dialect)
    return _linear(*found) if trunk and (found := trunk.classifier()) else None


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    head = nn.Linear(weight.shape[1], weight.shape[0])
    head.load_state_dict({"weight": weight, "bias": bias})
    return head


def describe_input(encoder: Encoder) -> dict[str, Any]:
    """The input convention, and what rebuilds the encoder, in plain types for a checkpoint."""
    normalization = encoder.normalization and [list(v) for v in encoder.normalization]
    return {"normalization": normalization, "encoder": encoder.name}


def restore_input(encoder: Encoder, described: dict[str, Any]) -> None:
    """Set what :func:`describe_input` wrote."""
    values = described["normalization"]
    encoder.set_normalization(values and Normalization(*(tuple(v) for v in values)))


def name_and_path(spec: str | Path) -> tuple[str | None, str | None]:
    """What a user's word names: an architecture, a file, or both; what is elsewhere is downloaded."""
    if isinstance(spec, str) and place(spec):
        return None, fetched(spec)
    whole = Path(spec).expanduser()
    if isinstance(spec, Path) or whole.is_file():  # whatever its name, also with an @
        return None, str(whole)
    name, at, path = spec.partition("@")
    if at:
        return name, str(Path(fetched(path)).expanduser()) if path != "pretrained" else path
    if whole.suffix in SUFFIXES or "/" in name or os.sep in name:
        return None, str(whole)
    return name, None


def _resolve(spec: str | Path, partial: bool, dialect: str | None) -> Encoder:
    name, path = name_and_path(spec)
    if path is None:
        return build(str(name))
    if path == "pretrained":
        return _pretrained(str(name))
    found = match(path, name, dialect)
    report = found.report
    if report.fault and not (partial and report.bearable):
        raise ValueError(report.fault)
    notes = list(report.notes)
    if report.fault:
        notes.append(f"{len(report.matched)} of {report.wanted} tensors match, "
                     f"{named('missing', report.missing)}")  # fmt: skip
    if notes:
        warnings.warn(f"{path}: {'; '.join(notes)}.", stacklevel=3)
    return found.filled()


def _pretrained(name: str) -> Encoder:
    """Weights that torchvision or timm download by themselves."""
    source, _, model = name.partition(":")
    if source == "torchvision":
        encoder = from_torchvision(name, get_model(model, weights="DEFAULT"))
        encoder.set_normalization(torchvision_input(model))
        return encoder
    if source == "timm":
        encoder = build(name)  # says so where timm is missing
        import timm

        encoder.network.load_state_dict(
            timm.create_model(model, pretrained=True, num_classes=0).state_dict()
        )
        return encoder
    raise ValueError(
        "Expected torchvision:NAME@pretrained or timm:NAME@pretrained (the libraries that can "
        f"download weights), but got {name}@pretrained."
    )
