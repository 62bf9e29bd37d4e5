"""The report: one HTML file that needs nothing else, from the results that are there."""

import base64
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from goodtransfer.study.bars import half_width
from goodtransfer.study.figures import figures, finished
from goodtransfer.study.plan import Cell, Study
from goodtransfer.study.results import Results
from goodtransfer.study.tables import Row, Table
from goodtransfer.study.transfers import HEADINGS, LOWER_IS_BETTER, NOT_RANKED, TRANSFERS

# Kind of cell -> how it deviates from the paper, part by part.
Fidelity = dict[str, list[str]]


@dataclass
class Line:
    """A row of a printed table."""

    label: str
    fidelity: Fidelity
    paper: dict[str, str] = field(default_factory=dict)
    ours: dict[str, str] = field(default_factory=dict)
    best: set[str] = field(default_factory=set)


def write_report(study: Study) -> Path:
    """Write ``report.html``: tables, curves, views, fidelity lines of all finished cells."""
    try:
        from jinja2 import Environment, PackageLoader
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "The report needs matplotlib and jinja2: pip install 'goodtransfer[study]'"
        ) from error
    results = Results(study)
    tables = {table.name: table for table, _ in study.rows()}
    cells = study.cells()
    runs = [(cell, results.run(cell.key)) for cell in cells if results.done(cell.key)]
    page = Environment(loader=PackageLoader("goodtransfer.study", "."), autoescape=True)
    html = page.get_template("report.html.j2").render(
        study=study,
        tables=[_printed(study, table, results) for table in tables.values()],
        sentence=_sentence,
        names=HEADINGS,
        figures=figures(study, results),
        pictures=_pictures(study, results),
        views=_views(study, results, "views.png", "views"),
        samples=_views(study, results, "samples.png", "data"),
        runs=runs,
        done=len(runs),
        total=len(cells),
        cpu=sum(run["cpu_seconds"] for _, run in runs),
    )
    path = study.out / "report.html"
    path.write_text(html, encoding="utf-8")
    return path


def _printed(
    study: Study, table: Table, results: Results
) -> tuple[Table, list[str], list[Line], Fidelity]:
    """A table, the columns that some row has a number in, its lines, and what these share."""
    lines = _lines(study, table, results)
    kinds = {kind for row in study.rows_of(table) for kind in study.cells_of(table, row, 0)}
    columns = [
        name
        for kind, transfer in TRANSFERS.items()
        for name in transfer.columns
        if kind in kinds and any(name in line.ours or name in line.paper for line in lines)
    ]
    return table, columns, *_shared(lines)


def _lines(study: Study, table: Table, results: Results) -> list[Line]:
    lines, values = [], {}
    for row in study.rows_of(table):
        measured, fidelity = _measured(study, table, row, results)
        line = Line(row.label, fidelity)
        line.paper = {c: f"{v:.1f}" for c, v in row.paper.items() if v is not None}
        line.ours = {c: _text(v) for c, v in measured.items()}
        values[row.label] = {f"ours {c}": statistics.mean(v) for c, v in measured.items()}
        values[row.label] |= {f"paper {c}": v for c, v in row.paper.items() if v is not None}
        lines.append(line)
    for column in {c for found in values.values() for c in found}:
        name = column.partition(" ")[2]
        column_values = [found[column] for found in values.values() if column in found]
        best = (min if name in LOWER_IS_BETTER else max)(column_values)
        for line in lines if len(column_values) > 1 and name not in NOT_RANKED else ():
            if values[line.label].get(column) == best:
                line.best.add(column)
    return lines


def _measured(
    study: Study, table: Table, row: Row, results: Results
) -> tuple[dict[str, list[float]], Fidelity]:
    """Column -> value per finished seed, and how the row's cells deviate."""
    found: dict[str, list[float]] = {}
    fidelity: Fidelity = {}
    for seed in range(study.seeds):
        cells = study.cells_of(table, row, seed)
        fidelity = {
            kind: [part for part in cell.fidelity.split("; ") if part != "as in the paper"]
            for kind, cell in cells.items()
        }
        for kind, transfer in TRANSFERS.items():
            if kind in cells and results.done(cells[kind].key):
                for name, value in results.metrics(cells[kind].key).items():
                    if name in transfer.columns:
                        found.setdefault(name, []).append(value)
    return found, fidelity


def _shared(lines: list[Line]) -> tuple[list[Line], Fidelity]:
    """The lines without the deviations that all of them have, and these; one line keeps its own."""
    shared: Fidelity = {}
    for kind in {kind for line in lines for kind in line.fidelity} if len(lines) > 1 else ():
        all_parts = [line.fidelity[kind] for line in lines if kind in line.fidelity]
        shared[kind] = [p for p in all_parts[0] if all(p in parts for parts in all_parts)]
    for line in lines:
        line.fidelity = {
            kind: [part for part in parts if part not in shared.get(kind, ())]
            for kind, parts in line.fidelity.items()
        }
    return lines, shared


def _sentence(fidelity: Fidelity) -> str:
    """Pretraining first and unnamed, then each transfer under its name."""
    return "; ".join(
        ("" if kind == "pretrain" else f"{kind}: ") + "; ".join(fidelity[kind])
        for kind in ("pretrain", *TRANSFERS)
        if fidelity.get(kind)
    )


def _text(values: Sequence[float]) -> str:
    mean = f"{statistics.mean(values):.1f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {half_width(values):.1f}"


def _views(study: Study, results: Results, file: str, attribute: str) -> list[tuple[str, str]]:
    """(recipe or data set, PNG as base64) of each that some pretraining used."""
    pictures: dict[str, str] = {}
    for cell in finished(study, results, "pretrain"):
        name = getattr(cell.row, attribute)
        if name not in pictures:
            pictures |= dict(_picture(results, cell, file, name))
    return list(pictures.items())


def _pictures(study: Study, results: Results) -> list[tuple[str, list[tuple[str, str]]]]:
    """(heading, (row, PNG as base64) of every cell) of each kind of transfer that left pictures."""
    sections = []
    for kind, transfer in TRANSFERS.items():
        pictures = [
            picture
            for cell in finished(study, results, kind)
            for file in sorted(results.folder(cell.key).glob("*.png"))
            for picture in _picture(results, cell, file.name, _short(cell))
        ]
        if pictures:
            sections.append((transfer.section, pictures))
    return sections


def _short(cell: Cell) -> str:
    return cell.row.title + ("" if cell.epoch is None else f", epoch {cell.epoch}")


def _picture(results: Results, cell: Cell, name: str, title: str) -> list[tuple[str, str]]:
    file = results.folder(cell.key) / name
    return [(title, base64.b64encode(file.read_bytes()).decode())] if file.is_file() else []


def summary(study: Study) -> list[tuple[str, dict[str, Any]]]:
    """(label, measured columns) of every row, for scripts."""
    results = Results(study)
    return [(r.label, _measured(study, t, r, results)[0]) for t, r in study.rows()]
