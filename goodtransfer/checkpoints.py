"""Checkpoints that are whole or not there: written aside, checked, and put in place in one step.

Lightning serialises into memory and moves a file out of TMPDIR: across file systems a kill leaves half a
file under the final name, and nothing is forced to the disk. This takes its place:

>>> import pytorch_lightning as pl
>>> trainer = pl.Trainer(plugins=[SafeCheckpointIO()], logger=False, accelerator="cpu")
"""

import contextlib
import errno
import os
import pickle
import re
import shutil
import socket
import time
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from lightning_fabric.plugins import TorchCheckpointIO

Thinned = Literal["whole", "bf16", "none"]
BEFORE = ".before"  # of the file that was there under the same name
_STALE = 3600  # seconds after which nobody still writes a file that has not changed
_ASIDE = re.compile(r"\.(?P<name>.+)\.(?P<host>[^.]+)\.(?P<pid>\d+)\.tmp")
# What reading a file that is cut off or damaged raises.
_DAMAGE = (RuntimeError, EOFError, OSError, pickle.UnpicklingError, zipfile.BadZipFile, KeyError)


class SafeCheckpointIO(TorchCheckpointIO):
    """Saves so that a kill, a full disk or a folder gone leaves the last good file, and reads that.

    A checkpoint is written beside its place, forced to the disk, read back against its checksums, and only
    then given its name; the one before it is kept beside it as ``NAME.before``, be it of the same name or
    one that Lightning would remove. A file that is damaged all the same is not read: the newest whole one
    before it is, with a warning.

    Args:
        queue: what is kept of the keys of a MoCo queue, which at K = 2^20 are 512 MiB: ``"whole"``;
            ``"bf16"``, half of that, so that a resumed run has negatives rounded to 8 bits; ``"none"``,
            so that it starts with an empty queue, as a new run does, and needs K / batch steps to fill
            it. Only a whole one resumes bit for bit.
        before: keep the file before.

    Raises:
        OSError: from saving, of the kind that the machine gave (``ENOSPC`` for a full disk), in a
            sentence that names the last good file.
        ValueError: for another ``queue``.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     io, file = SafeCheckpointIO(), Path(folder, "last.ckpt")
    ...     for step in (1, 2):
    ...         io.save_checkpoint({"step": step}, file)
    ...     io.load_checkpoint(file), sorted(kept.name for kept in Path(folder).iterdir())
    ({'step': 2}, ['last.ckpt', 'last.ckpt.before'])
    """

    def __init__(self, *, queue: Thinned = "whole", before: bool = True) -> None:
        if queue not in ("whole", "bf16", "none"):
            raise ValueError(f"Expected queue to be 'whole', 'bf16' or 'none', but got {queue!r}.")
        self.queue, self.before = queue, before
        # Saved last, or read, and before that.
        self._newest: Path | None = None
        self._second: Path | None = None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint; at an address that is no folder of this machine, as Lightning does."""
        if "://" in str(path):
            return super().save_checkpoint(checkpoint, path, storage_options)
        path = Path(path)
        if self.queue != "whole":
            checkpoint = {**checkpoint, "state_dict": thinned(checkpoint["state_dict"], self.queue)}
        aside = path.with_name(f".{path.name}.{_host()}.{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            sweep(path.parent)
            _write(checkpoint, aside)
            if self.before and path.exists() and damage(path) is None:  # else the good one stays
                os.replace(_linked(path), path.with_name(path.name + BEFORE))
            os.replace(aside, path)
            _force(path.parent)
            if path != self._newest:
                self._newest, self._second = path, self._newest
        except (OSError, RuntimeError) as error:
            raise _told(path, error) from error
        finally:
            with contextlib.suppress(OSError):  # there is none to be removed
                aside.unlink()

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint, or where it is damaged the newest whole one before it."""
        if "://" in str(path):
            return super().load_checkpoint(path, map_location, weights_only)
        sweep(Path(path).parent)
        whole = newest_whole(Path(path))
        self._newest = Path(path)
        return super().load_checkpoint(whole, map_location, weights_only)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint and the one before it; the last but one stays, as that before the last."""
        if "://" in str(path):
            super().remove_checkpoint(path)
            return
        path = Path(path)
        before, newest = path.with_name(path.name + BEFORE), self._newest
        if self.before and newest is not None and path == self._second:
            whole = next((f for f in (path, before) if f.is_file() and damage(f) is None), None)
            if whole is not None and newest.parent == path.parent:
                os.replace(whole, newest.with_name(newest.name + BEFORE))
        super().remove_checkpoint(path)
        before.unlink(missing_ok=True)


def newest_whole(path: Path) -> Path:
    """The file itself if it is whole, else the newest whole checkpoint before it, with a warning.

    That is its ``NAME.before``, or an older one whose name differs in numbers alone, as of other epochs;
    any other may be of another run.

    Args:
        path: of a checkpoint.

    Raises:
        FileNotFoundError: for a path without a file, or without a file of that name before.
        ValueError: where none is whole.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     file = Path(folder, "last.ckpt")
    ...     SafeCheckpointIO().save_checkpoint({"step": 1}, file)
    ...     newest_whole(file).name
    'last.ckpt'
    """
    before = path.with_name(path.name + BEFORE)
    if not path.is_file() and not before.is_file():
        raise FileNotFoundError(f"Expected a checkpoint at {path}, but there is none.")
    fault = damage(path) if path.is_file() else "it is gone"
    if fault is None:
        return path
    others = [*path.parent.glob("*.ckpt"), *path.parent.glob(f"*.ckpt{BEFORE}")]
    limit = path.stat().st_mtime_ns if path.is_file() else None
    dated = {f: f.stat().st_mtime_ns for f in others if f.is_file() and _kind(f) == _kind(path)}
    older = [f for f, time in dated.items() if limit is None or time <= limit]
    older = sorted({*older} - {path, before}, key=lambda file: dated[file], reverse=True)
    for other in (before, *older):
        if other.is_file() and damage(other) is None:
            warnings.warn(
                f"{path} is damaged ({fault}): going on from the one before, {other.name}.",
                stacklevel=3,
            )
            return other
    whole = ", ".join(file.name for file in _good(path))
    raise ValueError(
        f"Expected a whole checkpoint at {path}, but it is damaged ({fault}), and "
        + (f"of its run none is known before it: go on from one of {whole}, if it is of this run."
           if whole else
           "no other in its folder is whole: start over, or from a copy elsewhere.")
    )  # fmt: skip


def _kind(path: Path) -> str:
    """A name without its numbers: what checkpoints of one run have in common."""
    return re.sub(r"-?\d+(\.\d+)?(e[+-]?\d+)?", "#", path.name.removesuffix(BEFORE))


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint file; None where every part agrees with its checksum."""
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
        return None if bad is None else f"{bad} is not what was written"
    except _DAMAGE as error:
        return f"{type(error).__name__}: {error}"


