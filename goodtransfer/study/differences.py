"""Whether rows of a study differ: over the seeds, and over the test images."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

import numpy as np

from goodtransfer.study.bars import Difference, over_seeds
from goodtransfer.study.plan import Cell, Study
from goodtransfer.study.resamples import Floats, Resamples, middle
from goodtransfer.study.results import Results
from goodtransfer.study.tables import TABLES, Row, Table
from goodtransfer.study.transfers import TRANSFERS

# Table, row, column -> its number, or many in an array; KeyError where there is none.
Numbers = Callable[[str, str, str], Any]
# Of such numbers one more, element by element.
Effect = Callable[[Numbers], Any]


@dataclass(frozen=True)
class More:
    """How much more one row of a table has in a column than another."""

    table: str
    more: str
    than: str
    column: str

    def __call__(self, v: Numbers) -> Any:
        return v(self.table, self.more, self.column) - v(self.table, self.than, self.column)


class Effects:
    """What comes of a study's finished runs, and what it could be instead.

    Over the seeds it follows Student's t, paired by them; over the images all runs are read off the same
    resamples of them.

    Args:
        study: whose runs they are.
    """

    def __init__(self, study: Study) -> None:
        self._study, self._results = study, Results(study)
        self._resamples = Resamples(self._results)

    def __call__(self, effect: Effect) -> Difference | None:
        """The mean over the seeds that have all of its numbers; None where no seed has.

        Over images there is no interval unless each of its numbers has one: all of a kind of transfer,
        since others are measured on other images.
        """
        found = []
        for seed in range(self._study.seeds):
            with suppress(KeyError), np.errstate(invalid="ignore"):  # inf - inf is NaN
                found.append(effect(partial(self._number, seed)))
        if not found:
            return None
        every = np.stack(found)  # (seeds, 1 + RESAMPLES)
        values = every[:, 0].tolist()
        return Difference(fmean(values), over_seeds(values), middle(every[:, 1:].mean(0)))

    def _number(self, seed: int, table: str, label: str, column: str) -> Floats:
        """As it was measured, and then under each resample of the images (1 + RESAMPLES,)."""
        row = next(r for r in self._study.all_rows(TABLES[table]) if r.label == label)
        cell = _of_column(self._study, self._results, TABLES[table], row, column, seed)
        if cell is None:
            raise KeyError(column)
        measured = self._results.metrics(cell.key)[column]
        return np.append(measured, self._resamples(column, cell.key))


def difference(study: Study, table: Table, a: Row, b: Row, column: str) -> Difference | None:
    """Of row A minus row B in a column; None where no seed has both."""
    return Effects(study)(More(table.name, a.label, b.label, column))


def _of_column(
    study: Study, results: Results, table: Table, row: Row, column: str, seed: int
) -> Cell | None:
    """The finished cell that a column of a row comes from, if there is one."""
    if study.root(row.pretraining.data) is None:
        return None
    for kind, cell in study.cells_of(table, row, seed).items():
        known = kind in TRANSFERS and column in TRANSFERS[kind].columns
        if known and results.done(cell.key) and column in results.metrics(cell.key):
            return cell
    return None
