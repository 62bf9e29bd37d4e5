"""A whole study, one cell at a time."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from tqdm import tqdm

from goodtransfer.study.plan import Study
from goodtransfer.study.results import Results


def run_study(study: Study) -> Path:
    """Make every cell that is not done, in order, and the report; return the report's path.

    Killed anywhere and called again, it redoes no finished cell. Something parallel would call
    ``goodtransfer study cell KEY`` instead: a cell needs nothing but its folder and its ``needs``.
    """
    cells, results = study.cells(), Results(study)
    study.save()  # only once its data have been found
    done = sum(results.done(cell.key) for cell in cells)
    progress = tqdm(cells, desc=f"study, scale {study.scale.name}", unit="cell", position=0)
    with progress as bar, _ctrl_c() as pressed:
        for cell in bar:
            if pressed():
                raise KeyboardInterrupt
            if not results.done(cell.key):
                from goodtransfer.study.cells import run_cell  # torch, only where it is needed

                run_cell(study, cell)
    if options := study.left_out():
        named = ", ".join(sorted(options))
        print(f"Rows and columns are left out whose images were not named: {named}.")
    report = study.out / "report.html"
    if not _newer(report, [study.file, *(results.folder(c.key) / "metrics.json" for c in cells)]):
        from goodtransfer.study.report import write_report

        write_report(study)
    print(f"{len(cells) - done} cells made, {done} were done. Report: {report}")
    return report


@contextmanager
def _ctrl_c() -> Iterator[Callable[[], bool]]:
    """Tell whether Ctrl-C was pressed: Python drops a KeyboardInterrupt within a destructor."""
    presses: list[int] = []

    def press(number: int, frame: FrameType | None) -> None:
        presses.append(number)
        signal.default_int_handler(number, frame)

    plain = signal.default_int_handler
    ours = threading.current_thread() is threading.main_thread()  # which alone hears signals
    if not ours or signal.getsignal(signal.SIGINT) is not plain:
        yield lambda: False
        return
    signal.signal(signal.SIGINT, press)
    try:
        yield lambda: bool(presses)
    finally:
        signal.signal(signal.SIGINT, plain)


def _newer(file: Path, than: list[Path]) -> bool:
    """Whether a file was written after all that it is made of."""
    return file.is_file() and file.stat().st_mtime > max(f.stat().st_mtime for f in than)
