"""The study on real photos, as far as it can be planned in seconds."""

import re
import sys
from collections import Counter
from pathlib import Path

import pytest

from goodtransfer.cli import main as goodtransfer

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
import miniature_study


def test_every_task_that_the_photos_allow_is_planned(shared, tmp_path, monkeypatch, capsys):
    """With `list` in the place of `run`, on the real folders."""
    if not (shared / "data").is_dir():
        pytest.skip("needs the photos of ../shared/data")
    said = []
    monkeypatch.setattr(miniature_study, "goodtransfer", said.append)
    monkeypatch.setattr(
        sys, "argv", ["x", str(shared / "data"), "--out", str(tmp_path / "m"), "--jobs", "1"]
    )
    assert miniature_study.main() == 0
    (_, verb, *words), claims = said
    assert (verb, words[-2:]) == ("run", ["--jobs", "1"])
    assert claims == ["study", "claims", "--out", str(tmp_path / "m")]
    capsys.readouterr()
    assert goodtransfer(["study", "list", *words[:-2]]) == 0
    listed = capsys.readouterr().out
    kinds = Counter(re.findall(r"^[0-9a-f]{16}  .*\b(\w+) · seed \d", listed, re.MULTILINE))
    # Of 14 pretrainings with maps, the pixels, and seven more of Table 10; and Table 5's four.
    assert kinds == {
        "pretrain": 3 * (14 + 1 + 6 + 4), "linear": 3 * (14 + 1 + 6), "voc07": 3 * 14,
        "coco": 3 * 14, "city": 3 * 14, "landmarks": 3 * 4,
    }  # fmt: skip
