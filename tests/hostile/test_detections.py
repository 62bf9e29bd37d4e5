"""Detections that are broken, in all three formats, and names that a figure or a terminal would misread."""

import json
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from goodtransfer import cli
from goodtransfer.analysis.detection_files import class_names_in, read_coco, read_detections
from goodtransfer.analysis.detections import GroundTruth
from goodtransfer.metrics.voc import Objects

sys.path.insert(0, str(Path(__file__).parent))
from forked import assert_clean, outcomes
from mutations import CASES, dice, mutated, mutated_tree

CLASSES = ("cat", "dog")


def truth():
    objects = Objects([0, 2], [0, 1], [[1, 1, 10, 10], [6, 3, 9, 4]], [False, True])
    return GroundTruth(CLASSES, ("11", "5", "7"), objects, category_ids=(3, 8))


def columns(**changed):
    return {
        "images": np.array([0, 1, 2]),
        "labels": np.array([0, 1, 1]),
        "scores": np.array([0.5, 0.25, 0.75], np.float32),
        "boxes": np.array([[0, 0, 9, 9], [1, 2, 5, 6], [3, 3, 4, 4]], np.float32),
    } | changed


def study(names=("11", "5", "7"), class_names=CLASSES, **changed):
    described = {"images": json.dumps(names), "class_names": json.dumps(class_names)}
    return save(columns(**changed), described)


def results():
    return [
        {"image_id": (11, 5, 7)[n], "category_id": (3, 8, 8)[n], "score": 0.5, "bbox": [1, 2, 4, 5]}
        for n in range(3)
    ]


def instances(names=CLASSES):
    return {
        "images": [{"id": n, "width": 40, "height": 30} for n in (11, 5, 7)],
        "categories": [
            {"id": (3, 8)[n] if n < 2 else n + 7, "name": name} for n, name in enumerate(names)
        ],
        "annotations": [
            {"image_id": 11, "category_id": 3, "bbox": [0, 0, 9, 9], "iscrowd": 0},
            {"image_id": 7, "category_id": 8, "bbox": [5, 2, 4, 2]},
        ],
    }


TEXT = b"11 0.5 1 1 10 10\n5 0.25 2 3 6 7\n7 1e-3 4.5 4 5 5\n"


@pytest.mark.slow
def test_broken_detections(tmp_path):
    """A study's file, COCO's results, COCO's ground truth and VOC's text take turns."""
    (tmp_path / "voc").mkdir()
    for name in CLASSES:
        (tmp_path / "voc" / f"comp4_det_test_{name}.txt").write_bytes(TEXT)

    def case(number):
        random, kind = dice("detections", number), number % 4
        if kind == 0:
            path = tmp_path / "detections.safetensors"
            path.write_bytes(mutated(study(), random, ends=600))
            class_names_in(path)
            found = read_detections(path, truth())
        elif kind == 3:
            (tmp_path / "voc" / "comp4_det_test_cat.txt").write_bytes(mutated(TEXT, random))
            found = read_detections(tmp_path / "voc", truth())
        else:
            tree = results() if kind == 1 else instances()
            path, whole = tmp_path / "some.json", json.dumps(tree).encode()
            broken = json.dumps(mutated_tree(tree, random)).encode()
            path.write_bytes(broken if number % 8 < 4 else mutated(whole, random))
            if kind == 2:
                world = read_coco(path)
                assert len(world.objects.boxes) == len(world.objects.labels)
                return
            found = read_detections(path, truth())
        assert np.isfinite(found.scores).all()
        assert np.isfinite(found.boxes).all()
        assert {*found.images.tolist()} <= {0, 1, 2}
        assert {*found.labels.tolist()} <= {0, 1}

    assert_clean(outcomes(case, CASES["detections"], tmp_path), CASES["detections"])


def header(tree):
    content = tree if isinstance(tree, bytes) else json.dumps(tree).encode()
    return struct.pack("<Q", len(content)) + content


