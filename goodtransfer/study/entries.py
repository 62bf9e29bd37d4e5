"""What a printed table holds: each number as the paper has it, as measured, and their difference."""

import math
from dataclasses import dataclass, field, replace
from statistics import fmean

from goodtransfer.study import footnotes
from goodtransfer.study.bars import Interval, half_width
from goodtransfer.study.fidelity import Fidelity, divided, fidelity
from goodtransfer.study.footnotes import Footnote, Marks
from goodtransfer.study.plan import Cell, Study
from goodtransfer.study.resamples import Resamples
from goodtransfer.study.results import Results
from goodtransfer.study.tables import CARD, Row, Table, beside
from goodtransfer.study.transfers import LOWER_IS_BETTER, NOT_RANKED, TRANSFERS

# Decimals of a column, as the paper prints it; one of every other.
DIGITS = {"lpips_uncalibrated": 2, "lpips": 3, "ssim": 3} | dict.fromkeys(
    ("novel_1shot", "novel_1shot_ci95", "novel_5shot", "novel_5shot_ci95"), 2
)


@dataclass(frozen=True)
class Entry:
    """A number of a table.

    Attributes:
        column: its metric.
        paper: as printed; None where the paper is silent.
        ours: as measured, one for each finished seed.
        keys: of the cells that measured it, in the order of ``ours``.
        images: 95 % interval over the test images, of a report card's single seed.
    """

    column: str
    paper: float | None = None
    ours: tuple[float, ...] = ()
    keys: tuple[str, ...] = ()
    images: Interval | None = None

    @property
    def mean(self) -> float | None:
        """Over the seeds; None where nothing is finished."""
        return fmean(self.ours) if self.ours else None

    @property
    def half(self) -> float | None:
        """Half the 95 % interval over the seeds; None for fewer than two, or where one gave NaN."""
        half = half_width(self.ours)
        return half if math.isfinite(half) else None

    @property
    def spread(self) -> str:
        """The interval in words: over the seeds, else over the images; empty without either."""
        if self.half is not None:
            return f"± {self.text(self.half)}"
        if self.images is not None:
            return f"{self.text(self.images.low)} to {self.text(self.images.high)}"
        return ""

    @property
    def delta(self) -> float | None:
        """Ours minus the paper's."""
        return None if self.mean is None or self.paper is None else self.mean - self.paper

    def text(self, value: float | None, sign: str = "") -> str:
        """A value with the decimals of the column, a dash for none; with sign "+" for a difference."""
        if value is None:
            return "–"
        return f"{value:{sign}.{DIGITS.get(self.column, 1)}f}".replace("-", "−")


@dataclass(frozen=True)
class Line:
    """A row of a printed table.

    Attributes:
        label: as the paper has it.
        entries: by column; one for every column that is shown.
        fidelity: what deviates here, and not in all rows.
        best: what is the best of its column, as ("ours", column) or ("paper", column).
        beside: whether it is the paper's alone, and nothing that could be measured.
    """

    label: str
    entries: dict[str, Entry]
    fidelity: Fidelity
    best: frozenset[tuple[str, str]] = frozenset()
    beside: bool = False

    @property
    def name(self) -> str:
        """The label, which of a row that is the paper's alone may be that of another row."""
        return f"the paper's {self.label}" if self.beside else self.label

    @property
    def printed(self) -> bool:
        """Whether the paper has a number here."""
        return any(entry.paper is not None for entry in self.entries.values())


@dataclass(frozen=True)
class Printed:
    """A table as it is laid out.

    Attributes:
        table: whose rows and columns they are.
        columns: those that some row has a number in.
        lines: top to bottom.
        shared: deviations that all rows have.
        notes: footnotes to what is shown.
        marks: of the footnotes, by (row or "", column or "").
    """

    table: Table
    columns: list[str]
    lines: list[Line]
    shared: Fidelity
    notes: list[Footnote] = field(default_factory=list)
    marks: Marks = field(default_factory=dict)


def printed(study: Study, table: Table, results: Results) -> Printed:
    """A table with what is finished of it."""
    rows = study.rows_of(table)
    cells = {row.label: _cells(study, table, row) for row in rows}
    kinds = {kind for seeds in cells.values() for kind in seeds[0]}
    known = [c for kind, t in TRANSFERS.items() if kind in kinds for c in t.columns]
    found = {row.label: _entries(row, cells[row.label], known, results) for row in rows}
    if table.name == CARD:
        found = {label: _over_images(entries, results) for label, entries in found.items()}
    columns = [c for c in known if any(e[c].ours or e[c].paper is not None for e in found.values())]
    own, shared = divided([fidelity(cells[row.label][0]) for row in rows])
    best = _best(found, columns)
    lines = [
        Line(label, {c: entries[c] for c in columns}, deviations, frozenset(best[label]))
        for (label, entries), deviations in zip(found.items(), own, strict=True)
    ]
    theirs = beside(columns) if table.name == CARD else table.quoted
    lines += [
        Line(label, {c: Entry(c, numbers.get(c)) for c in columns}, {}, beside=True)
        for label, numbers in theirs.items()
        if numbers.keys() & set(columns)
    ]
    notes, marks = footnotes.notes(table.name, list(found), columns)
    return Printed(table, columns, lines, shared, notes, marks)


def _cells(study: Study, table: Table, row: Row) -> list[dict[str, Cell]]:
    """By kind, for each seed."""
    return [study.cells_of(table, row, seed) for seed in range(study.seeds)]


def _entries(
    row: Row, seeds: list[dict[str, Cell]], columns: list[str], results: Results
) -> dict[str, Entry]:
    measured: dict[str, list[tuple[float, str]]] = {}
    for cells in seeds:
        for kind, cell in cells.items():
            if kind in TRANSFERS and results.done(cell.key):
                for name, value in results.metrics(cell.key).items():
                    if name in TRANSFERS[kind].columns:
                        measured.setdefault(name, []).append((value, cell.key))
    entries = {}
    for column in columns:
        pairs = measured.get(column, [])
        values, keys = (tuple(part) for part in zip(*pairs, strict=True)) if pairs else ((), ())
        entries[column] = Entry(column, row.paper.get(column), values, keys)
    return entries


def _over_images(entries: dict[str, Entry], results: Results) -> dict[str, Entry]:
    """With intervals, which one seed has no others than."""
    resamples = Resamples(results)
    return {
        column: replace(entry, images=resamples.interval(column, entry.keys[0]))
        if len(entry.keys) == 1
        else entry
        for column, entry in entries.items()
    }


def _best(
    found: dict[str, dict[str, Entry]], columns: list[str]
) -> dict[str, set[tuple[str, str]]]:
    """By row, where it is the best of several; equals share it."""
    best: dict[str, set[tuple[str, str]]] = {label: set() for label in found}
    for column in columns:
        for whose in ("ours", "paper") if column not in NOT_RANKED else ():
            values = {
                label: value
                for label, entries in found.items()
                if (value := getattr(entries[column], "mean" if whose == "ours" else "paper"))
                is not None
                and math.isfinite(value)
            }
            if len(values) > 1:
                first = (min if column in LOWER_IS_BETTER else max)(values.values())
                for label, value in values.items():
                    if value == first:
                        best[label].add((whose, column))
    return best
