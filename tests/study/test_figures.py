"""Figures of the report, drawn from results that are made up."""

import re
import sys
from pathlib import Path

from goodtransfer.data import toy
from goodtransfer.data.voc import VOC_CLASSES
from goodtransfer.study.figures import figures
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
