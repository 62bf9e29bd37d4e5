"""What each of two ranks computes; a module of its own, so that a spawned process can import it."""

import warnings

import numpy as np
import pytest
import torch
import torch.distributed as dist

from goodtransfer.metrics import VOCDetectionAP

ORDERS = [
    [range(0, 26, 2), [*range(1, 26, 2), 0]],  # a sampler repeats an image to fill up
    [range(26), []],
    [[], [25, *range(25)]],
]


def dealt(predictions, targets, order, metric):
    for i in order:
        metric.update([predictions[i]], [targets[i]])
    return metric


def rank_main(rank, folder):
    """One of two gloo ranks: deal the images, and save what it computes."""
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "The ``compute`` method of metric .* was called before")
    dist.init_process_group("gloo", init_method=f"file://{folder}/join", rank=rank, world_size=2)
    predictions, targets = torch.load(f"{folder}/images.pt", weights_only=False)
    results = []
    for orders in ORDERS:
        metric = dealt(predictions, targets, orders[rank], VOCDetectionAP(3))
        evaluation = metric.evaluation()
        results.append({
            "compute": metric.compute(),
            "ap": torch.tensor(evaluation.ap),
            "curves": [torch.tensor(np.stack(evaluation.curve(c))) for c in range(3)],
        })  # fmt: skip
    with pytest.raises(RuntimeError, match="no rank has seen any"):
        VOCDetectionAP(3).evaluation()
    torch.save(results, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()
