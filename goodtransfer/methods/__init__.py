"""Methods: LightningModules that pretrain an encoder."""

from goodtransfer.methods.exemplar import ExemplarMoCo
from goodtransfer.methods.instdisc import InstDisc
from goodtransfer.methods.moco import MoCo, MoCoV1, MoCoV2
from goodtransfer.methods.simclr import SimCLR
from goodtransfer.methods.supervised import SupervisedCE

__all__ = ["ExemplarMoCo", "InstDisc", "MoCo", "MoCoV1", "MoCoV2", "SimCLR", "SupervisedCE"]
