"""A file's tensors beside an encoder's: what is there, what lacks, and what is done about it."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from goodtransfer.encoders import Encoder, Normalization, ResNet, build
from goodtransfer.foreign import parsed_json, plain
from goodtransfer.weights.architecture import Architecture, read_architecture
from goodtransfer.weights.dialects import CAFFE, Dialect, recognise
from goodtransfer.weights.files import Content, Provenance, read
from goodtransfer.weights.report import Report, named

_CLASSIFIERS = ("fc.", "classifier.", "head.", "head_drop.")
_STATISTICS = re.compile(r"(?:bn\d|downsample\.1)\.running_(?:mean|var)")
_RESNET = re.compile(r"resnet\d+(?:w(\d+))?(?:-caffe)?")
_OF_RESNET = re.compile(r"(?:conv1|bn1|layer\d+)\.")
_PREFIXES = 100  # before the same names in one file that are tried; each takes a look at all names
# As in the files that torchvision itself downloads, and renames.
_OLD_DENSENET = re.compile(r"(\.denselayer\d+\.(?:norm|conv))\.([12])(?=\.)")
_NORM = re.compile(r"((?:.*\.)?(?:bn\d|downsample\.1))\.weight")


class Trunk(NamedTuple):
    """The ResNet in a file: its tensors in torchvision's names and for RGB, and what it is.

    ``added`` counts those that the file does not hold.
    """

    tensors: dict[str, Tensor]
    dialect: Dialect
    architecture: Architecture
    normalization: Normalization | None
    notes: list[str]
    added: int

    @property
    def prefix(self) -> str:
        """What stands before the trunk's names in the file."""
        return self.dialect.trunk.replace("\\", "")

    def __str__(self) -> str:
        words = self.dialect.words
        return f"{words}, below {self.prefix}" if self.prefix else words

    def classifier(self) -> tuple[Tensor, Tensor] | None:
        """Weight and bias of the linear layer of classes, where that is what ``fc`` is."""
        weight, bias = self.tensors.get("fc.weight"), self.tensors.get("fc.bias")
        if (
            self.dialect.name not in ("torchvision", "huggingface")
            or weight is None
            or bias is None
        ):
            return None
        return (weight, bias) if weight.ndim == 2 and bias.shape == weight.shape[:1] else None


class Match(NamedTuple):
    """An encoder, or None; the file's tensors in its names; and the report on both.

    A ResNet has no values yet, which would be drawn in vain: :meth:`filled` gives it some.
    """

    encoder: Encoder | None
    tensors: dict[str, Tensor]
    report: Report

    def filled(self) -> Encoder:
        """The encoder with the file's tensors; what is missing is as untrained."""
        if self.encoder is None:
            raise ValueError(self.report.fault)
        encoder, normalization = self.encoder, self.encoder.normalization
        if self.report.missing:
            encoder = build(encoder.name)
        elif encoder.mean.is_meta:
            encoder.to_empty(device="cpu")
            for name, counter in encoder.named_buffers():
                if name.endswith("num_batches_tracked"):
                    counter.zero_()
        encoder.set_normalization(normalization)
        encoder.network.load_state_dict(self.tensors, strict=False)
        return encoder


def match(path: str, name: str | None = None, dialect: str | None = None) -> Match:
    """Lay a weight file beside the encoder that it is for.

    Args:
        path: of the file.
        name: what builds the encoder; None reads it off the file.
        dialect: of a file whose names do not tell; see ``dialects.DIALECTS``.
    """
    content = read(path)
    trunk, own = read_trunk(path, content, dialect), content.provenance
    architecture = trunk.architecture if trunk else Architecture(None, "")
    name = name or _name(path, architecture, own, content)
    if architecture.name == f"{name}-caffe":
        name = architecture.name
    words = _words(path, trunk, own)
    added = trunk.added if trunk else 0
    if name is None:
        fault = architecture.lack or (
            f"Expected {path} to hold a ResNet with torchvision's names (conv1.weight, layer1.0...) "
            f"or those of another dialect, but its names begin with "
            f"{plain(min(content.tensors, default=''))!r}: "
            "give the architecture as NAME@FILE, e.g. timm:tf_efficientnet_lite0@FILE."
        )
        held = trunk.tensors if trunk else content.tensors
        report = Report(
            path, words, None, architecture.stem, trunk.normalization if trunk else None, own,
            aside=len(content.tensors) - len(held) + added, dtypes=_dtypes(held), fault=fault,
            parameters=_count(held, _weights(held)),
        )  # fmt: skip
        return Match(None, {}, report)
    try:
        with torch.device("meta" if _RESNET.fullmatch(name) else "cpu"):
            encoder = build(name)
    except ValueError as error:  # the name may be that of the file's header
        raise ValueError(
            f"Expected {path} to be of a network that can be built: {error}"
        ) from error
    if own is not None:
        encoder.set_normalization(own.normalization)
    elif isinstance(encoder, ResNet):
        if trunk and trunk.normalization:
            encoder.set_normalization(trunk.normalization)
    elif (beside := _normalization(_settings_beside(Path(path)))) is not None:
        encoder.set_normalization(beside)
    return _fit(path, encoder, content, trunk, words, architecture.stem)


