"""Data modules: batches of plain RGB views, labels and indices; no normalisation here."""

from goodtransfer.data.imagenet import ImageNetDataModule
from goodtransfer.data.toy import make_imagefolder

__all__ = ["ImageNetDataModule", "make_imagefolder"]
