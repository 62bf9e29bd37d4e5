"""What the start of a cell costs, by import and by fork, and what Snakemake adds to it.

    python examples/benchmarks/bench_engine.py         # 40 cells that do nothing, two at once

Three questions, each answered by real processes:

- a cell's own start: `goodtransfer study cell KEY` up to where it would begin, importing torch,
  torchvision and Lightning itself, or forked from a process that has imported them once;
- Snakemake: N cells that do nothing but write their result, started by `study run --jobs`, against
  the same N commands from a plain pool of as many processes;
- a second `study run --jobs` of a folder that is finished.

Seconds of wall time; CPU seconds (of all processes) beside them, since machines are shared.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from goodtransfer.study import engine, forks
from goodtransfer.study.engine import Engine
from goodtransfer.study.plan import Study

SELF = [sys.executable, str(Path(__file__).resolve())]


class Timed:
    """Wall and CPU seconds of a block and of the processes that it started and that ended."""

    def __enter__(self) -> "Timed":
        self.begun = time.perf_counter(), self._used()
        return self

    def __exit__(self, *_) -> None:
        self.wall = time.perf_counter() - self.begun[0]
        self.cpu = self._used() - self.begun[1]

    def _used(self) -> float:
        both = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(used.ru_utime + used.ru_stime for used in both)

    def per(self, count: int) -> str:
        return f"{self.wall / count:6.2f} s wall, {self.cpu / count:6.2f} s CPU"


def begin() -> None:
    """A cell up to where it begins: a client of the server of forks, or an import."""
    code = forks.fork()
    if code is None:
        import goodtransfer.study.cells  # noqa: F401

        code = 0
    sys.exit(code)


def trivial(key: str, out: Path) -> None:
    """A cell that does nothing, with the planning that every cell does."""
    study = Study.open(out)
    assert any(cell.key == key for cell in study.cells())
    (out / "results" / key).mkdir(parents=True, exist_ok=True)
    (out / "results" / key / "metrics.json").write_text(json.dumps({}))


def starts(count: int) -> tuple[Timed, Timed, Timed]:
    """Each alone, one after the other; and the server's own start, which is paid once."""
    with Timed() as imported:
        for _ in range(count):
            subprocess.run([*SELF, "begin"], check=True)
    with Timed() as serving, forks.server() as socket:
        environment = os.environ | {forks.VARIABLE: str(socket)}
        subprocess.run([*SELF, "begin"], env=environment, check=True)  # waits for its import
        with Timed() as forked:
            for _ in range(count):
                subprocess.run([*SELF, "begin"], env=environment, check=True)
    serving.wall -= forked.wall
    return imported, forked, serving


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=40)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--starts", type=int, default=5)
    args = parser.parse_args()
    os.environ[forks.VARIABLE] = ""  # no server but where one is asked for

    imported, forked, serving = starts(args.starts)
    print(f"a cell's start, mean of {args.starts}, one after the other")
    print(f"  by import       {imported.per(args.starts)}")
    print(
        f"  by fork         {forked.per(args.starts)} (of the client; a fork's own is its cell's)"
    )
    print(f"  the server      {serving.wall:6.2f} s wall, once")
    print(f"  import / fork   {imported.wall / forked.wall:6.1f}")

    engine.PROGRAM[:] = SELF
    with tempfile.TemporaryDirectory() as folder:
        study = Study.open(Path(folder) / "s", scale="smoke", tables=["3", "supervised", "floor"],
                           seeds=3)  # fmt: skip
        cells = study.cells()[: args.cells]
        study.save()
        commands = [[*SELF, "study", "cell", cell.key, "--out", str(study.out)] for cell in cells]
        with Timed() as plain, ThreadPoolExecutor(args.jobs) as pool:
            list(pool.map(lambda call: subprocess.run(call, check=True), commands))
        for file in study.out.glob("results/*/metrics.json"):
            file.unlink()
        with Timed() as snakemake:
            Engine(args.jobs).make(study, cells)
        assert len(list(study.out.glob("results/*/metrics.json"))) == len(cells)
        print(f"{len(cells)} cells that do nothing, {args.jobs} at once, a cell")
        print(f"  from a pool     {plain.per(len(cells))}")
        print(f"  by Snakemake    {snakemake.per(len(cells))}, its own start among it")
        added = (snakemake.wall - plain.wall) / len(cells)
        print(f"  Snakemake adds  {added:6.2f} s a cell")

        for cell in study.cells():
            trivial(cell.key, study.out)
        report = study.out / "report.html"  # so that none is written, which is not asked here
        report.touch()
        os.utime(report, (time.time() + 60,) * 2)
        with Timed() as again:
            call = [sys.executable, "-m", "goodtransfer.cli", "study", "run", "--out", study.out]
            subprocess.run([*call, "--jobs", str(args.jobs)], check=True, capture_output=True)
        print(f"a second run of {len(study.cells())} finished cells: {again.per(1)}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["begin"]:
        begin()
    elif sys.argv[1:3] == ["study", "cell"]:
        trivial(sys.argv[3], Path(sys.argv[5]))
    else:
        main()
