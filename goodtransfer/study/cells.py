"""How one cell is made: a pretraining or a readout under a plain Trainer."""

import logging
import os
import pickle
import platform
import shutil
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torchvision.utils import save_image

import goodtransfer
from goodtransfer import methods, views
from goodtransfer.callbacks import OnlineProbe
from goodtransfer.data import (
    ImageNetDataModule,
    VOCDetectionDataModule,
    make_imagefolder,
    make_voc,
    toy,
)
from goodtransfer.data.voc import VOC_CLASSES
from goodtransfer.encoders import build
from goodtransfer.study.detections import KeepDetections, write_detections
from goodtransfer.study.logger import CellBar, CurveLogger
from goodtransfer.study.plan import Cell, Study
from goodtransfer.study.results import Results
from goodtransfer.transfer import Detection, LinearProbe
from goodtransfer.weights import load_encoder, load_head, save_encoder


def run_cell(study: Study, cell: Cell) -> None:
    """Make one cell, going on from its last checkpoint if it was killed; nothing if it is done."""
    results = Results(study)
    if results.done(cell.key):
        return
    missing = [key for key in cell.needs if not results.done(key)]
    if missing:
        raise ValueError(f"Expected cell {cell.key} after {', '.join(missing)}: run these first.")
    if study.scale.toy is not None and study.data is None:
        make_imagefolder(study.data_root, **study.scale.toy)
    finished = results.work(cell) / "finished"
    shutil.rmtree(finished, ignore_errors=True)
    finished.mkdir()
    pl.seed_everything(cell.seed, workers=True, verbose=False)
    started, cpu = time.time(), _cpu_seconds()
    metrics = _KINDS[cell.kind](study, cell, results, finished)
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
        },
    }
    results.finish(cell, finished, run, metrics)


def _pretrain(study: Study, cell: Cell, results: Results, finished: Path) -> dict[str, float]:
    row = cell.row
    metrics: dict[str, float] = {}
    if row.method == "none":
        save_encoder(finished / "encoder.safetensors", build(row.arguments["encoder"]))
        return metrics
    recipe = views.recipe(row.views, row.size, scale=(row.crop, 1.0))
    data = ImageNetDataModule(
        study.data_root,
        batch_size=row.batch_size,
        size=row.size,
        views=recipe,
        seed=cell.seed,
        num_workers=_workers(),
    )
    method = getattr(methods, row.method)(**row.arguments)
    work = results.work(cell)
    trainer = _trainer(
        cell,
        work,
        row.epochs,
        limit_val_batches=0,
        callbacks=[OnlineProbe()],
    )
    trainer.fit(method, data, ckpt_path=_checkpoint(work))
    if isinstance(method, methods.SupervisedCE):
        metrics = _plain(trainer.test(method, data, verbose=False)[0])
    head = method.head if isinstance(method, methods.SupervisedCE) else None
    save_encoder(
        finished / "encoder.safetensors",
        method.encoder,
        head=head,
        scale=study.scale.name,
        data=study.data_root.name,
        seed=cell.seed,
        row=row.values(),
    )
    shutil.copy(work / "curves.jsonl", finished)
    _save_views(finished / "views.png", data)
    return metrics


def _linear(study: Study, cell: Cell, results: Results, finished: Path) -> dict[str, float]:
    protocol, encoder = study.scale.linear, results.folder(cell.needs[0]) / "encoder.safetensors"
    data = ImageNetDataModule(
        study.data_root,
        batch_size=protocol.batch_size,
        size=protocol.size,
        views=views.linear(protocol.size, scale=(protocol.crop, 1.0)),
        selection=protocol.selection,
        seed=cell.seed,
        num_workers=_workers(),
    )
    probe = LinearProbe(load_encoder(encoder), head=load_head(encoder))
    work = results.work(cell)
    trainer = _trainer(cell, work, protocol.epochs, check_val_every_n_epoch=protocol.epochs)
    trainer.fit(probe, data, ckpt_path=_checkpoint(work))
    shutil.copy(work / "curves.jsonl", finished)
    return _plain(trainer.test(probe, data, verbose=False)[0])


