"""The C4 detector against detectron2's own numbers, stage by stage."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torchvision.models.resnet import Bottleneck
from torchvision.ops import box_iou

from goodtransfer.encoders import ResNet, build
from goodtransfer.transfer.rcnn_c4 import RCNNC4, detectron2_name, rescale

pytestmark = pytest.mark.data
SIZES = [(160, 224), (192, 160)]


def probe(tensor):
    """The three numbers that stand for a big tensor in the reference."""
    flat = tensor.detach().double().flatten().numpy()
    draws = np.random.default_rng([7, flat.size]).standard_normal(flat.size)
    return [flat.sum(), np.abs(flat).sum(), flat @ draws]


def assert_probe(tensor, expected, rel=1e-4):
    scale = expected[1]
    assert probe(tensor) == pytest.approx(expected, rel=rel, abs=rel * scale)


def assert_same_boxes(found, wanted, pixel=1e-2):
    """In any order, since scores nearly tie; one in a hundred may differ, as NMS then decides."""
    same = box_iou(found, wanted) > 0.999
    for matched in (same.any(0), same.any(1)):
        assert matched.float().mean() >= 0.99
    nearest = box_iou(found, wanted).argmax(0)[same.any(0)]
    assert (found[nearest] - wanted[same.any(0)]).abs().max() < pixel


def narrow_r50():
    """The reference's trunk: depth 50, stem 8, bottlenecks of 4."""
    encoder = ResNet("narrow", Bottleneck, (3, 4, 6, 3), width=4)
    encoder.conv1 = nn.Conv2d(3, 8, kernel_size=7, stride=2, padding=3, bias=False)
    encoder.bn1 = nn.BatchNorm2d(8)
    encoder.layer1[0].conv1 = nn.Conv2d(8, 4, kernel_size=1, bias=False)
    encoder.layer1[0].downsample[0] = nn.Conv2d(8, 16, kernel_size=1, bias=False)
    return encoder


def load_reference(detector, weights):
    ours = {name: weights[detectron2_name(name)].float() for name in detector.state_dict()}
    assert len(ours) == len(weights)
    detector.load_state_dict(ours)


@pytest.fixture(scope="module")
def reference(shared):
    folder = shared / "parity" / "det_c4_faster"
    run = json.loads((folder / "run.json").read_text())
    parts = [load_file(folder / f"{n}.safetensors") for n in ("weights", "inputs", "run")]
    return run, *parts


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


@torch.no_grad()
def test_inference_stage_by_stage(reference, detector, images):
    run, _, _, want = reference
    _, last_stage = detector.encoder.split(4)
    batch = detector.pad(images)
    assert (batch[..., ::8] - want["eval.preprocessed_every_8th_column"]).abs().max() < 1e-6
    assert_probe(batch, run["eval.preprocessed_probe"])
    c4 = detector.encoder(batch, (4,), normalized=True)[4]
    assert torch.allclose(c4, want["eval.res4"], rtol=1e-4, atol=1e-4)

    logits, deltas = detector.rpn_head(c4)
    raw_logits = want["eval.rpn_logits_raw"].permute(0, 2, 3, 1).flatten(1)
    raw_deltas = want["eval.rpn_deltas_raw"].permute(0, 2, 3, 1).reshape(2, -1, 4)
    assert torch.allclose(logits, raw_logits, rtol=1e-4, atol=1e-4)
    assert torch.allclose(deltas, raw_deltas, rtol=1e-4, atol=1e-4)

    anchors = detector.anchors((12, 14))
    assert torch.allclose(anchors, want["anchors"], atol=1e-4)

    proposals = detector.propose(anchors, logits, deltas, SIZES)
    assert [len(p) for p in proposals] == run["n_proposals_eval"]
    official = [want[f"eval.proposals{i}"] for i in range(2)]
    for found, wanted in zip(proposals, official, strict=True):
        assert_same_boxes(found, wanted)
    proposals = official  # in its order, for what follows

    pooled = detector.pool(c4, proposals)
    rows = want["eval.pooled_rows"]
    assert torch.allclose(pooled[rows], want["eval.pooled"], rtol=1e-3, atol=1e-3)
    assert_probe(pooled, run["eval.pooled_probe"])
    assert torch.allclose(
        detector.norm(last_stage(pooled[rows])), want["eval.res5_rows"], rtol=1e-3, atol=1e-3
    )
    features = detector.region_features(c4, proposals)
    assert torch.allclose(features[::10], want["eval.res5_mean_every_10th"], rtol=1e-3, atol=1e-3)
    assert_probe(features, run["eval.res5_mean_probe"])
    class_logits, box_deltas = detector.box_predictor(features)
    expected = want["eval.cls_logits_every_10th"]
    assert torch.allclose(class_logits[::10], expected, rtol=1e-3, atol=2e-3)
    expected = want["eval.box_deltas_every_10th"]
    assert torch.allclose(box_deltas[::10], expected, rtol=1e-3, atol=2e-3)
    assert_probe(class_logits, run["eval.cls_logits_probe"])
    assert_probe(box_deltas, run["eval.box_deltas_probe"])


