"""How the cells that measure an encoder are made, one function for each kind."""

import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from torch import Tensor

from goodtransfer import views
from goodtransfer.analysis import LPIPS, Gallery
from goodtransfer.callbacks import KeepEncoders
from goodtransfer.data import (
    CityscapesDataModule,
    COCODetectionDataModule,
    MAFLDataModule,
    MiniImageNetDataModule,
    VOCDetectionDataModule,
    toy,
)
from goodtransfer.data.images import ImageDataModule
from goodtransfer.data.voc import VOC_CLASSES
from goodtransfer.study import fitting, per_image
from goodtransfer.study.detections import (
    KeepDetections,
    diagnosed,
    write_detections,
    write_errors,
)
from goodtransfer.study.faces import KeepFaces
from goodtransfer.study.per_image import KeepPerImage
from goodtransfer.study.plan import Cell, Study
from goodtransfer.study.pretrainings import images
from goodtransfer.study.results import Results
from goodtransfer.study.sources import VOC2012
from goodtransfer.study.transfers import TRANSFERS
from goodtransfer.transfer import (
    COCODetection,
    Detection,
    FewShot,
    Landmarks,
    LinearProbe,
    Segmentation,
)
from goodtransfer.weights import load_encoder, load_head

Measured = dict[str, float]


def measure(study: Study, cell: Cell, results: Results, finished: Path) -> Measured:
    """Leave what was logged on the way and the pictures, beside what the kind leaves itself."""
    made, work = results.folder(cell.needs[0]), results.work(cell)
    encoder = made / "encoder.safetensors"
    if cell.epoch is not None:
        encoder = KeepEncoders(made / "encoders", ()).path(cell.epoch)
    metrics = _KINDS[cell.kind](study, cell, encoder, work, finished)
    for file in (*work.glob("*.png"), *work.glob("curves.jsonl")):
        shutil.copy(file, finished)
    return metrics


def _linear(study: Study, cell: Cell, encoder: Path, work: Path, finished: Path) -> Measured:
    """Of the linear readout, and of the base classes of few-shot learning."""
    protocol, (name, *_others) = study.scale.protocol(cell.kind), TRANSFERS[cell.kind].columns
    data = images(study, TRANSFERS[cell.kind].data, cell.seed)(
        batch_size=protocol.batch_size,
        size=protocol.size,
        views=views.linear(protocol.size, scale=(protocol.crop, 1.0)),
        selection=protocol.selection,
    )
    trained = cell.row.data == TRANSFERS[cell.kind].data
    # A head of other classes than the readout's says nothing beside it.
    alike = trained and study.pretrained_on(cell.row.data) == study.source(cell.row.data)
    head = load_head(encoder) if alike else None
    probe = LinearProbe(load_encoder(encoder), head=head, name=name)
    epochs = protocol.epochs
    kept = KeepPerImage(finished, per_image.right)
    trainer = fitting.cell_trainer(
        cell.title, work, epochs, check_val_every_n_epoch=epochs, callbacks=[kept]
    )
    return _fitted(trainer, probe, data, work)


def _voc07(study: Study, cell: Cell, encoder: Path, work: Path, finished: Path) -> Measured:
    protocol, (train, test) = study.scale.protocol(cell.kind), study.voc_splits
    both = (train, VOC2012) if TRANSFERS[cell.kind].data == "voc0712" else train
    data = VOCDetectionDataModule(
        study.root("voc"),  # type: ignore[arg-type]
        train=both,
        test=test,
        class_names=toy.CLASSES if study.drawn("voc") else study.voc_classes or VOC_CLASSES,
        batch_size=protocol.batch // protocol.accumulate,
        seed=cell.seed,
        num_workers=fitting.workers(),
    )
    task = Detection(load_encoder(encoder), name=cell.kind, seed=cell.seed, **protocol.arguments())
    kept = KeepDetections()
    trainer = fitting.cell_trainer(
        cell.title, work, -1, callbacks=[kept], accumulate_grad_batches=protocol.accumulate
    )
    metrics = _fitted(trainer, task, data, work)
    write_detections(finished, kept.found, task.ap, data)
    diagnosis = diagnosed(kept, data.class_names)
    metrics[f"{cell.kind}_loc"] = write_errors(finished, diagnosis)
    per_image.write_outcomes(finished, task.ap, diagnosis, len(data.records("test")))
    return metrics


def _coco(study: Study, cell: Cell, encoder: Path, work: Path, finished: Path) -> Measured:
    protocol = study.scale.protocol("coco")
    data = COCODetectionDataModule(
        study.root("coco"),  # type: ignore[arg-type]
        masks="polygons",
        batch_size=protocol.batch // protocol.accumulate,
        seed=cell.seed,
        num_workers=fitting.workers(),
    )
    task = COCODetection(load_encoder(encoder), seed=cell.seed, **protocol.arguments())
    trainer = fitting.cell_trainer(
        cell.title, work, -1, accumulate_grad_batches=protocol.accumulate
    )
    metrics = _fitted(trainer, task, data, work)
    per_image.write_coco_outcomes(finished, task.ap, len(data.records("test")))
    return metrics


