"""NT-Xent, SimCLR's loss (Chen et al. 2020a, Eq. 1).

Shapes: N = images, R = views of one rank (twice its images), S = views of all ranks, C = feature
dimension.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from goodtransfer.losses.infonce import full_precision


def nt_xent(first: Tensor, second: Tensor, *, temperature: float) -> Tensor:
    """Mean NT-Xent loss over the 2N views, as the paper's Algorithm 1 has it.

    ``-log(exp(v.p/t) / sum over all other views w of exp(v.w/t))``, where p is the image's other view.
    The official code adds the means of both directions, which is twice this.

    Args:
        first: (N, C), unit length in the paper; any scale is computed correctly.
        second: (N, C), the other view of each image.
        temperature: t, above 0.

    Returns:
        The mean, in fp32 (fp64 for fp64 views), also under autocast.

    Raises:
        ValueError: for shapes that do not fit, or a temperature that is not above 0.

    >>> a, b = torch.eye(2)
    >>> nt_xent(torch.stack([a, b]), torch.stack([a, b]), temperature=1.0)  # log(e + 2) - 1
    tensor(0.5514)
    """
    if first.ndim != 2 or first.shape != second.shape:
        raise ValueError(
            "Expected `first` and `second` of one shape (N, C), but got "
            f"{tuple(first.shape)} and {tuple(second.shape)}."
        )
    losses, _ = nt_xent_rows(torch.cat([first, second]), temperature=temperature)
    return losses.mean()


def nt_xent_rows(
    views: Tensor, everything: Tensor | None = None, start: int = 0, *, temperature: float
) -> tuple[Tensor, Tensor]:
    """As :func:`nt_xent`, for each view by itself.

    Takes R x S similarities, three times over with the gradient: 3 MiB for 256 images on one device,
    768 MiB for 4,096.

    Args:
        views: (R, C), the first views of R / 2 images and then the second, in the same order.
        everything: (S, C), the views to compare with, these among them; None for these alone.
        start: row of ``everything`` where ``views`` begin.
        temperature: t, above 0.

    Returns:
        The losses (R,), and whether the positive has the largest logit, bool (R,).

    Raises:
        ValueError: for a temperature that is not above 0.

    >>> views = torch.eye(2)[[0, 1, 0, 0]]  # of the second image the views are unlike
    >>> nt_xent_rows(views, temperature=1.0)
    (tensor([0.8620, 1.0986, 0.8620, 1.8620]), tensor([ True,  True,  True, False]))
    """
    if not temperature > 0:
        raise ValueError(f"Expected argument `temperature` to be above 0, but got {temperature}.")
    count = len(views)
    itself = torch.arange(start, start + count, device=views.device)
    partner = itself.roll(count // 2)
    with torch.autocast(views.device.type, enabled=False):
        keys = full_precision(views if everything is None else everything)
        logits = full_precision(views) / temperature @ keys.T
        logits = logits.scatter_(1, itself.unsqueeze(1), -torch.inf)
        losses = F.cross_entropy(logits, partner, reduction="none")
    won = logits.gather(1, partner.unsqueeze(1)).squeeze(1) >= logits.amax(1)
    return losses, won
