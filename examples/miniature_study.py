r"""The paper's comparison on real photos, at scale ``small``: hours on two cores, resumable.

    python examples/miniature_study.py DATA --out miniature [--seeds 3]

DATA holds imagenette_224 (ten classes of ImageNet, class folders), voc2012_100 (a VOCdevkit), coco128 (COCO's
layout), camvid (SegNet's layout) and celeba_layout_faces (CelebA's layout, with MAFL's lists). Pretrains
by cross-entropy, MoCo v1/v2 and Exemplar v1/v2, climbs Table 1's augmentation ladder and Table 10's grid,
and transfers to a linear readout, VOC detection, COCO's boxes and masks, and CamVid's streets, which are
first written in Cityscapes' layout beside the study; pretrains on faces, and transfers to their landmarks
(Table 5). Killed and called again, it goes on.

Ends with the report, and the claims of the paper with the measured effects.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from goodtransfer.cli import main as goodtransfer
from goodtransfer.data.cityscapes import CITYSCAPES_CLASSES, TRAIN_IDS

# CamVid's number in a label file -> Cityscapes' class; CamVid has no other of the 19, and 11 is unlabelled.
CLASSES = (
    "sky", "building", "pole", "road", "sidewalk", "vegetation", "traffic sign", "fence", "car",
    "person", "bicycle",
)  # fmt: skip


def camvid_as_cityscapes(camvid: Path, out: Path) -> Path:
    """Write CamVid's frames and labels in the tree, names and numbers of Cityscapes."""
    done = out / "complete"
    if done.is_file():
        return out
    numbers = {CITYSCAPES_CLASSES[id_]: number for number, id_ in TRAIN_IDS.items() if id_ < 19}
    table = np.zeros(256, np.uint8)  # 0: unlabelled
    table[: len(CLASSES)] = [numbers[name] for name in CLASSES]
    for part in ("train", "val"):
        images = out / "leftImg8bit" / part / "camvid"
        labels = out / "gtFine" / part / "camvid"
        for folder in (images, labels):
            folder.mkdir(parents=True, exist_ok=True)
        # A line has the paths of its origin, "/SegNet/CamVid/train/x.png".
        for number, line in enumerate((camvid / f"{part}.txt").read_text().splitlines()):
            file, stem = line.split()[0].rsplit("/", 1)[1], f"camvid_{number:06}_000000"
            Image.open(camvid / part / file).save(images / f"{stem}_leftImg8bit.png")
            label = table[np.asarray(Image.open(camvid / f"{part}annot" / file))]
            Image.fromarray(label).save(labels / f"{stem}_gtFine_labelIds.png")
    done.touch()
    return out


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("miniature"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tables", nargs="+", default=["3", "supervised", "floor", "1", "10", "5"])
    given, further = parser.parse_known_args()
    streets = camvid_as_cityscapes(
        given.data / "camvid/CamVid", given.out.with_name(f"{given.out.name}-camvid")
    )
    code = goodtransfer(
        ["study", "run", "--scale", "small", "--out", str(given.out), "--seeds", str(given.seeds),
         "--data", str(given.data / "imagenette_224"),
         "--voc", str(given.data / "voc2012_100"), "--voc-splits", "2012/train", "2012/val",
         "--coco", str(given.data / "coco128"), "--cityscapes", str(streets),
         "--celeba", str(given.data / "celeba_layout_faces"), "--table", *given.tables, *further]
    )  # fmt: skip
    return code or goodtransfer(["study", "claims", "--out", str(given.out)]) or 0


if __name__ == "__main__":
    raise SystemExit(main())
