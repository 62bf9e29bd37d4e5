"""A whole study of seconds: made, made again, killed, resumed, mixed up, reported."""

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from goodtransfer import (
    MAFLDataModule,
    VOCDetectionAP,
    VOCDetectionDataModule,
    diagnose,
    read_detections,
)
from goodtransfer.analysis.error_measures import measure
from goodtransfer.cli import main as cli
from goodtransfer.data import make_voc
from goodtransfer.data.fingerprint import fingerprint
from goodtransfer.study import per_image
from goodtransfer.study.cells import run_cell
from goodtransfer.study.fidelity import divided, heading, sentence
from goodtransfer.study.plan import Study
from goodtransfer.study.report import summary
from goodtransfer.study.results import Results
from goodtransfer.study.run import run_study
from goodtransfer.study.transfers import TRANSFERS
from goodtransfer.study.voc_truth import read_voc
from goodtransfer.weights import load_encoder

sys.path.insert(0, str(Path(__file__).parent))
from tiny import TINY

KINDS = ("pretrain", "linear", "voc07", "coco", "city")
SUPERVISED = ["--scale", "tiny", "--table", "floor", "supervised"]


def main(arguments):
    return cli(["study", *arguments])


@pytest.fixture(autouse=True)
def _tiny_in_the_parser(monkeypatch):
    """`--scale` offers what SCALES holds, which tiny.py has added to."""
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setattr("goodtransfer.study.fitting.workers", lambda: 0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished study of the supervised table, made once."""
    out = tmp_path_factory.mktemp("study") / "s"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("goodtransfer.study.fitting.workers", lambda: 0)
        assert main(["run", *SUPERVISED, "--out", str(out)]) == 0
    return out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("table", "kinds", "columns"),
    [
        ("4", ("pretrain", "base", "few_shot"), {"base_acc", "novel_1shot", "novel_5shot"}),
        ("5", ("pretrain", "landmarks"), {"landmark_error", "landmark_error_mean_shape"}),
    ],
)
def test_few_shot_and_faces_pretrain_on_their_own_images(table, kinds, columns, tmp_path):
    out = tmp_path / "s"
    assert main(["run", "--scale", "tiny", "--table", table, "--out", str(out)]) == 0
    study = Study.open(out)
    cells, results = study.cells(), Results(study)
    assert {c.kind for c in cells} == set(kinds)
    for label, measured in summary(study):
        assert columns <= set(measured), label
        assert (
            all(0 <= value <= 100 for name in columns for value in measured[name]) or table == "5"
        )
    resampled = {
        "4": {"base_acc", "base_acc_head", "novel_1shot", "novel_5shot"},
        "5": {"landmark_error"},
    }
    assert check_per_image(out) == resampled[table]
    own = results.metrics(next(c.key for c in cells if c.kind == kinds[1]))
    assert ("base_acc_head" in own) == (table == "4")  # the first row is cross-entropy's
    html = (out / "report.html").read_text()
    for kind in kinds[1:]:
        assert TRANSFERS[kind].section in html


def test_figure_4_follows_both_trainings(tmp_path):
    out = tmp_path / "s"
    assert main(["run", "--scale", "tiny", "--table", "figure4", "--out", str(out)]) == 0
    study = Study.open(out)
    cells, results = study.cells(), Results(study)
    # Ten parts of three epochs end in one of them.
    assert [(c.row.name, c.kind, c.epoch) for c in cells] == [
        (name, *cell)
        for name in ("Supervised", "MoCo-v2")
        for cell in (
            ("pretrain", None), ("voc07_course", 1), ("voc07_course", 2), ("voc07_course", 3),
        )
    ]  # fmt: skip
    for cell in cells:
        folder = results.folder(cell.key)
        if cell.kind == "pretrain":
            last = load_file(folder / "encoder.safetensors")
            kept = [load_file(file) for file in sorted((folder / "encoders").iterdir())]
            assert len(kept) == 3
            assert all(torch.equal(last[name], value) for name, value in kept[2].items())
            assert any(not torch.equal(last[name], value) for name, value in kept[1].items())
            continue
        scored = [row for row in results.curves(cell.key) if "voc07_course_AP" in row]
        at_the_end = results.metrics(cell.key)["voc07_course_AP"]
        # After both iterations of 16 images, which are two steps of 8 each, and in the test.
        assert [row["step"] + 1 for row in scored] == [2, 4, 5]
        assert scored[1]["voc07_course_AP"] == pytest.approx(at_the_end, abs=1e-4)
    assert "Figure 4: VOC07 AP" in (out / "report.html").read_text()


@pytest.mark.filterwarnings("ignore:The queue .16 keys. is as large")  # of four images
@pytest.mark.parametrize("data", ["imagenet100", "places", "coco_images", "synthia"])
def test_every_data_set_of_table_2_is_pretrained_on(data, tmp_path):
    study = Study(tmp_path / "s", TINY, tables=("2",))
    labels = "coco" if data == "coco_images" else data
    cells = [c for c in study.cells() if c.kind == "pretrain" and c.row.data in (data, labels)]
    assert len(cells) == 2
    tasks = {"coco_images": "COCODetection", "synthia": "Segmentation"}
    assert [c.row.method for c in cells] == [tasks.get(data, "SupervisedCE"), "MoCoV2"]
    results = Results(study)
    for cell in cells:
        run_cell(study, cell)
        folder = results.folder(cell.key)
        trained = load_file(folder / "encoder.safetensors")
        pl.seed_everything(cell.seed)
        start = load_encoder(TINY.every["encoder"]).state_dict()
        assert set(trained) - {"head.weight", "head.bias"} == set(start)
        assert not torch.equal(trained["layer4.0.conv1.weight"],
                               start["layer4.0.conv1.weight"])  # fmt: skip
        with Image.open(folder / "samples.png") as picture:
            assert picture.width == 1024
    # Strides are back, and both stages are there: a linear readout takes either.
    encoder = load_encoder(folder / "encoder.safetensors")
    assert encoder(torch.rand(1, 3, 64, 64))[5].shape[2:] == (2, 2)


def test_rows_without_images_are_left_out_and_named(tmp_path):
    toy = {name: world for name, world in TINY.toy.items() if name not in ("places", "synthia")}
    study = Study(tmp_path / "s", replace(TINY, toy=toy), tables=("2",))
    assert [r.label for _, r in study.rows()] == [
        f"{kind}, {name}" for kind in ("supervised", "unsupervised")
        for name in ("ImageNet", "ImageNet-10%", "ImageNet-100", "CelebA", "COCO")
    ]  # fmt: skip
    assert study.left_out() == {"--places", "--synthia"}


@pytest.mark.data
@pytest.mark.slow
def test_figures_2_and_6_rebuild_the_same_images_from_every_pretraining(
    tmp_path, shared, monkeypatch
):
    monkeypatch.setenv("TORCH_HOME", str(shared / "weights/torch_home"))
    out = tmp_path / "s"
    assert main(["run", "--scale", "tiny", "--table", "figure2", "--out", str(out)]) == 0
    study = Study.open(out)
    results = Results(study)
    cells = [c for c in study.cells() if c.kind == "inversion"]
    assert [c.row.name for c in cells] == ["Supervised", "InstDisc", "SimCLR", "MoCo-v2"]
    originals = []
    for cell in cells:
        gallery = results.folder(cell.key) / "gallery"
        made = json.loads((gallery / "results.json").read_text())
        assert made["settings"]["steps"] == 2
        originals.append({f.name: f.read_bytes() for f in gallery.glob("original/**/*.png")})
        found = results.metrics(cell.key)
        assert set(found) == set(TRANSFERS["inversion"].columns) | {"loss"}
        for name, value in found.items():
            assert value == pytest.approx(sum(e[name] for e in made["inversions"]) / 2)
    assert len(originals[0]) == 2
    assert all(o == originals[0] for o in originals)
    classes = {entry["image"].split("/")[0] for entry in made["images"]}
    assert len(classes) == 2  # one of each
    html = (out / "report.html").read_text()
    assert "Figure 2: images" in html
    assert "Figure 6: distance" in html


def test_figures_1_and_7_are_those_of_the_stored_detections(finished):
    study = Study.open(finished)
    (cell,) = (c for c in study.cells() if c.kind == "voc07" and c.row.name == "Supervised")
    folder = Results(study).folder(cell.key)
    kept = load_file(folder / "errors.safetensors")
    with safe_open(folder / "errors.safetensors", "np") as file:
        names = json.loads(file.metadata()["class_names"])
    truth = read_voc(finished / "toy" / "voc", "2007/test", names)
    measures = measure(diagnose(read_detections(folder / "detections.safetensors", truth), truth))
    for name, values in measures._asdict().items():
        np.testing.assert_allclose(kept[name].numpy(), values, err_msg=name)
    html = (finished / "report.html").read_text()
    assert "Figure 1: types of false positives" in html
    assert "Figure 7: what the first detections are" in html


@pytest.mark.slow
def test_figure_3_has_the_same_faces_for_every_pretraining(tmp_path):
    out = tmp_path / "s"
    assert main(["run", "--scale", "tiny", "--table", "5", "--out", str(out)]) == 0
    study = Study.open(out)
    results = Results(study)
    runs = [load_file(results.folder(c.key) / "faces.safetensors") for c in study.cells()
            if c.kind == "landmarks"]  # fmt: skip
    assert len(runs) == 4
    data = MAFLDataModule(study.root("mafl"), size=32)
    data.setup("test")
    images, target = next(iter(data.test_dataloader()))
    for run in runs:
        torch.testing.assert_close(run["faces"], images[:8])
        torch.testing.assert_close(run["true"], target["landmarks"][:8].float())
        assert run["found"].shape == (8, 5, 2)
        assert not torch.equal(run["found"], runs[0]["found"]) or run is runs[0]
    assert "Figure 3: true landmarks" in (out / "report.html").read_text()


def files(out):
    return {p: p.stat().st_mtime_ns for p in (out / "results").rglob("*") if p.is_file()}


def test_leaves_finished_folders_and_no_work(finished):
    study = Study.open(finished)
    cells, results = study.cells(), Results(study)
    assert [c.kind for c in cells] == [*KINDS[:2], *KINDS, *KINDS]  # nothing detects by pixels
    assert all(results.done(c.key) for c in cells)
    assert {p.name for p in (finished / "work").iterdir()} == {"choice.lock", "working.lock"}
    for cell in cells:
        run = results.run(cell.key)
        assert run["scale"] == "tiny"
        assert run["fidelity"] == cell.fidelity
        if cell.kind == "linear":
            assert {"acc", "acc_lr30", "chosen_lr"} <= set(results.metrics(cell.key))
        if cell.kind == "voc07":
            assert set(results.metrics(cell.key)) == set(TRANSFERS["voc07"].columns)
        if cell.kind in ("coco", "city"):
            assert set(results.metrics(cell.key)) == set(TRANSFERS[cell.kind].columns)
    pretrained, read, *_ = (c for c in cells if c.row.name == "Supervised")
    readout, pretraining = (results.metrics(c.key) for c in (read, pretrained))
    assert readout["acc_head"] == pytest.approx(pretraining["acc_head"])


def test_a_second_run_redoes_nothing_and_needs_no_torch(finished):
    before = files(finished)
    code = (
        "import sys; sys.path.insert(0, sys.argv[2]); import tiny\n"
        "from goodtransfer.cli import main\n"
        "code = main(['study', 'run', '--out', sys.argv[1]])\n"
        "sys.exit(code or 3 * ('torch' in sys.modules))"
    )
    started = time.monotonic()
    call = [sys.executable, "-c", code, str(finished), str(Path(__file__).parent)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "0 cells made, 12 were done" in done.stdout
    assert files(finished) == before
    assert time.monotonic() - started < 15


def test_the_report_is_one_file_with_everything(finished):
    html = (finished / "report.html").read_text()
    assert "<title>goodtransfer · scale tiny</title>" in html
    assert "paper: 200" in html  # a fidelity line
    assert ">77.3</td>" in html
    assert html.count("<svg") >= 2
    assert html.count("data-root-id=") == 4  # precision of both tables, two curves of cross-entropy
    assert "data:image/webp;base64," in html
    own = re.sub(r"<script>\n/\* BEGIN bokeh.*?</script>", "", html, flags=re.DOTALL)
    assert len(html) - len(own) > 1_000_000  # BokehJS, once
    assert not re.findall(r'(?:src|href)="(?!data:|#)', own)
    assert "http" not in re.sub(r"http://www.w3.org/\S+", "", own)
    assert (finished / "report.md").is_file()
    assert (finished / "report.csv").is_file()
    study = Study.open(finished)
    readouts = [c for c in study.cells() if c.kind == "linear"]
    pixels, untrained, supervised = (Results(study).metrics(c.key)["acc"] for c in readouts)
    best = max(pixels, untrained)
    assert f'<td data-value="{best}"><b>{best:.1f}</b></td>' in html  # the best of its table
    assert f'<td data-value="{supervised}">{supervised:.1f}</td>' in html  # alone in its table


def test_what_all_rows_share_is_told_once():
    own, shared = divided(
        [
            {"pretrain": ["x", "y"], "linear": ["u"]},
            {"pretrain": ["y", "z"], "linear": ["u"], "voc07": ["v"]},
        ]
    )
    assert sentence(shared) == "y; linear: u; voc07: v"
    assert [sentence(line) for line in own] == ["x", "z"]
    (alone,), shared = divided([{"pretrain": ["x"], "voc07": ["v"]}])
    assert (sentence(alone), sentence(shared)) == ("x; voc07: v", "")
    assert heading(alone) is None
    long = {"pretrain": ["x" * 200], "voc07": ["v" * 40, "w"]}
    assert heading(long) == "3 values differ from the paper's (pretrain 1, voc07 2)"


def test_list_names_every_cell_and_what_it_changes(finished, capsys):
    assert main(["list", "--out", str(finished)]) == 0
    printed = capsys.readouterr().out.splitlines()
    numbers = [n for n, line in enumerate(printed) if re.match(r"[0-9a-f]{16}  ", line)]
    assert [printed[n].split()[0] for n in numbers] == [c.key for c in Study.open(finished).cells()]
    lines = [line for n in numbers for line in printed[n : n + 2]]
    assert len(lines) == 24
    assert all("  done  " in line for line in lines[::2])
    pretraining, voc07 = lines[-9], lines[-5]
    assert "encoder resnet10w8 (paper: resnet50)" in pretraining
    assert "batch 8 (paper: 16); accumulate 2 (paper: 1); lr" not in voc07  # lr is the paper's
    assert "bn images 4 (paper: 16)" in voc07
    assert "data toy world (paper: 5,011 of 2007/trainval, 4,952 of 2007/test)" in voc07


def test_an_unfinished_report_shows_what_there_is(finished, tmp_path):
    study = replace(Study.open(finished), tables=("3", "supervised", "floor"))
    from goodtransfer.study.report import write_report

    html = write_report(study).read_text()
    assert "12 of 32 runs finished" in html
    main(["report", "--out", str(finished)])


def test_keys_follow_content_and_nothing_else(tmp_path):
    study = Study(tmp_path, TINY)
    keys = [c.key for c in study.cells()]
    assert len(set(keys)) == len(keys) == 25
    assert [c.key for c in Study(tmp_path / "elsewhere", TINY).cells()] == keys
    ten = {c.key for c in replace(study, tables=("10",)).cells()}
    first = {c.key for c in replace(study, tables=("3",)).cells() if c.kind in KINDS[:2]}
    assert first <= ten  # tables are views: a row in two tables is one run
    assert {c.kind for c in replace(study, tables=("10",)).cells()} == set(KINDS[:2])
    assert not set(keys) & {
        c.key for c in replace(study, scale=replace(TINY, name="other")).cells()
    }
    reseeded = replace(study, seeds=2).cells()
    assert len(reseeded) == 50
    assert set(keys) < {c.key for c in reseeded}


def test_keys_of_detection_follow_its_own_data(tmp_path):
    """Other detection images leave the pretraining and the readout alone."""
    base = {"imagenet": images_in(tmp_path / "base")}
    study = Study(tmp_path, replace(TINY, toy={}), base, tables=("3",))
    assert {c.kind for c in study.cells()} == {"pretrain", "linear"}  # no VOC was named
    keys = {}
    for test in (3, 4):
        root = make_voc(tmp_path / f"voc{test}", train=2, test=test, size=32)
        cells = replace(study, roots={**base, "voc": root}).cells()
        keys[test] = {k: {c.key for c in cells if c.kind == k} for k in KINDS}
        detection = next(c for c in cells if c.kind == "voc07")
        assert f"data 2 of 2007/trainval, {test} of 2007/test (paper: 5,011" in detection.fidelity
    assert keys[3]["pretrain"] == keys[4]["pretrain"] == {c.key for c in study.cells()[::2]}
    assert keys[3]["linear"] == keys[4]["linear"]
    assert not keys[3]["voc07"] & keys[4]["voc07"]


def test_what_a_detection_leaves(finished):
    """Every detection, a curve whose mean is AP50, and pictures."""
    study = Study.open(finished)
    cell = [c for c in study.cells() if c.kind == "voc07"][-1]
    folder = Results(study).folder(cell.key)
    with safe_open(folder / "detections.safetensors", "pt") as file:
        names, classes = (json.loads(file.metadata()[k]) for k in ("images", "class_names"))
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert len(names) == 8
    assert len(classes) == 20
    metric, data = VOCDetectionAP(20), VOCDetectionDataModule(
        study.root("voc"), class_names=classes, train="2007/trainval"
    )  # fmt: skip
    for number, (_, target) in enumerate(map(data.test_dataloader().dataset.__getitem__, range(8))):
        mine = found["images"] == number
        prediction = {k: found[k][mine] for k in ("boxes", "scores", "labels")}
        metric.update([prediction], [target])
    metrics = Results(study).metrics(cell.key)
    assert 0 <= metrics.pop("voc07_loc") <= 100  # its measures are compared above
    assert {f"voc07_{k}": float(v) for k, v in metric.compute().items()} == pytest.approx(metrics)

    curve = json.loads((folder / "precision.json").read_text())
    assert 100 * sum(curve["precision"]) / 11 == pytest.approx(metrics["voc07_AP50"])
    with Image.open(folder / "voc07_detections.png") as picture:
        assert picture.size == (3 * 244 + 4, 2 * 244 + 4)


def check_per_image(out):
    """What each image scored makes the column again; and how many columns were seen."""
    study = Study.open(out)
    results, seen = Results(study), set()
    for cell in study.cells():
        metrics = results.metrics(cell.key)
        for name, column in per_image.COLUMNS.items():
            if cell.kind == column.kind and name in metrics:
                kept = per_image.read(name, results.folder(cell.key))
                count = per_image.images_of(name, kept)
                once = column.make(kept, np.ones((count, 1), np.int64))
                assert once[0] == pytest.approx(metrics[name], rel=1e-4), name
                seen.add(name)
    return seen


def test_per_image_scores_make_the_columns_again(finished):
    kinds = {"linear", "voc07", "coco", "city"}
    expected = {name for name, column in per_image.COLUMNS.items() if column.kind in kinds}
    assert {"acc_head", "voc07_AP75", "voc07_loc", "coco_APseg50", "city_aAcc"} <= expected
    assert check_per_image(finished) == expected


def test_commands_are_the_open_cells_in_order(tmp_path, capsys):
    study = Study(tmp_path / "a study", TINY, tables=("supervised",))
    study.save()
    cells = study.cells()
    run_cell(study, cells[0])
    capsys.readouterr()
    assert main(["commands", "--out", str(study.out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [shlex.split(line, comments=True) for line in lines] == [
        ["goodtransfer", "study", "cell", cell.key, "--out", str(study.out)] for cell in cells[1:]
    ]


def test_rows_are_compared_and_claims_are_told(finished, capsys):
    assert main(["compare", "Untrained", "Pixels", "--table", "floor", "--out", str(finished)]) == 0
    lines = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    study = Study.open(finished)
    results = Results(study)
    pixels, untrained = (results.metrics(c.key)["acc"] for c in study.cells()
                         if c.kind == "linear" and c.row.method == "none")  # fmt: skip
    assert lines["acc"].startswith(f"{untrained - pixels:+.2f}, over images ")
    assert ", one seed, " in lines["acc"]
    assert lines["voc07_AP"] == "not measured"  # nothing detects by pixels
    assert main(["claims", "--out", str(finished)]) == 0
    told = capsys.readouterr().out
    assert "not measured  MoCo-v2 detects better than cross-entropy: VOC07 AP (Table 2)" in told
    assert "paper +2.3; ours not measured" in told
    assert main(["compare", "Nobody", "Pixels", "--table", "floor", "--out", str(finished)]) == 2
    assert "'Pixels', 'Untrained', but got 'Nobody'" in capsys.readouterr().err


def images_in(root, names=("x/0.png", "y/0.png"), size=4):
    for split in ("train", "val"):
        for name in names:
            (root / split / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (size, size)).save(root / split / name)
    return root


def test_keys_follow_the_data(tmp_path):
    base = images_in(tmp_path / "base")
    same = images_in(tmp_path / "same")
    (same / "train/x/.DS_Store").touch()
    (same / "train/readme.txt").touch()
    others = [
        images_in(tmp_path / "renamed", ("x/1.png", "y/0.png")),
        images_in(tmp_path / "moved", ("x/0.png", "z/0.png")),
        images_in(tmp_path / "more", ("x/0.png", "x/1.png", "y/0.png")),
        images_in(tmp_path / "replaced", size=40),
    ]
    assert fingerprint(base) == fingerprint(same)
    assert fingerprint(base)[1:] == (2, 2)
    assert len({fingerprint(root).digest for root in (base, *others)}) == 5
    study = Study(tmp_path, TINY, {"imagenet": base}, tables=("10",))
    keys = [
        {c.key for c in replace(study, roots={"imagenet": root}).cells()}
        for root in (base, same, others[0])
    ]
    assert keys[0] == keys[1]
    assert not keys[0] & keys[2]
    assert "data base, 2 images of 2 classes (paper: ImageNet)" in study.cells()[0].fidelity
    assert "devices 1 (paper: 8)" in study.cells()[0].fidelity


def test_a_wrong_folder_can_be_corrected(tmp_path, capsys):
    out, good = tmp_path / "s", images_in(tmp_path / "good")
    run = ["run", "--scale", "small", "--out", str(out), "--data"]
    assert main([*run, str(tmp_path / "typo")]) == 2
    assert "typo/train" in capsys.readouterr().err
    assert main(["list", *run[1:], str(good)]) == 0
    assert main(["run", "--scale", "smoke", "--seeds", "0", "--out", str(out)]) == 2
    assert "at least one seed, but got 0" in capsys.readouterr().err


class Killed(BaseException):
    """As good as a kill: nothing after it runs."""


@pytest.mark.parametrize(
    ("kind", "kill_at", "every"),
    [
        ("pretrain", 7, 1000),
        ("linear", 4, 1000),
        ("voc07", 6, 1000),
        ("pretrain", 4, 2),
    ],
)
def test_a_cell_killed_in_the_middle_goes_on_to_the_same_bits(
    kind, kill_at, every, tmp_path, monkeypatch
):
    """Killed in the second epoch, or in the first one after a checkpoint within it; the encoder, the
    readout's numbers and the curves are the same.
    """
    from goodtransfer.methods import ExemplarMoCo
    from goodtransfer.study.cells import run_cell
    from goodtransfer.transfer import Detection, LinearProbe

    monkeypatch.setattr("goodtransfer.study.fitting.EVERY", every)
    module = {"pretrain": ExemplarMoCo, "linear": LinearProbe, "voc07": Detection}[kind]
    real, steps = module.training_step, []

    def killed(self, batch, batch_idx):
        steps.append(batch_idx)
        if len(steps) == kill_at:
            raise Killed
        return real(self, batch, batch_idx)

    def run(out, *, kill):
        study = Study.open(out, scale="tiny", tables=["3"])
        cells = {c.kind: c for c in study.cells() if c.row.name == "Exemplar-v2"}
        results = Results(study)
        if kind != "pretrain":
            run_cell(study, cells["pretrain"])
        if kill:
            with monkeypatch.context() as patch:
                patch.setattr(module, "training_step", killed)
                with pytest.raises(Killed):
                    run_cell(study, cells[kind])
            assert (out / "work" / cells[kind].key / "last.ckpt").is_file()
            assert not results.done(cells[kind].key)
        run_cell(study, cells[kind])
        key = cells[kind].key
        encoder = load_file(results.folder(cells["pretrain"].key) / "encoder.safetensors")
        curve = [(row["step"], row["loss"]) for row in results.curves(key) if "loss" in row]
        return encoder, curve, results.metrics(key)

    straight, curve, metrics = run(tmp_path / "straight", kill=False)
    resumed, curve_again, metrics_again = run(tmp_path / "killed", kill=True)
    for name, value in straight.items():
        assert torch.equal(value, resumed[name]), name
    assert curve == curve_again
    assert metrics == metrics_again
    assert bool(metrics) == (kind != "pretrain")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("blow", "codes"),
    [(signal.SIGKILL, {-9}), (signal.SIGINT, {130}), (signal.SIGTERM, {143, -15})],
)
def test_a_study_stopped_for_real_redoes_no_finished_cell(blow, codes, tmp_path):
    """SIGTERM between two fits is Python's own end, -15; within one it is Lightning's."""
    out = tmp_path / "s"
    call = [sys.executable, str(Path(__file__).with_name("tiny.py")), str(out)]
    process = subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while len(list(out.glob("results/*/metrics.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(blow)
    said = process.communicate(timeout=60)[1]
    assert process.returncode in codes, said[-2000:]
    assert "Traceback" not in said
    if process.returncode > 0:
        assert "Finished cells are kept" in said
    before = files(out)
    assert before
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    after = files(out)
    assert {p: after[p] for p in before} == before
    study = Study.open(out)
    assert all(Results(study).done(c.key) for c in study.cells())
    assert (out / "report.html").is_file()


def test_ctrl_c_that_python_drops_is_heard_after_the_cell(monkeypatch, tmp_path):
    """As one that arrives within a destructor: printed, ignored, gone."""
    made = []

    class Drops:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    def run_cell(study, cell):
        made.append(cell)
        Drops()

    dropped = []
    monkeypatch.setattr(sys, "unraisablehook", lambda error: dropped.append(error.exc_type))
    monkeypatch.setattr("goodtransfer.study.cells.run_cell", run_cell)
    with pytest.raises(KeyboardInterrupt):
        run_study(Study.open(tmp_path / "s", scale="tiny", tables=["3"]))
    assert len(made) == 1
    assert dropped == [KeyboardInterrupt]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    "error", [SystemExit(1), RuntimeError("Please call `iter(combined_loader)` first.")]
)
def test_ctrl_c_is_told_whatever_the_tidying_up_stumbles_over(error, monkeypatch, tmp_path, capsys):
    def stopped(study, engine):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise error  # noqa: B904 - as Lightning does

    monkeypatch.setattr("goodtransfer.study.run.run_study", stopped)
    assert cli(["study", "run", "--scale", "tiny", "--out", str(tmp_path / "s")]) == 130
    assert "Finished cells are kept" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["run", "--scale", "small"], "--data ROOT at scale small"),
        (["run", "--scale", "small", "--data", "/nowhere"], "/nowhere/train.*no such folder"),
        (["list"], r"Expected a study in .*study.json.*begin one with `goodtransfer study run"),
    ],
)
def test_sentences_for_a_new_folder(arguments, text, tmp_path, capsys):
    assert main([*arguments, "--out", str(tmp_path / "s")]) == 2
    assert re.search(text, capsys.readouterr().err)


def test_sentences_for_a_folder_in_use(finished, capsys):
    assert main(["run", "--scale", "smoke", "--out", str(finished)]) == 2
    assert "has 'tiny' and 'smoke' was asked for: use another --out" in capsys.readouterr().err
    assert main(["cell", "0" * 16, "--out", str(finished)]) == 2
    assert "study list" in capsys.readouterr().err


def test_a_cell_makes_what_it_needs_first(tmp_path):
    study = Study.open(tmp_path, scale="tiny", tables=["3"])
    study.save()
    pretraining, readout, *_ = study.cells()
    assert main(["cell", readout.key, "--out", str(tmp_path)]) == 0
    made = {folder.name for folder in (tmp_path / "results").iterdir()}
    assert made == {pretraining.key, readout.key}


def test_a_damaged_result_names_its_file(finished, tmp_path):
    results = Results(replace(Study.open(finished), out=tmp_path))
    folder = results.folder("k")
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text('{"acc": 1')
    with pytest.raises(ValueError, match="metrics.json.*delete .* and run again"):
        results.metrics("k")


def test_all_tables_are_those_of_the_paper(tmp_path):
    paper = ("1", "2", "3", "supervised", "floor", "4", "5", "6", "10", "figure2", "figure4")
    assert Study.open(tmp_path, scale="smoke", tables=["all"]).tables == paper
    out = ["--out", str(tmp_path / "new")]
    assert main(["list", "--scale", "smoke", "--table", "all", *out]) == 0
