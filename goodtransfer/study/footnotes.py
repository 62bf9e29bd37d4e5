"""Footnotes: where the paper contradicts itself, or its text was damaged, and which numbers that concerns.

The texts are the ``conflicts`` and ``repairs`` of ``paper.yaml``; here is only where they belong.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from goodtransfer.study.tables import paper

# (row, or "" for the heading; column, or "" for the row's label) -> marks, in order.
Marks = dict[tuple[str, str], list[str]]


class Footnote(NamedTuple):
    """A remark on a printed number.

    Attributes:
        mark: C and the conflict's number, or R and the repair's.
        text: sentences.
    """

    mark: str
    text: str


class Place(NamedTuple):
    """What a footnote concerns: numbers; rows as a whole; headings of columns; or the table's.

    Attributes:
        table: as ``--table`` takes it.
        rows: by their labels.
        columns: metric names.
    """

    table: str
    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()


_APSEG = ("coco_APseg",)
_VOC = ("voc07_AP", "voc07_AP50", "voc07_AP75")
_ON_IMAGENET = (
    ("1", ("supervised, +blur",)),
    ("2", ("supervised, ImageNet",)),
    ("supervised", ("Supervised",)),
)
_CELEBA = ("supervised, CelebA", "unsupervised, CelebA")

CONFLICTS: Mapping[str, Sequence[Place]] = {
    "C1": [Place("1", ("supervised, +crop",), _APSEG)],
    "C2": [Place(table, rows, _APSEG) for table, rows in _ON_IMAGENET],
    "C3": [Place("3", ("Exemplar-v1",), _APSEG)],
    "C4": [
        *(Place(table, rows, _VOC) for table, rows in _ON_IMAGENET),
        Place("6", ("supervised 200 epochs",), _VOC),
    ],
    "C5": [Place("2", ("supervised, COCO", "supervised, ImageNet-10%"), ("acc",))],
    "C6": [Place("1", ("supervised, +blur", "unsupervised, +blur"))],
    "C7": [Place("3", ("Exemplar-v1", "Exemplar-v2"))],
    "C8": [Place("2", _CELEBA), Place("5", ("Supervised", "MoCo-v2", "Exemplar-v2"))],
    "C9": [Place("2", ("unsupervised, CelebA",), ("voc07_AP", "coco_APbox", "city_mIoU"))],
    "C10": [Place("figure2", ("Supervised", "MoCo-v2"), ("lpips_uncalibrated",))],
}
# In the order of the repairs in paper.yaml; of Tables 7 to 9 are what Tables 1 to 3 show here.
REPAIRS: Mapping[str, Sequence[Place]] = {
    "R1": [Place("2", ("unsupervised, ImageNet",), ("acc",))],
    "R2": [Place("3", ("MoCo-v1",), ("acc", "voc07_AP", "coco_APbox", "city_mIoU"))],
    "R3": [Place("4", (), ("novel_1shot",))],
    "R4": [Place("5", ("MoCo-v2", "Exemplar-v2"))],
    "R5": [Place("6", ("supervised 90 epochs",), ("voc0712_AP",))],
    "R6": [Place("6", ("MoCo (v2, 200 epochs)",), ("acc", "voc07_AP"))],
    "R7": [Place("1", ("unsupervised, flip",), ("acc",))],
    "R8": [Place("2", ("unsupervised, ImageNet",), ("acc",))],
    "R9": [Place("3", ("MoCo-v1",), ("acc",))],
    "R10": [Place("3")],
    "R11": [Place("10")],
}


def notes(table: str, rows: Sequence[str], columns: Sequence[str]) -> tuple[list[Footnote], Marks]:
    """The footnotes that concern what is shown of a table, and where their marks stand."""
    marks: Marks = {}
    found = []
    for note, places in _every():
        shown = [
            where
            for place in places
            if place.table == table
            for where in _marked(place)
            if where[0] in ("", *rows) and where[1] in ("", *columns)
        ]
        for where in shown:
            marks.setdefault(where, []).append(note.mark)
        found += [note] if shown else []
    return found, marks


def _every() -> Iterator[tuple[Footnote, Sequence[Place]]]:
    for conflict in paper()["conflicts"]:
        yield Footnote(conflict["id"], _told(conflict)), CONFLICTS[conflict["id"]]
    for (table, repair), (mark, places) in zip(repairs(), REPAIRS.items(), strict=True):
        yield Footnote(mark, f"{table}, as read: {repair.replace(' -> ', ' → ')}."), places


def repairs() -> list[tuple[str, str]]:
    """(table, what was damaged in its text and how it is read)."""
    tables = [(name, part) for name, part in paper().items() if name.startswith("table")]
    return [(_called(name), repair) for name, part in tables for repair in part["repairs"]]


def _marked(place: Place) -> list[tuple[str, str]]:
    return [(row, column) for row in place.rows or ("",) for column in place.columns or ("",)]


def _told(conflict: Mapping[str, Any]) -> str:
    """What, the values where they are printed, and what speaks for one of them."""
    values = [
        f"{_text(value)} ({_called(name)})"
        if name.startswith("table")
        else f"{_called(name)} {value}"
        for name, value in conflict.get("values", {}).items()
    ]
    parts = [conflict["what"] + (": " + ", ".join(values) if values else "")]
    return ". ".join([*parts, *([conflict["note"]] if "note" in conflict else [])]) + "."


def _called(name: str) -> str:
    """table7 is Table 7, tables_1_2 are Tables 1, 2; other names are words."""
    first, *numbers = name.split("_")
    if first == "tables":
        return f"Tables {', '.join(numbers)}"
    return f"Table {name[5:]}" if name.startswith("table") else name.replace("_", " ")


def _text(value: Any) -> str:
    return "/".join(map(str, value)) if isinstance(value, list) else str(value)
