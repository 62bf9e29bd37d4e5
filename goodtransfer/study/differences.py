"""Whether two rows of a study differ: over the seeds, and over the test images."""

from collections.abc import Iterator, Sequence
from statistics import fmean

from goodtransfer.study.bars import Difference, Interval, over_seeds
from goodtransfer.study.plan import Cell, Study
from goodtransfer.study.results import Results
from goodtransfer.study.tables import Row, Table
from goodtransfer.study.transfers import TRANSFERS

RESAMPLES = 500


def difference(study: Study, table: Table, a: Row, b: Row, column: str) -> Difference | None:
    """Of row A minus row B in a column; None where no seed has both.

    Over the seeds it is paired by them and follows Student's t; over the images, all cells are read off
    the same resamples of them.
    """
    results = Results(study)
    cells = list(_finished(study, results, table, a, b, column))
    if not cells:
        return None
    gaps = [
        results.metrics(ours.key)[column] - results.metrics(theirs.key)[column]
        for ours, theirs in cells
    ]
    ours, theirs = ([cell.key for cell in side] for side in zip(*cells, strict=True))
    return Difference(fmean(gaps), over_seeds(gaps), over_images(results, column, ours, theirs))


def _finished(
    study: Study, results: Results, table: Table, a: Row, b: Row, column: str
) -> Iterator[tuple[Cell, Cell]]:
    """The cells of both rows that a column is of, for each seed that has both."""
    for seed in range(study.seeds):
        pair = [of_column(study, results, table, row, column, seed) for row in (a, b)]
        if pair[0] is not None and pair[1] is not None:
            yield pair[0], pair[1]


def of_column(
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


def over_images(
    results: Results, column: str, ours: Sequence[str], theirs: Sequence[str] = ()
) -> Interval | None:
    """What cells' mean in a column could be instead, or its difference from others' mean.

    None for a column that is not of images, or a cell that did not keep what each of them scored.
    """
    from goodtransfer.study import per_image

    folders = [results.folder(key) for key in (*ours, *theirs)]
    if column not in per_image.COLUMNS or not all((f / per_image.NAME).is_file() for f in folders):
        return None
    import numpy as np

    found = per_image.resampled(column, folders, RESAMPLES)
    means = found[: len(ours)].mean(0)
    if theirs:
        means -= found[len(ours) :].mean(0)
    low, high = np.nanpercentile(means, [2.5, 97.5])
    return Interval(float(low), float(high))
