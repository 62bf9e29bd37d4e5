"""COCO's ``instances`` files: images, their objects and the categories, each entry checked."""

import gc
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tqdm import tqdm

from goodtransfer.data.coco_masks import pack
from goodtransfer.data.files import inside, listed, missing
from goodtransfer.distributed import rank
from goodtransfer.foreign import parsed_json, plain, shown
from goodtransfer.run_lengths import SIDE, FaultError

T = TypeVar("T")

IMAGE = ("id", "file_name", "width", "height")
OBJECT = ("image_id", "category_id", "bbox", "area", "iscrowd")


class Image(NamedTuple):
    """An entry of ``images``; the name is relative to the split's folder."""

    id: int
    file_name: str
    width: int
    height: int


class Object(NamedTuple):
    """An entry of ``annotations``; ``outline`` is its mask, packed, or nothing."""

    image_id: int
    label: int
    box: tuple[float, float, float, float]
    crowd: bool
    area: float
    outline: bytes


class Instances(NamedTuple):
    """What a file tells: categories and images in the order of their ids, objects in the file's."""

    categories: dict[int, str]
    images: list[Image]
    objects: list[Object]


def read_instances(
    source: Path, folder: Path, *, outlines: bool, leave_out: Callable[[Exception], None]
) -> Instances:
    """Read a file; an image with a faulty entry is left out with all its objects.

    Args:
        source: the file.
        folder: of its images, which are not opened.
        outlines: whether to read the masks, which takes twenty microseconds each.
        leave_out: takes the fault of an entry, and may raise it.

    Raises:
        ValueError: for a file that is no JSON, or lacks images, annotations or categories.
    """
    with _no_search_for_garbage():
        content = _content(source)
        categories = _categories(content["categories"], source)
        labels = {category: label for label, category in enumerate(categories)}
        reader = _Reader(source, labels, outlines, leave_out)
        reader.read_images(content["images"], folder)
        objects = reader.read_objects(content["annotations"])
        del content
    images = [image for _, image in sorted(reader.images.items()) if image.id not in reader.lost]
    return Instances(categories, images, [o for o in objects if o.image_id not in reader.lost])


