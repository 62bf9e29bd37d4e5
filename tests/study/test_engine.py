"""Cells side by side under Snakemake: made, failed, stopped, killed, doubled, and never lost."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from goodtransfer.cli import main as cli
from goodtransfer.study import demands, fitting, leases, plan, sizes, sources
from goodtransfer.study.engine import Engine
from goodtransfer.study.locks import locked
from goodtransfer.study.plan import Study
from goodtransfer.study.results import Results
from goodtransfer.study.scales import SCALES
from goodtransfer.study.sources import Found

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from processes import NO_FORKS, everything, of, run, start, until  # noqa: E402
from tiny import TINY  # noqa: E402


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Readouts of pixels and of an untrained encoder, two cells at once; and what was printed."""
    tiny = ["--scale", "tiny", "--table", "floor", "--jobs", "2"]
    out = tmp_path_factory.mktemp("study") / "s"
    code, said = run("run", *tiny, "--out", out)
    assert code == 0, said
    return out, said


@pytest.fixture
def folder(made, tmp_path):
    """A copy to be spoilt, with its study and results."""
    shutil.copytree(made[0], tmp_path / "s")
    study = Study.open(tmp_path / "s")
    return study, Results(study)


def cells(study, kind):
    """Of pixels, and of the untrained encoder."""
    return [cell for cell in study.cells() if cell.kind == kind]


def lose(results, *lost):
    for cell in lost:
        shutil.rmtree(results.folder(cell.key))


def test_what_a_parallel_run_leaves(made):
    out, said = made
    study = Study.open(out)
    assert "7 cells made, 0 were done" in said
    results = Results(study)
    for cell in study.cells():
        assert results.done(cell.key)
        results.check(cell.key)
        assert not (out / "work" / cell.key).exists()
        assert (results.folder(cell.key) / "log.txt").is_file()
    snakefile = (out / "work" / "Snakefile").read_text()
    assert re.findall("output: (.*)", snakefile) == ['"results/{key}/metrics.json"']


def test_cells_side_by_side_have_the_numbers_of_one_after_the_other(made, tmp_path):
    study = Study.open(made[0])
    alone = replace(study, out=tmp_path / "s")
    from goodtransfer.study.cells import run_cell

    for cell in alone.cells()[:2]:
        run_cell(alone, cell)
        assert Results(alone).metrics(cell.key) == Results(study).metrics(cell.key)


def test_a_second_run_finds_nothing_to_do_and_tells_of_other_cells(folder):
    study, results = folder
    other = results.folder("0" * 16)
    other.mkdir()
    (other / "metrics.json").write_text("{}")
    before = everything(study.out)
    started = time.monotonic()
    code, said = run("run", "--out", study.out, "--jobs", "2")
    assert code == 0
    assert "0 cells made, 7 were done" in said
    assert "kept: 1 finished cells of other rows, seeds or versions." in said
    assert time.monotonic() - started < 15
    assert everything(study.out) == before


@pytest.mark.slow
def test_a_failing_cell_is_tried_again_and_told_with_its_log_and_the_others_are_made(folder):
    study, results = folder
    pixels, untrained = cells(study, "linear")
    lose(results, pixels, untrained)
    before = everything(study.out / "results")
    fails = {"accident": f"{untrained.key}:0:3"}
    code, said = run("run", "--out", study.out, "--jobs", "2", "--retries", "1", **fails)
    assert code == 1
    log = study.out / "work" / untrained.key / "log.txt"
    assert f"Failed: {untrained.key}  {untrained.title}\n  log: {log}\n  | an accident" in said
    assert "1 cells made, 5 were done, 1 are missing" in said
    assert log.read_text() == "an accident\nan accident\n"
    assert results.done(pixels.key)
    after = everything(study.out / "results")
    assert {p: after[p] for p in before} == before


@pytest.mark.parametrize(
    ("number", "code", "lost"), [(signal.SIGTERM, 143, 2), (signal.SIGINT, 130, 1)]
)
def test_a_stopped_run_stops_its_cells_and_keeps_what_is_finished(folder, number, code, lost):
    study, results = folder
    *others, untrained = cells(study, "linear")[-lost:]
    lose(results, *others, untrained)
    process = start("run", "--out", study.out, "--jobs", "2", accident=f"{untrained.key}:60:0",
                    GOODTRANSFER_FORKS="")  # fmt: skip
    until((study.out / "work" / untrained.key / "log.txt").is_file)
    until(lambda: all(results.done(cell.key) for cell in others))
    process.send_signal(number)
    said = process.communicate(timeout=30)[1]
    assert process.returncode == code
    assert said.endswith("Stopped. Finished cells are kept; the same command goes on.\n")
    assert "Traceback" not in said
    assert not of(study.out)
    assert all(results.done(cell.key) for cell in others)
    assert not results.done(untrained.key)


