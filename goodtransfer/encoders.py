"""Encoders: trunks without classifier, from own ResNets to any torchvision or timm network.

An encoder takes plain RGB (N, 3, H, W), uint8 or float in [0, 1], normalises it by itself and gives
its feature maps by stage: stage s has, in the usual networks, a stride of 2^s.
"""

import difflib
import math
import re
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import get_model, list_models
from torchvision.models.resnet import BasicBlock, Bottleneck, conv1x1
from torchvision.models.resnet import ResNet as TorchvisionResNet


class Normalization(NamedTuple):
    """Per-channel mean and standard deviation of RGB in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


Maps = Callable[[Tensor], Tensor]
IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Encoder(nn.Module, ABC):
    """A trunk with its input convention. Subclasses write :meth:`maps`.

    Args:
        name: what rebuilds the architecture, untrained: ``build(name)``.
        normalization: applied first; None for input that is normalised already.

    Attributes:
        channels: channels of each stage's map.
        strides: input pixels per pixel of each stage's map.
        mean, std: (3,), not persistent: they belong to the weights' origin, not to the weights.
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
        """Replace the input convention, as loading weights of another origin does."""
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
        """Feature maps (N, channels[s], ...) of the ``stages`` asked for; deeper ones do not run.

        ``normalized`` input has been through :meth:`normalize`, as padded batches have.
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

    @torch.no_grad()
    def _measure(self, size: int = 64) -> None:
        """Fill ``channels`` and ``strides`` by encoding one black image."""
        training = self.training
        self.eval()
        for stage, features in self.maps(torch.zeros(1, 3, size, size)):
            self.channels[stage] = features.shape[1]
            self.strides[stage] = _stride(size, features)
        self.train(training)


def _stride(size: int, features: Tensor) -> int:
    """The power of two nearest to input pixels per pixel of the map."""
    return int(2 ** round(math.log2(size / features.shape[-1])))


def pooled(encoder: nn.Module, images: Tensor) -> Tensor:
    """The features of the linear readout: stage 5 averaged over its positions, (N, C)."""
    features: Tensor = encoder(images)[5]
    return features.flatten(2).mean(2)


class ResNet(Encoder):
    """ResNet v1.5 (stride in the 3x3), torchvision's blocks, names and initialisation.

    Narrow trunks (``width`` below 64) are for small images and tests.
    """

    def __init__(
        self,
        name: str,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        width: int = 64,
        normalization: Normalization | None = IMAGENET,
    ) -> None:
        super().__init__(name, normalization)
        self.conv1 = nn.Conv2d(3, width, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.strides[1], self.channels[1] = 2, width
        channels = width
        for stage, depth in enumerate(depths, start=2):
            planes, stride = width * 2 ** (stage - 2), 1 if stage == 2 else 2
            out = planes * block.expansion
            shortcut = None
            if stride != 1 or channels != out:
                shortcut = nn.Sequential(conv1x1(channels, out, stride), nn.BatchNorm2d(out))
            blocks = [block(channels, planes, stride, shortcut)]
            blocks += [block(out, planes) for _ in range(depth - 1)]
            self.add_module(f"layer{stage - 1}", nn.Sequential(*blocks))
            self.strides[stage], self.channels[stage] = 2**stage, out
            channels = out
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def maps(self, x: Tensor) -> Iterator[tuple[int, Tensor]]:
        x = self.relu(self.bn1(self.conv1(x)))
        yield 1, x
        x = self.maxpool(x)
        for stage in range(2, 6):
            x = self.get_submodule(f"layer{stage - 1}")(x)
            yield stage, x

    def _after(self, stage: int) -> list[nn.Module] | None:
        if stage < 2:  # a pooling follows, which is of no stage
            return None
        return [self.get_submodule(f"layer{s - 1}") for s in range(stage + 1, 6)]


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
        x, training = torch.zeros(1, 3, size, size), self.features.training
        self.features.eval()
        last_at_stride: dict[int, int] = {}
        for number, module in enumerate(self.features):
            x = module(x)
            last_at_stride[_stride(size, x)] = number
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
    """A user's module that gives a map (N, C, H, W) or a vector (N, C): its one stage is 5."""

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


_RESNETS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    "10": (BasicBlock, (1, 1, 1, 1)),
    "18": (BasicBlock, (2, 2, 2, 2)),
    "34": (BasicBlock, (3, 4, 6, 3)),
    "50": (Bottleneck, (3, 4, 6, 3)),
    "101": (Bottleneck, (3, 4, 23, 3)),
}


