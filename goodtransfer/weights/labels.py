"""Encoders on a command line, each under a name of its own."""

import re
from collections.abc import Sequence
from pathlib import Path


def labelled(given: Sequence[str | Path]) -> dict[str, str]:
    """Label -> what :func:`load_encoder` takes; a label is given as LABEL=ENCODER, or made from it.

    Raises:
        ValueError: for two of one label.

    >>> labelled(["mine=a.pth", "timm:resnet18"])
    {'mine': 'a.pth', 'timm-resnet18': 'timm:resnet18'}
    """
    specs: dict[str, str] = {}
    for word in map(str, given):
        named = None if Path(word).exists() else re.fullmatch(r"(\w[\w.-]*)=(.+)", word)
        label, spec = named.groups() if named else (_label(word), word)
        if label in specs or label == "original":
            raise ValueError(
                f"Expected a name of its own for every encoder, but got {label!r} twice, or for the "
                f"original: name it, as in other={spec}."
            )
        specs[label] = spec
    return specs


def _label(spec: str) -> str:
    path = Path(spec.partition("@")[2] or spec)
    return re.sub(r"[^\w.-]+", "-", path.stem if path.is_file() else spec)
