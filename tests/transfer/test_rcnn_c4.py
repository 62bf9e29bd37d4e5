"""The C4 detector against detectron2's own numbers, stage by stage."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from goodtransfer.encoders import build
from goodtransfer.transfer.rcnn_c4 import RCNNC4, detectron2_name

sys.path.insert(0, str(Path(__file__).parent))
from c4_parity import (
    infer_as_upstream,
    load_reference,
    narrow_r50,
    probe,
    read_reference,
    same_detections,
    train_as_upstream,
)

pytestmark = pytest.mark.data
SIZES = [(160, 224), (192, 160)]


@pytest.fixture(scope="module")
def reference(shared):
    return read_reference(shared / "parity" / "det_c4_faster")


@pytest.fixture
def detector(reference):
    _, weights, _, _ = reference
    detector = RCNNC4(narrow_r50(), 20)
    load_reference(detector, weights)
    return detector.eval()


@pytest.fixture
def images(reference):
    return [reference[2]["image0"], reference[2]["image1"]]


@pytest.fixture
def targets(reference):
    inputs = reference[2]
    return [{"boxes": inputs[f"gt_boxes{i}"], "labels": inputs[f"gt_classes{i}"]} for i in range(2)]


def test_inference_stage_by_stage(reference, detector, images):
    infer_as_upstream(reference, detector, images)


@torch.no_grad()
def test_detections(reference, detector, images):
    want = reference[3]
    losses, found = detector(images)
    assert losses == {}
    for i, (here, size) in enumerate(zip(found, SIZES, strict=True)):
        larger = detector.rescale(here, size, tuple(int(s * 1.5) for s in size))
        same_detections(here, want, i, "boxes_network", pixel=0.01)
        same_detections(larger, want, i, "boxes", pixel=0.015)


@pytest.mark.parametrize("case", ["train_all", "train_sampled"])
def test_training(case, reference, detector, images, targets, monkeypatch):
    train_as_upstream(case, reference, detector, images, targets, monkeypatch)


@pytest.fixture(scope="module")
def full(shared):
    return json.loads((shared / "parity/det_c4_full_r50/full_r50_names.json").read_text())


def test_every_name_and_shape_of_the_r50(full):
    with torch.device("meta"):
        detector = RCNNC4(build("resnet50"), 20)
    ours = {detectron2_name(n): list(t.shape) for n, t in detector.state_dict().items()}
    reference = full["pascal_voc_R_50_C4_24k_moco.yaml"]
    assert ours == reference["tensors"]
    assert sum(p.numel() for p in detector.parameters()) == reference["parameters"]


def test_the_key_map_is_that_of_upstreams_converter(full):
    mapping = full["convert_moco_names"]["mapping"]
    for name, theirs in mapping.items():
        ours = detectron2_name(f"encoder.{name}")
        if not name.startswith("fc."):  # dropped with the contrastive head
            assert ours.removeprefix("backbone.").removeprefix("roi_heads.") == theirs


@torch.no_grad()
def test_full_width_forward(full):
    reference = full["forward_formula_weights"]
    detector = RCNNC4(build("resnet50"), 20).eval()
    ours = {detectron2_name(n): t for n, t in detector.state_dict().items()}
    for i, name in enumerate(full["pascal_voc_R_50_C4_24k_moco.yaml"]["tensors"]):
        tensor = ours[name]
        draw = np.random.default_rng([reference["seed"], i]).standard_normal
        if name.endswith("running_mean"):
            value = np.zeros(tensor.shape)
        elif name.endswith("running_var"):
            value = np.ones(tensor.shape)
        elif name.endswith("num_batches_tracked"):
            continue
        elif tensor.ndim == 1:
            value = (
                (1 + 0.1 * draw(len(tensor)))
                if name.endswith("weight")
                else 0.05 * draw(len(tensor))
            )
        else:
            fan_in = tensor[0].numel()
            value = 0.7 * draw(tensor.numel()) * math.sqrt(2 / fan_in)
        tensor.copy_(torch.from_numpy(value.reshape(tensor.shape)).float())
    image = np.random.default_rng([reference["seed"], 1000000]).integers(0, 256, (3, 160, 208))
    image = torch.from_numpy(image.astype(np.uint8))
    _, last_stage = detector.encoder.split(4)
    c4 = detector.encoder(detector.pad([image]), (4,), normalized=True)[4]
    assert list(c4.shape) == reference["res4_shape"]

    def close(tensor, name):
        assert probe(tensor)[1] == pytest.approx(reference[name][1], rel=1e-3)

    close(c4, "res4_probe")
    logits, deltas = detector.rpn_head(c4)
    close(logits, "rpn_logits_probe")
    close(deltas, "rpn_deltas_probe")
    proposals = detector.propose(detector.anchors((10, 13)), logits, deltas, [(160, 208)])
    assert abs(len(proposals[0]) - reference["n_proposals"]) <= 4
    first = torch.tensor(reference["proposals_first20"])
    assert (proposals[0][:20] - first).abs().max() < 1e-2
    pooled = detector.pool(c4, [first])
    close(pooled, "pooled_first20_probe")
    close(detector.norm(last_stage(pooled)), "res5_first20_probe")
    features = detector.region_features(c4, [first]).mean((2, 3))
    class_logits, box_deltas = detector.box_predictor(features)
    assert torch.allclose(
        class_logits, torch.tensor(reference["cls_logits_first20"]), rtol=1e-3, atol=1e-3
    )
    close(box_deltas, "box_deltas_first20_probe")