def test_two_runs_never_share_a_folder_and_a_dead_ones_lock_is_cleared(folder):
    study, results = folder
    lost = cells(study, "linear")
    lose(results, *lost)
    process = start("run", "--out", study.out, "--jobs", "2", accident="any:60:0", **NO_FORKS)
    log = study.out / "work" / lost[0].key / "log.txt"
    until(lambda: log.is_file() and log.read_text())
    assert list((study.out / ".snakemake" / "locks").iterdir())
    second = run("run", "--out", study.out, "--jobs", "2")
    assert second[0] == 2
    assert f"but process {process.pid} on " in second[1]
    other = run("run", "--out", study.out, "--jobs", "2", "--table", "3")
    assert other[0] == 2
    assert f"Expected {study.file} to stay as it is while another process works" in other[1]
    process.kill()
    process.communicate()
    third = run("run", "--out", study.out, "--jobs", "2")  # its Snakemake goes on
    assert third[0] == 2
    assert run("run", "--out", study.out, "--table", "3")[1] == other[1]
    assert Study.open(study.out) == study
    group = int(re.search("kill -INT -- -([0-9]+)", third[1]).group(1))
    os.killpg(group, signal.SIGKILL)  # the cells too
    until(lambda: not of(study.out))
    assert list((study.out / ".snakemake" / "locks").iterdir())
    code, said = run("run", "--out", study.out, "--jobs", "2", accident="any:0:3", **NO_FORKS)
    assert code == 1
    assert "0 cells made, 5 were done, 2 are missing" in said
    assert all(f"Failed: {cell.key}" in said for cell in lost)
    assert not list((study.out / ".snakemake").glob("locks/*"))


def test_a_lock_of_another_host_is_not_cleared(folder):
    study, results = folder
    lose(results, cells(study, "linear")[0])
    lock = study.out / "work" / "engine.lock"
    lock.write_text(json.dumps({"pid": 7, "host": "elsewhere", "snakemake": 8}))
    code, said = run("run", "--out", study.out, "--jobs", "1")
    assert code == 2
    assert f"but process 7 on elsewhere began to work on it: wait for it, or delete {lock}" in said


def test_two_copies_of_a_cell_make_it_once(folder, forked):
    study, results = folder
    (cell, _) = cells(study, "linear")
    lose(results, cell)
    copies = [start("cell", cell.key, "--out", study.out, **forked) for _ in range(2)]
    said = [copy.communicate(timeout=120)[1] for copy in copies]
    assert [copy.returncode for copy in copies] == [0, 0], said
    results.check(cell.key)
    assert not (study.out / "work" / cell.key).exists()


def test_a_cell_ends_with_143_on_sigterm(folder, forked):
    """A scheduler takes 0 for done."""
    study, results = folder
    cell = next(c for c in study.cells() if c.kind == "voc07")
    lose(results, cell)
    process = start("cell", cell.key, "--out", study.out, **forked)
    until((study.out / "work" / cell.key / "lock").exists)
    process.terminate()
    assert "Stopped." in process.communicate(timeout=60)[1]
    assert process.returncode == 143
    assert not results.done(cell.key)


def test_metrics_that_snakemake_deleted_come_back(folder):
    study, results = folder
    for cell in study.cells():
        file = results.folder(cell.key) / "metrics.json"
        before = file.read_bytes()
        file.unlink()
        assert not results.done(cell.key)
        assert results.restore(cell.key)
        assert file.read_bytes() == before


def test_leftovers_are_not_mixed_into_a_cell_that_is_made_again(folder, forked):
    study, results = folder
    (cell, _) = cells(study, "linear")
    left = results.folder(cell.key)
    (left / "metrics.json").unlink()
    (left / "linear.png").write_text("changed")  # so that nothing vouches for the rest
    (left / "foreign").touch()
    assert not results.restore(cell.key)
    code, said = run("cell", cell.key, "--out", study.out, **forked)
    assert code == 0, said
    results.check(cell.key)
    assert not (left / "foreign").exists()


