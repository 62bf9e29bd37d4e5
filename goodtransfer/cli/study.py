"""``goodtransfer study``: the paper's tables as files. Planning needs no torch, but to list folders."""

import argparse
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from goodtransfer.study.plan import Study
from goodtransfer.study.remembered import remember, remembered
from goodtransfer.study.results import Results
from goodtransfer.study.scales import SCALES
from goodtransfer.study.sources import ROOTS
from goodtransfer.study.tables import CARD, TABLES
from goodtransfer.study.transfers import TRANSFERS

MICRO_BATCHES = (
    "of a detector's step, for a GPU that does not hold its 16 images at once; batch norm then sees fewer "
    "(default: 1)"
)
# That of `goodtransfer card` has its rows from there.
_TABLES = [name for name in TABLES if name != CARD]

EXAMPLES = """examples:
  goodtransfer study run --scale smoke --out smoke            minutes on two cores, no download
  goodtransfer study run --scale smoke --table 4 5 --out few  few-shot learning, and landmarks on faces
  goodtransfer study run --scale smoke --table all --out all  every table and figure of the paper
  goodtransfer study run --scale small --data ROOT --out own  your images: ROOT/{train,val}/CLASS/*.jpg
  goodtransfer study run --config study.yaml                  the same from a file, classes and tasks too
  goodtransfer study run --scale paper --data /imagenet --voc /voc --coco /coco --out paper
  goodtransfer study run --scale paper --mini-imagenet /mini --table 4 --out few_shot
  goodtransfer study run --scale paper --data /imagenet --table 10 --out t10
  goodtransfer study run --jobs 8 --out smoke                 eight cells side by side
  goodtransfer study run --executor slurm --jobs 50 --retries 2 --out paper \\
      --default-resources slurm_partition=gpu slurm_account=me
  goodtransfer study list --out smoke                         rows, commands to pretrain them, cells
  goodtransfer study compare Exemplar-v2 MoCo-v2 --out smoke  larger, smaller, or within noise
  goodtransfer study commands --out smoke | sh                the cells of run, a process for each
  goodtransfer study commands --out smoke | tr '\\n' '\\0' | xargs -0 -r -n 1 -P 2 sh -c    two at once
  goodtransfer study claims --out smoke                       which of the paper's claims hold here
  goodtransfer study cost --scale paper                       memory, images, steps and FLOPs, beforehand
  goodtransfer study cell KEY --out smoke                     one cell, as an engine would run it
"""


def main(argv: Sequence[str]) -> int:
    """Run a verb."""
    arguments = _parser().parse_args(argv)
    return stoppable(lambda: arguments.verb(arguments))


def stoppable(action: Callable[[], int]) -> int:
    """Run what makes cells; after Ctrl-C or SIGTERM say that nothing finished is lost."""
    try:
        with _sigterm():
            return int(action())
    except BaseException as stop:
        # Lightning turns Ctrl-C within a fit into exit code 1, or what its tidying up stumbles
        # over, and SIGTERM into 0.
        interrupted = any(isinstance(error, KeyboardInterrupt) for error in _chain(stop))
        terminated = any(
            isinstance(error, _Terminated) or type(error).__name__ == "SIGTERMException"
            for error in _chain(stop)
        )
        if not (interrupted or terminated):
            raise
        print("\nStopped. Finished cells are kept; the same command goes on.", file=sys.stderr)
        return 130 if interrupted else 143


class _Terminated(BaseException):
    """SIGTERM, as KeyboardInterrupt is Ctrl-C."""


