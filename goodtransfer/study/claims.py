"""The paper's directional claims, and which of them a study's runs bear out (protocol 11)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import numpy as np

from goodtransfer.study.bars import Difference
from goodtransfer.study.differences import Effect, Effects, More, Numbers
from goodtransfer.study.plan import Study
from goodtransfer.study.tables import DATA_SETS, TABLES, paper


@dataclass(frozen=True)
class Claim:
    """What the paper says, as an effect that is above 0 where it holds.

    Attributes:
        text: the claim.
        where: in the paper.
        effect: from numbers of its tables, all of one kind of transfer.
        margin: of a claim that two numbers are alike, to how much: it holds where the whole interval is
            less than that from 0, so that noise never confirms it. None for a claim of what is larger.
    """

    text: str
    where: str
    effect: Effect
    margin: float | None = None


# The last digit that the paper prints: two numbers that it prints alike are less than that apart.
ALIKE = 0.1

_SUP, _MOCO = "supervised, ImageNet", "unsupervised, ImageNet"
_MOCO_6, _SUP_6 = "MoCo (v2, 200 epochs)", "supervised {} epochs"  # in Table 6


def _lead(v: Numbers, column: str) -> Any:
    return More("2", _MOCO, _SUP, column)(v)


def _best_rung(v: Numbers, column: str) -> Any:
    """Of several noisy numbers the best is a little better than it should be; so is the paper's."""
    rungs = [v("1", f"supervised, {rung}", column) for rung in paper()["table7"]["ladder"]]
    return np.max(rungs, axis=0) - v("2", _MOCO, column)


def _ladder(v: Numbers, kind: str) -> Any:
    return More("1", f"{kind}, +blur", f"{kind}, flip", "voc07_AP")(v)


def _on_data_sets(v: Numbers, kind: str) -> list[Any]:
    """VOC07 AP of all but Synthia."""
    names = [name for name in DATA_SETS.values() if name != "Synthia"]
    return [v("2", f"{kind}, {name}", "voc07_AP") for name in names]


def _spread(v: Numbers, kind: str) -> Any:
    return np.ptp(_on_data_sets(v, kind), axis=0)


