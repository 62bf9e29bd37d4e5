"""How a pretraining cell is made."""

import shutil
from pathlib import Path
from typing import Any

from torchvision.utils import save_image

from goodtransfer import methods, views
from goodtransfer.callbacks import OnlineProbe
from goodtransfer.data import CelebADataModule, ImageNetDataModule, MiniImageNetDataModule
from goodtransfer.data.images import ImageDataModule
from goodtransfer.encoders import build
from goodtransfer.study import fitting
from goodtransfer.study.plan import Cell, Study
from goodtransfer.study.results import Results
from goodtransfer.weights import save_encoder

IMAGES: dict[str, tuple[type[ImageDataModule], dict[str, Any]]] = {
    "imagenet": (ImageNetDataModule, {}),
    "mini_imagenet": (MiniImageNetDataModule, {}),
    # MAFL's test faces are not trained on; the paper is silent (protocol 6.4).
    "celeba": (CelebADataModule, {"leave_out_mafl": "test"}),
}


def pretrain(study: Study, cell: Cell, results: Results, finished: Path) -> dict[str, float]:
    """Leave ``encoder.safetensors``, and what was seen and logged on the way."""
    row = cell.row
    if row.method == "none":
        save_encoder(finished / "encoder.safetensors", build(row.arguments["encoder"]))
        return {}
    data = images(study, row.data, cell.seed)(
        batch_size=row.batch_size,
        size=row.size,
        views=views.recipe(row.views, row.size, scale=(row.crop, 1.0)),
    )
    method = getattr(methods, row.method)(**row.arguments)
    work, supervised = results.work(cell), isinstance(method, methods.SupervisedCE)
    trainer = fitting.cell_trainer(
        cell.title, work, row.epochs, limit_val_batches=0, callbacks=[OnlineProbe()]
    )
    trainer.fit(method, data, ckpt_path=fitting.checkpoint(work))
    metrics: dict[str, float] = {}
    if supervised and row.data == "imagenet":  # where the head is the readout's equal (Table 6)
        metrics = fitting.plain(trainer.test(method, data, verbose=False)[0])
    save_encoder(
        finished / "encoder.safetensors",
        method.encoder,
        head=method.head if supervised else None,
        scale=study.scale.name,
        data=str(study.root(row.data).name),  # type: ignore[union-attr]
        seed=cell.seed,
        row=row.values(),
    )
    shutil.copy(work / "curves.jsonl", finished)
    _save_views(finished / "views.png", data)
    return metrics


def images(study: Study, data: str, seed: int) -> Any:
    """A data set's module, to be called with its other arguments."""
    kind, own = IMAGES[data]
    root = study.root(data)
    assert root is not None  # else there is no such cell

    def make(**options: Any) -> ImageDataModule:
        return kind(root, seed=seed, num_workers=fitting.workers(), **own, **options)

    return make


def _save_views(path: Path, data: ImageDataModule, shown: int = 8) -> None:
    """A grid of what the method saw: an image's views one below the other."""
    dataset: Any = data.train_dataloader().dataset
    step = max(1, len(dataset) // shown)
    seen = [dataset[number].views for number in range(0, step * shown, step)][:shown]
    rows = [view.float() / 255 for views in zip(*seen, strict=True) for view in views]
    save_image(rows, path, nrow=len(seen), padding=2, pad_value=1.0)
