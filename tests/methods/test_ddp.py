"""Two real ranks (gloo) against the official two-rank run; tests/reliability has the rest on ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

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


def test_the_data_module_deals_one_order_to_the_ranks(ranks):
    a, b = (r["folder"] for r in ranks)
    assert len(a) == len(b) == 8  # 40 images in batches of 2 x 5, two epochs
    for epoch in range(2):
        generator = torch.Generator().manual_seed(3 * 1_000_003 + epoch)
        order = torch.randperm(40, generator=generator).tolist()
        steps = slice(4 * epoch, 4 * epoch + 4)
        assert [i for step in a[steps] for i in step] == order[0::2]
        assert [i for step in b[steps] for i in step] == order[1::2]
