"""The mask head against detectron2's own numbers; its targets and its masks against literal ones."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from goodtransfer.data.coco_masks import pack, unpack
from goodtransfer.encoders import build
from goodtransfer.transfer.mask_rcnn_c4 import MaskHead, MaskRCNNC4, cropped, pasted, resized
from goodtransfer.transfer.rcnn_c4 import detectron2_name

sys.path.insert(0, str(Path(__file__).parent))
from c4_parity import (
    infer_as_upstream,
    load_reference,
    narrow_r50,
    read_reference,
    same_detections,
    train_as_upstream,
)
from small import SMALL

SIZES = [(176, 208), (160, 192)]


def small(**changes):
    torch.manual_seed(0)
    return MaskRCNNC4(build("resnet10w8"), 5, **{"mask_channels": 8, **SMALL, **changes})


@pytest.fixture(scope="module")
def reference(shared):
    return read_reference(shared / "parity" / "det_c4_mask")


@pytest.fixture
def detector(reference):
    detector = MaskRCNNC4(narrow_r50(), 12, mask_channels=16)
    load_reference(detector, reference[1])
    return detector.eval()


@pytest.fixture
def images(reference):
    return [reference[2]["image0"], reference[2]["image1"]]


@pytest.fixture
def targets(reference):
    inputs = reference[2]
    return [
        {
            "boxes": inputs[f"gt_boxes{i}"],
            "labels": inputs[f"gt_classes{i}"],
            "masks": [[polygon] for polygon in inputs[f"gt_polygons{i}"].numpy()],
        }
        for i in range(2)
    ]


# --- Upstream's numbers


@pytest.mark.data
def test_inference_stage_by_stage(reference, detector, images):
    infer_as_upstream(reference, detector, images)


@pytest.mark.data
@torch.no_grad()
def test_masks_of_detections(reference, detector, images):
    """Probabilities of the first ten, the area of every mask in the image, and one to the bit."""
    run, _, _, want = reference
    _, found = detector(images)
    for i, (here, size) in enumerate(zip(found, SIZES, strict=True)):
        output = tuple(int(s * 1.5) for s in size)
        assert list(output) == run["pasted_mask_hw"][i]
        ours = same_detections(here, want, i, "boxes_network", pixel=0.01)[:10]
        expected = want[f"eval.det{i}.mask_probs_first10"][ours >= 0, 0]
        probabilities = here["mask_probabilities"][ours[ours >= 0]]
        assert len(expected) >= 9
        assert torch.allclose(probabilities, expected, atol=1e-4)

        larger = detector.rescale(here, size, output)
        ours = same_detections(larger, want, i, "boxes", pixel=0.015)
        masks = larger["masks"][ours[ours >= 0]]
        assert masks.dtype == torch.bool
        areas = masks.sum((1, 2))
        expected = want[f"eval.det{i}.pasted_mask_area"][ours >= 0]
        # A pixel whose probability is all but 0.5 may fall either way.
        assert (areas - expected).abs().max() <= 3
        assert (areas == expected).float().mean() > 0.9
        assert expected.max() > 1000
        bits = np.packbits(larger["masks"][ours[0]].numpy(), axis=1)
        assert np.array_equal(bits, want[f"eval.det{i}.pasted_mask0_packed_bits"].numpy())


@pytest.mark.data
@pytest.mark.parametrize("case", ["train_all", "train_sampled", "train_sampled_bitmask"])
def test_training(case, reference, detector, images, targets, monkeypatch):
    want = reference[3]
    if case == "train_sampled_bitmask":
        for i, (target, size) in enumerate(zip(targets, SIZES, strict=True)):
            packed = [pack([m[0].tolist()], *size) for m in target["masks"]]
            target["masks"] = unpack(packed, *size)
            assert torch.equal(target["masks"].sum((1, 2)), want[f"bitmask_area{i}"])
    seen = train_as_upstream(case, reference, detector, images, targets, monkeypatch)
    for i, target in enumerate(targets):
        found = detector.mask_targets(seen[i], target, 14)
        assert torch.equal(found.to(torch.uint8), want[f"{case}.mask_targets{i}"])


@pytest.mark.data
def test_every_name_and_shape_of_the_r50(shared):
    path = shared / "parity/det_c4_full_r50/full_r50_names.json"
    run = json.loads(path.read_text())["coco_R_50_C4_2x_moco.yaml"]
    with torch.device("meta"):
        detector = MaskRCNNC4(build("resnet50"), 80)
    ours = {detectron2_name(n): list(t.shape) for n, t in detector.state_dict().items()}
    assert ours == run["tensors"]
    assert sum(p.numel() for p in detector.parameters()) == run["parameters"]


def test_initial_weights():
    """MSRA's, whose fan counts the deconvolution's inputs; and N(0, 0.001)."""
    head = MaskHead(512, 256, 80)
    assert head.deconv.weight.std().item() == pytest.approx(math.sqrt(2 / (512 * 4)), rel=0.01)
    assert head.predictor.weight.std().item() == pytest.approx(0.001, rel=0.03)
    assert not head.deconv.bias.any()
    assert not head.predictor.bias.any()


# --- Targets


def between(values, y, x):
    """Of the four values around a place, whose middles are at whole numbers; zero outside."""
    total, (height, width) = 0.0, values.shape
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < height and 0 <= column < width:
                share = (1 - abs(y - row)) * (1 - abs(x - column))
                total += share * float(values[row, column])
    return total


def literal_crop(mask, box, size):
    """RoI-align: a bin is the mean of as many places each way as it has pixels, rounded up."""
    x1, y1, x2, y2 = box
    tall, wide = (y2 - y1) / size, (x2 - x1) / size
    down, along = math.ceil(tall), math.ceil(wide)
    out = torch.zeros(size, size, dtype=torch.bool)
    for row in range(size):
        for column in range(size):
            found = [
                between(
                    mask,
                    y1 + (row + (i + 0.5) / down) * tall - 0.5,
                    x1 + (column + (j + 0.5) / along) * wide - 0.5,
                )
                for i in range(down)
                for j in range(along)
            ]
            out[row, column] = sum(found) / len(found) >= 0.5
    return out


def test_pixels_in_a_box():
    mask = torch.zeros(30, 40, dtype=torch.bool)
    mask[8:22, 10:18], mask[12:15, 18:33] = True, True
    boxes = torch.tensor(
        [[4.25, 5.5, 35.5, 24.1], [9.3, 7.7, 19.9, 23.2], [12.1, 13.3, 14.9, 15.8]]
    )
    found = cropped(mask, boxes, 7)
    assert found.dtype == torch.bool
    for got, box in zip(found, boxes.tolist(), strict=True):
        assert torch.equal(got, literal_crop(mask, box, 7))
    assert found[2].all()
    assert 0 < found[0].sum() < 49


def test_polygons_in_a_box():
    """By hand: the left half, and a corner that is a polygon of its own; parts outside are cut."""
    polygons = [np.array([0, 0, 20, 0, 20, 40, 0, 40.0]), [30, 30, 60, 30, 60, 60, 30, 60]]
    found = cropped(polygons, torch.tensor([[10.0, 20, 30, 40], [10, 20, 50, 40]]), 4)
    expected = torch.zeros(2, 4, 4, dtype=torch.bool)
    expected[0, :, :2] = True  # to x = 20; the other begins where the box ends
    expected[1, :, 0] = True
    expected[1, 2:, 2:] = True
    assert torch.equal(found, expected)


def test_each_region_has_the_mask_of_its_own_object():
    """Three objects, pixels and polygons mixed, more than one region of some, background last."""
    detector = small()
    pixels = torch.zeros(40, 40, dtype=torch.bool)
    pixels[:, :20] = True
    masks = [pixels, [[0, 0, 40, 0, 40, 10, 0, 10]], ~pixels]
    box = [10.0, 0.0, 30.0, 20.0]
    sampled = {
        "boxes": torch.tensor([box, box, [10, 0, 20, 20], box, box]),
        "labels": torch.tensor([1, 0, 1, 4, 5]),
        "numbers": torch.tensor([2, 1, 0, 0, 1]),
    }
    left = torch.tensor([[True, False], [True, False]])
    expected = torch.stack([~left, left.T, left | True, left])
    assert torch.equal(detector.mask_targets(sampled, {"masks": masks}, 2), expected)


def test_pixels_resize_as_pil_s():
    random = np.random.default_rng(0)
    mask = torch.from_numpy(random.uniform(size=(23, 31)) < 0.5)
    for size in ((40, 54), (11, 15), (23, 62)):
        found = resized(mask, (23, 31), size)
        image = Image.fromarray(mask.numpy().astype(np.uint8))
        expected = np.asarray(image.resize(size[::-1], Image.Resampling.NEAREST)).astype(bool)
        assert np.array_equal(found.numpy(), expected)


def test_polygons_resize_with_their_image():
    polygon = [1.0, 2, 10, 2, 10, 8]
    (found,) = resized([polygon], (10, 20), (15, 40))
    assert found.tolist() == [2, 3, 20, 3, 20, 12]
    assert polygon == [1, 2, 10, 2, 10, 8]


# --- Masks


@pytest.mark.parametrize("box", [(3.2, 4.6, 17.9, 12.3), (0, 0, 24, 16), (20.4, 13.7, 24, 16)])
def test_masks_are_pasted_literally(box):
    """A pixel reads the mask at its middle; also at the borders of the image, where no box ends."""
    generator = torch.Generator().manual_seed(1)
    probabilities = torch.rand(2, 6, 6, generator=generator)
    x1, y1, x2, y2 = box
    boxes = torch.tensor([box, box], dtype=torch.float64)
    found = pasted(probabilities.double(), boxes, (16, 24))
    assert found.shape == (2, 16, 24)
    for mask, values in zip(found, probabilities, strict=True):
        for row in range(16):
            for column in range(24):
                y = (row + 0.5 - y1) / (y2 - y1) * 6 - 0.5
                x = (column + 0.5 - x1) / (x2 - x1) * 6 - 0.5
                assert bool(mask[row, column]) == (between(values, y, x) >= 0.5)
    assert found.any()


def test_no_masks():
    assert pasted(torch.zeros(0, 14, 14), torch.zeros(0, 4), (5, 7)).shape == (0, 5, 7)


@torch.no_grad()
def test_a_mask_is_of_the_class_of_its_box():
    """And of its box, not of the proposal: the last stage runs on what is left."""
    detector = small(score_threshold=0.0, detections=7).eval()
    torch.nn.init.normal_(detector.mask_head.predictor.weight)
    images = [torch.rand(3, 48, 64), torch.rand(3, 64, 40)]
    _, found = detector(images)
    c4 = detector.encoder(detector.pad(images), (4,), normalized=True)[4]
    for number, here in enumerate(found):
        assert here["mask_probabilities"].shape == (7, 4, 4)
        boxes = [here["boxes"] if i == number else torch.zeros(0, 4) for i in range(2)]
        every = detector.mask_head(detector.region_features(c4, boxes)).sigmoid()
        for row, label in enumerate(here["labels"].tolist()):
            torch.testing.assert_close(here["mask_probabilities"][row], every[row, label])
        assert len(here["labels"].unique()) > 1
        larger = detector.rescale(here, (48, 64), (96, 100))
        assert larger.keys() == {"boxes", "scores", "labels", "masks"}
        assert larger["masks"].shape == (len(larger["boxes"]), 96, 100)


@torch.no_grad()
def test_nothing_found():
    detector = small(score_threshold=1.0).eval()
    _, (found,) = detector([torch.rand(3, 48, 64)])
    assert found["mask_probabilities"].shape == (0, 4, 4)
    assert detector.rescale(found, (48, 64), (24, 32))["masks"].shape == (0, 24, 32)


# --- Training


def objects(masks):
    boxes = torch.tensor([[8.0, 8, 40, 40], [20, 4, 60, 30]])
    return {"boxes": boxes, "labels": torch.tensor([3, 1]), "masks": masks}


def test_the_loss_is_that_of_the_regions_own_class():
    """Literally, over the foreground of two images: cross-entropy of every pixel, and its mean."""
    detector = small().train()
    torch.nn.init.normal_(detector.mask_head.predictor.weight)
    generator = torch.Generator().manual_seed(2)
    features = torch.rand(5, 64, 2, 2, generator=generator)
    half = torch.zeros(64, 64, dtype=torch.bool)
    half[:, 24:] = True
    boxes = torch.tensor([[8.0, 8, 40, 40], [20, 4, 60, 30], [0, 0, 9, 9]])
    one = {"boxes": boxes, "labels": torch.tensor([3, 1, 5]), "numbers": torch.tensor([0, 1, 0])}
    other = {"boxes": boxes[1:], "labels": torch.tensor([0, 5]), "numbers": torch.tensor([1, 0])}
    for sampled in (one, other):
        sampled["objects"] = sampled["boxes"]
    targets = [objects(torch.stack([half, ~half])), objects(torch.stack([~half, half]))]
    losses = detector.head_losses(features, [one, other], targets)
    p = detector.mask_head(features).sigmoid().double()
    total = 0.0
    for region, label, mask, box in (
        (0, 3, half, boxes[0]), (1, 1, ~half, boxes[1]), (3, 0, half, boxes[1]),
    ):  # fmt: skip
        wanted = literal_crop(mask, box.tolist(), 4)
        own = p[region, label]
        total -= torch.where(wanted, own.log(), (1 - own).log()).sum().item()
    assert losses["loss_mask"].item() == pytest.approx(total / (3 * 16), rel=1e-5)
    assert losses.keys() == {"loss_cls", "loss_box_reg", "loss_mask"}


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_without_foreground_the_loss_is_zero_and_every_parameter_has_a_gradient(precision):
    """As DDP needs; also where one of two images has objects."""
    detector = small().train()
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long), "masks": []}
    pixels = torch.zeros(2, 64, 64, dtype=torch.bool)
    for targets in ([empty, empty], [empty, objects(pixels)]):
        detector.zero_grad()
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            losses, _ = detector([image, image], targets)
        assert losses["loss_mask"].dtype == torch.float32
        sum(losses.values()).backward()
        assert all(loss.isfinite() for loss in losses.values())
        assert (losses["loss_mask"] == 0) == (targets[1] is empty)
        for name, p in detector.named_parameters():
            assert p.grad is not None, name
            assert p.grad.isfinite().all(), name


def test_targets_without_masks_are_a_sentence():
    target = objects(None)
    del target["masks"]
    image = torch.zeros(3, 64, 64)
    with pytest.raises(
        ValueError, match=r"Expected targets with masks .* has \['boxes', 'labels'\]"
    ):
        small().train()([image], [target])


def test_polygons_and_their_pixels_train_alike():
    """Finely drawn, the two differ in next to no bin."""
    polygon = [10.0, 12, 50, 8, 56, 40, 30, 58, 14, 44]
    (fine,) = unpack([pack([polygon], 64, 64)], 64, 64)
    boxes = torch.tensor([[10.0, 8, 56, 58], [5, 5, 50, 50], [20, 10, 60, 60]])
    pixels = cropped(fine, boxes, 14)
    drawn = cropped([polygon], boxes, 14)
    assert (pixels != drawn).float().mean() < 0.03
    assert 0.3 < drawn.float().mean() < 0.9
