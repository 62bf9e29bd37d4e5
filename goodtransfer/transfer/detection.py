"""Detection: an encoder fine-tuned in Faster R-CNN C4 (the paper's VOC columns; protocol 3)."""

import random
from collections.abc import Callable, Sequence
from copy import deepcopy
from itertools import islice
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_info
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import Metric
from torchvision.transforms.v2.functional import resize as resize_image

from goodtransfer.callbacks.epoch_count import EpochCount
from goodtransfer.callbacks.finite import FiniteCheck
from goodtransfer.callbacks.pictures import Pictures
from goodtransfer.encoders import Encoder
from goodtransfer.metrics import VOCDetectionAP
from goodtransfer.optim import warmup_step, without_norm_decay
from goodtransfer.transfer.checks import check_encoder, resolve_classes
from goodtransfer.transfer.draw_boxes import SIDE, drawing
from goodtransfer.transfer.precise_bn import average_statistics, training_loader
from goodtransfer.transfer.rcnn_c4 import RCNNC4, Detections, Size, Target
from goodtransfer.transfer.small_batch import PAPER_BATCH, fidelity, scaled
from goodtransfer.transfer.steps import StepTask, seeded
from goodtransfer.views import check_range
from goodtransfer.weights import describe_input, load_encoder, restore_input

SHORT_SIDES = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)

Batch = tuple[Sequence[Tensor], Sequence[Target]]


