"""The one dial: a scale is what replaces the paper's values where its compute cannot be had."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from goodtransfer.study.protocol import GIVEN, K1M, K64, TASKS, Pretraining
from goodtransfer.study.transfers import (
    C4,
    PAPER,
    City,
    FewShot,
    Inversion,
    Landmarks,
    Linear,
    Run,
)

Changes = Mapping[str, Any]


@dataclass(frozen=True)
class Scale:
    """What a scale changes of the paper's protocol; nothing by default.

    Attributes:
        name: printed with every result.
        every: changes to every pretraining that sees views; ``epochs`` are those of the paper's 200
            on ImageNet.
        on_method: further changes to pretrainings by a method.
        on_data: further changes to pretrainings on a data set.
        by_task: protocols of pretrainings by a task, in its place.
        queue_sizes: the paper's K to this scale's.
        transfers: protocols that replace the paper's, by kind of cell.
        tables: made where none is named.
        toy: arguments of the toy world's layouts by data set; none for the user's own data.
        micro_batches: how many a detector's is split into, for a GPU that does not hold it at once.

    >>> half = Scale("half", every={"epochs": 100}, queue_sizes={65536: 4096})
    >>> row = half.apply(Pretraining())
    >>> row.epochs, row.arguments["queue_size"], row.batch_size
    (100, 4096, 256)
    """

    name: str
    every: Changes = field(default_factory=dict)
    on_method: Mapping[str, Changes] = field(default_factory=dict)
    on_data: Mapping[str, Changes] = field(default_factory=dict)
    by_task: Mapping[str, Run] = field(default_factory=dict)
    queue_sizes: Mapping[int, int] = field(default_factory=dict)
    transfers: Mapping[str, Any] = field(default_factory=dict)
    tables: tuple[str, ...] = ("3", "supervised", "floor", "4", "5")
    toy: Mapping[str, Changes] = field(default_factory=dict)
    micro_batches: int = 1

    def protocol(self, kind: str) -> Any:
        """How this scale measures a kind of transfer."""
        found = self.transfers.get(kind, PAPER[kind])
        if not isinstance(found, C4):
            return found
        return replace(found, accumulate=found.accumulate * self.micro_batches)

    def apply(self, row: Pretraining) -> Pretraining:
        """The row as it is run at this scale."""
        if row.method == GIVEN:
            return row
        size = self.every.get("size", row.size)
        own = self.every.get("encoder", row.arguments["encoder"])
        if row.method == "none":
            pixels = row.arguments["encoder"].startswith("pixels")
            return row.but(size=size, encoder=f"pixels{size}" if pixels else own)
        if row.method in TASKS:
            protocol = self.by_task.get(row.method)
            # As arguments by name: a view of pixels has a `crop`, and so has a protocol.
            values = {**row.arguments, "encoder": own, **(protocol.values() if protocol else {})}
            if row.method == "COCODetection":
                values["accumulate"] *= self.micro_batches
                values["bn_images"] //= self.micro_batches
            return row.but(arguments=values)
        changes = {**self.every, **self.on_method.get(row.method, {})}
        if queue := row.arguments.get("queue_size"):
            changes["queue_size"] = self.queue_sizes.get(queue, queue)
        if "epochs" in changes:
            changes["epochs"] = max(1, changes["epochs"] * row.epochs // 200)
        return row.but(**{**changes, **self.on_data.get(row.data, {})})


# On about a hundred photos: minutes, not half an hour, for a detector of either kind.
_SMALL_C4 = C4(
    batch=4,
    lr=0.1,
    iterations=32,
    milestones=(21, 28),
    warmup=5,
    short_sides=(128, 144, 160),
    test_side=144,
    max_side=256,
    precise_bn=10,
    anchor_sizes=(16, 32, 64, 128),
    rpn_batch=128,
    proposals_train=(1_000, 300),
    proposals_test=(500, 100),
    rois=32,
    roi_size=7,
)
_SMALL_CITY = City(
    iterations=75,
    batch=4,
    channels=64,
    aux_channels=32,
    crop=(96, 192),
    nominal=(192, 384),
)
_SMOKE_CITY = City(
    iterations=60,
    batch=4,
    lr=0.05,
    channels=32,
    aux_channels=16,
    crop=(64, 128),
    nominal=(128, 256),
)
_SMOKE_C4 = C4(
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
)

_FEW_STEPS: Mapping[str, Changes] = {
    **{method: {"momentum": 0.99} for method in ("MoCoV1", "MoCoV2", "ExemplarMoCo")},
    # Its constant, told by the first batch, is too far off for a small bank (see InstDisc).
    "InstDisc": {"loss": "softmax"},
}

# The toy world on two cores within minutes.
_SMOKE = Scale(
    "smoke",
    every={
        "encoder": "resnet10w32",
        "size": 48,
        "batch_size": 64,
        "epochs": 13,
        "crop": 0.5,
    },
    on_method={
        **_FEW_STEPS,
        "SupervisedCE": {"epochs": 10},
        "SimCLR": {"warmup_epochs": 1},
    },
    # As many steps as on the 2,000 images of ImageNet, but on faces.
    on_data={
        "mini_imagenet": {"epochs": 20},
        "celeba": {"epochs": 13},
        "imagenet10": {"epochs": 130},
        "imagenet100": {"epochs": 130},
        "places": {"epochs": 13},
        "coco_images": {"epochs": 85},
        "synthia": {"epochs": 80},
    },
    by_task={
        "COCODetection": replace(_SMOKE_C4, iterations=120, milestones=(107, 116)),
        "Segmentation": replace(_SMOKE_CITY, iterations=120),
    },
    queue_sizes={2**14: 128, K64: 128, K1M: 256},
    transfers={
        "linear": Linear(epochs=6, batch_size=64, size=48, crop=0.5),
        "base": Linear(epochs=6, batch_size=64, size=48, crop=0.5),
        "voc07": _SMOKE_C4,
        "voc07_course": replace(
            _SMOKE_C4, iterations=30, milestones=(20, 27), eval_iters=(10, 20, 30)
        ),
        "voc0712": replace(_SMOKE_C4, iterations=90, milestones=(66, 81)),
        "coco": replace(_SMOKE_C4, iterations=45, milestones=(30, 40)),
        "city": _SMOKE_CITY,
        "few_shot": FewShot(size=48),
        "landmarks": Landmarks(epochs=15, batch_size=32, lr=0.3, size=48),
        "inversion": Inversion(images=3, steps=60, size=80),
    },
    # Tables 4 and 5 pretrain anew, three minutes more: by --table.
    tables=("3", "supervised", "floor"),
    toy={
        "imagenet": {"train": 2000, "val": 2000, "size": 48, "seed": 0},
        "voc": {"train": 400, "test": 150, "train2012": 400, "size": 128, "seed": 0},
        "places": {"train": 2000, "val": 20, "size": 48, "seed": 0},
        "synthia": {"frames": 20, "rand": 1, "size": 64, "seed": 0},
        "coco": {"train": 300, "val": 100, "size": 128, "seed": 0},
        "cityscapes": {"train": 120, "val": 30, "size": 128, "seed": 0},
        "mini_imagenet": {"per_class": 60, "size": 48, "seed": 0},
        "celeba": {"images": 1000, "identities": 50, "seed": 0},
    },
)
# Smaller still, for report cards: nothing is pretrained, and a larger network is only measured.
_QUICK_C4 = replace(
    _SMOKE_C4, iterations=20, milestones=(13, 18), warmup=4, precise_bn=5, proposals_test=(300, 50)
)
_QUICK = replace(
    _SMOKE,
    name="quick",
    transfers={
        **_SMOKE.transfers,
        "voc07": _QUICK_C4,
        "coco": _QUICK_C4,
        "city": replace(_SMOKE_CITY, iterations=30),
        "few_shot": FewShot(epochs=30, size=48),
        "landmarks": Landmarks(epochs=5, batch_size=32, lr=0.3, size=48),
        "inversion": Inversion(images=2, steps=60, size=80),
    },
    toy={
        **_SMOKE.toy,
        "imagenet": {"train": 1000, "val": 1000, "size": 48, "seed": 0},
        "voc": {"train": 160, "test": 60, "train2012": 160, "size": 128, "seed": 0},
        "coco": {"train": 160, "val": 40, "size": 128, "seed": 0},
        "mini_imagenet": {"per_class": 30, "size": 48, "seed": 0},
        "celeba": {"images": 800, "identities": 40, "seed": 0},
    },
)

SCALES = {
    scale.name: scale
    for scale in (
        # Without the floor: a readout of 224 x 224 pixels would take 16 GB to say little.
        Scale("paper", tables=("3", "supervised", "4", "5")),
        # Some hundred to a few thousand real photos on a CPU.
        Scale(
            "small",
            every={
                "encoder": "resnet10w32",
                "size": 48,
                "batch_size": 64,
                "epochs": 30,
            },
            on_method={**_FEW_STEPS, "SimCLR": {"warmup_epochs": 5}},
            queue_sizes={2**14: 128, K64: 128, K1M: 256},
            # Of faces there are as many as of photos, not a seventh.
            on_data={
                "imagenet10": {"epochs": 300},
                "imagenet100": {"epochs": 300},
                "celeba": {"epochs": 30},
            },
            by_task={
                "COCODetection": replace(_SMALL_C4, iterations=192, milestones=(170, 184)),
                "Segmentation": replace(_SMALL_CITY, iterations=450),
            },
            transfers={
                "linear": Linear(epochs=15, batch_size=64, size=48),
                "base": Linear(epochs=15, batch_size=64, size=48),
                "voc07": _SMALL_C4,
                "voc07_course": replace(_SMALL_C4, eval_iters=(8, 16, 24, 32)),
                "voc0712": replace(_SMALL_C4, iterations=90, milestones=(66, 81)),
                "coco": _SMALL_C4,
                "city": _SMALL_CITY,
                "few_shot": FewShot(size=48),
                "landmarks": Landmarks(epochs=20, batch_size=32, lr=0.1, size=48),
                "inversion": Inversion(images=4, steps=300, size=112),
            },
        ),
        _SMOKE,
        _QUICK,
    )
}
