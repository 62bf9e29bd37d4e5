"""Faster R-CNN on the C4 map of any encoder: detectron2's R50-C4 with MoCo's extra norm, nn only.

Protocol 3.2; the numbers are those of facebookresearch/moco@132aea9 (``detection/configs``,
``Res5ROIHeadsExtraNorm``) and facebookresearch/detectron2@02b5c4e2. Boxes are (x1, y1, x2, y2) in
continuous pixels. From torchvision come the matcher, the sampler, the box coder, NMS and RoI-align;
anchors, predictor and losses are written here, because torchvision's differ (sizes vary slowest and
stay unrounded, background is the last class, boxes are regressed by plain L1).
"""

import math
import re
from collections.abc import Sequence
from typing import Any, NotRequired, TypedDict, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import (
    BalancedPositiveNegativeSampler,
    BoxCoder,
    Matcher,
)
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image, nms, roi_align

from goodtransfer.encoders import Encoder
from goodtransfer.losses import full_precision

Size = tuple[int, int]  # height, width


class Target(TypedDict):
    """The objects of an image.

    ``boxes`` (n, 4) float; ``labels`` (n,) int64 from 0; where masks are learnt, ``masks``: bool
    (n, H, W), or the mask of each object as a list, bool (H, W) or its polygons, float arrays
    (x, y, x, y, ...). For VOC's score also ``difficult`` (n,) bool and ``image_id``, for COCO's
    ``crowd`` (n,) bool, ``area`` (n,) and ``image_id``.
    """

    boxes: Tensor
    labels: Tensor
    masks: NotRequired[Any]
    difficult: NotRequired[Tensor]
    crowd: NotRequired[Tensor]
    area: NotRequired[Tensor]
    image_id: NotRequired[int]


class Detections(TypedDict):
    """What was found in an image, best first: ``boxes`` (n, 4), ``scores`` (n,), ``labels`` (n,).

    From Mask R-CNN also the masks: at the network's size their probabilities in each box,
    ``mask_probabilities`` (n, 14, 14); at the image's, ``masks`` bool (n, H, W).
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    mask_probabilities: NotRequired[Tensor]
    masks: NotRequired[Tensor]


class Sampled(TypedDict):
    """The regions one image trains the head on: ``boxes`` (r, 4), their class (r,), and the object
    each belongs to, its ``numbers`` in the target (r,) and its box (r, 4). Background has the class
    ``num_classes`` and any object.
    """

    boxes: Tensor
    labels: Tensor
    numbers: Tensor
    objects: Tensor


class RPNHead(nn.Module):
    """Objectness and box deltas of every anchor, from one 3 x 3 convolution."""

    def __init__(self, channels: int, anchors: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.objectness_logits = nn.Conv2d(channels, anchors, kernel_size=1)
        self.anchor_deltas = nn.Conv2d(channels, 4 * anchors, kernel_size=1)
        for layer in (self.conv, self.objectness_logits, self.anchor_deltas):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, c4: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) to logits (N, H * W * A) and deltas (N, H * W * A, 4), rows slowest."""
        hidden = F.relu(self.conv(c4))
        logits, deltas = self.objectness_logits(hidden), self.anchor_deltas(hidden)
        logits = logits.permute(0, 2, 3, 1).flatten(1)
        deltas = deltas.permute(0, 2, 3, 1).reshape(len(c4), -1, 4)
        return full_precision(logits), full_precision(deltas)


class BoxPredictor(nn.Module):
    """Class logits (background last) and four deltas for each class."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(channels, num_classes + 1)
        self.bbox_pred = nn.Linear(channels, 4 * num_classes)
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        nn.init.zeros_(self.cls_score.bias)
        nn.init.zeros_(self.bbox_pred.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(R, C) to logits (R, K + 1) and deltas (R, 4K)."""
        logits, deltas = self.cls_score(features), self.bbox_pred(features)
        return full_precision(logits), full_precision(deltas)