def _city(study: Study, cell: Cell, encoder: Path, work: Path, finished: Path) -> Measured:
    protocol = study.scale.protocol("city")
    data = CityscapesDataModule(
        study.root("cityscapes"),  # type: ignore[arg-type]
        batch_size=protocol.batch,
        seed=cell.seed,
        num_workers=fitting.workers(),
        **protocol.view(),
    )
    task = Segmentation(load_encoder(encoder), seed=cell.seed, **protocol.arguments())
    kept = KeepPerImage(finished, per_image.pixels)
    trainer = fitting.cell_trainer(cell.title, work, -1, limit_val_batches=0, callbacks=[kept])
    return _fitted(trainer, task, data, work)


def _few_shot(study: Study, cell: Cell, encoder: Path, work: Path, finished: Path) -> Measured:
    protocol = study.scale.protocol("few_shot")
    data = MiniImageNetDataModule(
        study.root("mini_imagenet"),  # type: ignore[arg-type]
        batch_size=64,
        size=protocol.size,
        num_workers=fitting.workers(),
    )
    task = FewShot(load_encoder(encoder), seed=cell.seed, **protocol.arguments())
    trainer = fitting.cell_trainer(cell.title, work, 1)
    found = trainer.test(task, data, verbose=False)  # of each loader
    per_image.write_episodes(finished, task)
    return {k: v for part in found for k, v in fitting.plain(part).items()}


def _inversion(study: Study, cell: Cell, encoder: Path, work: Path, finished: Path) -> Measured:
    protocol = study.scale.protocol("inversion")
    if study.scale.name == "paper":
        LPIPS()  # refused before days of work, not left out after them
    data = images(study, "imagenet", cell.seed)(size=protocol.size)
    gallery = Gallery(
        work / "gallery",
        {cell.row.name: load_encoder(encoder)},
        _one_of_each_class(data, protocol.images, cell.seed),
        **{name: getattr(protocol, name) for name in ("stage", "steps", "lr")},
        seed=cell.seed,
    )
    gallery.fill()
    previews = shutil.ignore_patterns("*_steps")  # a dozen of each picture
    shutil.copytree(gallery.out, finished / "gallery", ignore=previews)
    found = list(gallery.found.values())
    per_image.write_rebuilt(finished, found)
    return {name: fmean(scores[name] for scores in found) for name in found[0]}


def _one_of_each_class(data: ImageDataModule, count: int, seed: int) -> dict[str, Tensor]:
    """By name, the middles of test images: one of each class by lot, then one more of each."""
    files = data.files("val")
    lot = np.random.default_rng(seed).permutation(len(files))
    labels = files.labels[lot]
    grouped = np.argsort(labels, kind="stable")
    turn = np.empty_like(grouped)  # of an image in its class
    turn[grouped] = np.arange(len(lot)) - np.searchsorted(labels[grouped], labels[grouped])
    chosen = lot[np.lexsort((labels, turn))][:count]
    crop = views.center(data.size)
    return {
        Path(files.name(n)).with_suffix("").as_posix(): crop(views.decode(files.path(n)))[0]
        for n in chosen.tolist()
    }


def _landmarks(study: Study, cell: Cell, encoder: Path, work: Path, finished: Path) -> Measured:
    protocol = study.scale.protocol("landmarks")
    data = MAFLDataModule(
        study.root("mafl"),  # type: ignore[arg-type]
        batch_size=protocol.batch_size,
        size=protocol.size,
        seed=cell.seed,
        num_workers=fitting.workers(),
    )
    task = Landmarks(load_encoder(encoder), lr=protocol.lr, seed=cell.seed)
    kept = [KeepFaces(finished), KeepPerImage(finished, per_image.distance)]
    trainer = fitting.cell_trainer(
        cell.title, work, protocol.epochs, limit_val_batches=0, callbacks=[*kept]
    )
    return _fitted(trainer, task, data, work)


def _fitted(trainer: Any, task: Any, data: Any, work: Path) -> Measured:
    trainer.fit(task, data, ckpt_path=fitting.checkpoint(work))
    return fitting.plain(trainer.test(task, data, verbose=False)[0])


_KINDS: dict[str, Callable[[Study, Cell, Path, Path, Path], Measured]] = {
    "linear": _linear,
    "voc07": _voc07,
    "voc0712": _voc07,
    "voc07_course": _voc07,
    "coco": _coco,
    "city": _city,
    "base": _linear,
    "few_shot": _few_shot,
    "landmarks": _landmarks,
    "inversion": _inversion,
}
