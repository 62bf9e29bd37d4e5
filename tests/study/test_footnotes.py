"""Footnotes to the paper's numbers: each where it belongs, and only where that is shown."""

import pytest
import yaml

from goodtransfer.study import footnotes
from goodtransfer.study.footnotes import CONFLICTS, REPAIRS, notes, repairs
from goodtransfer.study.tables import TABLES, paper


def test_every_conflict_and_repair_of_the_paper_has_its_place():
    assert list(CONFLICTS) == [conflict["id"] for conflict in paper()["conflicts"]]
    assert len(REPAIRS) == len(repairs()) == 11
    for place in (place for kind in (CONFLICTS, REPAIRS) for p in kind.values() for place in p):
        table = TABLES[place.table]
        assert set(place.rows) <= {row.label for row in table.rows}
        assert set(place.columns) <= set(table.columns)
        for row in (row for row in table.rows if row.label in place.rows):
            assert all(row.paper[column] is not None for column in place.columns)


def test_conflicting_numbers_are_the_marked_ones():
    """Where a short table and its whole one disagree, the shown number has a mark."""
    columns = ["acc", "voc07_AP", "coco_APbox", "coco_APseg", "city_mIoU"]
    for name, lines in (
        ("1", paper()["table1"]["supervised"] + paper()["table1"]["unsupervised"]),
        ("2", paper()["table2"]["supervised"] + paper()["table2"]["unsupervised"]),
        ("3", paper()["table3"]["rows"]),
    ):
        rows = TABLES[name].rows
        _, marks = notes(name, [row.label for row in rows], columns)
        for row, line in zip(rows, lines, strict=True):
            for column, value in zip(columns, line["values"], strict=True):
                if row.paper[column] != value:
                    assert set(marks[row.label, column]) & {"C1", "C2", "C3"}


def test_footnotes_are_those_of_what_is_shown():
    found, marks = notes("3", ["MoCo-v1", "Exemplar-v1"], ["acc", "coco_APseg"])
    assert [note.mark for note in found] == ["C3", "C7", "R2", "R9", "R10"]
    assert marks == {
        ("Exemplar-v1", "coco_APseg"): ["C3"],
        ("Exemplar-v1", ""): ["C7"],
        ("MoCo-v1", "acc"): ["R2", "R9"],
        ("", ""): ["R10"],
    }
    assert found[0].text == (
        "COCO APseg, Exemplar-v1: 34.1 (Table 3), 34.0 (Table 9). "
        "Table 3 delta (+0.5 over 33.6) agrees with 34.1."
    )
    assert "exemplar v1 gain matched 3.7" in found[1].text
    assert found[3].text == "Table 9, as read: MoCo-v1 acc printed '608' → 60.8."
    found, marks = notes("3", ["MoCo-v2"], ["acc"])
    assert ([note.mark for note in found], marks) == (["R10"], {("", ""): ["R10"]})
    assert notes("floor", ["Pixels"], ["acc"]) == ([], {})


def test_a_new_conflict_without_a_place_is_noticed(monkeypatch):
    text = yaml.safe_load("conflicts: [{id: C99, what: new}]")
    monkeypatch.setattr(footnotes, "paper", lambda: text)
    with pytest.raises(KeyError, match="C99"):
        notes("3", [], [])
