"""Transfer tasks: LightningModules that take an encoder and are scored."""

from goodtransfer.transfer.detection import Detection
from goodtransfer.transfer.linear import LinearProbe

__all__ = ["Detection", "LinearProbe"]
