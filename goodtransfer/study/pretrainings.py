"""How a pretraining cell is made."""

import shutil
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torchvision.utils import save_image

from goodtransfer import data as modules
from goodtransfer import methods
from goodtransfer.callbacks import KeepEncoders, OnlineProbe
from goodtransfer.data import COCODetectionDataModule, SYNTHIASegmentationDataModule
from goodtransfer.data.images import ImageDataModule
from goodtransfer.data.show import picture
from goodtransfer.encoders import build
from goodtransfer.study import fitting
from goodtransfer.study.plan import Cell, Study
from goodtransfer.study.protocol import GIVEN, TASKS
from goodtransfer.study.results import Results
from goodtransfer.study.sources import IMAGES
from goodtransfer.study.transfers import C4, City
from goodtransfer.transfer import COCODetection, Segmentation
from goodtransfer.weights import save_encoder


def pretrain(study: Study, cell: Cell, results: Results, finished: Path) -> dict[str, float]:
    """Leave ``encoder.safetensors``, and what was seen and logged on the way."""
    row, work = cell.row, results.work(cell)
    if row.method == GIVEN:
        held = study.root(GIVEN) / f"{row.arguments['weights']}.safetensors"  # type: ignore[operator]
        shutil.copy(held, finished / "encoder.safetensors")
        return {}
    if row.method == "none":
        save_encoder(finished / "encoder.safetensors", build(row.arguments["encoder"]))
        return {}
    make = _by_task if row.method in TASKS else _by_method
    trained, metrics = make(study, cell, work, finished)
    head = trained.head if isinstance(trained, methods.SupervisedCE) else None
    save_encoder(
        finished / "encoder.safetensors",
        trained.encoder,
        head=head,
        scale=study.scale.name,
        data=str(study.root(row.data).name),  # type: ignore[union-attr]
        seed=cell.seed,
        row=row.values(),
    )
    shutil.copy(work / "curves.jsonl", finished)
    return metrics


def _by_method(
    study: Study, cell: Cell, work: Path, finished: Path
) -> tuple[Any, dict[str, float]]:
    """By views of images, and the labels of whole images where there are some."""
    row = cell.row
    chosen = {"subset": study.classes} if study.classes and row.data == "imagenet" else {}
    data = images(study, row.data, cell.seed)(
        **chosen,
        batch_size=row.batch_size,
        size=row.size,
        views=row.views,
        crop=row.crop,
    )
    method = getattr(methods, row.method)(**row.arguments)
    kept = KeepEncoders(work / "encoders", map(row.kept_epoch, row.keep))
    watch: list[pl.Callback] = [OnlineProbe(), kept] if data.num_classes else [kept]
    trainer = fitting.cell_trainer(
        cell.title, work, row.epochs, limit_val_batches=0, callbacks=watch
    )
    trainer.fit(method, data, ckpt_path=fitting.checkpoint(work))
    metrics: dict[str, float] = {}
    # Where the head is the readout's equal (Table 6).
    if isinstance(method, methods.SupervisedCE) and row.data == "imagenet":
        metrics = fitting.plain(trainer.test(method, data, verbose=False)[0])
    if row.keep:
        shutil.copytree(work / "encoders", finished / "encoders")
    picture([data], width=1024, height=96).save(finished / "samples.png")
    _save_views(finished / "views.png", data)
    return method, metrics


def _by_task(study: Study, cell: Cell, work: Path, finished: Path) -> tuple[Any, dict[str, float]]:
    """By boxes and masks, or by the class of each pixel: the encoder that a task has trained."""
    values = {k: v for k, v in cell.row.arguments.items() if k not in ("encoder", "bn_images")}
    encoder, root = build(cell.row.arguments["encoder"]), study.root(cell.row.data)
    rest: Any = {"root": root, "seed": cell.seed, "num_workers": fitting.workers()}
    protocol: C4 | City
    if cell.row.method == "COCODetection":
        protocol = C4(**values)
        size = protocol.batch // protocol.accumulate
        data: Any = COCODetectionDataModule(masks="polygons", batch_size=size, **rest)
        task: Any = COCODetection(encoder, seed=cell.seed, **protocol.arguments())
    else:
        protocol = City(**values)
        data = SYNTHIASegmentationDataModule(batch_size=protocol.batch, **protocol.view(), **rest)
        task = Segmentation(encoder, seed=cell.seed, **protocol.arguments())
    accumulate = getattr(protocol, "accumulate", 1)
    options: Any = {"limit_val_batches": 0, "accumulate_grad_batches": accumulate}
    trainer = fitting.cell_trainer(cell.title, work, -1, **options)
    trainer.fit(task, data, ckpt_path=fitting.checkpoint(work))
    picture([data], width=1024, height=96).save(finished / "samples.png")
    return task, {}


def images(study: Study, data: str, seed: int) -> Any:
    """A data set's module, to be called with its other arguments."""
    name, own = IMAGES[data]
    kind: type[ImageDataModule] = getattr(modules, name)
    root = study.root(data)
    assert root is not None  # else there is no such cell

    def make(**options: Any) -> ImageDataModule:
        return kind(root, seed=seed, num_workers=fitting.workers(), **own, **options)

    return make


def _save_views(path: Path, data: ImageDataModule, shown: int = 8) -> None:
    """A grid of what the method saw: an image's views one below the other."""
    dataset: Any = data.train_dataloader().dataset
    step = max(1, len(dataset) // shown)
    seen = [dataset[number].views for number in range(0, len(dataset), step)[:shown]]
    rows = [view.float() / 255 for views in zip(*seen, strict=True) for view in views]
    save_image(rows, path, nrow=len(seen), padding=2, pad_value=1.0)
