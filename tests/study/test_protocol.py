"""Rows against the constructors they name and the numbers the paper printed."""

import inspect

import pytest
import yaml

from goodtransfer import methods
from goodtransfer.data import CityscapesDataModule, MAFLDataModule
from goodtransfer.study.protocol import (
    EXEMPLAR_V1,
    EXEMPLAR_V2,
    FACES,
    FEW_SHOT,
    MOCO_V1,
    MOCO_V2,
    PIXELS,
    SUPERVISED,
    SUPERVISED_ON,
    UNTRAINED,
    deviations,
)
from goodtransfer.study.scales import SCALES
from goodtransfer.study.tables import TABLES, paper
from goodtransfer.study.transfers import PAPER
from goodtransfer.transfer import COCODetection, Detection, FewShot, Landmarks, Segmentation
from goodtransfer.transfer.coco import PRETRAINING
from goodtransfer.transfer.deeplab import DeepLabV3
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


def test_all_rows_are_there_with_the_paper_s_numbers():
    short = ["acc", "voc07_AP", "coco_APbox", "coco_APseg", "city_mIoU"]
    known = paper()["conflicts"]  # where the paper prints one number in two ways
    conflicting = [c for c in known if "table1" in c.get("values", {})]
    assert len(conflicting) == 2
    different = []
    for name in ("1", "2"):
        printed = [
            v for kind in ("supervised", "unsupervised") for v in paper()[f"table{name}"][kind]
        ]
        rows = TABLES[name].rows
        assert len(rows) == len(printed) == {"1": 10, "2": 14}[name]
        for row, line in zip(rows, printed, strict=True):
            whole = [row.paper[column] for column in short]
            different += [(name, row.label)] if whole != line["values"] else []
    assert different == [("1", "supervised, +crop"), ("2", "supervised, ImageNet")]
    assert [r.paper["voc0712_AP"] for r in TABLES["6"].rows] == [54.8, 55.4, 56.1, 56.4, 56.9]
    assert [r.pretraining.epochs for r in TABLES["6"].rows] == [90, 200, 400, 800, 200]


def test_the_ladder_ends_in_the_row_that_the_other_tables_have():
    for name, row in (("supervised", SUPERVISED), ("unsupervised", MOCO_V2)):
        rungs = [r.pretraining for r in TABLES["1"].rows if r.label.startswith(name + ",")]
        assert rungs[-1] == row
        changed = [{k for k, v in r.values().items() if row.values()[k] != v} for r in rungs[:-1]]
        assert changed == [{"views"}] * 4
        assert len({r.views for r in rungs}) == 5


def test_data_sets_have_as_many_iterations_as_imagenet():
    images = {"imagenet10": 128_000, "imagenet100": 124_000, "celeba": 162_770,
              "coco_images": 118_287, "synthia": 365_000}  # fmt: skip
    rows = [r.pretraining for r in TABLES["2"].rows if r.pretraining.data in images]
    assert (
        len(rows) == 2 * 5 - 1
    )  # COCO's supervised row has other labels, and iterations of its own
    for row in rows:
        if row.epochs:
            steps = row.epochs * (images[row.data] / 256)
            assert steps == pytest.approx(200 * (1_281_167 / 256), rel=2e-3)
    places = [r.pretraining for r in TABLES["2"].rows if r.pretraining.data == "places"]
    assert [r.epochs for r in places] == [200, 200]


def test_rows_by_a_task_are_its_protocol():
    coco, synthia = (TABLES["2"].rows[n].pretraining for n in (5, 6))
    assert (coco.method, coco.data) == ("COCODetection", "coco")
    assert {k: coco.arguments[k] for k in PRETRAINING["6x"]} == PRETRAINING["6x"]
    assert (synthia.method, synthia.data) == ("Segmentation", "synthia")
    assert synthia.arguments["iterations"] == 40_000
    for row in (coco, synthia):
        assert SCALES["paper"].apply(row) == row
        small = SCALES["smoke"].apply(row).arguments
        assert set(small) == set(row.arguments)
        assert (small["encoder"], small["iterations"]) == ("resnet10w32", 120)


