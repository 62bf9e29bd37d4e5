"""Pictures of what a transfer task predicts, for people who would rather look than read."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor
from torchvision.transforms.v2.functional import resize
from torchvision.utils import make_grid

_LINE = 14  # pixels of a caption
_COLOURS = {True: (0, 110, 0), False: (170, 0, 0), None: (0, 0, 0)}


class Draws(Protocol):
    """What the callback asks of a task."""

    def drawings(self, batch: Any, outputs: Any, first: int) -> list[Tensor]:
        """The ``first`` images of a test batch with their predictions, uint8 (3, H, W) each."""


class Pictures(pl.Callback):
    """A grid of test images with their predictions, logged and saved as ``NAME.png``.

    They are spread evenly over the test batches; of a loader that does not know how many those are,
    they are the first images. Under several ranks the first one draws, from its own images.

    Args:
        name: of the file, and of the picture in the logger.
        shown: images in the grid.
        side: pixels of each one's longer side.
        columns: of the grid.
    """

    def __init__(self, name: str, *, shown: int = 6, side: int = 240, columns: int = 3) -> None:
        self.name, self.shown, self.side, self.columns = name, shown, side, columns
        self._drawn: list[Tensor] = []

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._drawn = []

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not hasattr(pl_module, "drawings"):
            return  # a Trainer keeps the callbacks of the task before
        (batches, *_) = trainer.num_test_batches
        due = min(self.shown, math.ceil(self.shown * (batch_idx + 1) / batches))
        wanted = (self.shown if math.isinf(batches) else due) - len(self._drawn)
        if trainer.is_global_zero and wanted > 0:
            task: Draws = pl_module  # type: ignore[assignment]
            self._drawn += [scaled(d, self.side) for d in task.drawings(batch, outputs, wanted)]

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._drawn:
            keep_picture(trainer, self.name, grid(self._drawn, self.columns))


def keep_picture(trainer: pl.Trainer, name: str, picture: Tensor) -> None:
    """Save a picture, uint8 (3, H, W), as ``name.png``, and give it to the loggers that show some.

    It is saved in the first logger's folder, or in ``default_root_dir``; W&B and TensorBoard log it.
    The first rank does so, whether or not the others call this, too.
    """
    if not trainer.is_global_zero:
        return
    # Not `trainer.log_dir`, which waits for the other ranks.
    own = [
        folder for log in trainer.loggers[:1] for folder in (log.log_dir, log.save_dir) if folder
    ]
    path = Path(own[0] if own else trainer.default_root_dir) / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(picture.permute(1, 2, 0).numpy())
    image.save(path)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, picture, trainer.global_step)
        elif hasattr(logger, "log_image"):  # W&B's, which need not be installed
            logger.log_image(name, [image])


def grid(pictures: Sequence[Tensor], columns: int) -> Tensor:
    """Pictures in rows, each at the top left of its place, on white: uint8 (3, H, W)."""
    height, width = (max(int(p.shape[d]) for p in pictures) for d in (-2, -1))
    made: Tensor = make_grid(
        [on_white(p, height, width) for p in pictures], nrow=columns, padding=4, pad_value=255
    )
    return made


def on_white(image: Tensor, height: int, width: int) -> Tensor:
    """The image, uint8 (3, h, w), with white to the right and below."""
    return F.pad(image, (0, width - image.shape[-1], 0, height - image.shape[-2]), value=255)


def scaled(image: Tensor, side: int) -> Tensor:
    """The image, uint8 (3, h, w), with that longer side."""
    height, width = (int(n) for n in image.shape[-2:])
    scale = side / max(height, width)
    size = [max(1, round(height * scale)), max(1, round(width * scale))]
    made: Tensor = resize(image, size, antialias=True)
    return made


def fitted(image: Tensor, side: int) -> Tensor:
    """As large as a square of that side holds, in it on white."""
    return on_white(scaled(image, side), side, side)


def captioned(image: Tensor, text: str, *, right: bool | None = None) -> Tensor:
    """The image, uint8 (3, H, W), with a line of text below: green if right, red if wrong."""
    strip = Image.new("RGB", (int(image.shape[-1]), _LINE), "white")
    ImageDraw.Draw(strip).text((1, 1), text, fill=_COLOURS[right])
    below = torch.from_numpy(np.array(strip)).permute(2, 0, 1)
    return torch.cat([image.cpu(), below], dim=1)


def as_pixels(image: Tensor) -> Tensor:
    """RGB in uint8 or float [0, 1], as uint8 on the CPU."""
    if image.is_floating_point():
        image = (image.float() * 255).round().clamp(0, 255).to(torch.uint8)
    return image.cpu()
