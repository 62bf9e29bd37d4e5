"""Error bars: how sure a mean over seeds is, and whether a difference is one."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import NamedTuple

# Student's t, two-sided 95 %, for 1 to 30 degrees of freedom; beyond, the normal distribution's is
# within 4 %.
_T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145,
    2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048,
    2.045, 2.042,
)  # fmt: skip


def half_width(values: Sequence[float]) -> float:
    """Of the 95 % interval of the mean, by Student's t; infinite for one value, NaN where one is not finite.

    >>> round(half_width([1.0, 2.0, 3.0]), 2)
    2.48
    """
    if len(values) < 2:
        return math.inf
    if not all(map(math.isfinite, values)):
        return math.nan  # `stdev` would raise
    t = _T95[len(values) - 2] if len(values) - 2 < len(_T95) else 1.96
    return t * stdev(values) / math.sqrt(len(values))


class Interval(NamedTuple):
    """From, to."""

    low: float
    high: float


class Difference(NamedTuple):
    """A - B, and what it could be instead.

    Attributes:
        value: mean over the seeds.
        seeds: 95 % interval over the seeds, paired; None for one seed.
        images: the same over the test images; None where what each scored is not kept.
    """

    value: float
    seeds: Interval | None
    images: Interval | None

    @property
    def intervals(self) -> list[Interval]:
        """Those that are known."""
        return [interval for interval in (self.seeds, self.images) if interval is not None]

    @property
    def verdict(self) -> str:
        """Larger or smaller where no interval has 0 in it; unknown without any, or where it is NaN."""
        if not self.intervals or not math.isfinite(self.value):
            return "unknown"
        if all(interval.low > 0 for interval in self.intervals):
            return "larger"
        return "smaller" if all(i.high < 0 for i in self.intervals) else "within noise"

    def within(self, margin: float) -> bool:
        """Whether it is sure to be less than a margin from 0, by every interval there is."""
        return bool(self.intervals) and all(
            -margin < i.low and i.high < margin for i in self.intervals
        )

    def __str__(self) -> str:
        """In words."""
        parts = [f"{self.value:+.2f}" if math.isfinite(self.value) else str(self.value)]
        if self.seeds is not None:
            parts.append(f"over seeds {self.seeds.low:+.2f} to {self.seeds.high:+.2f}")
        if self.images is not None:
            parts.append(f"over images {self.images.low:+.2f} to {self.images.high:+.2f}")
            parts += ["one seed"] if self.seeds is None else []
        return ", ".join([*parts, self.verdict])


def over_seeds(differences: Sequence[float]) -> Interval | None:
    """The interval of the mean of what each seed gave; None for one seed, or where one gave NaN."""
    half = half_width(differences)
    if not math.isfinite(half):
        return None
    mean = fmean(differences)
    return Interval(mean - half, mean + half)