def _words(path: str, trunk: Trunk | None, own: Provenance | None) -> str:
    """Whose file it is."""
    if own is None or Path(path).suffix == ".pkl":
        who = "goodtransfer, " if own else ""
        return f"{who}{trunk}" if trunk else "names of no ResNet"
    prefix = trunk.prefix if trunk else ""
    return f"goodtransfer, below {prefix}" if prefix else "goodtransfer"


def read_trunk(path: str, content: Content, asked: str | None = None) -> Trunk | None:
    """The ResNet in a file, whoever wrote it; None for another network."""
    found = recognise(path, content.tensors.keys(), content.around, asked)
    if found is None:
        return None
    renamed = {found.strip(name): tensor for name, tensor in content.tensors.items()}
    tensors = {name: tensor for name, tensor in renamed.items() if name is not None}
    notes, held = [found.note] if found.note else [], len(tensors)
    settings = _settings_beside(Path(path))
    if found.name == "detectron":  # with others, a norm without statistics may be group norm
        _as_batch_norm(tensors, notes)
    if found.caffe and (first := tensors.get("conv1.weight")) is not None and first.ndim == 4:
        tensors["conv1.weight"] = first.flip(1)
        notes.append("it takes BGR in 0 ... 255: conv1 is turned to RGB, and std set to 1/255")
    caffe = found.caffe or settings.get("downsample_in_bottleneck") is True
    return Trunk(
        tensors,
        found,
        read_architecture(path, tensors, caffe, settings.get("architecture")),
        CAFFE if found.caffe else _normalization(settings),
        notes,
        len(tensors) - held,
    )


def _as_batch_norm(tensors: dict[str, Tensor], notes: list[str]) -> None:
    """Give layers of scale and shift the statistics that make batch norm one, as detectron2 does."""
    layers = [m[1] for name in tensors if (m := _NORM.fullmatch(name))]
    bare = [layer for layer in layers if f"{layer}.running_mean" not in tensors]
    for layer in bare:
        ones = torch.ones_like(tensors[f"{layer}.weight"])
        tensors[f"{layer}.running_mean"], tensors[f"{layer}.running_var"] = 0 * ones, ones - 1e-5
    if bare:
        notes.append("its layers of scale and shift become batch norm of mean 0 and variance 1")


def _settings_beside(path: Path) -> dict[str, Any]:
    """What the JSON files of a model from the Hugging Face hub say, if they lie beside the weights."""
    found: dict[str, Any] = {}
    for file in ("config.json", "preprocessor_config.json"):
        try:
            found |= parsed_json(path.with_name(file), at_most=2**24)
        except (OSError, ValueError, TypeError):
            continue
    return found


def _normalization(settings: Mapping[str, Any]) -> Normalization | None:
    """Mean and standard deviation, by timm's names and by transformers'."""
    given = settings.get("pretrained_cfg")
    timm: dict[str, Any] = given if isinstance(given, dict) else {}
    mean: Any = timm.get("mean", settings.get("image_mean"))
    std: Any = timm.get("std", settings.get("image_std"))
    try:
        found = Normalization(tuple(map(float, mean)), tuple(map(float, std)))
    except (TypeError, ValueError, OverflowError):
        return None
    usual = len(found.mean) == len(found.std) == 3 and all(map(math.isfinite, sum(found, ())))
    return found if usual and min(found.std) > 0 else None


def _name(
    path: str, read_off: Architecture, own: Provenance | None, content: Content
) -> str | None:
    """The encoder that the tensors tell; for the rest, the one that the header names."""
    stated = own.encoder if own else None
    if read_off.name or not stated:
        return stated if stated == f"{read_off.name}-caffe" else read_off.name
    width = _RESNET.fullmatch(stated)
    longest = max((max(v.shape, default=1) for v in content.tensors.values()), default=0)
    if width and int(width[1] or 64) > longest:
        raise ValueError(
            f"Expected {path} to hold {stated}, as its header says, but none of its tensors is longer "
            f"than {longest}: the file is damaged."
        )
    return stated