@contextmanager
def _sigterm() -> Iterator[None]:
    """Raise at SIGTERM, so that what was begun is ended in order, and the exit code is ours."""

    def raise_it(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)  # a second one ends it, whatever it is stuck in
        raise _Terminated

    ours = threading.current_thread() is threading.main_thread()  # which alone hears signals
    if not ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, raise_it)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and what was being handled as it arose."""
    while error is not None:
        yield error
        error = error.__context__


def _study(arguments: argparse.Namespace) -> Study:
    given = _given(arguments)
    out = given.pop("out", None)
    if out is None:
        raise ValueError("Expected --out FOLDER, or `out` in the file of --config: the study's.")
    return Study.open(out, **given)


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    """Arguments of ``Study.open``: those of the command line before those of a file."""
    names = ("out", "scale", "voc_splits", "tables", "seeds", "classes", "tasks", "micro_batches",
             *ROOTS)  # fmt: skip
    given: dict[str, Any] = {name: getattr(arguments, name, None) for name in names}
    for name in ROOTS:
        if given[name] is not None:
            given[name] = str(given[name].resolve())
    if getattr(arguments, "config", None) is None:
        return given
    from goodtransfer.study.config import read

    return {**read(arguments.config), **{k: v for k, v in given.items() if v is not None}}


def _run(arguments: argparse.Namespace) -> int:
    from goodtransfer.study.engine import Engine
    from goodtransfer.study.run import preview, run_study

    names = ("jobs", "executor", "retries", "keep_going", "resources")
    given = {name: getattr(arguments, name) for name in names}
    given = {name: value for name, value in given.items() if value is not None}
    if given and not {"jobs", "executor"} & set(given):
        raise ValueError(
            "Expected --jobs N, how many cells at once, or --executor beside the options of a "
            "parallel run, but got neither: add one."
        )
    engine = Engine(**given) if given else None
    study = _study(arguments)
    if arguments.dry_run:
        preview(study, engine)
        return 0
    run_study(study, engine)
    return int(not all(Results(study).done(cell.key) for cell in study.cells()))


def _cell(arguments: argparse.Namespace) -> int:
    from goodtransfer.study import forks

    code = forks.fork()
    if code is not None:
        return code
    study = remembered(_study(arguments))
    found = [cell for cell in study.cells() if cell.key == arguments.key]
    if not found:
        raise ValueError(
            f"Expected the key of a cell in {arguments.out}, but got {arguments.key!r}: "
            f"`goodtransfer study list --out {arguments.out}` prints them."
        )
    if Results(study).done(arguments.key):
        return 0
    from goodtransfer.study import leases
    from goodtransfer.study.choice import held

    ids = leases.devices() if leases.VARIABLE in os.environ else []
    with held(study), leases.leased(study.out, ids):
        from goodtransfer.study.cells import run_cell

        run_cell(study, found[0])
    return 0


def _list(arguments: argparse.Namespace) -> int:
    from goodtransfer.study.listing import lines

    print(*lines(_study(arguments)), sep="\n")
    return 0


def _commands(arguments: argparse.Namespace) -> int:
    from goodtransfer.study.choice import held

    study = _study(arguments)
    cells, results, out = study.cells(), Results(study), shlex.quote(str(study.out))
    with held(study):  # each line finds its cell by what is saved
        remember(study)
        for cell in cells:
            if not results.done(cell.key):
                print(f"goodtransfer study cell {cell.key} --out {out}  # {cell.title}")
    return 0


def _claims(arguments: argparse.Namespace) -> int:
    from goodtransfer.study.claims import findings

    study = remembered(_study(arguments))
    for found in findings(study):
        paper = "no number" if found.printed is None else f"{found.printed:+.1f}"
        print(f"{found.verdict:>20}  {found.claim.text} ({found.claim.where})")
        print(f"{'':20}  paper {paper}; ours {found.ours or 'not measured'}")
    print(f"Scale {study.scale.name}, {study.seeds} seed{'s' * (study.seeds > 1)}: 95 % intervals.")
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from goodtransfer.study.differences import difference

    study = remembered(_study(arguments))
    table = TABLES[arguments.table]
    rows = {row.label: row for row in table.rows}
    unknown = [label for label in (arguments.a, arguments.b) if label not in rows]
    if unknown:
        raise ValueError(
            f"Expected rows of table {table.name}, {', '.join(map(repr, rows))}, but got {unknown[0]!r}."
        )
    asked = {column for kind in study.kinds(table) for column in TRANSFERS[kind].columns}
    for column in (column for column in table.columns if column in asked):
        found = difference(study, table, rows[arguments.a], rows[arguments.b], column)
        print(f"{column:>20}  {found or 'not measured'}")
    return 0


def _cost(arguments: argparse.Namespace) -> int:
    from goodtransfer.study import cost, cost_text

    given = _given(arguments)
    study = cost.Planned.open(given.pop("out", None) or Path(), **given)
    print(*cost_text.lines(study, arguments.devices, arguments.images_per_second), sep="\n")
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from goodtransfer.study.report import write_report

    print(write_report(remembered(_study(arguments))))
    return 0


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "goodtransfer study", description=__doc__, epilog=EXAMPLES, formatter_class=raw
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    run = verbs.add_parser("run", help="make every open cell, then the report", epilog=EXAMPLES,
                           formatter_class=raw)  # fmt: skip
    cell = verbs.add_parser("cell", help="make one cell")
    listing = verbs.add_parser(
        "list",
        help="rows, what they change, their commands; cells, and how they differ from the paper",
    )
    report = verbs.add_parser("report", help="write the report of what is finished")
    claims = verbs.add_parser(
        "claims", help="what the paper says, and whether these runs bear it out"
    )
    compare = verbs.add_parser(
        "compare", help="whether two rows of a table differ, column by column"
    )
    cost = verbs.add_parser(
        "cost", help="memory, traffic, images, steps and FLOPs, before anything runs"
    )
    cost.add_argument("--devices", type=int, default=8, metavar="N",
                      help="that share a batch (default: 8, as the paper)")  # fmt: skip
    cost.add_argument("--images-per-second", type=float, metavar="X",
                      help="that MoCo-v2 pretrains on at this scale, as measured: gives hours")  # fmt: skip
    compare.add_argument("a", metavar="ROW", help="as the table calls it, such as Exemplar-v2")
    compare.add_argument("b", metavar="OTHER", help="that is subtracted, such as MoCo-v2")
    compare.add_argument("--table", choices=_TABLES, default="3", metavar="TABLE",
                         help=f"{', '.join(_TABLES)} (default: 3)")  # fmt: skip
    commands = verbs.add_parser(
        "commands", help="a line for each open cell, in order: for sh, xargs or a job array"
    )
    for verb, action in (
        *((run, _run), (cell, _cell), (listing, _list), (commands, _commands)),
        *((report, _report), (claims, _claims), (compare, _compare), (cost, _cost)),
    ):
        verb.set_defaults(verb=action)
        if verb is not cost:
            needed = verb not in (run, listing, commands)  # which may have it in a file
            verb.add_argument("--out", type=Path, required=needed, help="the study's folder")
    cost.add_argument("--out", type=Path, help="the study's folder, if there is one")
    cell.add_argument("key", metavar="KEY", help="as `study list` prints it")
    for verb in (run, listing, commands, cost):
        verb.add_argument("--scale", choices=list(SCALES), help="one for the whole folder")
        for name, (option, holds) in ROOTS.items():
            verb.add_argument(
                option, dest=name, type=Path, metavar="ROOT",
                help=f"folder with {holds} (scale smoke draws its own)",
            )  # fmt: skip
        verb.add_argument(
            "--voc-splits", nargs=2, metavar=("TRAIN", "TEST"),
            help="of VOCdevkit (default: 2007/trainval 2007/test)",
        )  # fmt: skip
        verb.add_argument(
            "--table", dest="tables", nargs="+", choices=[*_TABLES, "all"], metavar="TABLE",
            help=f"{', '.join(_TABLES)}, or all but own (default: those there are images for, without 10, "
            "at smoke 4 and 5)",
        )  # fmt: skip
        verb.add_argument("--seeds", type=int, help="runs of every row (default 1)")
        verb.add_argument("--micro-batches", type=int, metavar="N", help=MICRO_BATCHES)
        _own(verb)
    _side_by_side(run)
    return parser


def _own(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--config", type=Path, metavar="FILE",
        help="YAML with any of these options, and table own where it names none",
    )  # fmt: skip
    verb.add_argument("--classes", nargs="+", metavar="CLASS",
                      help="folders of --data to pretrain on (default: all)")  # fmt: skip
    verb.add_argument("--tasks", nargs="+", choices=list(TRANSFERS), metavar="TASK",
                      help=f"{', '.join(TRANSFERS)} (default: those of the table)")  # fmt: skip


def _side_by_side(run: argparse.ArgumentParser) -> None:
    run.add_argument("--dry-run", action="store_true", help="only say which cells would be made")
    group = run.add_argument_group(
        "cells side by side", "By Snakemake; SNAKEMAKE_PROFILE names a folder with further options."
    )
    group.add_argument("--jobs", type=int, metavar="N", help="cells at once")
    group.add_argument(
        "--executor", metavar="NAME",
        help="of Snakemake's plugins, such as slurm (default: processes of this machine)",
    )  # fmt: skip
    group.add_argument("--retries", type=int, metavar="N", help="of a failing cell (default 0)")
    group.add_argument(
        "--keep-going", action=argparse.BooleanOptionalAction,
        help="with the cells that do not need one that failed (default: yes)",
    )  # fmt: skip
    group.add_argument(
        "--default-resources", dest="resources", nargs="+", metavar="NAME=VALUE",
        help="of every cell, such as slurm_partition=gpu runtime=2880, in place of ours",
    )  # fmt: skip