# By number in protocol 11; a statement of several effects is several claims.
STATEMENTS: Mapping[int, tuple[Claim, ...]] = {
    1: (
        Claim("MoCo-v2 detects better than cross-entropy: VOC07 AP", "Table 2",
              More("2", _MOCO, _SUP, "voc07_AP")),
        Claim("MoCo-v2's lead in VOC07 AP is larger at AP75 than at AP50", "Table 8",
              lambda v: _lead(v, "voc07_AP75") - _lead(v, "voc07_AP50")),
        *(
            Claim(text.format(epochs), "Table 6", More("6", more, than, column))
            for epochs in (400, 800)
            for text, more, than, column in (
                ("longer cross-entropy comes nearer to MoCo-v2: VOC07 AP of {} above 200 epochs",
                 _SUP_6.format(epochs), _SUP_6.format(200), "voc07_AP"),
                ("MoCo-v2 still detects better than cross-entropy of {} epochs: VOC07 AP",
                 _MOCO_6, _SUP_6.format(epochs), "voc07_AP"),
                ("cross-entropy of {} epochs overtakes MoCo-v2: VOC07 AP50",
                 _SUP_6.format(epochs), _MOCO_6, "voc07_AP50"),
            )
        ),
    ),
    2: (
        Claim("the best rung of cross-entropy is not below MoCo-v2: COCO box AP", "Table 1",
              lambda v: _best_rung(v, "coco_APbox")),
        Claim("the best rung of cross-entropy is not below MoCo-v2: Cityscapes mIoU", "Table 1",
              lambda v: _best_rung(v, "city_mIoU")),
    ),
    3: (
        Claim("augmentations help MoCo-v2: VOC07 AP from flip to all", "Table 1",
              lambda v: _ladder(v, "unsupervised")),
        Claim("augmentations help cross-entropy: VOC07 AP from flip to all", "Table 1",
              lambda v: _ladder(v, "supervised")),
        Claim("augmentations matter more to MoCo-v2: VOC07 AP from flip to all", "Table 1",
              lambda v: _ladder(v, "unsupervised") - _ladder(v, "supervised")),
        Claim("blur helps MoCo-v2: VOC07 AP", "Table 1",
              More("1", "unsupervised, +blur", "unsupervised, +gray", "voc07_AP")),
        Claim("blur does not help cross-entropy: VOC07 AP", "Table 1",
              More("1", "supervised, +gray", "supervised, +blur", "voc07_AP")),
    ),
    4: (
        Claim("what is pretrained on matters less to MoCo-v2: spread of VOC07 AP", "Table 2",
              lambda v: _spread(v, "supervised") - _spread(v, "unsupervised")),
        Claim("Synthia is the worst set for MoCo-v2: VOC07 AP", "Table 2",
              lambda v: np.min(_on_data_sets(v, "unsupervised"), axis=0)
              - v("2", "unsupervised, Synthia", "voc07_AP")),
    ),
    5: tuple(
        Claim(f"Exemplar-{version} is above MoCo-{version}: {name}", "Table 3",
              More("3", f"Exemplar-{version}", f"MoCo-{version}", column))
        for version in ("v1", "v2")
        for column, name in (
            ("acc", "ImageNet accuracy"),
            ("voc07_AP", "VOC07 AP"),
            ("coco_APbox", "COCO box AP"),
            ("coco_APseg", "COCO mask AP"),
            ("city_mIoU", "Cityscapes mIoU"),
        )
    ),
    6: tuple(
        Claim(f"{name}: {better} is above {worse}", "Table 4", More("4", better, worse, column))
        for column, name, order in (
            ("novel_5shot", "5-shot", ("Exemplar-v2", "Supervised", "MoCo-v2")),
            ("novel_1shot", "1-shot", ("Exemplar-v2", "Supervised", "MoCo-v2")),
            ("base_acc", "base classes", ("Supervised", "Exemplar-v2", "MoCo-v2")),
        )
        for better, worse in pairwise(order)
    ),
    7: (
        Claim(f"faces: MoCo-v2 and Exemplar-v2 are alike, less than {ALIKE} apart", "Table 5",
              More("5", "MoCo-v2", "Exemplar-v2", "landmark_error"), margin=ALIKE),
        Claim("faces: MoCo-v2 errs less than cross-entropy", "Table 5",
              More("5", "Supervised", "MoCo-v2", "landmark_error")),
        Claim("faces: Exemplar-v2 errs less than cross-entropy", "Table 5",
              More("5", "Supervised", "Exemplar-v2", "landmark_error")),
        Claim("faces: cross-entropy errs less than no pretraining", "Table 5",
              More("5", "Scratch", "Supervised", "landmark_error")),
    ),
    8: (
        Claim("MoCo-v2's detections fail less by localization", "Figure 7",
              More("2", _SUP, _MOCO, "voc07_loc")),
        Claim("MoCo-v2's rebuilt images are nearer than cross-entropy's", "App. D.2",
              More("figure2", "Supervised", "MoCo-v2", "lpips_uncalibrated")),
    ),
}  # fmt: skip

CLAIMS = (
    # What the first statement stands against.
    Claim("cross-entropy reads out better: ImageNet accuracy", "Table 2",
          More("2", _SUP, _MOCO, "acc")),
    *chain.from_iterable(STATEMENTS.values()),
)  # fmt: skip


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
        """In a few words.

        That two numbers are alike holds where the intervals lie within the claim's margin, and does
        not where they have no 0 in them; in between it cannot be told.
        """
        if self.ours is None:
            return "not measured"
        told, margin = self.ours.verdict, self.claim.margin
        if told == "unknown":
            known = math.isfinite(self.ours.value)
            return "one seed, no interval" if known else f"unknown: {self.ours.value}"
        if told == "larger" if margin is None else self.ours.within(margin):
            return "holds"
        return told if told == "within noise" else "does not hold"


def findings(study: Study) -> list[Finding]:
    """Every claim, with the runs of the study that are finished, whichever table they were made for."""
    effects = Effects(study)
    return [Finding(claim, printed(claim), effects(claim.effect)) for claim in CLAIMS]


def printed(claim: Claim) -> float | None:
    """The effect by the paper's own numbers; None where it prints none."""
    try:
        return float(claim.effect(_printed))
    except KeyError:
        return None


def _printed(table: str, label: str, column: str) -> float:
    row = next(row for row in TABLES[table].rows if row.label == label)
    value = row.paper[column]
    if value is None:
        raise KeyError(column)
    return value
