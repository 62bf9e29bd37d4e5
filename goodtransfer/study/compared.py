"""A report card's encoders beside one another: which differences are real, and where detections fail."""

from typing import NamedTuple

from goodtransfer.study.bars import Difference
from goodtransfer.study.differences import Effects, More
from goodtransfer.study.plan import Cell, Study
from goodtransfer.study.resamples import RESAMPLES
from goodtransfer.study.results import Results
from goodtransfer.study.tables import CARD, TABLES
from goodtransfer.study.transfers import NOT_RANKED


class Compared(NamedTuple):
    """An encoder against the first one of the card.

    Attributes:
        label, first: of the two.
        found: column -> difference, of the columns that both have.
    """

    label: str
    first: str
    found: dict[str, Difference]


def compared(study: Study) -> list[Compared]:
    """Each encoder but the first, against the first."""
    table, effects = TABLES[CARD], Effects(study)
    first, *others = study.rows_of(table)
    found = []
    for row in others:
        pairs = {
            c: effects(More(table.name, row.label, first.label, c))
            for c in table.columns
            if c not in NOT_RANKED
        }
        known = {column: of for column, of in pairs.items() if of is not None}
        found.append(Compared(row.label, first.label, known))
    return [pair for pair in found if pair.found]


class Failures(NamedTuple):
    """Where the detections of each encoder fail, mean of VOC's classes, in percent (protocol 7).

    Attributes:
        labels: of the encoders.
        rows: what is told, and for each encoder its value and the ends of its 95 % interval.
    """

    labels: list[str]
    rows: list[tuple[str, list[tuple[float, float, float]]]]


# Of `error_measures.QUANTITIES`, and how the page calls them.
_TOLD = {
    ("first N detections", "Cor"): "right, of as many first detections as there are objects",
    ("first N detections", "Loc"): "poorly placed (Loc)",
    ("first N detections", "Sim"): "taken for a similar class (Sim)",
    ("first N detections", "Oth"): "taken for another class (Oth)",
    ("first N detections", "BG"): "of no object (BG)",
    ("AP50 regained", "Loc"): "AP50 that Loc costs",
    ("AP50 regained", "Sim"): "AP50 that Sim costs",
    ("AP50 regained", "Oth"): "AP50 that Oth costs",
    ("AP50 regained", "BG"): "AP50 that BG costs",
}


def failures(study: Study, results: Results) -> Failures | None:
    """Of the first seed, with intervals over the images; None where no detector is finished."""
    cells = {
        row.label: cell
        for row in study.rows_of(TABLES[CARD])
        if (cell := study.cells_of(TABLES[CARD], row, 0).get("voc07")) and results.done(cell.key)
    }
    return _failures(study, results, cells) if cells else None


def _failures(study: Study, results: Results, cells: dict[str, Cell]) -> Failures:
    from goodtransfer.analysis.detection_files import class_names_in, read_detections
    from goodtransfer.analysis.error_bootstrap import bootstrap, estimate
    from goodtransfer.analysis.error_measures import QUANTITIES, flat, measure
    from goodtransfer.analysis.errors import diagnose
    from goodtransfer.study.voc_truth import read_voc

    root = study.root("voc")
    assert root is not None  # else there is no such cell
    files = [results.folder(cell.key) / "detections.safetensors" for cell in cells.values()]
    truth = read_voc(root, study.voc_splits[1], class_names_in(files[0]))
    diagnoses = [diagnose(read_detections(file, truth), truth) for file in files]
    samples = bootstrap(diagnoses, RESAMPLES)
    estimates = [
        estimate(flat(measure(of)), drawn) for of, drawn in zip(diagnoses, samples, strict=True)
    ]
    rows = []
    for quantity, words in _TOLD.items():
        place = QUANTITIES.index(quantity)
        rows.append((words, [tuple(float(ends[-1, place]) for ends in of) for of in estimates]))
    return Failures(list(cells), rows)  # type: ignore[arg-type]
