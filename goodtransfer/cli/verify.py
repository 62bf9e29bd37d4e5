"""``goodtransfer verify``: hold a released encoder to its published numbers; it takes data and GPUs."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from goodtransfer.study.scales import SCALES
from goodtransfer.study.sources import ROOTS, SOURCES
from goodtransfer.study.tables import published
from goodtransfer.study.transfers import TRANSFERS

EXAMPLES = """examples:
  goodtransfer verify exemplar_v2 --task voc07 --root /data/VOCdevkit --seeds 3
                       three fine-tunings on VOC07, against Table 3's 48.8 AP
  goodtransfer verify moco_v2_imagenet --task city --root /data/cityscapes
  goodtransfer verify exemplar_v2 --task linear --root /data/imagenet --out check

The encoder is downloaded once (`goodtransfer weights list` tells the names). OUT holds what is
measured, so that the same command goes on where it was stopped, and report.html. The exit code is 1
where a number differs from the published one by more than the noise of both.
"""
# What the paper printed of its encoders; other tasks have none of them.
_TASKS = ("linear", "voc07", "coco", "city")


def main(argv: Sequence[str]) -> int:
    """Measure, and say whether the numbers agree."""
    from goodtransfer.cli.study import stoppable

    return stoppable(lambda: _verify(_parser().parse_args(argv)))


def _verify(arguments: argparse.Namespace) -> int:
    from goodtransfer.study.card import report_card
    from goodtransfer.study.verify import verify
    from goodtransfer.weights.released import RELEASED

    name, kind, scale = arguments.name, arguments.task, arguments.scale
    if name not in RELEASED:
        raise ValueError(
            f"Expected a released name among {', '.join(RELEASED)}, but got {name!r}: for weights of "
            "your own use `goodtransfer card`."
        )
    asked = [c for c in TRANSFERS[kind].columns if published(name).get(c) is not None]
    if not asked:
        raise ValueError(
            f"Expected a task that the paper measured {name} on, but it printed nothing for {kind}: "
            f"take another of {', '.join(_TASKS)}."
        )
    root = SOURCES[TRANSFERS[kind].data].root
    if arguments.root is None and root not in SCALES[scale].toy:
        raise ValueError(f"Expected --root, a folder with {ROOTS[root][1]}, for task {kind}.")
    roots = {} if arguments.root is None else {root: arguments.root}
    out = arguments.out or Path(f"verify-{name}-{kind}")
    card = report_card(
        {name: name}, out, tasks=(kind,), scale=scale, seeds=arguments.seeds, **roots
    )
    found = verify(list(card.entries[name].values()))
    print(*found, sep="\n")
    if scale != "paper":
        print(f"Scale {scale} is not the paper's protocol: these numbers say nothing about it.")
        return 0
    return int(any(of.verdict == "differs" for of in found))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "goodtransfer verify", description=__doc__, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("name", metavar="NAME", help="of a released encoder, such as exemplar_v2")
    add("--task", choices=_TASKS, default="voc07", help="(default: voc07)")
    add("--root", type=Path, help="folder of the task's images")
    add("--seeds", type=int, metavar="N", help="runs whose mean is compared (default: 1)")
    add("--out", type=Path, metavar="FOLDER", help="(default: verify-NAME-TASK)")
    add("--scale", choices=list(SCALES), default="paper",
        help="another than the paper's only shows that it runs (default: paper)")  # fmt: skip
    return parser
