"""The report: one HTML page that needs nothing else, with Markdown and CSV beside it."""

import os
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from goodtransfer.study import whole
from goodtransfer.study.claims import findings
from goodtransfer.study.compared import compared, failures
from goodtransfer.study.entries import Printed, printed
from goodtransfer.study.fidelity import heading, sentence, sentences
from goodtransfer.study.plain import write_plain
from goodtransfer.study.plan import Study
from goodtransfer.study.results import Results
from goodtransfer.study.runs import runs
from goodtransfer.study.tables import CARD, TABLES
from goodtransfer.study.transfers import HEADINGS, LOWER_IS_BETTER


class Placed(NamedTuple):
    """An interactive figure of the page: what it shows, and the element that it is drawn into."""

    caption: str
    place: str


class Part(NamedTuple):
    """A table of the page, with the figures that belong to it."""

    printed: Printed
    curves: list[Placed]
    heat_maps: list[Placed]


def check_packages() -> None:
    """Refuse to begin, before anything is measured, where the report could not be written.

    Raises:
        ModuleNotFoundError: naming what to install.
    """
    if any(find_spec(name) is None for name in ("bokeh", "matplotlib", "jinja2")):
        raise ModuleNotFoundError(
            "The report needs bokeh, matplotlib and jinja2: pip install 'goodtransfer[study]'"
        )


def write_report(study: Study) -> Path:
    """Write ``report.html``, ``report.md`` and ``report.csv`` of all finished cells."""
    check_packages()
    from jinja2 import Environment, PackageLoader

    from goodtransfer.study.figures import figures
    from goodtransfer.study.images import sections

    begun, results = time.time_ns(), Results(study)
    tables = [printed(study, TABLES[name], results) for name in dict.fromkeys(study.tables)]
    card = CARD in study.tables
    # What is measured first; of encoders that a user holds the paper claims nothing.
    claims = [] if card else sorted(findings(study), key=lambda found: found.ours is None)
    parts, script = _interactive(study, results, tables)
    page = Environment(
        loader=PackageLoader("goodtransfer.study", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = page.get_template("report.html.j2").render(
        study=study,
        parts=parts,
        claims=claims,
        compared=compared(study) if card else [],
        failures=failures(study, results) if card else None,
        names=HEADINGS,
        figures=figures(study, results),
        sections=sections(study, results),
        runs=runs(study, results),
        total=len(study.cells()),
        script=script,
        lower=LOWER_IS_BETTER,
        fold=heading,
        sentence=sentence,
        sentences=sentences,
    )
    path = study.out / "report.html"
    write_plain(study, tables, claims)
    whole.write(path, html)
    # What others finished meanwhile is not in it, and is newer.
    os.utime(path, ns=(begun, begun))
    return path


def _interactive(study: Study, results: Results, tables: list[Printed]) -> tuple[list[Part], str]:
    """Each table with the places of its curves and heat maps, and the script that draws them."""
    from goodtransfer.study.curves import Curves
    from goodtransfer.study.heat_maps import heat_maps
    from goodtransfer.study.interactive import embedded

    curves = Curves(study, results)
    drawn = [
        (heat_maps(shown) if shown.table.name == "10" else [], curves.of(shown.table))
        for shown in tables
    ]
    script, places = embedded([figure for pair in drawn for kind in pair for figure in kind])
    rest = iter(places)
    parts = []
    for shown, pair in zip(tables, drawn, strict=True):
        maps, lines = ([Placed(f.caption, next(rest)) for f in kind] for kind in pair)
        parts.append(Part(shown, curves=lines, heat_maps=maps))
    return parts, script


def summary(study: Study) -> list[tuple[str, dict[str, Any]]]:
    """(label, measured columns) of every row of the study's own, for scripts."""
    results = Results(study)
    return [
        (line.label, {c: list(entry.ours) for c, entry in line.entries.items() if entry.ours})
        for table in (TABLES[name] for name in study.tables)
        for line in printed(study, table, results).lines
        if not line.beside
    ]
