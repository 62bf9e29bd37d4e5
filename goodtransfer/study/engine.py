"""Cells side by side, on this machine or a cluster: Snakemake runs `goodtransfer study cell KEY`.

Only open cells are told to Snakemake, and of each only ``results/<key>/metrics.json``: it deletes
what it is told of before it makes a cell and after a failure, so checkpoints are none of its
business. Whether a cell is made is judged by its folder, not by Snakemake's exit code.
"""

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from goodtransfer.study import demands, forks, leases, whole
from goodtransfer.study.choice import held
from goodtransfer.study.locks import locked
from goodtransfer.study.plan import Cell, Study
from goodtransfer.study.results import Results

# What a cell's command begins with.
PROGRAM = [sys.executable, "-m", "goodtransfer.cli"]
_SNAKEMAKE = [sys.executable, "-m", "snakemake"]

_SNAKEFILE = """\
# Written by `goodtransfer study run`, which runs it: the cells that were open.
PROGRAM = {program!r}
CELLS = {cells}

rule all:
    input: expand("results/{{key}}/metrics.json", key=CELLS)

rule cell:
    message: "{{wildcards.key}}"
    # Nothing but a missing result has a cell made: not a newer input, not other code.
    input: lambda w: [ancient(f"results/{{key}}/metrics.json") for key in CELLS[w.key]["needs"]]
    output: "results/{{key}}/metrics.json"
    wildcard_constraints: key="[0-9a-f]+"
    threads: lambda w: CELLS[w.key]["threads"]
    resources:
{resources}
    params: program=PROGRAM
    shell:
        "mkdir -p work/{{wildcards.key}} && GOODTRANSFER_CORES={{threads}} exec {{params.program}} "
        "study cell {{wildcards.key}} --out . >> work/{{wildcards.key}}/log.txt 2>&1"
"""


