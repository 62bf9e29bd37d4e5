"""A loader whose order is a function of (seed, epoch), and which resumes within an epoch."""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from goodtransfer.distributed import rank, world_size


class EpochSampler(DistributedSampler[Any]):
    """Yields (epoch, number): one global permutation per epoch, dealt to the ranks round-robin.

    Being a DistributedSampler, Lightning leaves it in place under DDP. Rank and world size are read
    when an epoch starts, so it may be built before the process group.

    Args:
        count: images in the data set.
        shuffle: permute; else in order.
        seed: of the permutations.
        drop_last: drop the images that do not fill a round; else repeat the first ones.
        multiple: with ``drop_last``, of images that a rank reads in an epoch: those of an optimizer
            step, so that none is made from fewer (Lightning steps at an epoch's end, come what may).
    """

    def __init__(
        self, count: int, *, shuffle: bool, seed: int = 0, drop_last: bool, multiple: int = 1
    ) -> None:
        self.count, self.shuffle, self.seed, self.drop_last = count, shuffle, seed, drop_last
        self.multiple = multiple
        self.epoch = 0
        self.skip = 0  # images of this rank to leave out at the next start

    def set_epoch(self, epoch: int) -> None:
        """The epoch whose order and views come next."""
        self.epoch = epoch

    def __len__(self) -> int:
        ranks = world_size()
        if self.drop_last:
            return self.count // ranks // self.multiple * self.multiple
        return -(-self.count // ranks)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            order = torch.randperm(self.count, generator=generator)
        else:
            order = torch.arange(self.count)
        ranks, total = world_size(), len(self) * world_size()
        order = order.repeat(-(-total // self.count))[:total]
        mine = self.arrange(order[rank() :: ranks].tolist())
        mine, self.skip = mine[self.skip :], 0
        return ((self.epoch, number) for number in mine)

    def arrange(self, mine: list[int]) -> list[int]:
        """This rank's images of an epoch in the order they are read; a subclass may change it."""
        return mine


class GroupedSampler(EpochSampler):
    """An :class:`EpochSampler` whose batches hold images of one group, such as wide ones.

    As in detectron2, each group collects this rank's images in their order, and is read when it
    fills a batch. What is left of all groups comes last, in mixed batches, so that an epoch still
    reads every image.

    Args:
        groups: the group of each image.
        batch_size: images per batch, as the loader cuts them.
        arguments: of :class:`EpochSampler`.
    """

    def __init__(self, groups: Sequence[int], *, batch_size: int, **arguments: Any) -> None:
        super().__init__(len(groups), **arguments)
        self.groups, self.batch_size = groups, batch_size

    def arrange(self, mine: list[int]) -> list[int]:
        waiting: dict[int, list[int]] = {}
        places: list[int] = []
        for place, number in enumerate(mine):
            group = waiting.setdefault(self.groups[number], [])
            group.append(place)
            if len(group) == self.batch_size:
                places += group
                group.clear()
        # In their order, not by group: `drop_last` would always drop the same group's.
        places += sorted(chain.from_iterable(waiting.values()))
        return [mine[place] for place in places]


class ResumableLoader(DataLoader[Any]):
    """A DataLoader whose state is the epoch and the batches consumed, not those prefetched.

    Lightning saves and restores it within its checkpoints, so a run killed in mid-epoch goes on
    with the next batch and the views it would have seen.
    """

    def __init__(self, dataset: Dataset[Any], *, sampler: EpochSampler, **arguments: Any) -> None:
        # Of its own: each epoch draws the workers' seed, which the views do not need.
        arguments.setdefault("generator", torch.Generator())
        super().__init__(dataset, sampler=sampler, **arguments)
        self._epoch = self._consumed = self._resume_at = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        sampler = self.sampler
        if not isinstance(sampler, EpochSampler):  # overfit_batches puts in another
            yield from super().__iter__()
            return
        # A generator: all this runs at the first batch, after Lightning has set the epoch. Where
        # that is not the state's, the state is of an epoch that `limit_train_batches` had ended.
        goes_on = sampler.epoch == self._epoch
        self._consumed, self._resume_at = self._resume_at if goes_on else 0, 0
        self._epoch, sampler.skip = sampler.epoch, self._consumed * (self.batch_size or 1)
        try:
            for batch in super().__iter__():
                self._consumed += 1
                yield batch
        except RuntimeError as error:
            if fault := self.fault():
                raise RuntimeError(f"{fault} ({error})") from error
            raise

    def fault(self) -> str | None:
        """A sentence on the files that dead worker processes were reading; None where there are none."""
        files = self._died_reading()
        if not files:
            return None
        return (
            "Expected a loader process to give a batch, but it died while it was reading "
            f"{' or '.join(files)}: look at that file, and at the machine's memory."
        )

    def _died_reading(self) -> list[str]:
        workers = getattr(self._iterator, "_workers", ())
        reading = getattr(self.dataset, "reading", None)
        if reading is None:
            return []
        dead = [number for number, worker in enumerate(workers) if not worker.is_alive()]
        return [file for number in dead if (file := reading.under_way(number))]

    def state_dict(self) -> dict[str, int]:
        """Where training stands: the epoch, its batches consumed, and what a batch is."""
        dealt = {"ranks": world_size(), "batch_size": self.batch_size or 1}
        if self._consumed >= len(self):
            return {"epoch": self._epoch + 1, "consumed": 0, **dealt}
        return {"epoch": self._epoch, "consumed": self._consumed, **dealt}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from :meth:`state_dict`.

        Raises:
            ValueError: within an epoch whose images were dealt in other batches, or to other ranks: which
                ones are left could not be dealt alike. Between epochs both may change.
        """
        now = {"ranks": world_size(), "batch_size": self.batch_size or 1}
        before = {name: state.get(name, value) for name, value in now.items()}
        if state["consumed"] and now != before:
            ours, theirs = (
                "{ranks} ranks with batches of {batch_size}".format(**d) for d in (now, before)
            )
            raise ValueError(
                f"Expected {theirs}, which the checkpoint was saved by in the middle of epoch "
                f"{state['epoch']}, but there are {ours}: go on with as many, or from a checkpoint of "
                "the end of an epoch."
            )
        self._epoch, self._resume_at = state["epoch"], state["consumed"]
        self._consumed = self._resume_at
        if isinstance(self.sampler, EpochSampler):
            self.sampler.set_epoch(self._epoch)


def loader(
    dataset: Dataset[Any],
    sampler: EpochSampler,
    *,
    batch_size: int,
    num_workers: int,
    collate: Callable[[list[Any]], Any],
) -> ResumableLoader:
    """The loader of every data set here: batches of what ``sampler`` yields."""
    return ResumableLoader(
        dataset,
        sampler=sampler,
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=collate,
        drop_last=sampler.drop_last,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=num_workers > 0,
        worker_init_fn=_until_done,
    )


def _until_done(worker: int) -> None:
    """Heed SIGTERM from the process that trains alone: one sent to all would end what it reads from."""
    if hasattr(signal, "sigwaitinfo"):  # which tells who sent it; not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_by, args=(os.getppid(),), daemon=True).start()


def _end_by(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)  # as torch's own handler