def resnet_name(block: type[nn.Module], depths: tuple[int, ...], width: int) -> str | None:
    """The name that builds such a ResNet, or None."""
    for depth, known in _RESNETS.items():
        if known == (block, depths):
            return f"resnet{depth}" + (f"w{width}" if width != 64 else "")
    return None


def build(name: str) -> Encoder:
    """An untrained encoder by name.

    Names: ``resnet10 | 18 | 34 | 50 | 101``, with ``w32`` behind it for another width than 64;
    ``torchvision:NAME``; ``timm:NAME``; ``pixels48`` for raw 48 x 48 pixels.

    Raises:
        ValueError: for a name none of these knows.
        ModuleNotFoundError: for ``timm:`` without timm, naming the extra.
    """
    if match := re.fullmatch(r"resnet(\d+)(?:w(\d+))?", name):
        depth, width = match.groups()
        if depth in _RESNETS:
            return ResNet(name, *_RESNETS[depth], width=int(width or 64))
    if match := re.fullmatch(r"pixels(\d+)", name):
        return Pixels(int(match[1]))
    source, _, model = name.partition(":")
    if source == "torchvision" and model:
        _check_known(model, list_models(module=torchvision.models), source)
        return from_torchvision(name, get_model(model, weights=None))
    if source == "timm" and model:
        return _from_timm(name, model)
    raise ValueError(
        "Expected an encoder name like resnet50, resnet18w32, torchvision:mobilenet_v2, "
        f"timm:tf_efficientnet_lite0, or the path of a weight file, but got {name!r}. (If that is the "
        "class of a module of yours, pass the module: load_from_checkpoint(FILE, encoder=module).)"
    )


def as_encoder(module: nn.Module) -> Encoder:
    """A user's module as an encoder: ours as it is, torchvision's converted, others wrapped.

    Weights are kept. The input is normalised by ImageNet's statistics, as torchvision's weights
    want it: pass ``OwnTrunk(module, normalization=None)`` for a module that normalises by itself.
    """
    if isinstance(module, Encoder):
        return module
    if isinstance(module, TorchvisionResNet) or isinstance(
        getattr(module, "features", None), nn.Sequential
    ):
        return from_torchvision(type(module).__name__, module)
    return OwnTrunk(module)


def from_torchvision(name: str, model: nn.Module) -> Encoder:
    """A torchvision network as an encoder, with its weights."""
    features = getattr(model, "features", None)
    if isinstance(model, TorchvisionResNet):
        depths = tuple(map(len, (model.layer1, model.layer2, model.layer3, model.layer4)))
        own = resnet_name(type(model.layer1[0]), depths, width=model.conv1.out_channels)
        parts = {n: m for n, m in model.named_children() if n not in ("avgpool", "fc")}
        plain = build(own) if own else None
        if plain and all(str(plain.get_submodule(n)) == str(part) for n, part in parts.items()):
            weights = {k: v for k, v in model.state_dict().items() if not k.startswith("fc.")}
            plain.load_state_dict(weights)
            return plain
        # Dilation, groups, another stem or norm make it another network, kept as it is.
        features = nn.Sequential(OrderedDict(parts))
    if isinstance(features, nn.Sequential):
        return SequentialTrunk(name, features)
    raise ValueError(
        f"Expected a torchvision network with a trunk called `features`, or a ResNet, but got "
        f"{name}: pass OwnTrunk(your_module) around its trunk."
    )


def _check_known(model: str, names: list[str], library: str) -> None:
    if model not in names:
        near = ", ".join(difflib.get_close_matches(model, names)) or "nothing"
        raise ValueError(f"Expected a network {library} knows, but got {model!r}; near it: {near}.")


def _from_timm(name: str, model: str) -> Encoder:
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"Encoder {name!r} needs timm: pip install 'goodtransfer[timm]'"
        ) from error
    _check_known(model.partition(".")[0], timm.list_models(), "timm")
    network: Any = timm.create_model(model, num_classes=0)
    cfg = network.pretrained_cfg
    if cfg.get("fixed_input_size"):
        raise ValueError(
            f"Expected a convolutional network, which takes any size, but {name} takes "
            f"{cfg['input_size'][1:]} only: pass OwnTrunk(your_module) around its trunk."
        )
    return TimmTrunk(name, network, Normalization(tuple(cfg["mean"]), tuple(cfg["std"])))
