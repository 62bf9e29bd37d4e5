"""What lasts and what is large: memory over thousands of steps and of a million keys, fifty cells at once on
one folder, and a loader process that dies."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest

from goodtransfer.study.plan import Study
from goodtransfer.study.results import Results

sys.path.insert(0, str(Path(__file__).parents[1] / "study"))
import tiny  # noqa: F401 - adds its scale

SCRIPT = Path(__file__).with_name("load_run.py")
ONE_CORE = {"OMP_NUM_THREADS": "1", "GOODTRANSFER_CORES": "1", "TQDM_DISABLE": "1"}
MIB = 2**20


@contextmanager
def started(*arguments):
    """The script, which ends with the test."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "LOCAL_"))}
    with subprocess.Popen(
        [sys.executable, str(SCRIPT), *map(str, arguments)], env=clean | ONE_CORE, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def told(*arguments):
    with started(*arguments) as process:
        out, err = process.communicate(timeout=580)
        assert process.returncode == 0, err[-3000:]
    return json.loads(out)


# --- Memory

WARM = 1000  # steps, in which allocators, queue and caches fill


@pytest.mark.slow
def test_memory_is_flat_over_five_thousand_steps(tmp_path):
    """Of the training process and its two loader processes; a kilobyte a step would show, too."""
    found = told("steps", tmp_path)
    assert found["steps"] == 5000
    samples = [sample for sample in found["samples"] if sample[0] >= WARM]
    assert len(samples) == 41
    assert {processes for _, processes, *_ in samples} == {3}
    resident, own = ([sample[kind] for sample in samples] for kind in (2, 3))
    print(
        f"\nresident {resident[0] / MIB:.1f} MiB, at most {max(resident) / MIB:.1f}, at the end "
        f"{resident[-1] / MIB:.1f}; without files {own[0] / MIB:.1f}, {max(own) / MIB:.1f}, "
        f"{own[-1] / MIB:.1f} MiB; {found['seconds']:.0f} s"
    )
    assert max(resident) <= 1.01 * min(resident)
    assert max(own) - own[0] < 4 * MIB


@pytest.mark.slow
def test_a_million_keys_take_less_than_a_gigabyte_and_a_half(tmp_path):
    """Half a gigabyte are the keys themselves."""
    small, large = told("queue", tmp_path, 1024, 2**20)
    assert (small["size"], large["size"]) == (1024, 2**20)
    assert small["filled"] == large["filled"] == 96
    more = large["peak"] - small["peak"]
    print(f"\nat most {large['peak'] / MIB:.0f} MiB, {more / MIB:.0f} MiB over a small queue's")
    assert 512 * MIB < more < 1536 * MIB


# --- Cells


@pytest.mark.slow
def test_fifty_cells_at_once_on_one_folder_are_made_once_each_and_none_is_lost(tmp_path):
    """By eight processes, each through all cells in an order of its own; the numbers are a serial run's."""
    found = told("cells", tmp_path)
    print(f"\nside by side {found['side']:.0f} s, one after the other {found['serial']:.0f} s")
    keys = found["keys"]
    assert len(set(keys)) == 50
    assert found["ended"] == list(range(8))
    lines = [line.split() for line in (tmp_path / "made.txt").read_text().splitlines()]
    assert Counter(key for key, _ in lines) == dict.fromkeys(keys, 1)
    assert len({process for _, process in lines}) >= 4  # they did work side by side
    side, serial = (Results(Study.open(tmp_path / name)) for name in ("side", "serial"))
    assert {folder.name for folder in side.root.iterdir()} == set(keys)
    for key in keys:
        side.check(key)
        assert side.metrics(key) == serial.metrics(key)
        assert side.curves(key) == serial.curves(key)
    readouts = [side.metrics(key) for key in keys if side.run(key)["kind"] == "linear"]
    assert len(readouts) == 25
    assert len({json.dumps(metrics) for metrics in readouts}) > 5  # seeds differ
    assert not list((tmp_path / "side" / "work").glob("*/*"))


# --- Loader processes


@pytest.mark.parametrize(
    ("when", "on_error"),
    [
        pytest.param("waiting", "raise", marks=pytest.mark.slow),
        ("waiting", "skip"),
        pytest.param("training", "raise", marks=pytest.mark.slow),
    ],
)
def test_a_killed_loader_process_names_the_file_it_was_reading(when, on_error, tmp_path):
    with started("pipe", tmp_path, when, on_error) as process:
        pipe, image = (process.stdout.readline().strip() for _ in range(2))
        writing = opened_for_a_reader(pipe, process)
        if when == "training":
            time.sleep(2)  # for the first batch to be in training
        os.kill(reader_of(pipe), signal.SIGKILL)
        _, err = process.communicate(timeout=60)
        os.close(writing)
    assert process.returncode == 1
    assert f"but it died while it was reading {image}: look at that file" in err.splitlines()[-1]
    assert err.count(f"reading {image}: look") == 1


def opened_for_a_reader(pipe, process):
    """The pipe's other end, once a process waits for it, which goes on waiting while this is held."""
    end = time.monotonic() + 60
    while True:
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nobody reads
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < end
            time.sleep(0.02)


def reader_of(pipe):
    """The process that has the pipe open, other than this one."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        for opened in Path("/proc").glob("[0-9]*/fd/*"):
            try:
                if os.readlink(opened) == pipe and int(opened.parts[2]) != os.getpid():
                    return int(opened.parts[2])
            except OSError:
                continue  # it has just been closed
    raise AssertionError(f"nobody reads {pipe}")
