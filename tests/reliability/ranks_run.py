"""Run by test_ranks.py: the same work on ranks, and in one process with all that they have between them.

``ranks_run.py FOLDER WORLD`` forks WORLD processes that meet by gloo; 0 is one process without a group.
Each leaves ``FOLDER/WORLD_RANK.pt``.
"""

import os
import sys
import traceback
import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parents[1] / "methods"))
sys.path.insert(0, str(Path(__file__).parents[1] / "metrics"))
sys.path.insert(0, str(Path(__file__).parent))
from coco_worlds import as_images, random_world
from kills import free_port
from toy_inputs import PairDataset, encoder
from training import environment

import goodtransfer.methods.instdisc as instdisc_module
from goodtransfer import (
    COCODetectionAP,
    ExemplarMoCo,
    ImageNetDataModule,
    InstDisc,
    LandmarkError,
    LinearProbe,
    MoCoV2,
    SegmentationScores,
    SimCLR,
    SupervisedCE,
    VOCDetectionAP,
)
from goodtransfer.callbacks import OnlineKNN, OnlineProbe
from goodtransfer.data import make_imagefolder
from goodtransfer.data.loader import EpochSampler
from goodtransfer.distributed import gather, rank, world_size

OPTIONS = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}


def trainer(**options):
    ranks = {"devices": world_size(), "strategy": "ddp" if dist.is_initialized() else "auto"}
    return pl.Trainer(**OPTIONS | ranks | options)


# --- Methods

EPOCHS, QUEUE, IMAGES = 2, 12, 31  # images of an epoch, in its order
# Images that the ranks of a world have in the steps of an epoch: the last step is of 7.
DEALT = {
    1: [(8,), (8,), (8,), (7,)],
    2: [(4, 4), (4, 4), (4, 4), (2, 5)],
    4: [(2, 2, 2, 2), (2, 2, 2, 2), (2, 2, 2, 2), (1, 3, 1, 2)],
}


class Drawing(InstDisc):
    """Draws in one process the negatives that the ranks of a world draw."""

    world = 1

    def _draw(self, shape, batch_idx):
        if dist.is_initialized():
            self.drawn = super()._draw(shape, batch_idx)
            return self.drawn
        parts = []
        for number, count in enumerate(DEALT[self.world][batch_idx]):
            instdisc_module.rank = lambda number=number: number
            parts.append(super()._draw((count, *shape[1:]), batch_idx))
        instdisc_module.rank = rank
        return torch.cat(parts)


MOCO = {"queue_size": QUEUE, "dim": 6, "lr": 0.5, "momentum": 0.9, "bn_groups": 1}
BANK = {"num_images": 32, "dim": 6, "lr": 0.5}
METHODS = {
    "moco": partial(MoCoV2, **MOCO),
    "moco without own images": partial(MoCoV2, exclude="image", **MOCO),
    "exemplar": partial(ExemplarMoCo, **MOCO),
    "instdisc by nce": partial(Drawing, negatives=5, **BANK),
    "instdisc by softmax": partial(InstDisc, loss="softmax", negatives=None, **BANK),
    "simclr": partial(SimCLR, dim=6, lr=0.03, warmup_epochs=1),
    "supervised": partial(SupervisedCE, num_classes=4, lr=0.5),
}


def own_batches(world, module):
    """This rank's part of every batch of an epoch; every third image has no label for cross-entropy."""
    views = 1 if isinstance(module, InstDisc | SupervisedCE | LinearProbe) else 2
    images = PairDataset(IMAGES, dtype=next(module.parameters()).dtype)
    found, start = [], 0
    for sizes in DEALT[world]:
        begin = start + sum(sizes[: rank()])
        numbers = range(begin, begin + sizes[rank()])
        start += sum(sizes)
        parts = [torch.stack([images[n][0][view] for n in numbers]) for view in range(views)]
        label = torch.tensor(numbers) % 4
        if isinstance(module, SupervisedCE | LinearProbe):
            label[torch.tensor(numbers) % 3 == 0] = -1
        found.append((tuple(parts), label, torch.tensor(numbers)))
    return found


def memory(module):
    """What the ranks keep alike without sending it."""
    kept = ("queue.", "bank.", "normalizer")
    return {n: v.clone() for n, v in module.named_buffers() if n.startswith(kept)}


class Record(pl.Callback):
    """At the start the memory and weights; of each step loss, gradients, weights and memory."""

    def __init__(self):
        self.steps, self.start = [], {}

    def on_train_start(self, trainer, module):
        self.start = memory(module) | {n: p.detach().clone() for n, p in module.named_parameters()}

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if isinstance(module, SimCLR):  # a rank's statistics would be its own
            module.head.eval()

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.gradients = {
            n: p.grad.clone() for n, p in module.named_parameters() if p.requires_grad
        }

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.steps.append({
            "loss": float(outputs["loss"]),
            "gradients": self.gradients,
            "weights": {n: p.detach().clone() for n, p in module.named_parameters()},
            "memory": memory(module),
            "drawn": getattr(module, "drawn", None),
        })  # fmt: skip


