"""The paper's tables as rows of pretrainings, with its numbers. Tables are views over runs."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

import yaml

from goodtransfer.study.protocol import (
    EXEMPLAR_V1,
    EXEMPLAR_V2,
    FACES,
    FEW_SHOT,
    FIGURE_4,
    INSTDISC,
    K1M,
    K64,
    MOCO_V1,
    MOCO_V2,
    PIXELS,
    SCRATCH,
    SIMCLR,
    SUPERVISED,
    SUPERVISED_LADDER,
    SUPERVISED_ON,
    UNSUPERVISED_LADDER,
    UNSUPERVISED_ON,
    UNTRAINED,
    Pretraining,
)
from goodtransfer.study.transfers import HEADINGS, NOT_RANKED, TRANSFERS

# In the order of Tables 7, 8 and 9.
VOC = ("acc", "voc07_AP", "voc07_AP50", "voc07_AP75")
COCO = (
    "coco_APbox",
    "coco_APbox50",
    "coco_APbox75",
    "coco_APseg",
    "coco_APseg50",
    "coco_APseg75",
)
CITY = ("city_mIoU", "city_mAcc", "city_aAcc")
COLUMNS = (*VOC, *COCO, *CITY)
CARD = "card"  # the table of encoders that a user holds


@dataclass(frozen=True)
class Row:
    """A line of a table.

    Attributes:
        label: as the paper has it.
        pretraining: that is measured.
        paper: what the paper printed, None where it did not.
        kept: percent of the pretraining after which the encoder is taken; None is the end.
    """

    label: str
    pretraining: Pretraining
    paper: dict[str, float | None]
    kept: int | None = None


@dataclass(frozen=True)
class Table:
    """A table of the paper, as far as its columns are measured.

    Attributes:
        name: as ``--table`` takes it.
        title: a heading.
        columns: metric names, which are those of ``paper.yaml``.
        rows: top to bottom.
        tasks: kinds of transfer that are measured where none is asked for; none for all of the columns.
        quoted: numbers that the paper took from others, by label: nothing here is measured.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    tasks: tuple[str, ...] = ()
    quoted: Mapping[str, dict[str, float | None]] = field(default_factory=dict)

    def measures(self, kind: str) -> bool:
        """Whether a kind of transfer fills any of the columns."""
        return bool(set(TRANSFERS[kind].columns) & set(self.columns))


@cache
def paper() -> dict[str, Any]:
    """The paper's numbers (``paper.yaml``), with the repairs and conflicts of its text."""
    text = resources.files("goodtransfer.study").joinpath("paper.yaml").read_text("utf-8")
    numbers: dict[str, Any] = yaml.safe_load(text)
    return numbers


LADDER = {"supervised": SUPERVISED_LADDER, "unsupervised": UNSUPERVISED_LADDER}
# In the order of Table 8, as the paper calls them.
DATA_SETS = {
    "imagenet": "ImageNet",
    "imagenet10": "ImageNet-10%",
    "imagenet100": "ImageNet-100",
    "places": "Places",
    "celeba": "CelebA",
    "coco_images": "COCO",
    "synthia": "Synthia",
}
ON = {"supervised": SUPERVISED_ON, "unsupervised": UNSUPERVISED_ON}
# In the order of Table 6.
LONGER = (
    SUPERVISED.but(name="Supervised for 90", epochs=90, keep=()),
    SUPERVISED,
    SUPERVISED.but(name="Supervised for 400", epochs=400, keep=()),
    SUPERVISED.but(name="Supervised for 800", epochs=800, keep=()),
    MOCO_V2,
)


def _table1() -> Table:
    """With the columns that Table 7 adds to it."""
    rows = [
        Row(f"{kind}, {label}", pretraining, _whole("table7", kind, number))
        for kind, ladder in LADDER.items()
        for number, (label, pretraining) in enumerate(
            zip(paper()["table7"]["ladder"], ladder.values(), strict=True)
        )
    ]
    return Table("1", "Tables 1 and 7: one augmentation after the other", COLUMNS, tuple(rows))