def test_an_edited_result_names_its_file(folder, capsys):
    study, results = folder
    pixels, untrained = cells(study, "linear")
    file = results.folder(pixels.key) / "metrics.json"
    numbers = json.loads(file.read_text())
    file.write_text(json.dumps({**numbers, "acc": 100.0}))
    assert cli(["study", "report", "--out", str(study.out)]) == 2
    assert f"{file} as its cell (linear of Pixels, seed 0) left it" in capsys.readouterr().err
    assert results.metrics(untrained.key)
    lose(results, untrained)
    encoder = results.folder(untrained.needs[0]) / "encoder.safetensors"
    encoder.write_bytes(encoder.read_bytes()[:-1] + b"\0")
    assert cli(["study", "cell", untrained.key, "--out", str(study.out)]) == 2
    assert f"delete {encoder.parent} and run again" in capsys.readouterr().err


HOLD = """
import sys, time
from pathlib import Path
from goodtransfer.study.leases import devices, leased
with leased(Path(sys.argv[1]), devices()) as device:
    import os
    print(device, os.environ["CUDA_VISIBLE_DEVICES"], time.monotonic(), flush=True)
    time.sleep(0.5)
    print(time.monotonic(), flush=True)
    if sys.argv[2] == "die":
        os._exit(9)
"""


@pytest.mark.parametrize("end", ["die", "end"])
def test_every_gpu_is_leased_to_one_cell_at_a_time(end, tmp_path):
    env = {**os.environ, "GOODTRANSFER_GPUS": "a, MIG-b/0"}
    call = [sys.executable, "-c", HOLD, str(tmp_path), end]
    started = [subprocess.Popen(call, env=env, stdout=subprocess.PIPE, text=True) for _ in range(5)]
    held = {"a": [], "MIG-b/0": []}
    for process in started:
        device, visible, *times = process.communicate(timeout=60)[0].split()
        assert visible == device
        held[device].append(tuple(map(float, times)))
    assert all(held.values())
    for spans in held.values():
        spans.sort()
        assert all(before[1] <= after[0] for before, after in pairwise(spans))


def test_where_gpus_are_found(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    monkeypatch.delenv("GOODTRANSFER_GPUS", raising=False)
    assert leases.devices() == ["2", "3"]
    monkeypatch.setenv("GOODTRANSFER_GPUS", "")
    assert leases.devices() == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    monkeypatch.delenv("GOODTRANSFER_GPUS")
    assert leases.devices() == []


def test_a_scheduler_keeps_its_own_gpus(tmp_path, monkeypatch):
    monkeypatch.setenv("GOODTRANSFER_GPUS", "0,1")
    study = Study(tmp_path, replace(TINY, name="paper"), tables=("floor",))
    with Engine(4)._environment(study.cells()) as env:
        assert env["GOODTRANSFER_GPUS"] == "0,1"
        assert "GOODTRANSFER_FORKS" not in env  # CUDA does not survive a fork
    slurm = Engine(executor="slurm", resources=["slurm_partition=gpu", "runtime=60"])
    with slurm._environment(study.cells()) as env:
        assert "GOODTRANSFER_GPUS" not in env
    text = slurm._snakefile(study, study.cells())
    assert 'gpu=lambda w: CELLS[w.key]["gpu"]' in text
    assert "runtime=lambda" not in text
    options = slurm._options(study, study.cells())
    assert options[options.index("--default-resources") :][1:3] == [
        "slurm_partition=gpu",
        "runtime=60",
    ]


def test_cells_share_cores_and_a_larger_kind_asks_for_longer(monkeypatch):
    study = Study(Path("s"), replace(TINY, name="paper"), tables=("supervised", "floor"))
    pretraining, readout, *_ = study.cells()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    assert [demands.share(study, readout, n, 0).threads for n in (1, 3, 40)] == [16, 5, 1]
    assert demands.share(study, readout, 2, 4).gpu == 1
    assert demands.share(study, readout, 2, 0).gpu == 0
    assert demands.demand(study, readout).runtime < demands.demand(study, pretraining).runtime
    monkeypatch.setattr("torch.set_num_threads", lambda _: None)
    assert fitting.workers() == 8
    monkeypatch.setenv("GOODTRANSFER_CORES", "5")
    assert fitting.workers() == 2
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert fitting.workers() == 4


def test_time_that_is_asked_for_grows_with_what_is_computed(monkeypatch):
    monkeypatch.setattr(sources, "find", lambda name, *_: Found(name, name, sizes.PAPER[name]))
    monkeypatch.setattr(plan, "find", sources.find)
    roots = {name: Path(name) for name in ("imagenet", "voc")}
    study = Study(Path("s"), SCALES["paper"], roots, tables=("3", "6", "floor"))
    asked = {
        cell.row.name: demands.demand(study, cell).runtime / (7 * 24 * 60)
        for cell in study.cells()
        if cell.kind == "pretrain"
    }
    assert asked["MoCo-v2"] == pytest.approx(1.0, abs=0.01)
    assert asked["Supervised"] == 1
    assert asked["Supervised for 800"] == pytest.approx(3.0, rel=0.01)  # 4 times 3 passes for 4
    assert asked["Untrained"] < 0.02


def test_a_lock_is_had_though_its_folder_goes_as_it_is_made(tmp_path, monkeypatch):
    """`Path.mkdir` finds a folder, and looks again, when whoever held the lock has removed it."""
    real, raced = os.mkdir, []

    def mkdir(path, *rest):
        if not raced:
            raced.append(path)
            raise FileExistsError(path)
        real(path, *rest)

    monkeypatch.setattr(os, "mkdir", mkdir)
    with locked(tmp_path / "work" / "lock"):
        assert raced == [tmp_path / "work"]
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError), locked(tmp_path / "file" / "lock"):
        pass


