"""Pictures that stand within the page: small enough, and at most so many of a kind."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from goodtransfer.study.plan import Cell, Study
from goodtransfer.study.results import Results, finished
from goodtransfer.study.transfers import TRANSFERS

SIDE = 1200  # pixels of the longer side, at most
PLAIN = 24_000  # bytes of a PNG that is taken as it is
SHOWN = 8  # pictures of a section


class Picture(NamedTuple):
    """A picture of the page.

    Attributes:
        title: what it is of.
        uri: its bytes, as an address.
        width, height: in pixels, so that the page does not jump while it is read.
    """

    title: str
    uri: str
    width: int
    height: int


class Section(NamedTuple):
    """Pictures of a kind.

    Attributes:
        heading: what they show.
        pictures: the first ones.
        left_out: how many more there are in the folders of the results.
    """

    heading: str
    pictures: list[Picture]
    left_out: int


def picture(title: str, content: bytes) -> Picture:
    """A PNG as it is where it is small; else at most ``SIDE`` wide and high, as WebP."""
    kind = "png"
    with Image.open(io.BytesIO(content)) as opened:
        image = opened.convert("RGB")
    if len(content) > PLAIN or max(image.size) > SIDE:
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "webp", quality=80, method=2)  # half the time of the default
        content, kind = buffer.getvalue(), "webp"
    encoded = base64.b64encode(content).decode()
    return Picture(title, f"data:image/{kind};base64,{encoded}", *image.size)


def sections(study: Study, results: Results) -> list[Section]:
    """What each kind of transfer left, a picture for each row; then the pretrainings' views and images."""
    found, cells = [], finished(study, results)
    for kind, transfer in TRANSFERS.items():
        files = [
            (_short(cell), file)
            for cell in cells.get(kind, ())
            for file in sorted(results.folder(cell.key).glob("*.png"))
        ]
        found.append(_section(transfer.section, files))
    pretrained = cells.get("pretrain", ())
    for heading, name, attribute in (
        ("What the methods saw: an image's views one below the other", "views.png", "views"),
        ("What they were pretrained on (Figure 5)", "samples.png", "data"),
    ):
        files_by = {
            getattr(c.row, attribute): file
            for c in pretrained
            if (file := results.folder(c.key) / name).is_file()  # not of what nobody trained
        }
        found.append(_section(heading, [*files_by.items()], len(files_by)))
    return [section for section in found if section.pictures]


def _section(heading: str, files: Sequence[tuple[str, Path]], shown: int = SHOWN) -> Section:
    pictures = [picture(title, file.read_bytes()) for title, file in files[:shown]]
    return Section(heading, pictures, max(0, len(files) - shown))


def _short(cell: Cell) -> str:
    return cell.row.title + ("" if cell.epoch is None else f", epoch {cell.epoch}")
