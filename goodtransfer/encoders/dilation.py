"""Maps as fine as segmentation wants: strides exchanged for dilation, in any trunk."""

from typing import Any

import torch
from torch import Tensor, nn

_LAYERS = (nn.Conv2d, nn.MaxPool2d)
_SIDE = 256  # pixels of the trial image


def coarsest(encoder: Any, stride: int) -> None:
    """Change the layers of an encoder so that none gives a map coarser than ``stride``.

    Args:
        encoder: an ``Encoder``; what it was built with is noted at its layers the first time, so that
            a second call starts from there.
        stride: in pixels; 32 or more gives back what was built.
    """
    layers = [module for module in encoder.modules() if isinstance(module, _LAYERS)]
    for layer in layers:
        if not hasattr(layer, "as_built"):
            built = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
            layer.as_built = built  # type: ignore[assignment]
        _, layer.stride, layer.padding, layer.dilation = layer.as_built  # type: ignore
    if stride >= 32:
        return
    for layer, before in _strides_before(encoder, layers).items():
        _spread(layer, max(1, before // stride), before, stride)


def _spread(layer: Any, rate: int, before: int, stride: int) -> None:
    """Run a layer that ran at stride ``before``, as built, at ``stride`` at most."""
    kernel, step, padding, dilation = (_pair(value) for value in layer.as_built)
    if before * step[0] > stride:
        layer.stride = tuple(max(1, stride // before) for _ in step)
    if max(kernel) == 1:
        return
    layer.dilation = tuple(d * rate for d in dilation)
    if isinstance(padding, str):
        return
    layer.padding = tuple(p * rate for p in padding)
    if layer.stride != step and not any(padding):  # a patch of the map, now at every pixel
        if isinstance(layer, nn.Conv2d):
            layer.padding = "same"  # such as ConvNeXt's
        else:  # such as VGG's; PyTorch pads a pooling by half its kernel at most
            layer.padding = tuple(min(rate * (k - 1), k) // 2 for k in kernel)


def _pair(value: Any) -> Any:
    return value if isinstance(value, str | tuple) else (value, value)


@torch.no_grad()
def _strides_before(encoder: Any, layers: list[Any]) -> dict[Any, int]:
    """Pixels of an image for each pixel that comes into a layer; those that see no map are left out."""
    found: dict[Any, int] = {}

    def note(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        side = given[0].shape[-1]
        if (
            given[0].ndim == 4 and side > 1
        ):  # one pixel: the whole image, of an attention to channels
            found[layer] = 2 ** round(torch.tensor(_SIDE / side).log2().item())

    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    training = encoder.training
    encoder.eval()
    try:
        image = torch.zeros(1, 3, _SIDE, _SIDE).to(encoder.mean)
        for _ in encoder.maps(image):
            pass
    finally:
        encoder.train(training)
        for hook in hooks:
            hook.remove()
    return found
