"""The pages of docs/ and the README say what the code does: names, defaults, examples and commands."""

import ast
import importlib
import inspect
import re
import shlex
from pathlib import Path

import pytest
import yaml

import goodtransfer
from goodtransfer.cli import main
from goodtransfer.study.scales import SCALES

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
# The README and the pages beside the examples have commands and code, too.
TEXTS = [*PAGES, ROOT / "README.md", *sorted((ROOT / "examples").rglob("README.md"))]


def name(path):
    return path.relative_to(ROOT).as_posix()


def blocks(path, language):
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text("utf-8"), re.M | re.S)


# --- names


def documented():
    """What the reference asks for: ``goodtransfer.room.Name``."""
    pages = (page.read_text("utf-8") for page in (DOCS / "reference").glob("*.md"))
    return re.findall(r"^::: ([\w.]+)$", "\n".join(pages), re.M)


def test_every_public_name_is_in_the_reference_once():
    found = [path.rpartition(".")[2] for path in documented()]
    assert set(goodtransfer.__all__) <= set(found)
    assert len(found) == len(set(found))


@pytest.mark.parametrize("path", documented())
def test_what_the_reference_names_is_there(path):
    module, _, attribute = path.rpartition(".")
    assert getattr(importlib.import_module(module), attribute).__doc__


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text("utf-8")
    assert set(re.findall(r"[\w/]+\.md", text)) == {p.relative_to(DOCS).as_posix() for p in PAGES}


def test_the_table_of_rooms_is_that_of_the_imports():
    rooms = {p.stem for p in (ROOT / "goodtransfer").iterdir() if not p.name.startswith("_")}
    table = (DOCS / "concepts.md").read_text("utf-8").partition("## Rooms")[2]
    first = "".join(line.split("|")[1] for line in table.splitlines() if line.startswith("| `"))
    assert set(re.findall(r"`(\w+)`", first)) == rooms - {"py"}


# --- defaults


def tables():
    """Page, class, argument and default of each cell below a mark."""
    for page in PAGES:
        for table in re.findall(r"<!-- defaults -->\n((?:\|.*\n)+)", page.read_text("utf-8")):
            heading, _, *rows = [
                [cell.strip().strip("`") for cell in line.strip("|").split("|")]
                for line in table.splitlines()
            ]
            for argument, *cells in rows:
                for column, cell in zip(heading[1:], cells, strict=True):
                    yield name(page), column, argument, cell


def arguments(of):
    """Of a class, and of the parents that its ``**options`` go to."""
    found = {}
    for kind in of.__mro__:
        own = inspect.signature(kind).parameters
        found = {**own, **found}
        if not any(given.kind is given.VAR_KEYWORD for given in own.values()):
            return found
    return found


def test_defaults_are_those_of_the_constructors():
    seen = {}
    for page, column, argument, cell in tables():
        known = arguments(getattr(goodtransfer, column))
        where = f"{page}: {column}({argument}=...)"
        seen.setdefault(column, set()).add(argument) if cell else None
        if not cell:
            assert argument not in known, where
            continue
        default = known[argument].default
        told = eval(cell, {"__builtins__": {}})  # 2**20 is no literal
        assert (told, type(told)) == (default, type(default)), where
    for method in ("SupervisedCE", "MoCoV1", "MoCoV2", "ExemplarMoCo", "InstDisc", "SimCLR"):
        assert seen[method] == set(inspect.signature(getattr(goodtransfer, method)).parameters)
    for task in (
        "LinearProbe",
        "Detection",
        "COCODetection",
        "Segmentation",
        "FewShot",
        "Landmarks",
    ):
        assert seen[task]
    for data in (
        "PlacesDataModule",
        "MAFLDataModule",
        "CityscapesDataModule",
        "VOCDetectionDataModule",
        "COCODetectionDataModule",
    ):
        assert seen[data]


def test_the_tables_of_a_scale_are_those_that_it_runs():
    rows = re.findall(r"^\| `(\w+)` \|.*\| (.*) \|$", (DOCS / "study.md").read_text("utf-8"), re.M)
    told = {scale: tuple(re.findall(r"`(\w+)`", tables)) for scale, tables in rows}
    assert {"paper", "small", "smoke", "quick"} == told.keys()  # tests have more
    assert told == {name: SCALES[name].tables for name in told}


