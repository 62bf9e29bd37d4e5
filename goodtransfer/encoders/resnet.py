"""ResNets of our own, in torchvision's names."""

from collections.abc import Iterator, Sequence

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, conv1x1

from goodtransfer.encoders.base import IMAGENET, Encoder, Normalization


class ResNet(Encoder):
    """ResNet v1.5 (stride in the 3x3), torchvision's blocks, names and initialisation.

    :func:`build` makes those that have a name.

    Args:
        name: what rebuilds it.
        block: torchvision's ``BasicBlock`` or ``Bottleneck``.
        depths: blocks of stages 2 to 5.
        width: channels of the stem; below 64 for small images and tests.
        normalization: applied first; None for input that is normalised already.
        caffe: the stride of a bottleneck is in its first 1x1, as the original ResNet's weights want
            it (protocol 3).

    >>> ResNet("resnet10w8", BasicBlock, (1, 1, 1, 1), width=8).strides
    {1: 2, 2: 4, 3: 8, 4: 16, 5: 32}
    """

    def __init__(
        self,
        name: str,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        width: int = 64,
        normalization: Normalization | None = IMAGENET,
        *,
        caffe: bool = False,
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
            if caffe and block is Bottleneck:
                blocks[0].conv1.stride, blocks[0].conv2.stride = blocks[0].conv2.stride, (1, 1)
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


RESNETS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    "10": (BasicBlock, (1, 1, 1, 1)),
    "18": (BasicBlock, (2, 2, 2, 2)),
    "34": (BasicBlock, (3, 4, 6, 3)),
    "50": (Bottleneck, (3, 4, 6, 3)),
    "101": (Bottleneck, (3, 4, 23, 3)),
}


def resnet_name(block: type[nn.Module], depths: tuple[int, ...], width: int) -> str | None:
    """The name that builds such a ResNet, or None."""
    for depth, known in RESNETS.items():
        if known == (block, depths):
            return f"resnet{depth}" + (f"w{width}" if width != 64 else "")
    return None