def _table2() -> Table:
    """With the columns that Table 8 adds to it."""
    rows = [
        Row(f"{kind}, {label}", ON[kind][data], _whole("table8", kind, number))
        for kind in ON
        for number, (data, label) in enumerate(DATA_SETS.items())
    ]
    return Table("2", "Tables 2 and 8: the images pretrained on", COLUMNS, tuple(rows))


def _whole(table: str, kind: str, number: int) -> dict[str, float | None]:
    """A line of a table that is printed in three parts."""
    return _printed(*(paper()[table][f"{kind}_{part}"][number] for part in ("voc", "coco", "city")))


def _table3() -> Table:
    """With the columns that Table 9 adds to it."""
    known = {row.name: row for row in (MOCO_V1, EXEMPLAR_V1, MOCO_V2, EXEMPLAR_V2)}
    rows = [
        Row(r["method"], known[r["method"]], _printed(r["voc"], r["coco"], r["city"]))
        for r in paper()["table9"]["rows"]
    ]
    return Table("3", "Tables 3 and 9: Exemplar against MoCo", COLUMNS, tuple(rows))


def _printed(*values: Sequence[float]) -> dict[str, float | None]:
    """Values in the order of the paper's tables for VOC, COCO and Cityscapes, by column."""
    return dict(zip(COLUMNS, (v for part in values for v in part), strict=True))


def _table4() -> Table:
    columns = tuple(paper()["table4"]["columns"])
    printed = {
        r["method"]: dict(zip(columns, r["values"], strict=True)) for r in paper()["table4"]["rows"]
    }
    rows = [Row(name, pretraining, printed.pop(name)) for name, pretraining in FEW_SHOT.items()]
    title = "Table 4: few-shot learning on mini-ImageNet"
    return Table("4", title, (*columns, "base_acc_head"), tuple(rows), quoted=printed)


def _table5() -> Table:
    known = {**FACES, SCRATCH.name: SCRATCH}
    rows = [
        Row(r["method"], known[r["method"]], {"landmark_error": r["values"][0]})
        for r in paper()["table5"]["rows"]
    ]
    return Table("5", "Table 5: facial landmarks on MAFL", ("landmark_error",), tuple(rows))


def _table6() -> Table:
    columns = tuple(paper()["table6"]["columns"])
    rows = [
        Row(r["pretraining"], pretraining, dict(zip(columns, r["values"], strict=True)))
        for r, pretraining in zip(paper()["table6"]["rows"], LONGER, strict=True)
    ]
    title = "Table 6: longer supervised pretraining"
    return Table("6", title, (*columns, "acc_head"), tuple(rows))


def _table10() -> Table:
    known = {row.name: row for row in (MOCO_V1, EXEMPLAR_V1, MOCO_V2, EXEMPLAR_V2)}
    sizes = {65536: K64, "1M": K1M}
    rows = []
    for r in paper()["table10"]["rows"]:
        pretraining = known[r["method"]].but(queue_size=sizes[r["k"]], temperature=r["tau"])
        label = f"{r['method']}, K={'64K' if r['k'] == K64 else r['k']}, τ={r['tau']}"
        rows.append(Row(label, pretraining, {"acc": r["acc"]}))
    return Table("10", "Table 10: queue size and temperature", ("acc",), tuple(rows))


def _figure2() -> Table:
    """With the two means of appendix D.2."""
    columns = ("lpips_uncalibrated", "lpips", "psnr", "ssim")
    means = paper()["prose_numbers"]["lpips_squeezenet_mean_1000_val_images"]
    printed = {SUPERVISED.name: means["supervised"], MOCO_V2.name: means["moco"]}
    rows = [
        Row(row.name, row, {"lpips_uncalibrated": printed.get(row.name)})
        for row in (SUPERVISED, INSTDISC, SIMCLR, MOCO_V2)
    ]
    title = "Figures 2 and 6: images rebuilt from features"
    return Table("figure2", title, columns, tuple(rows))


