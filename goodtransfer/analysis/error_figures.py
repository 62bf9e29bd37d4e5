"""Figures 1 and 7 of the paper: how errors divide up, for any models side by side."""

from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np

from goodtransfer.analysis.error_measures import TICKS, Measures, with_mean
from goodtransfer.analysis.errors import SLICES, TYPES
from goodtransfer.metrics.voc import Floats

# Colour and hatch of each, so that one of the two is enough.
STYLES = {
    "Cor": ("#ffffff", ""),
    "Loc": ("#9dc3e6", "///"),
    "Sim": ("#f4b183", "...."),
    "Oth": ("#a9d18e", "xxx"),
    "BG": ("#c9b6dc", "\\\\\\"),
}
_COLUMNS = 7
_SIDE = 1.75  # of a panel in inches


def check_packages() -> None:
    """Refuse to begin, before anything is measured, where nothing could be drawn.

    Raises:
        ModuleNotFoundError: naming what to install.
    """
    if find_spec("matplotlib") is None:
        raise ModuleNotFoundError("The figures need matplotlib: pip install 'goodtransfer[study]'")


def draw_trend(
    models: Mapping[str, Measures], panels: Mapping[str, Sequence[int]], path: Path
) -> None:
    """Write Figure 1: each type's share of the first 25 to 400 false positives, stacked.

    Args:
        models: measures of each, by its name.
        panels: classes whose mean is shown, by their title.
        path: of the picture; its ending says which format.
    """
    figure = _figure(models, panels, TYPES)
    places = np.arange(len(TICKS))
    for axes, values in _filled(figure, models, panels, "trend"):
        ticks = np.flatnonzero(np.isfinite(values).all(1))
        # A little beyond the last tick, so that one alone is seen.
        x, y = np.append(ticks, ticks[-1:] + 0.2), values[np.append(ticks, ticks[-1:])]
        areas = axes.stackplot(x, y.T, edgecolor="black", linewidth=0.5)
        for area, kind in zip(areas, TYPES, strict=True):
            area.set(facecolor=STYLES[kind][0], hatch=STYLES[kind][1])
        if not len(ticks):
            axes.text(2, 50, "undefined", ha="center", va="center", fontsize=9)
        axes.set(xlim=(0, 4), ylim=(0, 100), xticks=places, yticks=(0, 50, 100))
        axes.set_xticklabels(TICKS, rotation=90)
        axes.tick_params(labelsize=7, length=2)
    figure.supxlabel("total false positives (blank where there are fewer)", fontsize=10)
    figure.supylabel("percentage of each type", fontsize=10)
    _save(figure, path)


def draw_shares(
    models: Mapping[str, Measures], panels: Mapping[str, Sequence[int]], path: Path
) -> None:
    """Write Figure 7: what the first N detections are, N the number of objects. As `draw_trend`."""
    figure = _figure(models, panels, SLICES)
    for axes, values in _filled(figure, models, panels, "shares"):
        axes.set(xticks=(), yticks=(), frame_on=False)
        if not np.isfinite(values).all():
            axes.text(0.5, 0.5, "undefined", ha="center", va="center", fontsize=9)
            continue
        wedges, *_ = axes.pie(
            values,
            colors=[STYLES[part][0] for part in SLICES],
            labels=[f"{value:.0f}" if value >= 3 else "" for value in values],
            labeldistance=1.12,
            textprops={"fontsize": 7},
            startangle=90,
            counterclock=False,
            wedgeprops={"edgecolor": "black", "linewidth": 0.5},
            radius=1.0,
        )
        for wedge, part in zip(wedges, SLICES, strict=True):
            wedge.set_hatch(STYLES[part][1])
        axes.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3))
    figure.supxlabel("% of the first N detections, N = number of objects", fontsize=10)
    _save(figure, path)


def _figure(models: Mapping[str, Any], panels: Mapping[str, Any], parts: Sequence[str]) -> Any:
    check_packages()
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    columns = min(len(panels), _COLUMNS)
    rows = -(-len(panels) // columns) * len(models)
    size = (max(columns * _SIDE, 4) + 0.8, rows * _SIDE + 0.9)
    figure = Figure(size, layout="constrained")
    patches = [
        Patch(facecolor=STYLES[p][0], hatch=STYLES[p][1], edgecolor="black", label=p) for p in parts
    ]
    figure.legend(
        handles=patches, loc="outside upper center", ncols=len(parts), frameon=False,
        handleheight=1.2, columnspacing=1.2, fontsize=9,
    )  # fmt: skip
    return figure


def _filled(
    figure: Any, models: Mapping[str, Measures], panels: Mapping[str, Sequence[int]], what: str
) -> Iterator[tuple[Any, Floats]]:
    """Axes and values of every panel: a row of panels has a row for each model."""
    columns = min(len(panels), _COLUMNS)
    rows = -(-len(panels) // columns) * len(models)
    for number, (title, classes) in enumerate(panels.items()):
        for below, (name, measures) in enumerate(models.items()):
            row = number // columns * len(models) + below
            axes = figure.add_subplot(rows, columns, row * columns + number % columns + 1)
            if below == 0:
                axes.set_title(title, fontsize=9, parse_math=False)  # a name with $ is none
            if number % columns == 0 and len(models) > 1:
                axes.set_ylabel(fill(name, 18), fontsize=9, parse_math=False)
            axes.tick_params(labelleft=number % columns == 0, labelbottom=below == len(models) - 1)
            values = getattr(measures, what)[list(classes)]
            mean = with_mean(values.reshape(len(classes), -1))[-1]
            yield axes, mean.reshape(values.shape[1:])
            _tell_classes(axes, np.isfinite(values[..., 0]).sum(0).ravel().tolist(), len(classes))


def _tell_classes(axes: Any, known: Sequence[int], every: int) -> None:
    """Write below a mean how many classes it is of, where it lacks some."""
    if any(0 < number < every for number in known):
        text = f"of {', '.join(map(str, known))} classes"
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axes.text(0.5, 0.02, text, ha="center", fontsize=6, bbox=box, transform=axes.transAxes)


def _save(figure: Any, path: Path) -> None:
    from matplotlib import rc_context

    path.parent.mkdir(parents=True, exist_ok=True)
    with rc_context({"hatch.linewidth": 0.6}):
        figure.savefig(path, dpi=150)