@dataclass(frozen=True)
class Engine:
    """Snakemake, with the options of `study run`.

    Attributes:
        jobs: cells at once; None is 100, where a cluster has an opinion of its own.
        executor: a plugin of Snakemake; None is this machine.
        retries: of a cell that fails.
        keep_going: with cells that do not need the one that failed.
        resources: ``NAME=VALUE`` of every cell, in place of ours.
    """

    jobs: int | None = None
    executor: str | None = None
    retries: int = 0
    keep_going: bool = True
    resources: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.jobs is not None and self.jobs < 1:
            raise ValueError(f"Expected at least one job, but got {self.jobs}: give --jobs N.")
        if self.retries < 0:
            raise ValueError(f"Expected no fewer than 0 retries, but got {self.retries}.")
        if wrong := [text for text in self.resources if "=" not in text]:
            raise ValueError(
                f"Expected --default-resources NAME=VALUE, but got {wrong[0]!r}: "
                "such as slurm_partition=gpu."
            )

    @property
    def local(self) -> bool:
        """Whether cells are processes of this machine."""
        return self.executor in (None, "local")

    def check(self) -> None:
        """Refuse to begin where a part is missing.

        Raises:
            ModuleNotFoundError: naming what to install.
            FileNotFoundError: for the commands of a cluster.
        """
        if find_spec("snakemake") is None:
            raise ModuleNotFoundError(
                "Expected Snakemake for cells side by side, but it is not installed: "
                "pip install 'goodtransfer[study]'."
            )
        if self.local:
            return
        name = str(self.executor)
        if find_spec(f"snakemake_executor_plugin_{name.replace('-', '_')}") is None:
            package = f"snakemake-executor-plugin-{name}"
            package = "'goodtransfer[slurm]'" if name == "slurm" else package
            raise ModuleNotFoundError(
                f"Expected Snakemake's executor {name}, but it is not installed: "
                f"pip install {package}."
            )
        missing = [c for c in ("sbatch", "squeue") if shutil.which(c) is None]
        if name == "slurm" and missing:
            raise FileNotFoundError(
                f"Expected SLURM's commands on the PATH, but {' and '.join(missing)} cannot be "
                "found: run this on a node that submits jobs, or use --jobs alone."
            )

    def demand(self, study: Study, cell: Cell) -> demands.Demand:
        """What a cell asks for, here or on the cluster."""
        if not self.local:
            return demands.demand(study, cell)
        return demands.share(study, cell, self.jobs or 1, len(leases.devices()))

    def make(self, study: Study, cells: Sequence[Cell]) -> None:
        """Make cells that are open, each after those that it needs; tell those that fail.

        Raises:
            ValueError: where another process works on this folder.
        """
        self.check()
        results, work = Results(study), study.out / "work"
        with held(study) as choice, _alone(study.out) as record:
            cells = [cell for cell in cells if not results.restore(cell.key)]
            if not cells:
                return
            before = {cell.key: _size(work / cell.key / "log.txt") for cell in cells}
            whole.write(work / "Snakefile", self._snakefile(study, cells))
            with (work / "snakemake.log").open("a") as log, self._environment(cells) as env:
                begun = log.tell()
                snakemake = subprocess.Popen(
                    [*_SNAKEMAKE, "--snakefile", "work/Snakefile", *self._options(study, cells)],
                    cwd=study.out, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=env,
                    start_new_session=True,  # to be signalled with all its cells
                    # So that it holds both locks when we are killed.
                    pass_fds=[choice.fileno(), record.fileno()],
                )  # fmt: skip
                _note(record, snakemake.pid)
                try:
                    self._watch(snakemake, study, [cell.key for cell in cells])
                except BaseException:
                    _stop(snakemake, patience=15 if self.local else 90)
                    raise
        failed = [c for c in cells if not results.restore(c.key)
                  and _size(work / c.key / "log.txt") > before[c.key]]  # fmt: skip
        for cell in cells:
            if results.done(cell.key):
                shutil.rmtree(work / cell.key, ignore_errors=True)
        _tell(failed, work)
        open_ = sum(not results.done(cell.key) for cell in cells)
        if open_ and not failed:
            said = (work / "snakemake.log").read_text()[begun:]
            print(f"Snakemake could not run them; {work / 'snakemake.log'} ends:\n{_tail(said)}")

    def _snakefile(self, study: Study, cells: Sequence[Cell]) -> str:
        keys = {cell.key for cell in cells}
        given = {text.split("=")[0] for text in self.resources}
        names = [name for name in ("mem_mb", "gpu", "runtime") if name not in given]
        rows = {
            cell.key: {"needs": [k for k in cell.needs if k in keys]}
            | asdict(self.demand(study, cell))
            for cell in cells
        }
        if not any(row["gpu"] for row in rows.values()):
            names = [name for name in names if name != "gpu"]
        lines = [f'        {name}=lambda w: CELLS[w.key]["{name}"],' for name in names]
        return _SNAKEFILE.format(
            program=shlex.join(PROGRAM),
            cells=json.dumps(rows, indent=2),
            resources="\n".join(lines) or "        tasks=1",
        )

    def _options(self, study: Study, cells: Sequence[Cell]) -> list[str]:
        options = ["--rerun-triggers", "mtime", "--rerun-incomplete", "--scheduler", "greedy"]
        # What others wait for comes first, so that no core is idle at the end beside a long one.
        needed = {key for cell in cells for key in cell.needs}
        first = [f"results/{cell.key}/metrics.json" for cell in cells if cell.key in needed]
        options += ["--prioritize", *first] if first else []
        options += ["--nocolor", "--retries", str(self.retries)]
        options += ["--keep-going"] * self.keep_going
        if self.resources:
            options += ["--default-resources", *self.resources]
        if not self.local:
            most = str(self.jobs or 100)
            return [
                *options,
                "--executor",
                str(self.executor),
                "--jobs",
                most,
                "--latency-wait",
                "60",
            ]
        jobs = self.jobs or 1
        limits = [f"mem_mb={demands.memory_mb()}", f"gpu={len(leases.devices())}"]
        threads = max(self.demand(study, cell).threads for cell in cells)
        return [*options, "--cores", str(jobs * threads), "--resources", *limits]

    @contextmanager
    def _environment(self, cells: Sequence[Cell]) -> Iterator[dict[str, str]]:
        """What cells learn of those beside them: GPUs to lease, a server to be forked from."""
        env = {k: v for k, v in os.environ.items() if k not in (leases.VARIABLE, forks.VARIABLE)}
        ids = leases.devices() if self.local else []
        if ids:
            env[leases.VARIABLE] = ",".join(ids)
        forked = self.local and not ids and len(cells) > 1 and sys.platform == "linux"
        if not forked or os.environ.get(forks.VARIABLE) == "":  # set to nothing, it says no
            yield env
            return
        with forks.server() as path:
            yield env | {forks.VARIABLE: str(path)}

    def _watch(self, snakemake: Any, study: Study, keys: list[str]) -> None:
        results, open_ = Results(study), set(keys)
        title = f"study, scale {study.scale.name}, by Snakemake"
        with tqdm(total=len(keys), desc=title, unit="cell") as bar:
            while True:
                ended = snakemake.poll() is not None
                made = {key for key in open_ if results.done(key)}
                open_ -= made
                if made:
                    bar.update(len(made))
                if ended:
                    return
                with contextlib.suppress(subprocess.TimeoutExpired):
                    snakemake.wait(0.5)


