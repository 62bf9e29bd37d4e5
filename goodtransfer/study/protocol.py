"""What is pretrained: frozen values of the paper's protocol.

Rows derive from one another by ``.but(...)``, so a row shows exactly what it changes. Numbers that
the paper leaves open are those of the official MoCo code (see the docstrings of the methods).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from goodtransfer.study.transfers import COCO_6X, SYNTHIA, Run

K64 = 65536
K1M = 2**20  # "1M" of Table 10, taken as the power of two (protocol 0.4)


TASKS = ("COCODetection", "Segmentation")  # that pretrain, too
GIVEN = "given"  # an encoder that a user holds: the method, and the data, which nobody knows


@dataclass(frozen=True)
class Pretraining:
    """One pretraining, to the last value; the defaults are MoCo-v2's on ImageNet.

    Attributes:
        name: as the paper's tables call it.
        method: class of ``goodtransfer.methods``; a transfer task, whose encoder it is then;
            ``"none"`` for an encoder as it is built; or ``"given"`` for one that a user holds.
        arguments: of that class, all that the tables vary; the encoder by name. Of a task: the
            values of its protocol.
        epochs: over the images of ``data``.
        batch_size: images per step, over all ranks.
        size: side of a view in pixels.
        views: recipe.
        crop: smallest share of the image that a crop covers.
        data: data set that is pretrained on, as ``sources`` names it.
        keep: percent of the epochs after which the encoder is kept, besides the last one.

    >>> longer = Pretraining().but(name="MoCo-v2, longer", epochs=800, temperature=0.1)
    >>> longer.epochs, longer.arguments["temperature"], longer.arguments["queue_size"]
    (800, 0.1, 65536)
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
    data: str = "imagenet"
    keep: tuple[int, ...] = ()

    @property
    def trains(self) -> bool:
        """Whether anything is trained, or the encoder is there before."""
        return self.method not in ("none", GIVEN)

    def kept_epoch(self, percent: int) -> int:
        """The epoch, counted from 1, that brings the pretraining to this part of it."""
        return -(-percent * self.epochs // 100)

    @property
    def title(self) -> str:
        """What tells it from the others of a study, in a few words."""
        queue, tau = (self.arguments.get(k) for k in ("queue_size", "temperature"))
        detail = f" K={queue} τ={tau}" if queue else ""
        where = "" if self.data in ("imagenet", GIVEN) else f" on {self.data}"
        return self.name + detail + where

    def but(self, **changes: Any) -> "Pretraining":
        """The same with some fields or arguments replaced.

        Args:
            changes: by name; what is no attribute goes into ``arguments``.
        """
        own = {f.name: changes.pop(f.name) for f in fields(self) if f.name in changes}
        own["arguments"] = {**own.get("arguments", self.arguments), **changes}
        return replace(self, **own)

    def values(self) -> dict[str, Any]:
        """All that decides the run, flat."""
        flat = {f.name: getattr(self, f.name) for f in fields(self)}
        del flat["name"], flat["arguments"], flat["keep"]
        return {**flat, **self.arguments}


# Epochs 10, 30, ..., 190 of 200.
FIGURE_4 = tuple(range(5, 100, 10))

MOCO_V2 = Pretraining(keep=FIGURE_4)
MOCO_V1 = MOCO_V2.but(
    keep=(),
    name="MoCo-v1",
    method="MoCoV1",
    temperature=0.07,
    mlp=False,
    schedule="step",
    views="moco_v1",
)
EXEMPLAR_V2 = MOCO_V2.but(
    keep=(),
    name="Exemplar-v2",
    method="ExemplarMoCo",
    exclude="label",
    queue_size=K1M,
    temperature=0.1,
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
INSTDISC = Pretraining(
    name="InstDisc",
    method="InstDisc",
    views="instdisc",
    arguments={
        "encoder": "resnet50",
        "loss": "nce",
        "negatives": "auto",
        "temperature": 0.07,
        "momentum": 0.5,
        "dim": 128,
        "lr": 0.03,
        "weight_decay": 1e-4,
        "schedule": "step",
    },
)
# With the batch of the others, and the rate that the linear rule gives it (protocol 1.8).
SIMCLR = Pretraining(
    name="SimCLR",
    method="SimCLR",
    views="simclr",
    crop=0.08,
    arguments={
        "encoder": "resnet50",
        "temperature": 0.1,
        "dim": 128,
        "lr": 0.3,
        "weight_decay": 1e-6,
        "warmup_epochs": 10,
    },
)
UNTRAINED = SUPERVISED.but(
    name="Untrained", method="none", epochs=0, keep=(), arguments={"encoder": "resnet50"}
)
PIXELS = UNTRAINED.but(name="Pixels", encoder="pixels224")

# Section 4.1 (protocol 1.11): MoCo-v2's augmentation for all three. The paper is silent on K; below the
# 38,400 images, so that the queue holds few stale copies of a query's own image, and the same for both.
FEW_SHOT = {
    row.name: row.but(
        data="mini_imagenet", epochs=2000, keep=(), encoder="resnet18", crop=0.2, **queue
    )
    for row, queue in (
        (SUPERVISED, {}),
        (MOCO_V2, {"queue_size": 2**14}),
        (EXEMPLAR_V2, {"queue_size": 2**14}),
    )
}
# Section 4.2: the same on faces, of one identity each; "Scratch" is an encoder nobody trained.
FACES = {
    row.name: row.but(data="celeba", epochs=1400, keep=(), crop=0.2)
    for row in (SUPERVISED, MOCO_V2, EXEMPLAR_V2)
}
SCRATCH = UNTRAINED.but(name="Scratch", data="celeba")

# Table 1: a row by the last of its augmentations; the whole ladder is MoCo-v2's.
RUNGS = ("flip", "crop", "jitter", "gray", "blur")
SUPERVISED_LADDER = {
    rung: SUPERVISED.but(name=f"Supervised to {rung}", views=f"supervised_{rung}", keep=())
    for rung in RUNGS[:-1]
} | {RUNGS[-1]: SUPERVISED}
UNSUPERVISED_LADDER = {
    rung: MOCO_V2.but(name=f"MoCo-v2 to {rung}", views=f"ladder_{rung}", keep=())
    for rung in RUNGS[:-1]
} | {RUNGS[-1]: MOCO_V2}

# Table 2: data set -> epochs, as many iterations as on ImageNet (protocol 1.10); the paper speaks of
# smaller sets only, so that Places keeps its 200.
EPOCHS = {
    "imagenet10": 2001,
    "imagenet100": 2066,
    "places": 200,
    "celeba": 1574,
    "coco_images": 2166,
    "synthia": 702,
}
UNSUPERVISED_ON = {"imagenet": MOCO_V2} | {
    data: MOCO_V2.but(data=data, epochs=epochs, keep=()) for data, epochs in EPOCHS.items()
}


def by_task(task: str, data: str, protocol: Run) -> Pretraining:
    """A supervised row of Table 2 whose labels are not classes of images (protocol 10)."""
    values = {"encoder": "resnet50", **protocol.values()}
    return UNTRAINED.but(name="Supervised", method=task, data=data, arguments=values)


SUPERVISED_ON = {
    "imagenet": SUPERVISED,
    **{
        data: SUPERVISED.but(data=data, epochs=EPOCHS[data], keep=())
        for data in ("imagenet10", "imagenet100", "places", "celeba")
    },
    "coco_images": by_task("COCODetection", "coco", COCO_6X),
    "synthia": by_task("Segmentation", "synthia", SYNTHIA),
}


def given(label: str, encoder: str, digest: str) -> Pretraining:
    """An encoder that a user holds, by its network's name and what its weights are told by."""
    values = {"encoder": encoder, "weights": digest}
    return UNTRAINED.but(name=label, method=GIVEN, data=GIVEN, arguments=values)


def deviations(paper: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """The fidelity line: what differs from the paper's protocol, value by value.

    >>> deviations({"encoder": "resnet50", "epochs": 200}, {"encoder": "resnet50", "epochs": 13})
    'epochs 13 (paper: 200)'
    """
    parts = [
        f"{name.replace('_', ' ')} {text(run.get(name))} (paper: {text(paper.get(name))})"
        for name in {**paper, **run}
        if paper.get(name) != run.get(name)
    ]
    return "; ".join(parts) or "as in the paper"


def text(value: Any) -> str:
    """A value in a line of others.

    >>> text(1048576), text((480, 512, 544, 576))
    ('1,048,576', '480/.../576')
    """
    if isinstance(value, tuple):
        shown = value if len(value) < 4 else (value[0], "...", value[-1])
        return "/".join(text(v) for v in shown)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
