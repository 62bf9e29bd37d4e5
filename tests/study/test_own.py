"""The user's own folders: chosen classes and tasks, and a study from one YAML file."""

import json
import re
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from goodtransfer.cli import main as cli
from goodtransfer.data import make_voc, toy
from goodtransfer.data.fingerprint import fingerprint
from goodtransfer.data.images import ImageDataset
from goodtransfer.study.cells import run_cell
from goodtransfer.study.config import read
from goodtransfer.study.fit_command import fit_command
from goodtransfer.study.plan import Study
from goodtransfer.study.remembered import remember, remembered
from goodtransfer.study.results import Results
from goodtransfer.study.tables import TABLES
from goodtransfer.study.transfers import TRANSFERS

sys.path.insert(0, str(Path(__file__).parent))
from tiny import TINY

COUNTS = {"ant": 15, "bee": 12, "cat": 14}  # to train on; of val, one each
CHOSEN = ("ant", "cat")
ROWS = ["Supervised", "MoCo-v1", "Exemplar-v1", "MoCo-v2", "Exemplar-v2", "Untrained"]
YAML = """
scale: tiny
out: results
data: photos
voc: boxes
voc_classes: {classes}
classes: [cat, ant]
tasks: [linear, voc07]
"""


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setattr("goodtransfer.study.fitting.workers", lambda: 0)


def photos(root, counts=COUNTS):
    for split in ("train", "val"):
        for label, (name, count) in enumerate(counts.items()):
            for i in range(count if split == "train" else 1):
                path = root / split / name / f"{i:02}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (16, 16), (90 * label, 10 * i, 128)).save(path)
    return root


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A folder with ``photos``, ``boxes`` and a ``study.yaml`` that names them."""
    folder = tmp_path_factory.mktemp("own")
    photos(folder / "photos")
    make_voc(folder / "boxes", train=12, test=8, size=64)
    (folder / "study.yaml").write_text(YAML.format(classes=list(toy.CLASSES)))
    return folder


@pytest.fixture(scope="module")
def finished(own, tmp_path_factory):
    """Its study, run from elsewhere: by cell, the images that were read."""
    seen, real, study = {}, ImageDataset.item, Study.open(own / "results", **settings(own))

    def item(self, epoch, number):
        now.append((self.files.name(number), int(self.files.labels[number])))
        return real(self, epoch, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        patch.setattr("goodtransfer.study.fitting.workers", lambda: 0)
        patch.setattr(ImageDataset, "item", item)
        for cell in study.cells():
            now = seen[cell.key] = []
            if cell.row.name in ("Supervised", "Exemplar-v2"):
                run_cell(study, cell)
    return study, seen


def settings(own, **changes):
    found = {**read(own / "study.yaml"), **changes}
    del found["out"]
    return found


def of(study, name):
    """By kind, a row's cells."""
    return {cell.kind: cell for cell in study.cells() if cell.row.name == name}


@pytest.mark.parametrize("row", ["Supervised", "Exemplar-v2"])
def test_a_pretraining_sees_the_chosen_classes_and_a_readout_all(finished, row):
    study, seen = finished
    cells = of(study, row)
    assert list(cells) == ["pretrain", "linear", "voc07"]
    # Val, on which cross-entropy's own classifier is scored, has files of the same names.
    expected = {(f"{name}/{i:02}.png", CHOSEN.index(name)) for name in CHOSEN
                for i in range(COUNTS[name])}  # fmt: skip
    assert set(seen[cells["pretrain"].key]) == expected
    read_out = {(name.split("/")[0], label) for name, label in seen[cells["linear"].key]}
    assert read_out == {(name, label) for label, name in enumerate(COUNTS)}


def test_a_head_of_other_classes_is_not_in_the_readout(finished):
    study, _ = finished
    results, cells = Results(study), of(study, "Supervised")
    encoder = load_file(results.folder(cells["pretrain"].key) / "encoder.safetensors")
    assert len(encoder["head.weight"]) == 2
    assert "acc_head" in results.metrics(cells["pretrain"].key)  # of its own two classes
    linear = results.metrics(cells["linear"].key)
    assert {"acc", "acc_lr30"} <= set(linear)
    assert "acc_head" not in linear


