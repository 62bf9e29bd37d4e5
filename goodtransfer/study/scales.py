"""The one dial: a scale is what replaces the paper's values where its compute cannot be had."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from goodtransfer.study.protocol import K1M, K64, Pretraining
from goodtransfer.study.transfers import C4, PAPER, City, FewShot, Landmarks, Linear

Changes = Mapping[str, Any]


@dataclass(frozen=True)
class Scale:
    """What a scale changes of the paper's protocol; nothing by default.

    Attributes:
        name: printed with every result.
        every: changes to every pretraining.
        contrastive, supervised: further changes to the two kinds.
        on_data: further changes to pretrainings on a data set.
        queue_sizes: the paper's K to this scale's.
        transfers: protocols that replace the paper's, by kind of cell.
        tables: made where none is named.
        toy: arguments of the toy world's layouts by data set; none for the user's own data.
    """

    name: str
    every: Changes = field(default_factory=dict)
    contrastive: Changes = field(default_factory=dict)
    supervised: Changes = field(default_factory=dict)
    on_data: Mapping[str, Changes] = field(default_factory=dict)
    queue_sizes: Mapping[int, int] = field(default_factory=dict)
    transfers: Mapping[str, Any] = field(default_factory=dict)
    tables: tuple[str, ...] = ("3", "supervised", "floor", "4", "5")
    toy: Mapping[str, Changes] = field(default_factory=dict)

    def protocol(self, kind: str) -> Any:
        """How this scale measures a kind of transfer."""
        return self.transfers.get(kind, PAPER[kind])

    def apply(self, row: Pretraining) -> Pretraining:
        """The row as it is run at this scale."""
        size = self.every.get("size", row.size)
        if row.method == "none":
            pixels = row.arguments["encoder"].startswith("pixels")
            own = self.every.get("encoder", row.arguments["encoder"])
            return row.but(size=size, encoder=f"pixels{size}" if pixels else own)
        queue = row.arguments.get("queue_size")
        kind = self.supervised if queue is None else self.contrastive
        if queue is not None:
            kind = {**kind, "queue_size": self.queue_sizes.get(queue, queue)}
        return row.but(**{**self.every, **kind, **self.on_data.get(row.data, {})})


_SMALL_C4 = C4(
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

SCALES = {
    scale.name: scale
    for scale in (
        # Without the floor: a readout of 224 x 224 pixels would take 16 GB to say little.
        Scale("paper", tables=("3", "supervised", "4", "5")),
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
            queue_sizes={2**14: 128, K64: 128, K1M: 256},
            transfers={
                "linear": Linear(epochs=40, batch_size=64, size=64),
                "base": Linear(epochs=40, batch_size=64, size=64),
                "voc07": _SMALL_C4,
                "coco": _SMALL_C4,
                "city": City(
                    iterations=150,
                    batch=4,
                    channels=64,
                    aux_channels=32,
                    crop=(128, 256),
                    nominal=(256, 512),
                ),
                "few_shot": FewShot(size=64),
                "landmarks": Landmarks(epochs=20, batch_size=32, lr=0.1, size=64),
            },
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
            on_data={"mini_imagenet": {"epochs": 20}},
            queue_sizes={2**14: 128, K64: 128, K1M: 256},
            transfers={
                "linear": Linear(epochs=10, batch_size=64, size=48, crop=0.5),
                "base": Linear(epochs=10, batch_size=64, size=48, crop=0.5),
                "voc07": _SMOKE_C4,
                "coco": replace(_SMOKE_C4, iterations=45, milestones=(30, 40)),
                "city": City(
                    iterations=60,
                    batch=4,
                    lr=0.05,
                    channels=32,
                    aux_channels=16,
                    crop=(64, 128),
                    nominal=(128, 256),
                ),
                "few_shot": FewShot(size=48),
                "landmarks": Landmarks(epochs=15, batch_size=32, lr=0.3, size=48),
            },
            # Tables 4 and 5 pretrain anew, three minutes more: by --table.
            tables=("3", "supervised", "floor"),
            toy={
                "imagenet": {"train": 2000, "val": 2000, "size": 48, "seed": 0},
                "voc": {"train": 400, "test": 150, "size": 128, "seed": 0},
                "coco": {"train": 300, "val": 100, "size": 128, "seed": 0},
                "cityscapes": {"train": 120, "val": 30, "size": 128, "seed": 0},
                "mini_imagenet": {"per_class": 60, "size": 48, "seed": 0},
                "celeba": {"images": 1000, "identities": 50, "seed": 0},
            },
        ),
    )
}
