"""Weights of any origin in, one safe format out, and the names of other libraries."""

from goodtransfer.weights.encoder import (
    describe_input,
    inspect,
    load_classifier,
    load_encoder,
    load_head,
    restore_input,
)
from goodtransfer.weights.files import Provenance, read_provenance
from goodtransfer.weights.report import Report
from goodtransfer.weights.save import save_encoder

__all__ = [
    "Provenance",
    "Report",
    "describe_input",
    "inspect",
    "load_classifier",
    "load_encoder",
    "load_head",
    "read_provenance",
    "restore_input",
    "save_encoder",
]
