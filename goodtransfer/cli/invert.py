"""``goodtransfer invert``: see what an encoder's features remember of an image (Figures 2 and 6)."""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

EXAMPLES = """examples:
  goodtransfer invert --encoders resnet50.pth moco_v2.pth --images dog.jpg --out inverted
  goodtransfer invert --encoders supervised=a.pth MoCo=b.safetensors untrained=resnet50 \\
      --images photos --steps 500 --out quick              names for the columns, and a first look
  goodtransfer invert --encoders MoCo=b.pth supervised=a.pth --images /data/imagenet/val \\
      --images-per-class 1 --seed 0 --out figure6          1,000 images, as the paper takes
  goodtransfer invert --encoders timm:tf_efficientnet_lite0@FILE.safetensors \\
      --images dog.jpg --stage 4 --out stage4              what an earlier stage holds

A network is fitted until the image that it makes has the features of the given one. What is lost in
the picture is what the features do not hold, or the network cannot draw: compare encoders.

OUT holds
  figure2.png       the original, then each encoder's picture, of the first 8 images
  table.md          means of LPIPS (calibrated, and not), PSNR, SSIM and the loss
  figure6.png       each image's distance for the first encoder against every other one
  results.json      the images and their seeds, the settings, and every number
  ENCODER/IMAGE.png the pictures; ENCODER/IMAGE_steps, how they came to be; original/IMAGE.png

The same command goes on where it was stopped. Of a ResNet-50, 3,001 steps at 224 pixels take about
25 minutes of a CPU core. LPIPS needs SqueezeNet's weights, which are downloaded once; without them
the table has its other columns.
"""

_SMALLEST = 32  # pixels of an image's short side: one position of stage 5
_TREE = "Expected tree: ROOT/CLASS/IMAGE.jpg, e.g. ImageNet's val. Or leave out --images-per-class."


def main(argv: Sequence[str]) -> int:
    """Invert every image by every encoder; after Ctrl-C say that nothing is lost."""
    try:
        _invert(_parser().parse_args(argv))
    except KeyboardInterrupt:
        print("\nStopped. What is made is kept; the same command goes on.", file=sys.stderr)
        return 130
    return 0


def _invert(arguments: argparse.Namespace) -> None:
    from goodtransfer.analysis.gallery import Gallery
    from goodtransfer.analysis.inversion import prepare, seeded
    from goodtransfer.weights import load_encoder
    from goodtransfer.weights.labels import labelled

    if not 0 <= arguments.seed < 2**63:
        raise ValueError(f"Expected a --seed from 0 to 2**63 - 1, but got {arguments.seed}.")
    specs = labelled(arguments.encoders)
    files = _chosen(arguments.images, arguments.images_per_class, arguments.seed)
    images = {name: _cropped(file, arguments.size) for name, file in files.items()}
    encoders = {}
    for label, spec in specs.items():
        with seeded(arguments.seed):  # for an encoder without weights
            encoders[label] = load_encoder(spec)
    options = {name: getattr(arguments, name) for name in ("stage", "lr", "seed")}
    first = next(iter(images.values()))
    for label, encoder in encoders.items():  # refused before hours go into the others
        try:
            prepare(encoder, first, device=arguments.device, **options)
        except ValueError as error:
            raise ValueError(f"{error} (With {label}={specs[label]}.)") from error
    about = {"encoders": specs, "files": {name: str(file) for name, file in files.items()}}
    gallery = Gallery(
        arguments.out, encoders, images, steps=arguments.steps, about=about, **options
    )
    gallery.fill(device=arguments.device, every=arguments.every)
    print(f"{gallery.table()}\n{arguments.out / 'figure2.png'}")


# --- What is given


def _chosen(given: Sequence[Path], per_class: int | None, seed: int) -> dict[str, Path]:
    """Image name -> file. A name is the path below the folder given, without its ending."""
    from goodtransfer.data.files import scan_flat

    files: dict[str, Path] = {}
    for path in given:
        if per_class is not None:
            found = list(_of_classes(path, per_class, seed))
        elif path.is_dir():
            inside = scan_flat(path)
            found = [(path, inside.name(number)) for number in range(len(inside))]
        else:
            found = [(path.parent, path.name)]
        if not found:
            raise FileNotFoundError(f"Expected images in {path}, but found none.")
        for folder, file in found:
            name = Path(file).with_suffix("").as_posix()
            if name in files:
                raise ValueError(
                    f"Expected images of different names, but {files[name]} and {folder / file} are "
                    f"both called {name}: rename one, or give the folder above both."
                )
            files[name] = folder / file
    return files


def _of_classes(root: Path, count: int, seed: int) -> Iterator[tuple[Path, str]]:
    """As many images of every class, drawn by lot."""
    import numpy as np

    from goodtransfer.data.files import scan

    files, classes = scan(root, _TREE)
    for number, name in enumerate(classes):
        there = np.flatnonzero(files.labels == number)
        if len(there) < count:
            raise ValueError(
                f"Expected {count} images of every class in {root}, but {name} has {len(there)}: "
                "take fewer --images-per-class."
            )
        for chosen in np.random.default_rng([seed, number]).choice(there, count, replace=False):
            yield root, files.name(int(chosen))


def _cropped(file: Path, size: int) -> "Tensor":
    """The middle of an image, as it is evaluated: uint8 (3, size, size)."""
    from goodtransfer.views import center, decode

    pixels = decode(file)
    if min(pixels.shape[:2]) < _SMALLEST:
        raise ValueError(
            f"Expected an image of at least {_SMALLEST} pixels a side at {file}, but it is "
            f"{pixels.shape[1]} x {pixels.shape[0]}: leave it out."
        )
    (image,) = center(size)(pixels)
    return image


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "goodtransfer invert", description=__doc__, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--encoders", nargs="+", required=True, metavar="[NAME=]ENCODER",
        help="a weight file, NAME@FILE, torchvision:NAME@pretrained, resnet50 (untrained), ...; "
        "NAME= is its column")  # fmt: skip
    add("--images", nargs="+", type=Path, required=True, metavar="PATH",
        help="files, folders, or with --images-per-class a folder of class folders")  # fmt: skip
    add("--images-per-class", type=_positive(int), metavar="N",
        help="take N of each class, drawn by the seed (default: all images)")  # fmt: skip
    add("--out", type=Path, required=True, metavar="DIR", help="folder for all that is made")
    add("--seed", type=int, default=0, help="of images, noise and networks (default: 0)")
    add("--stage", type=int, default=5, help="whose map is inverted; 5 is the last (default: 5)")
    add("--steps", type=_positive(int), default=3001, help="updates an image (default: 3001)")
    add("--lr", type=_positive(float), default=1e-3, help="of Adam (default: 0.001)")
    add("--size", type=_positive(int), default=224,
        help="pixels a side, more than 64 (default: 224)")  # fmt: skip
    add("--every", type=_positive(int), default=250, metavar="N",
        help="steps between previews, and between states to go on from (default: 250)")  # fmt: skip
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    return parser


def _positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    def positive(text: str) -> float:
        if not (value := kind(text)) > 0:
            raise argparse.ArgumentTypeError(f"expected more than 0, but got {text}")
        return value

    return positive