class RCNNC4(nn.Module):
    """Faster R-CNN whose region head is the encoder's last stage.

    The forward pass: pad → trunk to C4 → RPN → proposals → (sample) → RoI-align → last stage →
    extra norm → mean → predictor → losses or detections.

    Args:
        encoder: one that :meth:`Encoder.split` divides; used as it is, and fine-tuned whole.
        num_classes: without background.
        anchor_sizes: square roots of the anchors' areas.
        anchor_ratios: height to width.
        rpn_batch: anchors per image in the RPN's loss, half of them positive at most.
        proposals_train, proposals_test: kept by score before NMS, and after it.
        rois: regions per image in the head's loss, a quarter of them foreground at most.
        roi_size: bins of RoI-align each way.
        score_threshold, detections: what is less sure is dropped; kept per image at most.

    Raises:
        ValueError: for an encoder whose last stage cannot be run on regions.
    """

    def __init__(
        self,
        encoder: Encoder,
        num_classes: int,
        *,
        anchor_sizes: Sequence[float] = (32, 64, 128, 256, 512),
        anchor_ratios: Sequence[float] = (0.5, 1.0, 2.0),
        rpn_batch: int = 256,
        proposals_train: tuple[int, int] = (12000, 2000),
        proposals_test: tuple[int, int] = (6000, 1000),
        rois: int = 512,
        roi_size: int = 14,
        score_threshold: float = 0.05,
        detections: int = 100,
    ) -> None:
        super().__init__()
        encoder.split(4)  # says so where it cannot
        c4, c5 = encoder.channels[4], encoder.channels[5]
        self.encoder = encoder
        self.norm = nn.BatchNorm2d(c5)
        self.rpn_head = RPNHead(c4, len(anchor_sizes) * len(anchor_ratios))
        self.box_predictor = BoxPredictor(c5, num_classes)
        self.num_classes, self.stride, self.roi_size = num_classes, encoder.strides[4], roi_size
        self.anchor_sizes, self.anchor_ratios = tuple(anchor_sizes), tuple(anchor_ratios)
        self.proposals_train, self.proposals_test = proposals_train, proposals_test
        self.score_threshold, self.detections = score_threshold, detections
        self.anchor_matcher = Matcher(0.7, 0.3, allow_low_quality_matches=True)
        self.anchor_sampler = BalancedPositiveNegativeSampler(rpn_batch, 0.5)
        self.anchor_coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
        self.roi_matcher = Matcher(0.5, 0.5)
        self.roi_sampler = BalancedPositiveNegativeSampler(rois, 0.25)
        self.roi_coder = BoxCoder((10.0, 10.0, 5.0, 5.0))

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Target] | None = None
    ) -> tuple[dict[str, Tensor], list[Detections]]:
        """Losses in training mode, detections in eval mode; the other of the two is empty.

        Args:
            images: RGB (3, H, W), uint8 or float in [0, 1], of any sizes.
            targets: the objects of each image; needed in training mode.

        Raises:
            FloatingPointError: when training has diverged.
        """
        sizes = [(int(i.shape[-2]), int(i.shape[-1])) for i in images]
        c4 = self.encoder(self.pad(images), stages=(4,), normalized=True)[4]
        logits, deltas = self.rpn_head(c4)
        anchors = self.anchors((int(c4.shape[-2]), int(c4.shape[-1]))).to(c4.device)
        proposals = self.propose(anchors, logits.detach(), deltas.detach(), sizes)
        if not self.training:
            return {}, self.detect(c4, proposals, sizes)
        if targets is None:
            raise ValueError(
                "Expected targets in training mode, but got None: pass them, or eval() to detect."
            )
        losses = self.rpn_losses(anchors, logits, deltas, targets)
        sampled = [self.sample(p, t) for p, t in zip(proposals, targets, strict=True)]
        features = self.region_features(c4, [s["boxes"] for s in sampled])
        return losses | self.head_losses(features, sampled, targets), []

    def pad(self, images: Sequence[Tensor]) -> Tensor:
        """Normalised images as one batch (N, 3, H, W), with zeros to the right and below."""
        normalized = [self.encoder.normalize(image) for image in images]
        height, width = (max(int(i.shape[d]) for i in images) for d in (-2, -1))
        return torch.stack(
            [F.pad(i, (0, width - i.shape[-1], 0, height - i.shape[-2])) for i in normalized]
        )

    # --- Region proposals

    def anchors(self, grid: Size) -> Tensor:
        """Anchors of a C4 map, (H * W * A, 4): rows slowest, then columns, sizes, ratios."""
        cell = [
            (-w / 2, -h / 2, w / 2, h / 2)
            for size in self.anchor_sizes
            for ratio in self.anchor_ratios
            for w, h in [(size / math.sqrt(ratio), size * math.sqrt(ratio))]
        ]
        y, x = (torch.arange(n, dtype=torch.float32) * self.stride for n in grid)
        y, x = torch.meshgrid(y, x, indexing="ij")
        corners = torch.stack((x, y, x, y), dim=-1).view(-1, 1, 4)
        return (corners + torch.tensor(cell)).view(-1, 4)

    @torch.no_grad()
    def propose(
        self, anchors: Tensor, logits: Tensor, deltas: Tensor, sizes: Sequence[Size]
    ) -> list[Tensor]:
        """The best boxes (p, 4) of each image, by objectness: decode, clip, drop empty, NMS."""
        before, after = self.proposals_train if self.training else self.proposals_test
        best, order = logits.topk(min(before, logits.shape[1]), dim=1)
        found = []
        for scores, chosen, delta, size in zip(best, order, deltas, sizes, strict=True):
            boxes = self.anchor_coder.decode_single(delta[chosen], anchors[chosen])
            self._check_finite(boxes, scores)
            boxes = clip_boxes_to_image(boxes, size)
            there = _not_empty(boxes)
            boxes, scores = boxes[there], scores[there]
            found.append(boxes[nms(boxes, scores, 0.7)[:after]])
        return found

    def _check_finite(self, boxes: Tensor, scores: Tensor) -> None:
        if self.training and not (boxes.isfinite().all() and scores.isfinite().all()):
            raise FloatingPointError(
                "Expected finite proposals, but the RPN gave NaN or Inf: training has diverged. "
                "Lower `lr`, lengthen `warmup`, or check the encoder's weights."
            )

    def label_anchors(self, anchors: Tensor, target: Target) -> tuple[Tensor, Tensor]:
        """1 object, 0 background, -1 neither, (A,); and the object each is nearest to, (A, 4)."""
        labels, _, objects = _match(self.anchor_matcher, anchors, target["boxes"])
        return labels, objects

    def rpn_losses(
        self, anchors: Tensor, logits: Tensor, deltas: Tensor, targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """Cross-entropy and L1, both divided by the anchors asked for, found or not."""
        objectness, localisation = logits.new_zeros(()), deltas.new_zeros(())
        for logit, delta, target in zip(logits, deltas, targets, strict=True):
            labels, objects = self.label_anchors(anchors, target)
            (positive,), (negative,) = self.anchor_sampler([labels])
            pos, neg = torch.where(positive)[0], torch.where(negative)[0]
            taken = torch.cat((pos, neg))
            objectness = objectness + F.binary_cross_entropy_with_logits(
                logit[taken], labels[taken].to(logit.dtype), reduction="sum"
            )
            wanted = self.anchor_coder.encode_single(objects[pos], anchors[pos])
            localisation = localisation + F.l1_loss(delta[pos], wanted, reduction="sum")
        share = 1 / (self.anchor_sampler.batch_size_per_image * len(targets))
        return {"loss_rpn_cls": objectness * share, "loss_rpn_loc": localisation * share}

    # --- Regions

    @torch.no_grad()
    def sample(self, proposals: Tensor, target: Target) -> Sampled:
        """Foreground, then background regions of an image; its objects are proposals, too."""
        boxes = torch.cat((proposals, target["boxes"].to(proposals)))
        found, nearest, objects = _match(self.roi_matcher, boxes, target["boxes"])
        (positive,), (negative,) = self.roi_sampler([found])
        pos, neg = torch.where(positive)[0], torch.where(negative)[0]
        taken = torch.cat((pos, neg))
        labels = torch.full_like(taken, self.num_classes)
        labels[: len(pos)] = target["labels"][nearest[pos]]
        return {
            "boxes": boxes[taken],
            "labels": labels,
            "numbers": nearest[taken],
            "objects": objects[taken],
        }

    def pool(self, c4: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        """Regions of the map, (R, C, 14, 14): aligned, with as many samples a bin as it has pixels."""
        exact = full_precision(c4)  # 16 bits cannot place a box
        rois = [b.to(exact.dtype) for b in boxes]
        pooled: Tensor = roi_align(
            exact, rois, self.roi_size, 1 / self.stride, sampling_ratio=0, aligned=True
        )
        return pooled.to(c4.dtype)

    def region_features(self, c4: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        """(R, C5, 7, 7): the last stage on each region and the extra norm (no ReLU after it)."""
        _, last_stage = self.encoder.split(4)
        features: Tensor = self.norm(last_stage(self.pool(c4, boxes)))
        return features

    def head_losses(
        self, features: Tensor, sampled: Sequence[Sampled], targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """Cross-entropy over all regions; L1 of the foreground's own class, over all regions, too."""
        logits, deltas = self.box_predictor(features.mean(dim=(2, 3)))
        labels = torch.cat([s["labels"] for s in sampled])
        foreground = torch.where(labels < self.num_classes)[0]
        boxes = torch.cat([s["boxes"] for s in sampled])[foreground]
        objects = torch.cat([s["objects"] for s in sampled])[foreground]
        wanted = self.roi_coder.encode_single(objects, boxes)
        own = deltas.view(len(labels), -1, 4)[foreground, labels[foreground]]
        return {
            "loss_cls": F.cross_entropy(logits, labels),
            "loss_box_reg": F.l1_loss(own, wanted, reduction="sum") / max(1, len(labels)),
        }

    @torch.no_grad()
    def detect(
        self, c4: Tensor, proposals: Sequence[Tensor], sizes: Sequence[Size]
    ) -> list[Detections]:
        """Each class's boxes of each region that are likely, NMS by class, the best of an image."""
        features = self.region_features(c4, proposals)
        logits, deltas = self.box_predictor(features.mean(dim=(2, 3)))
        counts = [len(p) for p in proposals]
        boxes = self.roi_coder.decode_single(deltas, torch.cat(list(proposals)))
        probabilities = logits.softmax(dim=1)[:, :-1]
        each = boxes.view(len(boxes), -1, 4)
        parts = zip(
            torch.split(each, counts), torch.split(probabilities, counts), sizes, strict=True
        )
        return [self._best(*part) for part in parts]

    def _best(self, boxes: Tensor, probabilities: Tensor, size: Size) -> Detections:
        region, label = torch.where(probabilities > self.score_threshold)
        scores = probabilities[region, label]
        likely = clip_boxes_to_image(boxes[region, label], size)
        kept = batched_nms(likely, scores, label, 0.5)[: self.detections]
        return {"boxes": likely[kept], "scores": scores[kept], "labels": label[kept]}

    def rescale(self, found: Detections, network: Size, output: Size) -> Detections:
        """Detections on an image of the size ``network`` as they are on one of the size ``output``."""
        y, x = (out / net for out, net in zip(output, network, strict=True))
        boxes = clip_boxes_to_image(
            found["boxes"] * found["boxes"].new_tensor([x, y, x, y]), output
        )
        there = _not_empty(boxes)
        kept: dict[str, Any] = {**found, "boxes": boxes}
        return cast(Detections, {name: value[there] for name, value in kept.items()})


def _not_empty(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


@torch.no_grad()
def _match(matcher: Matcher, boxes: Tensor, objects: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """1 / 0 / -1 for each box, the number of its object, and that object's box.

    An image without objects, which torchvision's matcher refuses, is background all over.
    """
    if not len(objects):
        nothing = torch.zeros(len(boxes), dtype=torch.long, device=boxes.device)
        return nothing, nothing, torch.zeros_like(boxes)
    match = matcher(box_iou(objects.to(boxes), boxes))
    label = (match >= 0).long() - (match == Matcher.BETWEEN_THRESHOLDS).long()
    nearest = match.clamp(min=0)
    return label, nearest, objects.to(boxes)[nearest]


# Ours → detectron2's; the rest of a name stays. Blocks' norms lie inside their convolutions there.
_DETECTRON2 = (
    (r"^encoder\.layer4\.", "roi_heads.res5."),
    (r"^encoder\.layer([123])\.", lambda m: f"backbone.res{int(m[1]) + 1}."),
    (r"^encoder\.(conv1|bn1)\.", r"backbone.stem.\1."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
    (r"^norm\.", "roi_heads.res5.norm."),
    (r"^rpn_head\.", "proposal_generator.rpn_head."),
    (r"^(box_predictor|mask_head)\.", r"roi_heads.\1."),
)


def detectron2_name(name: str) -> str:
    """The name that a tensor of a detector on a ResNet has in detectron2 (for MoCo's yaml).

    >>> detectron2_name("encoder.layer3.0.bn2.weight")
    'backbone.res4.0.conv2.norm.weight'
    """
    for pattern, replacement in _DETECTRON2:
        name = re.sub(pattern, replacement, name)
    return name
