"""``goodtransfer data``: check a download, look at it, draw the toy world."""

import argparse
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

EXAMPLES = """examples:
  goodtransfer data check /data/imagenet --dataset imagenet --complete
  goodtransfer data check /data --dataset voc --train 2012/train --test 2012/val
  goodtransfer data show /data/coco /data/celeba --dataset coco mafl --out figure5.png
  goodtransfer data make-toy toy                      every layout below toy/, 2,000 images
  goodtransfer data check toy/coco --dataset coco

data sets:
  imagenet       train/CLASS/*.JPEG, val/CLASS/*.JPEG
  imagefolder    the same with folders of your own: --train seg_train --test seg_test
  unlabelled     images in any folders: --train FOLDER
  places         Places205 or Places365, by lists or by class folders
  celeba         identities by CelebA's official partition
  mafl           five landmarks on CelebA's aligned images
  coco           boxes and masks: --train train2017 --test val2017
  coco-images    the same images without labels, for pretraining
  voc            VOCdevkit: --train 2007/trainval --test 2007/test
  cityscapes     leftImg8bit and gtFine
  synthia        the class of each pixel: --train SYNTHIA-SEQS-01-SPRING, or RAND_CITYSCAPES
  mini-imagenet  train.csv, val.csv, test.csv; --imagenet FOLDER for the original images
"""


def main(argv: Sequence[str]) -> int:
    """Run a verb; 1 tells of damage."""
    arguments = _parser().parse_args(argv)
    return int(arguments.verb(arguments))


def _check(arguments: argparse.Namespace) -> int:
    from goodtransfer.data.check import check

    module = _module(arguments.dataset, arguments.root, arguments)
    findings = check(module, workers=arguments.workers)
    print(findings)
    damaged = bool(findings.faults) or (arguments.complete and not findings.complete)
    complete = findings.published and findings.complete
    print("damaged" if damaged else "no damage, and complete" if complete else "no damage")
    return int(damaged)


def _show(arguments: argparse.Namespace) -> int:
    from goodtransfer.data.show import picture

    if len(arguments.dataset) not in (1, len(arguments.roots)):
        raise ValueError(
            f"Expected one --dataset, or one for each of the {len(arguments.roots)} folders, but "
            f"got {len(arguments.dataset)}: {' '.join(arguments.dataset)}."
        )
    names = arguments.dataset * (len(arguments.roots) if len(arguments.dataset) == 1 else 1)
    modules = [_module(n, r, arguments) for n, r in zip(names, arguments.roots, strict=True)]
    options = {name: getattr(arguments, name) for name in ("part", "width", "height", "seed")}
    grid = picture(modules, **options)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    grid.save(arguments.out)
    print(arguments.out)
    return 0


def _make_toy(arguments: argparse.Namespace) -> int:
    from goodtransfer.data.toy_layouts import make_all

    made = make_all(
        arguments.root, images=arguments.images, size=arguments.size, seed=arguments.seed
    )
    for folder in made.values():
        print(folder)
    return 0


# --- The data module of a name


def _module(name: str, root: Path, arguments: argparse.Namespace) -> Any:
    if not root.is_dir():
        raise FileNotFoundError(f"Expected a folder at {root}, but there is none.")
    options: dict[str, Any] = {"on_error": "skip"}
    if getattr(arguments, "max_pixels", None) is not None:
        options["max_pixels"] = arguments.max_pixels
    splits = {"train": arguments.train, "test": arguments.test and arguments.test[0]}
    if name == "mini-imagenet" and arguments.imagenet is not None:
        options["imagenet"] = arguments.imagenet
    return DATASETS[name](root, {k: v for k, v in splits.items() if v}, options)


def _plain(name: str) -> Callable[[Path, dict[str, Any], dict[str, Any]], Any]:
    """The data module of a set whose parts have fixed names."""

    def make(root: Path, splits: dict[str, Any], options: dict[str, Any]) -> Any:
        import goodtransfer

        if splits:
            raise ValueError(
                f"Expected no --train or --test for {name}, whose parts have fixed names, but got "
                f"{splits}."
            )
        return getattr(goodtransfer, name)(root, **options)

    return make


def _folders(root: Path, splits: dict[str, Any], options: dict[str, Any]) -> Any:
    from goodtransfer import ImageFolderDataModule

    train = _one(splits.get("train", ["train"]))
    return ImageFolderDataModule(root, train=train, val=splits.get("test", "val"), **options)


def _unlabelled(root: Path, splits: dict[str, Any], options: dict[str, Any]) -> Any:
    from goodtransfer import ImageFolderDataModule

    train = _one(splits.get("train", ["."]))
    return ImageFolderDataModule(
        root, train=train, val=splits.get("test"), labelled=False, **options
    )


def _one(folders: list[str]) -> str:
    if len(folders) > 1:
        raise ValueError(f"Expected one folder after --train, but got {' '.join(folders)}.")
    return folders[0]


