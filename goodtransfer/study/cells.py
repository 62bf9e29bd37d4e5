"""One cell, from what it needs to a finished folder."""

import os
import platform
import shutil
import time
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import pytorch_lightning as pl
import torch

import goodtransfer
from goodtransfer.data import toy_layouts
from goodtransfer.study.locks import locked
from goodtransfer.study.measurements import measure
from goodtransfer.study.plan import Cell, Study
from goodtransfer.study.pretrainings import pretrain
from goodtransfer.study.results import Results
from goodtransfer.study.sources import SOURCES
from goodtransfer.study.transfers import TRANSFERS

# What draws the toy world's copy of a data set.
DRAWN = {
    "imagenet": toy_layouts.make_imagefolder,
    "voc": toy_layouts.make_voc,
    "coco": toy_layouts.make_coco,
    "cityscapes": toy_layouts.make_cityscapes,
    "mini_imagenet": toy_layouts.make_mini_imagenet,
    "celeba": toy_layouts.make_celeba,
    "places": toy_layouts.make_places,
    "synthia": toy_layouts.make_synthia,
}


def run_cell(study: Study, cell: Cell) -> None:
    """Make one cell, going on from its last checkpoint if it was killed; nothing if it is done.

    What it needs is made before it. Where another process makes it, or what it needs, wait for that one.
    """
    results = Results(study)
    if results.done(cell.key):
        return
    if missing := [key for key in cell.needs if not results.done(key)]:
        for needed in study.cells():
            if needed.key in missing:
                run_cell(study, needed)
    with results.alone(cell):
        if not results.restore(cell.key):
            _make(study, cell, results)


def _make(study: Study, cell: Cell, results: Results) -> None:
    for key in cell.needs:
        results.check(key)
    data = cell.row.data if cell.kind == "pretrain" else TRANSFERS[cell.kind].data
    if study.drawn(data):
        draw: Any = DRAWN[SOURCES[data].root]
        root = study.root(data)
        assert root is not None  # else there is no such cell
        with locked(root.with_suffix(".lock")):  # cells side by side need not all draw it
            draw(root, **study.scale.toy[SOURCES[data].root])
    finished = results.work(cell) / "finished"
    shutil.rmtree(finished, ignore_errors=True)
    finished.mkdir()
    pl.seed_everything(cell.seed, workers=True, verbose=False)
    started, cpu = time.time(), _cpu_seconds()
    make = pretrain if cell.kind == "pretrain" else measure
    metrics = make(study, cell, results, finished)
    run = {
        "kind": cell.kind,
        "row": {**asdict(cell.row), "arguments": dict(cell.row.arguments)},
        "scale": study.scale.name,
        "seed": cell.seed,
        "fidelity": cell.fidelity,
        "wall_seconds": round(time.time() - started, 1),
        "cpu_seconds": round(_cpu_seconds() - cpu, 1),
        "environment": {
            "goodtransfer": goodtransfer.__version__,
            "torch": torch.__version__,
            "pytorch_lightning": version("pytorch-lightning"),
            "python": platform.python_version(),
            "device": "cuda" if torch.cuda.is_available() else "cpu",
            **_gpus(),
        },
    }
    results.finish(cell, finished, run, metrics)


def _gpus() -> dict[str, str]:
    """The GPUs that a cell was given, where any are handed out: to find one that fails."""
    name = "CUDA_VISIBLE_DEVICES"
    return {name: os.environ[name]} if name in os.environ else {}


def _cpu_seconds() -> float:
    """Of this process and of its loader processes that have ended."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system
