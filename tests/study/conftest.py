"""A study whose report is looked at from all sides."""

import sys
from pathlib import Path

import pytest

from goodtransfer.study import forks
from goodtransfer.study.cells import run_cell
from goodtransfer.study.plan import Study
from goodtransfer.study.report import write_report

sys.path.insert(0, str(Path(__file__).parent))
import tiny  # noqa: F401 - adds its scale


@pytest.fixture(scope="session")
def reported(tmp_path_factory):
    """Tables 3, supervised, floor and 10 with two seeds, to be read only.

    It is not whole: nothing is measured on COCO, and Cityscapes by one seed alone.
    """
    out = tmp_path_factory.mktemp("reported") / "s"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TQDM_DISABLE", "1")
        patch.setattr("goodtransfer.study.fitting.workers", lambda: 0)
        tables = ["3", "supervised", "floor", "10"]
        study = Study.open(out, scale="tiny", tables=tables, seeds=2)
        study.save()
        for cell in study.cells():
            if cell.kind != "coco" and (cell.kind, cell.seed) != ("city", 1):
                run_cell(study, cell)
    write_report(study)
    return study


@pytest.fixture(scope="module")
def forked():
    """The environment of cells that are forked rather than import torch."""
    if sys.platform != "linux":
        yield {}
        return
    with forks.server() as socket:
        yield {forks.VARIABLE: str(socket)}
