"""How many images the data sets of a study hold: the paper's, and the toy world's as it is drawn."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from goodtransfer.data.toy import CLASSES
from goodtransfer.data.toy_layouts import PARTITIONS, SPLITS, mafl, mini_split
from goodtransfer.data.toy_places import PLACES
from goodtransfer.data.toy_streets import DIRECTIONS, EYES, SEQUENCES


class Size(NamedTuple):
    """Attributes: ``images`` to train on; ``classes`` of theirs, 0 without labels; ``others``, images
    of classes that are not trained on, which few-shot learning takes.
    """

    images: int
    classes: int = 0
    others: int = 0


# As they are trained on here: without the tenth of mini-ImageNet's base classes that is kept back, and
# without MAFL's test faces.
PAPER: Mapping[str, Size] = {
    "imagenet": Size(1_281_167, 1_000),
    "imagenet10": Size(128_000, 1_000),
    "imagenet100": Size(124_000, 100),
    "places": Size(2_448_873, 205),
    "coco_images": Size(118_287),
    "synthia": Size(365_000),
    "voc": Size(5_011),
    "voc0712": Size(16_551),
    "coco": Size(118_287),
    "cityscapes": Size(2_975),
    "mini_imagenet": Size(34_560, 64, 9_600 + 12_000),
    "celeba": Size(161_962, 8_192),
    "mafl": Size(19_000),
}


def part(whole: Size, name: str) -> Size:
    """Of a subset of Table 2, where all classes have as many images; other sets are whole."""
    each = whole.images / max(1, whole.classes)
    if name == "imagenet10":
        return Size(max(1, round(each / 10)) * whole.classes, whole.classes)
    if name == "imagenet100":
        classes = max(1, round(whole.classes / 10))
        return Size(round(each * classes), classes)
    return whole


def read_out(whole: Size, selection: float) -> Size:
    """What a readout trains on: the rest of every class chooses the rate (``ImageDataModule``)."""
    each = whole.images / max(1, whole.classes)
    kept = min(max(1, round(selection * each)), 50, max(0, round(each) - 1))
    return whole._replace(images=whole.images - kept * whole.classes)


def toy_size(name: str, drawn: Mapping[str, Any]) -> Size:
    """Of a data set of the toy world that is drawn by these arguments."""
    return _TOY[name](**drawn)


def _imagenet(*, train: int, classes: Sequence[str] = CLASSES, **_: Any) -> Size:
    """All classes take turns."""
    each = [len(range(CLASSES.index(name), train, len(CLASSES))) for name in classes]
    return Size(sum(each), len(classes))


def _voc0712(*, train: int, train2012: int = 0, **_: Any) -> Size:
    return Size(train + train2012)


def _places(*, train: int, **_: Any) -> Size:
    return Size(train, len(PLACES))


def _trained(*, train: int, **_: Any) -> Size:
    return Size(train)


def _synthia(*, frames: int, **_: Any) -> Size:
    return Size(frames * len(SEQUENCES) * len(DIRECTIONS) * len(EYES))


def _mini_imagenet(*, per_class: int, **_: Any) -> Size:
    base = [mini_split(label) for label in range(len(CLASSES))].count(SPLITS[0])
    kept_back = min(max(1, round(per_class / 10)), per_class - 1)
    return Size((per_class - kept_back) * base, base, per_class * (len(CLASSES) - base))


def _celeba(*, images: int, identities: int, **_: Any) -> Size:
    names = [f"{index + 1:06d}.jpg" for index in range(images)]
    tested = set(mafl(names)["testing"])
    turns = [index % identities for index, name in enumerate(names) if name not in tested]
    trained = [turn for turn in turns if PARTITIONS[turn % len(PARTITIONS)] == 0]
    return Size(len(trained), len(set(trained)))


def _mafl(*, images: int, **_: Any) -> Size:
    return Size(len(mafl([f"{index + 1:06d}.jpg" for index in range(images)])["training"]))


_TOY: Mapping[str, Callable[..., Size]] = {
    "imagenet": _imagenet,
    "imagenet10": lambda **drawn: part(_imagenet(**drawn), "imagenet10"),
    "imagenet100": lambda **drawn: part(_imagenet(**drawn), "imagenet100"),
    "places": _places,
    "coco_images": _trained,
    "synthia": _synthia,
    "voc": _trained,
    "voc0712": _voc0712,
    "coco": _trained,
    "cityscapes": _trained,
    "mini_imagenet": _mini_imagenet,
    "celeba": _celeba,
    "mafl": _mafl,
}
