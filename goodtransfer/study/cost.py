"""What a study will take, before anything runs and without torch: memory, bytes, images, steps, FLOPs.

FLOPs are those of the encoders' convolutions (``counting``), two to a multiply-add. Forward and
backward together are three forward passes, and the key encoder's is one. Heads, decoders and region
proposals, the comparison with the queue, and scoring after training are not counted.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from goodtransfer.study import counting
from goodtransfer.study.plan import Cell, Study
from goodtransfer.study.protocol import TASKS, Pretraining
from goodtransfer.study.sizes import PAPER, Size, read_out
from goodtransfer.study.sources import SOURCES, Found
from goodtransfer.study.transfers import C4, TRANSFERS, City

FP32, INT64 = 4, 8
# Elements of a block of logits on an accelerator: `losses.infonce`'s, which needs torch.
BLOCK_ELEMENTS = 2**24
# Width to height of photos, as of VOC's 500 x 375 and COCO's 640 x 480; the toy world's are square.
PHOTO = 4 / 3


class Planned(Study):
    """A study as it would be: of the paper's data, where no folder is named and nothing is drawn."""

    @property
    def imagined(self) -> bool:
        """Whether all data is the paper's."""
        return not self.roots and not self.scale.toy

    def root(self, data: str) -> Path | None:
        return Path() if self.imagined else super().root(data)

    def source(self, data: str) -> Found:
        if self.imagined:
            return Found(None, SOURCES[data].paper, PAPER[data])
        return super().source(data)

    def pretrained_on(self, data: str) -> Found:
        return self.source(data) if self.imagined else super().pretrained_on(data)


@dataclass(frozen=True)
class Work:
    """What a cell does: images that its training takes, each once a step; steps; FLOPs."""

    images: int = 0
    steps: int = 0
    flops: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.images + other.images, self.steps + other.steps, self.flops + other.flops)


@dataclass(frozen=True)
class Memory:
    """Bytes of a pretraining.

    Attributes:
        queue: on each device: keys in fp32, their labels and indices; InstDisc's memory bank.
        logits: on each device, the most that the loss holds at once of its N x K values: fp32, and
            with labels a mask.
        dense: of all of them.
        gathered: by each device in a step, from all: keys, labels, indices, and shuffle-BN's images.
        checkpoint: encoder, key encoder, heads, queue, and the optimizer's momentum.
        encoder: what is left of it.
    """

    queue: int = 0
    logits: int = 0
    dense: int = 0
    gathered: int = 0
    checkpoint: int = 0
    encoder: int = 0


# --- Memory


