"""What the user's folders held when a run looked into them (``work/found.json``).

To tell a data set from others every image is looked up: minutes for ImageNet on a disk that is shared, which
each job of a cluster would need again, with its GPU waiting.
"""

import json
from dataclasses import replace

from goodtransfer.study import whole
from goodtransfer.study.plan import CHOSEN, Study
from goodtransfer.study.sizes import Size
from goodtransfer.study.sources import Found
from goodtransfer.study.transfers import TRANSFERS


def remember(study: Study) -> None:
    """Write what there is now, for the cells of a run and for its report."""
    data = {row.pretraining.data for _, row in study.rows()}
    data |= {TRANSFERS[kind].data for table, _ in study.rows() for kind in study.kinds(table)}
    found = {name: study.source(name) for name in data if study.own(name)}
    if "imagenet" in found and study.classes:
        found[CHOSEN] = study.pretrained_on("imagenet")
    whole.write(study.out / "work" / "found.json", json.dumps(found, indent=2) + "\n")


def remembered(study: Study) -> Study:
    """The study without a look into its folders, where a run has looked; else as it is.

    Images that have changed since are another data set by the next run; what was made of these stays theirs.
    """
    try:
        read = json.loads((study.out / "work" / "found.json").read_text("utf-8"))
        found = {
            name: Found(identity, text, Size(*size))
            for name, (identity, text, size) in read.items()
        }
    except (FileNotFoundError, ValueError, TypeError, AttributeError):  # none, or a damaged one
        return study
    return replace(study, found=found)
