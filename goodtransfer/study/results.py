"""Results as files: a cell's folder appears whole, or not at all."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from goodtransfer.study.plan import Cell, Study


class Results:
    """``results/<key>/`` for finished cells, ``work/<key>/`` for the one being made.

    A finished cell holds ``run.json`` (what was run, and where), ``metrics.json``, and what else
    its kind leaves: ``encoder.safetensors``, ``curves.jsonl``, ``views.png``.
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

    def metrics(self, key: str) -> dict[str, float]:
        """The numbers of a finished cell."""
        return dict(self._read(key, "metrics.json"))

    def run(self, key: str) -> dict[str, Any]:
        """What a finished cell ran."""
        return dict(self._read(key, "run.json"))

    def curves(self, key: str) -> list[dict[str, float]]:
        """What was logged during the run, a step a row; empty where nothing was."""
        file = self.folder(key) / "curves.jsonl"
        if not file.is_file():
            return []
        return [json.loads(line) for line in file.read_text().splitlines()]

    def finish(
        self, cell: Cell, finished: Path, run: dict[str, Any], metrics: dict[str, float]
    ) -> None:
        """Write both files into ``finished`` and rename it into place."""
        for name, content in (("run.json", run), ("metrics.json", metrics)):
            (finished / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
        self.root.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.folder(cell.key), ignore_errors=True)  # of a copy without metrics.json
        os.replace(finished, self.folder(cell.key))
        shutil.rmtree(self._work / cell.key, ignore_errors=True)

    def _read(self, key: str, name: str) -> Any:
        file = self.folder(key) / name
        try:
            return json.loads(file.read_text())
        except json.JSONDecodeError as error:
            raise ValueError(
                f"Expected JSON in {file}, but {error}: delete {file.parent} and run again."
            ) from error


def finished(study: Study, results: Results) -> dict[str, list[Cell]]:
    """By kind, the finished cells of the first seed, one for every distinct row."""
    every = [cell for t, row in study.rows() for cell in study.cells_of(t, row, 0).values()]
    found: dict[str, list[Cell]] = {}
    for cell in {cell.key: cell for cell in every}.values():
        if results.done(cell.key):
            found.setdefault(cell.kind, []).append(cell)
    return found