def _synthia(root: Path, splits: dict[str, Any], options: dict[str, Any]) -> Any:
    """The sequences; RAND_CITYSCAPES where that alone is there, or is asked for."""
    from goodtransfer import SYNTHIASegmentationDataModule

    rand, chosen = "RAND_CITYSCAPES", splits.get("train")
    if chosen == [rand] or (
        not chosen and (root / rand).is_dir() and not any(root.glob("*-SEQS-*"))
    ):
        options |= {"sequences": rand, "classes": "cityscapes"}
    elif chosen:
        options["sequences"] = chosen
    if "test" in splits:
        options["val"] = splits["test"]
    return SYNTHIASegmentationDataModule(root, **options)


def _coco(root: Path, splits: dict[str, Any], options: dict[str, Any]) -> Any:
    from goodtransfer import COCODetectionDataModule

    loader = {"skip_empty": False}
    return COCODetectionDataModule(root, masks=True, loader=loader, **splits, **options)


def _voc(root: Path, splits: dict[str, Any], options: dict[str, Any]) -> Any:
    from goodtransfer import VOCDetectionDataModule
    from goodtransfer.data import toy

    if _is_toy(root):
        options["class_names"] = toy.CLASSES
    return VOCDetectionDataModule(root, loader={"skip_empty": False}, **splits, **options)


def _is_toy(root: Path) -> bool:
    from goodtransfer.data import toy

    try:
        return "layout" in json.loads((root / toy.MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


DATASETS: dict[str, Callable[[Path, dict[str, Any], dict[str, Any]], Any]] = {
    "imagenet": _plain("ImageNetDataModule"),
    "imagefolder": _folders,
    "unlabelled": _unlabelled,
    "places": _plain("PlacesDataModule"),
    "celeba": _plain("CelebADataModule"),
    "mafl": _plain("MAFLDataModule"),
    "coco": _coco,
    "coco-images": _plain("COCODataModule"),
    "voc": _voc,
    "cityscapes": _plain("CityscapesDataModule"),
    "synthia": _synthia,
    "mini-imagenet": _plain("MiniImageNetDataModule"),
}


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "goodtransfer data", description=__doc__, epilog=EXAMPLES, formatter_class=raw
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    check = verbs.add_parser(
        "check", help="read every list, annotation and image; exit code 1 on damage",
        epilog=EXAMPLES, formatter_class=raw,
    )  # fmt: skip
    check.set_defaults(verb=_check)
    check.add_argument("root", type=Path, metavar="ROOT", help="the data set's folder")
    check.add_argument("--dataset", required=True, choices=list(DATASETS), metavar="NAME",
                       help=f"one of {', '.join(DATASETS)}")  # fmt: skip
    check.add_argument(
        "--complete", action="store_true",
        help="counts that differ from the published ones, and classes without samples, are damage",
    )  # fmt: skip
    check.add_argument("--workers", type=int, default=os.cpu_count() or 1,
                       help="processes that read images (default: one a core)")  # fmt: skip
    check.add_argument("--max-pixels", type=int, help="of an image (default: 178,956,970)")
    show = verbs.add_parser(
        "show", help="a picture of images with boxes, masks, class maps and landmarks",
        epilog=EXAMPLES, formatter_class=raw,
    )  # fmt: skip
    show.set_defaults(verb=_show)
    show.add_argument("roots", type=Path, nargs="+", metavar="ROOT", help="a folder for each row")
    show.add_argument("--dataset", required=True, nargs="+", choices=list(DATASETS),
                      metavar="NAME", help="one for all rows, or one for each")  # fmt: skip
    show.add_argument("--out", type=Path, default=Path("samples.png"),
                      help="the picture (default: samples.png)")  # fmt: skip
    show.add_argument("--part", default="train", help="of each data set (default: train)")
    show.add_argument("--width", type=int, default=1600,
                      help="of the picture in pixels, which images fill (default: 1600)")  # fmt: skip
    show.add_argument("--height", type=int, default=192, help="of an image (default: 192)")
    show.add_argument("--seed", type=int, default=0, help="of the images drawn by lot (default: 0)")
    for verb in (check, show):
        verb.add_argument("--train", nargs="+", metavar="SPLIT", help="splits to train on")
        verb.add_argument("--test", nargs=1, metavar="SPLIT", help="split to report on")
        verb.add_argument("--imagenet", type=Path, metavar="FOLDER",
                          help="of ImageNet's class folders, for mini-imagenet")  # fmt: skip
    toy = verbs.add_parser(
        "make-toy", help="draw the toy world in the layout of every data set",
        epilog=EXAMPLES, formatter_class=raw,
    )  # fmt: skip
    toy.set_defaults(verb=_make_toy)
    toy.add_argument("root", type=Path, metavar="DIR", help="folder to write below")
    toy.add_argument("--images", type=int, default=2000, help="in all (default: 2,000)")
    toy.add_argument("--size", type=int, default=128, help="height in pixels (default: 128)")
    toy.add_argument("--seed", type=int, default=0, help="of all that is drawn (default: 0)")
    return parser
