"""Curves of a table's rows: what was logged while they were pretrained, and precision over recall."""

import json
from collections.abc import Iterator, Sequence

from goodtransfer.study.interactive import Curve, Interactive, lines
from goodtransfer.study.plan import Cell, Study
from goodtransfer.study.results import Results
from goodtransfer.study.tables import Table

LOGGED = {
    "loss": "pretraining loss",
    "pretext_acc": "positive ranked first, %",
    "online_train_acc": "online linear probe on training views, %",
}
PRECISION = "precision at IoU .5, mean of the classes"
POINTS = 200  # of a drawn curve, at most

# Label, and cells by kind.
Rows = Sequence[tuple[str, dict[str, Cell]]]
# Quantity -> (steps, values).
History = dict[str, tuple[list[float], list[float]]]


class Curves:
    """The curves of a study's tables; each file is read once.

    Args:
        study: whose rows are drawn, by their first seed.
        results: of its cells.
    """

    def __init__(self, study: Study, results: Results) -> None:
        self._study, self._results = study, results
        self._read: dict[str, History] = {}

    def of(self, table: Table) -> list[Interactive]:
        """A figure for each quantity that some row of the table has; a row looks alike in all."""
        rows = [(r.label, self._study.cells_of(table, r, 0)) for r in self._study.rows_of(table)]
        made = []
        for name, caption in LOGGED.items():
            logged = self._logged(rows, name)
            made += [lines(caption, "step", logged)] if logged else []
        precise = self._precise(rows)
        return made + ([lines(PRECISION, "recall", precise)] if precise else [])

    def _logged(self, rows: Rows, name: str) -> list[Curve]:
        """Rows that are measured after different epochs of one pretraining have one curve."""
        same: dict[str, list[tuple[int, str]]] = {}
        for look, label, key in self._finished(rows, "pretrain"):
            same.setdefault(key, []).append((look, label))
        found = []
        for key, named in same.items():
            (look, label), steps_and_values = named[0], self._history(key)[name]
            if len(named) > 1:
                label = label.partition(", epoch")[0]
            found += [Curve(label, *steps_and_values, look)] if steps_and_values[1] else []
        return found

    def _precise(self, rows: Rows) -> list[Curve]:
        """Its mean is AP50."""
        found = []
        for look, label, key in self._finished(rows, "voc07"):
            curve = json.loads((self._results.folder(key) / "precision.json").read_text())
            found.append(Curve(label, curve["recall"], curve["precision"], look))
        return found

    def _finished(self, rows: Rows, kind: str) -> Iterator[tuple[int, str, str]]:
        """Number, label and key of those whose cell of a kind is finished."""
        for number, (label, cells) in enumerate(rows):
            if kind in cells and self._results.done(cells[kind].key):
                yield number, label, cells[kind].key

    def _history(self, key: str) -> History:
        if key not in self._read:
            logged: History = {name: ([], []) for name in LOGGED}
            for row in self._results.curves(key):
                for name, (steps, values) in logged.items():
                    if name in row:
                        steps.append(row["step"])
                        values.append(row[name])
            self._read[key] = {name: thinned(*curve) for name, curve in logged.items()}
        return self._read[key]


def thinned(steps: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most ``POINTS`` points: means of neighbours; a short curve stays as it is.

    >>> thinned([1.0, 2.0], [5.0, 7.0])
    ([1.0, 2.0], [5.0, 7.0])
    """
    together = -(-len(steps) // POINTS)
    starts = range(0, len(steps), max(1, together))
    x, y = (
        [sum(part) / len(part) for part in (of[start : start + together] for start in starts)]
        for of in (steps, values)
    )
    return x, y