@contextmanager
def _alone(out: Path) -> Iterator[TextIO]:
    """Hold the folder; clear Snakemake's own lock where its owner is dead."""
    file = out / "work" / "engine.lock"
    try:
        with locked(file, wait=False) as record:
            owner = _owner(file)
            here = socket.gethostname()
            if owner and owner["host"] != here:  # whose locks may not reach us
                raise ValueError(
                    f"Expected to be alone in {out}, but process {owner['pid']} on {owner['host']} "
                    f"began to work on it: wait for it, or delete {file} if it is dead."
                )
            if owner and any((out / ".snakemake" / "locks").glob("*")):
                call = [*_SNAKEMAKE, "--snakefile", "work/Snakefile", "--unlock"]
                subprocess.run(call, cwd=out, capture_output=True, check=False)
            yield record
            record.truncate(0)
    except BlockingIOError:
        owner = _owner(file) or {"pid": "of unknown number", "host": "unknown", "snakemake": "?"}
        raise ValueError(
            f"Expected to be alone in {out}, but process {owner['pid']} on {owner['host']} works "
            f"on it: wait for it, or stop it (`kill {owner['pid']}`; if only its Snakemake is left, "
            f"`kill -INT -- -{owner['snakemake']}`)."
        ) from None


def _owner(file: Path) -> dict[str, Any] | None:
    text = file.read_text()
    return dict(json.loads(text)) if text else None


def _note(record: TextIO, snakemake: int) -> None:
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "snakemake": snakemake}
    record.truncate(0)
    record.write(json.dumps(owner))
    record.flush()


def _stop(snakemake: Any, patience: float) -> None:
    """End Snakemake and all its cells: asked as by Ctrl-C, then told, then made to."""
    for number, seconds in ((signal.SIGINT, patience), (signal.SIGTERM, 10), (signal.SIGKILL, 10)):
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(snakemake.pid, number)
            snakemake.wait(seconds)
            return


def _tell(failed: Sequence[Cell], work: Path, shown: int = 3) -> None:
    for number, cell in enumerate(failed):
        log = work / cell.key / "log.txt"
        print(f"Failed: {cell.key}  {cell.title}\n  log: {log}")
        if number < shown:
            print("\n".join(f"  | {line}" for line in _tail(log.read_text()).splitlines()))


def _tail(text: str, lines: int = 15) -> str:
    """The last lines; of a progress bar, what it showed last."""
    rows = [row.split("\r")[-1] for row in text.rstrip().split("\n")]
    return "\n".join(rows[-lines:])


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0
