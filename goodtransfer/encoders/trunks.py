"""Other people's trunks: torchvision's, timm's, a user's module, and raw pixels."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from goodtransfer.encoders.base import IMAGENET, Encoder, Normalization, map_stride


class SequentialTrunk(Encoder):
    """A torchvision network whose trunk is ``features``: VGG, SqueezeNet, MobileNet, ConvNeXt, ...

    Stage s is the last map of stride 2^s; stage 5 is always the trunk's output.
    """

    def __init__(self, name: str, features: nn.Sequential) -> None:
        super().__init__(name)
        self.features = features
        self._ends = self._stage_ends()
        self._measure()

    @torch.no_grad()
    def _stage_ends(self, size: int = 256) -> dict[int, int]:
        """Module number -> stage, for the modules after which the stride grows."""
        x, training = self._black(size), self.features.training
        self.features.eval()
        last_at_stride: dict[int, int] = {}
        for number, module in enumerate(self.features):
            x = module(x)
            last_at_stride[map_stride(size, x)] = number
        self.features.train(training)
        if x.shape[-1] != x.shape[-2]:
            raise ValueError(
                f"Expected {self.name} to give maps (N, C, H, W), but a square image becomes "
                f"{tuple(x.shape)}: pass OwnTrunk(your_module) around its trunk."
            )
        ends = {number: stride.bit_length() - 1 for stride, number in last_at_stride.items()}
        ends[len(self.features) - 1] = 5
        return ends

    def maps(self, x: Tensor) -> Iterator[tuple[int, Tensor]]:
        for number, module in enumerate(self.features):
            x = module(x)
            if number in self._ends:
                yield self._ends[number], x

    def _after(self, stage: int) -> list[nn.Module] | None:
        (end,) = (number for number, ends in self._ends.items() if ends == stage)
        return list(self.features)[end + 1 :]


class TimmTrunk(Encoder):
    """A convolutional timm network; stage 5 is what its classifier pools.

    Needs the extra ``timm``. The parameters are timm's, under ``model.``.
    """

    def __init__(self, name: str, model: nn.Module, normalization: Normalization) -> None:
        super().__init__(name, normalization)
        if not hasattr(model, "forward_intermediates"):
            raise ValueError(
                f"Expected a network that gives the map of each stage, but this release of timm cannot for "
                f"{name}: pip install -U timm."
            )
        self.model = model
        self._measure()
        self._chains: dict[int, list[str]] = {}

    @property
    def network(self) -> nn.Module:
        return self.model

    def maps(self, x: Tensor) -> Iterator[tuple[int, Tensor]]:
        final, maps = self.model.forward_intermediates(x)  # type: ignore[operator]
        for info, features in zip(self.model.feature_info, maps, strict=True):  # type: ignore
            if info["reduction"] < 32:
                yield int(math.log2(info["reduction"])), features
        yield 5, final

    def _after(self, stage: int) -> list[nn.Module] | None:
        if stage not in self._chains:
            self._chains[stage] = self._find_chain(stage)
        return [self.model.get_submodule(name) for name in self._chains[stage]]

    @torch.no_grad()
    def _find_chain(self, stage: int, size: int = 64) -> list[str]:
        """Names of the modules after the stage, as many as give stage 5's very map; or none.

        timm does not tell what it runs between and after its modules, so a trial does.
        """
        infos: Any = self.model.feature_info
        *_, path = (i["module"] for i in infos if int(math.log2(i["reduction"])) == stage)
        parts = path.split(".")
        later: list[str] = []
        for depth in range(len(parts), 0, -1):  # siblings after it, then its parent's, and so on
            parent = ".".join(parts[: depth - 1])
            children = [name for name, _ in self.model.get_submodule(parent).named_children()]
            after = children[children.index(parts[depth - 1]) + 1 :]
            later += [f"{parent}.{name}".lstrip(".") for name in after]
        training = self.training
        self.eval()
        try:
            image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
            maps = dict(self.maps(image.to(self.mean)))
            x = maps[stage]
            for count, name in enumerate(later, start=1):
                x = self.model.get_submodule(name)(x)
                if x.shape == maps[5].shape and torch.allclose(x, maps[5], atol=1e-5):
                    return later[:count]
        except (RuntimeError, TypeError, ValueError, NotImplementedError):
            pass  # what follows is no chain
        finally:
            self.train(training)
        return []


class Pixels(Encoder):
    """No network at all: the pixels as one long feature vector, the floor of every readout."""

    def __init__(self, size: int) -> None:
        super().__init__(f"pixels{size}")
        self.channels, self.strides = {5: 3 * size * size}, {5: size}

    def maps(self, x: Tensor) -> Iterator[tuple[int, Tensor]]:
        yield 5, x.flatten(1)[..., None, None]


class OwnTrunk(Encoder):
    """A user's module that gives a map (N, C, H, W) or a vector (N, C): its one stage is 5.

    Args:
        trunk: the module, without a classifier.
        normalization: applied first; None for a module that normalises by itself.

    Raises:
        ValueError: for a module that gives anything else.

    >>> encoder = OwnTrunk(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    >>> encoder(torch.zeros(2, 3, 64, 64))[5].shape
    torch.Size([2, 3, 1, 1])
    """

    def __init__(self, trunk: nn.Module, normalization: Normalization | None = IMAGENET) -> None:
        super().__init__(type(trunk).__name__, normalization)
        self.trunk = trunk
        self._measure()

    def maps(self, x: Tensor) -> Iterator[tuple[int, Tensor]]:
        features = self.trunk(x)
        if not isinstance(features, Tensor) or features.ndim not in (2, 4):
            raise ValueError(
                f"Expected {self.name} to give a tensor (N, C, H, W) or (N, C), but got "
                f"{getattr(features, 'shape', type(features).__name__)}: wrap it so that it does."
            )
        yield 5, features if features.ndim == 4 else features[..., None, None]
