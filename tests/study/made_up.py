"""Results that nobody measured: all that a report reads of every cell, from a lot, in seconds.

Nothing is trained, and the numbers mean nothing: their ``run.json`` says ``made_up``.
"""

import json
from dataclasses import asdict

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from goodtransfer.analysis.errors import SLICES, TYPES
from goodtransfer.data.voc import VOC_CLASSES
from goodtransfer.study.detections import RECALL
from goodtransfer.study.plan import Given, Study
from goodtransfer.study.protocol import TASKS
from goodtransfer.study.results import Results
from goodtransfer.study.transfers import TRANSFERS

STEPS = range(10, 210, 10)
IMAGES = ("one/a", "one/b", "two/c")


def made_up_card(out, labels):
    """A report card of encoders that do not exist; of detections there would have to be files."""
    encoders = {label: Given("nothing", "resnet10w8", f"{n:016}") for n, label in enumerate(labels)}
    tasks = ("linear", "city", "few_shot", "landmarks", "inversion")
    study = Study.open(out, scale="tiny", tables=("card",), tasks=tasks, seeds=2, encoders=encoders)
    study.save()
    make_up(study)
    return study


def make_up(study, classes=VOC_CLASSES, without=()):
    """Finish every cell of a study; its VOC has these classes, and of some of them no objects."""
    results = Results(study)
    for number, cell in enumerate(study.cells()):
        rng = np.random.default_rng(number)
        finished = results.work(cell) / "finished"
        finished.mkdir()
        metrics = {}
        if cell.kind == "pretrain":
            pretrained(cell, finished, rng)
        else:
            metrics = {name: rng.uniform(1, 60) for name in TRANSFERS[cell.kind].columns}
            if cell.row.method != "SupervisedCE":  # which alone has a classifier of its own
                metrics = {k: v for k, v in metrics.items() if not k.endswith("acc_head")}
            picture(finished / "told.png", rng, 96, 512)
            LEFT.get(cell.kind, nothing)(study, cell, finished, rng, classes, without)
        run = {
            "kind": cell.kind,
            "row": {**asdict(cell.row), "arguments": dict(cell.row.arguments)},
            "scale": study.scale.name,
            "seed": cell.seed,
            "fidelity": cell.fidelity,
            "wall_seconds": 1.0,
            "cpu_seconds": 1.0,
            "environment": {"device": "none"},
            "made_up": True,
        }
        results.finish(cell, finished, run, metrics)


def pretrained(cell, finished, rng):
    if not cell.row.trains:
        return
    by_task = cell.row.method in TASKS
    logged = ["loss"] if by_task else ["loss", "pretext_acc", "online_train_acc"]
    if cell.row.method == "SupervisedCE":
        logged.remove("pretext_acc")
    rows = [{"step": step, **{name: rng.uniform(1, 9) for name in logged}} for step in STEPS]
    write_rows(finished / "curves.jsonl", rows)
    picture(finished / "samples.png", rng, 96, 1024)
    if not by_task:
        picture(finished / "views.png", rng, 36, 146)


def detected(study, cell, finished, rng, classes, without):
    """As ``detections.write_detections`` and ``write_errors``."""
    curve = {"recall": RECALL.tolist(), "precision": sorted(rng.random(len(RECALL)))[::-1]}
    (finished / "precision.json").write_text(json.dumps(curve))
    every = len(classes)
    measures = {
        "trend": 100 * rng.dirichlet(np.ones(len(TYPES)), (every, 5)),
        "shares": 100 * rng.dirichlet(np.ones(len(SLICES)), every),
        "ap": rng.uniform(0, 60, (every, 1)),
        "regained": rng.uniform(0, 20, (every, len(TYPES))),
    }
    for values in measures.values():
        values[[classes.index(name) for name in without]] = np.nan
    names = {"class_names": json.dumps(list(classes))}
    save_file(measures, finished / "errors.safetensors", names)


def in_the_course(study, cell, finished, rng, classes, without):
    """AP at each scored iteration, and once more of the test."""
    scored = study.scale.protocol(cell.kind).schedule().eval_iters
    rows = [{"step": step - 1, "voc07_course_AP": rng.uniform(1, 60)} for step in scored]
    rows.append({"step": scored[-1], "voc07_course_AP": rows[-1]["voc07_course_AP"]})
    write_rows(finished / "curves.jsonl", rows)


def marked(study, cell, finished, rng, classes, without):
    """As ``faces.KeepFaces``."""
    true = rng.uniform(4, 28, (8, 5, 2)).astype(np.float32)
    faces = rng.integers(0, 256, (8, 3, 32, 32), np.uint8)
    found = true + rng.normal(0, 1, true.shape).astype(np.float32)
    save_file({"faces": faces, "true": true, "found": found}, finished / "faces.safetensors")


def rebuilt(study, cell, finished, rng, classes, without):
    """As ``analysis.Gallery``."""
    gallery = finished / "gallery"
    for name in IMAGES:
        for whose in ("original", cell.row.name):
            picture(gallery / whose / f"{name}.png", rng, 80, 80)
    entries = [{"image": name, "lpips_uncalibrated": rng.uniform(4, 8)} for name in IMAGES]
    (gallery / "results.json").write_text(json.dumps({"inversions": entries}))


def nothing(study, cell, finished, rng, classes, without):
    """Beside its numbers and its picture."""


LEFT = {
    "voc07": detected,
    "voc0712": detected,
    "voc07_course": in_the_course,
    "landmarks": marked,
    "inversion": rebuilt,
}


def picture(path, rng, height, width):
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    Image.fromarray(coarse).resize((width, height), Image.Resampling.NEAREST).save(path)


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
