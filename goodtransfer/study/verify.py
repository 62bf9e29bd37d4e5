"""Whether a released encoder gives its published numbers again."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from goodtransfer.study.entries import Entry

# Standard deviation of a run, over five, as the official code reports it:
# https://github.com/facebookresearch/moco/blob/3b42c2a12afd20da783501e87c3ea837c054397c/detection/README.md
# The paper prints single numbers, and nobody the spread of its other columns.
SIGMA = {"voc07_AP": 0.2, "voc07_AP50": 0.2, "voc07_AP75": 0.4}
_Z = 1.96  # of 95 %


class Verified(NamedTuple):
    """A published number and ours.

    Attributes:
        column: its metric.
        published: as the paper has it.
        ours: mean over the seeds.
        sigma: standard deviation of one run; None where nobody told.
        bound: how far the two may be apart by chance, in 95 of 100 cases; None without sigma.
    """

    column: str
    published: float
    ours: float
    sigma: float | None
    bound: float | None

    @property
    def verdict(self) -> str:
        """Whether the difference is within the noise of the published number and of ours."""
        if self.bound is None:
            return "no σ is known"
        return "agrees" if abs(self.ours - self.published) <= self.bound else "differs"

    def __str__(self) -> str:
        """In words."""
        sigma = "" if self.sigma is None else f" ± {self.sigma:.1f}"
        bound = "" if self.bound is None else f", ± {self.bound:.2f} is within noise"
        gap = self.ours - self.published
        return (
            f"{self.column}: published {self.published:.1f}{sigma}, ours {self.ours:.2f}: "
            f"{gap:+.2f}{bound}: {self.verdict}"
        )


def verify(entries: Sequence[Entry]) -> list[Verified]:
    """Hold what is measured to what was published, where it was.

    The published number is one run's, ours the mean of n: their difference has a standard deviation of
    σ √(1 + 1/n).

    >>> print(*verify([Entry("voc07_AP", paper=48.4, ours=(48.9, 48.5))]))
    voc07_AP: published 48.4 ± 0.2, ours 48.70: +0.30, ± 0.48 is within noise: agrees
    """
    found = []
    for entry in entries:
        if entry.paper is None or entry.mean is None:
            continue
        sigma = SIGMA.get(entry.column)
        bound = None if sigma is None else _Z * sigma * math.sqrt(1 + 1 / len(entry.ours))
        found.append(Verified(entry.column, entry.paper, entry.mean, sigma, bound))
    return found
