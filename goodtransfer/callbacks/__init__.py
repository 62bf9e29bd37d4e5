"""Callbacks: what the features know while they are trained, and proof that frozen means frozen."""

from goodtransfer.callbacks.frozen import FrozenCheck
from goodtransfer.callbacks.knn import OnlineKNN, knn_predict
from goodtransfer.callbacks.probe import OnlineProbe

__all__ = ["FrozenCheck", "OnlineKNN", "OnlineProbe", "knn_predict"]
