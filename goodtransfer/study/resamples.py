"""What columns could be with other test images: the bootstrap over what each of them scored."""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from goodtransfer.study.bars import Interval
from goodtransfer.study.results import Results

Floats: TypeAlias = NDArray[np.float64]
RESAMPLES = 500
# Of test sets of a thousand images, so many parts: what is gathered for a class then stays in the cache,
# and VOC07 AP takes less than half the time. Smaller sets are faster in one.
_PARTS, _LARGE = 10, 1000


class Resamples:
    """A study's cells, all of a kind under the same resamples of their test images.

    So what is computed of several columns or cells of a kind is paired. Each is made once, since many
    differences share cells.

    Args:
        results: of the study.
    """

    def __init__(self, results: Results) -> None:
        self._results = results
        self._weights: dict[
            str, list[NDArray[np.int64]]
        ] = {}  # by kind, parts of (images, RESAMPLES)
        self._made: dict[tuple[str, str], Floats] = {}

    def __call__(self, column: str, key: str) -> Floats:
        """A column of a cell (RESAMPLES,); NaN where it is not of images, or they were not kept.

        Raises:
            ValueError: for a cell that was tested on another number of images than others of its kind.
        """
        if (column, key) not in self._made:
            self._made[column, key] = self._make(column, key)
        return self._made[column, key]

    def interval(self, column: str, key: str) -> Interval | None:
        """From where to where a column of a cell could lie, in 95 of 100."""
        return middle(self(column, key))

    def _make(self, column: str, key: str) -> Floats:
        from goodtransfer.study import per_image

        kept = per_image.read(column, self._results.folder(key))
        if kept is None:
            return np.full(RESAMPLES, np.nan)
        images, kind = per_image.images_of(column, kept), per_image.COLUMNS[column].kind
        if kind not in self._weights:
            weights = per_image.drawn(images, RESAMPLES)
            parts = np.split(weights, _PARTS if images >= _LARGE else 1, axis=1)
            self._weights[kind] = [np.ascontiguousarray(part) for part in parts]
        weighted = self._weights[kind]
        if len(weighted[0]) != images:
            raise ValueError(
                f"Expected cells that were tested on the same images, but {column} is of "
                f"{len(weighted[0])} and {images} images: delete {self._results.folder(key)} and run again."
            )
        make = per_image.COLUMNS[column].make
        return np.concatenate([make(kept, part) for part in weighted])


def middle(samples: Floats) -> Interval | None:
    """The middle 95 % of the resamples that have a value; None where none has."""
    known = samples[np.isfinite(samples)]
    return Interval(*np.percentile(known, [2.5, 97.5]).tolist()) if len(known) else None
