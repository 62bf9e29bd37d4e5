"""Public docstrings name every argument and error, and show an example; the examples are tests, too."""

import ast
import builtins
import doctest
import importlib
import inspect
import re
import runpy
import sys
import textwrap
from dataclasses import is_dataclass
from pathlib import Path

import pytest

import goodtransfer

DOCS = Path(__file__).resolve().parents[1] / "docs"

# Classes without an example, by what one would need.
EXEMPT = {
    "images on disk": {
        "CelebADataModule", "CityscapesDataModule", "COCODataModule", "COCODetectionDataModule",
        "DetectionDataModule", "ImageDataModule", "ImageNetDataModule", "MAFLDataModule",
        "MiniImageNetDataModule", "PlacesDataModule", "SegmentationDataModule", "SYNTHIADataModule",
        "SYNTHIASegmentationDataModule", "VOCDetectionDataModule",
    },
    "weights on disk, and minutes": {"Gallery", "LPIPS"},
    "a Trainer": {
        "BNLeak", "COCODetection", "Detection", "EpochCount", "ExemplarMoCo", "FewShot", "FiniteCheck",
        "FrozenCheck", "InstDisc", "Landmarks", "LinearProbe", "MoCo", "MoCoV1", "MoCoV2", "OnlineKNN",
        "OnlineProbe", "Pictures", "QueueHealth", "Segmentation", "SimCLR", "SupervisedCE",
    },
}  # fmt: skip


def public():
    """What the reference asks for, and what is imported from the top, by name."""
    found = {name: getattr(goodtransfer, name) for name in goodtransfer.__all__}
    for page in (DOCS / "reference").glob("*.md"):
        for path in re.findall(r"^::: ([\w.]+)$", page.read_text("utf-8"), re.M):
            module, _, name = path.rpartition(".")
            found[name] = getattr(importlib.import_module(module), name)
    return found


PUBLIC = public()
each = pytest.mark.parametrize("name", sorted(PUBLIC))


def docstring(thing):
    """Its own; a class does not inherit one."""
    own = vars(thing).get("__doc__") if inspect.isclass(thing) else thing.__doc__
    return inspect.cleandoc(own or "")


def named(doc, section):
    """What a section of a docstring names, in its order."""
    found = re.search(rf"^{section}:\n((?:    .*\n|\n)*)", doc + "\n", re.M)
    return re.findall(r"^    \*{0,2}(\w+): ", found[1], re.M) if found else []


def is_record(thing):
    """A dataclass or a NamedTuple, whose arguments are its attributes."""
    return is_dataclass(thing) or hasattr(thing, "_fields")


def raised(tree):
    """Names of the errors that code raises itself."""
    errors = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise)]
    calls = [error.func if isinstance(error, ast.Call) else error for error in errors]
    return {call.id for call in calls if isinstance(call, ast.Name) and call.id.endswith("Error")}


def parsed(thing):
    return ast.parse(textwrap.dedent(inspect.getsource(thing))).body[0]


@each
def test_arguments_are_those_of_the_signature(name):
    thing, doc = PUBLIC[name], docstring(PUBLIC[name])
    expected = [*inspect.signature(thing).parameters]
    if of := re.search(r"^Args: those of :class:`(?:\w+\.)*(\w+)`", doc, re.M):
        assert inspect.isclass(thing)
        assert expected == [*inspect.signature(PUBLIC[of[1]]).parameters]
        assert not named(doc, "Args")
    else:
        assert named(doc, "Attributes" if is_record(thing) else "Args") == expected


@each
def test_errors_are_told(name):
    thing, doc = PUBLIC[name], docstring(PUBLIC[name])
    told = {*named(doc, "Raises")}
    home = vars(sys.modules[thing.__module__])
    assert all(error in home or hasattr(builtins, error) for error in told)
    tree = parsed(thing)
    if isinstance(tree, ast.FunctionDef):
        assert raised(tree) <= told
        return
    for method in tree.body:
        if isinstance(method, ast.FunctionDef):
            own = ast.get_docstring(method) or ""
            assert raised(method) <= told | {*named(own, "Raises")}, method.name


@each
def test_there_is_an_example(name):
    thing = PUBLIC[name]
    examples = doctest.DocTestParser().get_examples(docstring(thing))
    shown = [e for e in examples if not e.options.get(doctest.SKIP)]
    exempt = any(name in names for names in EXEMPT.values())
    assert bool(shown) != exempt
    assert inspect.isclass(thing) or not exempt


def test_the_exempt_are_public():
    assert set().union(*EXEMPT.values()) <= set(PUBLIC)


def test_examples_are_run_with_the_tests(pytestconfig):
    assert "goodtransfer" in pytestconfig.getini("testpaths")
    assert pytestconfig.option.doctestmodules


def test_the_site_shows_examples_as_code():
    """Markdown would take ``>>>`` for quotes in quotes."""
    markdown = runpy.run_path(DOCS / "docstrings.py")["markdown"]
    text = "Of :class:`Batch`.\n\n>>> 1 + 1  # two\n2\n>>> 3\n3\n\nAnd so on."
    expected = "Of `Batch`.\n\n```pycon\n>>> 1 + 1  # two\n2\n>>> 3\n3\n```\n\nAnd so on."
    assert markdown(text) == expected
