"""mini-ImageNet: 64 classes to pretrain on, and other classes for few-shot learning."""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Any

from goodtransfer.data.files import Files, inside, listed
from goodtransfer.data.images import ImageDataModule, Parts, per_class_share
from goodtransfer.data.loader import ResumableLoader
from goodtransfer.foreign import lines, shown
from goodtransfer.views import Operation, Recipe, pixels

LISTS = {"base": "train.csv", "validation": "val.csv", "novel": "test.csv"}
_HEADINGS = ("filename,label", "class_name,image_name")
# Of the base images of each class, kept back to report the base accuracy. The paper is silent on the
# share (protocol 5.1), and one split serves all runs.
_KEPT_BACK, _SPLIT_SEED = 0.1, 0

TREE = """The expected tree is:
  ROOT/train.csv, ROOT/val.csv, ROOT/test.csv
and for lists with the heading "filename,label":
  ROOT/images/n0153282900000005.jpg, or imagenet=FOLDER with n01532829/n01532829_28.JPEG
for lists with the heading "class_name,image_name":
  ROOT/n01532829/n01532829_28.JPEG, or imagenet=FOLDER with the same"""


class MiniImageNetDataModule(ImageDataModule):
    """Views, labels and indices of mini-ImageNet's base classes; its other classes for few-shot.

    Expected tree, by either of the two dialects of its lists::

        ROOT/train.csv    38,400 lines after the heading: 64 base classes of 600 images
        ROOT/val.csv      9,600: 16 validation classes
        ROOT/test.csv     12,000: 20 novel classes

        filename,label                        Ravi and Larochelle's
        n0153282900000005.jpg,n01532829       ROOT/images/n0153282900000005.jpg (84 x 84), or the
                                              fifth image of n01532829 in ``imagenet``
        class_name,image_name                 easyfsl's
        n01532829,n01532829_28.JPEG           ROOT/n01532829/n01532829_28.JPEG, or in ``imagenet``

    Source: https://github.com/twitter/meta-learning-lstm and
    https://github.com/sicara/easy-few-shot-learning for the lists, https://image-net.org for the
    images.

    Of each base class a fixed tenth is not trained on and makes ``val``, to report the base accuracy:
    34,560 images are trained on, 3,840 are reported on. Labels number the classes of a list in the
    order of their names: 0 to 63, 0 to 15 and 0 to 19.

    Args:
        root: the folder that holds the lists.
        imagenet: ImageNet's ``train`` folder, to read the originals (the protocol for 224 pixels);
            for Ravi and Larochelle's lists it must hold every image of a class.
        options: those of :class:`ImageDataModule`.

    Raises:
        FileNotFoundError: for a missing list, or a listed image that is missing.
        ValueError: for a line of a list that cannot be used, naming the file and the line.
    """

    expected: Mapping[str, int] = MappingProxyType(
        {
            "train": 34_560,
            "val": 3_840,
            "classes": 64,
            "validation": 9_600,
            "novel": 12_000,
        }
    )

    def __init__(
        self,
        root: str | Path,
        *,
        imagenet: str | Path | None = None,
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        self.imagenet = None if imagenet is None else Path(imagenet).expanduser()
        self._splits: dict[str, tuple[Files, list[str]]] = {}

    def read(self) -> Parts:
        base, names = self._split("base")
        kept_back = per_class_share(base, _KEPT_BACK, _SPLIT_SEED, leave=1)
        return Parts(names, base.take(~kept_back), base.take(kept_back))

    def files(self, part: str) -> Files:
        """The images of ``"train"``, ``"selection"`` or ``"val"``, or of all the ``"base"``,
        ``"validation"`` or ``"novel"`` classes, in the order of their numbers.
        """
        return self._split(part)[0] if part in LISTS else super().files(part)

    @property
    def parts(self) -> tuple[str, ...]:
        """The two parts of the base classes, and the two of other classes."""
        return "train", "val", "validation", "novel"

    def label_names(self, part: str) -> list[str]:
        """Names of the classes of a part, as :meth:`files` takes it, by label."""
        return self._split(part if part in LISTS else "base")[1]

    def features_dataloader(self, part: str = "novel") -> ResumableLoader:
        """All images of the ``"base"``, ``"validation"`` or ``"novel"`` classes in order, once each,
        by :func:`feature_view`.
        """
        return self._loader(part, feature_view(self.size))

    def test_dataloader(self) -> ResumableLoader | list[ResumableLoader]:  # type: ignore[override]
        """The images to report the base accuracy on; for a task with ``feature_parts``, as
        :class:`goodtransfer.FewShot`, all images of each of those.
        """
        task = getattr(self.trainer, "lightning_module", None)
        parts: tuple[str, ...] = getattr(task, "feature_parts", ())
        return [self.features_dataloader(part) for part in parts] or super().test_dataloader()

    def _split(self, part: str) -> tuple[Files, list[str]]:
        """The images of a list and its classes, read once."""
        if part not in self._splits:
            source = self.root / LISTS[part]
            rows = list(self._rows(source))
            names = sorted({name for name, _ in rows})
            label = {name: number for number, name in enumerate(names)}
            files = listed(
                self.imagenet or self.root,
                [path for _, path in rows],
                [label[name] for name, _ in rows],
                source,
            )
            self._splits[part] = self.existing(files, source), names
        return self._splits[part]

    def _rows(self, source: Path) -> Iterator[tuple[str, str]]:
        """Class of each image of a list, and its path below ``imagenet`` or the root."""
        if not source.is_file():
            raise FileNotFoundError(
                f"Expected a list at {source}, but there is no such file.\n{TREE}"
            )
        read = lines(source)
        heading = next(read, "").strip()
        if heading not in _HEADINGS:
            raise ValueError(
                f"Expected the heading of {source} to be {' or '.join(_HEADINGS)}, but got "
                f"{shown(heading)}: take the list as published."
            )
        path = self._paths(heading)
        for place, line in enumerate(read, 2):
            if not line.strip():
                continue
            words = [word.strip() for word in line.split(",")]
            try:
                if len(words) != 2 or not all(words):
                    raise ValueError(
                        f"Expected two words, {heading}, but found {shown(line.strip())}."
                    )
                label, name = words if heading.startswith("class_name") else words[::-1]
                inside(label, source)  # a folder, too
                row = label, inside(path(label, name), source)
            except ValueError as fault:
                self._skips.leave_out(ValueError(f"In line {place} of {source}: {fault}"))
                continue
            yield row

    def _paths(self, heading: str) -> Callable[[str, str], str]:
        """What gives the path of an image from its class and its name in the list."""
        if heading == "class_name,image_name":
            return "{}/{}".format
        if self.imagenet is None:
            return "images/{1}".format
        return partial(_original, cache(partial(_originals, self.imagenet)))


def _original(originals: Callable[[str], list[str]], label: str, name: str) -> str:
    """The image of ImageNet that Ravi and Larochelle's ``n0153282900000005.jpg`` was made from.

    The last five digits count the images of the class from 1, in the order of ImageNet's numbers:
    https://github.com/wyharveychen/CloserLookFewShot/blob/b81db145b67330656990974dc349fc6d89c6e71d/filelists/miniImagenet/write_miniImagenet_filelist.py#L30-L40
    """
    count = re.search(r"(\d{5})\.", name)
    if count is None:
        raise ValueError(f"Expected a name that ends in five digits, but found {name!r}.")
    files = originals(label)
    if not 1 <= int(count[1]) <= len(files):
        raise ValueError(
            f"Expected image {int(count[1])} of class {label} in `imagenet`, but the folder has "
            f"{len(files)}: it must hold all of ImageNet's images."
        )
    return f"{label}/{files[int(count[1]) - 1]}"


def _originals(imagenet: Path, label: str) -> list[str]:
    """ImageNet's images of a class, in the order of their numbers."""
    folder = imagenet / label
    names = os.listdir(folder) if folder.is_dir() else []
    found = [re.fullmatch(rf"{re.escape(label)}_(\d+)\.\w+", name) for name in names]
    return [match[0] for match in sorted(filter(None, found), key=lambda match: int(match[1]))]


@dataclass(frozen=True)
class SquareCenter:
    """Both sides to 1.15 times ``size``, whatever the image's aspect, then the middle of it.

    https://github.com/wyharveychen/CloserLookFewShot/blob/b3b5b8bf7cff700dae361133e0980df4f4ebf824/data/datamgr.py
    """

    size: int

    def __call__(self, random: Random, height: int, width: int) -> Iterator[Operation]:
        side = int(self.size * 1.15)
        start = round((side - self.size) / 2)
        yield Operation(pixels.resize, (side, side))
        yield Operation(pixels.crop, (start, start, self.size, self.size))


def feature_view(size: int = 224) -> Recipe:
    """One view for the features of few-shot episodes (protocol 5.2): 257 pixels square for 224."""
    return Recipe("few_shot", 1, (SquareCenter(size),))
