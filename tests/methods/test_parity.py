"""Five steps of the official MoCo, number by number (facebookresearch/moco@132aea9, float64)."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from goodtransfer.methods import MoCoV1, MoCoV2
from goodtransfer.optim import cosine, step

sys.path.insert(0, str(Path(__file__).parent))
from parity import Recorder, build, named

EXACT = {"rtol": 1e-9, "atol": 1e-10}


class AfterEachStep(pl.Callback):
    """Collects losses, and copies of the queue and the query network after each step."""

    def __init__(self):
        self.losses, self.queues, self.pointers, self.queries = [], [], [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))
        self.queues.append(module.queue.keys.clone())
        self.pointers.append(int(module.queue.pointer))
        trunk = getattr(module.encoder, "trunk", module.encoder)
        query = named(trunk, module.head)
        self.queries.append({name: value.clone() for name, value in query.items()})


def five_steps(module, batches, options):
    after = AfterEachStep()
    trainer = pl.Trainer(max_epochs=1, callbacks=[after], **options)
    trainer.fit(module, DataLoader(batches, batch_size=None))
    return after


@pytest.mark.data
@pytest.mark.filterwarnings("ignore:With bn_groups=1 on one device:UserWarning")
@pytest.mark.parametrize("case", ["moco_v1_bn", "moco_v1_nobn", "moco_v2_bn", "moco_v2_nobn"])
def test_equals_the_official_run(case, shared, trainer_options, monkeypatch):
    folder = shared / "parity" / case
    run = json.loads((folder / "run.json").read_text())
    expected = load_file(folder / "run_f64.safetensors")
    inputs = load_file(folder / "inputs.safetensors")
    module = build(folder, run, bn_groups=1)
    recorder = Recorder(monkeypatch, module)
    # The permutation of the keys only changes the order of sums; without it equality is to 1e-15.
    views = zip(inputs["im_q"].double(), inputs["im_k"].double(), strict=True)
    after = five_steps(module, [((q, k),) for q, k in views], trainer_options)

    compared = set()
    for number, official in enumerate(run["runs"]["f64"]):
        name = f"step{number + 1}"
        assert after.losses[number] == pytest.approx(official["loss"], rel=1e-10)
        assert after.pointers[number] == official["queue_ptr_after"]
        torch.testing.assert_close(recorder.logits[number], expected[f"{name}.logits"], **EXACT)
        torch.testing.assert_close(after.queues[number].T, expected[f"{name}.queue"], **EXACT)
        compared |= {f"{name}.logits", f"{name}.queue"}
        for side, states in (("key", recorder.keys), ("query", after.queries)):
            for parameter, value in states[number].items():
                key = f"{name}.{side}.{parameter}"
                if key in expected:
                    torch.testing.assert_close(value, expected[key], **EXACT)
                    compared.add(key)
    for side, encoder in (("query", module.encoder), ("key", module.key_encoder)):
        for buffer, value in encoder.trunk.named_buffers():
            key = f"final.{side}_buffer.{buffer}"
            torch.testing.assert_close(value, expected[key], **EXACT)
            compared.add(key)
    assert {k for k in expected if ".grad." not in k} <= compared


def formula_weights(module, seed):
    """`probe` and weights of the README of the resnet18 cases."""
    names = list(named(module.encoder, module.head).items())
    names = [(n, v) for n, v in names if n not in ("mean", "std")]
    for i, (name, value) in enumerate(names):
        r = np.random.default_rng([seed, i])
        if name.endswith("running_mean"):
            new = np.zeros(value.numel())
        elif name.endswith("running_var"):
            new = np.ones(value.numel())
        elif name.endswith("num_batches_tracked"):
            continue
        elif value.ndim == 1 and name.endswith("weight"):
            new = 1 + 0.1 * r.standard_normal(value.numel())
        elif value.ndim == 1:
            new = 0.05 * r.standard_normal(value.numel())
        else:
            new = r.standard_normal(value.numel()) * np.sqrt(2 / value[0].numel())
        value.copy_(torch.from_numpy(new).reshape(value.shape).float())


@pytest.mark.data
@pytest.mark.filterwarnings("ignore:With bn_groups=1 on one device:UserWarning")
@pytest.mark.parametrize(
    ("case", "method"), [("moco_v1_resnet18", MoCoV1), ("moco_v2_resnet18", MoCoV2)]
)
def test_resnet18_equals_the_official_run(case, method, shared, trainer_options, monkeypatch):
    folder = shared / "parity" / case
    run = json.loads((folder / "run.json").read_text())
    expected = load_file(folder / "run_f64.safetensors")
    module = method(
        "resnet18",
        queue_size=run["K"],
        dim=run["dim"],
        temperature=run["T"],
        momentum=run["m"],
        lr=run["lr"],
        weight_decay=run["weight_decay"],
        bn_groups=1,
    )
    module.encoder.set_normalization(None)
    module.key_encoder.set_normalization(None)
    seed, shape = run["seed"], (2, run["batch"], 3, run["px"], run["px"])
    with torch.no_grad():
        formula_weights(module, seed)
        module.key_encoder.load_state_dict(module.encoder.state_dict())
        module.key_head.load_state_dict(module.head.state_dict())
        noise = np.random.default_rng([seed, 1000000]).standard_normal((run["dim"], run["K"]))
        noise = torch.from_numpy(noise).float()
        module.queue.keys.copy_(torch.nn.functional.normalize(noise, dim=0).T)
    module.double()
    recorder = Recorder(monkeypatch, module)
    batches = []
    for number in range(run["steps"]):
        images = np.random.default_rng([seed, 2000000 + number]).standard_normal(shape)
        q, k = torch.from_numpy(images).float().double()
        batches.append(((q, k),))
    after = five_steps(module, batches, trainer_options)
    for number, official in enumerate(run["runs"]["f64"]):
        assert after.losses[number] == pytest.approx(official["loss"], rel=1e-9)
        assert after.pointers[number] == official["queue_ptr_after"]
    for number in (1, 5):
        got = recorder.logits[number - 1]
        torch.testing.assert_close(got, expected[f"step{number}.logits"], rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(after.queues[4].T, expected["step5.queue"], rtol=1e-8, atol=1e-8)


@pytest.mark.data
def test_learning_rates_equal_the_official_ones(shared):
    official = json.loads((shared / "parity/moco_lr/lr_schedule.json").read_text())
    for name, factor in (("v1", step), ("v2", cosine)):
        settings, rates = official[name]["settings"], official[name]["lr_per_epoch"]
        ours = [settings["lr"] * factor(e, settings["epochs"]) for e in range(settings["epochs"])]
        assert ours == pytest.approx(rates, rel=1e-12)
        assert len(rates) == 200
    short = official["short"]
    epochs = short["settings"]["epochs"]
    ours = [short["settings"]["lr"] * cosine(e, epochs) for e in range(epochs)]
    assert ours == pytest.approx(short["lr_per_epoch"], rel=1e-12)
