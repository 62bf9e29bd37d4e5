"""One rank of `test_views_everywhere.py`: prints the digest of every view it reads, in order."""

import json
import sys
from hashlib import sha256

import torch.distributed as dist

from goodtransfer import ImageNetDataModule


def read(loader, batches):
    """(epoch, index, digest of the views) of every image in some batches of an epoch."""
    for _, batch in zip(range(batches), loader, strict=False):
        for number, index in enumerate(batch.index.tolist()):
            views = b"".join(view[number].numpy().tobytes() for view in batch.views)
            yield loader.sampler.epoch, index, sha256(views).hexdigest()[:16]


def main(root, meeting, rank, ranks, workers, stop):
    """Two epochs; where ``stop`` is not 0, killed after so many batches of the second."""
    if ranks > 1:
        place = f"file://{meeting}"
        dist.init_process_group("gloo", init_method=place, rank=rank, world_size=ranks)

    def made():
        """A loader as a new process has it."""
        data = ImageNetDataModule(
            root, batch_size=4 // ranks, size=24, views="moco_v2", num_workers=workers
        )
        return data.train_dataloader()

    loader = made()
    seen = list(read(loader, 100))
    loader.sampler.set_epoch(1)
    seen += read(loader, stop or 100)
    if stop:  # and gone on with elsewhere
        state, loader = loader.state_dict(), made()
        loader.load_state_dict(state)
        seen += read(loader, 100)
    print(json.dumps(seen))
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:]))
