"""Two real ranks (gloo): one detector, one set of statistics, every image scored once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from goodtransfer.data import VOCDetectionDataModule, make_voc
from goodtransfer.data.toy import CLASSES
from goodtransfer.transfer import Detection

sys.path.insert(0, str(Path(__file__).parent))
from detection_ddp import SMALL


def test_two_ranks_are_one_run(tmp_path):
    world = make_voc(tmp_path / "voc", train=20, test=7, size=64)  # 7: one image is read twice
    script = Path(__file__).with_name("detection_ddp.py")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "LOCAL_"))}
    call = [sys.executable, "-W", "error::UserWarning:goodtransfer", str(script), str(world)]
    done = subprocess.run(
        [*call, str(tmp_path)], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "sync_dist" not in done.stderr
    first, second = (torch.load(tmp_path / f"rank{r}.pt", weights_only=True) for r in range(2))
    assert first["steps"] == 4
    assert first["fidelity"] == (
        "batch 8 (paper: 16), learning rate x 8/16 and steps x 16/8, BN over 4 images (paper: 16)"
    )
    trained = [n for n in first["weights"] if "running" not in n and "tracked" not in n]
    assert all(torch.equal(first["weights"][n], second["weights"][n]) for n in trained)
    assert all(torch.equal(v, second["scored"][n]) for n, v in first["scored"].items())
    assert first["scores"] == second["scores"]

    # The detector that both scored, in one process.
    module = Detection("resnet10w8", num_classes=20, detector=SMALL, test_side=64)
    module.detector.load_state_dict(first["scored"])
    module.eval()
    data = VOCDetectionDataModule(world, class_names=CLASSES, batch_size=4)
    for images, targets in data.test_dataloader():
        module.ap.update(module(images), targets)
    alone = {f"voc07_{name}": float(value) for name, value in module.ap.compute().items()}
    assert first["scores"] == pytest.approx(alone, abs=1e-4)
    assert alone["voc07_AP50"] > 0
