"""`goodtransfer diagnose` on files of all formats: its numbers are those of the library."""

import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from goodtransfer import cli
from goodtransfer.analysis.detection_files import read_coco, read_detections
from goodtransfer.analysis.error_bootstrap import bootstrap, estimate
from goodtransfer.analysis.error_measures import QUANTITIES, flat, measure
from goodtransfer.analysis.errors import diagnose
from goodtransfer.data.toy_voc import make_voc
from goodtransfer.metrics.coco_files import coco_ap
from goodtransfer.study.voc_truth import read_voc

CLASSES = ("cup", "mug", "saw", "nut")  # no object is a nut


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write_devkit(root, rng, images=40):
    """A VOCdevkit of images that are only named, and what is in them."""
    year = root / "VOCdevkit/VOC2007"
    for folder in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (year / folder).mkdir(parents=True)
    names, there = [f"{i:06d}" for i in range(images)], []
    for name in names:
        (year / f"JPEGImages/{name}.jpg").write_bytes(b"not opened")
        xml = "<size><width>90</width><height>70</height></size>"
        for _ in range(rng.integers(0, 3)):
            x, y = rng.integers(1, 60), rng.integers(1, 40)
            box = (x, y, x + 29, y + 29)
            label, difficult = CLASSES[rng.integers(3)], int(rng.random() < 0.2)
            there.append((name, label, box))
            sides = "".join(
                f"<{s}>{v}</{s}>"
                for s, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
            )
            flag = f"<difficult>{difficult}</difficult>"
            xml += f"<object><name>{label}</name>{flag}<bndbox>{sides}</bndbox></object>"
        (year / f"Annotations/{name}.xml").write_text(f"<annotation>{xml}</annotation>")
    (year / "ImageSets/Main/test.txt").write_text("\n".join(names))
    return names, there


def write_found(folder, rng, names, there, confused):
    """What a detector finds, which takes that share of cups for mugs."""
    folder.mkdir()
    lines = {label: [] for label in CLASSES}
    for name, label, box in there * 4:
        said = "mug" if label == "cup" and rng.random() < confused else label
        sides = np.array(box) + rng.integers(-6, 7) / 2
        lines[said].append(f"{name} {rng.random():.3f} {' '.join(f'{s:.1f}' for s in sides)}")
    for _ in range(40):
        lines[CLASSES[rng.integers(4)]].append(
            f"{rng.choice(names)} {rng.random() / 2:.3f} 1 1 20 20"
        )
    for label, said in lines.items():
        (folder / f"comp4_det_test_{label}.txt").write_text("\n".join(said))
    return folder


@pytest.fixture
def world(tmp_path):
    rng = np.random.default_rng(0)
    names, there = write_devkit(tmp_path / "data", rng)
    for model, confused in (("good", 0.0), ("bad", 0.8)):
        write_found(tmp_path / model, rng, names, there, confused)
    return ["--gt", "data", "--classes", *CLASSES, "--similar", "cup,mug", "--out", "out"]


def run(*words):
    assert cli.main(["diagnose", *map(str, words)]) == 0
    return json.loads(Path("out/diagnosis.json").read_text())


def test_the_ground_truth_of_a_voc_needs_no_images(world):
    from goodtransfer.data import VOCDetectionDataModule

    records = VOCDetectionDataModule("data", class_names=CLASSES).records("test")
    shutil.rmtree("data/VOCdevkit/VOC2007/JPEGImages")
    truth = read_voc(Path("data"), "2007/test", CLASSES)
    assert truth.images == tuple(record.name for record in records)
    assert truth.sizes.tolist() == [[record.width, record.height] for record in records]
    rows = [
        (number, label, x1 + 1, y1 + 1, x2, y2, difficult)
        for number, r in enumerate(records)
        for (x1, y1, x2, y2), label, difficult in zip(r.boxes, r.labels, r.difficult, strict=True)
    ]
    of = truth.objects
    assert len(rows) > 20
    assert rows == [
        (*words, *box, difficult)
        for *words, box, difficult in zip(of.images, of.labels, of.boxes, of.difficult, strict=True)
    ]


