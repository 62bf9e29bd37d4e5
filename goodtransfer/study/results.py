"""Results as files: a cell's folder appears whole, or not at all."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from goodtransfer.study import whole
from goodtransfer.study.locks import locked
from goodtransfer.study.plan import Cell, Study


class Results:
    """``results/<key>/`` for finished cells, ``work/<key>/`` for the one being made.

    A finished cell holds ``metrics.json``, ``run.json`` (what was run, and where; the metrics once
    more, and the SHA-256 of every file), and what else its kind leaves: ``encoder.safetensors``,
    ``curves.jsonl``, ``views.png``, ``log.txt``.
    """

    def __init__(self, study: Study) -> None:
        self.root, self._work = study.out / "results", study.out / "work"

    def folder(self, key: str) -> Path:
        """Where a finished cell is."""
        return self.root / key

    def work(self, cell: Cell) -> Path:
        """Where a cell keeps what it needs to go on after a kill."""
        folder = self._work / cell.key
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def done(self, key: str) -> bool:
        """Whether a cell is finished."""
        return (self.folder(key) / "metrics.json").is_file()

    @contextmanager
    def alone(self, cell: Cell) -> Iterator[None]:
        """Keep other processes from making the same cell; then clear up, if it is finished."""
        with locked(self._work / cell.key / "lock"):
            yield
            if self.done(cell.key):
                shutil.rmtree(self._work / cell.key, ignore_errors=True)

    def others(self, keys: set[str]) -> int:
        """How many finished cells are none of these."""
        found = {file.parent.name for file in self.root.glob("*/metrics.json")}
        return len(found - keys)

    def metrics(self, key: str) -> dict[str, float]:
        """The numbers of a finished cell, whose other files may then be read, too."""
        metrics = dict(self._read(key, "metrics.json"))
        self.check(key, weights=False)
        return metrics

    def run(self, key: str) -> dict[str, Any]:
        """What a finished cell ran."""
        return dict(self._read(key, "run.json"))

    def curves(self, key: str) -> list[dict[str, float]]:
        """What was logged during the run, a step a row; empty where nothing was."""
        self.check(key, weights=False)
        file = self.folder(key) / "curves.jsonl"
        if not file.is_file():
            return []
        return [json.loads(line) for line in file.read_text().splitlines()]

    def finish(
        self, cell: Cell, finished: Path, run: dict[str, Any], metrics: dict[str, float]
    ) -> None:
        """Write both files into ``finished`` and rename it into place."""
        (finished / "metrics.json").write_text(_json(metrics))
        files = sorted(file for file in finished.rglob("*") if file.is_file())
        digests = {file.relative_to(finished).as_posix(): _digest(file) for file in files}
        (finished / "run.json").write_text(_json({**run, "metrics": metrics, "digests": digests}))
        log = self._work / cell.key / "log.txt"
        if log.is_file():  # still being written to, wherever it is
            os.replace(log, finished / log.name)
        self.root.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.folder(cell.key), ignore_errors=True)  # of a copy without metrics.json
        os.replace(finished, self.folder(cell.key))

    def restore(self, key: str) -> bool:
        """Whether a cell is finished, if only ``metrics.json`` was lost: it is written again.

        Snakemake removes it before it makes a cell, and after a failure: also of a cell that
        another process has finished meanwhile.
        """
        if self.done(key):
            return True
        folder = self.folder(key)
        try:
            run = self.run(key)
            text = _json(run["metrics"])
            digests = run["digests"] | {"metrics.json": hashlib.sha256(text.encode()).hexdigest()}
            self._compare(key, run, [name for name in run["digests"] if name != "metrics.json"])
        except (FileNotFoundError, ValueError, KeyError):
            return False
        if digests != run["digests"]:
            return False
        whole.write(folder / "metrics.json", text)
        return True

    def check(self, key: str, *, weights: bool = True) -> None:
        """Refuse a finished cell whose files are not those that it left, and of which it noted digests.

        Args:
            key: of the cell.
            weights: with the encoders, which are large, and which no report reads.

        Raises:
            ValueError: naming the file.
        """
        run = self.run(key)
        names = [n for n in run.get("digests", {}) if weights or not n.startswith("encoder")]
        self._compare(key, run, names)

    def _compare(self, key: str, run: dict[str, Any], names: list[str]) -> None:
        for name in names:
            file = self.folder(key) / name
            if not file.is_file() or _digest(file) != run["digests"][name]:
                raise ValueError(
                    f"Expected {file} as its cell ({run['kind']} of {run['row']['name']}, seed "
                    f"{run['seed']}) left it, but it was changed, cut off or lost: delete "
                    f"{self.folder(key)} and run again."
                )

    def _read(self, key: str, name: str) -> Any:
        file = self.folder(key) / name
        try:
            return json.loads(file.read_text())
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"Expected {file}, but there is none: delete {file.parent} and run again."
            ) from error
        except json.JSONDecodeError as error:
            raise ValueError(
                f"Expected JSON in {file}, but {error}: delete {file.parent} and run again."
            ) from error


def finished(study: Study, results: Results) -> dict[str, list[Cell]]:
    """By kind, the finished cells of the first seed, one for every distinct row; their files may be read."""
    every = [cell for t, row in study.rows() for cell in study.cells_of(t, row, 0).values()]
    found: dict[str, list[Cell]] = {}
    for cell in {cell.key: cell for cell in every}.values():
        if results.done(cell.key):
            results.check(cell.key, weights=False)
            found.setdefault(cell.kind, []).append(cell)
    return found


def _json(content: Any) -> str:
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def _digest(file: Path) -> str:
    """Of a file as it is now; read once by a process, unless it is written to."""
    now = file.stat()
    return _read_digest(file, (now.st_ino, now.st_size, now.st_ctime_ns))


@cache
def _read_digest(file: Path, state: tuple[int, ...]) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
