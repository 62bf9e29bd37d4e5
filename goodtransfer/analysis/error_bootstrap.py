"""How sure a diagnosis is, and a difference of two: the paired bootstrap over images.

A resample draws as many images as there are, with replacement; an image drawn twice counts twice,
with its objects and its detections (see ``measure``). All models are read off the same resamples.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from goodtransfer.analysis.error_measures import flat, measure, with_mean
from goodtransfer.analysis.errors import Diagnosis
from goodtransfer.metrics.voc import Floats, Ints

_AT_ONCE = 50  # resamples: what is gathered for a class then stays in the cache


class Estimate(NamedTuple):
    """Values and the ends of their 95 % intervals; NaN is undefined."""

    value: Floats
    low: Floats
    high: Floats

    def verdicts(self) -> Any:
        """Of differences: larger, smaller, or within noise, where the interval has 0 in it."""
        cases = [np.isnan(self.low), self.low > 0, self.high < 0]
        return np.select(cases, ["undefined", "larger", "smaller"], "within noise")


def bootstrap(
    diagnoses: Sequence[Diagnosis],
    resamples: int = 1000,
    *,
    seed: int = 0,
    progress: bool = False,
    **options: Any,
) -> Floats:
    """The measures of M models under the same resamples of the images (M, resamples, C, Q).

    Args:
        diagnoses: of M models on the same ground truth.
        resamples: how many.
        seed: of the images that are drawn.
        progress: show a bar.
        options: of :func:`measure`.

    Raises:
        ValueError: for models that were tested on different images.
    """
    if len({(tuple(d.truth.class_names), tuple(d.truth.images)) for d in diagnoses}) != 1:
        raise ValueError(
            "Expected models that were diagnosed on the same images and classes, but theirs differ: "
            "a paired comparison needs one ground truth."
        )
    rng, images = np.random.default_rng(seed), len(diagnoses[0].truth.images)
    found: list[list[Floats]] = [[] for _ in diagnoses]
    with tqdm(total=resamples, desc="bootstrap", unit="resample", disable=not progress) as bar:
        for done in range(0, resamples, _AT_ONCE):
            weights = _drawn(rng, images, min(_AT_ONCE, resamples - done))
            for parts, diagnosis in zip(found, diagnoses, strict=True):
                parts.append(flat(measure(diagnosis, weights, **options)))
            bar.update(weights.shape[1])
    return np.stack([np.concatenate(parts) for parts in found])


def _drawn(rng: np.random.Generator, images: int, resamples: int) -> Ints:
    """How often each image is drawn (I, resamples)."""
    draws = rng.integers(images, size=(resamples, images))
    draws += images * np.arange(resamples)[:, None]
    counts = np.bincount(draws.ravel(), minlength=draws.size).reshape(resamples, images)
    return np.ascontiguousarray(counts.T)


def estimate(values: Floats, samples: Floats) -> Estimate:
    """Values (C, Q) and their mean over the classes (C + 1, Q), with percentile intervals.

    Of a difference of models pass the differences: its mean is over the classes that both have. A
    resample where a value is undefined does not count for its interval. The intervals are plain
    percentiles: those of AP lie a little high, since the noise of a resample lifts the best precision
    at a recall or more; in differences most of that cancels.
    """
    samples = with_mean(np.where(np.isfinite(values), samples, np.nan))
    values = with_mean(values)
    ends = np.full((2, *values.shape), np.nan)
    known = np.isfinite(values) & np.isfinite(samples).any(0)
    if known.any():
        ends[:, known] = np.nanpercentile(samples[:, known], [2.5, 97.5], axis=0)
    return Estimate(values, *ends)