# --- code


@pytest.mark.parametrize("path", TEXTS, ids=name)
def test_code_parses_and_its_imports_are_there(path):
    for code in blocks(path, "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    importlib.import_module(alias.name)
            elif isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{node.module}.{alias.name}"


def test_every_block_of_code_says_what_it_is():
    for path in PAGES:
        fences = re.findall(r"^```(.*)$", path.read_text("utf-8"), re.M)
        assert set(fences[::2]) <= {"python", "bash"}, name(path)
        assert set(fences[1::2]) <= {""}, name(path)


def test_the_worked_examples_work(tmp_path, monkeypatch):
    """Those of "Add your own", on the toy world."""
    from goodtransfer.data import make_imagefolder

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    root = make_imagefolder(tmp_path / "toy", train=40, val=20, size=32)
    for part in ("train", "val"):
        files = sorted((root / part).rglob("*.*"))
        lines = [f"{file.relative_to(root).as_posix()},{file.parent.name[:4]}" for file in files]
        (root / f"{part}.csv").write_text("\n".join(lines))
    examples = {}
    for code in blocks(DOCS / "extend.md", "python"):
        exec(compile(code, "extend.md", "exec"), examples)
    assert 0 <= examples["compare"](root) <= 100
    check_fresh(examples["FreshMoCo"])
    check_retrieval(examples["Retrieval"])


def check_fresh(method):
    """Of 6 keys, the last 3 enqueued."""
    import torch

    module = method("resnet10w8", queue_size=6, dim=4, exclude="label")
    module.queue.enqueue(torch.arange(8.0).repeat(4, 1).T, torch.arange(8))
    keys, asked, labels = module.negatives(torch.tensor([1, 2]), None)
    assert sorted(labels.tolist()) == sorted(keys[:, 0].tolist()) == [5, 6, 7]
    assert asked.tolist() == [1, 2]


def check_retrieval(task):
    """Three images of two colours, one of them labelled as the other two."""
    import pytorch_lightning as pl
    import torch
    from torch import nn
    from torch.utils.data import DataLoader

    from goodtransfer.encoders import OwnTrunk

    colours = torch.eye(3)[[0, 0, 1, 1]] + 0.01 * torch.arange(4.0).unsqueeze(1)
    images = (colours / 2).reshape(4, 3, 1, 1).expand(-1, -1, 8, 8)
    loader = DataLoader([((images,), torch.tensor([0, 0, 1, 2]))], batch_size=None)
    module = task(OwnTrunk(nn.Identity()))
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    trainer = pl.Trainer(**quiet)
    assert trainer.test(module, loader, verbose=False) == [{"retrieval": 50}]


# --- commands


def commands():
    """Those of all texts, each once."""
    found = {}
    for path in TEXTS:
        for block in blocks(path, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words[:1] == ["goodtransfer"]:
                    end = words.index("|") if "|" in words else None
                    found.setdefault(" ".join(words[1:end]), words[1:end])
    return found


@pytest.mark.parametrize("words", commands().values(), ids=commands())
def test_commands_are_taken_by_their_parsers(words, capsys, monkeypatch):
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.setenv("PL_SEED_WORKERS", "0")
    verb, *rest = words
    if verb == "--help":
        assert main(words) == 0
    elif verb in ("fit", "test"):
        with pytest.raises(SystemExit) as stop:
            main([*words, "--print_config"])
        printed = capsys.readouterr()
        assert stop.value.code == 0, printed.err
        assert {"model", "data", "trainer"} <= set(yaml.safe_load(printed.out))
    else:
        parsed = importlib.import_module(f"goodtransfer.cli.{verb}")._parser().parse_args(rest)
        config = getattr(parsed, "config", None)
        assert config is None or (ROOT / config).is_file()


def test_there_are_commands_of_every_verb():
    verbs = {words[0] for words in commands().values()}
    assert {"fit", "data", "diagnose", "invert", "weights", "study"} <= verbs
