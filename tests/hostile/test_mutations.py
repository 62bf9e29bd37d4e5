"""The engine itself: what it breaks is the same every time, and is broken."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from forked import outcomes
from mutations import CASES, dice, mutated, mutated_tree

CONTENT = b'{"width": 353, "name": "cat", "box": [1, 2.5, -3]}\n' * 40


def test_there_are_thousands_of_cases():
    assert sum(CASES.values()) >= 3_000


def test_a_case_is_made_again_by_its_number():
    for number in range(20):
        one, two = (mutated(CONTENT, dice("xml", number)) for _ in range(2))
        assert one == two
    different = {mutated(CONTENT, dice("xml", number)) for number in range(200)}
    assert len(different) > 180
    assert CONTENT not in different or len(different) > 190


def test_a_tree_is_broken_and_its_original_is_not():
    tree = {"images": [{"id": 1, "size": [2, 3]}], "name": "x"}
    before = json.dumps(tree)
    broken = [repr(mutated_tree(tree, dice("instances", number))) for number in range(100)]
    assert json.dumps(tree) == before
    assert len({*broken}) > 70


def stop(number):
    time.sleep(100)


def crash(number):
    os.kill(os.getpid(), signal.SIGSEGV)


def fill(number):
    return len(bytearray(2**33))


def start(number):
    os.system("true")


def write(number):
    Path("/tmp/goodtransfer-hostile-test").write_text("x")


def bug(number):
    return [][number]


@pytest.mark.parametrize(
    ("case", "told"),
    [(stop, "a hang"), (crash, "a crash: the process ended with -11"), (fill, "MemoryError"),
     (start, "os.system"), (write, "open"), (bug, "IndexError")],
)  # fmt: skip
def test_what_no_reader_may_do_is_seen(case, told, tmp_path):
    """And the cases after it are still run."""
    found = outcomes(lambda n: case(n) if n == 1 else None, 3, tmp_path, seconds=1, gigabytes=1)
    assert found[::2] == ["a result"] * 2
    assert found[1].startswith(told)
    assert not Path("/tmp/goodtransfer-hostile-test").exists()
