"""Weights of any origin in, one safe format out."""

from goodtransfer.weights.encoder import describe_input, load_encoder, load_head, restore_input
from goodtransfer.weights.files import Provenance, read_provenance, save_encoder

__all__ = [
    "Provenance",
    "describe_input",
    "load_encoder",
    "load_head",
    "read_provenance",
    "restore_input",
    "save_encoder",
]
