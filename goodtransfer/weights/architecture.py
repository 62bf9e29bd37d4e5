"""Depth, width and stem of a ResNet, read off its tensors."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor
from torchvision.models.resnet import BasicBlock, Bottleneck

from goodtransfer.encoders import resnet_name
from goodtransfer.foreign import plain

# timm's names, old ones too, of the networks that torchvision's ResNets are.
_PLAIN = re.compile(r"(?:(?:tv|ssl|swsl)_)?resnet\d+(?:\..*)?|gluon_resnet\d+_v1b(?:\..*)?")


class Architecture(NamedTuple):
    """What a state dict is of.

    Attributes:
        name: what ``encoders.build`` makes it by; None where it cannot.
        stem: the layers before the first pooling, in words.
        lack: why there is no name: a sentence.
    """

    name: str | None
    stem: str
    lack: str = ""


def read_architecture(
    path: str, tensors: Mapping[str, Tensor], caffe: bool, stated: Any = None
) -> Architecture:
    """Tell the ResNet of a state dict in torchvision's names.

    Args:
        path: for the sentence.
        tensors: with those of the first block.
        caffe: it strides in the first 1x1 of a bottleneck, which no tensor tells.
        stated: its name in timm's config.json, if one lies beside it: an anti-aliased ResNet, which
            no tensor tells either, is another network.
    """
    first = tensors.get("conv1.weight")
    for part in ("conv1", "layer1.0.conv1", "layer1.0.conv2"):
        kernel = tensors.get(f"{part}.weight")
        if kernel is not None and kernel.ndim != 4:
            return Architecture(
                None, "none",
                f"Expected kernels of four dimensions in {path}, but {part}.weight is "
                f"{tuple(kernel.shape)}: it is damaged, or not of a ResNet.",
            )  # fmt: skip
    if first is None:
        return Architecture(
            None, "3x3, deep",
            f"Expected a 7x7 stem in {path}, but its stem is of several 3x3 convolutions: a "
            f"deep-stem ResNet is another network; name it, e.g. timm:resnet50d@{path}.",
        )  # fmt: skip
    stem = f"{first.shape[-1]}x{first.shape[-1]}"
    if tuple(first.shape[1:]) != (3, 7, 7):
        return Architecture(
            None, f"{stem}, of {first.shape[1]} channels",
            f"Expected a 7x7 stem in {path}, but its conv1 is {tuple(first.shape)}: a deep-stem or "
            "small-image ResNet is another network; give it as NAME@FILE or as a module.",
        )  # fmt: skip
    depths = tuple(
        len({m[1] for name in tensors if (m := re.match(rf"layer{stage}\.(\d+)\.", name))})
        for stage in range(1, 5)
    )
    block = Bottleneck if "layer1.0.conv3.weight" in tensors else BasicBlock
    width, inner = first.shape[0], tensors["layer1.0.conv1.weight"].shape[0]
    name = resnet_name(block, depths, width)
    if name is None:
        return Architecture(
            None, stem,
            f"Expected a ResNet of a known depth in {path}, but its stages have {depths} blocks of "
            f"kind {block.__name__}: name it, e.g. torchvision:resnet152@{path}, or build it yourself "
            "and pass the module.",
        )  # fmt: skip
    second = tensors.get("layer1.0.conv2.weight", first)
    if inner != width or (second is not first and second.shape[1] != inner):
        return Architecture(
            None, stem,
            f"Expected a plain ResNet in {path}, but its first block is of {inner} channels with "
            f"{second.shape[1]} in a group, as wide ResNets and ResNeXts have: name it, e.g. "
            f"torchvision:wide_resnet50_2@{path}.",
        )  # fmt: skip
    if isinstance(stated, str) and not _PLAIN.fullmatch(stated):
        return Architecture(
            None, stem,
            f"Expected a plain ResNet in {path}, but the config.json beside it says {plain(stated)}, "
            f"which may run the same tensors otherwise: name it `timm:{plain(stated)}@{path}`.",
        )  # fmt: skip
    return Architecture(name + "-caffe" * (caffe and block is Bottleneck), stem)
