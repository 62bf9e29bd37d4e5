"""What features remember of an image: a deep image prior rebuilds it from them (Figure 2; protocol 8).

A network turns fixed noise into an image. Its weights, not the pixels, are fitted until the image has
the features of the given one; what the features do not hold, the network's structure fills in.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from goodtransfer.analysis.skip_net import SkipNet
from goodtransfer.encoders import Encoder
from goodtransfer.weights import load_encoder

log = logging.getLogger(__name__)

# Counted from 0 up to and including max_iter = 3000:
# https://github.com/nanxuanzhao/Good_transfer/blob/601d566/code_reconstruction_DIP/reconstruction.py
STEPS = 3001
LR = 1e-3
SIZE = 224  # pixels of an image's side
EVERY = 250


@dataclass(frozen=True)
class Inversion:
    """An image rebuilt from its features.

    Attributes:
        picture: uint8 RGB (3, H, W). Save it without loss; the authors saved JPEGs.
        losses: mean squared error between the features before each update (steps,).

    >>> found = Inversion(torch.zeros(3, 80, 80, dtype=torch.uint8), torch.tensor([2.0, 0.5]))
    >>> f"{found.losses[-1] / found.losses[0]:.0%} of the first loss is left"
    '25% of the first loss is left'
    """

    picture: Tensor
    losses: Tensor


def invert(
    encoder: str | Path | nn.Module,
    image: Tensor,
    *,
    stage: int = 5,
    steps: int = STEPS,
    lr: float = LR,
    seed: int = 0,
    device: str = "auto",
    checkpoint: Path | None = None,
    every: int = EVERY,
    watch: Callable[["Search"], object] | None = None,
) -> Inversion:
    """Rebuild an image from an encoder's features.

    A seed means the same noise and the same first network for every encoder and device. On one
    device, with one number of threads, it means the same bytes, whether interrupted or not.

    Args:
        encoder: what ``weights.load_encoder`` takes; a module is left as it is.
        image: RGB (3, H, W), uint8 or float in [0, 1], of more than 64 pixels a side. The paper's
            is ``views.recipes.center(224)(views.decode.decode(FILE))[0]``.
        stage: whose map is inverted; 5 is the last, 7 x 7 of 224 pixels in a ResNet.
        steps: updates by Adam.
        lr: its learning rate.
        seed: of the noise, of the network, and of an encoder that comes without weights.
        device: of torch; ``"auto"`` is CUDA where there is some.
        checkpoint: a file written every ``every`` updates and at the end, and gone on from.
        every: updates between two checkpoints.
        watch: called with the search after each update, to show how far it is.

    Raises:
        ValueError: for ``steps`` or ``every`` below 1, a stage that is not there, an image too small,
            features that hold nothing of the image, or a loss that is not finite any more.

    >>> image = torch.rand(3, 72, 72)
    >>> found = invert("resnet10w8", image, stage=2, steps=1, device="cpu")
    >>> found.picture.shape, found.picture.dtype, found.losses.shape
    (torch.Size([3, 72, 72]), torch.uint8, torch.Size([1]))
    """
    if steps < 1 or every < 1:
        raise ValueError(f"Expected steps and every to be 1 or more, but got {steps} and {every}.")
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        search = prepare(encoder, image, stage=stage, lr=lr, seed=seed, device=device)
        if checkpoint is not None:
            search.resume(checkpoint, steps)
        while len(search.losses) < steps:
            search.update()
            if watch is not None:
                watch(search)
            if len(search.losses) == steps or len(search.losses) % every == 0:
                search.check()
                if checkpoint is not None:
                    search.save(checkpoint)
        search.render()
    return Inversion(search.picture(), torch.stack(search.losses).cpu())


def prepare(
    encoder: str | Path | nn.Module,
    image: Tensor,
    *,
    stage: int = 5,
    lr: float = LR,
    seed: int = 0,
    device: str = "auto",
) -> "Search":
    """A search by the paper's network before its first update; see :func:`invert`, which runs it."""
    if image.ndim != 3 or len(image) != 3:
        raise ValueError(f"Expected an RGB image (3, H, W), but got {tuple(image.shape)}.")
    with seeded(seed):
        network = SkipNet()
        noise = network.noise(*image.shape[1:])
    frozen = _frozen(encoder, seed, device)
    normal = frozen.normalize(image[None].to(frozen.mean.device))
    search = Search(frozen, normal, network.to(normal), noise.to(normal), stage=stage, lr=lr)
    search.check_target()
    return search


