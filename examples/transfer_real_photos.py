r"""One trunk, pretrained and untrained, through every transfer task on real photos, side by side.

    python examples/transfer_real_photos.py DATA --weights tf_efficientnet_lite0_timm.safetensors

DATA holds imagenette_224, hymenoptera_data, camvid, celeba_layout_faces and coco128. Each task runs
with both trunks on the same budget, as small as a CPU can take, for every seed. Prints a table with
the mean difference and its 95 % interval (paired over the seeds, Student's t), and writes it to
``--out`` with a picture of each task's predictions.
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path

import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms.v2.functional import pil_to_tensor

from goodtransfer import (
    COCODetection,
    COCODetectionDataModule,
    FewShot,
    ImageFolderDataModule,
    Landmarks,
    LinearProbe,
    MAFLDataModule,
    Segmentation,
    load_encoder,
)
from goodtransfer.data.segmentation import collate
from goodtransfer.study.transfers import C4
from goodtransfer.views.segmentation import IGNORE, SegmentationView

T95 = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571}  # two-sided, n - 1 degrees of freedom

Made = tuple[pl.Trainer, pl.LightningModule]
Score = dict[str, float]


def few_shot(root: Path, encoder: nn.Module, seed: int, out: Path) -> Score:
    """Five classes of Imagenette choose the rate, the five others are scored."""
    images = ImageFolder(root / "imagenette_224/train", transform=pil_to_tensor)
    parts = [[n for n, label in enumerate(images.targets) if label % 2 == odd] for odd in (0, 1)]
    loaders = [DataLoader(torch.utils.data.Subset(images, part), batch_size=50) for part in parts]
    trainer = quiet(out)
    found = trainer.test(FewShot(encoder, seed=seed), loaders, verbose=False)
    return {k: float(v) for part in found for k, v in part.items() if k in SHOWN}


def linear(root: Path, encoder: nn.Module, seed: int, out: Path) -> Score:
    """Ants and bees."""
    data = ImageFolderDataModule(
        root / "hymenoptera_data", batch_size=16, size=128, selection=0.2, seed=seed
    )
    trainer = quiet(out, max_epochs=10, check_val_every_n_epoch=10)
    return fitted(trainer, LinearProbe(encoder), data)


def segmentation(root: Path, encoder: nn.Module, seed: int, out: Path) -> Score:
    """Eleven classes of CamVid."""
    view = SegmentationView((192, 256), (0.5, 1.5), None)
    train, val = (CamVid(root / "camvid/CamVid", part) for part in ("train", "val"))
    train.view, train.seed = view, seed
    order = torch.Generator().manual_seed(seed)
    loaders = (
        DataLoader(train, 4, shuffle=True, generator=order, drop_last=True, collate_fn=collate),
        DataLoader(val, 1, collate_fn=collate),
    )
    task = Segmentation(
        encoder,
        num_classes=len(CamVid.NAMES),
        iterations=60,
        batch=4,
        network={"channels": 64, "aux_channels": 32},
        seed=seed,
    )
    trainer = quiet(out, max_epochs=-1, limit_val_batches=0)
    trainer.fit(task, loaders[0])
    return plain(trainer.test(task, loaders[1], verbose=False)[0])


def landmarks(root: Path, encoder: nn.Module, seed: int, out: Path) -> Score:
    """Five points on faces."""
    data = MAFLDataModule(root / "celeba_layout_faces", batch_size=8, size=64, seed=seed)
    trainer = quiet(out, max_epochs=20, limit_val_batches=0)
    return fitted(trainer, Landmarks(encoder, size=64, lr=0.3, seed=seed), data)


def detection(root: Path, encoder: nn.Module, seed: int, out: Path) -> Score:
    """Boxes and masks of 80 classes, from 96 photos."""
    protocol = C4(
        batch=4,
        lr=0.1,
        iterations=50,
        milestones=(33, 44),
        warmup=20,
        short_sides=(160, 176, 192, 208, 224),
        test_side=208,
        max_side=352,
        precise_bn=20,
        anchor_sizes=(16, 32, 64, 128, 256),
        proposals_train=(2_000, 500),
        proposals_test=(1_000, 300),
        rois=32,
        roi_size=7,
    )
    data = COCODetectionDataModule(
        root / "coco128", masks="polygons", batch_size=protocol.batch, seed=seed
    )
    task = COCODetection(encoder, seed=seed, **protocol.arguments())
    return fitted(quiet(out, max_epochs=-1), task, data)


class CamVid(Dataset):
    """Frames and the class of each pixel; an item as those of ``SegmentationDataModule``."""

    NAMES = (
        "Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car",
        "Pedestrian", "Bicyclist",
    )  # fmt: skip

    def __init__(self, root: Path, part: str) -> None:
        # A line has the paths of its origin, "/SegNet/CamVid/train/x.png".
        names = [line.split()[0].rsplit("/", 1)[1] for line in (root / f"{part}.txt").open()]
        self.pairs = [(root / part / name, root / f"{part}annot" / name) for name in names]
        self.view: SegmentationView | None = None
        self.seed = 0

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, number: int) -> tuple[Tensor, dict]:
        image, labels = (pil_to_tensor(Image.open(path)) for path in self.pairs[number])
        classes = labels[0].masked_fill(labels[0] >= len(self.NAMES), IGNORE)
        if self.view is not None:
            epoch = int(torch.randint(1 << 30, ()))
            pixels, cut = self.view(
                image.permute(1, 2, 0).numpy(), classes.numpy(),
                seed=self.seed, epoch=epoch, index=number,
            )  # fmt: skip
            image, classes = torch.from_numpy(pixels).permute(2, 0, 1), torch.from_numpy(cut)
        return image, {"classes": classes, "image_id": torch.tensor(number)}


TASKS: dict[str, Callable[[Path, nn.Module, int, Path], Score]] = {
    "few_shot": few_shot,
    "linear": linear,
    "segmentation": segmentation,
    "landmarks": landmarks,
    "detection": detection,
}
# Score -> whether more is better.
SHOWN = {
    "novel_1shot": True,
    "novel_5shot": True,
    "acc": True,
    "city_mIoU": True,
    "landmark_error": False,
    "landmark_error_mean_shape": False,
    "coco_APbox50": True,
    "coco_APseg50": True,
    "coco_APbox": True,
    "coco_APseg": True,
}


def quiet(out: Path, **options: object) -> pl.Trainer:
    """A Trainer that leaves the pictures in ``out`` and says nothing."""
    return pl.Trainer(
        default_root_dir=out,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
        **options,
    )


def fitted(trainer: pl.Trainer, task: pl.LightningModule, data: pl.LightningDataModule) -> Score:
    trainer.fit(task, data)
    return plain(trainer.test(task, data, verbose=False)[0])


def plain(found: dict) -> Score:
    return {name: float(value) for name, value in found.items() if name in SHOWN}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--architecture", default="timm:tf_efficientnet_lite0")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("transfer_real_photos"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    torch.set_flush_denormal(True)  # of which an untrained network has many, and they are slow
    trunks = {
        "pretrained": f"{given.architecture}@{given.weights}",
        "untrained": given.architecture,
    }
    lines, lost = [], 0
    for name in given.tasks:
        scores: dict[str, list[Score]] = {trunk: [] for trunk in trunks}
        for seed in range(given.seeds):
            for trunk, spec in trunks.items():
                pl.seed_everything(seed, verbose=False)
                folder = given.out / f"{name}_{trunk}_{seed}"
                # Depthwise convolutions on a CPU take 0.6 of the time in this order.
                encoder = load_encoder(spec).to(memory_format=torch.channels_last)
                scores[trunk].append(TASKS[name](given.data, encoder, seed, folder))
                told = json.dumps(scores[trunk][-1])
                print(f"{name:>12} {trunk:>10} seed {seed}: {told}", flush=True)
        for column in scores["pretrained"][0]:
            line, won = compared(column, *(scores[trunk] for trunk in trunks))
            lost += not won and not column.endswith("mean_shape")
            lines.append(f"{name:>12} {line}")
            print(lines[-1])
    (given.out / "table.txt").write_text("\n".join(lines) + "\n")
    return int(lost > 0)


def compared(column: str, pretrained: list[Score], untrained: list[Score]) -> tuple[str, bool]:
    """A line of the table, and whether the interval of the gain is above zero."""
    a, b = ([score[column] for score in scores] for scores in (pretrained, untrained))
    gains = [(x - y) * (1 if SHOWN[column] else -1) for x, y in zip(a, b, strict=True)]
    gain, half = statistics.mean(gains), math.nan
    if len(gains) > 1:
        half = T95[len(gains)] * statistics.stdev(gains) / math.sqrt(len(gains))
    means = f"{statistics.mean(a):6.1f} against {statistics.mean(b):6.1f}"
    return f"{column:>26}: {means}, gain {gain:5.1f} ± {half:4.1f}", gain > half


if __name__ == "__main__":
    raise SystemExit(main())
