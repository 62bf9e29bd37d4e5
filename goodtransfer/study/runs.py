"""Each finished run as the report tells it: its whole configuration, where it ran, what came out."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from goodtransfer.study.plan import Cell, Study
from goodtransfer.study.results import Results


class Run(NamedTuple):
    """A finished cell.

    Attributes:
        cell: of the study.
        wall, cpu: seconds.
        configuration: all that decides its result, by name.
        environment: device and versions.
        metrics: the numbers it gave.
    """

    cell: Cell
    wall: float
    cpu: float
    configuration: dict[str, str]
    environment: Mapping[str, Any]
    metrics: Mapping[str, float]


def runs(study: Study, results: Results) -> dict[str, list[Run]]:
    """By the title of the pretraining that they are of."""
    found: dict[str, list[Run]] = {}
    for cell in study.cells():
        if results.done(cell.key):
            ran = results.run(cell.key)
            run = Run(
                cell,
                ran["wall_seconds"],
                ran["cpu_seconds"],
                configuration(study, cell),
                ran["environment"],
                results.metrics(cell.key),
            )
            found.setdefault(cell.row.title, []).append(run)
    return found


def configuration(study: Study, cell: Cell) -> dict[str, str]:
    """The pretraining's values; of a transfer its protocol's, and the encoder that it measured."""
    if cell.kind == "pretrain":
        values = cell.row.values()
    else:
        values = {"encoder of": " ".join(cell.needs), **study.scale.protocol(cell.kind).values()}
    text = {name.replace("_", " "): _text(value) for name, value in values.items()}
    if cell.epoch is not None:
        text["epoch"] = str(cell.epoch)
    return {**text, "seed": str(cell.seed), "scale": study.scale.name}


def _text(value: Any) -> str:
    return "/".join(map(_text, value)) if isinstance(value, tuple | list) else str(value)
