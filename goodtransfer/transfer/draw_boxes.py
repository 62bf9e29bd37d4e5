"""Objects and what was found of them, drawn into their image."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou
from torchvision.transforms.v2.functional import resize
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from goodtransfer.callbacks.pictures import as_pixels
from goodtransfer.transfer.rcnn_c4 import Detections, Target

SIDE = 240  # pixels of the picture's longer side, at which lines and letters can be read


@torch.no_grad()
def drawing(image: Tensor, target: Target, found: Detections, class_names: Sequence[str]) -> Tensor:
    """The image with its objects in white, and as many of its best detections as it has objects.

    A detection of an object's class that overlaps it by more than half is lime, with its score;
    another one is yellow, its class in brackets. Masks are laid over in the same colours.

    Args:
        image: RGB (3, H, W), uint8 or float in [0, 1].
        target: its objects.
        found: its detections, best first.
        class_names: of the labels.

    Returns:
        uint8 (3, h, w), the longer side being :data:`SIDE`.
    """
    scale = SIDE / max(image.shape[-2:])
    size = [max(1, round(int(side) * scale)) for side in image.shape[-2:]]
    picture: Tensor = resize(as_pixels(image), size, antialias=True)
    everything: dict[str, Any] = {**found}
    shown: Any = {name: v[: len(target["labels"])].cpu() for name, v in everything.items()}
    right = found_objects(shown, target)
    colours = ["lime" if hit else "yellow" for hit in right]
    if "masks" in shown and len(right):
        masks = shown["masks"][:, None].to(torch.uint8)
        masks = F.interpolate(masks, size, mode="nearest-exact")[:, 0].bool()
        if masks.any():
            picture = draw_segmentation_masks(picture, masks, alpha=0.4, colors=colours)
    if len(target["boxes"]):
        boxes = target["boxes"].cpu() * scale
        picture = draw_bounding_boxes(picture, boxes, colors="white", width=3)
    if len(right):
        titles = [
            f"{class_names[label]} {score:.2f}" if hit else f"({class_names[label]})"
            for hit, label, score in zip(right, shown["labels"], shown["scores"], strict=True)
        ]
        boxes = shown["boxes"] * scale
        picture = draw_bounding_boxes(picture, boxes, titles, colours, width=2)
    return picture


def found_objects(found: Detections, target: Target) -> list[bool]:
    """Whether each detection overlaps an object of its class by more than half."""
    objects, labels = target["boxes"].to(found["boxes"]), target["labels"].to(found["labels"])
    hits = (box_iou(found["boxes"], objects) > 0.5) & (found["labels"][:, None] == labels)
    right: list[bool] = hits.any(1).tolist()
    return right
