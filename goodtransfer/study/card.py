"""The report card: how well any weights transfer, where their detections fail, what they remember."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import nn

from goodtransfer.analysis.inversion import seeded
from goodtransfer.encoders import Encoder
from goodtransfer.study.engine import Engine
from goodtransfer.study.entries import Entry, printed
from goodtransfer.study.plan import Given, Study
from goodtransfer.study.results import Results
from goodtransfer.study.run import run_study
from goodtransfer.study.sources import ENCODERS, MEASURED_ON, ROOTS
from goodtransfer.study.tables import CARD, TABLES
from goodtransfer.weights import load_encoder, save_encoder
from goodtransfer.weights.labels import labelled

# What is said of an encoder: a module, or what `load_encoder` takes.
Encoders = Mapping[str, str | Path | nn.Module]


class Card(NamedTuple):
    """What a report card says.

    Attributes:
        path: of the page.
        entries: label -> column -> its number, with the paper's and its interval.

    >>> Card(Path("card/report.html"), {"mine": {}}).scores
    {'mine': {}}
    """

    path: Path
    entries: dict[str, dict[str, Entry]]

    @property
    def scores(self) -> dict[str, dict[str, float]]:
        """Label -> column -> mean over the seeds, of what is measured."""
        return {
            label: {c: entry.mean for c, entry in columns.items() if entry.mean is not None}
            for label, columns in self.entries.items()
        }


def report_card(
    encoders: Encoders | Sequence[str | Path],
    out: str | Path = "card",
    *,
    tasks: Sequence[str] = (),
    quick: bool = False,
    scale: str | None = None,
    seeds: int | None = None,
    voc_splits: tuple[str, str] | None = None,
    micro_batches: int | None = None,
    engine: Engine | None = None,
    **roots: str | Path,
) -> Card:
    """Transfer encoders to every task there are images for, and write one page about them.

    What is measured stays in ``out`` as cells of a study: a second call makes what is not there yet, and
    what was stopped goes on.

    Args:
        encoders: label -> a module or what :func:`load_encoder` takes, or the latter alone; the first
            is what the others are compared to.
        out: folder of ``report.html``, of ``report.md`` and ``report.csv`` beside it, and of the
            measurements.
        tasks: names among ``study.transfers.TRANSFERS``; none for all that there are images for.
        quick: on the drawn toy world, in minutes: an order of encoders, and nothing to compare with
            published numbers.
        scale: whose protocols are followed: ``"paper"`` unless said, ``"small"`` for a hundred photos.
        seeds: how often everything is measured.
        voc_splits: of VOC, to train and to test on.
        micro_batches: of a detector's step, for a GPU that does not hold its 16 images at once.
        engine: makes measurements side by side, in place of one after the other.
        roots: folders of images by name: ``imagenet``, ``voc``, ``coco``, ``cityscapes``,
            ``mini_imagenet``, ``celeba``.

    Raises:
        ValueError: for an encoder that cannot be read, two of one name, or no images.
        FileNotFoundError: for a folder without what it should hold.

    >>> report_card(["resnet10w8"], quick=True, voc="VOCdevkit")  # says so before anything is made
    Traceback (most recent call last):
    ValueError: Expected --quick without a scale or folders of images: it draws its own.
    """
    if quick and (scale or roots):
        raise ValueError("Expected --quick without a scale or folders of images: it draws its own.")
    named = encoders if isinstance(encoders, Mapping) else labelled(encoders)
    given: dict[str, Any] = {"tasks": tuple(tasks), "seeds": seeds, "voc_splits": voc_splits}
    given["micro_batches"] = micro_batches
    given |= {name: Path(root).resolve() for name, root in roots.items()}
    given |= {"scale": "quick" if quick else scale or "paper", "tables": (CARD,)}
    out = Path(out)
    # Wrong words and folders are told before large files are read.
    _opened(out, given, dict.fromkeys(named, Given("", "resnet50", "")))
    held = {label: _copied(label, encoder, out / ENCODERS) for label, encoder in named.items()}
    study = _opened(out, given, held)
    path = run_study(study, engine)
    lines = printed(study, TABLES[CARD], Results(study)).lines
    return Card(path, {line.label: line.entries for line in lines if not line.beside})


def _opened(out: Path, given: Mapping[str, Any], encoders: Mapping[str, Given]) -> Study:
    study = Study.open(out, **given, encoders=encoders)
    if all(cell.kind == "pretrain" for cell in study.cells()):
        raise ValueError(
            "Expected images to transfer to, but got none: --quick draws some, and "
            f"{', '.join(ROOTS[name][0] for name in ROOTS if name in MEASURED_ON)} name folders of them."
        )
    return study


def _copied(label: str, encoder: str | Path | nn.Module, folder: Path) -> Given:
    """Read an encoder of whatever form, and keep it in ours under its hash."""
    with seeded(0):  # for an encoder without weights
        found = load_encoder(encoder)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder) as aside:
        copy = save_encoder(Path(aside) / "encoder.safetensors", found)
        try:
            load_encoder(copy)
        except ValueError as error:
            raise ValueError(
                f"Expected a network that its name brings back, but {label} is {found.name}, a module "
                "of your own: measure it with the tasks themselves, such as Detection(module)."
            ) from error
        digest = _digest(found)
        os.replace(copy, folder / f"{digest}.safetensors")
    source = type(encoder).__name__ if isinstance(encoder, nn.Module) else str(encoder)
    return Given(source, found.name, digest)


def _digest(encoder: Encoder) -> str:
    """Of what it computes: the order within a safetensors file is not always the same."""
    found = hashlib.sha256(repr((encoder.name, encoder.normalization)).encode())
    for name, value in sorted(encoder.state_dict().items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]
