"""What the tests of the C4 detectors share: detectron2's numbers, and how ours are held to them."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torchvision.models.resnet import Bottleneck
from torchvision.ops import box_iou

from goodtransfer.encoders import ResNet
from goodtransfer.transfer.rcnn_c4 import detectron2_name


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


def read_reference(folder):
    """The numbers, weights, inputs and arrays of a case."""
    run = json.loads((folder / "run.json").read_text())
    return run, *(load_file(folder / f"{n}.safetensors") for n in ("weights", "inputs", "run"))


@torch.no_grad()
def infer_as_upstream(reference, detector, images):
    """Every stage up to the predictors, each from upstream's own input to it."""
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

    anchors = detector.anchors(tuple(c4.shape[-2:]))
    assert torch.allclose(anchors, want["anchors"], atol=1e-4)

    proposals = detector.propose(anchors, logits, deltas, [tuple(i.shape[-2:]) for i in images])
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
    features = detector.region_features(c4, proposals).mean((2, 3))
    assert torch.allclose(features[::10], want["eval.res5_mean_every_10th"], rtol=1e-3, atol=1e-3)
    assert_probe(features, run["eval.res5_mean_probe"])
    class_logits, box_deltas = detector.box_predictor(features)
    expected = want["eval.cls_logits_every_10th"]
    assert torch.allclose(class_logits[::10], expected, rtol=1e-3, atol=2e-3)
    expected = want["eval.box_deltas_every_10th"]
    assert torch.allclose(box_deltas[::10], expected, rtol=1e-3, atol=2e-3)
    assert_probe(class_logits, run["eval.cls_logits_probe"])
    assert_probe(box_deltas, run["eval.box_deltas_probe"])


def same_detections(found, want, image, name, *, pixel):
    """At most one in a hundred may differ; returns which of ours is which of theirs, or -1."""
    boxes = want[f"eval.det{image}.{name}"]
    same = box_iou(found["boxes"], boxes) > 0.999
    same &= found["labels"][:, None] == want[f"eval.det{image}.classes"]
    same &= (found["scores"][:, None] - want[f"eval.det{image}.scores"]).abs() < 1e-4
    assert len(found["boxes"]) == len(boxes) == 100
    assert same.any(0).sum() >= 99  # a near-tie of NMS may fall the other way elsewhere
    assert same.any(1).sum() >= 99
    first = same.float().argmax(0)
    there = same.any(0)
    assert (found["boxes"][first[there]] - boxes[there]).abs().max() < pixel
    return first.where(there, -1)


def _take_first(monkeypatch):
    monkeypatch.setattr(torch, "randperm", lambda n, **k: torch.arange(n, device=k.get("device")))


def train_as_upstream(case, reference, detector, images, targets, monkeypatch):
    """One pass forward and backward, all of it compared; returns what was sampled."""
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

    height, width = (max(image.shape[side] for image in images) for side in (1, 2))
    anchors = detector.anchors((-(-height // 16), -(-width // 16)))
    for i, target in enumerate(targets):
        labels, _ = detector.label_anchors(anchors, target)
        (positive,), (negative,) = detector.anchor_sampler([labels])
        taken = torch.full_like(labels, -1)
        taken[positive.bool()], taken[negative.bool()] = 1, 0
        assert torch.equal(taken.to(torch.int8), want[f"{case}.rpn_labels{i}"])
        assert (seen[i]["boxes"] - want[f"{case}.roi_boxes{i}"]).abs().max() < 1e-2
        assert torch.equal(seen[i]["labels"].short(), want[f"{case}.roi_classes{i}"])
        foreground = seen[i]["labels"] < detector.num_classes
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
    return seen
