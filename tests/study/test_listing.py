"""Rows as `study list` tells them, and their commands: parsed by the real parser, and run."""

import itertools
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from goodtransfer import COCODetection, ExemplarMoCo, Segmentation, SupervisedCE
from goodtransfer.cli import main
from goodtransfer.data import ImageNetDataModule
from goodtransfer.study.cells import run_cell
from goodtransfer.study.fit_command import fit_command
from goodtransfer.study.listing import differences, lines
from goodtransfer.study.plan import Study
from goodtransfer.study.protocol import TASKS
from goodtransfer.study.results import Results
from goodtransfer.study.scales import SCALES
from goodtransfer.study.sources import IMAGES, ROOTS
from goodtransfer.study.tables import TABLES
from goodtransfer.study.transfers import C4, City
from goodtransfer.views import moco_v2

sys.path.insert(0, str(Path(__file__).parent))
from tiny import TINY

# What a test of a command adds: it is quiet, leaves its checkpoint in a folder, and starts no process.
QUIET = ["--data.num_workers=0", "--trainer.accelerator=cpu", "--trainer.logger=false",
         "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]  # fmt: skip


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    """Leave no seeds in the environment behind, and start no loader processes."""
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.setenv("PL_SEED_WORKERS", "0")
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setattr("goodtransfer.study.fitting.workers", lambda: 0)


def made_up(scale, out):
    """A study of everything: at the paper's scale in folders that need not be there."""
    roots = {} if scale.toy else {name: Path(f"/a folder/{name}") for name in ROOTS}
    return Study(out, scale, roots, tables=tuple(name for name in TABLES if name != "card"))


def plain(values):
    """As YAML has them, which knows no tuples."""
    return json.loads(json.dumps(values))


@pytest.mark.parametrize("scale", ["paper", pytest.param("tiny", marks=pytest.mark.slow)])
def test_the_parser_takes_the_command_of_every_row(scale, tmp_path, capsys):
    study, seen = made_up(SCALES[scale], tmp_path), set()
    for _, row in study.rows():
        run = study.scale.apply(row.pretraining)
        keep = None if row.kept is None else run.kept_epoch(row.kept)
        words = fit_command(study, run, 3, keep=keep)
        if run.method == "none":
            assert words is None
            continue
        text = shlex.join(words)
        if text in seen:
            continue
        seen.add(text)
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([*shlex.split(text)[1:], "--print_config"])
        assert stop.value.code == 0, text
        config = yaml.safe_load(capsys.readouterr().out)
        check(study, run, config)
        assert config["seed_everything"] == 3
        callbacks = config["trainer"]["callbacks"]
        if keep is None:
            assert not callbacks
        else:
            assert callbacks[0]["init_args"] == {"folder": "encoders", "epochs": [keep]}
    # 42 pretrainings, and those of Figure 4 for each epoch whose encoder is kept: 10 of 200, or of 3.
    assert len(seen) == 42 + {"paper": 2 * 10, "tiny": 2 * 3}[scale]


def check(study, run, config):
    """That a parsed command is the row, value by value."""
    model, data, trainer = (config[part] for part in ("model", "data", "trainer"))
    assert model["class_path"].split(".")[-1] == run.method
    given, images = model["init_args"], data["init_args"]
    assert images["root"] == str(study.root(run.data))
    assert images["seed"] == 3
    assert (int(trainer["devices"]), trainer["limit_val_batches"]) == (1, 0)
    if run.method not in TASKS:
        assert {k: given[k] for k in run.arguments} == plain(dict(run.arguments))
        assert trainer["max_epochs"] == run.epochs
        kind, own = IMAGES[run.data]
        assert data["class_path"].split(".")[-1] == kind
        own = {**own, **{k: getattr(run, k) for k in ("batch_size", "size", "views", "crop")}}
        assert {k: images[k] for k in own} == own
        return
    assert trainer["max_epochs"] == -1
    assert given["seed"] == 3
    values = {k: v for k, v in run.arguments.items() if k not in ("encoder", "bn_images")}
    protocol = C4(**values) if run.method == "COCODetection" else City(**values)
    expected = plain(protocol.arguments())
    assert {k: given[k] for k in expected} == expected
    assert given["encoder"] == run.arguments["encoder"]
    if run.method == "COCODetection":
        assert images["masks"] == "polygons"
        assert images["batch_size"] * trainer["accumulate_grad_batches"] == protocol.batch
    else:
        assert {k: images[k] for k in protocol.view()} == plain(protocol.view())
        assert images["batch_size"] == protocol.batch


def made(folder, method):
    """The encoder that a command left."""
    (checkpoint,) = folder.glob("checkpoints/*.ckpt")
    return method.load_from_checkpoint(checkpoint, weights_only=True).encoder.state_dict()


@pytest.mark.parametrize(
    ("table", "number", "method"),
    [
        ("3", 3, ExemplarMoCo),
        ("figure4", 0, SupervisedCE),
        ("2", 5, COCODetection),
        ("2", 6, Segmentation),
    ],
    ids=["Exemplar-v2", "cross-entropy", "COCO", "SYNTHIA"],
)
def test_a_command_makes_its_cell_s_encoder_to_the_bit(
    table, number, method, tmp_path, monkeypatch
):
    study = Study(tmp_path / "s", TINY, tables=(table,), seeds=2)
    row, seed = TABLES[table].rows[number], 1
    cell = study.cells_of(TABLES[table], row, seed)["pretrain"]
    run_cell(study, cell)
    folder = Results(study).folder(cell.key)
    expected = load_file(folder / "encoder.safetensors")

    run = study.scale.apply(row.pretraining)
    keep = None if row.kept is None else run.kept_epoch(row.kept)
    words = fit_command(study, run, seed, keep=keep)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(99)  # which the command does not go by
    assert main([*words[1:], *QUIET, f"--trainer.default_root_dir={tmp_path}"]) is None
    found = made(tmp_path, method)
    assert set(expected) - {"head.weight", "head.bias"} == set(found)
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name
    if keep is not None:
        kept, own = (
            load_file(where / "encoders" / f"epoch_{keep:03}.safetensors")
            for where in (tmp_path, folder)
        )
        assert keep == 1
        assert all(torch.equal(kept[name], own[name]) for name in own)
        assert any(not torch.equal(kept[name], expected[name]) for name in own)


def test_a_recipe_by_name_takes_a_crop():
    data = ImageNetDataModule("nowhere", size=32, views="moco_v2", crop=0.5)
    assert data._training_recipe() == moco_v2(32, scale=(0.5, 1.0))
    assert ImageNetDataModule("nowhere", size=32, views="moco_v2")._training_recipe() == moco_v2(32)
    for crop, views in ((0.0, "moco_v2"), (1.5, None), (0.5, moco_v2(32))):
        with pytest.raises(ValueError, match="Expected `crop` above 0 and up to 1, and `views` by"):
            ImageNetDataModule("nowhere", views=views, crop=crop)
    with pytest.raises(ValueError, match="Expected views that crop at random, but got 'center'"):
        ImageNetDataModule("nowhere", views="center", crop=0.5)._training_recipe()


def listed(study):
    """By row: what it tells of itself, its commands, and its cells' lines."""
    found, label = {}, None
    for line in itertools.chain.from_iterable(text.split("\n") for text in lines(study)):
        if re.match(r"  \S", line):
            label = line.strip()
            found[label] = {"told": None, "commands": [], "cells": [], "above": []}
        elif line.startswith("    goodtransfer fit "):
            found[label]["commands"].append(line.strip())
        elif line.startswith("    as above: "):
            found[label]["above"].append(line.split()[2])
        elif re.match(r"    \S", line):
            found[label]["told"] = line.strip()
        elif re.match(r"[0-9a-f]{16}  ", line):
            found[label]["cells"].append(line)
    return found


def test_rows_tell_what_they_change_and_how_they_are_made(tmp_path):
    study = Study(tmp_path, TINY, tables=("3", "10", "floor"), seeds=2)
    rows = listed(study)
    assert list(rows) == [row.label for _, row in study.rows()]
    told = {label: row["told"] for label, row in rows.items()}
    assert told["Exemplar-v1"] == (
        "differs from MoCo-v1: method ExemplarMoCo (not MoCoV1); queue size 24 (not 16); "
        "exclude label (not none)"
    )
    assert told["MoCo-v2"] == "MoCo-v2 itself"
    assert told["MoCo-v2, K=64K, τ=0.2"] == "pretrained as MoCo-v2"
    assert told["MoCo-v1, K=1M, τ=0.07"] == (
        "differs from MoCo-v1, K=64K, τ=0.07: queue size 24 (not 16)"
    )
    assert told["Untrained"] == "differs from Pixels: encoder resnet10w8 (not pixels16)"
    assert all(len(row["commands"]) == (2 if "Co" in label or "Ex" in label else 0)
               for label, row in rows.items())  # fmt: skip
    run = TINY.apply(TABLES["3"].rows[3].pretraining)
    assert rows["Exemplar-v2"]["commands"] == [
        shlex.join(fit_command(study, run, s)) for s in (0, 1)
    ]
    keys = [line.split()[0] for row in rows.values() for line in row["cells"]]
    assert keys == [c.key for c in sorted(study.cells(), key=lambda c: keys.index(c.key))]
    assert len(keys) == len(set(keys)) == len(study.cells())
    same = rows["MoCo-v2, K=64K, τ=0.2"]
    assert same["cells"] == []  # each is told once
    assert same["above"] == [line.split()[0] for line in rows["MoCo-v2"]["cells"]
                             if "pretrain" in line or "linear" in line]  # fmt: skip
    assert all(re.fullmatch(r"[0-9a-f]{16}  open  .*seed [01]", line)
               for row in rows.values() for line in row["cells"])  # fmt: skip


def test_every_value_that_differs_is_told_once():
    run, other = {"a_b": 1, "same": 2, "new": (1, 2)}, {"a_b": 3, "same": 2, "old": 4}
    assert differences(run, other) == ["a b 1 (not 3)", "new 1/2", "no old"]


def test_the_listing_needs_no_torch(tmp_path):
    code = (
        "import sys; from goodtransfer.cli import main\n"
        "from goodtransfer.study.tables import TABLES\n"
        "tables = [name for name in TABLES if name != 'card']\n"
        "call = ['study', 'list', '--scale', 'smoke', '--table', *tables, '--out', sys.argv[1]]\n"
        "sys.exit(main(call) or 3 * ('torch' in sys.modules))"
    )
    call = [sys.executable, "-c", code, str(tmp_path / "s")]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "The toy world is drawn by the first cell that needs it." in done.stdout
    assert not (tmp_path / "s").exists()
