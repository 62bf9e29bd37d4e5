"""The scripts of ``examples/`` run to their end, on drawn images and on real ones, as small as they go."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from goodtransfer import load_encoder, read_detections
from goodtransfer.data import make_imagefolder, make_voc

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
def test_backbones_are_compared_by_what_they_detect(tmp_path):
    make_voc(tmp_path / "voc", train=16, test=8, size=96)
    words = [tmp_path / "voc", "--out", tmp_path / "found", "--steps", 2]
    told = run(EXAMPLES / "detect_voc.py", *words, "--encoders", "resnet10w8", folder=tmp_path)
    assert "resnet10w8: voc07_AP " in told
    kept = tmp_path / "found" / "resnet10w8"
    assert {"voc07_AP", "voc07_AP50", "fidelity"} <= json.loads(
        (kept / "metrics.json").read_text()
    ).keys()
    assert read_detections(kept / "detections.safetensors") is not None


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
