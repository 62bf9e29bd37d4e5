"""InstDisc on two real ranks (gloo): one bank, equal to one process with the joined batch."""

import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

import goodtransfer.methods.instdisc as instdisc_module
from goodtransfer.methods.instdisc import InstDisc

sys.path.insert(0, str(Path(__file__).parent))
from toy_inputs import PairDataset, encoder, state


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each rank saw, after one launch of the script."""
    out = tmp_path_factory.mktemp("ddp")
    script = Path(__file__).with_name("instdisc_ddp.py")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "LOCAL_"))}
    call = [sys.executable, str(script), str(out)]
    done = subprocess.run(call, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(out / f"rank{r}.pt", weights_only=True) for r in range(2)]


def test_ranks_hold_the_same_bank_and_never_send_it(ranks):
    a, b = ranks
    assert len(a["steps"]) == len(b["steps"]) == 8
    for one, other in zip(a["steps"], b["steps"], strict=True):
        assert torch.equal(one["bank"], other["bank"])
        assert torch.equal(one["normalizer"], other["normalizer"])
        assert not torch.equal(one["drawn"], other["drawn"])
    for r in ranks:
        assert set(r["sent"]).isdisjoint({"bank.rows", "normalizer"})
        assert r["sent"], "the probe saw no buffers at all"


def test_two_ranks_equal_one_with_the_joined_batch(ranks, trainer_options, monkeypatch):
    """Loss, Z, weights and bank of every step; the negatives are those of both ranks."""
    steps = list(zip(*(r["steps"] for r in ranks), strict=True))
    images = PairDataset(32, dtype=torch.float64)
    items = [((views[0],), y, i) for views, y, i in images]
    order = iter([a["index"] + b["index"] for a, b in steps])

    class Epoch:  # four batches of it; the ranks were dealt another order in the second
        def __iter__(self):
            return islice(order, 4)

        def __len__(self):
            return 4

    batches = DataLoader(items, batch_sampler=Epoch())
    module = InstDisc(encoder(batch_norm=False), num_images=32, negatives=5, dim=6, lr=0.5).double()
    original, seen = module._draw, []

    def both(shape, batch_idx):
        half = (shape[0] // 2, shape[1])
        parts = []
        for number in range(2):
            monkeypatch.setattr(instdisc_module, "rank", lambda number=number: number)
            parts.append(original(half, batch_idx))
        return torch.cat(parts)

    class Record(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            seen.append((float(outputs["loss"]), state(module)))

    module._draw = both
    options = {"max_epochs": 2, "precision": "64-true", "callbacks": [Record()], **trainer_options}
    pl.Trainer(**options).fit(module, batches)
    assert len(seen) == len(steps) == 8
    for (loss, one), (a, b) in zip(seen, steps, strict=True):
        assert (a["loss"] + b["loss"]) / 2 == pytest.approx(loss, rel=1e-10)
        assert abs(a["loss"] - b["loss"]) > 1e-6  # the ranks have images of their own
        torch.testing.assert_close(a["bank"], one["bank.rows"], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(a["head"], one["head.weight"], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(a["normalizer"], one["normalizer"], rtol=1e-12, atol=0)
