"""A training to be killed and resumed: :func:`train` ends with ``endRANK.json``, a digest of it all."""

import hashlib
import json
import logging
import os
import time
import warnings
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from goodtransfer import ExemplarMoCo, ImageNetDataModule
from goodtransfer.callbacks import OnlineProbe, SaveOnSigterm
from goodtransfer.checkpoints import SafeCheckpointIO
from goodtransfer.study.fitting import checkpoint
from goodtransfer.study.logger import CellBar, CurveLogger

IMAGES, BATCH, EPOCHS, SAVED_EVERY = 48, 6, 3, 2


class Heavy(ExemplarMoCo):
    """Exemplar whose checkpoint takes a while to be written, and whose queue wraps within an epoch."""

    def __init__(self, ballast):
        torch.manual_seed(0)
        super().__init__("resnet10w8", queue_size=20, dim=8, bn_groups=2, lr=0.1, momentum=0.9)
        self.register_buffer("ballast", torch.zeros(ballast))


class Phases(pl.Callback):
    """Tells another process where the training is: steps begun and epochs ended, since its start."""

    def __init__(self, counts):
        self.counts = counts

    def on_train_batch_start(self, *_):
        self.counts[0] += 1

    def on_train_epoch_end(self, *_):
        self.counts[1] += 1
        time.sleep(0.02)  # between epochs


def train(
    root, folder, counts=None, *, workers=0, accumulate=1, ranks=1, ballast=2_000_000, slow=0.0,
    epochs=EPOCHS,
):  # fmt: skip
    """Train to the end, from the folder's last checkpoint if there is one; write the digest."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    module = Heavy(ballast)
    data = ImageNetDataModule(root, batch_size=BATCH // ranks, size=16, num_workers=workers)
    saved = ModelCheckpoint(
        folder, filename="last", every_n_train_steps=SAVED_EVERY, enable_version_counter=False
    )
    # The order is a user's, who need not know that what is saved comes last.
    probe = OnlineProbe()
    callbacks = [SaveOnSigterm(folder / "last.ckpt"), saved, probe, CellBar("run")]
    callbacks += [] if counts is None else [Phases(counts)]
    callbacks += [Slow(slow)] if slow else []
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy="ddp" if ranks > 1 else "auto",
        max_epochs=epochs,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        accumulate_grad_batches=accumulate,
        logger=CurveLogger(folder / "curves.jsonl"),
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=callbacks,
        plugins=[SafeCheckpointIO()],
    )
    trainer.fit(module, data, ckpt_path=checkpoint(folder))
    trainer.strategy.barrier()
    told = {"digest": digest(trainer, module, probe), "steps": trainer.global_step}
    (folder / f"end{trainer.global_rank}.json").write_text(json.dumps(told))


class Slow(pl.Callback):
    """Gives a signal time to arrive in mid-training."""

    def __init__(self, seconds):
        self.seconds = seconds

    def on_train_batch_start(self, *_):
        time.sleep(self.seconds)


def ends(folder):
    """Of all ranks."""
    return [json.loads(file.read_text()) for file in sorted(folder.glob("end?.json"))]


def digest(trainer, module, probe):
    """Of weights, key encoder, statistics, queue, optimizer, schedule, loader position, probe and curves."""
    found = hashlib.sha256()

    def add(value):
        if isinstance(value, torch.Tensor):
            found.update(value.detach().cpu().contiguous().numpy().tobytes())
        elif isinstance(value, dict):
            for name in sorted(value, key=str):
                found.update(str(name).encode())
                add(value[name])
        elif isinstance(value, list | tuple):
            for part in value:
                add(part)
        else:
            found.update(repr(value).encode())

    add(module.state_dict())
    add([optimizer.state_dict() for optimizer in trainer.optimizers])
    add([config.scheduler.state_dict() for config in trainer.lr_scheduler_configs])
    add(trainer.train_dataloader.state_dict())
    add(probe.state_dict())
    add((trainer.global_step, trainer.current_epoch))
    found.update((Path(trainer.default_root_dir) / "curves.jsonl").read_bytes())
    return found.hexdigest()


def environment(rank, ranks, port):
    """What a launcher outside of Lightning sets for a rank."""
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks),
        "LOCAL_RANK": str(rank), "NODE_RANK": "0",
    }  # fmt: skip
