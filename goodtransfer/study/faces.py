"""What a landmark cell leaves: the first test faces, their landmarks, and the predicted ones."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from safetensors.torch import save_file
from torch import Tensor

from goodtransfer.callbacks.pictures import as_pixels


class KeepFaces(pl.Callback):
    """Writes ``faces.safetensors``: ``faces``, and points in their pixels, ``true`` and ``found``.

    Every encoder is tested on the same faces in the same order, so that those of several cells can
    stand below each other (Figure 3).
    """

    def __init__(self, folder: Path, shown: int = 8) -> None:
        self.folder, self.shown = folder, shown
        self._kept: list[dict[str, Tensor]] = []

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        images, target = batch
        found = {"faces": as_pixels(images), "true": target["landmarks"].float().cpu()}
        found["found"] = outputs["landmarks"].float().cpu()
        if sum(len(k["faces"]) for k in self._kept) < self.shown:
            self._kept.append(found)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        tensors = {
            name: torch.cat([kept[name] for kept in self._kept])[: self.shown].contiguous()
            for name in ("faces", "true", "found")
        }
        save_file(tensors, self.folder / "faces.safetensors")
