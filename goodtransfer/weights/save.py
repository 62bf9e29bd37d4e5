"""Writing encoders: our own safe format, and the names of other libraries."""

import io
import json
import os
import pickle
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torchvision.models import get_model

from goodtransfer.encoders import IMAGENET, Encoder, ResNet, build
from goodtransfer.weights.dialects import to_detectron2
from goodtransfer.weights.files import HEADER, Provenance

Form = Literal["safetensors", "torchvision", "timm", "smp", "detectron2"]
SUFFIXES_OF: dict[str, tuple[str, ...]] = {
    "safetensors": (".safetensors",),
    "torchvision": (".pth", ".pt", ".safetensors"),
    "timm": (".pth", ".pt", ".bin", ".safetensors"),
    "smp": (".pth", ".pt", ".safetensors"),
    "detectron2": (".pkl",),
}


def save_encoder(
    path: str | Path,
    encoder: Encoder,
    *,
    head: nn.Linear | None = None,
    to: Form = "safetensors",
    **origin: Any,
) -> Path:
    """Write an encoder (and a linear classifier on it).

    Args:
        path: ends in ``.safetensors``; in ``.pth`` or ``.pkl`` for others, see ``SUFFIXES_OF``.
        encoder: its weights and input convention.
        head: e.g. the classifier of SupervisedCE.
        to: whose names: ``safetensors`` is ours, which keeps the input convention and ``origin``;
            ``torchvision``, ``timm`` and ``smp`` are state dicts that those libraries load strictly
            (without ``head``, a network whose ``fc`` is taken away); ``detectron2`` is what its
            ``MODEL.WEIGHTS`` takes.
        origin: JSON values on where the weights come from.

    Raises:
        ValueError: for a path that could not be read again, and for weights that the other library's
            network would run differently, a ``head`` too: few networks but ResNets have a classifier
            that is one linear layer on the mean of the last map.

    Returns:
        The path.

    >>> from tempfile import TemporaryDirectory
    >>> from goodtransfer.weights import load_encoder, read_provenance
    >>> with TemporaryDirectory() as folder:
    ...     path = save_encoder(f"{folder}/mine.safetensors", build("resnet10w8"), seed=7)
    ...     load_encoder(path).name, read_provenance(path).origin
    ('resnet10w8', {'seed': 7})
    """
    path = Path(path).expanduser()
    if to not in SUFFIXES_OF:
        raise ValueError(f"Expected `to` to be one of {', '.join(SUFFIXES_OF)}, but got {to!r}.")
    if path.suffix not in SUFFIXES_OF[to] or not path.parent.is_dir():
        raise ValueError(
            f"Expected a file ending in {' or '.join(SUFFIXES_OF[to])} in a folder that exists, but "
            f"got {path}."
        )
    header = json.dumps(asdict(Provenance(encoder.name, encoder.normalization, origin)))
    if to == "safetensors":
        tensors = dict(encoder.state_dict())
        if head is not None:
            tensors |= {f"head.{name}": value for name, value in head.state_dict().items()}
        content = save(_plain(tensors), metadata={"format": "pt", HEADER: header})
    elif to == "detectron2":
        content = _detectron2(encoder, header)
    else:
        tensors = _foreign(encoder, head, to)
        content = save(tensors, metadata={"format": "pt"})
        if path.suffix != ".safetensors":
            torch.save(tensors, buffer := io.BytesIO())
            content = buffer.getvalue()
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)  # safetensors' save_file would bar other users
    os.replace(temporary, path)
    return path


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def _foreign(encoder: Encoder, head: nn.Linear | None, to: str) -> dict[str, Tensor]:
    """A state dict in the names of torchvision, timm or smp."""
    library = encoder.name.partition(":")[0]
    if not isinstance(encoder, ResNet) and library != to:
        raise ValueError(
            f"Expected a ResNet, or a network called {to}:NAME, to write for {to}, but got "
            f"{encoder.name}: write it as safetensors."
        )
    if encoder.name.endswith("-caffe"):
        raise ValueError(
            f"Expected strides in the 3x3, as {to}'s ResNets have them, but {encoder.name} strides "
            "in the 1x1 before: write it for detectron2, or as safetensors."
        )
    tensors = dict(encoder.network.state_dict())
    theirs = IMAGENET if isinstance(encoder, ResNet) else build(encoder.name).normalization
    if encoder.normalization is not None and encoder.normalization != theirs:
        mean, std = encoder.normalization
        if not isinstance(encoder, ResNet) or theirs is None or mean != theirs.mean:
            raise ValueError(
                f"Expected an encoder that takes mean {theirs and theirs.mean}, as {to}'s do, but "
                f"this one takes {mean}, which such a file cannot tell: write it as safetensors."
            )
        # conv1 of x / std is conv1 / std of x; a mean would show at the padded border.
        factor = torch.tensor(theirs.std) / torch.tensor(std)
        first = tensors["conv1.weight"]
        tensors["conv1.weight"] = first * factor.to(first).view(1, 3, 1, 1)
    if "features.conv1.weight" in tensors:  # a ResNet of torchvision's that is not ours
        tensors = {name.removeprefix("features."): value for name, value in tensors.items()}
    if head is not None:
        tensors |= _classifier(encoder, tensors, head)
    return _plain(tensors)


