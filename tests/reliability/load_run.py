"""Run by test_load.py: ``load_run.py WHAT FOLDER [...]`` trains long, holds a large queue, makes cells at
once, or reads from a file that gives nothing; what it measures is printed as JSON.

Children are forked from this process, which has imported torch and has run nothing.
"""

import json
import logging
import multiprocessing
import os
import random
import re
import sys
import time
import traceback
import warnings
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parents[1] / "methods"))
sys.path.insert(0, str(Path(__file__).parents[1] / "study"))
import tiny  # noqa: F401 - adds its scale
from toy_inputs import PairDataset, encoder

from goodtransfer import ExemplarMoCo, ImageNetDataModule
from goodtransfer.data import images, make_imagefolder
from goodtransfer.study import cells
from goodtransfer.study.fitting import cell_trainer
from goodtransfer.study.plan import Study

QUIET = {
    "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
    "enable_model_summary": False,
}  # fmt: skip


def forked(function, *arguments):
    """Call in a process of its own; gives what waits for its end and for what it returns."""
    reading, writing = os.pipe()
    process = os.fork()
    if not process:
        code = 1
        try:
            os.write(writing, json.dumps(function(*arguments)).encode())
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)

    def result():
        with open(reading) as pipe:
            told = pipe.read()
        assert os.waitpid(process, 0)[1] == 0, function
        return json.loads(told)

    return result


# --- A long training

EPOCHS, IMAGES, BATCH, WORKERS, EVERY = 50, 400, 4, 2, 100


class Memory(pl.Callback):
    """Bytes resident, every 100 steps: of this process and of its loader processes."""

    def __init__(self):
        self.samples = []

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step % EVERY == 0:
            processes = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
            kinds = ("Rss", "Pss_Anon", "Pss_Shmem")
            found = [sum(rolled(process, kind) for process in processes) for kind in kinds]
            self.samples.append((trainer.global_step, len(processes), found[0], sum(found[1:])))


def rolled(process, kind):
    text = Path(f"/proc/{process}/smaps_rollup").read_text()
    return 1024 * int(re.search(rf"^{kind}:\s+(\d+) kB", text, re.MULTILINE)[1])


def steps(folder):
    """A cell's own trainer, which logs, and saves after each epoch."""
    forked(lambda: str(make_imagefolder(folder / "toy", train=IMAGES, val=20, size=24)))()
    memory, module = Memory(), ExemplarMoCo(encoder(), queue_size=256, dim=8)
    data = ImageNetDataModule(folder / "toy", batch_size=BATCH, size=12, num_workers=WORKERS)
    trainer = cell_trainer(
        "load", folder, EPOCHS, callbacks=[memory], accelerator="cpu", limit_val_batches=0
    )
    started = time.monotonic()
    trainer.fit(module, data)
    return {
        "samples": memory.samples,
        "steps": trainer.global_step,
        "seconds": time.monotonic() - started,
        "cpu": sum(os.times()[:2]),
    }


# --- A large queue


def queue(folder, size):
    """The most that was ever resident, in bytes, of a few steps with a queue; and the keys it holds."""
    module = ExemplarMoCo(encoder(), queue_size=size, dim=128)
    trainer = pl.Trainer(max_epochs=1, default_root_dir=folder, **QUIET)
    trainer.fit(module, DataLoader(PairDataset(96), batch_size=32))
    told = Path("/proc/self/status").read_text()
    peak = 1024 * int(re.search(r"^VmHWM:\s+(\d+) kB", told, re.MULTILINE)[1])
    return {"peak": peak, "filled": int(module.queue.filled), "size": len(module.queue)}


# --- Cells at once

CELLS, PROCESSES = 50, 8


def study(out):
    """Readouts of pixels and of untrained encoders, of many seeds: two cells each."""
    made = Study.open(out, scale="tiny", tables=["floor"], tasks=["linear"], seeds=13)
    made.save()
    return made, made.cells()[:CELLS]


def side_by_side(folder, number):
    """All cells in an order of its own; a line for each that it really makes."""
    made, chosen = study(folder / "side")
    make = cells._make

    def counted(of, cell, results):
        with (folder / "made.txt").open("a") as lines:
            lines.write(f"{cell.key} {number}\n")
        make(of, cell, results)

    cells._make = counted
    by_key = {cell.key: cell for cell in chosen}
    last = [cell for cell in chosen if cell.needs]
    random.Random(number).shuffle(last)
    for cell in last:
        for each in (*(by_key[key] for key in cell.needs), cell):
            cells.run_cell(made, each)
    return number


def serial(folder):
    """All cells, one after the other."""
    made, chosen = study(folder / "serial")
    for cell in chosen:
        cells.run_cell(made, cell)
    return [cell.key for cell in chosen]


def many_cells(folder):
    started = time.monotonic()
    waits = [forked(side_by_side, folder, number) for number in range(PROCESSES)]
    ended = [wait() for wait in waits]
    halfway = time.monotonic()
    keys = forked(serial, folder)()
    return {
        "ended": ended,
        "keys": keys,
        "side": halfway - started,
        "serial": time.monotonic() - halfway,
    }


# --- A file that gives nothing


def pipe(folder, when, on_error):
    """Read a data set in which an image of the second batch never comes, as from a dead mount.

    That is played by a pipe that nobody writes to, since an image that is one is refused. Its loader
    process waits there, to be killed: while this one waits for the batch, or trains on the first. Where
    faulty images are skipped, that image is read in place of one, which is empty.
    """
    make_imagefolder(folder / "toy", train=24, val=20, size=24)
    data = ImageNetDataModule(
        folder / "toy", batch_size=4, size=12, views="center", num_workers=2, on_error=on_error
    )
    waiting = when == "waiting"
    loader = data.features_dataloader("train") if waiting else data.train_dataloader()
    files, number = data.files("train"), [number for _, number in loader.sampler][5]
    if on_error == "skip":
        Path(files.path(number)).write_bytes(b"")
        number += 1
    image, gate, decode = files.path(number), folder / "gate", images.decode
    os.mkfifo(gate)

    def late(path, **options):
        if str(path) == str(image):
            gate.read_bytes()
        return decode(path, **options)

    images.decode = late
    print(gate, image, sep="\n", flush=True)
    if waiting:
        for _ in loader:
            pass
    else:
        pl.Trainer(max_epochs=1, default_root_dir=folder, **QUIET).fit(Sleeping(), data)


class Sleeping(pl.LightningModule):
    """Its first step takes a minute."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch, batch_idx):
        end = time.monotonic() + 60
        while time.monotonic() < end:
            time.sleep(0.01)
        return self.weight * 0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def main(what, folder, *more):
    folder = Path(folder)
    torch.set_num_threads(1)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    if what == "pipe":
        pipe(folder, *more)
    elif what == "queue":
        print(json.dumps([forked(queue, folder, int(size))() for size in more]))
    else:
        print(json.dumps({"steps": steps, "cells": many_cells}[what](folder)))


if __name__ == "__main__":
    main(*sys.argv[1:])