def matches(tree, estimates, place):
    """Whether the JSON of a class says what the arrays do; null is NaN."""
    for number, (of, part) in enumerate(QUANTITIES):
        for key, ends in estimates._asdict().items():
            said = tree[of][part][key]
            assert math.isnan(ends[place, number]) if said is None else said == ends[place, number]


def test_two_models_side_by_side_with_paired_intervals(world, capsys):
    report = run("good", "bad", *world, "--resamples", 60, "--seed", 3)
    output = capsys.readouterr()
    assert "bootstrap: 100%" in output.err

    truth = read_voc(Path("data"), "2007/test", CLASSES)
    assert (len(truth.images), truth.sizes[0].tolist()) == (40, [90, 70])
    models = [
        diagnose(read_detections(Path(name), truth), truth, [("cup", "mug")]) for name in ("good", "bad")
    ]  # fmt: skip
    values, samples = [flat(measure(m)) for m in models], bootstrap(models, 60, seed=3)
    for name, model, value, sample in zip(("good", "bad"), models, values, samples, strict=True):
        said, found = report["models"][name], estimate(value, sample)
        assert said["file"] == name
        assert list(said["classes"]) == list(CLASSES)
        matches(said["mean"], found, 4)
        for place, label in enumerate(CLASSES):
            matches(said["classes"][label], found, place)
            errors = model.classes[place]
            assert said["counts"][label] == {
                "objects": len(errors.objects),
                "detections": len(errors.rows),
                "false positives": int((errors.kinds > 0).sum()),
            }
    assert list(report["differences"]) == ["bad - good"]
    difference = estimate(values[1] - values[0], samples[1] - samples[0])
    matches(report["differences"]["bad - good"]["mean"], difference, 4)
    assert report["similar classes"] == {"cup": ["mug"], "mug": ["cup"], "saw": [], "nut": []}
    assert (report["resamples"], report["seed"], report["images"]) == (60, 3, 40)

    assert "AP50                       as it is" in output.out
    assert "nut: undefined, no objects to be found." in output.out
    told = next(line for line in output.out.splitlines()[60:] if line.startswith("AP50   "))
    of = QUANTITIES.index(("AP50", "as it is"))
    assert f"{difference.value[4, of]:+.1f} [{difference.low[4, of]:+.1f}, " in told
    assert told.endswith("  smaller")
    assert report["models"]["good"]["classes"]["nut"]["first N detections"]["Cor"] == {
        "value": None, "low": None, "high": None,
    }  # fmt: skip
    for figure in ("figure1", "figure7"):
        with Image.open(f"out/{figure}.png") as picture:
            assert picture.width > 500


def test_one_model_without_intervals(world, capsys):
    report = run("bad", *world, "--resamples", 0, "--ap", "area", "--double-count")
    output = capsys.readouterr()
    assert output.err == ""
    assert "Differences" not in output.out
    assert "[" not in output.out
    assert report["differences"] == {}
    truth = read_voc(Path("data/VOCdevkit"), "2007/test", CLASSES)
    model = diagnose(read_detections(Path("bad"), truth), truth, [("cup", "mug")])
    value = flat(measure(model, interpolation="area", double_count=True))
    matches(report["models"]["bad"]["mean"], estimate(value, value[None] * np.nan), 4)
    assert not np.array_equal(value, flat(measure(model)), equal_nan=True)


def test_a_class_with_too_few_false_positives_is_undefined_in_text_and_null(world, capsys):
    report = run("good", *world, "--resamples", 0)
    text = capsys.readouterr().out
    line = next(line for line in text.splitlines() if line.startswith("first 400 false positives"))
    assert line.split()[-2:] == ["Loc", "undefined"]
    assert report["models"]["good"]["mean"]["first 400 false positives"]["Loc"]["value"] is None
    assert "Classes of good with as many false positives: " in text
    assert "0 at 400." in text


