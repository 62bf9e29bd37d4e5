"""Kills a training at many moments, resumes it to its end, and compares the ends; prints JSON.

Run as a script, ``kills.py FOLDER``: children are forked from this process, which has imported torch and
has run nothing, so that a start costs next to nothing.
"""

import json
import os
import random
import signal
import socket
import sys
import time
from mmap import mmap
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import contextlib

import training

PLAIN = {}
ACCUMULATED = {"accumulate": 2}
TWO_RANKS = {"ranks": 2}
# Seed of the moments, options of each start in turn, and the kills, in turn.
CHAINS = (
    (1, [PLAIN], ["step", "save", "epoch", "save"]),
    (2, [PLAIN], ["save", "step", "save", "step"]),
    (3, [PLAIN, {"workers": 2}, PLAIN, {"workers": 1}], ["step", "save", "step"]),
    (4, [ACCUMULATED], ["step", "save", "epoch", "step"]),
    (5, [TWO_RANKS], ["step", "save", "epoch"]),
    (6, [PLAIN], ["epoch", "step"]),
)


def start(root, folder, options):
    """A process group that trains; gives its leader, and the counts that it keeps."""
    counts = memoryview(mmap(-1, 16)).cast("q")
    ranks, port = options.get("ranks", 1), free_port()
    leader = os.fork()
    if leader:
        return leader, counts
    os.setpgid(0, 0)
    others = []
    for rank in range(ranks):
        if rank + 1 < ranks and (child := os.fork()):
            others.append(child)
            continue
        code = 1
        try:
            if ranks > 1:
                training.environment(rank, ranks, port)
            own = counts if rank == ranks - 1 else None
            training.train(root, folder, own, **options)
            code = 0
        finally:
            if rank == ranks - 1:  # the leader
                for child in others:
                    os.waitpid(child, 0)
            os._exit(code)
    return None


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def killed(leader, counts, folder, kind, lot):
    """Kill the group at a moment of a kind; tells whether it was still running."""
    count, delay = lot.randint(1, 3), lot.uniform(0, 0.02)
    seen, there = 0, False
    while True:
        if os.waitid(os.P_PID, leader, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            break
        if kind == "save":
            now = any(folder.glob(".last.ckpt.*.tmp"))
            seen += now and not there
            there = now
            if seen >= count:
                break
        elif kind == "step" and counts[0] >= count:
            time.sleep(delay)
            break
        elif kind == "epoch" and counts[1]:
            break
        time.sleep(0.0005)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)
    _, status = os.waitpid(leader, 0)
    return os.WIFSIGNALED(status)


def finished(root, folder, options):
    """Let it train to its end."""
    leader, _ = start(root, folder, options)
    _, status = os.waitpid(leader, 0)
    assert status == 0, f"{folder} ended with {status}"
    return training.ends(folder)


def run(out):
    root = out / "toy"
    if not os.fork():
        from goodtransfer.data import make_imagefolder

        make_imagefolder(root, train=training.IMAGES, val=20, size=24)
        os._exit(0)
    os.wait()
    whole = {
        name: finished(root, out / name, options)
        for name, options in (("plain", PLAIN), ("accumulated", ACCUMULATED), ("ranks", TWO_RANKS))
    }
    expected = {"accumulate": "accumulated", "ranks": "ranks"}
    found = []
    for seed, starts, kinds in CHAINS:
        folder, lot = out / f"chain{seed}", random.Random(seed)
        name = next((expected[key] for key in starts[0] if key in expected), "plain")
        kills = []
        for number, kind in enumerate(kinds):
            leader, counts = start(root, folder, starts[number % len(starts)])
            hit = killed(leader, counts, folder, kind, lot)
            aside = len(list(folder.glob(".last.ckpt.*.tmp")))
            kills.append({"kind": kind, "hit": hit, "saving": aside > 0, "steps": counts[0]})
        end = finished(root, folder, starts[len(kinds) % len(starts)])
        found.append({
            "seed": seed, "kills": kills, "equal": end == whole[name],
            "left": [f.name for f in folder.glob(".*.tmp")],
        })  # fmt: skip
    print(json.dumps(found))


if __name__ == "__main__":
    run(Path(sys.argv[1]))
