"""The paper's figures of inverted features: the grid of Figure 2 and the scatter of Figure 6."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from textwrap import fill
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from goodtransfer.analysis.perceptual import WinRate, win_rate

# Of the table, by the names of ``perceptual.scores``: heading, format.
_COLUMNS = {
    "lpips": ("LPIPS", ".3f"),
    "lpips_uncalibrated": ("LPIPS uncalibrated", ".2f"),
    "psnr": ("PSNR (dB)", ".1f"),
    "ssim": ("SSIM", ".3f"),
    "loss": ("feature loss", ".3g"),
}

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_GAP, _HEAD, _FOOT = 6, 26, 18  # pixels between panels, and of the text above and below
_INK, _FAINT = (0, 0, 0), (90, 90, 90)


class Panel(NamedTuple):
    """A picture, uint8 (3, H, W), with a line of text below; without a picture it stays empty."""

    picture: Tensor | None
    text: str = ""


def grid(columns: Mapping[str, Sequence[Panel]]) -> Image.Image:
    """Figure 2: a row for each image; the columns' names stand above them, e.g. original, MoCo."""
    panels = [panel for column in columns.values() for panel in column]
    sizes = [p.picture.shape[1:] for p in panels if p.picture is not None]
    height, width = (max(side) for side in zip(*sizes, strict=True))
    rows = max(map(len, columns.values()))
    step = height + _FOOT + _GAP
    made = Image.new("RGB", (_GAP + len(columns) * (width + _GAP), _HEAD + rows * step), "white")
    for number, (name, column) in enumerate(columns.items()):
        left = _GAP + number * (width + _GAP)
        _write(made, name, left, 4, width, 15, _INK)
        for row, panel in enumerate(column):
            top = _HEAD + row * step
            if panel.picture is not None:
                pixels = np.ascontiguousarray(panel.picture.permute(1, 2, 0).numpy())
                made.paste(Image.fromarray(pixels), (left, top))
            _write(made, panel.text, left, top + height + 2, width, 12, _FAINT)
    return made


def _write(
    on: Image.Image, text: str, left: int, top: int, width: int, size: int, ink: tuple[int, ...]
) -> None:
    """A line of text in the middle of a column, cut to its width."""
    font = ImageFont.load_default(size)
    while len(text) > 1 and font.getlength(text) > width:
        text = text[:-2] + "…"
    middle = left + round((width - font.getlength(text)) / 2)
    ImageDraw.Draw(on).text((middle, top), text, ink, font)


def scatter(distances: Mapping[str, Sequence[float]]) -> "Figure":
    """Figure 6: each image's distance for the first encoder against that for each other one.

    Below the diagonal the first encoder's picture is the nearer one.

    Args:
        distances: uncalibrated LPIPS of the same images, by encoder; two of them at least.

    Raises:
        ModuleNotFoundError: without matplotlib, naming the extra.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "The scatter of distances needs matplotlib: pip install 'goodtransfer[study]'"
        ) from error
    first, *others = distances
    figure = Figure(figsize=(4.2 * len(others), 4.4), layout="constrained")
    axes = figure.subplots(1, len(others), squeeze=False)[0]
    for ax, other in zip(axes, others, strict=True):
        _panel(ax, first, other, distances[first], distances[other])
    return figure


def _panel(ax: Any, name: str, other: str, a: Sequence[float], b: Sequence[float]) -> None:
    low, high = min(*a, *b), max(*a, *b)
    edge = 0.06 * (high - low) or 0.1
    ends = [low - edge, high + edge]
    ax.plot(ends, ends, color="0.7", linewidth=1, zorder=1)
    ax.scatter(b, a, s=14, color="#0072B2", alpha=0.7, linewidths=0, zorder=2)
    ax.set(xlim=ends, ylim=ends, aspect="equal")
    labels = (fill(f"LPIPS uncalibrated, {of}", 36) for of in (other, name))
    ax.set(**dict(zip(("xlabel", "ylabel"), labels, strict=True)))
    ax.set_title(fill(f"{name} is nearer on {percent(win_rate(a, b))}", 64), fontsize=8)


def percent(found: WinRate) -> str:
    """In words: the share, of how many images, and its interval."""
    low, high = 100 * found.low, 100 * found.high
    share = f"{100 * found.rate:.0f} % of {found.images} images"
    return f"{share} (95 % interval {low:.0f} to {high:.0f} %)"


def table(scores: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """In Markdown, the means over each encoder's images; a dash where nothing is measured."""
    heads = [head for head, _ in _COLUMNS.values()]
    lines = [f"| encoder | images | {' | '.join(heads)} |", f"|---|{'--:|' * (1 + len(heads))}"]
    for name, found in scores.items():
        cells = [_mean([s[c] for s in found if c in s], form) for c, (_, form) in _COLUMNS.items()]
        lines.append(f"| {name} | {len(found)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _mean(values: Sequence[float], form: str) -> str:
    return format(fmean(values), form) if values else "–"
