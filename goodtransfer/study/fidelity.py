"""Fidelity lines of a table: what all of its rows share is told once, and a long line folds."""

from collections.abc import Mapping, Sequence

from goodtransfer.study.plan import Cell
from goodtransfer.study.transfers import TRANSFERS

# Kind of cell -> how it deviates from the paper, part by part.
Fidelity = dict[str, list[str]]
LONG = 240  # letters of a line that is folded


def fidelity(cells: Mapping[str, Cell]) -> Fidelity:
    """Of a row's cells, by kind."""
    return {
        kind: [part for part in cell.fidelity.split("; ") if part != "as in the paper"]
        for kind, cell in cells.items()
    }


def divided(rows: Sequence[Fidelity]) -> tuple[list[Fidelity], Fidelity]:
    """Each row's own deviations, and those that all of them have; a single row keeps its own."""
    shared: Fidelity = {}
    for kind in {kind for row in rows for kind in row} if len(rows) > 1 else ():
        every = [row[kind] for row in rows if kind in row]
        shared[kind] = [part for part in every[0] if all(part in parts for parts in every)]
    own = [
        {kind: [p for p in parts if p not in shared.get(kind, ())] for kind, parts in row.items()}
        for row in rows
    ]
    return own, shared


def sentences(line: Fidelity) -> list[str]:
    """One for each kind: pretraining first and unnamed, then the transfers under their names."""
    return [
        ("" if kind == "pretrain" else f"{kind}: ") + "; ".join(line[kind])
        for kind in ("pretrain", *TRANSFERS)
        if line.get(kind)
    ]


def sentence(line: Fidelity) -> str:
    """The whole of it; empty where nothing deviates."""
    return "; ".join(sentences(line))


def heading(line: Fidelity) -> str | None:
    """What a long line is folded under; None for one that is short enough to stand."""
    if len(sentence(line)) <= LONG:
        return None
    counts = [f"{kind} {len(line[kind])}" for kind in ("pretrain", *TRANSFERS) if line.get(kind)]
    return f"{sum(map(len, line.values()))} values differ from the paper's ({', '.join(counts)})"
