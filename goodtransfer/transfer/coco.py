"""COCO: an encoder fine-tuned in Mask R-CNN C4 (the paper's COCO columns; protocol 3)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn
from torchmetrics import Metric

from goodtransfer.metrics.coco import COCODetectionAP
from goodtransfer.transfer.detection import Detection
from goodtransfer.transfer.mask_rcnn_c4 import MaskRCNNC4, resized
from goodtransfer.transfer.rcnn_c4 import RCNNC4, Size, Target

SHORT_SIDES = (640, 672, 704, 736, 768, 800)

# Table 2's encoders that were trained on COCO's boxes (protocol 10): take `encoder` after the fit.
# The paper says neither how long nor from what. From nothing it takes the long one, under
# Trainer(sync_batchnorm=True): K. He, R. Girshick, P. Dollar, "Rethinking ImageNet Pre-training",
# https://arxiv.org/abs/1811.08883, section 3, whose rate falls 60k and 20k iterations before the end.
# From an ImageNet encoder the defaults do.
#     COCODetection("resnet50", **PRETRAINING["6x"])
#     COCODetection("imagenet.safetensors", **PRETRAINING["1x"])
PRETRAINING: dict[str, dict[str, Any]] = {
    "1x": {"iterations": 90_000, "milestones": (60_000, 80_000)},
    "6x": {"iterations": 540_000, "milestones": (480_000, 520_000)},
}


class COCODetection(Detection):
    """Mask R-CNN C4 on an encoder, every layer fine-tuned; scored by COCO's AP of boxes and masks.

    The defaults are the paper's COCO run, the 1x schedule: 90,000 steps of 16 images on train2017,
    learning rate 0.02 after 1,000 steps of warm-up, a tenth of it from 60,000 and again from
    80,000::

        trainer = pl.Trainer(devices=8, sync_batchnorm=True, max_epochs=-1)  # the task ends it
        data = COCODetectionDataModule(ROOT, masks="polygons", batch_size=2)
        task = COCODetection("encoder.safetensors")
        trainer.fit(task, data)
        trainer.test(task, data)

    All else is as in :class:`Detection`. A training target has the masks of its objects, too, bool
    (n, H, W) or as polygons (see ``mask_rcnn_c4``); a test target has them as bool.

    Args:
        encoder: see :class:`Detection`.
        masks: learn and score masks, too; False is Faster R-CNN on boxes alone.
        iterations: of the fit, in steps of 16 images.
        milestones: where the rate falls to a tenth, in steps of 16 images.
        warmup: steps of 16 images with a rising rate.
        short_sides: an image's short side in training, one of them at random.
        name: prefix of the logged scores.
        options: those of :class:`Detection`.

    Logs, in percent: ``coco_APbox``, ``coco_APbox50``, ``coco_APbox75``, and with masks
    ``coco_APseg``, ``coco_APseg50``, ``coco_APseg75``.

    Raises:
        ValueError: as :class:`Detection`; also for targets without masks, or with masks of another size
            than their image.
        FloatingPointError: when a loss or a gradient is NaN or infinite (``FiniteCheck``).
    """

    def __init__(
        self,
        encoder: str | nn.Module = "resnet50",
        *,
        masks: bool = True,
        iterations: int = 90_000,
        milestones: Sequence[int] = (60_000, 80_000),
        warmup: int = 1_000,
        short_sides: Sequence[int] = SHORT_SIDES,
        name: str = "coco",
        **options: Any,
    ) -> None:
        super().__init__(
            encoder,
            iterations=iterations,
            milestones=milestones,
            warmup=warmup,
            short_sides=short_sides,
            name=name,
            **options,
        )

    def network(self, num_classes: int, **options: Any) -> RCNNC4:
        if self.hparams["masks"]:
            return MaskRCNNC4(self.encoder, num_classes, **options)
        return super().network(num_classes, **options)

    def metric(self, num_classes: int) -> Metric:
        return COCODetectionAP(num_classes, masks=self.hparams["masks"])

    def moved(self, target: Target, before: Size, after: Size) -> Target:
        moved = super().moved(target, before, after)
        if self.hparams["masks"]:
            _check_masks(target, before)
            moved["masks"] = [resized(mask, before, after) for mask in target["masks"]]
        return moved


def _check_masks(target: Target, size: Size) -> None:
    image = f"image {target.get('image_id', '?')}"
    if "masks" not in target:
        raise ValueError(
            f"Expected targets with `masks` to train on, but that of {image} has {sorted(target)}: "
            "read them, COCODetectionDataModule(masks='polygons'), or learn boxes alone, "
            "COCODetection(masks=False)."
        )
    if len(target["masks"]) != len(target["labels"]):
        raise ValueError(
            f"Expected a mask of each object, but {image} has {len(target['masks'])} masks of "
            f"{len(target['labels'])} objects: correct its target."
        )
    for mask in target["masks"]:
        if isinstance(mask, Tensor):
            if mask.shape != size:
                raise ValueError(
                    f"Expected masks of {size[0]} x {size[1]} pixels, as {image} has, but got one of "
                    f"{' x '.join(map(str, mask.shape))}: pass them at the image's own size."
                )
        elif not len(mask) or any(np.ndim(p) != 1 or len(p) < 6 or len(p) % 2 for p in mask):
            raise ValueError(
                f"Expected an object's mask as bool (H, W) or as polygons [x, y, x, y, x, y, ...], "
                f"but {image} has {mask!r:.200}: pass a list of polygons for each object."
            )
