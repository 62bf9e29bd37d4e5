"""The same bytes for 0, 1 or 4 workers, on 1 or 2 ranks, and after a restart in mid-epoch."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).with_name("views_run.py")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for split, count in (("train", 21), ("val", 1)):
        for number in range(count):
            path = folder / split / "a" / f"{number:02d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = generator.integers(0, 256, (40 + number, 60, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
    return folder


def run(root, folder, ranks=1, workers=0, stop=0):
    """What each rank reads: (epoch, index, digest) of every image in order."""
    arguments = [str(a) for a in (root, folder / f"{ranks}-{workers}-{stop}")]
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", str(SCRIPT), *arguments, *map(str, (r, ranks, workers, stop))],
            stdout=subprocess.PIPE,
        )
        for r in range(ranks)
    ]  # fmt: skip
    printed = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * ranks
    return [[tuple(line) for line in json.loads(text)] for text in printed]


@pytest.fixture(scope="module")
def alone(root, tmp_path_factory):
    [seen] = run(root, tmp_path_factory.mktemp("alone"))
    assert len(seen) == len(set(seen)) == 40  # two epochs of five batches
    assert {index for _, index, _ in seen} <= set(range(21))
    return seen


@pytest.mark.parametrize(
    ("workers", "stop"), [(1, 0), pytest.param(4, 0, marks=pytest.mark.slow), (0, 2), (4, 3)]
)
def test_workers_and_restarts(root, alone, tmp_path, workers, stop):
    assert run(root, tmp_path, workers=workers, stop=stop) == [alone]


@pytest.mark.parametrize(("workers", "stop"), [(0, 0), (1, 2)])
def test_two_ranks_share_what_one_reads(root, alone, tmp_path, workers, stop):
    dealt = run(root, tmp_path, ranks=2, workers=workers, stop=stop)
    assert [dealt[rank] for rank in (0, 1)] == [alone[0::2], alone[1::2]]
