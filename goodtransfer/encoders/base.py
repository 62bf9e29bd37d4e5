"""What every encoder is: normalised input, maps by stage, a part that runs alone on regions."""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from goodtransfer.encoders.dilation import coarsest


class Normalization(NamedTuple):
    """What an encoder's input is brought to, channel by channel: ``(x - mean) / std``.

    Attributes:
        mean: of R, G and B in [0, 1].
        std: standard deviation of the same.

    >>> Normalization(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)).std
    (0.5, 0.5, 0.5)
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]


Maps = Callable[[Tensor], Tensor]
IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Encoder(nn.Module, ABC):
    """A trunk with its input convention. Subclasses write :meth:`maps`.

    Input is plain RGB (N, 3, H, W), uint8 or float in [0, 1]. Stage s is the map of stride 2^s, and 5
    the last.

    Args:
        name: what rebuilds the architecture, untrained: ``build(name)``.
        normalization: applied first; None for input that is normalised already.

    Attributes:
        channels: channels of each stage's map.
        strides: input pixels per pixel of each stage's map.
        mean, std: (3,), not persistent: they belong to the weights' origin, not to the weights.

    Raises:
        ValueError: for a stage, or a stride, that it cannot give.

    >>> from goodtransfer.encoders import build
    >>> maps = build("resnet10w8")(torch.zeros(1, 3, 64, 64), stages=(2, 5))
    >>> {stage: tuple(found.shape) for stage, found in maps.items()}
    {2: (1, 8, 16, 16), 5: (1, 64, 2, 2)}
    """

    mean: Tensor
    std: Tensor
    mean_of_uint8: Tensor
    std_of_uint8: Tensor

    def __init__(self, name: str, normalization: Normalization | None = IMAGENET) -> None:
        super().__init__()
        self.name = name
        self.channels: dict[int, int] = {}
        self.strides: dict[int, int] = {}
        self.set_normalization(normalization)

    @property
    def normalization(self) -> Normalization | None:
        """The input convention, or None."""
        return self._normalization

    @property
    def network(self) -> nn.Module:
        """The module whose parameter names are those of the library it comes from."""
        return self

    def set_normalization(self, normalization: Normalization | None) -> None:
        """Replace the input convention, as loading weights of another origin does.

        Args:
            normalization: the new one; None for input that is normalised already.
        """
        self._normalization = normalization
        mean, std = normalization or Normalization((0.0,), (1.0,))
        like = getattr(self, "mean", torch.zeros(1))
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, like.new_tensor(values), persistent=False)
            # uint8 is not divided by 255 first, which would round twice; detectron2 does not, either.
            pixels = like.new_tensor([255 * value for value in values])
            self.register_buffer(f"{name}_of_uint8", pixels, persistent=False)

    def normalize(self, x: Tensor) -> Tensor:
        """Plain RGB (..., 3, H, W), uint8 or float in [0, 1], as the network wants it."""
        mean, std = self.mean, self.std
        if not x.is_floating_point():
            x, mean, std = x.to(mean.dtype), self.mean_of_uint8, self.std_of_uint8
        return (x - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)

    def forward(
        self, x: Tensor, stages: Sequence[int] = (5,), *, normalized: bool = False
    ) -> dict[int, Tensor]:
        """Feature maps (N, channels[s], ...) by stage.

        Args:
            x: RGB (N, 3, H, W), uint8 or float in [0, 1].
            stages: those asked for; deeper ones do not run.
            normalized: the input has been through :meth:`normalize`, as padded batches have.

        Raises:
            ValueError: for a stage that it does not have.
        """
        if not normalized:
            x = self.normalize(x)
        wanted = set(stages)
        if not wanted <= self.strides.keys():
            raise ValueError(
                f"Expected stages of {self.name} among {sorted(self.strides)}, "
                f"but got {list(stages)}."
            )
        found: dict[int, Tensor] = {}
        for stage, features in self.maps(x):
            if stage in wanted:
                found[stage] = features
            if len(found) == len(wanted):
                break
        return found

    @abstractmethod
    def maps(self, x: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield (stage, map) from shallow to deep; called with normalised input."""

    def split(self, stage: int = 4) -> tuple[Maps, Maps]:
        """The trunk, images to a stage's map, and what leads from there to stage 5's.

        For C4 detectors, which run the last stage on regions. Both are this encoder's own modules.

        Args:
            stage: after which it is split.

        Raises:
            ValueError: where what follows the stage is not a plain chain of modules.
        """
        modules = self._after(stage) if stage in self.strides else None
        if not modules:
            raise ValueError(
                f"Expected an encoder whose last stage can be run alone on stage {stage}'s map, but "
                f"that of {self.name} (stages {sorted(self.strides)}) cannot: take a ResNet, or a "
                "torchvision or timm network that is a chain of modules."
            )
        last_stage = nn.Sequential(*modules)
        return lambda x: self(x, stages=(stage,))[stage], last_stage

    def _after(self, stage: int) -> list[nn.Module] | None:
        """The modules that lead from the stage's map to stage 5's; None if they cannot be told."""
        return None

    def dilated(self, stride: int = 8) -> Self:
        """The same encoder with maps no coarser than ``stride``, for segmentation (protocol 4.1).

        It shares parameters and statistics with this one. A layer that ran at a greater stride, as
        built, runs at this one, and its taps are spread so that it sees the same pixels; the first
        block of such a stage keeps the rate of the stage before, as torchvision's
        ``replace_stride_with_dilation`` has it. ``dilated(32)`` has the strides that it was built with.

        Args:
            stride: in pixels of the image.

        Raises:
            ValueError: where a stage cannot be brought to that stride, naming it.
        """
        own = [*self.parameters(), *self.buffers()]
        copied = copy.deepcopy(self, {id(tensor): tensor for tensor in own})
        coarsest(copied, stride)
        coarse = [stage for stage, found in self.strides.items() if found > stride]
        try:
            copied._measure(256)  # where a map may lose a border of some pixels
            coarse = [stage for stage in coarse if copied.strides[stage] > stride]
        except RuntimeError:  # branches that do not fit each other any more
            copied.strides.clear()
        if coarse and stride < 32:
            raise ValueError(
                f"Expected an encoder whose maps can be brought to stride {stride}, but stage "
                f"{coarse[0]} of {self.name} cannot, since it is made smaller by other layers than "
                "convolutions and max pooling: take a ResNet, or another torchvision or timm network."
            )
        return copied

    @torch.no_grad()
    def _measure(self, size: int = 64) -> None:
        """Fill ``channels`` and ``strides`` by encoding one black image."""
        training = self.training
        self.eval()
        for stage, features in self.maps(self._black(size)):
            self.channels[stage] = features.shape[1]
            self.strides[stage] = map_stride(size, features)
        self.train(training)

    def _black(self, size: int) -> Tensor:
        """A black image where the weights are; a module on a GPU takes the input convention there."""
        device = next(self.parameters(), self.mean).device
        for name in ("mean", "std", "mean_of_uint8", "std_of_uint8"):
            setattr(self, name, getattr(self, name).to(device))
        return torch.zeros(1, 3, size, size).to(self.mean)


def map_stride(size: int, features: Tensor) -> int:
    """The power of two nearest to input pixels per pixel of the map."""
    return int(2 ** round(math.log2(size / features.shape[-1])))


def pooled(encoder: nn.Module, images: Tensor) -> Tensor:
    """The features of the linear readout: stage 5 averaged over its positions.

    Args:
        encoder: an :class:`Encoder`, also compiled or wrapped.
        images: RGB (N, 3, H, W), uint8 or float in [0, 1].

    Returns:
        Features (N, C).

    >>> from goodtransfer.encoders import OwnTrunk
    >>> mean_colour = OwnTrunk(nn.Identity(), normalization=None)
    >>> pooled(mean_colour, torch.tensor([0.0, 0.2, 1.0]).view(1, 3, 1, 1).expand(1, 3, 8, 8))
    tensor([[0.0000, 0.2000, 1.0000]])
    """
    features: Tensor = encoder(images)[5]
    return features.flatten(2).mean(2)
