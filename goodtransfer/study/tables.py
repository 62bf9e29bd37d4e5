"""The paper's tables as rows of pretrainings, with its numbers. Tables are views over runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml

from goodtransfer.study.protocol import (
    EXEMPLAR_V1,
    EXEMPLAR_V2,
    K1M,
    K64,
    MOCO_V1,
    MOCO_V2,
    PIXELS,
    SUPERVISED,
    UNTRAINED,
    Pretraining,
)

# In the order of Tables 7, 8 and 9.
COLUMNS = ("acc", "voc07_AP", "voc07_AP50", "voc07_AP75")


@dataclass(frozen=True)
class Row:
    """A line of a table: its pretraining, and what the paper printed (None where it did not)."""

    label: str
    pretraining: Pretraining
    paper: dict[str, float | None]


@dataclass(frozen=True)
class Table:
    """A table of the paper, as far as its columns are measured.

    Attributes:
        name: as ``--table`` takes it.
        title: a heading.
        columns: metric names, which are those of ``paper.yaml``.
        rows: top to bottom.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


@cache
def paper() -> dict[str, Any]:
    """The paper's numbers (``paper.yaml``), with the repairs and conflicts of its text."""
    text = resources.files("goodtransfer.study").joinpath("paper.yaml").read_text("utf-8")
    numbers: dict[str, Any] = yaml.safe_load(text)
    return numbers


def _table3() -> Table:
    """With the columns that Table 9 adds to it."""
    known = {row.name: row for row in (MOCO_V1, EXEMPLAR_V1, MOCO_V2, EXEMPLAR_V2)}
    rows = [
        Row(r["method"], known[r["method"]], _printed(r["voc"])) for r in paper()["table9"]["rows"]
    ]
    return Table("3", "Tables 3 and 9: Exemplar against MoCo", COLUMNS, tuple(rows))


def _printed(values: Sequence[float]) -> dict[str, float | None]:
    """Values in the order of the paper's VOC tables, by column."""
    return dict(zip(COLUMNS, values, strict=True))


def _table10() -> Table:
    known = {row.name: row for row in (MOCO_V1, EXEMPLAR_V1, MOCO_V2, EXEMPLAR_V2)}
    sizes = {65536: K64, "1M": K1M}
    rows = []
    for r in paper()["table10"]["rows"]:
        pretraining = known[r["method"]].but(queue_size=sizes[r["k"]], temperature=r["tau"])
        label = f"{r['method']}, K={'64K' if r['k'] == K64 else r['k']}, τ={r['tau']}"
        rows.append(Row(label, pretraining, {"acc": r["acc"]}))
    return Table("10", "Table 10: queue size and temperature", ("acc",), tuple(rows))


def _supervised() -> Table:
    rows = (Row("Supervised", SUPERVISED, _printed(paper()["table8"]["supervised_voc"][0])),)
    return Table("supervised", "Supervised pretraining (Tables 2 and 8, ImageNet)", COLUMNS, rows)


def _floor() -> Table:
    """What no pretraining gives: every method must be above it for the rest to mean anything."""
    nothing: dict[str, float | None] = dict.fromkeys(COLUMNS)
    rows = (Row("Pixels", PIXELS, nothing), Row("Untrained", UNTRAINED, nothing))
    return Table("floor", "No pretraining", COLUMNS, rows)


TABLES = {table.name: table for table in (_table3(), _supervised(), _floor(), _table10())}
