"""``goodtransfer card``: the report card of any weights, as one page."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from goodtransfer.cli.study import MICRO_BATCHES, stoppable
from goodtransfer.study.scales import SCALES
from goodtransfer.study.sources import MEASURED_ON, ROOTS
from goodtransfer.study.tables import CARD, TABLES
from goodtransfer.study.transfers import TRANSFERS

EXAMPLES = """examples:
  goodtransfer card resnet50.pth moco_v2.pth.tar --quick      minutes on two cores, no download
  goodtransfer card mine=a.safetensors timm:resnet18@pretrained untrained=resnet18 --quick --out first
                       names for the rows; the first one is what the others are compared to
  goodtransfer card mine=a.pth --voc /data/VOCdevkit --cityscapes /data/cityscapes --out mine
                       by the paper's protocols, beside the paper's rows
  goodtransfer card mine=a.pth theirs=b.pth --scale small --data photos --tasks linear inversion
                       on a hundred photos, train/CLASS/*.jpg and val/CLASS/*.jpg
  goodtransfer card exemplar_v2 --mini-imagenet /data/mini --tasks few_shot
                       one of the paper's released encoders, downloaded once

OUT holds report.html, one page that needs no network: scores with 95 % intervals beside the paper's
rows, which differences are more than noise, where detections fail, what the features remember, and how
each run deviates from the paper. report.md and report.csv stand beside it, and results/ has every
measurement: the same command goes on where it was stopped.
"""


def main(argv: Sequence[str]) -> int:
    """Measure, write the page, and print the scores."""
    return stoppable(lambda: _card(_parser().parse_args(argv)))


def _card(arguments: argparse.Namespace) -> int:
    from goodtransfer.study.card import report_card
    from goodtransfer.study.engine import Engine
    from goodtransfer.study.plan import Study
    from goodtransfer.study.results import Results

    roots = {name: root for name in MEASURED_ON if (root := getattr(arguments, name)) is not None}
    card = report_card(
        arguments.encoders,
        arguments.out,
        **{
            name: getattr(arguments, name)
            for name in ("tasks", "quick", "scale", "seeds", "micro_batches")
        },
        voc_splits=arguments.voc_splits and tuple(arguments.voc_splits),
        engine=None if arguments.jobs is None else Engine(jobs=arguments.jobs),
        **roots,
    )
    print(*told(card.entries), sep="\n")
    study = Study.open(arguments.out)
    return int(not all(Results(study).done(cell.key) for cell in study.cells()))


def told(entries: dict[str, dict[str, Any]]) -> list[str]:
    """A line for each score: its encoder, its column, its value and interval."""
    return [
        f"{label:>20}  {column:<22} {entry.text(entry.mean)} {entry.spread}".rstrip()
        for label, columns in entries.items()
        for column, entry in columns.items()
        if entry.ours
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "goodtransfer card", description=__doc__, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("encoders", nargs="+", metavar="[NAME=]ENCODER",
        help="a weight file, NAME@FILE, timm:NAME@pretrained, a released name, resnet50 (untrained), "
        "...; NAME= is its row")  # fmt: skip
    tasks = TABLES[CARD].tasks
    add("--tasks", nargs="+", choices=list(TRANSFERS), default=(), metavar="TASK",
        help=f"of {', '.join(TRANSFERS)} (default: where there are "
        f"images, {', '.join(tasks)})")  # fmt: skip
    add("--quick", action="store_true", help="on the drawn toy world")
    add("--scale", choices=list(SCALES), help="whose protocols are followed (default: paper)")
    add("--out", type=Path, default=Path("card"), metavar="FOLDER", help="(default: card)")
    add("--seeds", type=int, metavar="N", help="how often everything is measured (default: 1)")
    add("--jobs", type=int, metavar="N", help="measurements at once, by Snakemake")
    add("--micro-batches", type=int, metavar="N", help=MICRO_BATCHES)
    for name, (option, holds) in ROOTS.items():
        if name in MEASURED_ON:
            add(option, dest=name, type=Path, metavar="ROOT", help=f"folder with {holds}")
    add("--voc-splits", nargs=2, metavar=("TRAIN", "TEST"),
        help="of VOCdevkit (default: 2007/trainval 2007/test)")  # fmt: skip
    return parser
