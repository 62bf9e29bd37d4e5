"""How encoders are measured: frozen values of each transfer's protocol, and the columns it fills.

The defaults are the paper's, and what it leaves open (protocols 2 to 6) as in the tasks' docstrings.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from goodtransfer.transfer.small_batch import Schedule


class Run(Protocol):
    """What the protocols have in common."""

    def values(self) -> dict[str, Any]:
        """All that decides the run, flat."""


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

    def values(self) -> dict[str, Any]:
        """All that decides the run, flat."""
        return asdict(self)


@dataclass(frozen=True)
class C4:
    """Fine-tuning on a C4 detector (protocol 3): arguments of ``Detection`` and its ``RCNNC4``.

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
    eval_iters: tuple[int, ...] = ()

    def values(self) -> dict[str, Any]:
        """All that decides the run, flat, with the images that batch norm sees together."""
        return {**asdict(self), "bn_images": self.batch // self.accumulate}

    def arguments(self) -> dict[str, Any]:
        """What ``Detection`` is called with."""
        parts = {name: getattr(self, name) for name in _OF_THE_DETECTOR}
        whole = {k: v for k, v in asdict(self).items() if k not in (*parts, "accumulate")}
        return {**whole, "detector": parts}

    def schedule(self) -> "Schedule":
        """What ``Detection`` makes of it, in its own optimizer steps."""
        from goodtransfer.transfer.small_batch import scaled  # planning needs no torch

        return scaled(
            self.batch, self.lr, self.iterations, self.milestones, self.warmup, self.eval_iters
        )


_OF_THE_DETECTOR = (
    "anchor_sizes",
    "rpn_batch",
    "proposals_train",
    "proposals_test",
    "rois",
    "roi_size",
)

VOC07 = C4()
VOC0712 = C4(iterations=24_000, milestones=(18_000, 22_000))  # Table 6
VOC07_COURSE = C4(eval_iters=tuple(range(1_000, 9_001, 1_000)))  # Figure 4
COCO_1X = C4(
    iterations=90_000,
    milestones=(60_000, 80_000),
    warmup=1_000,
    short_sides=(640, 672, 704, 736, 768, 800),
)
# Table 2's supervised row of COCO, from nothing (see ``transfer.coco.PRETRAINING``).
COCO_6X = replace(COCO_1X, iterations=540_000, milestones=(480_000, 520_000))


@dataclass(frozen=True)
class City:
    """Fine-tuning for segmentation (protocol 4): arguments of ``Segmentation`` and of its data.

    Attributes:
        crop, scale, nominal: of the data module's view.
        batch: crops a step.
        channels: of the decoder.
    """

    iterations: int = 40_000
    batch: int = 8
    lr: float = 0.01
    min_lr: float = 1e-4
    weight_decay: float = 5e-4
    channels: int = 512
    aux_channels: int = 256
    crop: tuple[int, int] = (512, 1024)
    scale: tuple[float, float] = (0.5, 2.0)
    nominal: tuple[int, int] = (1024, 2048)

    def values(self) -> dict[str, Any]:
        """All that decides the run, flat."""
        return asdict(self)

    def arguments(self) -> dict[str, Any]:
        """What ``Segmentation`` is called with."""
        parts = {name: getattr(self, name) for name in ("channels", "aux_channels")}
        others = {k: v for k, v in asdict(self).items() if k not in (*parts, *self.view())}
        return {**others, "network": parts}

    def view(self) -> dict[str, Any]:
        """What the data module is called with."""
        return {name: getattr(self, name) for name in ("crop", "scale", "nominal")}


# Table 2's supervised row of SYNTHIA; the paper is silent, so as on Cityscapes.
SYNTHIA = City(nominal=(760, 1280))


@dataclass(frozen=True)
class FewShot:
    """Episodes on the novel classes (protocol 5): arguments of ``FewShot``.

    Attributes:
        size: of the images that features are taken of.
    """

    episodes: int = 600
    way: int = 5
    shots: tuple[int, ...] = (1, 5)
    queries: int = 15
    epochs: int = 100
    size: int = 224

    def values(self) -> dict[str, Any]:
        """All that decides the run, flat."""
        return asdict(self)

    def arguments(self) -> dict[str, Any]:
        """What ``FewShot`` is called with."""
        return {name: value for name, value in asdict(self).items() if name != "size"}


@dataclass(frozen=True)
class Landmarks:
    """Fine-tuning for facial landmarks (protocol 6)."""

    epochs: int = 200
    batch_size: int = 128
    lr: float = 0.02
    size: int = 224

    def values(self) -> dict[str, Any]:
        """All that decides the run, flat."""
        return asdict(self)


@dataclass(frozen=True)
class Inversion:
    """What features remember of images that were not pretrained on (protocols 8 and 9).

    Attributes:
        images: the first of each class in turn, drawn by the seed: the paper's 1,000 classes.
        steps, stage, lr: of each image's search.
        size: side of the images in pixels.
    """

    images: int = 1_000
    steps: int = 3_001
    stage: int = 5
    lr: float = 1e-3
    size: int = 224

    def values(self) -> dict[str, Any]:
        """All that decides the run, flat."""
        return asdict(self)


# What the paper runs, by kind of cell.
PAPER: Mapping[str, Any] = {
    "linear": Linear(),
    "voc07": VOC07,
    "voc0712": VOC0712,
    "voc07_course": VOC07_COURSE,
    "coco": COCO_1X,
    "city": City(),
    "base": Linear(),
    "few_shot": FewShot(),
    "landmarks": Landmarks(),
    "inversion": Inversion(),
}


@dataclass(frozen=True)
class Transfer:
    """A kind of cell that measures an encoder.

    Attributes:
        data: the data set it is measured on, as ``sources`` names it.
        columns: metric names, which are those of ``paper.yaml``, and their headings.
        section: heading of its pictures in the report.
        maps: whether it needs the encoder's maps, which raw pixels have not.
    """

    data: str
    columns: Mapping[str, str]
    section: str
    maps: bool = field(default=True)


TRANSFERS = {
    "linear": Transfer(
        "imagenet",
        {"acc": "acc", "acc_lr30": "acc, lr 30", "acc_head": "acc_head"},
        "What the linear readout said",
        maps=False,
    ),
    "voc07": Transfer(
        "voc",
        {
            "voc07_AP": "VOC07 AP",
            "voc07_AP50": "AP50",
            "voc07_AP75": "AP75",
            "voc07_loc": "Loc, %",
        },
        "What the detectors found on VOC",
    ),
    "voc0712": Transfer(
        "voc0712",
        {"voc0712_AP": "VOC07+12 AP", "voc0712_AP50": "AP50", "voc0712_AP75": "AP75"},
        "What the detectors trained on VOC07+12 found",
    ),
    "voc07_course": Transfer(
        "voc",
        {"voc07_course_AP": "VOC07 AP"},
        "What the detectors found on VOC, by epoch of the pretraining",
    ),
    "coco": Transfer(
        "coco",
        {
            "coco_APbox": "COCO APbox",
            "coco_APbox50": "AP50",
            "coco_APbox75": "AP75",
            "coco_APseg": "COCO APseg",
            "coco_APseg50": "AP50",
            "coco_APseg75": "AP75",
        },
        "What the detectors found on COCO",
    ),
    "city": Transfer(
        "cityscapes",
        {"city_mIoU": "City mIoU", "city_mAcc": "mAcc", "city_aAcc": "aAcc"},
        "What the segmentation saw",
    ),
    "base": Transfer(
        "mini_imagenet",
        {"base_acc": "base acc", "base_acc_head": "base acc, own head"},
        "What the readout of the base classes said",
        maps=False,
    ),
    "few_shot": Transfer(
        "mini_imagenet",
        {
            "novel_1shot": "novel 1-shot",
            "novel_1shot_ci95": "± 95 %",
            "novel_5shot": "novel 5-shot",
            "novel_5shot_ci95": "± 95 %",
        },
        "An episode of new classes",
        maps=False,
    ),
    "landmarks": Transfer(
        "mafl",
        {"landmark_error": "landmark error", "landmark_error_mean_shape": "of the mean shape"},
        "Where the landmarks are",
    ),
    "inversion": Transfer(
        "imagenet",
        {
            "lpips_uncalibrated": "LPIPS, uncalibrated",
            "lpips": "LPIPS",
            "psnr": "PSNR, dB",
            "ssim": "SSIM",
        },
        "What the features remember",
    ),
}

HEADINGS = {name: title for t in TRANSFERS.values() for name, title in t.columns.items()}
LOWER_IS_BETTER = {
    "voc07_loc",
    "landmark_error",
    "landmark_error_mean_shape",
    "lpips_uncalibrated",
    "lpips",
}
NOT_RANKED = {"novel_1shot_ci95", "novel_5shot_ci95", "landmark_error_mean_shape"}
