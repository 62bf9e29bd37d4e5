"""A training killed at 20 moments, in a step, while saving, between epochs, ends with the same bytes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from kills import free_port
from training import ends

HERE = Path(__file__).parent
CLEAN = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "LOCAL_"))}


@pytest.mark.slow
def test_twenty_kills_change_nothing(tmp_path):
    call = [sys.executable, str(HERE / "kills.py"), str(tmp_path)]
    environment = CLEAN | {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(call, capture_output=True, text=True, timeout=580, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    chains = json.loads(done.stdout)
    kills = [kill for chain in chains for kill in chain["kills"] if kill["hit"]]
    assert [chain["seed"] for chain in chains] == [1, 2, 3, 4, 5, 6]
    assert len(kills) == 20
    assert sum(kill["saving"] for kill in kills) >= 5
    assert sum(kill["kind"] == "epoch" for kill in kills) >= 3
    assert all(chain["equal"] for chain in chains), chains
    assert not any(chain["left"] for chain in chains)  # what was being written is swept


def started(folder, options, rank=None, port=0):
    """A training; of several ranks one of its processes."""
    code = (
        f"import sys; sys.path.insert(0, {str(HERE)!r}); from pathlib import Path; import training; "
        + (
            f"training.environment({rank}, {options['ranks']}, {port}); "
            if rank is not None
            else ""
        )
        + f"training.train(Path({str(folder.parent / 'toy')!r}), Path({str(folder)!r}), **{options!r})"
    )
    environment = CLEAN | {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    with (folder.parent / "said.txt").open("a") as said:
        call = [sys.executable, "-c", code]
        return subprocess.Popen(call, env=environment, stderr=said, start_new_session=True)


def all_ranks(folder, options):
    port = free_port()
    return [started(folder, options, rank, port) for rank in range(options["ranks"])]


def wait_for_steps(folder, run, steps):
    curves, deadline = folder / "curves.jsonl", time.monotonic() + 120
    while not (curves.is_file() and len(curves.read_text().splitlines()) >= steps):
        assert run.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)


def steps_logged(folder):
    return [json.loads(row)["step"] for row in (folder / "curves.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("send", "workers"),
    [pytest.param(os.kill, 0, marks=pytest.mark.slow), (os.killpg, 2)],
    ids=["one process", "loaders too"],
)
def test_sigterm_saves_at_the_next_step_and_is_no_success(tmp_path, send, workers):
    """With accumulated gradients, which a save in mid-step would lose."""
    from goodtransfer.data import make_imagefolder

    make_imagefolder(tmp_path / "toy", train=48, val=20, size=24)
    small = {"accumulate": 2, "ballast": 10, "workers": workers}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    runs = started(whole, small), started(cut, {**small, "slow": 0.1})
    wait_for_steps(cut, runs[1], 3)
    send(runs[1].pid, signal.SIGTERM)  # a session of its own: its id is that of its group
    assert runs[1].wait(60) == 128 + signal.SIGTERM
    assert not ends(cut)
    assert 3 <= len(steps_logged(cut)) < 12
    assert started(cut, small).wait(120) == 0
    assert runs[0].wait(120) == 0
    assert ends(whole) == ends(cut)
    assert steps_logged(cut) == list(range(12))  # each once


@pytest.mark.slow
def test_sigterm_to_one_rank_saves_all_at_one_step_which_other_ranks_refuse(tmp_path):
    from goodtransfer.data import make_imagefolder

    make_imagefolder(tmp_path / "toy", train=48, val=20, size=24)
    small = {"ranks": 2, "ballast": 10}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    runs = all_ranks(cut, {**small, "slow": 0.1})
    wait_for_steps(cut, runs[0], 3)
    runs[1].send_signal(signal.SIGTERM)
    assert [run.wait(60) for run in runs] == [128 + signal.SIGTERM] * 2
    assert not ends(cut)
    shutil.copytree(cut, tmp_path / "alone")
    assert [run.wait(120) for run in all_ranks(cut, small)] == [0, 0]
    assert [run.wait(120) for run in all_ranks(whole, small)] == [0, 0]
    assert len(ends(whole)) == 2
    assert ends(whole) == ends(cut)

    # Within an epoch other ranks are refused; from the end of one they go on.
    assert started(tmp_path / "alone", {"ballast": 10}).wait(120) == 1
    assert (
        "Expected 2 ranks with batches of 3, which the checkpoint was saved by"
        in (tmp_path / "said.txt").read_text()
    )
    epoch = tmp_path / "epoch"
    assert started(epoch, {"ballast": 10, "epochs": 1}).wait(120) == 0
    assert [run.wait(120) for run in all_ranks(epoch, small)] == [0, 0]
    assert steps_logged(epoch) == list(range(24))