def memory(row: Pretraining, size: Size, devices: int) -> Memory:
    """Of a pretraining as it is run, with its batch on so many devices."""
    own = row.arguments
    encoder = counting.state_bytes(own["encoder"])
    if not row.trains:
        return Memory(encoder=encoder)
    head, trained, running = _head(row, size)
    weights = counting.parameters(own["encoder"]) + trained
    state = encoder + FP32 * head + running
    momentum = FP32 * weights
    here, dim = max(1, row.batch_size // devices), own.get("dim", 0)
    if queue := own.get("queue_size"):
        value = FP32 + (own["exclude"] != "none")
        stored = queue * (FP32 * dim + 2 * INT64)
        keys = row.batch_size * (FP32 * dim + 2 * INT64)
        views = row.batch_size * 3 * row.size**2  # uint8
        return Memory(
            queue=stored,
            logits=here * streamed(here, queue) * value,
            dense=here * queue * value,
            gathered=(keys + views) * (devices > 1),
            checkpoint=2 * state + stored + 2 * INT64 + momentum,
            encoder=encoder,
        )
    if row.method == "InstDisc":
        bank = size.images * dim * FP32
        logits, dense = _bank_logits(own, here, size.images)
        return Memory(
            queue=bank,
            logits=logits,
            dense=dense,
            gathered=row.batch_size * (FP32 * dim + INT64) * (devices > 1),
            checkpoint=state + bank + FP32 + momentum,  # and NCE's constant
            encoder=encoder,
        )
    if row.method == "SimCLR":
        logits = 2 * here * 2 * row.batch_size * FP32
        return Memory(
            logits=3 * logits,  # with their softmax and its gradient
            dense=3 * logits,
            gathered=2 * row.batch_size * dim * FP32 * (devices > 1),
            checkpoint=state + momentum,
            encoder=encoder,
        )
    return Memory(checkpoint=state + momentum, encoder=encoder)


def streamed(queries: int, keys: int, block: int = BLOCK_ELEMENTS) -> int:
    """Keys whose logits are held at once: of two blocks, since one is freed as the next is there."""
    return min(keys, 2 * max(1, block // queries))


def _bank_logits(own: Mapping[str, Any], queries: int, images: int) -> tuple[int, int]:
    """Of InstDisc: held, and dense."""
    wanted = own["negatives"]
    if wanted == "auto":
        wanted = {"nce": 4096, "softmax": 65_536}[own["loss"]]
    if own["loss"] == "softmax":
        keys = min(images, wanted or images)
        return queries * streamed(queries, keys) * (FP32 + 1), queries * keys * (FP32 + 1)
    # Scores and the indices of their rows, and rows looked up by the block.
    rows = queries * (1 + wanted) * own["dim"]
    scores = queries * (1 + wanted) * (FP32 + INT64)
    return scores + min(rows, BLOCK_ELEMENTS) * FP32, scores + rows * FP32


def _head(row: Pretraining, size: Size) -> tuple[int, int, int]:
    """Parameters of a method's head, those that are trained, and bytes of running statistics."""
    if row.method in TASKS:
        return 0, 0, 0
    width, dim = counting.features(row.arguments["encoder"]), row.arguments.get("dim", 0)
    if row.method == "SupervisedCE":
        count = (width + 1) * size.classes
        return count, count, 0
    if row.method == "SimCLR":  # the last norm has a bias that stays 0
        count = width * width + 2 * width + width * dim + 2 * dim
        return count, count - dim, 2 * FP32 * (width + dim) + 2 * INT64
    count = (width + 1) * dim + (width + 1) * width * row.arguments.get("mlp", False)
    return count, count, 0


# --- Work


def work(study: Study, cell: Cell) -> Work:
    """Of a cell."""
    if cell.kind != "pretrain":
        transfer, protocol = TRANSFERS[cell.kind], study.scale.protocol(cell.kind)
        aspect = 1.0 if study.drawn(transfer.data) else PHOTO
        size = study.source(transfer.data).size
        return _KINDS[cell.kind](protocol, cell.row.arguments["encoder"], size, aspect)
    row = cell.row
    if not row.trains:
        return Work()
    if row.method in TASKS:
        values = {k: v for k, v in row.arguments.items() if k not in ("encoder", "bn_images")}
        aspect = 1.0 if study.drawn(row.data) else PHOTO
        if row.method == "COCODetection":
            return _detection(C4(**values), row.arguments["encoder"], Size(0), aspect)
        return _segmentation(City(**values), row.arguments["encoder"], Size(0), aspect)
    steps = row.epochs * (study.pretrained_on(row.data).size.images // row.batch_size)
    images = steps * row.batch_size
    return Work(images, steps, 2 * images * passes(row) * _forward(row.arguments["encoder"], row))


def passes(row: Pretraining) -> int:
    """Forward passes that an image costs a method, a backward one being two."""
    return {"SupervisedCE": 3, "InstDisc": 3, "SimCLR": 6}.get(row.method, 4)


def _forward(encoder: str, at: Any) -> int:
    return counting.macs(encoder, at.size, at.size)


def _linear(protocol: Any, encoder: str, size: Size, _: float) -> Work:
    """The frozen encoder runs forward only, on new views in each epoch."""
    steps = protocol.epochs * (read_out(size, protocol.selection).images // protocol.batch_size)
    images = steps * protocol.batch_size
    return Work(images, steps, 2 * images * _forward(encoder, protocol))


def _detection(protocol: C4, encoder: str, _: Size, aspect: float) -> Work:
    """Stages 1 to 4 on images of the mean size, and the last one on every region."""
    sides = []
    for short in protocol.short_sides:
        long = min(short * aspect, protocol.max_side)
        sides.append((round(long / aspect), round(long)))
    trunk = fmean(counting.macs(encoder, *side, stages=counting.STAGES[:-1]) for side in sides)
    regions = (protocol.roi_size, protocol.roi_size)
    head = protocol.rois * counting.macs(encoder, *regions, stages=counting.STAGES[-1:])
    images = protocol.iterations * protocol.batch
    return Work(images, protocol.iterations, 2 * images * 3 * round(trunk + head))


def _segmentation(protocol: City, encoder: str, _: Size, __: float) -> Work:
    """Crops through the dilated encoder."""
    images = protocol.iterations * protocol.batch
    forward = counting.macs(encoder, *protocol.crop, coarsest=8)
    return Work(images, protocol.iterations, 2 * images * 3 * forward)


def _few_shot(protocol: Any, encoder: str, size: Size, _: float) -> Work:
    """Features once, of the classes that were not trained on; the heads' steps are small."""
    return Work(size.others, 0, 2 * size.others * _forward(encoder, protocol))


def _landmarks(protocol: Any, encoder: str, size: Size, _: float) -> Work:
    steps = protocol.epochs * (size.images // protocol.batch_size)
    images = steps * protocol.batch_size
    return Work(images, steps, 2 * images * 3 * _forward(encoder, protocol))


def _inversion(protocol: Any, encoder: str, _: Size, __: float) -> Work:
    """Forward, and backward to the image alone: the encoder is frozen."""
    images, stages = protocol.images * protocol.steps, counting.STAGES[: protocol.stage]
    forward = counting.macs(encoder, protocol.size, protocol.size, stages=stages)
    return Work(images, images, 2 * images * 2 * forward)


_KINDS: Mapping[str, Callable[[Any, str, Size, float], Work]] = {
    "linear": _linear,
    "voc07": _detection,
    "voc0712": _detection,
    "voc07_course": _detection,
    "coco": _detection,
    "city": _segmentation,
    "base": _linear,
    "few_shot": _few_shot,
    "landmarks": _landmarks,
    "inversion": _inversion,
}
