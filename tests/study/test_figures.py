"""Figures of the report, drawn from results that are made up."""

import json
import re
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

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
    def made(name, classes):
        study = Study.open(tmp_path / name, scale="tiny", tables=["supervised"], tasks=["voc07"])
        make_up(study, classes)
        return study

    def panels(study):
        """Of Figures 1 and 7, by their titles: each text of an SVG stands in a comment of it."""
        drawn = [figure.html for figure in figures(study, Results(study))]
        known = {MEAN, *VOC_CLASSES, *toy.CLASSES}
        return [[t for t in re.findall("<!-- (.*?) -->", html) if t in known] for html in drawn]

    assert panels(made("toy", toy.CLASSES)) == [[MEAN]] * 2
    study = made("voc", VOC_CLASSES)
    assert panels(study) == [[MEAN, "sheep", "cat", "tvmonitor"]] * 2
    # Nothing can be said of a class that the test images have no object of.
    (cell,) = (cell for cell in study.cells() if cell.kind == "voc07")
    file = Results(study).folder(cell.key) / "errors.safetensors"
    measures = load_file(file)
    for values in measures.values():
        values[VOC_CLASSES.index("cat")] = np.nan
    save_file(measures, file, {"class_names": json.dumps(VOC_CLASSES)})
    told = json.loads(file.with_name("run.json").read_text())
    del told["digests"]  # as if the cell itself had left it
    file.with_name("run.json").write_text(json.dumps(told))
    assert panels(study) == [[MEAN, "sheep", "tvmonitor"]] * 2
