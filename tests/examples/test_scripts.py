"""The scripts of ``examples/`` run to their end, on drawn images and on real ones, as small as they go."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from goodtransfer import load_encoder
from goodtransfer.data import make_imagefolder

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SCRIPTS = sorted([*EXAMPLES.glob("*.py"), *EXAMPLES.glob("benchmarks/bench_*.py")])


def run(script, *words, folder):
    """Its words, in a folder of its own."""
    done = subprocess.run(
        [sys.executable, str(script), *map(str, words)], cwd=folder, capture_output=True, text=True,
        timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_says_how_it_is_called(script):
    """In its first lines, by a command that names it."""
    told = script.read_text("utf-8").split('"""')[1]
    assert f"python {script.relative_to(EXAMPLES.parent).as_posix()}" in told


@pytest.mark.slow
def test_backbones_are_compared_by_what_they_detect(shared, tmp_path):
    words = [shared / "data" / "voc2012_100", "--splits", "2012/train", "2012/val", "--steps", 8]
    words += ["--out", tmp_path / "found", "--encoders", "resnet10w8"]
    told = run(EXAMPLES / "detect_voc.py", *words, folder=tmp_path)
    assert "resnet10w8: voc07_AP " in told
    kept = tmp_path / "found" / "resnet10w8"
    metrics = json.loads((kept / "metrics.json").read_text())
    assert metrics.keys() >= {"voc07_AP", "voc07_AP50", "fidelity"}
    assert (kept / "detections.safetensors").stat().st_size > 0


@pytest.mark.slow
def test_a_folder_of_images_pretrains_a_backbone(tmp_path):
    make_imagefolder(tmp_path / "images", train=160, val=40, size=32)
    told = run(EXAMPLES / "pretrain_own_images.py", tmp_path / "images", folder=tmp_path)
    assert "acc" in told
    assert load_encoder(tmp_path / "encoder.safetensors").name == "resnet18"


@pytest.mark.slow
def test_a_trunk_goes_through_a_task_on_real_photos(shared, tmp_path):
    weights = shared / "weights" / "tf_efficientnet_lite0_timm.safetensors"
    words = ["--weights", weights, "--tasks", "few_shot", "--seeds", 1, "--out", tmp_path]
    script = EXAMPLES / "transfer_real_photos.py"
    done = subprocess.run(
        [sys.executable, str(script), str(shared / "data"), *map(str, words)],
        cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert "pretrained seed 0" in done.stdout, done.stderr[-3000:]
    assert (tmp_path / "table.txt").read_text()
