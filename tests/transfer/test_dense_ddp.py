"""Two real ranks (gloo) of segmentation and of COCO: one network, by one process's numbers.

With ``sync_batchnorm=True`` all is real but the norms' own sums over the ranks, which PyTorch has for GPUs
alone: ``dense_ddp.synced`` stands in for them.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from goodtransfer.data import make_cityscapes
from goodtransfer.data.toy_layouts import make_coco

sys.path.insert(0, str(Path(__file__).parent))
import dense_ddp


@pytest.fixture
def two_ranks(tmp_path):
    """What each rank saw."""

    def launched(task, world, sync):
        script = Path(__file__).with_name("dense_ddp.py")
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "LOCAL_"))}
        call = [sys.executable, "-W", "error::UserWarning:goodtransfer", str(script), task]
        call += [str(world), str(tmp_path), *(["sync"] if sync else [])]
        done = subprocess.run(call, capture_output=True, text=True, timeout=300, env=clean)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "sync_dist" not in done.stderr
        ranks = [torch.load(tmp_path / f"rank{r}.pt", weights_only=True) for r in range(2)]
        first, second = ranks
        for part in ("weights", "scored"):
            assert first[part].keys() == second[part].keys()
            assert all(torch.equal(v, second[part][n]) for n, v in first[part].items()), part
        assert first["scores"] == second["scores"]
        assert first["losses"] != second["losses"]  # each has images of its own
        return ranks

    return launched


def scored(module, data, metric):
    """What one process finds on all test images."""
    module.eval()
    data.setup("test")
    for images, target in data.test_dataloader():
        with torch.no_grad():
            metric.update(module(images), target)
    return {f"{module.prefix}_{name}": float(value) for name, value in metric.compute().items()}


@pytest.mark.parametrize("sync", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_segmentation_of_two_ranks_is_that_of_one_process(sync, two_ranks, tmp_path):
    """Where batch norm sees all four crops of a step, and not where a rank's norms see two."""
    world = make_cityscapes(tmp_path / "city", train=12, val=3, size=32)  # 3: one is read twice
    first, second = two_ranks("city", world, sync)
    crops = 4 if sync else 2
    assert f"batch 4 (paper: 8), BN over {crops} crops (paper: 8)" in first["fidelity"]
    alone = dense_ddp.fitted("city", world, tmp_path, 1, precision="64-true")
    means = [sum(pair) / 2 for pair in zip(first["losses"], second["losses"], strict=True)]
    assert len(means) == dense_ddp.STEPS
    assert (means == pytest.approx(alone["losses"], rel=1e-9)) == sync
    assert (first["scores"] == pytest.approx(alone["scores"], abs=1e-4)) == sync
    assert alone["scores"]["city_mIoU"] > 0
    for part in ("weights", "scored"):  # of float64, and sums in another order
        off = max(float((v - first[part][n]).abs().max()) for n, v in alone[part].items())
        assert (off < 1e-9) == sync, part

    # The network that both scored, in one process.
    module, data = dense_ddp.city(world, 1)
    module.double().network.load_state_dict(first["scored"])
    expected = scored(module, data, module.scores)
    assert first["scores"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("sync", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_coco_on_two_ranks_scores_every_image_once(sync, two_ranks, tmp_path):
    """Steps sample other regions on every rank, so losses are not one process's; detector and scores are."""
    world = make_coco(tmp_path / "coco", train=20, val=7, size=64)  # 7: one is read twice
    first, _ = two_ranks("coco", world, sync)
    assert first["fidelity"] == (
        "batch 8 (paper: 16), learning rate x 8/16 and steps x 16/8, "
        f"BN over {8 if sync else 4} images (paper: 16)"
    )
    assert len(first["losses"]) == 4

    # The detector that both scored, in one process.
    module, data = dense_ddp.coco(world, 1)
    module.detector.load_state_dict(first["scored"])
    alone = scored(module, data, module.ap)
    assert first["scores"] == pytest.approx(alone, abs=1e-4)
    assert min(alone["coco_APbox50"], alone["coco_APseg50"]) > 0
