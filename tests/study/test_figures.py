"""Figures of the report, drawn from results that are made up."""

import json
import math
import re
import sys
from pathlib import Path

from goodtransfer.data import toy
from goodtransfer.data.voc import VOC_CLASSES
from goodtransfer.study.figures import _course, figures
from goodtransfer.study.plan import Study
from goodtransfer.study.results import Results

sys.path.insert(0, str(Path(__file__).parent))
import tiny  # noqa: F401 - adds its scale
from made_up import make_up

MEAN = "mean of the classes"


def test_figure_1_has_the_papers_classes_where_there_are_such(tmp_path):
    def panels(name, *classes):
        """Of Figures 1 and 7, by their titles: each text of an SVG stands in a comment of it."""
        study = Study.open(tmp_path / name, scale="tiny", tables=["supervised"], tasks=["voc07"])
        make_up(study, *classes)
        drawn = [figure.html for figure in figures(study, Results(study))]
        known = {MEAN, *VOC_CLASSES, *toy.CLASSES}
        return [[t for t in re.findall("<!-- (.*?) -->", html) if t in known] for html in drawn]

    assert panels("toy", toy.CLASSES) == [[MEAN]] * 2
    assert panels("voc", VOC_CLASSES) == [[MEAN, "sheep", "cat", "tvmonitor"]] * 2
    # Nothing can be said of a class that the test images have no object of.
    assert panels("no cat", VOC_CLASSES, ["cat"]) == [[MEAN, "sheep", "tvmonitor"]] * 2


def test_figure_4_finds_scores_by_their_step(tmp_path):
    """A score that is missing leaves its place empty, and one made twice takes no other's."""
    study = Study.open(tmp_path, scale="tiny", tables=["figure4"])
    make_up(study, toy.CLASSES)
    results = Results(study)
    cell = next(cell for cell in study.cells() if cell.kind == "voc07_course")
    file = results.folder(cell.key) / "curves.jsonl"
    first, last, test = (json.loads(row) for row in file.read_text().splitlines())
    assert _course(results, cell, (2, 4)) == [row["voc07_course_AP"] for row in (first, last)]
    for rows, expected in (
        ([first, first, last, test], [first, last]),
        ([last, test], [None, last]),
    ):
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        run = results.folder(cell.key) / "run.json"
        kept = json.loads(run.read_text())
        run.write_text(json.dumps({**kept, "digests": {}}))
        found = [None if math.isnan(v) else v for v in _course(results, cell, (2, 4))]
        assert found == [row and row["voc07_course_AP"] for row in expected]
        assert any("Figure 4" in figure.caption for figure in figures(study, results))
