"""The rooms import each other in one direction only."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "goodtransfer"

# Room -> the rooms it may import (itself always).
LEAVES = {
    "foreign": set(),
    "losses": set(),
    "momentum": set(),
    "distributed": set(),
    "optim": set(),
    "encoders": set(),
    "checkpoints": set(),
}
MAY_IMPORT = LEAVES | {
    "run_lengths": {"foreign"},
    "metrics": {"foreign", "run_lengths"},
    "views": {"foreign"},
    "weights": {"foreign", "encoders"},
    "callbacks": {"momentum", "distributed", "weights", "metrics"},
    "methods": {
        "losses", "momentum", "distributed", "optim", "encoders", "weights", "views", "callbacks", "metrics",
    },
    "data": {"foreign", "run_lengths", "distributed", "views"},
    "transfer": {
        "losses", "distributed", "encoders", "weights", "views", "optim", "callbacks", "metrics",
    },
    "analysis": {"foreign", "encoders", "weights", "metrics"},
}  # fmt: skip
EVERYTHING = {"study", "cli"}  # may import all, and nothing imports them


def rooms_imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{a.name}" for a in node.names]
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "goodtransfer" and len(parts) > 1:
                yield parts[1]


def test_rooms_form_a_dag():
    rooms = {p.stem if p.is_file() else p.name for p in PACKAGE.iterdir()
             if p.suffix == ".py" or (p / "__init__.py").exists()} - {"__init__"}  # fmt: skip
    assert rooms == set(MAY_IMPORT) | EVERYTHING
    for room, allowed in MAY_IMPORT.items():
        home = PACKAGE / room
        files = home.rglob("*.py") if home.is_dir() else [PACKAGE / f"{room}.py"]
        for file in files:
            foreign = set(rooms_imported(file)) - allowed - {room}
            assert not foreign, f"{file.relative_to(PACKAGE)} may not import {sorted(foreign)}"


def test_everything_may_be_imported_by_nobody():
    for file in PACKAGE.rglob("*.py"):
        room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room not in (
            *EVERYTHING,
            "__init__",
        ):  # which names all that is public, and loads it late
            assert not EVERYTHING & set(rooms_imported(file)), file


@pytest.mark.parametrize("module", ["goodtransfer", "goodtransfer.cli", "goodtransfer.study"])
def test_planning_imports_no_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_public_names_resolve():
    import goodtransfer

    for name in goodtransfer.__all__:
        assert getattr(goodtransfer, name).__name__ == name
    assert set(goodtransfer._HOME) == set(goodtransfer.__all__) <= set(dir(goodtransfer))
    with pytest.raises(AttributeError, match="no attribute 'MoCoV3'"):
        _ = goodtransfer.MoCoV3
