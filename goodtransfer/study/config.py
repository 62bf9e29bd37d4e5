"""A study of the user's own folders as one YAML file; see ``examples/own_data/study.yaml``."""

from collections.abc import Callable, Collection
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from goodtransfer.study.scales import SCALES
from goodtransfer.study.sources import ROOTS
from goodtransfer.study.tables import CARD, TABLES
from goodtransfer.study.transfers import TRANSFERS

Settings = dict[str, Any]


def read(file: Path) -> Settings:
    """What ``Study.open`` takes, and ``out``, its folder; paths are relative to the file's own.

    Raises:
        FileNotFoundError: for a file, or a folder in it, that is not there.
        ValueError: for a key that is not known, or has a value of another kind than it needs.
    """
    if not file.is_file():
        raise FileNotFoundError(f"Expected a YAML file at {file}, but there is none.")
    try:
        content = yaml.safe_load(file.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        told = " ".join(str(error).split())
        raise ValueError(f"Expected YAML in {file}, but cannot read it: {told}.") from None
    if not isinstance(content, dict):
        raise ValueError(
            f"Expected `key: value` lines in {file}, such as `scale: small`, but got {content!r}."
        )
    # What the file leaves out is not taken from an earlier run.
    settings: Settings = {"tables": ["own"], "tasks": [], "classes": []}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name not in _KEYS:
            raise ValueError(
                f"Expected keys among {', '.join(_KEYS)} in {file}, but got {key!r}"
                f"{_near(name, _KEYS)}"
            )
        field, convert = _KEYS[name]
        settings[field] = convert(Place(file, str(key)), value)
    if "voc_classes" in settings and "voc" not in settings:
        raise ValueError(f"Expected `voc` beside `voc_classes` in {file}, but there is none.")
    return settings


class Place(NamedTuple):
    """A key of a file."""

    file: Path
    key: str

    def expected(self, what: str, value: object, end: str = ".") -> str:
        """The sentence for a value that does not do."""
        return f"Expected `{self.key}` in {self.file} to be {what}, but got {value!r}{end}"


# --- Kinds of values, each from what YAML makes of it


def _number(place: Place, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(place.expected("a whole number", value))
    return value


def _path(place: Place, value: object) -> Path:
    if not isinstance(value, str):
        raise ValueError(place.expected("a folder", value))
    return (place.file.parent / Path(value).expanduser()).resolve()


def _folder(place: Place, value: object) -> str:
    path = _path(place, value)
    if not path.is_dir():
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        end = _near(path.name, beside)
        raise FileNotFoundError(place.expected("a folder that is there", str(path), end))
    return str(path)


def _names(place: Place, value: object) -> list[str]:
    if not isinstance(value, list) or not value:
        raise ValueError(place.expected("a list of names", value))
    for name in value:
        if not isinstance(name, str):  # `no` and 01 are names to people, and other things to YAML
            end = ": put it in quotes, as it is written."
            raise ValueError(place.expected("a list of names", name, end))
    return value


def _splits(place: Place, value: object) -> list[str]:
    found = _names(place, value)
    if len(found) != 2:
        raise ValueError(place.expected("two splits, to train and to test on", value))
    return found


def _one(known: Collection[str]) -> Callable[[Place, object], str]:
    def convert(place: Place, value: object) -> str:
        if value not in known:
            raise ValueError(
                place.expected(f"one of {', '.join(known)}", value, _near(str(value), known))
            )
        return str(value)

    return convert


def _some(known: Collection[str]) -> Callable[[Place, object], list[str]]:
    def convert(place: Place, value: object) -> list[str]:
        # Most tables are called by a number.
        found = _names(place, [str(v) for v in value] if isinstance(value, list) else value)
        for name in found:
            if name not in known:
                what = f"some of {', '.join(known)}"
                raise ValueError(place.expected(what, name, _near(name, known)))
        return found

    return convert


def _near(word: str, known: Collection[str]) -> str:
    """The end of a sentence about a word that is not among these."""
    found = get_close_matches(word, list(known), 1)
    return f": did you mean {found[0]!r}?" if found else "."


# Key -> name that Study.open has for it, and how its value is read.
_KEYS: dict[str, tuple[str, Callable[[Place, Any], Any]]] = {
    "scale": ("scale", _one(SCALES)),
    "out": ("out", _path),
    **{option[2:].replace("-", "_"): (root, _folder) for root, (option, _) in ROOTS.items()},
    "voc_splits": ("voc_splits", _splits),
    "voc_classes": ("voc_classes", _names),
    "tables": ("tables", _some([*(name for name in TABLES if name != CARD), "all"])),
    "seeds": ("seeds", _number),
    "micro_batches": ("micro_batches", _number),
    "classes": ("classes", _names),
    "tasks": ("tasks", _some(TRANSFERS)),
}
