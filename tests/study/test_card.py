"""The report card of encoders that a user holds, and the check of released ones."""

import json
import math
import sys
from html import unescape
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

from goodtransfer import load_encoder, report_card, save_encoder
from goodtransfer.analysis import diagnose, read_detections
from goodtransfer.analysis.error_measures import measure, with_mean
from goodtransfer.analysis.errors import SLICES
from goodtransfer.cli import main
from goodtransfer.encoders import OwnTrunk, build
from goodtransfer.study.entries import Entry
from goodtransfer.study.plan import Study
from goodtransfer.study.results import Results
from goodtransfer.study.run import run_study
from goodtransfer.study.tables import TABLES, beside, published
from goodtransfer.study.transfers import HEADINGS, NOT_RANKED
from goodtransfer.study.verify import verify
from goodtransfer.study.voc_truth import read_voc

sys.path.insert(0, str(Path(__file__).parent))
import tiny  # noqa: F401 - adds its scale

TASKS = ("linear", "voc07", "coco", "city", "few_shot", "inversion")


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setattr("goodtransfer.study.fitting.workers", lambda: 0)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A study's supervised encoder, transferred to classes and to boxes: the study, its encoder."""
    out = tmp_path_factory.mktemp("study") / "s"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TQDM_DISABLE", "1")
        patch.setattr("goodtransfer.study.fitting.workers", lambda: 0)
        study = Study.open(out, scale="tiny", tables=("supervised",), tasks=("linear", "voc07"))
        run_study(study)
    (first, *_others) = study.cells()
    return study, Results(study).folder(first.key) / "encoder.safetensors"


@pytest.fixture(scope="module")
def carded(pretrained, tmp_path_factory):
    """A card of that encoder and of one that nobody trained."""
    out = tmp_path_factory.mktemp("card") / "c"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TQDM_DISABLE", "1")
        patch.setattr("goodtransfer.study.fitting.workers", lambda: 0)
        encoders = {"mine": pretrained[1], "untrained": "resnet10w8"}
        return report_card(encoders, out, tasks=TASKS, scale="tiny")


# --- What it says


def test_scores_are_those_of_the_study_that_trained_the_encoder(pretrained, carded):
    study, _ = pretrained
    results, checked = Results(study), 0
    for cell in study.cells():
        for column, value in results.metrics(cell.key).items():
            if cell.kind != "pretrain" and column in HEADINGS and column != "acc_head":
                assert carded.scores["mine"][column] == value, column
                checked += 1
    assert checked >= 5
    assert list(carded.scores) == ["mine", "untrained"]
    assert {"acc", "voc07_AP", "city_mIoU", "novel_5shot", "psnr"} <= set(
        carded.scores["untrained"]
    )


def test_intervals_are_the_bootstraps(carded):
    entry = carded.entries["mine"]["acc"]
    study = Study.open(carded.path.parent)
    right = load_file(Results(study).folder(entry.keys[0]) / "per_image.safetensors")["scores"]
    rng = np.random.default_rng(0)
    means = [right[rng.integers(len(right), size=len(right))].mean() for _ in range(500)]
    assert np.allclose(entry.images, np.percentile(means, [2.5, 97.5]))
    measured = {c: e for c, e in carded.entries["mine"].items() if e.ours and c not in NOT_RANKED}
    assert {"acc_lr30", "voc07_AP75", "voc07_loc", "city_aAcc", "psnr"} <= set(measured)
    for column, entry in measured.items():
        assert entry.images.low <= entry.images.high, column
    assert carded.entries["mine"]["novel_1shot_ci95"].images is None


def test_one_threshold_is_resampled_as_it_is_scored(carded):
    """All images once give the column itself."""
    from goodtransfer.study import per_image

    study = Study.open(carded.path.parent)
    coco = [f"coco_AP{name}{at}" for name in ("box", "seg") for at in ("", "50", "75")]
    city = ["city_mIoU", "city_mAcc", "city_aAcc"]
    for column in ("acc_lr30", "voc07_AP", "voc07_AP50", "voc07_AP75", "voc07_loc", *coco, *city):
        entry = carded.entries["mine"][column]
        kept = per_image.read(column, Results(study).folder(entry.keys[0]))
        once = np.ones((per_image.images_of(column, kept), 1), np.int64)
        made = per_image.COLUMNS[column].make(kept, once)[0]
        assert made == pytest.approx(entry.mean, abs=1e-4), column


