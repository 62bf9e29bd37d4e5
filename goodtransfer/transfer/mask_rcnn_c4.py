"""Mask R-CNN on the C4 map: :class:`RCNNC4` with a mask head on the last stage's output, nn only.

Protocol 3.2; https://github.com/facebookresearch/detectron2/blob/02b5c4e295e990042a714712c21dc79b731e8833/detectron2/modeling/roi_heads/mask_head.py

The mask of an object is bool (H, W), or its polygons, a list of float arrays (x, y, x, y, ...).
detectron2 trains COCO on polygons, which keep what is finer than a pixel.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as rle
from torch import Tensor, nn
from torchvision.ops import roi_align

from goodtransfer.encoders import Encoder
from goodtransfer.losses import full_precision
from goodtransfer.transfer.rcnn_c4 import RCNNC4, Detections, Sampled, Size, Target


class MaskHead(nn.Module):
    """A mask of every class, twice as large as the features."""

    def __init__(self, channels: int, hidden: int, num_classes: int) -> None:
        super().__init__()
        self.deconv = nn.ConvTranspose2d(channels, hidden, kernel_size=2, stride=2)
        self.predictor = nn.Conv2d(hidden, num_classes, kernel_size=1)
        nn.init.kaiming_normal_(self.deconv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.predictor.weight, std=0.001)
        for layer in (self.deconv, self.predictor):
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> Tensor:
        """(R, C, 7, 7) to logits (R, K, 14, 14)."""
        return full_precision(self.predictor(F.relu(self.deconv(features))))


class MaskRCNNC4(RCNNC4):
    """Mask R-CNN C4: the forward pass of :class:`RCNNC4`, then a mask of each object.

    In training the masks of the foreground regions are learnt from the features that their boxes
    are learnt from; at test the last stage runs once more, on the boxes that are left.

    Args:
        encoder: see :class:`RCNNC4`.
        num_classes: without background.
        mask_channels: between the mask head's two layers.
        options: those of :class:`RCNNC4`.
    """

    def __init__(
        self, encoder: Encoder, num_classes: int, *, mask_channels: int = 256, **options: Any
    ) -> None:
        super().__init__(encoder, num_classes, **options)
        self.mask_head = MaskHead(encoder.channels[5], mask_channels, num_classes)

    def head_losses(
        self, features: Tensor, sampled: Sequence[Sampled], targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """Those of the boxes; and cross-entropy of the foreground's masks, of its own class alone.

        Raises:
            ValueError: for a target without masks.
        """
        losses = super().head_losses(features, sampled, targets)
        labels = torch.cat([s["labels"] for s in sampled])
        foreground = torch.where(labels < self.num_classes)[0]
        logits = _of_class(self.mask_head(features[foreground]), labels[foreground])
        size = int(logits.shape[-1])
        pairs = zip(sampled, targets, strict=True)
        wanted = torch.cat([self.mask_targets(s, t, size) for s, t in pairs]).to(logits.dtype)
        # A sum, so that a batch without foreground gives zero, and every parameter a gradient.
        loss = F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")
        return losses | {"loss_mask": loss / max(1, wanted.numel())}

    @torch.no_grad()
    def mask_targets(self, sampled: Sampled, target: Target, size: int) -> Tensor:
        """What each foreground region of an image shows of its object: bool (f, size, size)."""
        if "masks" not in target:
            raise ValueError(
                f"Expected targets with masks to learn them, but one has {sorted(target)}: add "
                "`masks`, or take RCNNC4, which learns boxes alone."
            )
        foreground = sampled["labels"] < self.num_classes
        boxes, numbers = sampled["boxes"][foreground], sampled["numbers"][foreground]
        wanted = torch.zeros(len(boxes), size, size, dtype=torch.bool, device=boxes.device)
        for number in set(numbers.tolist()):
            own = numbers == number
            wanted[own] = cropped(target["masks"][number], boxes[own], size)
        return wanted

    @torch.no_grad()
    def detect(
        self, c4: Tensor, proposals: Sequence[Tensor], sizes: Sequence[Size]
    ) -> list[Detections]:
        """The boxes; and of each one the mask of its class, as probabilities in the box."""
        found = super().detect(c4, proposals, sizes)
        features = self.region_features(c4, [f["boxes"] for f in found])
        logits = _of_class(self.mask_head(features), torch.cat([f["labels"] for f in found]))
        parts = torch.split(logits.sigmoid(), [len(f["boxes"]) for f in found])
        for here, probabilities in zip(found, parts, strict=True):
            here["mask_probabilities"] = probabilities
        return found

    def rescale(self, found: Detections, network: Size, output: Size) -> Detections:
        """As :meth:`RCNNC4.rescale`, the masks pasted into the image."""
        moved = super().rescale(found, network, output)
        moved["masks"] = pasted(moved.pop("mask_probabilities"), moved["boxes"], output)
        return moved


def _of_class(logits: Tensor, labels: Tensor) -> Tensor:
    return logits[torch.arange(len(labels), device=labels.device), labels]


def cropped(mask: Any, boxes: Tensor, size: int) -> Tensor:
    """An object's mask in each of some boxes (r, 4): bool (r, size, size)."""
    if not isinstance(mask, Tensor):
        return _rasterised(mask, boxes, size)
    pixels = mask[None, None].to(boxes)
    shares = roi_align(pixels, [boxes], size, 1.0, sampling_ratio=0, aligned=True)
    inside: Tensor = shares[:, 0] >= 0.5
    return inside


