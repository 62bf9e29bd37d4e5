"""A folder's choice of scale, data and tables (``study.json``): it stays while anyone works by it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TextIO

from goodtransfer.study.locks import locked
from goodtransfer.study.plan import Study


@contextmanager
def held(study: Study) -> Iterator[TextIO]:
    """Save a study's choice, and keep others from changing it; gives what holds it.

    Any number of processes hold one choice at once. It is changed by whoever is alone.

    Raises:
        ValueError: where another process works by another choice; nothing is changed then.
    """
    work = study.out / "work"
    with ExitStack() as stack:
        with locked(work / "choice.lock"):  # which is held for a moment: one begins after the other
            if not study.saved():
                try:
                    with locked(work / "working.lock", wait=False):
                        study.save()
                except BlockingIOError:
                    raise ValueError(
                        f"Expected {study.file} to stay as it is while another process works by it, "
                        "but other rows, seeds or data were asked for: wait for that process, leave "
                        "out the options to work beside it, or use another --out."
                    ) from None
            holds = stack.enter_context(locked(work / "working.lock", shared=True))
        yield holds