def test_predictions_of_the_study_on_the_toy_world_name_their_classes(tmp_path, capsys):
    """Detections that are the objects themselves: nothing is left to regain."""
    from goodtransfer.data import VOCDetectionDataModule, toy

    make_voc(tmp_path / "toy", train=1, test=20, size=64)
    data = VOCDetectionDataModule(tmp_path / "toy", class_names=toy.CLASSES)
    records = data.records("test")
    targets = [data.dataset(records).target(i) for i in range(len(records))]
    tensors = {
        "boxes": torch.cat([t["boxes"] for t in targets]),
        "labels": torch.cat([t["labels"] for t in targets]),
        "images": torch.arange(len(records)).repeat_interleave(torch.tensor(records.counts)),
    }
    tensors["scores"] = torch.linspace(1, 0.5, len(tensors["labels"]))
    described = {
        "images": json.dumps([r.name for r in records]),
        "class_names": json.dumps(toy.CLASSES),
    }
    save_file(tensors, tmp_path / "detections.safetensors", described)
    report = run("detections.safetensors", "--gt", "toy", "--out", "out", "--resamples", 20,
                 "--panels", toy.CLASSES[0])  # fmt: skip
    assert list(report["models"]) == ["detections"]
    mean = report["models"]["detections"]["mean"]
    assert mean["AP50"]["as it is"] == {"value": 100, "low": 100, "high": 100}
    assert mean["first N detections"]["Cor"]["value"] == 100
    assert mean["first 25 false positives"]["BG"]["value"] is None
    assert "No classes are called similar" in capsys.readouterr().out


@pytest.mark.data
def test_coco_s_own_files(shared, capsys):
    """Its fake results on 100 images. AP differs by rules that are named; not by more."""
    folder = shared / "data/metrics_reference/cocoapi"
    gt, found = (folder / f"instances_val2014_{n}.json" for n in ("100", "fakebbox100_results"))
    report = run(found, "--gt", gt, "--out", "out", "--resamples", 0, "--ap", "area",
                 "--similar", "cat,dog,horse", "--panels", "person", "animals=cat,dog,horse")  # fmt: skip
    truth = read_coco(gt)
    model = diagnose(read_detections(found, truth), truth, [("cat", "dog", "horse")])
    assert (len(truth.images), len(truth.class_names)) == (100, 80)
    assert report["similar classes"]["cat"] == ["dog", "horse"]
    assert sum(c["detections"] for c in report["models"][found.stem]["counts"].values()) == len(
        json.loads(found.read_text())
    )
    matches(
        report["models"][found.stem]["mean"],
        estimate(flat(measure(model, interpolation="area")), np.full((1, 80, 30), np.nan)),
        80,
    )
    ap = report["models"][found.stem]["mean"]["AP50"]["as it is"]["value"]
    assert ap == pytest.approx(coco_ap(gt, found)["AP50"], abs=1.5)
    without = [n for n, c in report["models"][found.stem]["counts"].items() if not c["objects"]]
    assert f"{', '.join(without)}: undefined" in capsys.readouterr().out
    assert without


