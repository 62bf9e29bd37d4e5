"""The study: the paper's tables as runs, in files, at three scales. Planning imports no torch."""

from goodtransfer.study.plan import Cell, Study
from goodtransfer.study.protocol import Pretraining
from goodtransfer.study.scales import SCALES, Scale
from goodtransfer.study.tables import TABLES

__all__ = ["SCALES", "TABLES", "Cell", "Pretraining", "Scale", "Study"]