class Detection(StepTask):
    """Faster R-CNN C4 on an encoder, every layer fine-tuned; scored by VOC's AP.

    The defaults are the paper's VOC07 run: 9,000 steps of 16 images on trainval2007, learning rate
    0.02 after 100 steps of warm-up, a tenth of it from 6,000 and again from 8,000. For VOC0712 pass
    ``iterations=24_000, milestones=(18_000, 22_000), name="voc0712"`` and the data of both years::

        trainer = pl.Trainer(devices=8, sync_batchnorm=True, max_epochs=-1)  # the task ends it
        task, data = Detection("encoder.safetensors"), VOCDetectionDataModule(ROOT, batch_size=2)
        trainer.fit(task, data)
        trainer.test(task, data)

    A batch is ``(images, targets)``: RGB images (3, H, W), uint8 or float in [0, 1], at their own
    sizes; a target has ``boxes`` (n, 4) as (x1, y1, x2, y2) in pixels, ``labels`` (n,) counted from 0,
    and for the score ``image_id`` and ``difficult`` bool (n,). Images are resized here.

    **Fewer images a step.** Batch times ranks times accumulation must be ``batch``; two ways:

    * *accumulate to 16*: ``Trainer(accumulate_grad_batches=...)``. Learning rate and steps are kept,
      batch norm sees the micro-batch.
    * *batch b*: ``Detection(batch=b)``. Learning rate times b/16, every count of steps times 16/b.

    The run prints which it is, keeps it in its checkpoints, and :attr:`fidelity` tells it.

    **Batch norm.** Before any score its statistics are made anew, on a copy of the detector: a true
    average over ``precise_bn`` training batches, as upstream.

    A test leaves a picture of some images with their best detections, ``voc07_detections.png``.

    Args:
        encoder: a name, a weight file (see ``weights.load_encoder``), or a module; copied.
        num_classes: without background; None takes the data module's.
        batch: images per optimizer step, over all ranks and micro-batches.
        lr: for 16 images a step.
        iterations: of the fit, in steps of 16 images.
        milestones: where the rate falls to a tenth, in steps of 16 images.
        warmup: steps of 16 images with a rising rate.
        momentum: of SGD.
        weight_decay: of everything but norm layers.
        short_sides: an image's short side in training, one of them at random.
        test_side: its short side in evaluation.
        max_side: no side becomes longer.
        precise_bn: training batches for the statistics of batch norm; 0 leaves them as they are.
        eval_iters: steps of 16 images after which the validation set is scored during the fit
            (Figure 4); there is no other validation.
        name: prefix of the logged scores.
        seed: of the sampled regions and sizes, which are a function of it and of the step.
        detector: further arguments of :class:`RCNNC4`, such as ``{"rois": 64, "roi_size": 7}``.

    Logs, in percent: ``voc07_AP``, ``voc07_AP50``, ``voc07_AP75``.

    Raises:
        ValueError: for arguments that cannot work, an encoder whose last stage cannot be run on
            regions, a number of images per step that is not ``batch``, or labels that ``num_classes``
            does not cover.
        FloatingPointError: when a loss or a gradient is NaN or infinite (``FiniteCheck``).
    """

    def __init__(
        self,
        encoder: str | nn.Module = "resnet50",
        *,
        num_classes: int | None = None,
        batch: int = PAPER_BATCH,
        lr: float = 0.02,
        iterations: int = 9_000,
        milestones: Sequence[int] = (6_000, 8_000),
        warmup: int = 100,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        short_sides: Sequence[int] = SHORT_SIDES,
        test_side: int = 800,
        max_side: int = 1333,
        precise_bn: int = 200,
        eval_iters: Sequence[int] = (),
        name: str = "voc07",
        seed: int = 0,
        detector: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if batch < 1 or iterations < 1:
            raise ValueError(
                f"Expected `batch` and `iterations` of at least 1, but got {batch} and {iterations}."
            )
        if max(eval_iters, default=0) > iterations:
            raise ValueError(
                f"Expected `eval_iters` up to `iterations`, {iterations}, but got {max(eval_iters)}."
            )
        own = deepcopy(encoder) if isinstance(encoder, nn.Module) else encoder
        # In a list: it becomes the detector's. One that comes from a readout is frozen.
        self._encoder = [load_encoder(own).requires_grad_().train()]
        self.encoder.split(4)  # says so where the last stage cannot be run on regions
        self.save_hyperparameters(ignore=["encoder"])
        self.hparams["encoder"] = self.encoder.name
        self.schedule = scaled(batch, lr, iterations, milestones, warmup, eval_iters)
        self.iterations, self.eval_iters = self.schedule.iterations, self.schedule.eval_iters
        self.batch, self.momentum, self.weight_decay = batch, momentum, weight_decay
        self.short_sides, self.test_side, self.max_side = tuple(short_sides), test_side, max_side
        self.precise_bn, self.prefix, self.seed = precise_bn, name, seed
        self.fidelity = ""
        self.detector: RCNNC4 | None = None
        self._detect: Callable[[Sequence[Tensor]], list[Detections]] | None = None
        if num_classes is not None:
            self._add_detector(num_classes)

    def _add_detector(self, num_classes: int) -> None:
        self.num_classes = self.hparams["num_classes"] = num_classes
        self.detector = self.network(num_classes, **(self.hparams["detector"] or {}))
        self.ap: Any = self.metric(num_classes)

    def network(self, num_classes: int, **options: Any) -> RCNNC4:
        """The detector, around this task's encoder."""
        return RCNNC4(self.encoder, num_classes, **options)

    def metric(self, num_classes: int) -> Metric:
        """What scores detections; its ``compute`` gives the logged numbers by name."""
        return VOCDetectionAP(num_classes)

    @property
    def encoder(self) -> Encoder:
        """The encoder, with its last stage, fine-tuned as far as the fit has come."""
        return self._encoder[0]

    @staticmethod
    def recommended_loader() -> dict[str, Any]:
        """What upstream's loader does, for a data module to do: flips, grouping, filtering."""
        return {"flip": 0.5, "group_by_aspect_ratio": True, "skip_empty": True}

    # --- Set-up

    def setup(self, stage: str) -> None:
        task, data = type(self).__name__, getattr(self.trainer, "datamodule", None)
        num_classes = resolve_classes(self.hparams["num_classes"], data, task)
        if self.detector is None:
            self._add_detector(num_classes)
        check_encoder(self.encoder, (4, 5), task)
        super().setup(stage)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        plan = self.schedule
        groups = without_norm_decay(self, self.weight_decay)
        optimizer = SGD(groups, lr=plan.lr, momentum=self.momentum)
        schedule = LambdaLR(optimizer, lambda i: warmup_step(i, plan.milestones, plan.warmup))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # --- Training

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, targets = batch
        if not self.fidelity:
            self._check(images, targets)
        self._check_labels(targets)
        place = (self.seed, "train", self.trainer.global_step, batch_idx)
        with seeded(self.device, *place) as chance:
            losses, _ = self._own()(*self._resized(images, targets, chance))
        return self.log_losses(losses)

    def _own(self) -> RCNNC4:
        if self.detector is None:
            raise ValueError("Expected num_classes to be known, but this module was never set up.")
        return self.detector

    def _check(self, images: Sequence[Tensor], targets: Sequence[Target]) -> None:
        """What the first batch tells: images per step, their range, their labels."""
        accumulated, ranks = self.trainer.accumulate_grad_batches, self.trainer.world_size
        step = self.images_a_step(len(images))
        if step != self.batch:
            raise ValueError(
                f"Expected {self.batch} images a step, but {len(images)} in a batch x {ranks} ranks x "
                f"accumulate_grad_batches={accumulated} makes {step}. Either accumulate to "
                f"{self.batch}, Trainer(accumulate_grad_batches={self.batch / len(images) / ranks:g}): "
                "learning rate and steps are kept, batch norm sees the micro-batch; or pass "
                f"{type(self).__name__}(batch={step}): learning rate and steps are scaled."
            )
        self.fidelity = fidelity(self.batch, accumulated, self.images_a_norm(len(images)))
        rank_zero_info(f"{type(self).__name__}, {self.iterations:,} steps: {self.fidelity}")
        if images[0].is_floating_point() and self.encoder.normalization is not None:
            check_range(images[0])

    def _check_labels(self, targets: Sequence[Target]) -> None:
        """Of every batch: the number after the last class would train as background."""
        labels = torch.cat([target["labels"] for target in targets])
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
            raise ValueError(
                f"Expected labels from 0 to {self.num_classes - 1}, but a batch has "
                f"{int(labels.min())} to {int(labels.max())}: count classes from 0, without background."
            )

    def _resized(
        self, images: Sequence[Tensor], targets: Sequence[Target], chance: random.Random
    ) -> tuple[list[Tensor], list[Target]]:
        """A training batch at random sizes, boxes with it."""
        resized = [self.resize(image, chance.choice(self.short_sides)) for image in images]
        moved: list[Target] = []
        for image, larger, target in zip(images, resized, targets, strict=True):
            moved.append(self.moved(target, _size(image), _size(larger)))
        return resized, moved

    def moved(self, target: Target, before: Size, after: Size) -> Target:
        """What is learnt of an image's objects, after the image was resized."""
        y, x = (new / old for new, old in zip(after, before, strict=True))
        boxes = target["boxes"].float()  # whole numbers, too, become fractions
        return {"boxes": boxes * boxes.new_tensor([x, y, x, y]), "labels": target["labels"]}

    def resize(self, image: Tensor, short_side: int) -> Tensor:
        """(3, H, W) with that short side, or less where the long one would pass ``max_side``.

        Source: detectron2@02b5c4e2, ``ResizeShortestEdge``.
        """
        height, width = (int(n) for n in image.shape[-2:])
        scale = min(short_side / min(height, width), self.max_side / max(height, width))
        size = [int(height * scale + 0.5), int(width * scale + 0.5)]
        return image if size == [height, width] else resize_image(image, size, antialias=True)

    # --- Scores

    def forward(self, images: Sequence[Tensor]) -> list[Detections]:
        """Detections in images of any sizes, in their own pixels, batch norm as it is."""
        return self._detections(images, lambda resized: self._own()(resized)[1])

    def _detections(
        self,
        images: Sequence[Tensor],
        detect: Callable[[Sequence[Tensor]], list[Detections]],
    ) -> list[Detections]:
        resized = [self.resize(image, self.test_side) for image in images]
        found, rescale = detect(resized), self._own().rescale
        return [
            rescale(f, _size(r), _size(i)) for f, r, i in zip(found, resized, images, strict=True)
        ]

    def on_validation_start(self) -> None:
        self.ap.reset()
        checking = self.trainer.sanity_checking
        detector = self._own() if checking else self.with_precise_bn()
        self._detect = lambda images: detector(images)[1]  # no attribute: it is none of our modules

    on_test_start = on_validation_start

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, list[Detections]]:
        images, targets = batch
        assert self._detect is not None
        found = self._detections(images, self._detect)
        self.ap.update(found, targets)
        return {"detections": found}  # for callbacks

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        self._detect = None
        self.log_scores(self.ap)

    on_test_epoch_end = on_validation_epoch_end

    def with_precise_bn(self) -> RCNNC4:
        """A copy in eval mode whose BN statistics are the true average over training batches."""
        detector = deepcopy(self._own())

        def run(number: int, batch: Batch) -> None:
            images, targets = self.transfer_batch_to_device(batch, self.device, 0)
            precision = self.trainer.precision_plugin
            chance = seeded(self.device, self.seed, "precise BN", number)
            with chance as chosen, precision.forward_context():
                detector(*self._resized(images, targets, chosen))

        loader = training_loader(self.trainer) if self.precise_bn else None
        average_statistics(detector, run, loader, self.precise_bn)
        return detector

    # --- Pictures

    def configure_callbacks(self) -> list[pl.Callback]:
        return [FiniteCheck(), EpochCount(), Pictures(f"{self.prefix}_detections", side=SIDE)]

    def drawings(self, batch: Batch, outputs: Any, first: int) -> list[Tensor]:
        """The first images of a test batch with their objects and as many best detections."""
        names = getattr(getattr(self.trainer, "datamodule", None), "class_names", None)
        names = names or [str(label) for label in range(self.num_classes)]
        whole = zip(*batch, outputs["detections"], strict=True)
        return [drawing(*image, names) for image in islice(whole, first)]

    # --- Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["input"] = describe_input(self.encoder)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        restore_input(self.encoder, checkpoint["input"])


def _size(image: Tensor) -> Size:
    return int(image.shape[-2]), int(image.shape[-1])