@pytest.mark.data
def test_real_detections_on_real_annotations_of_voc2012(shared, tmp_path):
    """A detector's output on 100 photos, as VOC's text and as COCO's JSON: the same diagnosis."""
    folder = shared / "data/metrics_reference/voc2012_100_dets"
    gts, dets = (json.loads((folder / f"coco_{n}.json").read_text()) for n in ("gts", "dets"))
    files = {image["id"]: Path(image["file_name"]).stem for image in dets["images"]}
    names = {c["id"]: c["name"] for c in dets["categories"]}
    (tmp_path / "voc").mkdir()
    for number, name in names.items():
        mine = [d for d in dets["annotations"] if d["category_id"] == number]
        (tmp_path / f"voc/comp4_det_val_{name}.txt").write_text("".join(
            f"{files[d['image_id']]} {d['score']!r} {x + 1} {y + 1} {x + w} {y + h}\n"
            for d in mine for x, y, w, h in [d["bbox"]]
        ))  # fmt: skip
    assert len(names) == 20
    options = ("--out", "out", "--resamples", 0, "--panels", "person")
    text = run("voc", "--gt", shared / "data/voc2012_100", "--split", "2012/trainval", *options)
    model = text["models"]["voc"]
    assert sum(c["detections"] for c in model["counts"].values()) == len(dets["annotations"])
    assert text["images"] == 100
    shares = [c["first N detections"] for c in model["classes"].values()]
    sums = [
        sum(part["value"] for part in s.values()) for s in shares if s["Cor"]["value"] is not None
    ]
    assert len(sums) == 20
    assert sums == pytest.approx([100] * 20)
    assert text["similar classes"]["sofa"] == ["chair", "diningtable"]
    assert 30 < model["mean"]["AP50"]["as it is"]["value"] < 100

    place = {Path(image["file_name"]).stem: image["id"] for image in gts["images"]}
    number = {c["name"]: c["id"] for c in gts["categories"]}
    entries = [
        {"image_id": place[files[d["image_id"]]], "category_id": number[names[d["category_id"]]],
         "bbox": d["bbox"], "score": d["score"]}
        for d in dets["annotations"]
    ]  # fmt: skip
    (tmp_path / "results.json").write_text(json.dumps(entries))
    coco = run("results.json", "--gt", folder / "coco_gts.json", *options)["models"]["results"]
    counts = model["counts"]
    assert {n: c["detections"] for n, c in coco["counts"].items()} == {
        n: c["detections"] for n, c in counts.items()
    }
    # This JSON has neither difficult objects nor VOC's pixel convention.
    assert coco["mean"]["AP50"]["as it is"]["value"] == pytest.approx(
        model["mean"]["AP50"]["as it is"]["value"], abs=6
    )


# --- What is wrong


def failing(capsys, *words):
    assert cli.main(["diagnose", *map(str, words)]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert not Path("out").exists()
    (line,) = [line for line in output.err.splitlines() if line.startswith("goodtransfer: error: ")]
    return line


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["good", "missing"], "Expected a `detections.safetensors` of the study"),
        (["good", "good"], "Expected a different name for each of 2 models, but got"),
        (["good", "bad", "--names", "one"], "Expected a different name for each of 2 models, but got one"),
        (["good", "--panels", "cap"], "classes among cup, mug, saw, nut, but got 'cap'"),
        (["good", "--similar", "cup,cap"], "similar classes among cup, mug, saw, nut, but got 'cap'"),
        (["good", "--split", "2007/val"], "2007/val"),
        (["good", "--resamples", "-1"], "Expected --resamples of 0 or more, but got -1"),
        (["good", "--seed", "-1"], "Expected --seed of 0 or more, but got -1"),
        (["good", "--out", "good/comp4_det_test_saw.txt"], "a folder as --out, but good/comp4_det_test_saw"),
        (["good", "--gt", "gone.json"], "Expected a file at gone.json"),
        (["good", "--gt", "gone"], "gone"),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence_before_anything_is_written(words, told, world, capsys):
    assert told in failing(capsys, *world, *words)


def test_a_bad_line_is_named_with_its_file_and_value(world, capsys):
    path = Path("good/comp4_det_test_saw.txt")
    path.write_text(path.read_text() + "\n000001 nan 1 1 2 2")
    count = len(path.read_text().splitlines())
    told = failing(capsys, "good", *world)
    assert f"finite scores, but line {count} of {path} has nan" in told


def test_help_teaches_with_examples(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["diagnose", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.count("  goodtransfer diagnose ") >= 5
    for word in ("Loc", "Sim", "Oth", "BG", "--similar", "figure1.png", "comp4_det_test_"):
        assert word in text


def test_without_matplotlib_nothing_is_measured(world, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("goodtransfer.analysis.errors.diagnose", None)  # not called
    assert "pip install 'goodtransfer[study]'" in failing(capsys, "good", *world)