def test_all_classes_chosen_are_none_chosen(own, tmp_path):
    """The same keys, and the head is scored."""
    given = settings(own, tasks=["linear"])
    every = Study.open(tmp_path, **given | {"classes": ["cat", "bee", "ant"]})
    assert [c.key for c in every.cells()] == [
        c.key for c in Study.open(tmp_path, **given | {"classes": []}).cells()
    ]
    for cell in every.cells()[:2]:
        run_cell(every, cell)
    assert "acc_head" in Results(every).metrics(cell.key)


def test_boxes_are_of_the_users_classes(finished):
    study, _ = finished
    folder = Results(study).folder(of(study, "Supervised")["voc07"].key)
    with safe_open(folder / "detections.safetensors", "pt") as file:
        assert json.loads(file.metadata()["class_names"]) == list(toy.CLASSES)


def test_the_yaml_says_what_is_made(own, finished, capsys):
    study, _ = finished
    assert study.out == own / "results"
    assert study.roots == {"imagenet": own / "photos", "voc": own / "boxes"}
    assert [row.label for row in TABLES["own"].rows] == ROWS
    assert [(c.row.name, c.kind) for c in study.cells()] == [
        (name, kind) for name in ROWS for kind in ("pretrain", "linear", "voc07")
    ]
    lines = [c.fidelity for c in study.cells()[:2]]
    assert "data photos, 29 images of 2 classes (paper: ImageNet)" in lines[0]
    assert "data photos, 41 images of 3 classes (paper: ImageNet)" in lines[1]
    assert cli(["study", "list", "--config", str(own / "study.yaml"), "--tasks", "linear"]) == 0
    listed = re.findall(r"^[0-9a-f]{16}(?=  )", capsys.readouterr().out, re.MULTILINE)
    assert listed == [c.key for c in study.cells() if c.kind != "voc07"]


def test_a_study_remembers_its_choices_and_reports_them(own, finished, capsys):
    study, _ = finished
    study.save()
    saved = json.loads((own / "results/study.json").read_text())
    assert saved["classes"] == ["ant", "cat"]
    assert saved["tasks"] == ["linear", "voc07"]
    assert saved["voc_classes"] == list(toy.CLASSES)
    assert Study.open(own / "results") == study
    assert Study.open(own / "results", classes=("cat", "ant")) == study
    with pytest.raises(ValueError, match=r"one classes in a study.*\['ant', 'cat'\] and \['bee'\]"):
        Study.open(own / "results", classes=["bee"])
    call = ["study", "compare", "Exemplar-v2", "Supervised", "--table", "own", "--out"]
    assert cli([*call, str(study.out)]) == 0
    told = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert set(told) == {c for k in ("linear", "voc07") for c in TRANSFERS[k].columns}
    assert "over images" in told["acc"]
    assert told["acc_head"] == "not measured"
    assert cli(["study", "report", "--out", str(study.out)]) == 0
    html = (study.out / "report.html").read_text()
    assert "Own data: which pretraining serves which task" in html
    assert "photos, 29 images of 2 classes" in html


def test_keys_change_with_the_classes_and_not_with_their_order(own, tmp_path):
    def keys(kind, **changes):
        return [c.key for c in replace(study, **changes).cells() if c.kind == kind]

    study = Study.open(tmp_path, **settings(own))
    for kind in ("pretrain", "linear", "voc07"):
        chosen = keys(kind)
        assert len(set(chosen)) == len(ROWS)
        assert keys(kind, classes=("cat", "ant", "cat")) == chosen
        for other in ((), ("ant", "bee"), ("ant",)):
            assert not set(keys(kind, classes=other)) & set(chosen)
    detected = keys("voc07")
    assert not set(detected) & set(keys("voc07", voc_classes=toy.CLASSES[::-1]))
    for kind in ("pretrain", "linear"):
        assert keys(kind, voc_classes=()) == keys(kind)
    # A folder that has no other classes holds the same images.
    less = photos(tmp_path / "less", {name: COUNTS[name] for name in CHOSEN})
    assert fingerprint(less) == fingerprint(own / "photos", CHOSEN[::-1])


def test_keys_of_old_studies_are_what_they_were(tmp_path):
    """They change with PROTOCOL_VERSION, a drawn world's version, and nothing else."""
    tables = tuple(name for name in TABLES if name != "own")
    cells = {(c.row.title, c.kind): c.key for c in Study(tmp_path, TINY, tables=tables).cells()}
    assert {name: cells[name] for name in OLD} == OLD
    shared = {c.key for c in Study(tmp_path, TINY, tables=("own",), tasks=("linear",)).cells()}
    assert shared <= set(cells.values())


