"""What is checked before a method's first step, each with one sentence that says what to do."""

import warnings
from typing import Any, get_args

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from goodtransfer.distributed import gather, world_size
from goodtransfer.encoders import Encoder
from goodtransfer.momentum import KeyQueue, MemoryBank
from goodtransfer.views import as_batch, check_range


def trained(encoder: Encoder) -> Encoder:
    """An encoder that learns, also one that comes frozen from a readout; a part that is frozen stays so."""
    parameters = list(encoder.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        warnings.warn(
            "The encoder came frozen, as a readout leaves it: this method trains it again. To keep it "
            "frozen, call method.encoder.requires_grad_(False).eval() after this.",
            stacklevel=3,
        )
        encoder.requires_grad_().train()
    return encoder


def check_positive(**arguments: float) -> None:
    """Refuse numbers that are not above 0."""
    for name, value in arguments.items():
        if not value > 0:
            raise ValueError(f"Expected argument `{name}` to be above 0, but got {value}.")


def check_choice(name: str, value: str, choices: Any) -> None:
    """Refuse a word that is not among those of a Literal."""
    if value not in get_args(choices):
        words = ", ".join(map(repr, get_args(choices)))
        raise ValueError(f"Expected argument `{name}` to be one of {words}, but got {value!r}.")


def check_batch(
    method: pl.LightningModule, batch: Any, encoder: Encoder, *, views: int, needs: str = ""
) -> None:
    """Refuse batches with other views than the method needs, normalised input, missing labels.

    Args:
        method: for its name.
        batch: whatever the loader gave.
        encoder: its normalisation decides whether input must be in [0, 1].
        views: how many per image.
        needs: ``"label"`` or ``"index"``, or nothing.
    """
    name = type(method).__name__
    given = as_batch(batch)
    if len(given.views) != views:
        s = "s" * (views > 1)
        raise ValueError(
            f"Expected {views} view{s} per image for {name}, but the loader gives "
            f"{len(given.views)}: use views={getattr(method, 'views', None)!r} in the data module, "
            f"or a transform that returns {views} crop{s}."
        )
    for view in given.views:
        if view.is_floating_point() and encoder.normalization is not None:
            check_range(view)
    if needs and getattr(given, needs) is None:
        what = {
            "label": "labels, (N,) integers (exclude='label' is Eq. 2: same-class keys are no negatives)",
            "index": "image indices (exclude='image' leaves out an image's own earlier keys)",
        }[needs]
        raise ValueError(
            f"Expected {what} for {name}, but the loader gives none: batches are "
            "((view, view), label, index). Without them use MoCoV2."
        )


def check_index(method: pl.LightningModule, index: Tensor | None, images: int) -> None:
    """Refuse batches whose images have no row in a memory bank of ``images``."""
    name = type(method).__name__
    if index is None:
        raise ValueError(
            f"Expected image indices for {name}, whose memory bank has a row for each image, but the "
            "loader gives none: batches are ((view,), label, index)."
        )
    low, high = int(index.min()), int(index.max())
    if low < 0 or high >= images:
        raise ValueError(
            f"Expected image indices from 0 to {images - 1} for {name}, but the loader gives {low} to "
            f"{high}: pass num_images=..., the number of images in the data set."
        )


def check_image_count(method: pl.LightningModule, images: int) -> None:
    """Refuse a data set with more images than a memory bank of ``images`` has rows."""
    found = _image_count(method.trainer)
    if found is not None and found > images:
        raise ValueError(
            f"Expected at most {images:,} images, the rows of the memory bank, but the training set "
            f"has {found:,}: pass {type(method).__name__}(num_images={found})."
        )


def refuse_sync_batch_norm(method: pl.LightningModule) -> None:
    """SyncBN over all ranks gives a query and its key the same statistics again."""
    # Lightning converts under DDP only; the flag, which it keeps here, is refused wherever it is set.
    asked = method.trainer._accelerator_connector._layer_sync
    if asked is not None or any(isinstance(m, nn.SyncBatchNorm) for m in method.modules()):
        raise ValueError(
            f"Expected plain batch norm, but got sync_batchnorm=True: it undoes the shuffling that "
            f"keeps {type(method).__name__} from cheating. Remove it from the Trainer."
        )


def refuse_half_parameters(method: pl.LightningModule) -> None:
    """A step vanishes in the digits of a half type: 1 - momentum of MoCo, LARS's 0.03 % of a length."""
    if any(p.dtype in (torch.bfloat16, torch.float16) for p in method.parameters()):
        raise ValueError(
            "Expected parameters in fp32, but got half precision: the small steps of "
            f"{type(method).__name__} are lost in its rounding. Use Trainer(precision='bf16-mixed')."
        )


def warn_of_one_bn_group(method: Any) -> None:
    """Warn when batch norm tells a key from the negatives."""
    has_bn = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in method.encoder.modules())
    if has_bn and world_size() == 1 and method.bn_groups == 1:
        warnings.warn(
            "With bn_groups=1 on one device a query and its key share batch norm statistics, which "
            "give the key away: use bn_groups='auto'.",
            stacklevel=2,
        )


