"""Parameters and multiplications of our ResNets in closed form, so that planning needs no torch.

A multiply-add is one MAC and two FLOPs. Convolutions are counted; norms, activations and pooling are
not, as in ``torch.utils.flop_counter``, which says the same of the real encoders.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

STAGES = (1, 2, 3, 4, 5)
# Blocks of each stage, and whether they are bottlenecks: `encoders.resnet.RESNETS`, which needs torch.
DEPTHS = {
    "10": ((1, 1, 1, 1), False),
    "18": ((2, 2, 2, 2), False),
    "34": ((3, 4, 6, 3), False),
    "50": ((3, 4, 6, 3), True),
    "101": ((3, 4, 23, 3), True),
}


class Convolution(NamedTuple):
    """A convolution without bias, and the norm behind it.

    Attributes:
        stage: of the encoder, from 1.
        inputs, outputs: channels.
        kernel: its side.
        step: whether it makes the map smaller, where the stage does.
        beside: whether it is a shortcut's, which sees the map as the block does.
    """

    stage: int
    inputs: int
    outputs: int
    kernel: int
    step: bool = False
    beside: bool = False


def convolutions(encoder: str) -> Iterator[Convolution]:
    """Those of an encoder by name, in order; none of raw pixels, ``pixels224``.

    Raises:
        ValueError: for an encoder that is none of our ResNets.
    """
    if encoder.startswith("pixels"):
        return
    found = re.fullmatch(r"resnet(\d+)(?:w(\d+))?", encoder)
    if not found or found[1] not in DEPTHS:
        raise ValueError(
            f"Expected a ResNet such as resnet50 or resnet18w32 to count, but got {encoder!r}: "
            "other encoders must be built to be counted."
        )
    (depths, bottleneck), width = DEPTHS[found[1]], int(found[2] or 64)
    yield Convolution(1, 3, width, 7, step=True)
    channels = width
    for stage, depth in enumerate(depths, start=2):
        planes = width * 2 ** (stage - 2)
        out = 4 * planes if bottleneck else planes
        for block in range(depth):
            step = block == 0 and stage > 2
            if step or channels != out:
                yield Convolution(stage, channels, out, 1, step, beside=True)
            if bottleneck:
                yield Convolution(stage, channels, planes, 1)
                yield Convolution(stage, planes, planes, 3, step)
                yield Convolution(stage, planes, out, 1)
            else:
                yield Convolution(stage, channels, planes, 3, step)
                yield Convolution(stage, planes, out, 3)
            channels = out


def features(encoder: str) -> int:
    """Channels of the last map, which a head is put on."""
    if encoder.startswith("pixels"):
        return 3 * int(encoder.removeprefix("pixels")) ** 2
    return list(convolutions(encoder))[-1].outputs


def parameters(encoder: str) -> int:
    """Weights of the convolutions, and two for each channel of the norms."""
    return sum(c.inputs * c.outputs * c.kernel**2 + 2 * c.outputs for c in convolutions(encoder))


def state_bytes(encoder: str) -> int:
    """Bytes of the encoder's file: parameters and running statistics, fp32, a counter of each norm."""
    return 4 * parameters(encoder) + sum(8 * c.outputs + 8 for c in convolutions(encoder))


def macs(
    encoder: str,
    height: int,
    width: int,
    *,
    stages: Sequence[int] = STAGES,
    coarsest: int = 32,
) -> int:
    """Of one forward pass of some stages in a row.

    Args:
        encoder: by name.
        height: of the image, or of the map that the first of the stages takes.
        width: of the same.
        stages: those that run; a C4 detector runs the last one apart, on regions.
        coarsest: greatest stride, as of ``Encoder.dilated``.
    """
    count, stride = 0, 2 ** (stages[0] - 1)
    for c in convolutions(encoder):
        if c.stage not in stages:
            continue
        if c.stage == 2 and stride == 2:  # the pooling before it
            height, width, stride = _half(height), _half(width), 4
        out = height, width
        if c.step and stride < coarsest:
            out = _half(height), _half(width)
            if not c.beside:
                (height, width), stride = out, 2 * stride
        count += c.inputs * c.outputs * c.kernel**2 * out[0] * out[1]
    return count


def _half(side: int) -> int:
    """Of a map after an odd, padded kernel of step 2."""
    return (side + 1) // 2
