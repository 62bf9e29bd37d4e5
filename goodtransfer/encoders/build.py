"""From a name or a module to an encoder."""

import difflib
import re
from collections import OrderedDict
from typing import Any

import torchvision
from torch import nn
from torchvision.models import get_model, get_model_weights, list_models
from torchvision.models.resnet import ResNet as TorchvisionResNet

from goodtransfer.encoders.base import IMAGENET, Encoder, Normalization
from goodtransfer.encoders.resnet import RESNETS, ResNet, resnet_name
from goodtransfer.encoders.trunks import OwnTrunk, Pixels, SequentialTrunk, TimmTrunk


def build(name: str) -> Encoder:
    """An untrained encoder by name.

    Args:
        name: ``resnet10 | 18 | 34 | 50 | 101``, with ``w32`` behind it for another width than 64
            and ``-caffe`` for strides in the first 1x1; ``torchvision:NAME``; ``timm:NAME``;
            ``pixels48`` for raw 48 x 48 pixels.

    Raises:
        ValueError: for a name none of these knows.
        ModuleNotFoundError: for ``timm:`` without timm, naming the extra.

    >>> build("resnet10w8").channels
    {1: 8, 2: 8, 3: 16, 4: 32, 5: 64}
    """
    if match := re.fullmatch(r"resnet(\d+)(?:w(\d+))?(-caffe)?", name):
        depth, width, caffe = match.groups()
        if depth in RESNETS:
            return ResNet(name, *RESNETS[depth], width=int(width or 64), caffe=bool(caffe))
    if match := re.fullmatch(r"pixels(\d+)", name):
        return Pixels(int(match[1]))
    source, _, model = name.partition(":")
    if source == "torchvision" and model:
        _check_known(model, list_models(module=torchvision.models), source)
        encoder = from_torchvision(name, get_model(model, weights=None))
        encoder.set_normalization(torchvision_input(model))
        return encoder
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

    Args:
        module: gives a map (N, C, H, W) or a vector (N, C), or is one of torchvision's networks.

    Raises:
        ValueError: for a module that gives anything else.

    >>> encoder = as_encoder(nn.Conv2d(3, 4, kernel_size=8, stride=8))
    >>> type(encoder).__name__, encoder.channels, encoder.strides
    ('OwnTrunk', {5: 4}, {5: 8})
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


def torchvision_input(model: str) -> Normalization:
    """What torchvision's own weights of a network want; ImageNet's statistics where it has none.

    >>> torchvision_input("efficientnet_v2_l").mean
    (0.5, 0.5, 0.5)
    """
    weights: Any = get_model_weights(model)
    if not len(weights):
        return IMAGENET
    transforms = weights.DEFAULT.transforms()
    return Normalization(tuple(transforms.mean), tuple(transforms.std))


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
    try:
        network: Any = timm.create_model(model, num_classes=0)
    except RuntimeError as error:  # of what stands behind the dot
        raise ValueError(f"Expected a network timm knows, but got {model!r}: {error}") from error
    cfg = network.pretrained_cfg
    if cfg.get("fixed_input_size"):
        raise ValueError(
            f"Expected a convolutional network, which takes any size, but {name} takes "
            f"{cfg['input_size'][1:]} only: pass OwnTrunk(your_module) around its trunk."
        )
    return TimmTrunk(name, network, Normalization(tuple(cfg["mean"]), tuple(cfg["std"])))