def test_a_lock_waits_lets_go_and_survives_its_folder(tmp_path):
    file = tmp_path / "work" / "lock"
    code = (
        "import sys, shutil; from pathlib import Path\nfrom goodtransfer.study.locks import locked\n"
        "file = Path(sys.argv[1])\n"
        "with locked(file):\n"
        "    print('held', flush=True); sys.stdin.readline(); shutil.rmtree(file.parent)"
    )
    call = [sys.executable, "-c", code, str(file)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    first = subprocess.Popen(call, **pipes)
    assert first.stdout.readline() == "held\n"
    with pytest.raises(BlockingIOError), locked(file, wait=False):
        pass
    second = subprocess.Popen(call, **pipes)
    time.sleep(0.5)
    first.communicate("\n")
    assert second.stdout.readline() == "held\n"
    with pytest.raises(BlockingIOError), locked(file, wait=False):  # a new file, held as well
        pass
    second.kill()
    second.communicate()
    with locked(file, wait=False):
        pass


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--jobs", "0"], "at least one job, but got 0"),
        (["--retries", "1"], "Expected --jobs N, how many cells at once, or --executor"),
        (["--jobs", "2", "--default-resources", "gpu"], "NAME=VALUE, but got 'gpu'"),
        (["--executor", "nowhere"], "pip install snakemake-executor-plugin-nowhere"),
        (["--executor", "slurm"], "sbatch and squeue cannot be found: run this on a node"),
    ],
)
def test_sentences_before_anything_begins(options, said, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    out = tmp_path / "s"
    assert cli(["study", "run", "--scale", "tiny", "--out", str(out), *options]) == 2
    assert said in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("missing", "options", "extra"),
    [
        ("snakemake", ["--jobs", "2"], "study"),
        ("snakemake_executor_plugin_slurm", ["--executor", "slurm"], "slurm"),
    ],
)
def test_a_missing_part_names_its_extra(missing, options, extra, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, missing, None)
    out = tmp_path / "s"
    assert cli(["study", "run", "--scale", "tiny", "--out", str(out), *options]) == 2
    assert f"pip install 'goodtransfer[{extra}]'" in capsys.readouterr().err
    assert not out.exists()


def test_a_dry_run_writes_nothing(tmp_path, capsys):
    out = tmp_path / "s"
    arguments = ["study", "run", "--scale", "tiny", "--table", "floor", "--out", str(out)]
    assert cli([*arguments, "--jobs", "2", "--dry-run"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == "7 cells would be made, 0 are done."
    keys = [cell.key for cell in Study.open(out, scale="tiny", tables=["floor"]).cells()]
    assert [line.split()[0] for line in lines] == keys
    assert all(" MB, 0 GPU, " in line for line in lines)
    assert not out.exists()
