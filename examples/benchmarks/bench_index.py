"""Opening a large tree a second time, the first batch of an ImageNet, and the memory of its workers.

    python examples/benchmarks/bench_index.py SCRATCH

Makes two trees of class folders in SCRATCH (hard links to a few small photos, so that nothing but
names takes space), 200,000 files and ImageNet's 1,281,167, and removes them. Every opening is timed
in a process of its own, after its imports; "first batch" is 256 images of 500 x 375 pixels, two
MoCo-v2 views each at 224, by one worker a core.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = 1000


def make_tree(root: Path, files: int) -> None:
    """``files`` names in 1,000 classes, and one image to report on in each."""
    blobs = np.random.default_rng(0).integers(0, 256, (25, 33, 3), dtype=np.uint8)
    picture = Image.fromarray(blobs).resize((500, 375), Image.Resampling.BICUBIC)
    pixels = np.asarray(picture)
    for number in range(CLASSES):
        name = f"n{number:08d}"
        train, val = root / "train" / name, root / "val" / name
        train.mkdir(parents=True)
        val.mkdir(parents=True)
        Image.fromarray(np.roll(pixels, number)).save(val / "ILSVRC2012_val_00000001.JPEG")
        for image in range(number, files, CLASSES):  # a file may not have 65,000 names
            os.link(val / "ILSVRC2012_val_00000001.JPEG", train / f"{name}_{image}.JPEG")
    for folder, _, _ in os.walk(root):  # else the index would not trust folders so new
        os.utime(folder, (time.time() - 3600,) * 2)


OPEN = """
import sys, time, json
from goodtransfer import ImageNetDataModule
data = ImageNetDataModule(sys.argv[1])
started = time.perf_counter()
count = data.num_images
print(json.dumps({"count": count, "seconds": time.perf_counter() - started}))
"""
OPEN_TORCHVISION = """
import sys, time, json
from torchvision.datasets import ImageFolder
started = time.perf_counter()
count = len([ImageFolder(f"{sys.argv[1]}/{split}") for split in ("train", "val")][0])
print(json.dumps({"count": count, "seconds": time.perf_counter() - started}))
"""
FIRST_BATCH = """
import os, sys, time, json
from goodtransfer import ImageNetDataModule
started = time.perf_counter()
data = ImageNetDataModule(sys.argv[1], views="moco_v2", num_workers=os.cpu_count())
data.setup("fit")
batch = next(iter(data.train_dataloader()))
seconds = time.perf_counter() - started
print(json.dumps({"count": data.num_images, "seconds": seconds, "shape": list(batch.views[0].shape)}))
"""
# What a worker has for itself, after 20 batches and after 400: the list is read all over by then.
MEMORY = """
import sys, json, torch
from torch.utils.data import DataLoader
from pathlib import Path
from goodtransfer.data.files import scan

class Names(torch.utils.data.Dataset):
    def __init__(self, names): self.names = names
    def __len__(self): return len(self.names)
    def __getitem__(self, number): return len(self.names[number][0])

class Packed(Names):
    def __getitem__(self, number): return len(self.names.path(number))

files, _ = scan(Path(sys.argv[1]) / "train", "")
data = Packed(files) if sys.argv[2] == "packed" else Names(list(files))
del files
order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0)).tolist()

def private(pid):
    with open(f"/proc/{pid}/smaps_rollup") as lines:
        return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024

loader = iter(DataLoader(data, batch_size=256, num_workers=4, sampler=order))
seen = {}
for number, _ in enumerate(loader, start=1):
    if number in (20, 400, len(order) // 256 - 60):
        seen[number] = round(sum(private(w.pid) for w in loader._workers) / 4, 1)
print(json.dumps(seen))
"""


def run(code: str, *arguments: object) -> dict:
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--files", type=int, nargs=2, default=(200_000, 1_281_167))
    args = parser.parse_args()
    args.scratch.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=args.scratch))
    os.environ["GOODTRANSFER_CACHE"] = str(scratch / "cache")
    try:
        for count in args.files:
            root = scratch / str(count)
            make_tree(root, count)
            for name, code in (
                ("torchvision's ImageFolder", OPEN_TORCHVISION),
                ("ours, first time", OPEN),
                ("ours, second time", OPEN),
            ):
                found = run(code, root)
                assert found["count"] == count
                print(f"{count:,} files, {name}: {found['seconds']:.2f} s", flush=True)
        found = run(FIRST_BATCH, root)
        print(f"from the index to the first batch {found['shape']}: {found['seconds']:.2f} s")
        for kind in ("packed", "list"):
            print(
                f"MiB that a worker has for itself, {kind}, after batches: {run(MEMORY, root, kind)}"
            )
    finally:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
