"""What is shipped: a wheel and a sdist with all that the code reads, which work where nothing else lies."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import goodtransfer

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
DATA = {
    "goodtransfer/py.typed",
    *(f"goodtransfer/study/{name}"
      for name in ("paper.yaml", "report.html.j2", "report.css", "report.js")),
}  # fmt: skip
BUILD = """
import sys
from setuptools import build_meta
out = sys.argv[1]
build_meta.build_wheel(out)
build_meta.build_sdist(out)
"""
USE = """
import importlib.metadata
from importlib.resources import files
import goodtransfer
from goodtransfer.study.tables import paper

assert goodtransfer.__file__.startswith(sys.argv[1]), goodtransfer.__file__
assert importlib.metadata.version("goodtransfer") == goodtransfer.__version__
assert paper()["table3"]
assert "torch" not in sys.modules  # nor needed so far
"""


def sources():
    """Python files of the package, and what else it needs."""
    files = (ROOT / "goodtransfer").rglob("*.py")
    return DATA | {file.relative_to(ROOT).as_posix() for file in files}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A copy of the tree, since a build leaves folders in it; built without isolation."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("dist")
    for name in ("pyproject.toml", "README.md", "LICENSE", "setup.cfg"):
        shutil.copy(ROOT / name, copy)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "goodtransfer", copy / "goodtransfer", ignore=ignored)
    run(sys.executable, "-c", BUILD, out, cwd=copy)
    wheel, sdist = sorted(out.iterdir(), key=lambda path: path.suffix != ".whl")
    return wheel, sdist


def run(*words, **options):
    done = subprocess.run(
        list(map(str, words)), capture_output=True, text=True, timeout=300, check=False, **options
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_has_the_package_and_nothing_else(built):
    wheel, _ = built
    assert wheel.name == f"goodtransfer-{goodtransfer.__version__}-py3-none-any.whl"
    names = set(zipfile.ZipFile(wheel).namelist())
    inside = {name for name in names if ".dist-info/" not in name}
    assert inside == sources()
    about = f"goodtransfer-{goodtransfer.__version__}.dist-info"
    assert f"{about}/licenses/LICENSE" in names
    assert wheel.stat().st_size < 600_000


@pytest.mark.slow
def test_the_sdist_can_be_built_from(built):
    _, sdist = built
    top = f"goodtransfer-{goodtransfer.__version__}"
    assert sdist.name == f"{top}.tar.gz"
    with tarfile.open(sdist) as archive:
        names = {name.removeprefix(f"{top}/") for name in archive.getnames()}
    assert sources() | {"pyproject.toml", "README.md", "LICENSE"} <= names
    assert sdist.stat().st_size < 600_000


@pytest.mark.slow
def test_the_wheel_works_in_a_folder_of_its_own(built, tmp_path):
    wheel, _ = built
    there = tmp_path / "there"
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--no-compile",
        "--target", there, wheel)  # fmt: skip
    alone = {**os.environ, "PYTHONPATH": str(there)}
    run(sys.executable, "-c", f"import sys{USE}", there, cwd=tmp_path, env=alone)
    command = [sys.executable, there / "bin/goodtransfer"]
    printed = run(*command, "--version", cwd=tmp_path, env=alone)
    assert printed == f"goodtransfer {goodtransfer.__version__}\n"
    printed = run(*command, "study", "cost", "--scale", "paper", "--table", "3",
                  cwd=tmp_path, env=alone)  # fmt: skip
    assert "Exemplar-v2" in printed


def test_the_version_is_told_once_and_the_same():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    changes = (ROOT / "CHANGELOG.md").read_text("utf-8")
    versions = [
        PROJECT["project"]["version"],
        str(citation["version"]),
        re.search(r"^## (.*)$", changes, re.M)[1],
    ]
    assert versions == [goodtransfer.__version__] * 3
    assert citation["references"][0]["authors"][0]["family-names"] == "Zhao"


@pytest.mark.slow
def test_what_is_imported_is_required():
    """Every package that the library imports anywhere is one of its requirements, or of its extras."""
    lists = [PROJECT["project"]["dependencies"]]
    lists += PROJECT["project"]["optional-dependencies"].values()
    required = {plain(re.match(r"[\w.-]+", word)[0]) for words in lists for word in words}
    homes = importlib.metadata.packages_distributions()
    imported = set()
    for file in (ROOT / "goodtransfer").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
    for name in imported - set(sys.stdlib_module_names) - {"goodtransfer"}:
        known = {plain(home) for home in homes.get(name, [])}
        assert known & required, f"{name}, of {known or 'no package here'}"


def plain(name):
    """As package indexes compare names."""
    return re.sub(r"[-_.]+", "-", name).lower()
