"""Facial landmarks: an encoder fine-tuned to tell five points (the paper's Table 5; protocol 6)."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, TypedDict

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from goodtransfer.callbacks.epoch_count import EpochCount
from goodtransfer.callbacks.finite import FiniteCheck
from goodtransfer.callbacks.pictures import Pictures, as_pixels, captioned, fitted
from goodtransfer.distributed import gather
from goodtransfer.encoders import Encoder
from goodtransfer.metrics.landmarks import EYES, LandmarkError, inter_ocular_error
from goodtransfer.optim import sgd
from goodtransfer.transfer.checks import check_encoder
from goodtransfer.transfer.steps import seeded
from goodtransfer.views import check_range
from goodtransfer.weights import describe_input, load_encoder, restore_input

_SIDE, _FACE = 120, 106  # pixels of a picture, and of the face in it, above its caption
_TRUE, _PREDICTED = (0, 220, 0), (255, 40, 40)


class Target(TypedDict):
    """What is known of N faces: K points each, x and y in pixels of the view, and their numbers.

    Coordinates are continuous: a view spans 0 to ``size`` both ways, and the middle of its first
    pixel is (0.5, 0.5).
    """

    landmarks: Tensor  # (N, K, 2) float
    image_id: Tensor  # (N,) int64, another for each image of a data set


Batch = tuple[Tensor, Target]


class LandmarkHead(nn.Module):
    """1x1 convolution, batch norm, LeakyReLU, and a linear layer on all positions (protocol 6.2).

    Args:
        channels: of the map.
        squeezed: channels after the convolution.
        positions: of the map.
        points: K.
    """

    def __init__(self, channels: int, squeezed: int, positions: int, points: int) -> None:
        super().__init__()
        self.squeeze = nn.Sequential(
            nn.Conv2d(channels, squeezed, 1), nn.BatchNorm2d(squeezed), nn.LeakyReLU(), nn.Flatten()
        )
        self.fc = nn.Linear(squeezed * positions, 2 * points)

    def forward(self, features: Tensor) -> Tensor:
        """A map (N, C, H, W) to points (N, K, 2), in float32."""
        x, fc = self.squeeze(features), self.fc
        with torch.autocast(x.device.type, enabled=False):
            # Rounded to bfloat16, a point would move by up to a fifth of a pixel of 224.
            found = F.linear(x.float(), fc.weight.float(), fc.bias.float())
        return found.view(len(found), -1, 2)


class Landmarks(pl.LightningModule):
    """A small head on the last map of an encoder tells the points' coordinates; all is fine-tuned.

    The head is a :class:`LandmarkHead`, of torch's default initialisation. The paper: SGD with
    learning rate 0.02, 200 epochs of batches of 128 faces::

        trainer = pl.Trainer(max_epochs=200)
        task, data = Landmarks("encoder.safetensors"), MAFLDataModule(ROOT)
        trainer.fit(task, data)
        trainer.test(task, data)

    The paper leaves the rest open (protocol 0.10). Here the loss is the mean squared error of
    coordinates in units of the view's side, the momentum 0.9, the weight decay that of the paper's
    other runs, 1e-4, and the learning rate falls by a cosine over ``max_epochs``. The head gives
    coordinates from -1 to 1; were the error taken in those, its gradient were four times as large,
    and a rate of 0.02 beyond what is stable at 224 pixels (measured: 0.016 to 0.019, for several
    trained and untrained encoders).

    A batch is ``(images, target)``: RGB (N, 3, ``size``, ``size``), uint8 or float in [0, 1], and a
    target with ``landmarks`` (N, K, 2), x and y in pixels of the view, and ``image_id`` (N,). Faces of
    aligned images are much alike: a score tells something where it beats the mean shape's, that is the
    training faces' mean predicted for every test face.

    Args:
        encoder: a name, a weight file (see ``weights.load_encoder``), or a module; copied.
        size: side of the images in pixels; None takes the data module's.
        points: K, of a face.
        eyes: numbers of the two points whose distance is the unit of the error.
        channels: after the 1x1 convolution.
        lr: for batches of 128. At most about 3 / positions of the last map are stable, so that small
            images, which need more, allow more.
        weight_decay: of every parameter.
        seed: of dropout, where the encoder has some.

    Logs, in percent of the distance between the eyes: ``val_landmark_error`` in validation; in test
    ``landmark_error`` and, once trained, ``landmark_error_mean_shape``.

    Raises:
        ValueError: for ``eyes`` that are not two of the points, images of another size, or landmarks
            that are not (N, K, 2) or not finite.
        FloatingPointError: when the loss or a gradient is NaN or infinite (``FiniteCheck``).
    """

    def __init__(
        self,
        encoder: str | nn.Module = "resnet50",
        *,
        size: int | None = None,
        points: int = 5,
        eyes: tuple[int, int] = EYES,
        channels: int = 128,
        lr: float = 0.02,
        weight_decay: float = 1e-4,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if eyes[0] == eyes[1] or not 0 <= min(eyes) <= max(eyes) < points:
            raise ValueError(
                f"Expected `eyes` to be two of {points} points, counted from 0, but got {eyes}."
            )
        own = deepcopy(encoder) if isinstance(encoder, nn.Module) else encoder
        # One that comes from a readout is frozen.
        self.encoder: Encoder = load_encoder(own).requires_grad_()
        self.save_hyperparameters(ignore=["encoder"])
        self.hparams["encoder"] = self.encoder.name
        self.points, self.eyes, self.channels = points, eyes, channels
        self.lr, self.weight_decay, self.seed = lr, weight_decay, seed
        # Sums of x, y and 1 over the faces trained on, by all ranks. No buffer: it stays on the CPU in
        # float64, whatever the precision of the weights.
        self._shapes = torch.zeros(points, 3, dtype=torch.float64)
        self.error, self.mean_shape_error = LandmarkError(eyes), LandmarkError(eyes)
        self.head: LandmarkHead | None = None
        if size is not None:
            self._add_head(size)

    @torch.no_grad()
    def _add_head(self, size: int) -> None:
        """The head for the map that a black image of this size becomes."""
        self.size = self.hparams["size"] = size
        black = torch.zeros(1, 3, size, size).to(self.encoder.mean)
        _, channels, height, width = self.encoder.eval()(black)[5].shape
        self.encoder.train()  # also one that came in eval mode, where a fit would leave it
        self.head = LandmarkHead(channels, self.channels, height * width, self.points)

    def setup(self, stage: str) -> None:
        data = getattr(self.trainer, "datamodule", None)
        size = getattr(data, "size", None)
        if self.head is None:
            if size is None:
                raise ValueError(
                    "Expected the side of the images in pixels, but size=None and there is no data "
                    "module to ask: pass Landmarks(size=...)."
                )
            self._add_head(size)
        elif size not in (None, self.size):
            raise ValueError(
                f"Expected images of side {self.size}, for which the head is made, but "
                f"{type(data).__name__} has size={size}: leave size=None to take its."
            )
        check_encoder(self.encoder, (5,), "landmarks")

    def configure_callbacks(self) -> list[pl.Callback]:
        pictures = Pictures("landmarks", shown=12, side=_SIDE, columns=6)
        return [FiniteCheck(), EpochCount(), pictures]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return sgd(
            self.parameters(),
            self.trainer,
            lr=self.lr,
            weight_decay=self.weight_decay,
            schedule="cosine",
        )

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, size, size) to points (N, K, 2) in their pixels."""
        if self.head is None:
            raise ValueError("Expected `size` to be known, but this module was never set up.")
        if images.shape[2:] != (self.size, self.size):
            raise ValueError(
                f"Expected images of {self.size} x {self.size} pixels, for which the head is made, but "
                f"got {tuple(images.shape)}: resize images and landmarks, or pass Landmarks(size=...)."
            )
        found: Tensor = self.head(self.encoder(images)[5])
        return (found + 1) * (self.size / 2)

    # --- Training

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, target = batch
        landmarks = self._landmarks(images, target)
        if batch_idx == 0 and images.is_floating_point() and self.encoder.normalization is not None:
            check_range(images)
        everyone, _ = gather(landmarks)
        self._shapes = self._shapes + F.pad(everyone.cpu().double(), (0, 1), value=1).sum(0)
        with seeded(self.device, self.seed, self.trainer.global_step, batch_idx):
            found = self(images)
        loss = F.mse_loss(found / self.size, landmarks / self.size)
        self.log("loss", loss.detach(), prog_bar=True)
        return loss

    def _landmarks(self, images: Tensor, target: Target) -> Tensor:
        """Of a batch, in float32; a sentence where they cannot be used."""
        names = list(target) if isinstance(target, Mapping) else type(target).__name__
        if not {"landmarks", "image_id"} <= set(names):
            raise ValueError(
                "Expected batches of images and a target {'landmarks': (N, K, 2), 'image_id': (N,)}, "
                f"but got a target of {names}."
            )
        landmarks = target["landmarks"].float()
        expected = (len(images), self.points, 2)
        if landmarks.shape != expected:
            raise ValueError(
                f"Expected landmarks {expected} of a batch of {len(images)} images, but got "
                f"{tuple(landmarks.shape)}: pass Landmarks(points=...), or x and y of every point."
            )
        if not landmarks.isfinite().all():
            face = int(landmarks.isfinite().flatten(1).all(1).int().argmin())
            raise ValueError(
                f"Expected finite landmarks, but those of image {int(target['image_id'][face])} are "
                f"{landmarks[face].tolist()}: correct them, or leave the image out."
            )
        return landmarks

    # --- Scores

    def on_validation_epoch_start(self) -> None:
        self.error.reset()  # the last one may have been interrupted
        self.mean_shape_error.reset()

    on_test_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        images, target = batch
        landmarks, found = self._landmarks(images, target), self(images)
        self.error.update(found, landmarks, target["image_id"])
        return {"landmarks": found}  # for callbacks

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        outputs = self.validation_step(batch, batch_idx)
        if self._shapes.any():
            landmarks = batch[1]["landmarks"].float()
            mean = (self._shapes[:, :2] / self._shapes[:, 2:]).to(landmarks)
            self.mean_shape_error.update(mean.expand_as(landmarks), landmarks, batch[1]["image_id"])
        return outputs

    def on_validation_epoch_end(self) -> None:
        self._report("val_landmark_error", self.error)

    def on_test_epoch_end(self) -> None:
        self._report("landmark_error", self.error)
        if self._shapes.any():
            self._report("landmark_error_mean_shape", self.mean_shape_error)

    def _report(self, name: str, metric: LandmarkError) -> None:
        self.log(name, metric.compute(), prog_bar=True, sync_dist=True)  # equal on all ranks
        metric.reset()

    def drawings(self, batch: Batch, outputs: dict[str, Tensor], first: int) -> list[Tensor]:
        """Faces with their true points as green crosses and the predicted ones as red dots."""
        images, target = batch
        true, found = target["landmarks"].float(), outputs["landmarks"]
        errors = inter_ocular_error(found, true, self.eyes).tolist()
        scale = _FACE / self.size
        return [
            captioned(_marked(image, t * scale, f * scale), f"{error:.1f} %")
            for image, t, f, error in zip(images[:first], true, found, errors, strict=False)
        ]

    # --- Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["input"] = describe_input(self.encoder)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        restore_input(self.encoder, checkpoint["input"])

    def get_extra_state(self) -> Tensor:
        """What the state dict has besides weights: the faces trained on."""
        return self._shapes

    def set_extra_state(self, state: Tensor) -> None:
        """Restore it."""
        self._shapes = state.cpu()


def _marked(image: Tensor, true: Tensor, found: Tensor) -> Tensor:
    """A face, small, with points in its pixels."""
    face: Image.Image = to_pil_image(fitted(as_pixels(image), _FACE))
    pen = ImageDraw.Draw(face)
    for x, y in true.tolist():
        pen.line((x - 3, y, x + 3, y), _TRUE)
        pen.line((x, y - 3, x, y + 3), _TRUE)
    for x, y in found.tolist():
        pen.ellipse((x - 1.5, y - 1.5, x + 1.5, y + 1.5), _PREDICTED)
    marked: Tensor = pil_to_tensor(face)
    return marked
