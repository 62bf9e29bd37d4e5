"""What is wrong with a data set on disk, and what is odd about it."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from goodtransfer.data.module import DataModule
from goodtransfer.data.samples import Part, parts
from goodtransfer.foreign import content
from goodtransfer.views.decode import open_image

_TINY = 32  # pixels of a side, under which little can be cropped
_SHOWN = 20  # faults that are printed of many
_MODES = {
    "1": "black and white", "L": "grey", "LA": "grey with alpha", "P": "palette",
    "PA": "palette with alpha", "RGBA": "alpha", "CMYK": "CMYK", "I": "32-bit grey", "F": "float grey",
}  # fmt: skip


@dataclass
class Findings:
    """What :func:`check` finds.

    Attributes:
        counts: of images and classes: found, and as published or None.
        faults: one sentence for every entry or file that cannot be used.
        empty: classes without a sample, by part.
        odd: how many images are of an unusual kind, by kind, with one of them.
    """

    counts: dict[str, tuple[int, int | None]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    empty: dict[str, list[str]] = field(default_factory=dict)
    odd: dict[str, tuple[int, str]] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether every count that was published is found, and every class has samples."""
        return not self.empty and all(e in (None, n) for n, e in self.counts.values())

    @property
    def published(self) -> bool:
        """Whether there are counts to compare with."""
        return any(published is not None for _, published in self.counts.values())

    def __str__(self) -> str:
        """A table, then what is odd, then the faults."""
        rows = [("", "found", "published")]
        for what, (found, published) in self.counts.items():
            rows.append((what, f"{found:,}", "" if published is None else f"{published:,}"))
        for part, names in self.empty.items():
            rows.append((f"classes without samples in {part}", f"{len(names):,}", ""))
        rows += [(kind, f"{count:,}", "") for kind, (count, _) in sorted(self.odd.items())]
        rows.append(("faults", f"{len(self.faults):,}", ""))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}".rstrip() for a, b, c in rows
        ]
        for part, names in self.empty.items():
            lines.append(f"without samples in {part}: {', '.join(names[:_SHOWN])}")
        lines += [f"{kind}: such as {path}" for kind, (_, path) in sorted(self.odd.items())]
        lines += [f"fault: {fault}" for fault in self.faults[:_SHOWN]]
        if len(self.faults) > _SHOWN:
            lines.append(f"and {len(self.faults) - _SHOWN:,} faults more")
        return "\n".join(lines)


def check(module: DataModule, *, workers: int = 0) -> Findings:
    """Read every list, annotation and image of a data set, and tell what is found.

    Args:
        module: any data module of goodtransfer, made with ``on_error="skip"``, so that the faults of
            lists and annotations are all found and not the first alone.
        workers: processes that read images.
    """
    findings = Findings()
    try:
        found = parts(module)
    except (OSError, ValueError) as fault:  # of the whole data set
        findings.faults = [*module.skipped, str(fault)]
        return findings
    if "train" not in found:
        findings.faults.append(
            f"Expected images to train on in {module.root}, but {type(module).__name__} finds none "
            "there: unpack all of the data set, or correct the folder."
        )
    for name in module.expected:
        if name not in found and name != "classes":
            findings.counts[f"images of {name}"] = 0, module.expected[name]
    findings.faults += module.skipped
    for name, part in found.items():
        published = module.expected.get(name)
        findings.counts[f"images of {name}"] = len(part.files), published
        if empty := _without_samples(part, module.label_names(name)):
            findings.empty[name] = empty
        for sentence, odd, path in _looked_at(name, part, workers):
            findings.faults += [sentence] if sentence else []
            for kind in odd:
                count, first = findings.odd.get(kind, (0, path))
                findings.odd[kind] = count + 1, first
    classes = len(module.label_names("train"))
    if classes:
        findings.counts["classes"] = classes, module.expected.get("classes")
    return findings


def _without_samples(part: Part, names: list[str]) -> list[str]:
    if not len(part.labels) or part.labels.max() < 0:  # nothing has a label here
        return []
    there = set(np.unique(part.labels).tolist())
    return [name for label, name in enumerate(names) if label not in there]


Look = tuple[str, list[str], str]  # fault or "", oddities, path


class _Looks(Dataset[Look]):
    def __init__(self, part: Part) -> None:
        self.part = part

    def __len__(self) -> int:
        return len(self.part.files)

    def __getitem__(self, number: int) -> Look:
        path = self.part.files.path(number)
        try:
            self.part.sample(number)
            return "", oddities(path), path
        except (OSError, ValueError) as fault:
            return str(fault), [], path


def _looked_at(name: str, part: Part, workers: int) -> Iterator[Look]:
    looks = DataLoader(_Looks(part), batch_size=None, num_workers=workers, collate_fn=_as_it_is)
    yield from tqdm(looks, f"images of {name}", unit="image", leave=False, mininterval=1)


def _as_it_is(look: Any) -> Any:
    return look


def oddities(path: str) -> list[str]:
    """In what a readable image differs from an RGB file of the kind that its name says.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     Image.new("L", (64, 20)).save(f"{folder}/a.png")
    ...     oddities(f"{folder}/a.png")
    ['grey', 'smaller than 32 pixels']
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL's, of size and metadata; the pixels were read already
        try:
            with open_image(content(path)) as image:
                kind, mode, size = image.format or "", image.mode, image.size
                turned = image.getexif().get(0x0112, 1) != 1
        except Exception:  # on damaged metadata PIL's readers raise nearly everything
            return ["with metadata that PIL cannot read"]
    suffix = Path(path).suffix.lower()
    named = Image.registered_extensions().get(suffix, kind)
    odd = [f"{kind} named {suffix}"] if kind not in (named, "MPO") else []
    if mode != "RGB":
        odd.append(_MODES.get(mode, "16-bit grey" if mode.startswith("I;16") else mode))
    if min(size) < _TINY:
        odd.append(f"smaller than {_TINY} pixels")
    return [*odd, "turned by EXIF, which is not applied"] if turned else odd