def thinned(state: dict[str, Any], queue: Thinned) -> dict[str, Any]:
    """A state dict with the keys of every queue rounded, or left out as if nothing had been enqueued."""
    found = dict(state)
    for name in [name for name in state if name.endswith("queue.keys")]:
        prefix = name.removesuffix("keys")
        if queue == "bf16":
            found[name] = state[name].to(torch.bfloat16)
        else:
            for part in ("keys", "labels", "indices"):
                found[prefix + part] = state[prefix + part][:0].clone()
            for part in ("pointer", "filled"):
                found[prefix + part] = torch.zeros_like(state[prefix + part])
    return found


def sweep(folder: Path) -> list[Path]:
    """Remove what killed runs were writing, and name it.

    Those of this machine, and those of others that have not changed for an hour.
    """
    gone = []
    for file in folder.glob(".*.tmp"):
        match = _ASIDE.fullmatch(file.name)
        with contextlib.suppress(
            OSError
        ):  # another user's, on a disk that is read-only, gone by now
            if match and not _written(file, match["host"], int(match["pid"])):
                file.unlink()
                gone.append(file)
    return gone


def _written(file: Path, host: str, pid: int) -> bool:
    """Whether somebody may still be writing it."""
    if host == _host():
        return _alive(pid)
    return time.time() - file.stat().st_mtime < _STALE


def _host() -> str:
    return re.sub(r"[^\w-]", "-", socket.gethostname()) or "here"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def _write(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a file, force it to the disk, and hold it to its checksums."""
    with path.open("wb") as file:
        torch.save(checkpoint, file)
        file.flush()
        os.fsync(file.fileno())
    if fault := damage(path):
        raise OSError(errno.EIO, f"what was written cannot be read back ({fault})")


def _linked(path: Path) -> Path:
    """A second name of a file, to be moved over an older one; a copy where there are no links."""
    second = path.with_name(f".{path.name}{BEFORE}.{_host()}.{os.getpid()}.tmp")
    second.unlink(missing_ok=True)
    try:
        os.link(path, second)
    except OSError:
        shutil.copyfile(path, second)
    return second


def _force(folder: Path) -> None:
    """Force the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _told(path: Path, error: OSError | RuntimeError) -> OSError:
    """The fault of the machine in a sentence, with its number."""
    cause: BaseException | None = error
    while cause is not None and not (isinstance(cause, OSError) and cause.errno):
        cause = cause.__context__  # torch, in closing, stumbles over what went wrong before
    number = cause.errno if isinstance(cause, OSError) else None
    why = os.strerror(number) if number else str(error)
    kept = next((f"the last good one is {file}" for file in _good(path)), "there is none before it")
    told = OSError(
        f"Expected to save {path}, but could not: {why}. Of its folder {kept}: make room there, or name "
        "another folder, and go on from that file."
    )
    told.errno = number or errno.EIO
    return told


def _good(path: Path) -> Iterator[Path]:
    """Whole checkpoints in the folder, newest first, as far as it can be read."""
    try:
        files = [f for f in path.parent.glob("[!.]*.ckpt*") if f.is_file()]
        for file in sorted(files, key=lambda file: file.stat().st_mtime_ns, reverse=True):
            if damage(file) is None:
                yield file
    except OSError:
        return
