"""Segmentation: an encoder fine-tuned in DeepLab-v3 (the paper's Cityscapes columns; protocol 4)."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.utilities import rank_zero_info
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from goodtransfer.callbacks.epoch_count import EpochCount
from goodtransfer.callbacks.finite import FiniteCheck
from goodtransfer.callbacks.pictures import Pictures, as_pixels
from goodtransfer.encoders import Encoder
from goodtransfer.metrics.segmentation import IGNORE, SegmentationScores
from goodtransfer.optim import poly
from goodtransfer.transfer.checks import resolve_classes
from goodtransfer.transfer.deeplab import DeepLabV3
from goodtransfer.transfer.steps import StepTask, seeded
from goodtransfer.views import check_range
from goodtransfer.weights import describe_input, load_encoder, restore_input

PAPER_BATCH = 8  # crops a step: 4 GPUs of 2

Batch = tuple[Tensor, Mapping[str, Tensor]]


class Segmentation(StepTask):
    """DeepLab-v3 on an encoder, every layer fine-tuned; scored on whole images.

    The defaults are the paper's Cityscapes run, and where it is silent mmsegmentation's
    ``deeplabv3_r50-d8_512x1024_40k_cityscapes``: 40,000 steps of 8 crops, learning rate 0.01 falling
    to 1e-4 by a power of 0.9, decay on every parameter::

        trainer = pl.Trainer(devices=4, sync_batchnorm=True, max_epochs=-1)  # the task ends it
        task, data = Segmentation("encoder.safetensors"), CityscapesDataModule(ROOT, batch_size=2)
        trainer.fit(task, data)
        trainer.test(task, data)

    A batch is ``(images, target)``: RGB images (N, 3, H, W), uint8 or float in [0, 1], and a target
    with ``classes`` (N, H, W), integers with 255 for pixels that do not count, and in evaluation
    ``image_id`` (N,).

    To **pretrain** by segmentation, as Table 2's Synthia row (protocol 10, where the paper is silent on
    all but the labels), train it from scratch on the sequences' 13 classes, and take ``task.encoder``::

        data = SYNTHIASegmentationDataModule(ROOT, batch_size=2)
        task = Segmentation("resnet50", name="synthia")
        trainer.fit(task, data)
        save_encoder("synthia.safetensors", task.encoder)

    Args:
        encoder: a name, a weight file (see ``weights.load_encoder``), or a module; copied.
        num_classes: None takes the data module's.
        batch: crops per optimizer step, over all ranks and micro-batches; with another number than 8
            the learning rate stays as it is given.
        lr: learning rate at the first step.
        min_lr: after the last.
        iterations: steps of the fit.
        momentum: of SGD.
        weight_decay: of every parameter, norm layers' too.
        aux_weight: of the auxiliary head's loss.
        eval_iters: steps after which the validation set is scored during the fit; there is no other
            validation.
        name: prefix of the logged scores.
        seed: of dropout, which is a function of it, of the step and of the rank.
        network: further arguments of :class:`DeepLabV3`, such as ``{"channels": 64}``.

    Logs, in percent: ``city_mIoU``, ``city_mAcc``, ``city_aAcc``. A test leaves a picture,
    ``city_segmentation.png``: images, the truth, and what was told.

    Raises:
        ValueError: for arguments that cannot work, an encoder that cannot be brought to stride 8, a
            number of crops per step that is not ``batch``, batch norm that sees one crop, or classes
            that do not fit.
        FloatingPointError: when the loss or a gradient is NaN or infinite (``FiniteCheck``).
    """

    def __init__(
        self,
        encoder: str | nn.Module = "resnet50",
        *,
        num_classes: int | None = None,
        batch: int = PAPER_BATCH,
        lr: float = 0.01,
        min_lr: float = 1e-4,
        iterations: int = 40_000,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        aux_weight: float = 0.4,
        eval_iters: Sequence[int] = (),
        name: str = "city",
        seed: int = 0,
        network: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if batch < 1 or iterations < 1:
            raise ValueError(
                f"Expected `batch` and `iterations` of at least 1, but got {batch} and {iterations}."
            )
        own = deepcopy(encoder) if isinstance(encoder, nn.Module) else encoder
        # In a list: it becomes the network's. One that comes from a readout is frozen, in eval mode.
        self._given = [load_encoder(own).requires_grad_().train()]
        self.save_hyperparameters(ignore=["encoder"])
        self.hparams["encoder"] = self._given[0].name
        self.batch, self.iterations, self.prefix, self.seed = batch, iterations, name, seed
        self.aux_weight, self.eval_iters = aux_weight, tuple(eval_iters)
        self.fidelity = ""
        self.network: DeepLabV3 | None = None
        if num_classes is not None:
            self._add_network(num_classes)

    def _add_network(self, num_classes: int) -> None:
        self.num_classes = self.hparams["num_classes"] = num_classes
        self.network = DeepLabV3(self._given[0], num_classes, **(self.hparams["network"] or {}))
        self.scores = SegmentationScores(num_classes)

    @property
    def encoder(self) -> Encoder:
        """The encoder with its strides back, fine-tuned as far as the fit has come."""
        return self._given[0] if self.network is None else self.network.encoder.dilated(32)

    def configure_callbacks(self) -> list[pl.Callback]:
        pictures = Pictures(f"{self.prefix}_segmentation", side=540, columns=4, shown=4)
        return [FiniteCheck(), EpochCount(), pictures]

    # --- Set-up

    def setup(self, stage: str) -> None:
        data = getattr(self.trainer, "datamodule", None)
        num_classes = resolve_classes(self.hparams["num_classes"], data, type(self).__name__)
        if self.network is None:
            self._add_network(num_classes)
        super().setup(stage)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        given = self.hparams
        optimizer = SGD(
            self.parameters(),
            lr=given["lr"],
            momentum=given["momentum"],
            weight_decay=given["weight_decay"],
        )
        floor = given["min_lr"] / given["lr"]
        schedule = LambdaLR(
            optimizer, lambda i: poly(min(i, self.iterations), self.iterations, floor=floor)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # --- Training

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, target = batch
        if not self.fidelity:
            self._check(images)
        self._normalised(images)
        classes = self._classes(images, target)
        with seeded(self.device, self.seed, self.trainer.global_step, batch_idx):
            logits, auxiliary = self._own()(images)
        losses = {"loss_seg": _cross_entropy(logits, classes)}
        if auxiliary is not None:
            losses["loss_aux"] = self.aux_weight * _cross_entropy(auxiliary, classes)
        return self.log_losses(losses)

    def _own(self) -> DeepLabV3:
        if self.network is None:
            raise ValueError("Expected num_classes to be known, but this module was never set up.")
        return self.network

    def _check(self, images: Tensor) -> None:
        """What the first batch tells: crops per step and batch norm, and their range."""
        accumulated, ranks = self.trainer.accumulate_grad_batches, self.trainer.world_size
        step = self.images_a_step(len(images))
        if step != self.batch:
            raise ValueError(
                f"Expected {self.batch} crops a step, but {len(images)} in a batch x {ranks} ranks x "
                f"accumulate_grad_batches={accumulated} makes {step}: accumulate to {self.batch}, or "
                f"pass {type(self).__name__}(batch={step}) and an `lr` for it."
            )
        self.fidelity = _fidelity(self.batch, accumulated, self._normalised(images))
        rank_zero_info(f"{type(self).__name__}, {self.iterations:,} steps: {self.fidelity}")
        if images.is_floating_point() and self._own().encoder.normalization is not None:
            check_range(images)

    def _normalised(self, images: Tensor) -> int:
        """How many crops of a batch share batch norm; of every batch, since the last may be short."""
        found = self.images_a_norm(len(images))
        if found < 2:
            raise ValueError(
                "Expected batch norm to see two crops at least, since the pyramid pools each to one "
                "pixel, but a batch has one: raise batch_size, drop a last batch that is short, or pass "
                "Trainer(sync_batchnorm=True)."
            )
        return found

    def _classes(self, images: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        """Of every batch: int64 (N, H, W), as cross-entropy wants them."""
        if not isinstance(target, Mapping) or "classes" not in target:
            names = list(target) if isinstance(target, Mapping) else type(target).__name__
            raise ValueError(
                "Expected batches of images and a target {'classes': (N, H, W), 'image_id': (N,)}, but "
                f"got a target of {names}."
            )
        classes = target["classes"]
        if classes.shape != (len(images), *images.shape[-2:]):
            raise ValueError(
                f"Expected classes of every pixel of images {tuple(images.shape)}, but got "
                f"{tuple(classes.shape)} for the images {_numbers(target)}: correct their labels."
            )
        counted = classes[classes != IGNORE]
        if len(counted) and not 0 <= int(counted.min()) <= int(counted.max()) < self.num_classes:
            raise ValueError(
                f"Expected classes from 0 to {self.num_classes - 1}, or {IGNORE}, but the images "
                f"{_numbers(target)} have {int(counted.min())} to {int(counted.max())}: the labels are "
                "of another data set than num_classes."
            )
        return classes.long()

    # --- Scores

    def forward(self, images: Tensor) -> Tensor:
        """RGB (N, 3, H, W) to the class of each pixel (N, H, W)."""
        logits: Tensor = self._own()(images)[0]
        return logits.argmax(1)

    def on_validation_epoch_start(self) -> None:
        self.scores.reset()  # the last one may have been interrupted

    on_test_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, target = batch
        told, classes = self(images), self._classes(images, target)
        self.scores.update(told, {"classes": classes, "image_id": target["image_id"]})
        return told  # type: ignore[no-any-return]

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        self.log_scores(self.scores)

    on_test_epoch_end = on_validation_epoch_end

    def drawings(self, batch: Batch, outputs: Tensor, first: int) -> list[Tensor]:
        """The image, its true classes and those told, one below another."""
        data: Any = getattr(self.trainer, "datamodule", None)
        palette = colours(self.num_classes, getattr(data, "palette", None))
        images, target = batch
        shown = zip(images, target["classes"], outputs, range(first), strict=False)
        return [
            torch.cat([as_pixels(image), _painted(true, palette), _painted(told, palette)], dim=1)
            for image, true, told, _ in shown
        ]

    # --- Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["input"] = describe_input(
            self._given[0] if self.network is None else self.network.encoder
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        for encoder in (self._given[0], *([self.network.encoder] if self.network else [])):
            restore_input(encoder, checkpoint["input"])


def _cross_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    """Over all pixels, as mmsegmentation: those that do not count have a loss of 0."""
    total = F.cross_entropy(logits, classes, ignore_index=IGNORE, reduction="sum")
    return total / classes.numel()


def colours(num_classes: int, given: Sequence[Sequence[int]] | None = None) -> Tensor:
    """A colour for each class, uint8 (256, 3); black for pixels that do not count.

    Args:
        num_classes: C.
        given: a data set's own, (R, G, B) by class; None spreads hues evenly.
    """
    palette = torch.zeros(256, 3, dtype=torch.uint8)
    if given is not None:
        palette[:num_classes] = torch.tensor(given, dtype=torch.uint8)[:num_classes]
        return palette
    hue = torch.arange(num_classes) / num_classes * 6
    wave = torch.stack([(hue + shift) % 6 for shift in (3, 1, 5)], dim=1)
    palette[:num_classes] = (((wave - 3).abs() - 1).clamp(0, 1) * 235 + 20).to(torch.uint8)
    return palette


def _painted(classes: Tensor, palette: Tensor) -> Tensor:
    return palette[classes.long().cpu()].permute(2, 0, 1)


def _numbers(target: Mapping[str, Tensor]) -> list[int]:
    return [int(n) for n in target.get("image_id", torch.zeros(0)).reshape(-1)]


def _fidelity(batch: int, accumulated: int, normalised: int) -> str:
    """What a run changes of the paper's.

    >>> _fidelity(8, 1, 8)
    'decoder of segmentation-models-pytorch'
    >>> _fidelity(8, 4, 2)
    'accumulated to 8 crops a step, BN over 2 crops (paper: 8), decoder of segmentation-models-pytorch'
    """
    parts = [f"batch {batch} (paper: {PAPER_BATCH})"] if batch != PAPER_BATCH else []
    parts += [f"accumulated to {batch} crops a step"] if accumulated > 1 else []
    parts += [f"BN over {normalised} crops (paper: 8)"] if normalised != PAPER_BATCH else []
    return ", ".join([*parts, "decoder of segmentation-models-pytorch"])
