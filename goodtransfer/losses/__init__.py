"""Contrastive losses as pure functions."""

from goodtransfer.losses.infonce import (
    full_precision,
    full_precision_linear,
    info_nce,
    info_nce_rows,
)
from goodtransfer.losses.nce import bank_scores, nce, nce_normalizer, nce_rows
from goodtransfer.losses.ntxent import nt_xent, nt_xent_rows

__all__ = [
    "bank_scores",
    "full_precision",
    "full_precision_linear",
    "info_nce",
    "info_nce_rows",
    "nce",
    "nce_normalizer",
    "nce_rows",
    "nt_xent",
    "nt_xent_rows",
]