OLD = {
    ("Supervised", "pretrain"): "e51eb66d110aa12c",
    ("Supervised", "linear"): "65069a0123d6ed0f",
    ("Supervised on mini_imagenet", "few_shot"): "40f5a598a27ee017",
}


def test_tasks_restrict_every_table(own, tmp_path):
    def kinds(**changes):
        given = settings(own, **changes)
        return {c.kind for c in Study.open(tmp_path, **given).cells()}

    assert kinds(tasks=["linear"]) == {"pretrain", "linear"}
    assert kinds(tasks=["voc07_course"]) == {"pretrain", "voc07_course"}
    # Unasked, all there is a folder for: the toy world is not drawn beside it, unless a task is.
    assert kinds(tasks=[]) == {"pretrain", "linear", "voc07"}
    assert kinds(tasks=["city"]) == {"pretrain", "city"}
    assert kinds(tables=["3", "floor"], tasks=["linear"]) == {"pretrain", "linear"}
    study = Study.open(tmp_path, **settings(own, tasks=[]))
    assert study.left_out() == set()
    whole = Study(tmp_path, replace(TINY, toy={}), study.roots, tables=("own",))
    assert whole.left_out() == {"--coco", "--cityscapes", "--mini-imagenet", "--celeba"}
    assert {c.kind for c in Study(tmp_path, TINY, tables=("own",)).cells()} == {
        "pretrain", "linear", "voc07", "coco", "city", "base", "few_shot", "landmarks"
    }  # fmt: skip


def test_classes_of_the_drawn_world(tmp_path):
    study = Study(tmp_path, TINY, tables=("own",), classes=("star-dots", "disc-dots"))
    found = study.pretrained_on("imagenet")
    assert (found.text, found.size[:2]) == ("2 classes of the toy world", (4, 2))
    assert study.source("imagenet").size[:2] == (40, 20)
    assert study.pretrained_on("places") == study.source("places")
    every = replace(study, classes=toy.CLASSES)
    assert [c.key for c in every.cells()] == [c.key for c in replace(study, classes=()).cells()]


def test_the_command_of_a_row_has_its_classes(own, finished, tmp_path, monkeypatch):
    study, _ = finished
    cell = of(study, "Supervised")["pretrain"]
    words = fit_command(study, cell.row)
    assert '--data.subset=["ant", "cat"]' in words
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.setenv("PL_SEED_WORKERS", "0")
    quiet = ["--data.num_workers=0", "--trainer.accelerator=cpu", "--trainer.logger=false",
             "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
             f"--trainer.default_root_dir={tmp_path}"]  # fmt: skip
    assert cli([*shlex.split(shlex.join(words))[1:], *quiet]) is None
    (checkpoint,) = tmp_path.glob("checkpoints/*.ckpt")
    found = torch.load(checkpoint, weights_only=True)["state_dict"]
    made = load_file(Results(study).folder(cell.key) / "encoder.safetensors")
    for name, value in made.items():
        part = name if name.startswith("head.") else f"encoder.{name}"
        assert torch.equal(found[part], value), name


def test_few_images_are_warned_of_and_no_more(tmp_path):
    root = photos(tmp_path / "few", {"ant": 6, "bee": 6, "cat": 6})
    given = {"scale": "tiny", "imagenet": str(root), "tables": ["own"], "classes": ["ant", "bee"]}
    study = Study.open(tmp_path / "s", **given)
    cell = of(study, "Exemplar-v2")["pretrain"]
    with pytest.warns(
        UserWarning, match=r"queue \(24 keys\) is as large as the data set \(12 images"
    ):
        run_cell(study, cell)
    assert Results(study).done(cell.key)