def warn_of_local_batch_norm(method: pl.LightningModule) -> None:
    """Warn when the statistics of its rank tell a view's partner from the other ranks' views."""
    local = [
        m
        for m in method.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and not isinstance(m, nn.SyncBatchNorm)
    ]
    if local and world_size() > 1:
        warnings.warn(
            f"Expected batch norm over all {world_size()} ranks, as {type(method).__name__} has it, but "
            "that of each rank is its own, which helps to tell a positive from negatives of other "
            "ranks: use Trainer(sync_batchnorm=True).",
            stacklevel=2,
        )


def warn_of_own_images(method: Any) -> None:
    """Warn when the queue is as large as the data set: an image then meets its own old keys."""
    images = _image_count(method.trainer)
    size = method.queue_size
    if images is None or size < images:
        return
    filtered = method.exclude != "none"
    end = f"exclude={method.exclude!r} leaves them out" if filtered else "they count as negatives"
    warnings.warn(
        f"The queue ({size:,} keys) is as large as the data set ({images:,} images): once it is "
        f"full, a query meets about {size / images:.1f} earlier keys of its own image, "
        f"{1 / images:.2%} of its negatives; {end}. Use a queue_size well below {images:,}.",
        stacklevel=2,
    )


def warn_of_small_bank(method: Any) -> None:
    """Warn when NCE draws as many negatives as there are rows, which the softmax takes once each."""
    rows = len(method.bank)
    if method.loss == "nce" and method.negatives >= rows:
        warnings.warn(
            f"NCE draws {method.negatives:,} negatives from a memory bank of {rows:,} rows, where it "
            "costs more than all of them and tends to collapse: use loss='softmax'.",
            stacklevel=2,
        )


def check_equal_on_all_ranks(memory: KeyQueue | MemoryBank) -> None:
    """The memory is never synchronised, so it must be equal at the start and after a resume."""
    if world_size() == 1:
        return
    sums, _ = gather(memory.checksum().unsqueeze(0))
    if not torch.equal(sums, sums[:1].expand_as(sums)):
        name = {KeyQueue: "queue", MemoryBank: "memory bank"}[type(memory)]
        raise RuntimeError(
            f"Expected the same {name} on all ranks, but their checksums differ: resume every rank "
            "from the same checkpoint."
        )


def _image_count(trainer: pl.Trainer) -> int | None:
    loader = trainer.train_dataloader
    if not isinstance(loader, DataLoader) or loader.batch_size is None:
        return None  # several loaders, or items that are batches already
    try:
        return len(loader.dataset)  # type: ignore[arg-type]
    except TypeError:  # an iterable set
        return None
