"""Choices of a study that do not go together, each with one sentence that says what to do."""

from typing import TYPE_CHECKING

from goodtransfer.study.sources import ROOTS, SOURCES, VOC2012
from goodtransfer.study.tables import TABLES
from goodtransfer.study.transfers import TRANSFERS

if TYPE_CHECKING:
    from goodtransfer.study.plan import Study
    from goodtransfer.study.scales import Scale


def check_micro_batches(scale: "Scale", parts: int) -> None:
    """Refuse parts that a detector's batch is not divided into."""
    detector = scale.protocol("voc07")
    batch = detector.batch // detector.accumulate
    if parts < 1 or batch % parts:
        raise ValueError(
            f"Expected micro-batches that divide a detector's {batch} images, but got {parts}."
        )


def check_choices(study: "Study") -> None:
    """Refuse classes and splits that a table cannot have, and tasks that cannot be measured."""
    _check_classes(study)
    _check_tasks(study)
    _check_splits(study)


def _check_classes(study: "Study") -> None:
    if len(set(study.classes)) == 1:
        raise ValueError(
            f"Expected at least two classes to pretrain on, but got {study.classes[0]!r} alone: "
            "cross-entropy and Exemplar tell one class from another."
        )
    for table in study.tables if study.classes else ():
        data = {row.pretraining.data for row in study.all_rows(TABLES[table])}
        if data & {"imagenet10", "imagenet100"}:
            raise ValueError(
                f"Expected no chosen classes for table {table}, whose rows have subsets of their "
                "own: leave one of them out."
            )


def _check_tasks(study: "Study") -> None:
    known = [kind for kind in TRANSFERS if any(TABLES[t].measures(kind) for t in study.tables)]
    for task in study.tasks:
        if task not in known:
            raise ValueError(
                f"Expected tasks that table {', '.join(study.tables)} has columns of, "
                f"{', '.join(known)}, but got {task!r}."
            )
        if study.root(TRANSFERS[task].data) is None:
            option, holds = ROOTS[SOURCES[TRANSFERS[task].data].root]
            raise ValueError(f"Expected {option} ROOT for task {task}: a folder with {holds}.")


def _check_splits(study: "Study") -> None:
    """VOC07+12 trains on images that a split of 2012 may test on."""
    kinds = {kind for table in study.tables for kind in study.kinds(TABLES[table])}
    joint = sorted(kind for kind in kinds if TRANSFERS[kind].data == "voc0712")
    if not joint or not study.own("voc0712"):
        return
    if not all(split.startswith("2007/") for split in study.voc_splits):
        raise ValueError(
            f"Expected splits of VOC 2007 for {joint[0]}, which adds {VOC2012} to train on, but got "
            f"{' and '.join(study.voc_splits)}: leave out table 6, or name other --tasks."
        )
