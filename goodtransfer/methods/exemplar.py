"""Exemplar pretraining, the paper's method (Sec. 3, Eq. 2)."""

from typing import Literal

from torch import nn

from goodtransfer.methods.moco import Exclude, MoCo, Unfilled
from goodtransfer.optim import Schedule


class ExemplarMoCo(MoCo):
    """MoCo whose negatives are only the keys of *other* classes.

    "we pull away the true negatives of each training instance without enforcing any constraint on
    the positives" (Sec. 1). One positive, the image's own second view; queue keys that share the
    query's label are left out of the denominator, neither positive nor negative.

    The defaults are Exemplar-v2 of Tables 3 and 10. Exemplar-v1 is
    ``ExemplarMoCo(temperature=0.07, mlp=False, schedule="step", views="moco_v1")``.

    Args: those of :class:`MoCo`; needs labels. An image labelled -1 keeps all its negatives.
    """

    def __init__(
        self,
        encoder: str | nn.Module = "resnet50",
        *,
        queue_size: int = 2**20,
        temperature: float = 0.1,
        momentum: float = 0.999,
        dim: int = 128,
        mlp: bool = True,
        exclude: Exclude = "label",
        unfilled: Unfilled = "noise",
        bn_groups: int | Literal["auto"] = "auto",
        lr: float = 0.03,
        weight_decay: float = 1e-4,
        schedule: Schedule = "cosine",
        views: str = "moco_v2",
        allow_queue_resize: bool = False,
    ) -> None:
        super().__init__(
            encoder,
            queue_size=queue_size,
            temperature=temperature,
            momentum=momentum,
            dim=dim,
            mlp=mlp,
            exclude=exclude,
            unfilled=unfilled,
            bn_groups=bn_groups,
            lr=lr,
            weight_decay=weight_decay,
            schedule=schedule,
            views=views,
            allow_queue_resize=allow_queue_resize,
        )
