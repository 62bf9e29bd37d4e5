"""Pictures of data sets: a row of images each, with all that is annotated (the paper's Figure 5)."""

import logging
from collections.abc import Sequence

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import draw_bounding_boxes, draw_keypoints, draw_segmentation_masks

from goodtransfer.data.cityscapes import PALETTE
from goodtransfer.data.samples import Part, Sample, parts
from goodtransfer.views.pixels import resize, to_tensor

log = logging.getLogger(__name__)

_GAP, _TEXT = 4, 16  # pixels between images, and for the line below each

# Colours that stay apart in print and for the colour-blind:
# Okabe and Ito, Color Universal Design, 2008.
_COLOURS = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0),
    (204, 121, 167),
)  # fmt: skip


def picture(
    modules: Sequence[pl.LightningDataModule],
    *,
    part: str = "train",
    width: int = 1600,
    height: int = 192,
    seed: int = 0,
) -> Image.Image:
    """A grid: a row for each data set, images in it drawn by lot.

    Args:
        modules: data modules of goodtransfer.
        part: of the data sets; the first one of those that have no part of this name.
        width: of the picture, in pixels; as many images stand in a row as it holds.
        height: of an image, in pixels.
        seed: of the lot.
    """
    rows = []
    for module in modules:
        found = parts(module)
        if not found:
            raise ValueError(f"Expected images in {module}, but found none: correct the folder.")
        chosen = found.get(part) or next(iter(found.values()))
        rows.append(_row(chosen, width, height, seed))
    step = height + _TEXT + _GAP
    grid = Image.new("RGB", (width, step * len(rows) + _GAP), "white")
    for number, row in enumerate(rows):
        left = _GAP
        for panel in row:
            grid.paste(panel, (left, _GAP + step * number))
            left += panel.width + _GAP
    return grid


def drawn(sample: Sample) -> Tensor:
    """The image (3, H, W) with its annotation: class map, masks, boxes, landmarks."""
    image = sample.image
    if sample.classes is not None:
        there = sorted(set(sample.classes.flatten().tolist()) & set(range(len(PALETTE))))
        masks = sample.classes == torch.tensor(there, dtype=torch.int64)[:, None, None]
        colours = [PALETTE[number] for number in there]
        image = draw_segmentation_masks(image, masks, alpha=0.6, colors=colours) if there else image
    colours = [_COLOURS[n % len(_COLOURS)] for n in range(len(sample.names))]
    if sample.masks is not None and len(sample.masks):
        image = draw_segmentation_masks(image, sample.masks.bool(), alpha=0.5, colors=colours)
    if sample.boxes is not None and len(sample.boxes):
        width = max(1, min(image.shape[1:]) // 120)
        image = draw_bounding_boxes(image, sample.boxes, colors=colours, width=width)
    if sample.landmarks is not None:
        radius = max(1, min(image.shape[1:]) // 60)
        image = draw_keypoints(image, sample.landmarks[None], colors="white", radius=radius + 1)
        image = draw_keypoints(image, sample.landmarks[None], colors="red", radius=radius)
    return image


def _row(part: Part, width: int, height: int, seed: int) -> list[Image.Image]:
    """Images drawn by lot, as many as fit; those that cannot be read are passed over."""
    row: list[Image.Image] = []
    left = width - _GAP
    for number in np.random.default_rng(seed).permutation(len(part.files)):
        try:
            panel = _panel(part.sample(int(number)), height)
        except (OSError, ValueError) as fault:
            log.warning("skipped: %s", fault)
            continue
        left -= panel.width + _GAP
        if left < 0:
            return row or [panel.resize((width - 2 * _GAP, panel.height))]
        row.append(panel)
    return row


def _panel(sample: Sample, height: int) -> Image.Image:
    """The image at this height, and its names below."""
    # Enlarged first, so that lines and dots are as fine on small images as on large ones.
    scale = height / sample.image.shape[1]
    width = max(1, round(sample.image.shape[2] * scale))
    pixels = np.ascontiguousarray(sample.image.permute(1, 2, 0).numpy())
    image = drawn(_scaled(sample, to_tensor(resize(pixels, height, width)), scale))
    panel = Image.new("RGB", (width, height + _TEXT), "white")
    panel.paste(to_pil_image(image), (0, 0))
    text = ", ".join(dict.fromkeys(sample.names))
    font = ImageFont.load_default(11)
    while len(text) > 1 and font.getlength(text) > width:
        text = text[:-2] + "…"
    ImageDraw.Draw(panel).text((0, height + 1), text, "black", font)
    return panel


def _scaled(sample: Sample, image: Tensor, scale: float) -> Sample:
    size = image.shape[1:]

    def nearest(maps: Tensor) -> Tensor:
        rows, columns = (
            torch.arange(new) * old // new for new, old in zip(size, maps.shape[1:], strict=True)
        )
        return maps[:, rows[:, None], columns]

    return Sample(
        image,
        sample.names,
        None if sample.boxes is None else sample.boxes * scale,
        None if sample.masks is None else nearest(sample.masks),
        None if sample.classes is None else nearest(sample.classes[None])[0],
        None if sample.landmarks is None else sample.landmarks * scale,
    )