def _rasterised(polygons: Sequence[Any], boxes: Tensor, size: int) -> Tensor:
    """Source: detectron2's ``rasterize_polygons_within_box``."""
    points = [np.asarray(polygon, np.float64).reshape(-1, 2) for polygon in polygons]
    outlines = []
    for box in boxes.cpu().numpy():
        scale = size / np.maximum(box[2:] - box[:2], 0.1)
        moved = [((corners - box[:2]) * scale).ravel() for corners in points]
        outlines.append(rle.merge(rle.frPyObjects(moved, size, size)))
    with warnings.catch_warnings():
        # NumPy 2 wants `__array__` to take `copy`, which pycocotools 2.0.11 does not know of.
        warnings.simplefilter("ignore", DeprecationWarning)
        pixels = rle.decode(outlines)  # (size, size, r)
    return torch.from_numpy(pixels).permute(2, 0, 1).bool().to(boxes.device)


def resized(mask: Any, image: Size, larger: Size) -> Any:
    """An object's mask, after its image was resized: pixels are repeated or left out, as by PIL."""
    if isinstance(mask, Tensor):
        pixels = mask[None, None].to(torch.uint8)
        return F.interpolate(pixels, larger, mode="nearest-exact")[0, 0].bool()
    scale = np.array([larger[1] / image[1], larger[0] / image[0]])
    return [(np.asarray(p, np.float64).reshape(-1, 2) * scale).ravel() for p in mask]


@torch.no_grad()
def pasted(probabilities: Tensor, boxes: Tensor, size: Size) -> Tensor:
    """Where masks (n, m, m), stretched over their boxes (n, 4), reach 0.5: bool (n, H, W).

    One after the other, and only around its box, since an image may have a hundred. Source:
    detectron2's ``paste_masks_in_image``.
    """
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool, device=boxes.device)
    for mask, probability, box in zip(masks, probabilities, boxes.tolist(), strict=True):
        (x, columns), (y, rows) = (
            _positions(box[side], box[side + 2], size[1 - side]) for side in range(2)
        )
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).to(probability)
        inside = F.grid_sample(probability[None, None], grid[None], align_corners=False)
        mask[rows, columns] = inside[0, 0] >= 0.5
    return masks


def _positions(start: float, end: float, length: int) -> tuple[Tensor, slice]:
    """The pixels around an interval, and where their middles lie in it, from -1 to 1."""
    first, last = max(math.floor(start) - 1, 0), min(math.ceil(end) + 1, length)
    middles = torch.arange(first, last) + 0.5
    return (middles - start) / (end - start) * 2 - 1, slice(first, last)