def method(build, world, of=1):
    """Each rank builds from a seed of its own, and leaves the rest to DDP."""
    module = build(encoder(batch_norm=False, seed=rank())).double()
    module.world = of
    built = memory(module) | {n: p.detach().clone() for n, p in module.named_parameters()}
    record = Record()
    batches = own_batches(world, module)
    run = trainer(max_epochs=EPOCHS, precision="64-true", use_distributed_sampler=False,
                  callbacks=[record])  # fmt: skip
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.fit(module, DataLoader(batches, batch_size=None))
    said = [str(warning.message) for warning in caught]
    return {"built": built, "start": record.start, "steps": record.steps, "warnings": said}


def methods(world):
    """By name; of one process also by the world whose negatives it draws."""
    if world:
        return {name: method(build, world) for name, build in METHODS.items()}
    return {
        f"{name} of {of}": method(build, 1, of)
        for name, build in METHODS.items()
        for of in (DEALT if build.func is Drawing else [1])
    }


# --- What is sent

SMALL, LARGE = 64, 2**15  # rows of a memory


def sent(build, world):
    """Bytes that this process wrote during a fit: gloo's sockets are files like any other."""
    module = build(encoder(batch_norm=False)).double()
    batches = own_batches(world, module)
    run = trainer(max_epochs=EPOCHS, use_distributed_sampler=False)
    dist.barrier()
    before = written()
    run.fit(module, DataLoader(batches, batch_size=None))
    dist.barrier()
    return written() - before


