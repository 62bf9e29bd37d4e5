"""Locks on files: one process at a time, and a process that ends lets go, however it ends."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


@contextmanager
def locked(path: Path, *, wait: bool = True, shared: bool = False) -> Iterator[TextIO]:
    """Hold a file, which is made where there is none; shared, beside others that share it.

    Raises:
        BlockingIOError: where another process holds it, unless it is to be waited for.
    """
    how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    file = _hold(path, how)
    with file:
        yield file


def _hold(path: Path, how: int) -> TextIO:
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+")
        except (FileNotFoundError, FileExistsError):
            if path.parent.exists() and not path.parent.is_dir():
                raise
            continue  # its folder was removed just now
        try:
            fcntl.flock(file, how)
        except BaseException:
            file.close()
            raise
        if _is(file, path):
            return file
        file.close()  # it was removed, with its folder, while we waited: another may hold the new one


def _is(file: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