@torch.no_grad()
def _classifier(encoder: Encoder, tensors: dict[str, Tensor], head: nn.Linear) -> dict[str, Tensor]:
    """The head by the name that it has in its library, where a trial gives the same logits.

    Only a trial tells what else that network does between the last map and the classifier.
    """
    weights = head.state_dict()
    if isinstance(encoder, ResNet):
        return {f"fc.{key}": value for key, value in weights.items()}
    library, _, model = encoder.name.partition(":")
    theirs: Any
    if library == "timm":
        import timm

        theirs = timm.create_model(model, num_classes=head.out_features)
        name = theirs.pretrained_cfg["classifier"]
    else:
        theirs = get_model(model, num_classes=head.out_features)
        name = ([n for n, m in theirs.named_modules() if isinstance(m, nn.Linear)] or [""])[-1]
    found = {f"{name}.{key}": value for key, value in weights.items()}
    twin = build(encoder.name).eval()  # of no other device or mode
    twin.network.load_state_dict(encoder.network.state_dict())
    x = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    try:
        theirs.load_state_dict(tensors | found)
        features = twin(x, normalized=True)[5].mean((2, 3))
        expected = nn.functional.linear(features, *(v.to(features) for v in weights.values()))
        error = (theirs.eval()(x) - expected).abs().max()
        same = bool(error <= 1e-3 * expected.abs().max())
    except (RuntimeError, AssertionError):  # other names, shapes, or size of the input
        same = False
    if not same:
        raise ValueError(
            f"Expected a head that is all of the classifier of {encoder.name}, but there it is more than "
            "one linear layer on the mean of the last map: write it without a head (`weights convert "
            "--no-head`), or as safetensors."
        )
    return found


def _detectron2(encoder: Encoder, header: str) -> bytes:
    """A pickle of numpy arrays, to be matched by the ends of names (``matching_heuristics``).

    Its input convention, INPUT.FORMAT RGB with PIXEL_MEAN and PIXEL_STD of 255 times ours, is in a
    configuration there; our header says it, too, for whoever reads the file here.
    """
    if not isinstance(encoder, ResNet):
        raise ValueError(
            f"Expected a ResNet to write for detectron2, but got {encoder.name}: write it as "
            "safetensors."
        )
    model = {
        to_detectron2(name): value.numpy()
        for name, value in _plain(dict(encoder.state_dict())).items()
        if not name.endswith("num_batches_tracked")
    }
    content = {
        "model": model,
        "__author__": "goodtransfer",
        "matching_heuristics": True,
        HEADER: header,
    }
    return pickle.dumps(content, protocol=4)
