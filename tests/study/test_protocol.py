"""Rows against the constructors they name and the numbers the paper printed."""

import inspect

import pytest
import yaml

from goodtransfer import methods
from goodtransfer.study.protocol import (
    EXEMPLAR_V1,
    EXEMPLAR_V2,
    MOCO_V1,
    MOCO_V2,
    PIXELS,
    SCALES,
    SUPERVISED,
    UNTRAINED,
    VOC07,
    deviations,
)
from goodtransfer.study.tables import TABLES, paper
from goodtransfer.transfer import Detection
from goodtransfer.transfer.rcnn_c4 import RCNNC4

ROWS = (MOCO_V1, MOCO_V2, EXEMPLAR_V2, SUPERVISED)


def constructor_defaults(method):
    """Defaults along the constructors that pass their arguments on."""
    found = {}
    for cls in method.__mro__:
        if cls.__module__.startswith("goodtransfer"):
            for name, parameter in inspect.signature(cls.__init__).parameters.items():
                if parameter.default is not parameter.empty:
                    found.setdefault(name, parameter.default)
    return found


@pytest.mark.parametrize("row", ROWS, ids=lambda r: r.name)
def test_constructor_defaults_are_the_paper_s_rows(row):
    defaults = constructor_defaults(getattr(methods, row.method))
    assert {name: defaults[name] for name in row.arguments} == dict(row.arguments)
    assert defaults["views"] == row.views


def test_rows_differ_in_what_the_paper_says_they_do():
    line = deviations(MOCO_V2.values(), EXEMPLAR_V2.values())
    assert line == (
        "method ExemplarMoCo (paper: MoCoV2); queue size 1,048,576 (paper: 65,536); "
        "temperature 0.1 (paper: 0.2); exclude label (paper: none)"
    )
    changed = {k for k, v in EXEMPLAR_V1.values().items() if MOCO_V1.values()[k] != v}
    assert changed == {"method", "exclude", "queue_size"}
    changed = {k for k, v in MOCO_V1.values().items() if MOCO_V2.values()[k] != v}
    assert changed == {"method", "temperature", "mlp", "schedule", "views"}


def test_but_leaves_the_original_alone():
    before = MOCO_V2.values()
    changed = MOCO_V2.but(name="x", epochs=1, temperature=0.5)
    assert MOCO_V2.values() == before
    assert {k: v for k, v in changed.values().items() if before[k] != v} == {
        "epochs": 1, "temperature": 0.5,
    }  # fmt: skip


@pytest.mark.data
def test_the_paper_s_numbers_are_the_transcribed_ones(shared):
    assert paper() == yaml.safe_load((shared / "paper/tables.yaml").read_text())


def test_tables_print_the_paper_s_numbers():
    printed = {row.label: row.paper["acc"] for row in TABLES["3"].rows}
    expected = {"MoCo-v1": 60.8, "Exemplar-v1": 64.6, "MoCo-v2": 67.5, "Exemplar-v2": 68.9}
    assert printed == expected
    grid = TABLES["10"].rows
    assert [r.paper["acc"] for r in grid] == [
        60.8,
        60.9,
        64.6,
        63.9,
        67.5,
        66.9,
        67.8,
        68.1,
        68.9,
        67.9,
    ]
    arguments = [r.pretraining.arguments for r in grid]
    assert [(a["queue_size"], a["temperature"]) for a in arguments] == [
        (65536, 0.07), (2**20, 0.07), (2**20, 0.07), (2**20, 0.1), (65536, 0.2),
        (2**20, 0.1), (2**20, 0.2), (2**20, 0.07), (2**20, 0.1), (2**20, 0.2),
    ]  # fmt: skip
    printed = [r for name in ("floor", "supervised") for r in TABLES[name].rows]
    assert {r.label: r.paper["acc"] for r in printed} == {
        "Pixels": None, "Untrained": None, "Supervised": 77.3,
    }  # fmt: skip


def test_detection_s_defaults_are_the_paper_s():
    """The constructors' own, so that a user's script runs what the study runs."""
    arguments = SCALES["paper"].voc07.arguments()
    parts = arguments.pop("detector")
    for cls, given in ((Detection, arguments), (RCNNC4, parts)):
        parameters = inspect.signature(cls.__init__).parameters
        assert given == {name: parameters[name].default for name in given}
    assert deviations(VOC07().values(), SCALES["paper"].voc07.values()) == "as in the paper"
    printed = {row.label: row.paper for row in TABLES["3"].rows}
    assert printed["Exemplar-v2"] == {
        "acc": 68.9, "voc07_AP": 48.8, "voc07_AP50": 77.2, "voc07_AP75": 53.1,
    }  # fmt: skip
    (supervised,) = TABLES["supervised"].rows
    assert list(supervised.paper.values()) == [77.3, 46.2, 76.8, 48.9]


@pytest.mark.parametrize("name", ["paper", "small", "smoke"])
def test_a_small_batch_is_accumulated_or_scaled_never_both(name):
    voc07 = SCALES[name].voc07
    assert voc07.batch == 16 or voc07.accumulate == 1
    assert voc07.batch % voc07.accumulate == 0


def test_the_paper_s_scale_changes_nothing():
    for row in (*ROWS, EXEMPLAR_V1):
        assert SCALES["paper"].apply(row).values() == row.values()
        assert deviations(row.values(), row.values()) == "as in the paper"


@pytest.mark.parametrize("name", ["small", "smoke"])
def test_smaller_scales_keep_what_tells_the_rows_apart(name):
    scale = SCALES[name]
    rows = [scale.apply(row).values() for row in (*ROWS, EXEMPLAR_V1, PIXELS, UNTRAINED)]
    assert len({str(row) for row in rows}) == len(rows)
    grid = [scale.apply(row.pretraining).values() for row in TABLES["10"].rows]
    assert len({str(row) for row in grid}) == len(grid)
    exemplar, moco = scale.apply(EXEMPLAR_V2), scale.apply(MOCO_V2)
    for argument in ("temperature", "exclude", "mlp", "schedule"):
        assert exemplar.arguments[argument] == EXEMPLAR_V2.arguments[argument]
        assert moco.arguments[argument] == MOCO_V2.arguments[argument]
    assert scale.apply(PIXELS).arguments["encoder"] == f"pixels{exemplar.size}"
    assert scale.apply(UNTRAINED).arguments["encoder"] == exemplar.arguments["encoder"]