@torch.no_grad()
def test_detections(reference, detector, images):
    want = reference[3]
    losses, found = detector(images)
    assert losses == {}
    for i, (here, size) in enumerate(zip(found, SIZES, strict=True)):
        larger = rescale(here, size, tuple(int(s * 1.5) for s in size))
        for given, name, pixel in ((here, "boxes_network", 0.01), (larger, "boxes", 0.015)):
            boxes = want[f"eval.det{i}.{name}"]
            same = box_iou(given["boxes"], boxes) > 0.999
            same &= given["labels"][:, None] == want[f"eval.det{i}.classes"]
            same &= (given["scores"][:, None] - want[f"eval.det{i}.scores"]).abs() < 1e-4
            assert len(given["boxes"]) == len(boxes) == 100
            assert same.any(0).sum() >= 99  # a near-tie of NMS may fall the other way elsewhere
            assert same.any(1).sum() >= 99
            first = same.float().argmax(0)[same.any(0)]
            assert (given["boxes"][first] - boxes[same.any(0)]).abs().max() < pixel


def _take_first(monkeypatch):
    monkeypatch.setattr(torch, "randperm", lambda n, **k: torch.arange(n, device=k.get("device")))


@pytest.mark.parametrize("case", ["train_all", "train_sampled"])
def test_training(case, reference, detector, images, targets, monkeypatch):
    run, _, _, want = reference
    _take_first(monkeypatch)
    if case == "train_all":
        sampler = type(detector.anchor_sampler)
        detector.anchor_sampler = sampler(100_000, 1.0)
        detector.roi_sampler = sampler(100_000, 1.0)
    else:
        detector.roi_sampler.batch_size_per_image = 64
    detector.train()
    seen = {}
    original = detector.sample

    def sample(proposals, target):
        seen[len(seen)] = original(proposals, target)
        return seen[len(seen) - 1]

    monkeypatch.setattr(detector, "sample", sample)
    losses, nothing = detector(images, targets)
    assert nothing == []
    assert {k: v.item() for k, v in losses.items()} == pytest.approx(run[case]["losses"], rel=1e-4)

    anchors = detector.anchors((12, 14))
    for i, target in enumerate(targets):
        labels, _ = detector.label_anchors(anchors, target)
        (positive,), (negative,) = detector.anchor_sampler([labels])
        taken = torch.full_like(labels, -1)
        taken[positive.bool()], taken[negative.bool()] = 1, 0
        assert torch.equal(taken.to(torch.int8), want[f"{case}.rpn_labels{i}"])
        assert (seen[i]["boxes"] - want[f"{case}.roi_boxes{i}"]).abs().max() < 1e-2
        assert torch.equal(seen[i]["labels"].short(), want[f"{case}.roi_classes{i}"])
        foreground = seen[i]["labels"] < 20
        assert int(foreground.sum()) == run[case]["n_fg"][i]
        assert torch.equal(
            seen[i]["objects"][foreground], want[f"{case}.roi_gt_boxes{i}"][foreground]
        )

    sum(losses.values()).backward()
    by_name = {detectron2_name(n): p for n, p in detector.named_parameters()}
    assert by_name.keys() == run[case]["grad_probe"].keys()
    checked = 0
    for name, expected in run[case]["grad_probe"].items():
        if expected[1] >= 1e-3:  # less is rounding noise: biases before a norm
            assert probe(by_name[name].grad)[1] == pytest.approx(expected[1], rel=1e-2), name
            checked += 1
    assert checked > 150
    buffers = {detectron2_name(n): b for n, b in detector.named_buffers()}
    for kind in ("running_mean", "running_var"):
        for name, expected in run[case][f"{kind}_probe_after"].items():
            assert_probe(buffers[name], expected, rel=1e-3)


@pytest.fixture(scope="module")
def full(shared):
    return json.loads((shared / "parity/det_c4_full_r50/full_r50_names.json").read_text())


def test_every_name_and_shape_of_the_r50(full):
    with torch.device("meta"):
        detector = RCNNC4(build("resnet50"), 20)
        coco = RCNNC4(build("resnet50"), 80)
    ours = {detectron2_name(n): list(t.shape) for n, t in detector.state_dict().items()}
    reference = full["pascal_voc_R_50_C4_24k_moco.yaml"]
    assert ours == reference["tensors"]
    assert sum(p.numel() for p in detector.parameters()) == reference["parameters"]
    ours = {detectron2_name(n): list(t.shape) for n, t in coco.state_dict().items()}
    theirs = full["coco_R_50_C4_2x_moco.yaml"]["tensors"]
    assert ours == {n: s for n, s in theirs.items() if "mask_head" not in n}


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
    class_logits, box_deltas = detector.box_predictor(detector.region_features(c4, [first]))
    assert torch.allclose(
        class_logits, torch.tensor(reference["cls_logits_first20"]), rtol=1e-3, atol=1e-3
    )
    close(box_deltas, "box_deltas_first20_probe")
