"""From a name, a file or a module to an encoder with its own input convention."""

import re
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.models.resnet import BasicBlock, Bottleneck

from goodtransfer.encoders import (
    Encoder,
    Normalization,
    as_encoder,
    build,
    from_torchvision,
    resnet_name,
)
from goodtransfer.weights.files import read_provenance, read_tensors

# What wrappers put before the trunk's names; the longest that fits wins.
_PREFIXES = (
    "module.encoder_q.",
    "encoder_q.",
    "module.",
    "encoder.",
    "backbone.",
    "model.",
    "_orig_mod.",
    "",
)
_SUFFIXES = {".safetensors", ".pth", ".pt", ".ckpt", ".tar"}
_CLASSIFIERS = ("fc.", "classifier.", "head.", "head_drop.")


def load_encoder(
    encoder: str | Path | nn.Module,
    *,
    normalize: Normalization | Literal["auto"] | None = "auto",
    partial: bool = False,
) -> Encoder:
    """An encoder, from whatever the user holds.

    Args:
        encoder: a name (``resnet50``, ``torchvision:NAME``, ``timm:NAME``: untrained); a weight
            file (our safetensors, or a ResNet in torchvision's names: the depth is read off it);
            ``NAME@FILE``, that architecture with that file; ``torchvision:NAME@pretrained`` or
            ``timm:NAME@pretrained``, downloaded by that library; or a module.
        normalize: input convention; ``"auto"`` takes the weights' own, None switches it off.
        partial: allow names that are missing or left over.

    Raises:
        FileNotFoundError: for a path without a file.
        ValueError: for an unknown name, or a file that does not fit, with the names at fault.
    """
    found = as_encoder(encoder) if isinstance(encoder, nn.Module) else _resolve(encoder, partial)
    if normalize != "auto":
        found.set_normalization(normalize)
    return found


def load_head(path: str | Path) -> nn.Linear | None:
    """The linear classifier that one of our encoder files holds, or None."""
    if read_provenance(path) is None:
        return None
    tensors = read_tensors(path)
    if "head.weight" not in tensors:
        return None
    classes, features = tensors["head.weight"].shape
    head = nn.Linear(features, classes)
    head.load_state_dict({"weight": tensors["head.weight"], "bias": tensors["head.bias"]})
    return head


def describe_input(encoder: Encoder) -> dict[str, Any]:
    """The input convention in plain types, for a checkpoint."""
    return {"normalization": encoder.normalization and [list(v) for v in encoder.normalization]}


def restore_input(encoder: Encoder, described: dict[str, Any]) -> None:
    """Set what :func:`describe_input` wrote."""
    values = described["normalization"]
    encoder.set_normalization(values and Normalization(*(tuple(v) for v in values)))


def _resolve(spec: str | Path, partial: bool) -> Encoder:
    name, at, path = str(spec).partition("@")
    if at and path == "pretrained":
        return _pretrained(name)
    if not at:
        path = name
        if not (Path(path).suffix in _SUFFIXES or "/" in path):
            return build(name)
    tensors, provenance = read_tensors(path), read_provenance(path)
    if not at:
        name = provenance.encoder if provenance else _resnet_name(_trunk(tensors), path)
    encoder = _fill(build(name), path, tensors, partial)
    if provenance is not None:
        encoder.set_normalization(provenance.normalization)
    return encoder


def _pretrained(name: str) -> Encoder:
    """Weights that torchvision or timm download by themselves."""
    source, _, model = name.partition(":")
    if source == "torchvision":
        return from_torchvision(name, get_model(model, weights="DEFAULT"))
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


def _trunk(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the prefix that leads to a ResNet's stem, prefix removed."""
    for prefix in _PREFIXES:
        if f"{prefix}conv1.weight" in tensors:
            return {
                name.removeprefix(prefix): value
                for name, value in tensors.items()
                if name.startswith(prefix)
            }
    return tensors


def _resnet_name(tensors: dict[str, Tensor], path: str) -> str:
    """Read depth and width off a torchvision-style ResNet state dict."""
    stem = tensors.get("conv1.weight")
    if stem is None:
        raise ValueError(
            f"Expected {path} to hold a ResNet with torchvision's names (conv1.weight, layer1.0...)"
            f", but its names begin with {sorted(tensors)[0]!r}: give the architecture as NAME@FILE,"
            " e.g. timm:tf_efficientnet_lite0@FILE."
        )
    if stem.shape[-1] != 7:
        raise ValueError(
            f"Expected a 7x7 stem in {path}, but its conv1 is {tuple(stem.shape)}: a deep-stem or "
            "small-image ResNet is another network; give it as NAME@FILE or as a module."
        )
    depths = tuple(
        len({m[1] for name in tensors if (m := re.match(rf"layer{stage}\.(\d+)\.", name))})
        for stage in range(1, 5)
    )
    block = Bottleneck if "layer1.0.conv3.weight" in tensors else BasicBlock
    name = resnet_name(block, depths, width=stem.shape[0])
    if name is None:
        raise ValueError(
            f"Expected a ResNet of a known depth in {path}, but its stages have {depths} blocks of "
            f"kind {block.__name__}: build it yourself and pass the module."
        )
    return name


def _fill(encoder: Encoder, path: str, tensors: dict[str, Tensor], partial: bool) -> Encoder:
    """Load a foreign file and refuse what does not match to the last name."""
    network = encoder.network
    wanted = network.state_dict()
    candidates = [
        {n.removeprefix(p): v for n, v in tensors.items() if n.startswith(p)} for p in _PREFIXES
    ]
    given = max(candidates, key=lambda c: len(c.keys() & wanted.keys()))
    # Files from before torch 0.4.1 have no counters, and nothing depends on them.
    missing = [n for n in wanted if n not in given and not n.endswith("num_batches_tracked")]
    unexpected = [n for n in given if n not in wanted and not n.startswith(_CLASSIFIERS)]
    matched = {n: v for n, v in given.items() if n in wanted}
    shapes = [
        f"{n} {tuple(v.shape)} instead of {tuple(wanted[n].shape)}"
        for n, v in matched.items()
        if v.shape != wanted[n].shape
    ]
    nothing = bool(wanted) and not matched  # an encoder of pixels has no weights
    if shapes or nothing or ((missing or unexpected) and not partial):
        raise ValueError(
            f"Expected {path} to hold {encoder.name}, but {len(matched)} of {len(wanted)} tensors "
            f"match, {_named('missing', missing)}, {_named('unexpected', unexpected)}, "
            f"{_named('of another shape', shapes)}: name the right architecture as NAME@FILE"
            + ("." if shapes or nothing else ", or load with partial=True.")
        )
    network.load_state_dict(matched, strict=False)
    return encoder


def _named(what: str, names: list[str]) -> str:
    return f"{len(names)} {what}" + (f" ({', '.join(names[:3])}, ...)" if names else "")
