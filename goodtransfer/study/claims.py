"""The paper's directional claims, and which of them a study's runs bear out (protocol 11)."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from goodtransfer.study.bars import Difference, over_seeds
from goodtransfer.study.differences import difference, of_column
from goodtransfer.study.plan import Study
from goodtransfer.study.results import Results
from goodtransfer.study.tables import DATA_SETS, TABLES, Row, Table

# Table, row, column -> number.
Numbers = Callable[[str, str, str], float]


@dataclass(frozen=True)
class Claim:
    """What the paper says, as an effect that is above 0 where it holds.

    Attributes:
        text: the claim.
        where: in the paper.
        effect: from numbers of its tables.
        equality: the claim is that the effect is 0.
    """

    text: str
    where: str
    effect: Callable[[Numbers], float]
    equality: bool = False


@dataclass(frozen=True)
class More:
    """How much more one row of a table has in a column than another."""

    table: str
    more: str
    than: str
    column: str

    def __call__(self, v: Numbers) -> float:
        return v(self.table, self.more, self.column) - v(self.table, self.than, self.column)


def _spread(v: Numbers, kind: str) -> float:
    """Of VOC07 AP over the data sets without Synthia."""
    found = [
        v("2", f"{kind}, {name}", "voc07_AP") for name in DATA_SETS.values() if name != "Synthia"
    ]
    return max(found) - min(found)


def _ladder(v: Numbers, kind: str) -> float:
    return v("1", f"{kind}, +blur", "voc07_AP") - v("1", f"{kind}, flip", "voc07_AP")


_SUP, _MOCO = "supervised, ImageNet", "unsupervised, ImageNet"
_EXEMPLAR = [
    Claim(
        f"Exemplar-{version} is above MoCo-{version}: {name}",
        "Table 3",
        More("3", f"Exemplar-{version}", f"MoCo-{version}", column),
    )
    for version in ("v1", "v2")
    for column, name in (
        ("acc", "ImageNet accuracy"),
        ("voc07_AP", "VOC07 AP"),
        ("coco_APbox", "COCO box AP"),
        ("coco_APseg", "COCO mask AP"),
        ("city_mIoU", "Cityscapes mIoU"),
    )
]
_FEW_SHOT = [
    Claim(f"{name}: {better} is above {worse}", "Table 4", More("4", better, worse, column))
    for column, name, order in (
        ("novel_5shot", "5-shot", ("Exemplar-v2", "Supervised", "MoCo-v2")),
        ("novel_1shot", "1-shot", ("Exemplar-v2", "Supervised", "MoCo-v2")),
        ("base_acc", "base classes", ("Supervised", "Exemplar-v2", "MoCo-v2")),
    )
    for better, worse in pairwise(order)
]

CLAIMS = (
    Claim("MoCo-v2 detects better than cross-entropy: VOC07 AP", "Table 2",
          More("2", _MOCO, _SUP, "voc07_AP")),
    Claim("MoCo-v2's lead in VOC07 AP is larger at AP75 than at AP50", "Table 8",
          lambda v: More("2", _MOCO, _SUP, "voc07_AP75")(v)
          - More("2", _MOCO, _SUP, "voc07_AP50")(v)),
    Claim("cross-entropy reads out better: ImageNet accuracy", "Table 2",
          More("2", _SUP, _MOCO, "acc")),
    Claim("the best rung of cross-entropy is not below MoCo-v2: COCO box AP", "Table 1",
          lambda v: max(v("1", f"supervised, {rung}", "coco_APbox") for rung in _rungs())
          - v("2", _MOCO, "coco_APbox")),
    Claim("the best rung of cross-entropy is not below MoCo-v2: Cityscapes mIoU", "Table 1",
          lambda v: max(v("1", f"supervised, {rung}", "city_mIoU") for rung in _rungs())
          - v("2", _MOCO, "city_mIoU")),
    Claim("augmentations matter more to MoCo-v2: VOC07 AP from flip to all", "Table 1",
          lambda v: _ladder(v, "unsupervised") - _ladder(v, "supervised")),
    Claim("blur helps MoCo-v2: VOC07 AP", "Table 1",
          More("1", "unsupervised, +blur", "unsupervised, +gray", "voc07_AP")),
    Claim("blur does not help cross-entropy: VOC07 AP", "Table 1",
          More("1", "supervised, +gray", "supervised, +blur", "voc07_AP")),
    Claim("what is pretrained on matters less to MoCo-v2: spread of VOC07 AP", "Table 2",
          lambda v: _spread(v, "supervised") - _spread(v, "unsupervised")),
    Claim("Synthia is the worst set for MoCo-v2: VOC07 AP", "Table 2",
          lambda v: min(v("2", f"unsupervised, {name}", "voc07_AP") for name in DATA_SETS.values()
                        if name != "Synthia") - v("2", "unsupervised, Synthia", "voc07_AP")),
    Claim("longer cross-entropy comes nearer to MoCo-v2: VOC07 AP of 800 above 200 epochs", "Table 6",
          More("6", "supervised 800 epochs", "supervised 200 epochs", "voc07_AP")),
    *_EXEMPLAR,
    *_FEW_SHOT,
    Claim("faces: MoCo-v2 and Exemplar-v2 are alike", "Table 5",
          More("5", "MoCo-v2", "Exemplar-v2", "landmark_error"), equality=True),
    Claim("faces: Exemplar-v2 errs less than cross-entropy", "Table 5",
          More("5", "Supervised", "Exemplar-v2", "landmark_error")),
    Claim("faces: cross-entropy errs less than no pretraining", "Table 5",
          More("5", "Scratch", "Supervised", "landmark_error")),
    Claim("MoCo-v2's detections fail less by localization", "Figure 7",
          More("2", _SUP, _MOCO, "voc07_loc")),
    Claim("MoCo-v2's rebuilt images are nearer than cross-entropy's", "App. D.2",
          More("figure2", "Supervised", "MoCo-v2", "lpips_uncalibrated")),
)  # fmt: skip


def _rungs() -> list[str]:
    return [row.label.partition(", ")[2] for row in TABLES["1"].rows[:5]]


@dataclass(frozen=True)
class Finding:
    """What became of a claim.

    Attributes:
        claim: the claim.
        printed: the paper's effect; None where it gives no numbers.
        ours: the study's effect with its intervals; None where runs are missing.
    """

    claim: Claim
    printed: float | None
    ours: Difference | None

    @property
    def verdict(self) -> str:
        """In a few words."""
        if self.ours is None:
            return "not measured"
        holds = "within noise" if self.claim.equality else "larger"
        words = {holds: "holds", "within noise": "within noise", "unknown": "one seed, no interval"}
        return {**words, holds: "holds"}.get(self.ours.verdict, "does not hold")


def findings(study: Study) -> list[Finding]:
    """Every claim, with the runs of the study that are finished, whichever table they were made for."""
    return [Finding(claim, _effect(claim, _printed), _ours(study, claim)) for claim in CLAIMS]


def _ours(study: Study, claim: Claim) -> Difference | None:
    if isinstance(claim.effect, More):
        table = TABLES[claim.effect.table]
        a, b = (_row(table, label) for label in (claim.effect.more, claim.effect.than))
        return difference(study, table, a, b, claim.effect.column)
    results = Results(study)
    every = [_effect(claim, _measured(study, results, seed)) for seed in range(study.seeds)]
    found = [effect for effect in every if effect is not None]
    return Difference(fmean(found), over_seeds(found), None) if found else None


def _effect(claim: Claim, numbers: Numbers) -> float | None:
    try:
        return claim.effect(numbers)
    except KeyError:
        return None


def _row(table: Table, label: str) -> Row:
    return next(row for row in table.rows if row.label == label)


def _printed(table: str, label: str, column: str) -> float:
    value = _row(TABLES[table], label).paper[column]
    if value is None:
        raise KeyError(column)
    return value


def _measured(study: Study, results: Results, seed: int) -> Numbers:
    def number(name: str, label: str, column: str) -> float:
        table = TABLES[name]
        cell = of_column(study, results, table, _row(table, label), column, seed)
        if cell is None:
            raise KeyError(column)
        return results.metrics(cell.key)[column]

    return number
