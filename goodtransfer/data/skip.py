"""What is done about images and annotations that cannot be read: raise, or skip and say so."""

import logging
from collections.abc import Callable
from typing import Literal, TypeVar

import torch
from torch.utils.data import get_worker_info

log = logging.getLogger(__name__)

OnError = Literal["raise", "skip"]
Loaded = TypeVar("Loaded")

_SHOWN = 20  # of the skipped, in the last message
_WORKERS = 1024  # at most, of a loader


class Skips:
    """Everything that a data module could not read.

    With ``"raise"`` the first fault ends the run, by an error that names the file. With ``"skip"``
    an entry that is found faulty at set-up is left out, and an image that is found faulty when it is
    read gives its place to the next one in the list: batches stay full, ranks stay in step, and
    which image comes depends on the data set alone. Each fault is logged once by the process that
    meets it; :meth:`report` counts and lists all of them.
    """

    def __init__(self, on_error: OnError) -> None:
        if on_error not in ("raise", "skip"):
            raise ValueError(
                f"Expected argument `on_error` to be 'raise' or 'skip', but got {on_error!r}."
            )
        self.on_error: OnError = on_error
        self._entries: list[str] = []
        self._readings: list[Reading] = []

    def leave_out(self, fault: Exception) -> None:
        """Raise the fault of an entry, or note that the entry is left out."""
        if self.on_error == "raise":
            raise fault
        self._entries.append(str(fault))
        log.warning("left out: %s", fault)

    def reading(self, count: int, path: Callable[[int], str]) -> "Reading":
        """What reads the ``count`` images of a data set; ``path`` names them.

        One for each list of files, however many loaders are made of it.
        """
        for known in self._readings:
            if known.path == path and known.count == count:
                return known
        made = Reading(count, path, self.on_error)
        self._readings += [made] if self.on_error == "skip" else []
        return made

    @property
    def skipped(self) -> list[str]:
        """Faults at set-up, then paths of images that could not be read, each once."""
        paths = [reading.path(number) for reading in self._readings for number in reading.faulty()]
        return self._entries + list(dict.fromkeys(paths))

    def report(self) -> None:
        """Log how many were skipped by this rank, and which."""
        skipped = self.skipped
        if skipped:
            more = f"\n  and {len(skipped) - _SHOWN} more" if len(skipped) > _SHOWN else ""
            lines = "".join(f"\n  {line}" for line in skipped[:_SHOWN])
            log.warning("%d images or entries were skipped:%s%s", len(skipped), lines, more)


class Reading:
    """Reads images by number, in any process; see :class:`Skips`."""

    def __init__(self, count: int, path: Callable[[int], str], on_error: OnError) -> None:
        self.count, self.path, self.on_error = count, path, on_error
        self._under_way = torch.full((_WORKERS,), -1)  # by worker, seen by the process that reports
        self._under_way.share_memory_()  # type: ignore[no-untyped-call]
        # In memory that worker processes share with the one that reports.
        self._faulty = torch.zeros(count if on_error == "skip" else 0, dtype=torch.bool)
        self._faulty.share_memory_()  # type: ignore[no-untyped-call]

    def faulty(self) -> list[int]:
        """Numbers of the images that could not be read so far."""
        return [int(number) for number in self._faulty.nonzero()]

    def under_way(self, worker: int) -> str | None:
        """The file that a worker process is reading, or died of."""
        number = int(self._under_way[worker])
        return None if number < 0 else self.path(number)

    def __call__(self, number: int, load: Callable[[int], Loaded]) -> Loaded:
        """``load(number)``; when skipping, that of the next image which can be read."""
        if self.on_error == "raise":
            return self._noted(number, load)
        for step in range(self.count):
            candidate = (number + step) % self.count
            if self._faulty[candidate]:
                continue
            try:
                return self._noted(candidate, load)
            except (OSError, ValueError) as fault:
                self._faulty[candidate] = True
                log.warning("skipped: %s", fault)
        raise ValueError(
            f"Expected images, but not one of {self.count} can be read; the first is "
            f"{self.path(0)}: the warnings above tell why."
        )

    def _noted(self, number: int, load: Callable[[int], Loaded]) -> Loaded:
        """``load(number)``; meanwhile it is known which file this worker process reads."""
        worker = get_worker_info()
        if worker is None:
            return load(number)
        self._under_way[worker.id] = number
        try:
            return load(number)
        finally:
            self._under_way[worker.id] = -1