def _fit(
    path: str, encoder: Encoder, content: Content, trunk: Trunk | None, words: str, stem: str
) -> Match:
    """Compare names, shapes and types."""
    wanted = encoder.network.state_dict()
    given = _best(wanted, content.tensors, trunk)
    matched = {name: tensor for name, tensor in given.items() if name in wanted}
    # Files from before torch 0.4.1, and FrozenBN, have no counters, and nothing depends on them.
    missing = [n for n in wanted if n not in given and not n.endswith("num_batches_tracked")]
    unexpected = [n for n in given if n not in wanted and _of_trunk(n, encoder)]
    odd = [
        f"{n} {tuple(v.shape)} instead of {tuple(wanted[n].shape)}"
        for n, v in matched.items()
        if v.shape != wanted[n].shape
    ]
    untrue = [
        f"{n} {v.dtype}"
        for n, v in matched.items()
        if wanted[n].is_floating_point() and not v.is_floating_point()
    ]
    notes = list(trunk.notes) if trunk and given is trunk.tensors else []
    dtypes = _dtypes({n: v for n, v in matched.items() if wanted[n].is_floating_point()})
    if others := [dtype for dtype in dtypes if dtype != "float32"]:
        notes.append(f"{', '.join(others)} is cast to float32")
    added = trunk.added if trunk else 0
    nothing = bool(wanted) and not matched  # an encoder of pixels has no weights
    hopeless = bool(odd or untrue or nothing)
    fault = ""
    if hopeless or missing or unexpected:
        fault = (
            f"Expected {path} to hold {encoder.name}, but {len(matched)} of {len(wanted)} tensors "
            f"match, {named('missing', missing)}, {named('unexpected', unexpected)}, "
            f"{named('of another shape', odd)}"
            + (f", {named('not of floats', untrue)}" if untrue else "")
            + ": name the right architecture as NAME@FILE"
            + ("." if hopeless else ", or load with partial=True.")
        )
    if missing and not (hopeless or unexpected) and all(map(_STATISTICS.search, missing)):
        fault = (
            f"Expected {path} to hold {encoder.name}, but {len(matched)} of {len(wanted)} tensors "
            f"match, and {named('statistics of batch norm missing', missing)}: save the state_dict() "
            "and not the parameters alone, or load with partial=True and train it further."
        )
    report = Report(
        path, words, encoder.name, stem, encoder.normalization, content.provenance,
        len(wanted), tuple(matched), tuple(missing), tuple(unexpected),
        len(content.tensors) + added - len(matched) - len(unexpected), dtypes,
        _count(matched, {name for name, _ in encoder.network.named_parameters()}),
        tuple(notes), fault, not hopeless,
    )  # fmt: skip
    return Match(encoder, matched, report)


def _of_trunk(name: str, encoder: Encoder) -> bool:
    """Whether a name is of the trunk, and not of a head, prototypes, ... beside it."""
    if isinstance(encoder, ResNet):
        return bool(_OF_RESNET.match(name))
    return not name.removeprefix("features.").startswith(_CLASSIFIERS)


def _best(
    wanted: Mapping[str, Tensor], tensors: dict[str, Tensor], trunk: Trunk | None
) -> dict[str, Tensor]:
    """The file's tensors under the names that agree with the encoder's most often."""
    tensors = {_OLD_DENSENET.sub(r"\1\2", name): value for name, value in tensors.items()}
    candidates = [trunk.tensors] if trunk else []
    if trunk:  # torchvision's ResNets that are kept as they are
        candidates.append({f"features.{name}": value for name, value in trunk.tensors.items()})
    first = next(iter(wanted), "")
    prefixes = {name.removesuffix(first) for name in tensors if name.endswith(first)} | {""}
    for prefix in sorted(prefixes, key=len)[:_PREFIXES]:
        candidates.append(
            {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}
        )
    return max(candidates, key=lambda names: len(names.keys() & wanted.keys()))


def _dtypes(tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    return tuple(sorted({str(v.dtype).removeprefix("torch.") for v in tensors.values()}))


def _weights(tensors: Mapping[str, Tensor]) -> set[str]:
    return {n for n in tensors if n.rpartition(".")[2] in ("weight", "bias")}


def _count(tensors: Mapping[str, Tensor], names: set[str]) -> int:
    return sum(tensor.numel() for name, tensor in tensors.items() if name in names)