# --- Sentences


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("clases: [ant]", r"Expected keys among scale, out, data, .* in FILE, but got 'clases': did you "
         r"mean 'classes'\?"),
        ("7: 8", r"but got 7\."),
        ("scale: smal", r"`scale` in FILE to be one of paper, small, .* but got 'smal': did you mean "
         r"'small'\?"),
        ("tables: [own, 33]", r"`tables` in FILE to be some of .*but got '33': did you mean '3'\?"),
        ("tasks: [liner]", r"`tasks` in FILE to be some of linear, .*'liner': did you mean 'linear'\?"),
        ("classes: ant", r"`classes` in FILE to be a list of names, but got 'ant'\."),
        ("classes: []", r"`classes` in FILE to be a list of names, but got \[\]\."),
        ("classes: [no]", r"`classes` in FILE to be a list of names, but got False: put it in quotes"),
        ("seeds: many", r"`seeds` in FILE to be a whole number, but got 'many'\."),
        ("seeds: true", r"to be a whole number, but got True\."),
        ("seeds: 0", r"Expected at least one seed, but got 0\."),
        ("data: [photos]", r"`data` in FILE to be a folder, but got \['photos'\]\."),
        ("data: photo", r"`data` in FILE to be a folder that is there, but got '.*/photo': did you mean "
         r"'photos'\?"),
        ("mini-imagenet: nowhere", r"`mini-imagenet` in FILE to be a folder that is there, but got "
         r"'.*/nowhere'\."),
        ("voc_splits: [2007/test]", r"`voc_splits` in FILE to be two splits, to train and to test on"),
        ("voc_classes: [ant]", r"Expected `voc` beside `voc_classes` in FILE, but there is none\."),
        ("data: photos\nclasses: [ant, unicorn]", r"classes among the folders of .*/photos/train, "
         r"but got 'unicorn': choose of ant, bee, cat\."),
        ("data: photos\nclasses: [ant, bea]", r"but got 'bea': did you mean 'bee'\?"),
        ("classes: [disc-dots, star-dot]", r"but got 'star-dot': did you mean 'star-dots'\?"),
        ("classes: [star-dots, star-dots]", r"at least two classes to pretrain on, but got 'star-dots' "
         r"alone: cross-entropy and Exemplar"),
        ("tables: [3]\ntasks: [landmarks]", r"Expected tasks that table 3 has columns of, linear, voc07, "
         r"coco, city, but got 'landmarks'\."),
        ("tables: [2]\nclasses: [disc-dots, star-dots]", r"no chosen classes for table 2, whose rows have"),
        ("scale: small\ndata: photos\ntasks: [city]", r"Expected --cityscapes ROOT for task city: a "
         r"folder with leftImg8bit and gtFine\."),
        ("- scale", r"Expected `key: value` lines in FILE, .* but got \['scale'\]"),
        ("scale: [", r"Expected YAML in FILE, but cannot read it: .*line 2"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_do_is_told_in_one_sentence(line, text, own, capsys):
    file = own / "wrong.yaml"
    given = {} if line.startswith(("-", "scale")) else {"scale": "tiny"}
    file.write_text(f"{yaml.safe_dump(given) if given else ''}{line}\n")
    call = ["study", "run", "--config", str(file), "--out", str(own / "wrong")]
    assert cli(call) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.search(text.replace("FILE", re.escape(str(file))), said)
    assert not (own / "wrong").exists()


def test_the_command_line_goes_before_the_file(own, capsys):
    file = own / "little.yaml"
    file.write_text("scale: small\nout: made\ndata: photos\n")
    call = ["study", "list", "--config", str(file)]
    assert (
        cli([*call, "--scale", "tiny", "--classes", "cat", "bee", "--table", "10", "--seeds", "2"])
        == 0
    )
    told = capsys.readouterr().out
    assert "encoder resnet10w8 (paper: resnet50)" in told  # which is scale tiny's
    assert "data photos, 26 images of 2 classes" in told
    assert "Table 10" in told
    assert "seed 1" in told
    assert cli(["study", "list", "--config", str(own / "no.yaml")]) == 2
    assert f"Expected a YAML file at {own / 'no.yaml'}" in capsys.readouterr().err
    file.write_text("scale: tiny\n")
    assert cli(call) == 2
    assert "Expected --out FOLDER, or `out` in the file of --config" in capsys.readouterr().err


def test_cost_knows_the_chosen_images(own, capsys):
    call = ["study", "cost", "--config", str(own / "study.yaml"), "--tasks", "linear"]
    assert cli(call) == 0
    told = capsys.readouterr().out
    assert re.search(r"Supervised +29 +6 +60 ", told)  # three epochs of two batches of ten
    assert "K = 24 is 83% of the 29 images of imagenet" in told


def test_the_example_is_one(tmp_path, monkeypatch):
    """With folders like those that it tells to draw, at fewer images."""
    example = Path(__file__).resolve().parents[2] / "examples/own_data/study.yaml"
    (tmp_path / "study.yaml").write_text(example.read_text())
    toy.make_imagefolder(tmp_path / "toy/imagefolder", train=40, val=20, size=16)
    make_voc(tmp_path / "toy/voc", train=2, test=2, size=32)
    found = read(tmp_path / "study.yaml")
    study = Study.open(found.pop("out"), **found)
    assert study.out == tmp_path / "results"
    assert len(study.cells()) == 6 * 3
    assert study.pretrained_on("imagenet").size == (32, 16, 0)
    assert study.voc_classes == toy.CLASSES
    # As many as the file says, and enough for the queues.
    images = 16 * (5000 * 300 // 2000) // 20
    assert 600 == images > 2 * max(study.scale.queue_sizes.values())


def test_jobs_do_not_look_into_the_folders_again(own, tmp_path, capsys):
    """Which takes minutes for ImageNet on a shared disk, while a GPU waits."""
    here, out = tmp_path / "own", tmp_path / "s"
    shutil.copytree(own, here, ignore=shutil.ignore_patterns("results"))
    call = ["--config", str(here / "study.yaml"), "--out", str(out)]
    assert cli(["study", "commands", *call]) == 0
    keys = re.findall(r"study cell (\w{16}) ", capsys.readouterr().out)
    assert keys

    def look(*_):
        raise AssertionError("looked")

    with pytest.MonkeyPatch.context() as patch:
        for found in ("find", "find_classes"):
            patch.setattr(f"goodtransfer.study.plan.{found}", look)
        assert [cell.key for cell in remembered(Study.open(out)).cells()] == keys
    for verb in ("claims", "report"):
        assert cli(["study", verb, "--out", str(out)]) == 0
    assert cli(["study", "cell", "0" * 16, "--out", str(out)]) == 2
    assert "Expected the key of a cell" in capsys.readouterr().err
    (out / "work" / "found.json").write_text("[")
    assert [cell.key for cell in remembered(Study.open(out)).cells()] == keys  # it is looked anew


def test_folders_that_have_changed_are_looked_into_again(own, tmp_path):
    """Else a cell would train on images that are not its key's."""
    here = tmp_path / "own"
    shutil.copytree(own, here, ignore=shutil.ignore_patterns("results"))
    study = Study.open(tmp_path / "s", **settings(here))
    study.save()
    (study.out / "work").mkdir()
    remember(study)
    assert remembered(study).found.keys() == {"imagenet", "chosen classes", "voc"}
    (here / "photos" / "train" / "ant" / "00.png").unlink()
    assert remembered(study).found.keys() == {"voc"}
    (here / "boxes").rename(here / "elsewhere")
    assert not remembered(study).found


def test_voc_0712_never_trains_on_what_is_tested_on(own, tmp_path):
    voc = {"voc": own / "boxes", "voc_splits": ["2012/train", "2012/val"]}
    asked = {"scale": "tiny", "tables": ["6"], **voc}
    with pytest.raises(
        ValueError, match=r"splits of VOC 2007 for voc0712, which adds 2012/trainval"
    ):
        Study.open(tmp_path, **asked)
    Study.open(tmp_path, **asked, tasks=["linear"])


def test_a_detectors_step_in_micro_batches_is_another_run_that_says_so(tmp_path):
    asked = {"scale": "tiny", "tables": ["2"], "tasks": ["linear", "voc07"]}
    whole = Study.open(tmp_path / "a", **asked)
    parts = Study.open(tmp_path / "b", **asked, micro_batches=2)
    parts.save()
    assert Study.open(tmp_path / "b").cells() == parts.cells()
    changed = 0
    for one, other in zip(whole.cells(), parts.cells(), strict=True):
        by_detection = one.row.method == "COCODetection"
        own = one.kind == "voc07" or (one.kind == "pretrain" and by_detection)
        assert (one.key != other.key) == (own or by_detection), one.title
        assert ("accumulate 4 " in other.fidelity) == own, other.fidelity
        assert ("bn images 2 " in other.fidelity) == own, other.fidelity
        changed += own
    assert changed > 2
    supervised = [c for c in parts.cells() if c.row.method == "COCODetection"]
    for cell in supervised:
        if cell.kind in ("pretrain", "voc07"):
            run_cell(parts, cell)
    for wrong in (0, 3):
        with pytest.raises(ValueError, match=f"divide a detector's 4 images, but got {wrong}"):
            Study.open(tmp_path / "c", **asked, micro_batches=wrong)