class Search:
    """Fits a network until the image it makes of the noise has the features of another.

    What the network gives counts as normalised, as upstream has it: the encoder takes it as it is,
    and :meth:`picture` undoes the normalisation.

    Args:
        encoder: frozen.
        image: normalised (1, 3, H, W).
        network: from the noise to images at least as large, of which the top left is taken. It
            stays in training mode.
        noise: (1, C, H', W').
        stage: of the features.
        lr: of Adam.

    Attributes:
        losses: one before each update.
        output: the last image, normalised.
    """

    def __init__(
        self,
        encoder: Encoder,
        image: Tensor,
        network: nn.Module,
        noise: Tensor,
        *,
        stage: int = 5,
        lr: float = LR,
    ) -> None:
        # Of these networks the CPU makes about a tenth more steps in this format.
        self.encoder = encoder.to(memory_format=torch.channels_last)
        self.network = network.to(memory_format=torch.channels_last)
        self.noise = noise.contiguous(memory_format=torch.channels_last)
        self.stage, self.size = stage, image.shape[-2:]
        with torch.no_grad():
            self.target = self.features(image)
        self.optimizer = torch.optim.Adam(network.parameters(), lr=lr, fused=True)
        self.losses: list[Tensor] = []
        self.output = image.new_zeros(image.shape)

    def features(self, image: Tensor) -> Tensor:
        """The map of normalised images."""
        maps: dict[int, Tensor] = self.encoder(image, stages=(self.stage,), normalized=True)
        return maps[self.stage]

    def render(self) -> Tensor:
        """Make the image, normalised (1, 3, H, W)."""
        height, width = self.size
        self.output = self.network(self.noise)[..., :height, :width]
        return self.output

    def update(self) -> None:
        """Take one step towards the target."""
        loss = F.mse_loss(self.features(self.render()), self.target)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.losses.append(loss.detach())

    def picture(self) -> Tensor:
        """The last image made, uint8 RGB (3, H, W), on the CPU."""
        mean, std = (v.view(-1, 1, 1) for v in (self.encoder.mean, self.encoder.std))
        plain = self.output.detach()[0] * std + mean
        return (255 * plain).round().clamp(0, 255).to(torch.uint8).cpu()

    def check(self) -> None:
        """Refuse to go on from a loss that is not finite."""
        if not self.losses[-1].isfinite():
            rate = self.optimizer.param_groups[0]["lr"]
            raise ValueError(
                f"Expected a finite loss, but got {float(self.losses[-1])} after "
                f"{len(self.losses)} steps at a learning rate of {rate}: take a smaller one."
            )

    @torch.no_grad()
    def check_target(self) -> None:
        """Refuse features that hold nothing of the image, before time goes into them."""
        generator = torch.Generator().manual_seed(0)
        other = torch.randn(1, 3, *self.size, generator=generator).to(self.noise)
        low, high = self.target.aminmax()
        apart = (self.target - self.features(other)).abs().max()
        fault = None
        if not self.target.isfinite().all():
            fault = "NaN or infinite"
        elif low == high:
            fault = f"{float(low):g} everywhere"
        elif apart <= 1e-6 * torch.maximum(high, -low):
            fault = "the same for any image"
        if fault:
            raise ValueError(
                f"Expected features that an image can be found by, but stage {self.stage} of "
                f"{self.encoder.name} is {fault}: check its weights, which training may have ruined."
            )

    def save(self, path: Path) -> None:
        """Write what :meth:`resume` goes on from, whole or not at all."""
        state = {
            "noise": self.noise,
            "target": self.target,
            "losses": torch.stack(self.losses),
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        aside = path.with_name(f"{path.name}.tmp")
        torch.save(state, aside)
        os.replace(aside, path)

    def resume(self, path: Path, steps: int) -> None:
        """Go on from a file, unless it is of another search or has more than ``steps`` behind it."""
        if not path.exists():
            return
        state = torch.load(path, map_location=self.noise.device, weights_only=True)
        (before,), (now,) = state["optimizer"]["param_groups"], self.optimizer.param_groups
        same = all(
            state[name].shape == own.shape and torch.allclose(state[name], own, rtol=1e-3)
            for name, own in (("noise", self.noise), ("target", self.target))
        )
        if not same or before["lr"] != now["lr"] or len(state["losses"]) > steps:
            log.warning("%s is of another search: beginning anew.", path)
            return
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.losses = list(state["losses"])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from the CPU's generator with this seed, and leave it as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _frozen(encoder: str | Path | nn.Module, seed: int, device: str) -> Encoder:
    """The encoder, or a copy of a module, in evaluation mode and without gradients of its own."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    with seeded(seed):
        own = deepcopy(encoder) if isinstance(encoder, nn.Module) else encoder
        loaded = load_encoder(own)
    try:
        return loaded.requires_grad_(False).eval().to(device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"Expected a device that torch can use, but got {device!r}: take auto or cpu."
        ) from error
