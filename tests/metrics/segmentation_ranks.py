"""One of two ranks, started by test_segmentation.py: both see image 0, each its own others."""

import json
import sys

import torch
import torch.distributed as dist

from goodtransfer.metrics import SegmentationScores


def images(count=5, classes=4):
    random = torch.Generator().manual_seed(1)
    told = torch.randint(classes, (count, 6, 7), generator=random)
    true = torch.randint(classes, (count, 6, 7), generator=random)
    true[torch.rand(true.shape, generator=random) < 0.2] = 255
    return told, true


if __name__ == "__main__":
    rank, port, seen = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    told, true = images()
    metric = SegmentationScores(4)
    for number in seen:
        target = {"classes": true[number : number + 1], "image_id": torch.tensor([number])}
        metric.update(told[number : number + 1], target)
    found = {name: float(value) for name, value in metric.compute().items()}
    print(json.dumps([found, metric.per_class().tolist()]))
    dist.destroy_process_group()
