"""The command `goodtransfer` with the tiny scale as real processes, and what they do."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
CLI = [sys.executable, str(HERE / "tiny_cli.py"), "study"]
NO_FORKS = {"GOODTRANSFER_FORKS": "", "GOODTRANSFER_GPUS": ""}


def start(*arguments, accident="none:0:0", **environment):
    env = {**os.environ, "TQDM_DISABLE": "1", "GOODTRANSFER_GPUS": "", "ACCIDENT": accident}
    return subprocess.Popen(
        [*CLI, *map(str, arguments)], env=env | environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def run(*arguments, **more):
    """Exit code, and what was printed."""
    process = start(*arguments, **more)
    out, err = process.communicate(timeout=180)
    return process.returncode, out + err


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def of(out):
    """Processes that work in a folder or on it."""
    return [number for number, here, words in _all() if here == str(out) or str(out) in words]


def cells_at_work(out):
    """Keys of the cells that are processes in a folder."""
    found = (
        re.search("study\0cell\0([0-9a-f]+)", words)
        for _, here, words in _all()
        if here == str(out)
    )
    return {match[1] for match in found if match}


def _all():
    for process in Path("/proc").glob("[0-9]*"):
        try:
            here = os.readlink(process / "cwd")
            yield int(process.name), here, (process / "cmdline").read_text()
        except OSError:
            continue


def everything(out):
    """When each file of a folder was written."""
    return {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
