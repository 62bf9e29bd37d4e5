"""What each of two ranks computes; a module of its own, so that a spawned process can import it."""

import warnings

import pytest
import torch
import torch.distributed as dist

from goodtransfer.metrics.coco import COCODetectionAP

CLASSES = 3
ORDERS = [
    [range(0, 12, 2), [*range(1, 12, 2), 0]],  # a sampler repeats an image to fill up
    [range(12), []],
    [[], [11, *range(11)]],
    [[5, 4, 3, 2, 1, 0], [11, 10, 9, 8, 7, 6]],
]


def dealt(predictions, targets, order, metric):
    for i in order:
        metric.update([predictions[i]], [targets[i]])
    return metric


def everything(metric):
    """All that the metric says, of plain types."""
    evaluation = metric.evaluation()
    return {
        "compute": metric.compute(),
        "stats": {kind: found.stats for kind, found in evaluation.items()},
        "per_class": {kind: torch.tensor(found.per_class) for kind, found in evaluation.items()},
        "results": metric.results(),
    }


def rank_main(rank, folder):
    """One of two gloo ranks: deal the images, and save what it computes."""
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "The ``compute`` method of metric .* was called before")
    dist.init_process_group("gloo", init_method=f"file://{folder}/join", rank=rank, world_size=2)
    predictions, targets = torch.load(f"{folder}/images.pt", weights_only=False)
    found = []
    for orders in ORDERS:
        metric = COCODetectionAP(CLASSES, masks=True, engine="pycocotools")
        found.append(everything(dealt(predictions, targets, orders[rank], metric)))
    # After it has been asked, a metric takes more images, as before.
    metric = COCODetectionAP(CLASSES, masks=True, engine="pycocotools")
    for half in (range(rank, 6, 2), range(6 + rank, 12, 2)):
        dealt(predictions, targets, half, metric).evaluation()
    found.append(everything(metric))
    with pytest.raises(RuntimeError, match="no rank has seen any"):
        COCODetectionAP(CLASSES).evaluation()
    torch.save(found, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()
