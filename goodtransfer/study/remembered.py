"""What the user's folders held when a run looked into them (``work/found.json``).

To tell a data set from others every image is looked up: minutes for ImageNet on a disk that is shared, which
each job of a cluster would need again, with its GPU waiting.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from goodtransfer.study import whole
from goodtransfer.study.plan import CHOSEN, Study
from goodtransfer.study.sizes import Size
from goodtransfer.study.sources import SOURCES, Found
from goodtransfer.study.transfers import TRANSFERS


def remember(study: Study) -> None:
    """Write what there is now, for the cells of a run and for its report; drawn images need no look."""
    if not study.roots:
        return
    data = {row.pretraining.data for _, row in study.rows()}
    data |= {TRANSFERS[kind].data for table, _ in study.rows() for kind in study.kinds(table)}
    found = {name: study.source(name) for name in data if study.own(name)}
    if "imagenet" in found and study.classes:
        found[CHOSEN] = study.pretrained_on("imagenet")
    marks = {name: _mark(root) for name, root in study.roots.items()}
    text = json.dumps({"marks": marks, "found": found}, indent=2)
    whole.write(study.out / "work" / "found.json", text + "\n")


def remembered(study: Study) -> Study:
    """The study without a look into its folders, where a run has looked and none has changed since."""
    try:
        read = json.loads((study.out / "work" / "found.json").read_text("utf-8"))
        same = {name for name, mark in read["marks"].items() if _mark(study.roots[name]) == mark}
        found = {
            name: Found(identity, text, Size(*size))
            for name, (identity, text, size) in read["found"].items()
            if SOURCES["imagenet" if name == CHOSEN else name].root in same
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # none, or a damaged one
        return study
    return replace(study, found=found)


def _mark(root: Path) -> str:
    """Hash of when each of the upper folders was last changed, as by a file or folder that comes or goes."""
    return hashlib.sha256(repr(sorted(_folders(root, 2))).encode()).hexdigest()[:16]


def _folders(root: Path, depth: int) -> Iterator[tuple[str, int]]:
    yield str(root), root.stat().st_mtime_ns
    with os.scandir(root) as entries:
        for entry in entries if depth else ():
            if entry.is_dir():
                yield from _folders(Path(entry.path), depth - 1)