def _voc07(study: Study, cell: Cell, results: Results, finished: Path) -> dict[str, float]:
    protocol, encoder = study.scale.voc07, results.folder(cell.needs[0]) / "encoder.safetensors"
    assert study.voc_root is not None  # else there is no such cell
    drawn = study.voc is None
    if drawn:
        make_voc(study.voc_root, **(study.scale.toy_voc or {}))
    train, test = study.voc_splits
    data = VOCDetectionDataModule(
        study.voc_root,
        train=train,
        test=test,
        class_names=toy.CLASSES if drawn else VOC_CLASSES,
        batch_size=protocol.batch // protocol.accumulate,
        seed=cell.seed,
        num_workers=_workers(),
    )
    task = Detection(load_encoder(encoder), seed=cell.seed, **protocol.arguments())
    work, kept = results.work(cell), KeepDetections()
    trainer = _trainer(
        cell, work, -1, callbacks=[kept], accumulate_grad_batches=protocol.accumulate
    )
    trainer.fit(task, data, ckpt_path=_checkpoint(work))
    metrics = _plain(trainer.test(task, data, verbose=False)[0])
    shutil.copy(work / "curves.jsonl", finished)
    write_detections(finished, kept.found, task.ap, data)
    return metrics


_KINDS: dict[str, Callable[[Study, Cell, Results, Path], dict[str, float]]] = {
    "pretrain": _pretrain,
    "linear": _linear,
    "voc07": _voc07,
}


def _trainer(
    cell: Cell,
    work: Path,
    epochs: int,
    *,
    callbacks: list[pl.Callback] | None = None,
    **options: Any,
) -> pl.Trainer:
    """A Trainer that checkpoints every epoch into ``work`` and says nothing but its bar."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for hint in ("does not have many workers", "exists and is not empty", "treespec, LeafSpec"):
        warnings.filterwarnings("ignore", message=f".*{hint}.*")
    last = ModelCheckpoint(
        work, filename="last", save_on_train_epoch_end=True, enable_version_counter=False
    )
    return pl.Trainer(
        max_epochs=epochs,
        devices=1,  # batch sizes are over all; many devices are for `goodtransfer fit`
        logger=CurveLogger(work / "curves.jsonl"),
        callbacks=[last, CellBar(cell.title), *(callbacks or [])],
        default_root_dir=work,
        num_sanity_val_steps=0,
        log_every_n_steps=10,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def _checkpoint(work: Path) -> Path | None:
    """The checkpoint to go on from, if there is one that can be read."""
    file = work / "last.ckpt"
    if not file.is_file():
        return None
    try:
        torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        warnings.warn(f"Starting over: {file} was cut off ({error}).", stacklevel=2)
        return None
    return file


def _cpu_seconds() -> float:
    """Of this process and of its loader processes that have ended."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def _workers() -> int:
    """Loader processes; on a CPU the training keeps the other cores to itself.

    Threads that outnumber the free cores wait for each other in a spin: on two busy cores that made
    a step eight times as expensive.
    """
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    workers = min(8, cores // 2)
    if not torch.cuda.is_available():
        torch.set_num_threads(max(1, cores - workers))
    return workers


def _plain(metrics: Any) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}


def _save_views(path: Path, data: ImageNetDataModule, images: int = 8) -> None:
    """A grid of what the method saw: an image's views one below the other."""
    dataset: Any = data.train_dataloader().dataset
    step = max(1, len(dataset) // images)
    seen = [dataset[number].views for number in range(0, step * images, step)][:images]
    rows = [view.float() / 255 for views in zip(*seen, strict=True) for view in views]
    save_image(rows, path, nrow=len(seen), padding=2, pad_value=1.0)
