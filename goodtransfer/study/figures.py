"""The paper's figures, and curves, from the results that are there; readable without colours."""

import io
import json
import statistics
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import load_file

from goodtransfer.study.plan import Cell, Study
from goodtransfer.study.results import Results

MARKERS = "osv^Dx+"
CURVES = {
    "loss": "pretraining loss",
    "pretext_acc": "positive ranked first, %",
    "online_train_acc": "online linear probe on training views, %",
}


class Figure(NamedTuple):
    """A picture of the report.

    Attributes:
        caption: what it shows.
        svg: to stand in a page.
    """

    caption: str
    svg: str


def figures(study: Study, results: Results) -> list[Figure]:
    """All that there are runs for."""
    import matplotlib as mpl

    mpl.use("Agg")
    drawn = (*_curves(study, results), *_precision(study, results))
    return [*drawn, *_figure3(study, results), *_figure4(study, results)]


def finished(study: Study, results: Results, kind: str) -> list[Cell]:
    """The finished cells of a kind, one for every distinct row, first seed."""
    cells = [study.cells_of(table, row, 0).get(kind) for table, row in study.rows()]
    distinct = {cell.key: cell for cell in cells if cell is not None}
    return [cell for cell in distinct.values() if results.done(cell.key)]


def _curves(study: Study, results: Results) -> Iterator[Figure]:
    """What was logged while pretraining."""
    histories = [(c, results.curves(c.key)) for c in finished(study, results, "pretrain")]
    for name, caption in CURVES.items():
        figure, axes = _axes()
        for cell, history in histories:
            points = [(row["step"], row[name]) for row in history if name in row]
            if points:
                steps, values = zip(*points, strict=True)
                style = "-" if len(points) > 12 else ".-"
                axes.plot(steps, _smooth(values), style, label=cell.row.title, linewidth=1.3)
        axes.set(xlabel="step", ylabel=caption)
        yield from _lines(caption, figure, axes)


def _precision(study: Study, results: Results) -> Iterator[Figure]:
    figure, axes = _axes()
    for number, cell in enumerate(finished(study, results, "voc07")):
        curve = json.loads((results.folder(cell.key) / "precision.json").read_text())
        style = MARKERS[number % len(MARKERS)] + "-"
        axes.plot(curve["recall"], curve["precision"], style, label=cell.row.title, linewidth=1.3)
    axes.set(xlabel="recall", ylabel="interpolated precision", xlim=(0, 1), ylim=(0, None))
    caption = "precision over recall at IoU .5, mean of the classes; its mean is AP50"
    yield from _lines(caption, figure, axes)


def _figure3(study: Study, results: Results) -> Iterator[Figure]:
    """Landmarks on the same faces, a row for each pretraining (the paper's Figure 3)."""
    cells = finished(study, results, "landmarks")
    if not cells:
        return
    from matplotlib import pyplot as plt

    runs = [load_file(results.folder(cell.key) / "faces.safetensors") for cell in cells]
    shown = len(runs[0]["faces"])
    size = (1.3 * shown, 1.45 * len(runs))
    figure, grid = plt.subplots(len(runs), shown, figsize=size, squeeze=False, layout="constrained")
    for row, run, cell in zip(grid, runs, cells, strict=True):
        row[0].set_ylabel(cell.row.name, fontsize=8)
        for place, face, true, found in zip(
            row, run["faces"], run["true"], run["found"], strict=True
        ):
            place.imshow(face.transpose(1, 2, 0))
            for colour, width in (("black", 4), ("white", 2)):
                place.plot(*true.T, "+", color=colour, markersize=9, markeredgewidth=width)
            place.plot(*found.T, "o", color="black", markersize=5, markerfacecolor="white")
            place.set(xticks=[], yticks=[], xlim=(0, face.shape[2]), ylim=(face.shape[1], 0))
    yield Figure("Figure 3: true landmarks are crosses, predicted ones dots", _svg(figure))


def _figure4(study: Study, results: Results) -> Iterator[Figure]:
    """VOC07 AP over the epoch of pretraining and the iteration of fine-tuning."""
    cells = finished(study, results, "voc07_course")
    names = list(dict.fromkeys(cell.row.title for cell in cells))
    if not cells:
        return
    from matplotlib import pyplot as plt

    iterations = study.scale.protocol("voc07_course").eval_iters
    size = (4.2 * len(names), 3.6)
    figure, places = plt.subplots(1, len(names), figsize=size, squeeze=False, layout="constrained")
    courses = {cell.key: _course(results, cell, len(iterations)) for cell in cells}
    low, high = (f(v for course in courses.values() for v in course) for f in (min, max))
    for axes, name in zip(places[0], names, strict=True):
        own = sorted((c.epoch or 0, c.key) for c in cells if c.row.title == name)
        values = np.array([courses[key] for _, key in own])
        axes.imshow(values, cmap="gray", vmin=low, vmax=high, origin="lower", aspect="auto")
        for (y, x), value in np.ndenumerate(values):
            dark = value < (low + high) / 2
            text = {"ha": "center", "va": "center", "fontsize": 7}
            axes.text(x, y, f"{value:.1f}", color="white" if dark else "black", **text)
        axes.set_xticks(range(len(iterations)), [str(i) for i in iterations], fontsize=7)
        axes.set_yticks(range(len(own)), [str(epoch) for epoch, _ in own], fontsize=7)
        axes.set(title=name, xlabel="iterations of fine-tuning", ylabel="epochs of pretraining")
    yield Figure("Figure 4: VOC07 AP in the course of both trainings", _svg(figure))


def _course(results: Results, cell: Cell, scored: int) -> list[float]:
    """The AP at each scored iteration of the fit, which come before the test's."""
    rows = results.curves(cell.key)
    return [row["voc07_course_AP"] for row in rows if "voc07_course_AP" in row][:scored]


# --- Drawing


def _axes() -> tuple[Any, Any]:
    from matplotlib import pyplot as plt

    return plt.subplots(figsize=(5.2, 3.4), layout="constrained")


def _lines(caption: str, figure: Any, axes: Any) -> Iterator[Figure]:
    """The figure with a legend, where a line was drawn."""
    if axes.lines:
        axes.grid(alpha=0.25)
        below = -(-len(axes.lines) // 2)  # lines of the legend
        figure.set_figheight(figure.get_figheight() + 0.16 * below)
        figure.legend(loc="outside lower left", ncols=2, fontsize=7, frameon=False)
        yield Figure(caption, _svg(figure))
    else:
        _close(figure)


def _svg(figure: Any) -> str:
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing)
    _close(figure)
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]


def _close(figure: Any) -> None:
    from matplotlib import pyplot as plt

    plt.close(figure)


def _smooth(values: Sequence[float]) -> list[float]:
    """A running mean over a twelfth of the curve; short curves stay as they are."""
    reach = len(values) // 24
    windows = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    return [statistics.mean(window) for window in windows]