@contextmanager
def _no_search_for_garbage() -> Iterator[None]:
    """What is parsed has no cycles, and to look for some in millions of lists doubles the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _content(source: Path) -> dict[str, list[Any]]:
    content = parsed_json(source)
    lists: dict[str, list[Any]] = content if isinstance(content, dict) else {}
    for name in ("images", "annotations", "categories"):
        if not isinstance(lists.get(name), list):
            raise ValueError(
                f"Expected a list of {name} in {source}, but there is none: take one of COCO's "
                "`instances` files, or write yours like them."
            )
    return lists


def _categories(entries: list[Any], source: Path) -> dict[int, str]:
    try:
        found = {int(entry["id"]): plain(str(entry["name"])) for entry in entries}
    except (LookupError, TypeError, ValueError, OverflowError, RecursionError):
        found = {}
    if not found or len(set(found.values())) < len(entries):
        raise ValueError(
            f"Expected categories in {source}, each with an id and a name of its own, but found "
            f"{shown(entries)}: correct the file."
        )
    return dict(sorted(found.items()))


class _Reader:
    """Reads entries one by one; see :func:`read_instances`."""

    def __init__(
        self,
        source: Path,
        labels: Mapping[int, int],
        outlines: bool,
        leave_out: Callable[[Exception], None],
    ) -> None:
        self.source, self.labels, self.outlines = source, labels, outlines
        self.leave_out = leave_out
        self.images: dict[int, Image] = {}
        self.lost: set[int] = set()  # ids of images that are left out

    def read_images(self, entries: list[Any], folder: Path) -> None:
        """Fill ``images``; those that ``folder`` does not have are lost."""
        for image in self._parsed("image", IMAGE, entries, self._image):
            self.images[image.id] = image
        images = list(self.images.values())
        files = listed(folder, [image.file_name for image in images], None, self.source)
        for number in missing(files):
            self.lost.add(images[number].id)
            self.leave_out(
                FileNotFoundError(
                    f"Expected an image at {files.path(number)}, because {self.source} lists it as "
                    f"image {images[number].id}: add the file, or remove the entry."
                )
            )

    def read_objects(self, entries: list[Any]) -> list[Object]:
        """The objects of images that are not lost so far."""
        fields = (*OBJECT, "segmentation") if self.outlines else OBJECT
        parsed = self._parsed("annotation", fields, entries, self._object)
        return [found for found in parsed if found is not None]

    def _parsed(
        self, what: str, fields: tuple[str, ...], entries: list[Any], parse: Callable[[Any], T]
    ) -> Iterator[T]:
        """What ``parse`` makes of each entry; ``fields`` begin with the image's id."""
        name, quick = f"{what}s of {self.source.stem}", len(entries) < 200_000 or rank() > 0
        for place, entry in enumerate(tqdm(entries, name, leave=False, disable=quick)):
            try:
                yield parse(entry)
            except (LookupError, TypeError, ValueError, ArithmeticError) as error:
                told = entry if isinstance(entry, dict) else {}
                found = shown({key: told[key] for key in fields if key in told} or entry)
                fault = f"to have {', '.join(fields)}, but found {found}"
                self.leave_out(
                    ValueError(
                        f"Expected {what} {_number(told, place)} of {self.source} "
                        f"{error if isinstance(error, FaultError) else fault}: correct the file, or "
                        "remove the entry."
                    )
                )
                if isinstance(told.get(fields[0]), int):
                    self.lost.add(told[fields[0]])

    def _image(self, entry: Any) -> Image:
        image = Image(*(entry[key] for key in IMAGE))
        numbers = (image.id, image.width, image.height)
        if any(type(number) is not int for number in numbers) or abs(image.id) >= 2**63:
            raise TypeError
        if not 0 < min(numbers[1:]) <= max(numbers[1:]) < SIDE:
            raise FaultError(f"to have a size, but found {image.width} x {image.height}")
        if image.id in self.images:
            raise FaultError("to have an id of its own, but found another image with it")
        try:
            os.fsencode(inside(image.file_name, self.source))
        except ValueError:
            raise FaultError(
                f"to have a file_name that stays in the folder, but found {shown(image.file_name)}"
            ) from None
        return image

    def _object(self, entry: Any) -> Object | None:
        if entry["image_id"] in self.lost:
            return None
        image = self._named(entry, "image_id", self.images)
        label = self._named(entry, "category_id", self.labels)
        x, y, width, height = map(float, entry["bbox"])
        area, crowd = float(entry["area"]), (False, True).index(entry["iscrowd"])
        if not math.isfinite(x + y + width + height + area) or min(width, height, area) < 0:
            raise FaultError(
                f"to have a size, but found bbox {shown(entry['bbox'])} and area {area}"
            )
        # Partly outside is clipped where it matters; that far outside it is of another image.
        if max(x - image.width, y - image.height, -x - width, -y - height) > 1:
            raise FaultError(
                f"to be in its image of {image.width} x {image.height} pixels, but found bbox "
                f"(x, y, width, height) = {shown(entry['bbox'])}"
            )
        outline = b""
        if self.outlines:
            outline = pack(entry["segmentation"], image.height, image.width)
        box = (x, y, x + width, y + height)
        return Object(image.id, label, box, bool(crowd), area, outline)

    def _named(self, entry: Any, key: str, known: Mapping[int, T]) -> T:
        if entry[key] not in known:
            raise FaultError(
                f"to have the {key} of something in the file, but found {shown(entry[key])}"
            )
        return known[entry[key]]


def _number(told: Mapping[str, Any], place: int) -> str:
    """What to call an entry: its id, where it has one."""
    return shown(told["id"]) if "id" in told else f"number {place}"
