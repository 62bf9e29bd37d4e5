"""A whole study: one cell at a time, or as an engine makes them; then the report."""

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from tqdm import tqdm

from goodtransfer.study.choice import held
from goodtransfer.study.engine import Engine
from goodtransfer.study.plan import Cell, Study
from goodtransfer.study.remembered import remember
from goodtransfer.study.report import check_packages, write_report
from goodtransfer.study.results import Results


def run_study(study: Study, engine: Engine | None = None) -> Path:
    """Make every cell that is not done, in order, and the report; return the report's path.

    Killed anywhere and called again, it redoes no finished cell. What an engine could not make is
    told and left open.

    Raises:
        ValueError: where another process works on this folder by another choice.
        ModuleNotFoundError: where the report could not be written, before anything is made.
    """
    check_packages()
    cells, results = study.cells(), Results(study)
    if engine is not None:
        engine.check()
    with held(study):  # only once its data have been found
        remember(study)
        return _run(study, engine, cells, results)


def _run(study: Study, engine: Engine | None, cells: Sequence[Cell], results: Results) -> Path:
    keys = [cell.key for cell in cells]
    done = sum(map(results.done, keys))
    if engine is None:
        _one_by_one(study, cells)
    elif done < len(cells):
        engine.make(study, [cell for cell in cells if not results.done(cell.key)])
    missing = len(cells) - sum(map(results.done, keys))
    if options := study.left_out():
        named = ", ".join(sorted(options))
        print(f"Rows and columns are left out whose images were not named: {named}.")
    if others := results.others(set(keys)):
        print(f"kept: {others} finished cells of other rows, seeds or versions.")
    report = study.out / "report.html"
    made = [results.folder(key) / "metrics.json" for key in keys if results.done(key)]
    if not _newer(report, [study.file, *made]):
        write_report(study)
    left = f", {missing} are missing" * (missing > 0)
    print(f"{len(cells) - done - missing} cells made, {done} were done{left}. Report: {report}")
    return report


def preview(study: Study, engine: Engine | None) -> None:
    """Say which cells would be made, and what each would ask for."""
    if engine is not None:
        engine.check()
    cells, results = study.cells(), Results(study)
    missing = [cell for cell in cells if not results.done(cell.key)]
    for cell in missing:
        asks = ""
        if engine is not None:
            own = engine.demand(study, cell)
            asks = f"{own.threads} cores, {own.mem_mb} MB, {own.gpu} GPU, {own.runtime} min  "
        print(f"{cell.key}  {asks}{cell.title}")
    print(f"{len(missing)} cells would be made, {len(cells) - len(missing)} are done.")


def _one_by_one(study: Study, cells: Sequence[Cell]) -> None:
    results = Results(study)
    progress = tqdm(cells, desc=f"study, scale {study.scale.name}", unit="cell", position=0)
    with progress as bar, _ctrl_c() as pressed:
        for cell in bar:
            if pressed():
                raise KeyboardInterrupt
            if not results.done(cell.key):
                from goodtransfer.study.cells import run_cell  # torch, only where it is needed

                run_cell(study, cell)


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
