"""What is run: frozen values of the paper's protocol, and what a smaller scale changes of them.

Rows derive from one another by ``.but(...)``, so a row shows exactly what it changes. Numbers that
the paper leaves open are those of the official MoCo code (see the docstrings of the methods).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

K64 = 65536
K1M = 2**20  # "1M" of Table 10, taken as the power of two (protocol 0.4)


@dataclass(frozen=True)
class Pretraining:
    """One pretraining, to the last value; the defaults are MoCo-v2's on ImageNet.

    Attributes:
        name: as the paper's tables call it.
        method: class of ``goodtransfer.methods``, or ``"none"`` for an encoder as it is built.
        arguments: of that class, all that the tables vary; the encoder by name.
        epochs, batch_size: over all ranks.
        size: side of a view in pixels.
        views: recipe.
        crop: smallest share of the image that a crop covers.
    """

    name: str = "MoCo-v2"
    method: str = "MoCoV2"
    arguments: Mapping[str, Any] = field(
        default_factory=lambda: {
            "encoder": "resnet50",
            "queue_size": K64,
            "temperature": 0.2,
            "momentum": 0.999,
            "dim": 128,
            "mlp": True,
            "exclude": "none",
            "lr": 0.03,
            "weight_decay": 1e-4,
            "schedule": "cosine",
        }
    )
    epochs: int = 200
    batch_size: int = 256
    size: int = 224
    views: str = "moco_v2"
    crop: float = 0.2

    def but(self, **changes: Any) -> "Pretraining":
        """The same with some fields or arguments replaced."""
        own = {f.name: changes.pop(f.name) for f in fields(self) if f.name in changes}
        own["arguments"] = {**own.get("arguments", self.arguments), **changes}
        return replace(self, **own)

    def values(self) -> dict[str, Any]:
        """All that decides the run, flat, without the label."""
        flat = {f.name: getattr(self, f.name) for f in fields(self)}
        del flat["name"], flat["arguments"]
        return {**flat, **self.arguments}


MOCO_V2 = Pretraining()
MOCO_V1 = MOCO_V2.but(
    name="MoCo-v1",
    method="MoCoV1",
    temperature=0.07,
    mlp=False,
    schedule="step",
    views="moco_v1",
)
EXEMPLAR_V2 = MOCO_V2.but(
    name="Exemplar-v2", method="ExemplarMoCo", exclude="label", queue_size=K1M, temperature=0.1
)
EXEMPLAR_V1 = MOCO_V1.but(
    name="Exemplar-v1", method="ExemplarMoCo", exclude="label", queue_size=K1M
)
SUPERVISED = MOCO_V2.but(
    name="Supervised",
    method="SupervisedCE",
    views="supervised",
    crop=0.08,
    arguments={"encoder": "resnet50", "lr": 0.1, "weight_decay": 1e-4, "schedule": "cosine"},
)
UNTRAINED = SUPERVISED.but(
    name="Untrained", method="none", epochs=0, arguments={"encoder": "resnet50"}
)
PIXELS = UNTRAINED.but(name="Pixels", encoder="pixels224")


@dataclass(frozen=True)
class Linear:
    """The linear readout (protocol 2.1).

    Attributes:
        epochs, batch_size, size: as of a pretraining.
        crop: smallest share of the image that a training crop covers.
        selection: share of train that chooses the learning rate, at most 50 images a class.
    """

    epochs: int = 100
    batch_size: int = 256
    size: int = 224
    crop: float = 0.08
    selection: float = 0.1


@dataclass(frozen=True)
class VOC07:
    """Fine-tuning on VOC07 (protocol 3): arguments of ``Detection`` and its ``RCNNC4``.

    Attributes:
        accumulate: micro-batches of a step. With ``batch`` 16 that is *accumulate to 16*, with a
            smaller ``batch`` and one micro-batch *batch b*; a scale has one of them for all rows.
    """

    batch: int = 16
    accumulate: int = 1
    lr: float = 0.02
    iterations: int = 9_000
    milestones: tuple[int, ...] = (6_000, 8_000)
    warmup: int = 100
    short_sides: tuple[int, ...] = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    test_side: int = 800
    max_side: int = 1333
    precise_bn: int = 200
    anchor_sizes: tuple[int, ...] = (32, 64, 128, 256, 512)
    rpn_batch: int = 256
    proposals_train: tuple[int, int] = (12_000, 2_000)
    proposals_test: tuple[int, int] = (6_000, 1_000)
    rois: int = 512
    roi_size: int = 14

    def values(self) -> dict[str, Any]:
        """All that decides the run, flat, with the images that batch norm sees together."""
        return {**asdict(self), "bn_images": self.batch // self.accumulate}

    def arguments(self) -> dict[str, Any]:
        """What ``Detection`` is called with."""
        parts = {name: getattr(self, name) for name in _OF_THE_DETECTOR}
        whole = {k: v for k, v in asdict(self).items() if k not in (*parts, "accumulate")}
        return {**whole, "detector": parts}


_OF_THE_DETECTOR = (
    "anchor_sizes",
    "rpn_batch",
    "proposals_train",
    "proposals_test",
    "rois",
    "roi_size",
)


@dataclass(frozen=True)
class Scale:
    """The one dial: what replaces the paper's values where its compute cannot be had.

    Attributes:
        name: printed with every result.
        every: changes to every pretraining.
        contrastive, supervised: further changes to the two kinds.
        queue_sizes: the paper's K to this scale's.
        linear, voc07: the readout, and the fine-tuning for detection.
        tables: made where none is named.
        toy, toy_voc: arguments of the toy world's two layouts, or None for the user's own data.
    """

    name: str
    every: Mapping[str, Any] = field(default_factory=dict)
    contrastive: Mapping[str, Any] = field(default_factory=dict)
    supervised: Mapping[str, Any] = field(default_factory=dict)
    queue_sizes: Mapping[int, int] = field(default_factory=dict)
    linear: Linear = Linear()
    voc07: VOC07 = VOC07()
    tables: tuple[str, ...] = ("3", "supervised", "floor")
    toy: Mapping[str, Any] | None = None
    toy_voc: Mapping[str, Any] | None = None

    def apply(self, row: Pretraining) -> Pretraining:
        """The row as it is run at this scale."""
        size = self.every.get("size", row.size)
        if row.method == "none":
            pixels = row.arguments["encoder"].startswith("pixels")
            encoder = f"pixels{size}" if pixels else self.every.get("encoder", "resnet50")
            return row.but(size=size, encoder=encoder)
        queue = row.arguments.get("queue_size")
        if queue is None:
            return row.but(**{**self.every, **self.supervised})
        queue_size = self.queue_sizes.get(queue, queue)
        return row.but(**{**self.every, **self.contrastive, "queue_size": queue_size})


SCALES = {
    scale.name: scale
    for scale in (
        # Without the floor: a readout of 224 x 224 pixels would take 16 GB to say little.
        Scale("paper", tables=("3", "supervised")),
        # Some hundred to a few thousand real photos on a CPU.
        Scale(
            "small",
            every={
                "encoder": "resnet18w32",
                "size": 64,
                "batch_size": 64,
                "epochs": 60,
            },
            contrastive={"momentum": 0.99},
            queue_sizes={K64: 128, K1M: 256},
            linear=Linear(epochs=40, batch_size=64, size=64),
            voc07=VOC07(
                batch=8,
                lr=0.1,
                iterations=150,
                milestones=(100, 133),
                warmup=20,
                short_sides=(160, 176, 192, 208, 224),
                test_side=208,
                max_side=352,
                precise_bn=20,
                anchor_sizes=(16, 32, 64, 128, 256),
                proposals_train=(2_000, 500),
                proposals_test=(1_000, 300),
                rois=64,
                roi_size=7,
            ),
        ),
        # The toy world on two cores within minutes.
        Scale(
            "smoke",
            every={
                "encoder": "resnet10w32",
                "size": 48,
                "batch_size": 64,
                "epochs": 13,
                "crop": 0.5,
            },
            contrastive={"momentum": 0.99},
            supervised={"epochs": 10},
            queue_sizes={K64: 128, K1M: 256},
            linear=Linear(epochs=10, batch_size=64, size=48, crop=0.5),
            voc07=VOC07(
                batch=8,
                lr=0.2,
                iterations=60,
                milestones=(40, 53),
                warmup=10,
                short_sides=(128,),
                test_side=128,
                precise_bn=10,
                anchor_sizes=(16, 32, 64),
                rpn_batch=64,
                proposals_train=(1_000, 200),
                proposals_test=(500, 100),
                rois=16,
                roi_size=4,
            ),
            toy={"train": 2000, "val": 2000, "size": 48, "seed": 0},
            toy_voc={"train": 400, "test": 150, "size": 128, "seed": 0},
        ),
    )
}


def deviations(paper: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """The fidelity line: what differs from the paper's protocol, value by value.

    >>> deviations({"encoder": "resnet50", "epochs": 200}, {"encoder": "resnet50", "epochs": 13})
    'epochs 13 (paper: 200)'
    """
    parts = [
        f"{name.replace('_', ' ')} {_text(run.get(name))} (paper: {_text(paper.get(name))})"
        for name in {**paper, **run}
        if paper.get(name) != run.get(name)
    ]
    return "; ".join(parts) or "as in the paper"


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        shown = value if len(value) < 4 else (value[0], "...", value[-1])
        return "/".join(_text(v) for v in shown)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
