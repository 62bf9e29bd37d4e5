"""The report of a study with 200 finished cells: seconds to build it, and how large it is.

    OMP_NUM_THREADS=1 python examples/benchmarks/bench_report.py OUT [--cells 200]

In OUT/made a study of seconds is really made, one row of every kind of cell. Its results are copied
into the keys of a larger plan, all tables with several seeds, in OUT/report: each copy's ``run.json``
says ``copy_of``. The numbers mean nothing; files, pictures and figures are as many as in a real study.
Curves are made as long as ``--rows``, since those of seconds have a row or two.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "study"))
from tiny import TINY

from goodtransfer.study.cells import run_cell
from goodtransfer.study.plan import Cell, Study
from goodtransfer.study.results import Results

TABLES = ("2", "3", "supervised", "floor", "4", "5", "10", "1", "6", "figure4")
BUILD = """
import sys, time
sys.path.insert(0, sys.argv[2])
import tiny
from pathlib import Path
from goodtransfer.study.plan import Study
from goodtransfer.study.report import write_report
write_report(Study.open(Path(sys.argv[1])))
print(f"{time.process_time():.1f}")
"""


def kind_of(cell: Cell) -> tuple[str, ...]:
    """Cells of which one can stand for the other: they leave the same files."""
    if cell.kind == "pretrain":
        views = cell.row.method not in ("none", "COCODetection", "Segmentation")
        return cell.kind, cell.row.method, str(views), str(bool(cell.row.keep))
    return cell.kind, str(cell.row.arguments["encoder"].startswith("pixels"))


def make(out: Path) -> dict[tuple[str, ...], Cell]:
    """A really made cell of every kind, with what it needs."""
    study = Study.open(out, scale=TINY.name, tables=list(TABLES))
    study.save()
    cells = {cell.key: cell for cell in study.cells()}
    chosen: dict[tuple[str, ...], Cell] = {}
    for cell in cells.values():
        chosen.setdefault(kind_of(cell), cell)
    for cell in chosen.values():
        for key in (*cell.needs, cell.key):
            run_cell(study, cells[key])
    return chosen


def copy(made: Path, chosen: dict[tuple[str, ...], Cell], out: Path, count: int, rows: int) -> int:
    """Copies in the keys of the first ``count`` cells of a larger plan."""
    shutil.rmtree(out, ignore_errors=True)
    study = Study.open(out, scale=TINY.name, tables=list(TABLES), seeds=3)
    study.save()
    source, results = Results(Study.open(made)), Results(study)
    cells = study.cells()
    in_turn = sorted(cells, key=lambda cell: cell.seed)[:count]  # all tables, before other seeds
    for cell in in_turn:
        original = chosen[kind_of(cell)]
        folder = shutil.copytree(source.folder(original.key), results.folder(cell.key))
        run = json.loads((folder / "run.json").read_text()) | {"copy_of": original.key}
        curves = folder / "curves.jsonl"
        if cell.kind == "pretrain" and curves.is_file() and (lines := curves.read_text()):
            row = json.loads(lines.splitlines()[0])
            longer = [json.dumps(row | {"step": 10 * n}) for n in range(rows)]
            curves.write_text("\n".join(longer) + "\n")
            run["digests"][curves.name] = hashlib.sha256(curves.read_bytes()).hexdigest()
        (folder / "run.json").write_text(json.dumps(run))
    return len(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--cells", type=int, default=200)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    chosen = make(args.out / "made")
    out = args.out / "report"
    planned = copy(args.out / "made", chosen, out, args.cells, args.rows)
    print(f"{args.cells} of {planned} cells, copies of {len(chosen)}; curves of {args.rows} rows")
    for _ in range(args.runs):
        started = time.monotonic()
        call = [sys.executable, "-c", BUILD, str(out), str(sys.path[0])]
        done = subprocess.run(call, capture_output=True, text=True, check=True)
        print(f"built in {time.monotonic() - started:.1f} s, {done.stdout.strip()} CPU s, from the "
              "start of Python")  # fmt: skip
    for name in ("report.html", "report.md", "report.csv"):
        print(f"{name}: {(out / name).stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
