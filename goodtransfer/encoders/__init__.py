"""Encoders: trunks without classifier, from own ResNets to any torchvision or timm network.

An encoder takes plain RGB (N, 3, H, W), uint8 or float in [0, 1], normalises it by itself and gives
its feature maps by stage: stage s has, in the usual networks, a stride of 2^s.
"""

from goodtransfer.encoders.base import IMAGENET, Encoder, Normalization, pooled
from goodtransfer.encoders.build import as_encoder, build, from_torchvision, torchvision_input
from goodtransfer.encoders.resnet import ResNet, resnet_name
from goodtransfer.encoders.trunks import OwnTrunk, Pixels, SequentialTrunk, TimmTrunk

__all__ = [
    "IMAGENET",
    "Encoder",
    "Normalization",
    "OwnTrunk",
    "Pixels",
    "ResNet",
    "SequentialTrunk",
    "TimmTrunk",
    "as_encoder",
    "build",
    "from_torchvision",
    "pooled",
    "resnet_name",
    "torchvision_input",
]
