"""detectron2's VOC evaluation, a detection at a time: one pass per class and threshold.

Written from facebookresearch/detectron2@02b5c4e2, detectron2/evaluation/pascal_voc_evaluation.py
(after py-faster-rcnn's voc_eval.py), without its text files, and with a stable sort.
"""

import numpy as np


def by_image(images, detections, objects):
    """What the files hold: per class name the lines, per image the annotations."""
    lines = {}
    for image, label, score, box in zip(*(c.tolist() for c in detections), strict=True):
        lines.setdefault(label, []).append((image, score, box))
    annotations = {image: [] for image in images}
    for image, label, box, difficult in zip(*(c.tolist() for c in objects), strict=True):
        annotations[image].append({"label": label, "box": box, "difficult": difficult})
    return lines, annotations


def voc_eval(lines, annotations, label, threshold, interpolation):
    """Recall, precision (n,) and AP of one class at one threshold."""
    wanted, positives = {}, 0
    for image, everything in annotations.items():
        those = [x for x in everything if x["label"] == label]
        boxes = np.array([x["box"] for x in those])
        difficult = np.array([x["difficult"] for x in those]).astype(bool)
        positives += int(sum(~difficult))
        wanted[image] = {"boxes": boxes, "difficult": difficult, "found": [False] * len(those)}

    lines = lines.get(label, [])
    scores = np.array([score for _, score, _ in lines])
    boxes = np.array([box for _, _, box in lines]).reshape(-1, 4)
    order = np.argsort(-scores, kind="stable")
    boxes = boxes[order]
    images = [lines[i][0] for i in order]

    tp, fp = np.zeros(len(images)), np.zeros(len(images))
    for d in range(len(images)):
        there = wanted[images[d]]
        box = boxes[d].astype(float)
        candidates = there["boxes"].astype(float)
        largest = -np.inf
        if candidates.size > 0:
            x1 = np.maximum(candidates[:, 0], box[0])
            y1 = np.maximum(candidates[:, 1], box[1])
            x2 = np.minimum(candidates[:, 2], box[2])
            y2 = np.minimum(candidates[:, 3], box[3])
            both = np.maximum(x2 - x1 + 1.0, 0.0) * np.maximum(y2 - y1 + 1.0, 0.0)
            area = (box[2] - box[0] + 1.0) * (box[3] - box[1] + 1.0)
            areas = (candidates[:, 2] - candidates[:, 0] + 1.0) * (
                candidates[:, 3] - candidates[:, 1] + 1.0
            )
            overlaps = both / (area + areas - both)
            largest, best = np.max(overlaps), np.argmax(overlaps)
        if largest > threshold:
            if not there["difficult"][best]:
                if not there["found"][best]:
                    tp[d] = 1.0
                    there["found"][best] = True
                else:
                    fp[d] = 1.0
        else:
            fp[d] = 1.0

    tp, fp = np.cumsum(tp), np.cumsum(fp)
    with np.errstate(invalid="ignore"):
        recall = tp / float(positives) if positives else tp / np.float64(0)
    precision = tp / np.maximum(tp + fp, np.finfo(np.float64).eps)
    return recall, precision, voc_ap(recall, precision, interpolation)


def voc_ap(recall, precision, interpolation):
    """Of 11 points, a point at a time, or the area under the envelope, step by step."""
    if interpolation == "11-point":
        ap = 0.0
        for t in np.arange(0.0, 1.1, 0.1):
            reached = recall >= t
            ap += (np.max(precision[reached]) if np.sum(reached) else 0.0) / 11.0
        return ap
    recall = np.concatenate([[0.0], recall, [1.0]])
    precision = np.concatenate([[0.0], precision, [0.0]])
    for i in range(len(precision) - 1, 0, -1):
        precision[i - 1] = np.maximum(precision[i - 1], precision[i])
    steps = np.where(recall[1:] != recall[:-1])[0]
    return np.sum((recall[steps + 1] - recall[steps]) * precision[steps + 1])
