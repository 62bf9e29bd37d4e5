"""The paper's tables as rows of pretrainings, with its numbers. Tables are views over runs."""

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
    known = {row.name: row for row in (MOCO_V1, EXEMPLAR_V1, MOCO_V2, EXEMPLAR_V2)}
    printed = paper()["table3"]
    column = printed["columns"].index("acc")
    rows = [
        Row(r["method"], known[r["method"]], {"acc": r["values"][column]}) for r in printed["rows"]
    ]
    return Table("3", "Table 3: Exemplar against MoCo", ("acc",), tuple(rows))


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
    full = paper()["table2"]["supervised"][0]["values"][0]
    rows = (Row("Supervised", SUPERVISED, {"acc": full}),)
    return Table("supervised", "Supervised pretraining (Table 2, ImageNet)", ("acc",), rows)


def _floor() -> Table:
    """What no pretraining gives: every method must be above it for the rest to mean anything."""
    rows = (Row("Pixels", PIXELS, {"acc": None}), Row("Untrained", UNTRAINED, {"acc": None}))
    return Table("floor", "No pretraining", ("acc",), rows)


TABLES = {table.name: table for table in (_table3(), _supervised(), _floor(), _table10())}