def test_the_page_says_it(carded):
    page = unescape(carded.path.read_text("utf-8"))
    for words in (
        *(
            "Report card",
            "<b>mine</b>: resnet10w8 from",
            "<b>untrained</b>: resnet10w8 from resnet10w8",
        ),
        *("the paper's Exemplar-v2", "the paper's MoCo-v2 on mini-ImageNet", "untrained − mine"),
        *("Where detections fail", "Figure 1:", "Figure 2:", "Figure 7:", "within noise"),
    ):
        assert words in page, words
    assert 'id="claims"' not in page
    plain = (carded.path.parent / "report.md").read_text("utf-8")
    assert "| the paper's Exemplar-v2 | paper | 68.9 | – | 48.8 |" in plain
    assert "claims" not in plain


def test_failures_are_the_diagnosis(carded):
    from goodtransfer.study.compared import failures

    study = Study.open(carded.path.parent)
    found = failures(study, Results(study))
    key = carded.entries["mine"]["voc07_AP"].keys[0]
    truth = read_voc(study.root("voc"), "2007/test", load_names(Results(study), key))
    file = Results(study).folder(key) / "detections.safetensors"
    expected = measure(diagnose(read_detections(file, truth), truth))
    shares = 100 * with_mean(expected.shares / 100)[-1]
    for number, name in enumerate(SLICES):
        assert found.rows[number][1][0][0] == pytest.approx(shares[number], nan_ok=True), name
    assert found.labels == ["mine", "untrained"]


def load_names(results, key):
    from goodtransfer.analysis.detection_files import class_names_in

    return class_names_in(results.folder(key) / "detections.safetensors")


def test_the_papers_rows_stand_beside_with_its_numbers():
    rows = beside(HEADINGS)
    assert rows["Exemplar-v2"]["voc07_AP"] == 48.8
    assert rows["MoCo-v2"]["city_mIoU"] == 78.6
    assert rows["Exemplar-v2 on mini-ImageNet"]["novel_5shot"] == 77.18
    assert rows["Exemplar-v2 on faces"] == {"landmark_error": 5.8}
    assert beside(("landmark_error",)).keys() == {
        f"{n} on faces" for n in ("Scratch", "Supervised", "MoCo-v2", "Exemplar-v2")
    }


# --- Made once


def test_again_there_is_nothing_to_do(pretrained, carded, capsys):
    before = carded.path.stat().st_mtime_ns
    encoders = [f"mine={pretrained[1]}", "untrained=resnet10w8"]
    words = [*encoders, "--scale", "tiny", "--out", str(carded.path.parent), "--tasks", *TASKS]
    assert main(["card", *words]) == 0
    told = capsys.readouterr().out
    assert "0 cells made" in told
    assert carded.path.stat().st_mtime_ns == before
    mean = carded.entries["mine"]["acc"]
    assert f"mine  acc {'':18} {mean.text(mean.mean)} {mean.spread}" in told


def test_other_weights_under_a_name_are_measured_anew(tmp_path):
    file = tmp_path / "a.safetensors"
    scores = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        save_encoder(file, build("resnet10w8"))
        card = report_card([file], tmp_path / "c", tasks=["few_shot"], scale="tiny")
        scores.append(card.scores["a"])
    assert scores[0] != scores[1]
    assert len(list((tmp_path / "c" / "encoders").iterdir())) == 2


def test_a_module_is_measured_too(tmp_path):
    torch.manual_seed(0)
    module = build("resnet10w8")
    card = report_card({"it": module}, tmp_path / "c", tasks=["few_shot"], scale="tiny")
    (copy,) = (tmp_path / "c" / "encoders").iterdir()
    for name, value in load_encoder(copy).state_dict().items():
        assert torch.equal(value, module.state_dict()[name])
    assert card.scores["it"]["novel_5shot"] > 20


def test_a_file_under_the_name_that_timm_has_for_it(shared, tmp_path):
    """Real ImageNet weights: drawn classes that they never saw are told apart, above chance."""
    file = shared / "weights" / "tf_efficientnet_lite0_timm.safetensors"
    encoder = f"timm:tf_efficientnet_lite0@{file}"
    card = report_card({"lite": encoder}, tmp_path / "c", tasks=("few_shot",), quick=True)
    assert 40 < card.scores["lite"]["novel_5shot"] <= 100
    assert "<b>lite</b>: timm:tf_efficientnet_lite0" in card.path.read_text("utf-8")


