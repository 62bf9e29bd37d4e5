"""Images, objects and what was found, as COCO's files have them and as a task has them."""

import warnings

import numpy as np
import torch
from pycocotools import mask as rle

SIZE = 40, 50  # of the random images


def pixels(segmentation, height, width):
    """bool (height, width), by pycocotools from any of COCO's three forms."""
    if isinstance(segmentation, list):
        segmentation = rle.merge(rle.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        segmentation = rle.frPyObjects(segmentation, height, width)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of NumPy 2 about pycocotools
        return torch.from_numpy(rle.decode(segmentation)).bool()


def as_images(world, found, masks, dtype=torch.float64):
    """What a task gives the metric: an image each, boxes as corners, labels from 0."""
    labels = {
        c["id"]: label for label, c in enumerate(sorted(world["categories"], key=lambda c: c["id"]))
    }
    predictions, targets = [], []
    for image in world["images"]:
        sides = []
        for entries in (found, world["annotations"]):
            mine = [entry for entry in entries if entry["image_id"] == image["id"]]
            boxes = [e["bbox"] if "bbox" in e else rle.toBbox(e["segmentation"]) for e in mine]
            corners = torch.tensor(np.array(boxes, float).reshape(-1, 4))
            corners[:, 2:] += corners[:, :2]
            side = {
                "boxes": corners.to(dtype),
                "labels": torch.tensor([labels[e["category_id"]] for e in mine], dtype=torch.long),
            }
            if masks:
                size = image["height"], image["width"]
                each = [pixels(e["segmentation"], *size) for e in mine]
                side["masks"] = torch.stack(each) if mine else torch.zeros(0, *size).bool()
            for name, key, kind in (
                ("scores", "score", dtype), ("crowd", "iscrowd", bool), ("area", "area", dtype)
            ):  # fmt: skip
                if mine and key in mine[0]:
                    side[name] = torch.tensor([e[key] for e in mine]).to(
                        torch.bool if kind is bool else kind
                    )
            sides.append(side)
        sides[0].setdefault("scores", torch.zeros(0, dtype=dtype))
        predictions.append(sides[0])
        targets.append({**sides[1], "image_id": image["id"]})
    return predictions, targets


def random_world(rng):
    """Coarse boxes and scores: equal overlaps and scores, duplicates, crowds, empty images, classes.

    Masks are polygons, run lengths that are compressed, or such that are not. Nothing is numbered
    from 0, nor in order.
    """
    height, width = SIZE
    ids, categories = rng.permutation([4, 9, 2, 17, 8, 30]), rng.permutation([3, 7, 11, 5])
    things, found = [], []

    def box():
        x, y = rng.integers(0, 5, 2) * 4
        return [int(x), int(y), *(int(side) * 4 for side in rng.integers(1, 6, 2))]

    def runs(box, text):
        x, y, w, h = box
        mask = np.zeros((height, width), np.uint8, order="F")
        mask[y : y + h, x : x + w] = rng.random((h, w)) < 0.9
        packed = rle.encode(mask)
        return {**packed, "counts": packed["counts"].decode()} if text else listed(mask)

    for _ in range(rng.integers(8, 25)):
        x, y, w, h = where = box()
        crowd, form = bool(rng.random() < 0.2), rng.integers(3)
        parts = [[a, y, a, y + h, a + w // 2, y + h, a + w // 2, y] for a in (x, x + w // 2)]
        segmentation = runs(where, form == 1) if crowd or form < 2 else parts
        things.append({
            "id": int(1000 - 3 * len(things)), "image_id": int(rng.choice(ids[:5])),
            "category_id": int(rng.choice(categories[:3])), "bbox": where, "iscrowd": int(crowd),
            "area": float(rng.choice([w * h, 1024, 5000, 20_000])), "segmentation": segmentation,
        })  # fmt: skip
    for _ in range(rng.integers(1, 60)):
        entry = {"image_id": int(rng.choice(ids)), "category_id": int(rng.choice(categories)),
                 "bbox": box()}  # fmt: skip
        if rng.random() < 0.7:
            thing = things[rng.integers(len(things))]
            x, y, w, h = thing["bbox"]
            near = [
                x,
                y,
                max(w + int(rng.integers(-2, 3)), 1),
                max(h + int(rng.integers(-2, 3)), 1),
            ]
            entry |= {key: thing[key] for key in ("image_id", "category_id")} | {"bbox": near}
        entry["score"] = int(rng.integers(1, 8)) / 8
        found.append({**entry, "segmentation": runs(entry["bbox"], True)})
    world = {
        "images": [{"id": int(i), "height": height, "width": width} for i in ids],
        "categories": [{"id": int(c), "name": str(c)} for c in categories],
        "annotations": things,
    }
    return world, found


def listed(mask):
    """Run lengths that are not compressed, down the columns; the first is of zeros."""
    flat = np.concatenate([[0], mask.T.ravel(), [2]])
    ends = np.flatnonzero(np.diff(flat[1:]))
    counts = np.diff(np.concatenate([[-1], ends])).tolist()
    counts = [0, *counts] if flat[1] else counts
    assert sum(counts) == mask.size
    return {"size": list(mask.shape), "counts": counts}


def thing(box, image=1, category=1, crowd=0, area=None):
    area = box[2] * box[3] if area is None else area
    return {"image_id": image, "category_id": category, "bbox": box, "iscrowd": crowd, "area": area}


def hit(box, score, image=1, category=1):
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


def world_of(*things, images=(1, 2, 3), categories=(1, 2)):
    return {"images": [{"id": i, "height": 100, "width": 100} for i in images],
            "categories": [{"id": c} for c in categories], "annotations": list(things)}  # fmt: skip


def outlined(entries):
    """The same, with masks that fill the boxes."""
    mask = [pixels([[x, y, x, y + h, x + w, y + h, x + w, y]], 100, 100)
            for x, y, w, h in (entry["bbox"] for entry in entries)]  # fmt: skip
    return [
        {**entry, "segmentation": rle.encode(np.asfortranarray(m.numpy().astype(np.uint8)))}
        for entry, m in zip(entries, mask, strict=True)
    ]
