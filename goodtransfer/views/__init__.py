"""Views: one random augmentation of an image. Recipes by name, and the batch they arrive in."""

from goodtransfer.views.batch import Batch, as_batch, check_range
from goodtransfer.views.recipes import (
    RECIPES,
    Recipe,
    center,
    linear,
    moco_v1,
    moco_v2,
    recipe,
    supervised,
)

__all__ = [
    "RECIPES",
    "Batch",
    "Recipe",
    "as_batch",
    "center",
    "check_range",
    "linear",
    "moco_v1",
    "moco_v2",
    "recipe",
    "supervised",
]
