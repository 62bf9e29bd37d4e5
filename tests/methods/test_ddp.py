"""Two real ranks (gloo) against the official two-rank run, and against one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from goodtransfer.distributed import permutation
from goodtransfer.methods import ExemplarMoCo

sys.path.insert(0, str(Path(__file__).parent))
from toy_inputs import PairDataset, encoder

SHARED = Path(__file__).resolve().parents[3] / "shared"
EXACT = {"rtol": 1e-9, "atol": 1e-10}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each rank saw, after one launch of the script for all tests here."""
    out = tmp_path_factory.mktemp("ddp")
    script = Path(__file__).with_name("ddp_run.py")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "LOCAL_"))}
    call = [sys.executable, str(script), str(SHARED), str(out)]
    done = subprocess.run(call, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(out / f"rank{r}.pt", weights_only=True) for r in range(2)]


@pytest.mark.data
@pytest.mark.usefixtures("shared")
def test_shuffle_bn_equals_the_official_two_rank_run(ranks):
    case = SHARED / "parity/moco_v2_shuffle_2rank"
    run = json.loads((case / "run.json").read_text())
    expected = load_file(case / "run_f64.safetensors")
    for r, results in enumerate(ranks):
        steps = results["official"]["steps"]
        assert len(steps) == run["steps"] == 4
        losses = [s["loss"] for s in steps]
        assert losses == pytest.approx(run["loss_per_rank"][str(r)], rel=1e-10)
        for number, step in enumerate(steps, start=1):
            queue = step["queue"]
            torch.testing.assert_close(queue["keys"].T, expected[f"step{number}.queue"], **EXACT)
            assert int(queue["pointer"]) == int(expected[f"step{number}.queue_ptr"])
            official = {n for n in expected if n.startswith(f"step{number}.query.")}
            assert len(official) == 10  # two convolutions, two batch norms, two linear layers
            for name in official:
                value = step["query"][name.split(".query.")[1]]
                torch.testing.assert_close(value, expected[name], **EXACT)
        for name, value in results["official"]["buffers"].items():
            official = expected[f"rank{r}.final.{name}"].reshape(value.shape)
            torch.testing.assert_close(value, official, **EXACT)


def test_ranks_hold_the_same_queue_and_weights(ranks):
    a, b = (r["joined"]["steps"] for r in ranks)
    assert len(a) == len(b) == 4
    for one, other in zip(a, b, strict=True):
        for part in ("queue", "query"):
            for name, value in one[part].items():
                assert torch.equal(value, other[part][name]), name


def test_two_ranks_equal_one_process_with_the_joined_batch(ranks, trainer_options):
    dataset = PairDataset(32, dtype=torch.float64)
    steps = list(zip(*(r["joined"]["steps"] for r in ranks), strict=True))
    batches = DataLoader(dataset, batch_sampler=[a["index"] + b["index"] for a, b in steps])
    module = ExemplarMoCo(encoder(batch_norm=False), queue_size=12, dim=6, lr=0.5).double()
    losses = []

    class Record(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            losses.append(float(outputs["loss"]))

    trainer = pl.Trainer(max_epochs=1, callbacks=[Record()], **trainer_options)
    trainer.fit(module, batches)
    together = [(a["loss"] + b["loss"]) / 2 for a, b in steps]
    assert together == pytest.approx(losses, rel=1e-10)
    for name, value in ranks[0]["joined"]["steps"][-1]["queue"].items():
        torch.testing.assert_close(module.queue.state_dict()[name], value, rtol=1e-10, atol=1e-12)


def test_ddp_never_sends_the_queue(ranks):
    for r in ranks:
        sent = r["joined"]["broadcast"]
        assert sent, "the probe saw no buffers at all"
        assert not [name for name in sent if name.startswith("queue")]


def test_the_data_module_deals_one_order_to_the_ranks(ranks):
    a, b = (r["folder"] for r in ranks)
    assert len(a) == len(b) == 8  # 40 images in batches of 2 x 5, two epochs
    for epoch in range(2):
        generator = torch.Generator().manual_seed(3 * 1_000_003 + epoch)
        order = torch.randperm(40, generator=generator).tolist()
        steps = slice(4 * epoch, 4 * epoch + 4)
        assert [i for step in a[steps] for i in step] == order[0::2]
        assert [i for step in b[steps] for i in step] == order[1::2]


def test_ranks_may_hold_different_numbers_of_images(ranks):
    a, b = (r["ragged"] for r in ranks)
    everything = torch.cat([a["images"], b["images"]])
    assert [len(r["images"]) for r in (a, b)] == [3, 5]
    for r in (a, b):
        assert torch.equal(r["keys"], 2 * everything)
        assert torch.equal(r["own"], 2 * r["images"])
        assert len(r["seen"]) == len(r["images"])
    assert torch.equal(torch.cat([a["seen"], b["seen"]]), everything[permutation(8, 1)])
    assert not torch.equal(a["seen"], a["images"])
