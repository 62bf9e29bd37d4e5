"""One rank of `test_views_everywhere.py`: prints the digest of every view it reads, in order."""

import json
import sys
from hashlib import sha256

import torch.distributed as dist

from goodtransfer import ImageNetDataModule

root, meeting, rank, ranks, workers, stop = sys.argv[1:]
if int(ranks) > 1:
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=int(rank), world_size=int(ranks)
    )
seen = []


def read(loader, batches):
    """Some batches of an epoch."""
    for _, batch in zip(range(batches), loader, strict=False):
        for number, index in enumerate(batch.index.tolist()):
            views = b"".join(view[number].numpy().tobytes() for view in batch.views)
            epoch = loader.sampler.epoch
            seen.append((epoch, index, sha256(views).hexdigest()[:16]))


def made():
    """A loader as a new process has it."""
    data = ImageNetDataModule(
        root, batch_size=4 // int(ranks), size=24, views="moco_v2", num_workers=int(workers)
    )
    return data.train_dataloader()


loader = made()
for epoch in (0, 1):
    loader.sampler.set_epoch(epoch)
    read(loader, 100 if epoch == 0 or stop == "0" else int(stop))
if stop != "0":  # killed in mid-epoch, and gone on with elsewhere
    state, loader = loader.state_dict(), made()
    loader.load_state_dict(state)
    read(loader, 100)
print(json.dumps(seen))
if dist.is_initialized():
    dist.destroy_process_group()
