"""What others wrote: read whole but never without end, and shown in an error on one line. No torch here."""

import errno
import json
import os
import reprlib
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_LIST = 2**30  # bytes of a text; ImageNet-21k's 14 million names take less


def content(path: str | Path, at_most: int | None = None) -> bytes:
    """All bytes of a file.

    Args:
        path: of the file.
        at_most: a larger one is not read: it need not take any room on disk to claim a terabyte.

    Raises:
        OSError: with ``strerror`` and the path; also for what a link or an archive can put in the place
            of a file and that would be read for ever, a pipe or a device.
        ValueError: for a path with a NUL.
    """
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "Neither file nor folder", str(path))
    if at_most is not None and status.st_size > at_most:
        words = f"{os.strerror(errno.EFBIG)}: {status.st_size:,} of at most {at_most:,} bytes"
        raise OSError(errno.EFBIG, words, str(path))
    return Path(path).read_bytes()


def lines(path: Path) -> Iterator[str]:
    """The lines of a list in UTF-8; bytes that are none are kept, as in names of files.

    Raises:
        FileNotFoundError: where there is no file.
        ValueError: for one that no list is as large as.
    """
    if not path.is_file():
        raise FileNotFoundError(f"Expected a list at {path}, but there is no such file: add it.")
    if (size := path.stat().st_size) > _LIST:
        raise ValueError(
            f"Expected a list of at most {_LIST:,} bytes at {path}, but it has {size:,}: replace it."
        )
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as opened:
        yield from opened


def parsed_json(path: str | Path, at_most: int | None = None) -> Any:
    """What a JSON file says.

    Args:
        path: of the file.
        at_most: bytes; a larger one is not read.

    Raises:
        OSError: as :func:`content`.
        ValueError: for what is no JSON, or is nested deeper than Python can follow.
    """
    try:
        return json.loads(content(path, at_most))
    except (ValueError, RecursionError, MemoryError) as error:
        raise ValueError(
            f"Expected JSON at {path}, but it cannot be parsed ({error or type(error).__name__}): "
            "replace the file."
        ) from error


class _Short(reprlib.Repr):
    """As ``repr``, without walking through all of a large value or down a deep one."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxlong, self.maxother = 5, 200, 60, 200
        self.maxdict = self.maxlist = self.maxtuple = 12

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        """In its own order, in which people know the entries of their file."""
        if level <= 0 and x:
            return "{...}"
        shown = [
            f"{self.repr1(key, level - 1)}: {self.repr1(value, level - 1)}"
            for _, (key, value) in zip(range(self.maxdict), x.items(), strict=False)
        ]
        return "{" + ", ".join(shown + ["..."] * (len(x) > self.maxdict)) + "}"


_SHORT = _Short()


def shown(value: Any, at_most: int = 200) -> str:
    r"""A value as Python writes it, cut.

    >>> shown({"b": [1, 2], "a": "\n"})
    "{'b': [1, 2], 'a': '\\n'}"
    >>> deep = []
    >>> for _ in range(100_000):
    ...     deep = [deep]
    >>> shown(deep)
    '[[[[[[...]]]]]]'
    """
    return _SHORT.repr(value)[:at_most]


def plain(text: str, at_most: int = 200) -> str:
    r"""A name on one line: what cannot be printed is written as Python writes it, what is long is cut.

    >>> plain("layer1.0.conv1"), plain("a\nb\x1b[2J")
    ('layer1.0.conv1', 'a\\nb\\x1b[2J')
    """
    text = text if len(text) <= at_most else f"{text[:at_most]}..."
    return text if text.isprintable() else repr(text)[1:-1]