def written():
    """So far."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["wchar"])


def shown(*arguments, **options):
    """Exemplar as it would be if DDP knew of its queue."""
    module = ExemplarMoCo(*arguments, **options)
    module._ddp_params_and_buffers_to_ignore = []
    return module


def sizes_sent(world):
    """By method and size of its memory."""
    bank = {"negatives": 5, "dim": 6}
    return {
        name: {
            size: sent(partial(build, **{argument: size}, **options), world)
            for size in (SMALL, LARGE)
        }
        for name, build, argument, options in (
            ("exemplar", ExemplarMoCo, "queue_size", {"dim": 6, "bn_groups": 1}),
            ("shown", shown, "queue_size", {"dim": 6, "bn_groups": 1}),
            ("instdisc", InstDisc, "num_images", bank),
        )
    }


# --- Shuffled batch norm

BN_IMAGES = 16  # of all ranks


def statistics():
    """Running mean and variance that one batch of keys leaves, and one of queries; momentum 1; the keys."""
    images = PairDataset(BN_IMAGES, dtype=torch.float64).images
    part = len(images) // world_size()
    own = images[part * rank() : part * (rank() + 1)]
    found = {}
    for name in ("shuffled", "plain"):
        module = MoCoV2(encoder(), queue_size=QUEUE, dim=6).double().train()
        norms = {"keys": module.key_encoder.trunk.bn1, "queries": module.encoder.trunk.bn1}
        for norm in norms.values():
            norm.momentum = 1.0
        module._encode_queries(own)
        keys, mine = module._encode_keys(own, 3, shuffle=name == "shuffled")
        found[f"{name} encoded"] = keys[mine]
        for side, norm in norms.items():
            found[f"{name} {side}"] = torch.stack([norm.running_mean, norm.running_var])
    return found


# --- Metrics

SCENES, CLASSES = 18, 4


def scenes():
    """What a detector finds in images, and what is there; no image is numbered by its place."""
    rng = np.random.default_rng(0)
    predictions, targets = [], []
    for part in range(3):
        found, there = as_images(*random_world(rng), masks=True)
        for target in there:
            target["image_id"] += 100 * part
        predictions, targets = predictions + found, targets + there
    return predictions, targets


def metrics():
    """Of images dealt as a sampler deals them, of all on the first rank, and of all on the last."""
    everything = list(range(SCENES))
    dealt = [n for _, n in EpochSampler(SCENES, shuffle=True, drop_last=False)]
    first = everything if rank() == 0 else []
    last = [SCENES - 1, *everything] if rank() == world_size() - 1 else []
    return {
        "dealt": scored(dealt),
        "first": scored(first),
        "last": scored(last),
        "asked in between": scored(dealt, asked=len(dealt) // 2),
        "none": [told_without_images(kind(CLASSES)) for kind in (VOCDetectionAP, COCODetectionAP)],
    }


def scored(order, asked=None):
    """All that the metrics tell of images, in whichever order; some are asked after a few, too."""
    predictions, targets = scenes()
    random = torch.Generator().manual_seed(0)
    true = torch.randint(CLASSES, (SCENES, 6, 7), generator=random)
    true[torch.rand(true.shape, generator=random) < 0.2] = 255
    told = torch.randint(CLASSES, true.shape, generator=random)
    points = 10 * torch.rand(SCENES, 5, 2, generator=random)
    found = points + torch.randn(points.shape, generator=random)
    voc, coco = VOCDetectionAP(CLASSES), COCODetectionAP(CLASSES, masks=True)
    city, face = SegmentationScores(CLASSES), LandmarkError()
    for place, n in enumerate(order):
        if place == asked:
            voc.evaluation(), coco.evaluation(), city.per_class()
        objects = {key: value for key, value in targets[n].items() if key != "crowd"}
        if "crowd" in targets[n]:
            objects["difficult"] = targets[n]["crowd"]
        voc.update([predictions[n]], [objects])
        coco.update([predictions[n]], [targets[n]])
        number = torch.tensor([n])
        city.update(told[n : n + 1], {"classes": true[n : n + 1], "image_id": number})
        face.update(found[n : n + 1], points[n : n + 1], number)
    by_voc, by_coco = voc.evaluation(), coco.evaluation()
    curves = [torch.from_numpy(np.stack(by_voc.curve(label))) for label in range(CLASSES)]
    return {
        "voc": {**voc.compute(), "ap": torch.from_numpy(by_voc.ap), "curves": curves},
        "coco": coco.compute(),
        "coco stats": {kind: each.stats for kind, each in by_coco.items()},
        "coco per class": {
            kind: torch.from_numpy(each.per_class) for kind, each in by_coco.items()
        },
        "coco results": coco.results(),
        "city": {**city.compute(), "IoU": city.per_class()},
        "landmarks": face.compute(),
    }


def told_without_images(metric):
    try:
        metric.evaluation()
    except RuntimeError as error:
        return str(error)


def probe(root, world):
    """A readout trained and scored by a data module, whose images no two or four ranks can share."""
    torch.manual_seed(0)
    module = LinearProbe("resnet10w8", num_classes=20, lrs=(0.3, 3.0, 30.0))
    data = ImageNetDataModule(root, batch_size=8 // (world or 1), size=24, selection=0.3)
    run = trainer(max_epochs=2)
    run.fit(module, data)
    selected = float(run.callback_metrics["selection_acc"])
    (scores,) = run.test(module, data, verbose=False)
    return {
        "selection_acc": selected,
        "scores": scores,
        "weights": module.classifiers.weight.detach(),
        "images": len(data.files("val")),
        "selected": len(data.files("selection")),
    }


def readout(world):
    """Classifiers trained on batches of which the ranks have unequal parts, and unequally many labels."""
    torch.manual_seed(0)
    module = LinearProbe(encoder(batch_norm=False), num_classes=4, lrs=(0.1, 1.0))
    run = trainer(max_epochs=EPOCHS, use_distributed_sampler=False)
    run.fit(module, DataLoader(own_batches(world or 1, module), batch_size=None))
    return module.classifiers.weight.detach()


class Outputs(pl.Callback):
    """What validation steps return."""

    def __init__(self):
        self.seen = []

    def on_validation_batch_end(self, trainer, module, outputs, *rest):
        self.seen.append(outputs)


def online(root, world):
    """Scores by callbacks that learnt from features of half of the images that they are asked for."""
    torch.manual_seed(0)
    module = SupervisedCE("resnet10w8", num_classes=20)
    data = ImageNetDataModule(root, batch_size=8 // (world or 1), size=24)
    seen = Outputs()
    trainer(callbacks=[seen]).validate(module, data, verbose=False)
    features, label, index = (
        gather(torch.cat([each[name] for each in seen.seen]))[0]
        for name in ("features", "label", "index")
    )
    rows = [index.tolist().index(number) for number in range(12)]
    own = rows[rank() * 12 // (world or 1) : (rank() + 1) * 12 // (world or 1)]
    callbacks = [OnlineProbe(num_classes=20), OnlineKNN(k=1)]
    silent = SimpleNamespace(log=lambda *value, **options: None)
    for callback in callbacks:
        callback.setup(SimpleNamespace(), silent, "fit")
        outputs = {"features": features[own], "label": label[own]}
        callback.on_train_batch_end(None, silent, outputs, None, 0)
    (scores,) = trainer(callbacks=callbacks).validate(module, data, verbose=False)
    return {"scores": scores, "dealt": len(index)}


# --- Ranks


def work(out, world, number, port):
    """All that one rank does."""
    torch.set_num_threads(1)
    os.chdir(out)
    if world:
        environment(number, world, port)
        dist.init_process_group("gloo", rank=number, world_size=world)
        assert gather(torch.zeros(1 + number))[1] == list(range(1, 1 + world))
    found = {
        "methods": methods(world),
        "sent": sizes_sent(world) if world > 1 else {},
        "statistics": statistics(),
        "metrics": metrics(),
        "probe": probe(out / "toy", world),
        "readout": readout(world),
        "online": online(out / "toy", world),
    }
    torch.save(found, out / f"{world}_{number}.pt")


def main(out, world):
    if not (out / "toy").exists():
        forked(lambda: make_imagefolder(out / "toy", train=90, val=21, size=24))()
    port = free_port()
    waits = [forked(work, out, world, number, port) for number in range(world or 1)]
    sys.exit(max(wait() for wait in waits) > 0)


def forked(function, *arguments):
    """Call in a process of its own; gives what waits for its end, and tells whether it failed."""
    process = os.fork()
    if process:
        return lambda: os.waitpid(process, 0)[1]
    code = 1
    try:
        function(*arguments)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
