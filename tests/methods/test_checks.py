"""Checks of several ranks, on two of them."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from goodtransfer.methods import checks
from goodtransfer.momentum import KeyQueue, MemoryBank


def rank_checks(rank, folder):
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    found = []
    for memory in (KeyQueue(8, 4), MemoryBank(8, 4)):
        checks.check_equal_on_all_ranks(memory)
        next(memory.buffers())[2 * rank] *= 1 + 1e-6
        try:
            checks.check_equal_on_all_ranks(memory)
            found.append("nothing")
        except RuntimeError as error:
            found.append(str(error))
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()  # gloo of PyTorch 2.6 waits for ever where the other is gone
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_memory_that_differs_is_refused_on_all_ranks(tmp_path):
    """Of equal ones nothing is said, of one value that is off in its last digits all ranks speak."""
    mp.start_processes(rank_checks, args=(str(tmp_path),), nprocs=2, start_method="fork")
    for rank in range(2):
        queue, bank = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert "Expected the same queue on all ranks, but their checksums differ" in queue
        assert "Expected the same memory bank on all ranks" in bank
