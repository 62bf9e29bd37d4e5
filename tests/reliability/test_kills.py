"""A training killed at 20 moments, in a step, while saving, between epochs, ends with the same bytes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

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


def started(folder, options):
    code = (
        f"import sys; sys.path.insert(0, {str(HERE)!r}); from pathlib import Path; import training; "
        f"training.train(Path({str(folder.parent / 'toy')!r}), Path({str(folder)!r}), **{options!r})"
    )
    environment = CLEAN | {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL
    )


def test_sigterm_saves_at_the_next_step_and_is_no_success(tmp_path):
    """With accumulated gradients, which a save in mid-step would lose."""
    from goodtransfer.data import make_imagefolder

    make_imagefolder(tmp_path / "toy", train=48, val=20, size=24)
    small = {"accumulate": 2, "ballast": 10}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    runs = started(whole, small), started(cut, {**small, "slow": 0.1})
    curves = cut / "curves.jsonl"
    deadline = time.monotonic() + 120
    while not (curves.is_file() and len(curves.read_text().splitlines()) >= 3):
        assert runs[1].poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    runs[1].send_signal(signal.SIGTERM)
    assert runs[1].wait(60) == 128 + signal.SIGTERM
    assert not (cut / "end.json").exists()
    steps = len(curves.read_text().splitlines())
    assert 3 <= steps < 12
    assert started(cut, small).wait(120) == 0
    assert runs[0].wait(120) == 0
    ends = [json.loads((folder / "end.json").read_text()) for folder in (whole, cut)]
    assert ends[0] == ends[1]
