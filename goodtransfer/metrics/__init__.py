"""Metrics as the official programs compute them; the functions behind them are in their files."""

from goodtransfer.metrics.voc import VOCDetectionAP

__all__ = ["VOCDetectionAP"]