# --- What it refuses


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["resnet10w8"], "--quick draws some, and --data, --voc"),
        (["resnet10w8", "--quick", "--data", "."], "without a scale or folders"),
        (["resnet10w8", "resnet10w8", "--quick"], "'resnet10w8' twice"),
        (["none.pth", "--quick"], "none.pth"),
        (["resnet10w8", "--tasks", "coco", "--data", "tests"], "--coco ROOT for task coco"),
        (["pixels48=resnet11", "--quick"], "resnet11"),
    ],
)
def test_a_wrong_word_is_one_sentence(words, told, tmp_path, capsys):
    assert main(["card", *words, "--out", str(tmp_path / "c")]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not (tmp_path / "c" / "study.json").exists()


@pytest.mark.parametrize("package", ["bokeh", "jinja2", "matplotlib"])
def test_without_what_draws_the_page_nothing_is_measured(package, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    for words in (
        ["card", "resnet10w8", "--quick", "--tasks", "linear"],
        ["study", "run", "--scale", "smoke"],
    ):
        out = tmp_path / words[0]
        assert main([*words, "--out", str(out)]) == 2
        assert "The report needs bokeh, matplotlib and jinja2" in capsys.readouterr().err
        assert not (out / "results").exists()
        assert not (out / "work").exists()


def test_a_module_that_no_name_brings_back_is_refused(tmp_path):
    trunk = OwnTrunk(nn.Conv2d(3, 8, 3))
    with pytest.raises(ValueError, match=r"mine is .*, a module of your own"):
        report_card({"mine": trunk}, tmp_path / "c", quick=True)


def test_a_study_and_a_card_do_not_share_a_folder(pretrained, carded):
    study, file = pretrained
    with pytest.raises(ValueError, match="folder of its own for a report card"):
        report_card([file], study.out, scale="tiny")
    with pytest.raises(ValueError, match="folder of its own for a report card"):
        Study.open(carded.path.parent, tables=("3",))
    with pytest.raises(ValueError, match="Expected encoders for table card"):
        Study.open(carded.path.parent / "new", scale="tiny", tables=("card",))


# --- Released encoders


def test_a_difference_within_the_noise_of_both_agrees():
    def told(*ours, paper=48.4, column="voc07_AP75"):
        return [of.verdict for of in verify([Entry(column, paper=paper, ours=ours)])]

    bound = 1.96 * math.sqrt(0.4**2 + 0.4**2 / 2)
    assert told(48.4 + bound - 0.01, 48.4 + bound - 0.01) == ["agrees"]
    assert told(48.4 - bound - 0.01, 48.4 - bound - 0.01) == ["differs"]
    assert told(48.4, column="city_mIoU") == ["no σ is known"]
    assert told() == told(48.4, paper=None) == []


def test_published_numbers_are_those_of_the_tables():
    assert published("exemplar_v1")["acc"] == 64.6
    assert published("exemplar_v2")["coco_APseg"] == 34.4
    ladder = [
        published(f"moco_v2_imagenet_aug_{s}")["voc07_AP"] for s in ("f", "fr", "frc", "frcg")
    ]
    rows = TABLES["1"].rows[5:9]
    assert ladder == [row.paper["voc07_AP"] for row in rows]
    assert next(row.label for row in rows) == "unsupervised, flip"
    (synthia,) = (r for r in TABLES["2"].rows if r.label == "supervised, Synthia")
    assert published("supervised_synthia") == synthia.paper
    assert published("a.pth") == {}


def test_every_released_name_has_published_numbers():
    from goodtransfer.weights.released import RELEASED

    assert all(published(name) for name in RELEASED)


def test_verify_measures_and_compares(tmp_path, monkeypatch, capsys):
    """The file of that name is a stand-in: the paper's cannot be had without a network."""
    monkeypatch.setenv("GOODTRANSFER_CACHE", str(tmp_path))
    (tmp_path / "weights").mkdir()
    torch.save(build("resnet10w8").state_dict(), tmp_path / "weights" / "exemplar_v2.pth")
    words = ["verify", "exemplar_v2", "--task", "linear", "--scale", "tiny"]
    assert main([*words, "--out", str(tmp_path / "v")]) == 0
    told = capsys.readouterr().out
    assert "acc: published 68.9, ours" in told
    assert "Scale tiny is not the paper's" in told
    written = json.loads((tmp_path / "v" / "study.json").read_text())
    assert written["encoders"]["exemplar_v2"][1] == "resnet10w8"


@pytest.mark.parametrize(("ours", "code"), [(44.4, 1), (48.5, 0)])
def test_verify_ends_with_1_where_a_number_differs(ours, code, tmp_path, monkeypatch, capsys):
    """What is measured is made up: the paper's protocol takes a GPU, its encoder a network."""
    entry = Entry("voc07_AP75", paper=48.4, ours=[ours])
    card = SimpleNamespace(entries={"exemplar_v2": {"voc07_AP75": entry}})
    monkeypatch.setattr("goodtransfer.study.card.report_card", lambda *_, **__: card)
    assert main(["verify", "exemplar_v2", "--root", str(tmp_path)]) == code
    assert f"ours {ours}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["resnet50"], "`goodtransfer card`"),
        (["exemplar_v2"], "--root, a folder with VOCdevkit"),
    ],
)
def test_verify_refuses_in_a_sentence(words, told, capsys):
    assert main(["verify", *words]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
