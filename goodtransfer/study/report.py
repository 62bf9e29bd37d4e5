"""The report: one HTML file that needs nothing else, from the results that are there."""

import base64
import io
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from goodtransfer.study.plan import Cell, Study
from goodtransfer.study.protocol import Pretraining
from goodtransfer.study.results import Results
from goodtransfer.study.tables import Row, Table

COLUMNS = {"acc": "acc", "acc_lr30": "acc, lr 30", "acc_head": "acc_head"}
CURVES = {
    "loss": "pretraining loss",
    "pretext_acc": "positive ranked first, %",
    "online_train_acc": "online linear probe on training views, %",
}


@dataclass
class Line:
    """A row of a printed table."""

    label: str
    fidelity: str
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
        tables=[(table, _lines(study, table, results)) for table in tables.values()],
        columns=COLUMNS,
        curves=_figures(study, results, _distinct(study)),
        views=_views(study, results, _distinct(study)),
        runs=runs,
        done=len(runs),
        total=len(cells),
        cpu=sum(run["cpu_seconds"] for _, run in runs),
    )
    path = study.out / "report.html"
    path.write_text(html, encoding="utf-8")
    return path


def _lines(study: Study, table: Table, results: Results) -> list[Line]:
    lines, values = [], {}
    for row in table.rows:
        measured, fidelity = _measured(study, row, results)
        line = Line(row.label, fidelity)
        line.paper = {c: f"{v:.1f}" for c, v in row.paper.items() if v is not None}
        line.ours = {c: _text(v) for c, v in measured.items()}
        values[row.label] = {f"ours {c}": statistics.mean(v) for c, v in measured.items()}
        values[row.label] |= {f"paper {c}": v for c, v in row.paper.items() if v is not None}
        lines.append(line)
    for column in {c for found in values.values() for c in found}:
        column_values = [found[column] for found in values.values() if column in found]
        for line in lines:
            if len(column_values) > 1 and values[line.label].get(column) == max(column_values):
                line.best.add(column)
    return lines


def _measured(study: Study, row: Row, results: Results) -> tuple[dict[str, list[float]], str]:
    """Column -> value per finished seed, and the fidelity line."""
    found: dict[str, list[float]] = {}
    fidelity = ""
    for seed in range(study.seeds):
        _, readout = study.cells_of(row.pretraining, seed)
        fidelity = readout.fidelity
        if results.done(readout.key):
            for name, value in results.metrics(readout.key).items():
                if name in COLUMNS:
                    found.setdefault(name, []).append(value)
    return found, fidelity


def _text(values: Sequence[float]) -> str:
    mean = f"{statistics.mean(values):.1f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(values) / len(values) ** 0.5:.1f}"


def _distinct(study: Study) -> list[Cell]:
    """The pretraining cell of every distinct row, first seed."""
    seen: dict[str, Cell] = {}
    for _, row in study.rows():
        cell = study.cells_of(row.pretraining, 0)[0]
        seen.setdefault(cell.key, cell)
    return list(seen.values())


def _figures(study: Study, results: Results, cells: Iterable[Cell]) -> list[tuple[str, str]]:
    """(caption, SVG) of each curve that some run logged."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figures = []
    histories = [(cell, results.curves(cell.key)) for cell in cells if results.done(cell.key)]
    for name, caption in CURVES.items():
        figure, axes = plt.subplots(figsize=(5.2, 3.4), layout="constrained")
        for cell, history in histories:
            points = [(row["step"], row[name]) for row in history if name in row]
            if points:
                steps, values = zip(*points, strict=True)
                style = "-" if len(points) > 12 else ".-"
                axes.plot(steps, _smooth(values), style, label=_short(cell.row), linewidth=1.3)
        if axes.lines:
            axes.set(xlabel="step", ylabel=caption)
            axes.grid(alpha=0.25)
            axes.legend(fontsize=8, frameon=False)
            buffer = io.StringIO()
            unnamed = dict.fromkeys(("Creator", "Date", "Format", "Type"))
            figure.savefig(buffer, format="svg", metadata=unnamed)
            svg = buffer.getvalue()
            figures.append((caption, svg[svg.index("<svg") :]))
        plt.close(figure)
    return figures


def _smooth(values: Sequence[float]) -> list[float]:
    """A running mean over a twelfth of the curve; short curves stay as they are."""
    reach = len(values) // 24
    windows = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    return [statistics.mean(window) for window in windows]


def _short(row: Pretraining) -> str:
    queue = row.arguments.get("queue_size")
    return row.name if queue is None else f"{row.name} K={queue} τ={row.arguments['temperature']}"


def _views(study: Study, results: Results, cells: Iterable[Cell]) -> list[tuple[str, str]]:
    """(recipe, PNG as base64) of each recipe that some run used."""
    pictures: dict[str, str] = {}
    for cell in cells:
        file = results.folder(cell.key) / "views.png"
        if file.is_file() and cell.row.views not in pictures:
            pictures[cell.row.views] = base64.b64encode(file.read_bytes()).decode()
    return list(pictures.items())


def summary(study: Study) -> list[tuple[str, dict[str, Any]]]:
    """(label, measured columns) of every row, for scripts."""
    results = Results(study)
    return [(row.label, _measured(study, row, results)[0]) for _, row in study.rows()]