HARMFUL = {
    "names nested without end": study(names=["a"]).replace(
        b'[\\"a\\"]', b"[" * 900 + b"1" + b"]" * 900
    ),
    "no columns at all": save({"x": np.zeros(1)}, {"images": '["11"]', "class_names": '["cat"]'}),
    "names that are none": save(columns(), {"images": "3", "class_names": "null"}),
    "numbers without rows": study(**{key: np.array(0) for key in columns()}),
    "labels that are real": study(labels=np.array([0.0, np.nan, 1.0])),
    "images that are real": study(images=np.array([0.5, 1.0, 2.0])),
    "scores that are complex": study(scores=np.ones(3, np.complex64)),
    "labels of 64 bits": study(labels=np.array([0, 1, 2**64 - 1], np.uint64)),
    "labels of two columns": study(labels=np.zeros((3, 2), np.int64)),
    "boxes without end": study(boxes=np.full((3, 4), np.inf, np.float32)),
    "boxes beyond any image": study(boxes=np.array([[0, 0, 1e300, 1e300]] * 3)),
    "scores of truth": study(scores=np.array([True, False, True])),
    "a name of a megabyte": study(class_names=("cat", "x" * 10**6)),
    "a type that numpy lacks": header(
        {
            "__metadata__": {"images": '["11"]', "class_names": '["cat"]'},
            "scores": {"dtype": "F8_E5M2", "shape": [4], "data_offsets": [0, 4]},
        }
    )
    + bytes(4),
}


@pytest.mark.parametrize("name", HARMFUL)
def test_files_of_a_study_made_to_harm(name, tmp_path):
    path = tmp_path / "detections.safetensors"
    content = HARMFUL[name]
    if name == "names nested without end":  # the header is longer now
        size = content.index(b"}", content.rindex(b'"data_offsets"')) + 2
        content = struct.pack("<Q", size - 8) + content[8:]
    path.write_bytes(content)

    def case(number):
        if number:
            read_detections(path, truth())
        else:
            class_names_in(path)

    found = outcomes(case, 2, tmp_path)
    assert found[0] in ("a result", "one sentence"), found
    assert found[1] == "one sentence", found


@pytest.mark.parametrize(
    "image",
    [
        {"id": 11, "width": 10**30, "height": 3},
        {"id": 11, "width": float("inf")},
        {"id": 10**4000},
        {"id": [1]},
        7,
    ],
)
def test_images_of_impossible_sizes(image, tmp_path):
    path = tmp_path / "gt.json"
    path.write_text(json.dumps(instances() | {"images": [image], "annotations": []}))
    assert outcomes(lambda _: read_coco(path), 1, tmp_path)[0] in ("one sentence", "a result")


def test_a_fault_of_the_whole_ground_truth_names_its_file(tmp_path):
    path = tmp_path / "gt.json"
    path.write_text(json.dumps(instances(("cat", "cat"))))
    with pytest.raises(
        ValueError, match=r"^Expected COCO's ground truth in .*gt.json: .*'cat' more than once"
    ):
        read_coco(path)


NAMES = [
    "$\\frac{$",
    "a,b=c",
    "new\nline",
    "\x1b[2J",
    "\ud800",
    "x" * 3000,
    "Ünï, 漢字",
    "%s",
    "<b>",
]


@pytest.mark.filterwarnings("ignore:Glyph:UserWarning")
@pytest.mark.filterwarnings("ignore:constrained_layout:UserWarning")
def test_whatever_classes_are_called_they_are_diagnosed(tmp_path, capsys):
    """By the command itself: no name is read as a formula, a list, or an order to the terminal."""
    gt, found, out = (tmp_path / name for name in ("gt.json", "found.json", "out"))
    gt.write_text(json.dumps(instances([*CLASSES, *NAMES])))
    found.write_text(json.dumps(results()))
    words = [str(found), "--gt", str(gt), "--out", str(out), "--resamples", "0"]
    assert cli.main(["diagnose", *words]) == 0
    told = capsys.readouterr().out
    assert "\x1b" not in told
    assert "new\\nline" in told
    counts = json.loads((out / "diagnosis.json").read_text())["models"]["found"]["counts"]
    assert len(counts) == len(CLASSES) + len(NAMES)
    assert (out / "figure1.png").stat().st_size > 1000


def test_a_thousand_classes_are_one_picture(tmp_path, capsys):
    gt, found, out = (tmp_path / name for name in ("gt.json", "found.json", "out"))
    gt.write_text(json.dumps(instances([*CLASSES, *map(str, range(1000))])))
    found.write_text(json.dumps(results()))
    words = [str(found), "--gt", str(gt), "--out", str(out), "--resamples", "0"]
    assert cli.main(["diagnose", *words]) == 0
    assert (out / "figure1.png").is_file()
    capsys.readouterr()


def test_a_command_with_a_broken_file_writes_nothing(tmp_path, capsys):
    gt, found, out = (tmp_path / name for name in ("gt.json", "found.json", "out"))
    gt.write_text(json.dumps(instances()))
    found.write_text("[" * 100_000)
    assert cli.main(["diagnose", str(found), "--gt", str(gt), "--out", str(out)]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("goodtransfer: error: Expected JSON at ")
    assert printed.err.count("\n") == 1
    assert not out.exists()