def _figure4() -> Table:
    rows = [
        Row(f"{row.name}, epoch {row.kept_epoch(percent)} of 200", row, {}, percent)
        for row in (SUPERVISED, MOCO_V2)
        for percent in FIGURE_4
    ]
    title = "Figure 4: transfer in the course of pretraining and fine-tuning"
    return Table("figure4", title, ("voc07_course_AP",), tuple(rows))


def _supervised() -> Table:
    rows = (Row("Supervised", SUPERVISED, _whole("table8", "supervised", 0)),)
    return Table("supervised", "Supervised pretraining (Tables 2 and 8, ImageNet)", COLUMNS, rows)


def _floor() -> Table:
    """What no pretraining gives: every method must be above it for the rest to mean anything."""
    nothing: dict[str, float | None] = dict.fromkeys(COLUMNS)
    rows = (Row("Pixels", PIXELS, nothing), Row("Untrained", UNTRAINED, nothing))
    return Table("floor", "No pretraining", COLUMNS, rows)


def _own() -> Table:
    """Nothing of the paper's: every transfer to data that a user names, and the usual ones unasked."""
    rows = (SUPERVISED, MOCO_V1, EXEMPLAR_V1, MOCO_V2, EXEMPLAR_V2, UNTRAINED)
    tasks = ("linear", "voc07", "coco", "city", "base", "few_shot", "landmarks")
    title = "Own data: which pretraining serves which task"
    columns = tuple(name for name in HEADINGS if name not in NOT_RANKED)
    return Table("own", title, columns, tuple(Row(r.name, r, {}) for r in rows), tasks)


def _card() -> Table:
    """Its rows are what a user holds (``plan.Study.encoders``)."""
    tasks = ("linear", "voc07", "coco", "city", "few_shot", "landmarks", "inversion")
    return Table(CARD, "Report card", (*HEADINGS,), (), tasks)


def beside(columns: Collection[str]) -> dict[str, dict[str, float | None]]:
    """The paper's rows beside a report card: label -> what it printed in these columns."""
    parts = (("", ("3", "supervised", "figure2")), (" on mini-ImageNet", "4"), (" on faces", "5"))
    found: dict[str, dict[str, float | None]] = {}
    for where, names in parts:
        for row in (row for name in names for row in TABLES[name].rows):
            known = {c: v for c, v in row.paper.items() if c in columns and v is not None}
            if known:
                found.setdefault(row.label + where, {}).update(known)
    return found


def published(released: str) -> dict[str, float | None]:
    """What the paper printed of the encoder that it released by a name; nothing for other words."""
    known = {"exemplar_v1": ("3", EXEMPLAR_V1.name), "exemplar_v2": ("3", EXEMPLAR_V2.name)}
    for family, kind in (("moco_v2", "unsupervised"), ("supervised", "supervised")):
        steps = ("_aug_f", "_aug_fr", "_aug_frc", "_aug_frcg")
        for step, label in zip(steps, paper()["table7"]["ladder"], strict=False):
            known[f"{family}_imagenet{step}"] = ("1", f"{kind}, {label}")
        for data, label in DATA_SETS.items():
            name = {"imagenet10": "imagenet1over10", "coco_images": "coco"}.get(data, data)
            known[f"{family}_{name}"] = ("2", f"{kind}, {label}")
    if released not in known:
        return {}
    table, label = known[released]
    (row,) = (row for row in TABLES[table].rows if row.label == label)
    return row.paper


TABLES = {
    table.name: table
    for table in (
        *(_table1(), _table2(), _table3(), _supervised(), _floor()),
        *(_table4(), _table5(), _table6(), _table10(), _figure2(), _figure4(), _own(), _card()),
    )
}
# Those of the paper, and the floor to see them above.
PUBLISHED = [name for name in TABLES if name not in ("own", CARD)]
