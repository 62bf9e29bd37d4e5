"""A study's folder in many hands: its choice stays, what was changed is named, and nothing is half there."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from goodtransfer.cli import main as cli
from goodtransfer.study import results as results_file
from goodtransfer.study.cells import run_cell
from goodtransfer.study.locks import locked
from goodtransfer.study.plan import Study
from goodtransfer.study.report import write_report
from goodtransfer.study.results import Results
from goodtransfer.study.run import run_study

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from processes import CLI, cells_at_work, everything, start, until  # noqa: E402

READOUTS = ["--scale", "tiny", "--table", "floor", "--tasks", "linear"]  # four cells


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setattr("goodtransfer.study.fitting.workers", lambda: 0)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Readouts of pixels and of an untrained encoder, with a report."""
    study = Study.open(tmp_path_factory.mktemp("study") / "s", scale="tiny", tables=["floor"])
    study.save()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TQDM_DISABLE", "1")
        patch.setattr("goodtransfer.study.fitting.workers", lambda: 0)
        for cell in study.cells():
            run_cell(study, cell)
    write_report(study)
    return study


@pytest.fixture
def folder(made, tmp_path):
    """A copy to be spoilt, with its study and results."""
    shutil.copytree(made.out, tmp_path / "s")
    study = Study.open(tmp_path / "s")
    return study, Results(study)


def of_kind(study, kind):
    """Of the untrained encoder."""
    return [cell for cell in study.cells() if cell.kind == kind][-1]


# --- The choice


def test_serial_runs_share_a_choice_that_none_changes_under_them(tmp_path, capsys):
    out = tmp_path / "s"
    runs = [start("run", *READOUTS, "--out", out) for _ in range(2)]
    until((out / "study.json").is_file)
    choice = (out / "study.json").read_bytes()
    for verb in ("run", "commands"):
        assert cli(["study", verb, "--seeds", "2", "--out", str(out)]) == 2
        assert "to stay as it is while another process works by it" in capsys.readouterr().err
    said = [run.communicate(timeout=180) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    assert (out / "study.json").read_bytes() == choice
    assert cli(["study", "commands", "--seeds", "2", "--out", str(out)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4  # of the second seed
    assert Study.open(out).seeds == 2


def test_a_cell_by_itself_keeps_the_choice_too(folder, forked, capsys):
    study, results = folder
    cell = of_kind(study, "linear")
    shutil.rmtree(results.folder(cell.key))
    lock = study.out / "work" / cell.key / "lock"
    with locked(lock):  # it waits there
        process = start("cell", cell.key, "--out", study.out, **forked)
        until(lambda: not alone(study.out))
        assert cli(["study", "commands", "--seeds", "2", "--out", str(study.out)]) == 2
    said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert alone(study.out)


def alone(out):
    try:
        with locked(out / "work" / "working.lock", wait=False):
            return True
    except BlockingIOError:
        return False


def test_a_choice_that_was_cut_off_is_named(folder, capsys):
    study, _ = folder
    study.file.write_text(study.file.read_text()[:-5])
    assert cli(["study", "list", "--out", str(study.out)]) == 2
    assert f"Expected a study's choices in {study.file}" in capsys.readouterr().err
    study.file.unlink()
    given = ["--scale", "tiny", "--table", "floor", "--out", str(study.out)]
    assert cli(["study", "commands", *given]) == 0
    assert capsys.readouterr().out == ""  # every cell is still there
    assert Study.open(study.out) == study


# --- Commands


def test_lines_of_commands_are_made_side_by_side_in_any_order(tmp_path, forked):
    """Readouts come before what they need."""
    program = tmp_path / "bin" / "goodtransfer"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {CLI[0]} {CLI[1]} "$@"\n')
    program.chmod(0o755)
    path = {"PATH": f"{program.parent}:{os.environ['PATH']}", "GOODTRANSFER_GPUS": ""}
    more = {
        "cwd": tmp_path,
        "env": os.environ | forked | path,
        "text": True,
        "capture_output": True,
    }
    call = ["goodtransfer", "study", "commands", *READOUTS, "--out", "a study"]
    lines = subprocess.run(call, check=True, **more).stdout.splitlines()
    study = Study.open(tmp_path / "a study")
    assert [line.split()[3] for line in lines] == [cell.key for cell in study.cells()]
    call = ["xargs", "-0", "-r", "-n", "1", "-P", "2", "sh", "-c"]
    done = subprocess.run(call, input="\0".join(reversed(lines)), check=False, timeout=180, **more)
    assert done.returncode == 0, done.stderr
    for cell in study.cells():
        Results(study).check(cell.key)
    assert not list(study.out.glob("work/*/*"))
    assert not (study.out / "report.html").exists()


def test_a_cell_waits_for_what_it_needs_where_another_process_makes_it(folder, forked, tmp_path):
    study, results = folder
    cell = of_kind(study, "linear")
    shutil.rmtree(results.folder(cell.key))
    needed = results.folder(cell.needs[0])
    before = everything(needed)
    with locked(study.out / "work" / needed.name / "lock"):
        needed.rename(tmp_path / "aside")
        process = start("cell", cell.key, "--out", study.out, **forked)
        time.sleep(3)
        assert process.poll() is None
        assert not needed.exists()
        (tmp_path / "aside").rename(needed)  # as the one that makes it would
    said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert everything(needed) == before
    results.check(cell.key)


# --- Finished cells


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("linear", "curves.jsonl"),
        ("voc07", "precision.json"),
        ("voc07", "errors.safetensors"),
        ("voc07", "per_image.safetensors"),
    ],
)
def test_a_file_that_was_cut_off_or_changed_is_named(kind, name, folder, capsys):
    study, results = folder
    cell = of_kind(study, kind)
    file = results.folder(cell.key) / name
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], whole.replace(b"1", b"2")):
        assert content != whole
        file.write_bytes(content)
        compared = ["compare", "Untrained", "Pixels", "--table", "floor"]
        for verb in (["report"], *([compared] * (kind == "linear"))):
            assert cli(["study", *verb, "--out", str(study.out)]) == 2
            assert capsys.readouterr().err.endswith(
                f"Expected {file} as its cell ({kind} of Untrained, seed 0) left it, but it was "
                f"changed, cut off or lost: delete {file.parent} and run again.\n"
            )


