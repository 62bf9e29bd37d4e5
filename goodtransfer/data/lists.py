"""Lists that come with data sets: where they lie, and what they say of each image."""

import os
from array import array
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from goodtransfer.data.files import inside
from goodtransfer.data.skip import Skips
from goodtransfer.foreign import lines, shown


def read_list(
    source: Path, skips: Skips, numbers: range
) -> tuple[NDArray[np.bytes_], NDArray[np.int64]]:
    """A list of lines ``a/abbey/1.jpg 0``, packed: names (N,) without a first slash, numbers (N,).

    Args:
        source: the text file.
        skips: what to do about a line that is no such pair.
        numbers: those that may stand behind a name.

    Raises:
        FileNotFoundError: for a missing list.
    """
    names, read = [], array("q")
    for place, line in enumerate(lines(source), 1):
        try:
            words, number = line.split()
            name, value = inside(words.lstrip("/"), source), int(number)
            if value not in numbers:
                raise ValueError
        except ValueError:
            if line.strip():
                skips.leave_out(_misread(line, place, source, numbers))
            continue
        names.append(os.fsencode(name))
        read.append(value)
    return np.array(names, dtype=np.bytes_), np.array(read, dtype=np.int64)


def _misread(line: str, place: int, source: Path, numbers: range) -> ValueError:
    return ValueError(
        f"Expected the path of an image below its folder and a number from {numbers.start} to "
        f"{numbers.stop - 1} in line {place} of {source}, but found {shown(line.strip())}: correct "
        "the line, or remove it."
    )


def found(root: Path, *places: str, tree: str) -> Path:
    """The first of the places below the root where there is something.

    Raises:
        FileNotFoundError: with the expected tree, where there is nothing.
    """
    for place in places:
        if (root / place).exists():
            return root / place
    raise FileNotFoundError(
        f"Expected {' or '.join(places)} in {root}, but there is no such file or folder. "
        f"The expected tree is:\n{tree}"
    )
