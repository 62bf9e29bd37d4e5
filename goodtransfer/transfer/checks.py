"""What every transfer task asks of its encoder and data at set-up, in one sentence each."""

from collections.abc import Sequence
from typing import Any

import torch

from goodtransfer.encoders import Encoder

_SIDE = 64  # pixels of the trial images


@torch.no_grad()
def check_encoder(encoder: Encoder, stages: Sequence[int], task: str) -> None:
    """Encode two images, and see that the stages are there and tell the images apart.

    Args:
        encoder: on any device; its mode and statistics stay as they are.
        stages: that the task needs.
        task: what to call it in the message.

    Raises:
        ValueError: for a stage the encoder has not, or features that are NaN, infinite or constant.
    """
    missing = [stage for stage in stages if stage not in encoder.strides]
    if missing:
        raise ValueError(
            f"Expected an encoder with stage {_listed(stages)} for {task}, but {encoder.name} has "
            f"stage {_listed(encoder.strides)} and lacks {_listed(missing)}: take a ResNet, or a "
            "torchvision or timm network that gives a map at each of these strides."
        )
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, _SIDE, _SIDE, generator=generator).to(encoder.mean)
    trained = [module for module in encoder.modules() if module.training]  # norms may be frozen
    found = encoder.eval()(images, stages=tuple(stages))
    for module in trained:
        module.training = True
    for stage, features in found.items():
        first, second = features.float()
        fault = None
        if not features.isfinite().all():
            fault = "NaN or infinite"
        elif (first - second).abs().max() <= 1e-6 * first.abs().max():
            fault = "the same for any image"
        if fault:
            raise ValueError(
                f"Expected features of {encoder.name} that tell images apart for {task}, but those "
                f"of stage {stage} are {fault}: check its weights, which training may have ruined."
            )


def resolve_classes(num_classes: int | None, data: Any, task: str) -> int:
    """The number of classes, from the task's argument or from the data module it is run with.

    Raises:
        ValueError: where neither tells it, or the two differ.
    """
    there = getattr(data, "num_classes", None)
    if num_classes is None and there is None:
        raise ValueError(
            "Expected the number of classes, but num_classes=None and there is no data module to "
            f"ask: pass {task}(num_classes=...)."
        )
    if None not in (num_classes, there) and num_classes != there:
        raise ValueError(
            f"Expected a data module of {num_classes} classes, as num_classes says, but "
            f"{type(data).__name__} has {there}: leave num_classes=None to take its number."
        )
    return int(num_classes if there is None else there)  # type: ignore[arg-type]


def _listed(stages: Any) -> str:
    return ", ".join(map(str, sorted(stages)))