@pytest.mark.parametrize("name", ["small", "smoke"])
def test_rows_by_a_task_are_the_scale_s_protocol(name):
    """A protocol's crop is an argument of the task, not the crop of a method's views."""
    scale = SCALES[name]
    for data in ("coco_images", "synthia"):
        row = SUPERVISED_ON[data]
        arguments = dict(scale.apply(row).arguments)
        assert arguments.pop("encoder") == scale.every["encoder"]
        assert arguments == scale.by_task[row.method].values()


@pytest.mark.parametrize(("task", "kind"), [(Detection, "voc07"), (COCODetection, "coco")])
def test_detection_s_defaults_are_the_paper_s(task, kind):
    """The constructors' own, so that a user's script runs what the study runs."""
    arguments = SCALES["paper"].protocol(kind).arguments()
    parts = arguments.pop("detector")
    assert {n: v for n, v in constructor_defaults(task).items() if n in arguments} == arguments
    parameters = inspect.signature(RCNNC4.__init__).parameters
    assert parts == {name: parameters[name].default for name in parts}


def test_the_other_tasks_defaults_are_the_paper_s():
    city = PAPER["city"].arguments()
    network = city.pop("network")
    few_shot, faces = PAPER["few_shot"].arguments(), PAPER["landmarks"]
    for cls, given in (
        (Segmentation, city),
        (DeepLabV3, network),
        (FewShot, few_shot),
        (Landmarks, {"lr": faces.lr}),
        (MAFLDataModule, {"size": faces.size, "batch_size": faces.batch_size}),
    ):
        parameters = inspect.signature(cls.__init__).parameters
        assert given == {name: parameters[name].default for name in given}, cls
    parameters = inspect.signature(CityscapesDataModule.__mro__[1].__init__).parameters
    view = PAPER["city"].view()
    assert view == {name: parameters[name].default for name in view}


def test_tables_print_the_paper_s_transfers():
    printed = {row.label: row.paper for row in TABLES["3"].rows}
    assert printed["Exemplar-v2"] == {
        "acc": 68.9, "voc07_AP": 48.8, "voc07_AP50": 77.2, "voc07_AP75": 53.1,
        "coco_APbox": 39.4, "coco_APbox50": 59.1, "coco_APbox75": 42.7,
        "coco_APseg": 34.4, "coco_APseg50": 55.9, "coco_APseg75": 36.5,
        "city_mIoU": 78.8, "city_mAcc": 85.9, "city_aAcc": 96.2,
    }  # fmt: skip
    (supervised,) = TABLES["supervised"].rows
    assert list(supervised.paper.values()) == [
        77.3, 46.2, 76.8, 48.9, 38.9, 59.1, 41.8, 33.9, 55.4, 35.9, 78.8, 85.8, 96.1,
    ]  # fmt: skip
    assert {row.label: row.paper["novel_5shot"] for row in TABLES["4"].rows} == {
        "Supervised": 74.5, "MoCo-v2": 73.3, "Exemplar-v2": 77.18,
    }  # fmt: skip
    assert {row.label: row.paper["landmark_error"] for row in TABLES["5"].rows} == {
        "Scratch": 24.6, "Supervised": 6.3, "MoCo-v2": 5.8, "Exemplar-v2": 5.8,
    }  # fmt: skip


def test_few_shot_and_faces_pretrain_as_told():
    """Section 4: their own images, networks and epochs; MoCo-v2's views for all."""
    for row in FEW_SHOT.values():
        assert (row.data, row.epochs, row.crop) == ("mini_imagenet", 2000, 0.2)
        assert row.arguments["encoder"] == "resnet18"
        assert row.arguments.get("queue_size", 0) < 38_400
    for row in FACES.values():
        assert (row.data, row.epochs, row.crop) == ("celeba", 1400, 0.2)
        assert row.arguments["encoder"] == "resnet50"


@pytest.mark.parametrize("name", ["paper", "small", "smoke"])
def test_a_small_batch_is_accumulated_or_scaled_never_both(name):
    for kind in ("voc07", "coco"):
        protocol = SCALES[name].protocol(kind)
        assert protocol.batch == 16 or protocol.accumulate == 1
        assert protocol.batch % protocol.accumulate == 0


def test_the_paper_s_scale_changes_nothing():
    assert SCALES["paper"].transfers == {}
    for row in (*ROWS, EXEMPLAR_V1, *FEW_SHOT.values(), *FACES.values()):
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
