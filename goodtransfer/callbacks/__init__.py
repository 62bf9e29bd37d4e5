"""Callbacks that watch a method while it trains, and show what a task predicts."""

from goodtransfer.callbacks.frozen import FrozenCheck
from goodtransfer.callbacks.knn import OnlineKNN, knn_predict
from goodtransfer.callbacks.pictures import Pictures
from goodtransfer.callbacks.probe import OnlineProbe

__all__ = ["FrozenCheck", "OnlineKNN", "OnlineProbe", "Pictures", "knn_predict"]
