"""Callbacks that watch a method while it trains, keep encoders, and show what a task predicts."""

from goodtransfer.callbacks.bn_leak import BNLeak, bn_leak
from goodtransfer.callbacks.epoch_count import EpochCount
from goodtransfer.callbacks.finite import FiniteCheck
from goodtransfer.callbacks.frozen import FrozenCheck
from goodtransfer.callbacks.keep import KeepEncoders
from goodtransfer.callbacks.knn import OnlineKNN, knn_predict
from goodtransfer.callbacks.pictures import Pictures
from goodtransfer.callbacks.preemption import SaveOnSigterm
from goodtransfer.callbacks.probe import OnlineProbe
from goodtransfer.callbacks.queue_health import QueueHealth

__all__ = [
    "BNLeak",
    "EpochCount",
    "FiniteCheck",
    "FrozenCheck",
    "KeepEncoders",
    "OnlineKNN",
    "OnlineProbe",
    "Pictures",
    "QueueHealth",
    "SaveOnSigterm",
    "bn_leak",
    "knn_predict",
]
