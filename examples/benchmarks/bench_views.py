"""Two MoCo-v2 views at 224 px from JPEG files: ours, the official pipeline's, lightly's, decoding.

    python examples/benchmarks/bench_views.py PHOTOS

PHOTOS is a folder of images at any depth. JPEGs of about 500 x 375 pixels, ImageNet's usual size, are
read as they are, others are brought to that size first (quality 90).
One thread, CPU time; the sides take turns within every pass, and ratios are of the same pass.

* official: facebookresearch/moco's transforms on PIL images, ending in ToTensor and Normalize;
* official, uint8: the same without these two, which our encoders do on the device;
* lightly: MoCoV2Transform as it comes;
* decoding: simplejpeg alone, the limit of any pipeline that decodes whole images once.

Then the fidelity: each operation as drawn for these images, against torchvision's on PIL images.
"""

import argparse
import random
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from PIL import Image, ImageFilter
from torchvision import transforms

from goodtransfer import views

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests/views"))
from pil_operations import PIL_OPERATIONS, psnr


class OfficialBlur:
    """moco/loader.py's GaussianBlur."""

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))


def official(*ending: object) -> Callable[[Path], object]:
    augment = transforms.Compose(
        [
            transforms.RandomResizedCrop(224, scale=(0.2, 1.0)),
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            transforms.RandomGrayscale(p=0.2),
            transforms.RandomApply([OfficialBlur()], p=0.5),
            transforms.RandomHorizontalFlip(),
            *ending,
        ]
    )

    def two_crops(path: Path) -> object:
        image = _pil(path)
        return augment(image), augment(image)

    return two_crops


def lightly() -> Callable[[Path], object]:
    from lightly.transforms import MoCoV2Transform

    transform = MoCoV2Transform()
    return lambda path: transform(_pil(path))


def _pil(path: Path) -> Image.Image:
    """As torchvision's ImageFolder reads."""
    with path.open("rb") as file:
        return Image.open(file).convert("RGB")


def photos(folder: Path, target: Path, count: int) -> list[Path]:
    """JPEG files of about 500 x 375 pixels: as they are if they are that, else resized."""
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not found:
        raise SystemExit(f"Expected images below {folder}, but found none.")
    for number, path in enumerate(found[:: max(1, len(found) // count)][:count]):
        image, copy = _pil(path), target / f"{number:04d}.jpg"
        scale = (500 * 375 / (image.width * image.height)) ** 0.5
        if 0.8 < scale < 1.25 and path.read_bytes()[:2] == b"\xff\xd8":
            shutil.copy(path, copy)
        else:
            size = (round(image.width * scale), round(image.height * scale))
            image.resize(size, Image.Resampling.LANCZOS).save(copy, quality=90)
    return sorted(target.iterdir())


def fidelity(files: list[Path]) -> None:
    """The worst of every operation, over what the recipes draw for these images."""
    worst: dict[str, tuple[float, float]] = {}
    for index, path in enumerate(files):
        for recipe in (views.moco_v2(224), views.moco_v1(224), views.supervised(224)):
            image = views.decode(path)
            assert np.array_equal(image, np.asarray(_pil(path)))
            for done in recipe.draw(*image.shape[:2], 0, seed=0, epoch=0, index=index):
                name, reference = done.function.__name__, PIL_OPERATIONS[done.function]
                expected = np.asarray(reference(Image.fromarray(image), *done.parameters))
                image = done(image)
                off = float(np.abs(image.astype(int) - expected).mean())
                far, near = worst.get(name, (0.0, 99.0))
                worst[name] = max(far, off), min(near, psnr(image, expected))
    print(f"fidelity to PIL over {3 * len(files)} views, worst image of each operation:")
    for name, (far, near) in sorted(worst.items()):
        print(f"{name:>12}: mean absolute difference {far:.3f} of 255, {near:.1f} dB")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", type=Path)
    parser.add_argument("--count", type=int, default=100, help="photos (default: 100)")
    parser.add_argument("--passes", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")

    ours = views.TwoViews(views.moco_v2(224))
    sides: dict[str, Callable[[Path], object]] = {
        "ours": ours,
        "official": official(
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ),
        "official, uint8": official(transforms.PILToTensor()),
        "lightly": lightly(),
        "decoding": lambda path: simplejpeg.decode_jpeg(path.read_bytes(), colorspace="RGB"),
    }
    with tempfile.TemporaryDirectory() as folder:
        files = photos(args.photos, Path(folder), args.count)
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(args.passes + 1):  # the first is a warm-up
            for name, make in sides.items():
                started = time.process_time()
                for path in files:
                    make(path)
                if number:
                    seconds[name].append(time.process_time() - started)
        print(f"{len(files)} JPEGs, one thread, {args.passes} passes, images a CPU second")
        for name, values in seconds.items():
            rate = len(files) / statistics.median(values)
            print(f"{name:>16}: median {rate:6.1f}  best {len(files) / min(values):6.1f}")
        for name in list(sides)[1:]:
            pairs = [x / y for x, y in zip(seconds[name], seconds["ours"], strict=True)]
            print(f"ours / {name}: {statistics.median(pairs):.2f} (median of passes)")
        fidelity(files)


if __name__ == "__main__":
    main()