def test_pictures_and_figures_are_of_whole_cells_too(folder):
    study, results = folder
    cell = of_kind(study, "city")
    (picture, *_) = results.folder(cell.key).glob("*.png")
    picture.unlink()
    with pytest.raises(ValueError, match=f"Expected {picture} as its cell .city of Untrained"):
        results_file.finished(study, results)


def test_a_file_is_read_for_its_digest_once(folder):
    study, results = folder
    cell = of_kind(study, "voc07")
    results.metrics(cell.key)
    reads = results_file._read_digest.cache_info().misses
    results.metrics(cell.key)
    Results(study).curves(cell.key)
    assert results_file._read_digest.cache_info().misses == reads


# --- The report


@pytest.mark.parametrize("blocks", [1, 100])  # of 1024 bytes: `report.md` is longer, `report.html`
def test_a_report_that_could_not_be_written_whole_is_written_again(blocks, folder):
    """As on a full disk, or by a process that is killed: files end at a limit."""
    study, _ = folder
    names = ("report.md", "report.csv", "report.html")
    before = {name: (study.out / name).read_bytes() for name in names}
    os.utime(study.out / "report.html", (1, 1))  # as before any cell was finished
    limited = f'ulimit -f {blocks}; exec "$@"'
    call = ["bash", "-c", limited, "bash", *CLI, "report", "--out", str(study.out)]
    env = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}  # which would be cut off, too
    done = subprocess.run(call, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert {name: (study.out / name).read_bytes() for name in names} == before
    run_study(study)
    assert (study.out / "report.html").stat().st_mtime > 1


def test_a_cell_that_ends_while_a_report_is_written_is_in_the_next(folder):
    study, results = folder
    report = study.out / "report.html"
    write_report(study)
    run_study(study)
    first = report.stat().st_ino
    during = (study.out / "report.md").stat().st_mtime_ns  # written before report.html
    metrics = results.folder(of_kind(study, "city").key) / "metrics.json"
    os.utime(metrics, ns=(during, during))
    run_study(study)
    assert report.stat().st_ino != first


# --- GPUs


@pytest.mark.slow
def test_cells_side_by_side_see_a_gpu_each_and_wait_for_one(folder):
    """Three on two, whose ids are made up: nothing computes on them."""
    study, results = folder
    lost = [cell for cell in study.cells() if cell.kind in ("linear", "city")]
    assert len(lost) == 3
    for cell in lost:
        shutil.rmtree(results.folder(cell.key))
    process = start("run", "--out", study.out, "--jobs", "3", GOODTRANSFER_GPUS="a,b")
    most = 0
    while process.poll() is None:
        most = max(most, len(cells_at_work(study.out)))
        time.sleep(0.1)
    said = process.communicate()
    assert process.returncode == 0, said
    assert most == 2
    seen = [results.run(cell.key)["environment"]["CUDA_VISIBLE_DEVICES"] for cell in lost]
    assert set(seen) == {"a", "b"}
