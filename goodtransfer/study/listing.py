"""What a study holds: every row, what it changes, the command that pretrains it, and its cells."""

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from goodtransfer.study.fit_command import fit_command
from goodtransfer.study.plan import Cell, Study
from goodtransfer.study.protocol import MOCO_V2, Pretraining, text
from goodtransfer.study.results import Results
from goodtransfer.study.tables import Row, Table

Known = dict[str, Pretraining]


def lines(study: Study) -> Iterator[str]:
    """Table by table, row by row. A line that begins with a key is a cell, and no cell has two."""
    results, listed = Results(study), set[str]()
    table, known = None, Known()
    for now, row in study.rows():
        if now is not table:
            table, known = now, {MOCO_V2.name: study.scale.apply(MOCO_V2)}
            yield from ([""] if listed else [])
            yield table.title
        run = study.scale.apply(row.pretraining)
        yield f"\n  {row.label}"
        yield f"    {_told(row.label, run, known)}"
        known.setdefault(row.label, run)
        for seed in range(study.seeds):
            yield from _run(study, now, row, run, seed, results, listed)
    if any(study.drawn(row.pretraining.data) for _, row in study.rows()):
        yield "\nThe toy world is drawn by the first cell that needs it."
    if left_out := sorted(study.left_out()):
        yield f"\nLeft out: what needs {', '.join(left_out)}."


def _run(
    study: Study,
    table: Table,
    row: Row,
    run: Pretraining,
    seed: int,
    results: Results,
    listed: set[str],
) -> Iterator[str]:
    """The command, and then the cells."""
    keep = None if row.kept is None else run.kept_epoch(row.kept)
    if command := fit_command(study, run, seed, keep=keep):
        yield f"    {shlex.join(command)}"
    for cell in study.cells_of(table, row, seed).values():
        if cell.key in listed:
            yield f"    as above: {cell.key}  {cell.title}"
            continue
        listed.add(cell.key)
        yield from _cell(cell, done=results.done(cell.key))


def _cell(cell: Cell, *, done: bool) -> Iterator[str]:
    yield f"{cell.key}  {'done' if done else 'open'}  {cell.title}"
    yield f"{'':24}{cell.fidelity}"


def _told(row: str, run: Pretraining, known: Known) -> str:
    """What a run changes of that of the rows above, or MoCo-v2's, that it is nearest to."""
    changes = {label: differences(run.values(), other.values()) for label, other in known.items()}
    label = min(changes, key=lambda label: len(changes[label]))
    if changes[label]:
        return f"differs from {label}: {'; '.join(changes[label])}"
    return f"{label} itself" if label == row else f"pretrained as {label}"


def differences(run: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """What a run has otherwise than another, value by value.

    >>> differences({"method": "MoCoV1", "mlp": False}, {"mlp": True, "dim": 128})
    ['method MoCoV1', 'mlp False (not True)', 'no dim']
    """
    found = []
    for name in {**run, **other}:
        words = name.replace("_", " ")
        if name not in run:
            found.append(f"no {words}")
        elif name not in other:
            found.append(f"{words} {text(run[name])}")
        elif run[name] != other[name]:
            found.append(f"{words} {text(run[name])} (not {text(other[name])})")
    return found
