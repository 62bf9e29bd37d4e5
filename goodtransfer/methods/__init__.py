"""Methods: LightningModules that pretrain an encoder."""

from goodtransfer.methods.exemplar import ExemplarMoCo
from goodtransfer.methods.moco import MoCo, MoCoV1, MoCoV2
from goodtransfer.methods.supervised import SupervisedCE

__all__ = ["ExemplarMoCo", "MoCo", "MoCoV1", "MoCoV2", "SupervisedCE"]
