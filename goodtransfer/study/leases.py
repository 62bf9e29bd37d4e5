"""GPUs of this machine for cells side by side: each leases one, by a lock on a file.

Snakemake counts GPUs but hands out no ids; a scheduler of a cluster hands out its own.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from goodtransfer.study.locks import locked

# Ids that cells lease from, such as "0,1"; an id that is there twice is shared by two cells.
VARIABLE = "GOODTRANSFER_GPUS"


def devices() -> list[str]:
    """Ids of the GPUs that cells may use, without a word to CUDA; empty where there is none."""
    for name in (VARIABLE, "CUDA_VISIBLE_DEVICES"):
        if name in os.environ:
            ids = [part.strip() for part in os.environ[name].split(",")]
            return [one for one in ids if one not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    call = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    asked = subprocess.run(call, capture_output=True, text=True, check=False)
    return asked.stdout.split() if asked.returncode == 0 else []


@contextmanager
def leased(out: Path, ids: Sequence[str]) -> Iterator[str | None]:
    """Have one of the GPUs alone, as the only one that CUDA will see; nothing where there is none.

    Args:
        out: the study's folder; its cells do not share a GPU of one machine.
        ids: as ``devices`` gives them.
    """
    if not ids:
        yield None
        return
    with ExitStack() as stack:
        device = _lease(out, ids, stack)
        os.environ["CUDA_VISIBLE_DEVICES"] = device
        yield device


def _lease(out: Path, ids: Sequence[str], stack: ExitStack) -> str:
    while True:
        for place, one in enumerate(ids):
            copy = f".{again}" if (again := ids[:place].count(one)) else ""
            name = f"{socket.gethostname()}-gpu{one.replace('/', '_')}{copy}.lock"
            try:
                stack.enter_context(locked(out / "work" / "leases" / name, wait=False))
            except BlockingIOError:
                continue
            return one
        time.sleep(0.2)
