"""Views: one random augmentation of an image. Recipes by name, and the batch they arrive in."""

from goodtransfer.views.batch import Batch, as_batch, check_range
from goodtransfer.views.decode import MAX_PIXELS, ImageReadError, Pixels, decode
from goodtransfer.views.recipes import (
    RECIPES,
    RUNGS,
    Recipe,
    TwoViews,
    center,
    instdisc,
    ladder,
    linear,
    moco_v1,
    moco_v2,
    recipe,
    simclr,
    supervised,
)
from goodtransfer.views.steps import Operation, Step

__all__ = [
    "MAX_PIXELS",
    "RECIPES",
    "RUNGS",
    "Batch",
    "ImageReadError",
    "Operation",
    "Pixels",
    "Recipe",
    "Step",
    "TwoViews",
    "as_batch",
    "center",
    "check_range",
    "decode",
    "instdisc",
    "ladder",
    "linear",
    "moco_v1",
    "moco_v2",
    "recipe",
    "simclr",
    "supervised",
]
