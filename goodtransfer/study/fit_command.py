"""The command ``goodtransfer fit`` that pretrains a row as its cell does, bit for bit on one device."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from goodtransfer.study.demands import cores
from goodtransfer.study.plan import Study
from goodtransfer.study.protocol import TASKS, Pretraining
from goodtransfer.study.sources import IMAGES
from goodtransfer.study.transfers import C4, City


def fit_command(
    study: Study, run: Pretraining, seed: int = 0, *, keep: int | None = None
) -> list[str] | None:
    """Its words, or None for an encoder that nobody trains.

    Args:
        study: whose images it is.
        run: at the study's scale.
        seed: of initialisation, order and views.
        keep: an epoch, counted from 1, whose encoder is kept, besides the last one's checkpoint.
    """
    if not run.trains:
        return None
    data: dict[str, Any] = {
        "root": str(study.root(run.data)),
        "seed": seed,
        "num_workers": _workers(),
    }
    if study.classes and run.data == "imagenet":
        data["subset"] = study.classes
    make = _by_task if run.method in TASKS else _by_method
    model, kind, own, trainer = make(run, seed)
    words = ["goodtransfer", "fit", f"--model={run.method}", *_options("model", model)]
    words += [f"--data={kind}", *_options("data", {**data, **own})]
    # Nobody reads a validation while the method trains, and a batch is that of all devices.
    words += _options("trainer", {**trainer, "limit_val_batches": 0, "devices": 1})
    if keep is not None:
        words += ["--trainer.callbacks+=KeepEncoders", "--trainer.callbacks.folder=encoders"]
        words += [f"--trainer.callbacks.epochs=[{keep}]"]
    return [*words, f"--seed_everything={seed}"]


Parts = tuple[Mapping[str, Any], str, Mapping[str, Any], Mapping[str, Any]]


def _by_method(run: Pretraining, _: int) -> Parts:
    """Arguments of the method; class and arguments of the data; arguments of the trainer."""
    kind, own = IMAGES[run.data]
    names = ("batch_size", "size", "views", "crop")
    values = {name: getattr(run, name) for name in names}
    return run.arguments, kind, {**own, **values}, {"max_epochs": run.epochs}


def _by_task(run: Pretraining, seed: int) -> Parts:
    """The same of a task, which counts its steps by itself."""
    values = {k: v for k, v in run.arguments.items() if k not in ("encoder", "bn_images")}
    trainer = {"max_epochs": -1, "accumulate_grad_batches": values.get("accumulate", 1)}
    protocol: C4 | City
    if run.method == "COCODetection":
        protocol, kind = C4(**values), "COCODetectionDataModule"
        own = {"masks": "polygons", "batch_size": protocol.batch // protocol.accumulate}
    else:
        protocol, kind = City(**values), "SYNTHIASegmentationDataModule"
        own = {"batch_size": protocol.batch, **protocol.view()}
    model = {"encoder": run.arguments["encoder"], "seed": seed, **protocol.arguments()}
    return model, kind, own, trainer


def _options(part: str, values: Mapping[str, Any]) -> Iterator[str]:
    for name, value in values.items():
        yield f"--{part}.{name}={value if isinstance(value, str) else json.dumps(value)}"


def _workers() -> int:
    """Loader processes, on a machine like this one; views do not depend on them."""
    return min(8, cores() // 2)
