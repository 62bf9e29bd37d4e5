"""Exemplar pretraining, the paper's method (Sec. 3, Eq. 2)."""

from typing import Any

from torch import nn

from goodtransfer.methods.moco import Exclude, MoCo


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
        exclude: Exclude = "label",
        **arguments: Any,
    ) -> None:
        super().__init__(
            encoder,
            queue_size=queue_size,
            temperature=temperature,
            exclude=exclude,
            **arguments,
        )
