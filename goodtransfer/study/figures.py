"""The paper's figures, and curves, from the results that are there; readable without colours."""

import base64
import io
import json
import re
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import load_file

from goodtransfer.analysis.error_figures import draw_shares, draw_trend
from goodtransfer.analysis.error_measures import Measures
from goodtransfer.analysis.gallery import read
from goodtransfer.analysis.inversion_figures import Panel, grid, scatter
from goodtransfer.study.plan import Cell, Study
from goodtransfer.study.protocol import EXEMPLAR_V2, MOCO_V2, SUPERVISED
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
        html: to stand in a page.
    """

    caption: str
    html: str


def figures(study: Study, results: Results) -> list[Figure]:
    """All that there are runs for."""
    import matplotlib as mpl

    mpl.use("Agg")
    parts = (_curves, _precision, _figures17, _figure2, _figure6, _figure3, _figure4)
    return [figure for part in parts for figure in part(study, results)]


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
        for number, (cell, history) in enumerate(histories):
            points = [(row["step"], row[name]) for row in history if name in row]
            if points:
                steps, values = zip(*points, strict=True)
                marked = {"marker": MARKERS[number % len(MARKERS)], "markersize": 4}
                every = max(1, len(points) // 6)
                label = cell.row.title
                axes.plot(steps, _smooth(values), label=label, markevery=every, **marked, lw=1.2)
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


def _figures17(study: Study, results: Results) -> Iterator[Figure]:
    """Where detections fail: cross-entropy, MoCo and Exemplar side by side, mean of the classes."""
    compared = [study.scale.apply(row) for row in (SUPERVISED, MOCO_V2, EXEMPLAR_V2)]
    cells = [cell for cell in finished(study, results, "voc07") if cell.row in compared]
    if not cells:
        return
    found = {c.row.name: load_file(results.folder(c.key) / "errors.safetensors") for c in cells}
    models = {name: Measures(**tensors) for name, tensors in found.items()}
    panels = {"mean of the classes": range(len(next(iter(models.values())).ap))}
    for draw, number, caption in (
        (draw_trend, 1, "types of false positives, best ones first"),
        (draw_shares, 7, "what the first detections are, as many as there are objects"),
    ):
        with TemporaryDirectory() as folder:
            file = Path(folder) / "figure.svg"
            draw(models, panels, file)
            yield Figure(f"Figure {number}: {caption}", _bare(file.read_text("utf-8")))


def _galleries(study: Study, results: Results) -> dict[str, Path]:
    """By row, the images that were rebuilt from its features."""
    cells = finished(study, results, "inversion")
    return {cell.row.name: results.folder(cell.key) / "gallery" for cell in cells}


def _figure2(study: Study, results: Results) -> Iterator[Figure]:
    """Images beside what is rebuilt from the features of each pretraining."""
    galleries = _galleries(study, results)
    if not galleries:
        return
    first = next(iter(galleries.values())) / "original"
    names = [f.relative_to(first).with_suffix("") for f in sorted(first.rglob("*.png"))][:8]
    sources = {"original": first} | {name: of / name for name, of in galleries.items()}
    columns = {
        title: [Panel(read(folder / f"{name}.png")) for name in names]
        for title, folder in sources.items()
    }
    buffer = io.BytesIO()
    grid(columns).save(buffer, "png")
    encoded = base64.b64encode(buffer.getvalue()).decode()
    image = f'<img alt="Figure 2" src="data:image/png;base64,{encoded}">'
    yield Figure("Figure 2: images, and what is rebuilt from their features", image)


def _figure6(study: Study, results: Results) -> Iterator[Figure]:
    """Each image's distance, MoCo's against the others'."""
    distances = {}
    for name, folder in _galleries(study, results).items():
        made = json.loads((folder / "results.json").read_text())["inversions"]
        if all("lpips_uncalibrated" in entry for entry in made):
            distances[name] = [entry["lpips_uncalibrated"] for entry in made]
    ordered = dict(sorted(distances.items(), key=lambda item: item[0] != MOCO_V2.name))
    if len(ordered) > 1:
        yield Figure("Figure 6: distance of rebuilt images from theirs", _svg(scatter(ordered)))


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
    figure.savefig(buffer, format="svg")
    _close(figure)
    return _bare(buffer.getvalue())


def _bare(svg: str) -> str:
    """An SVG as it stands in a page, without its date and its makers."""
    return re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)


def _close(figure: Any) -> None:
    from matplotlib import pyplot as plt

    plt.close(figure)


def _smooth(values: Sequence[float]) -> list[float]:
    """A running mean over a twelfth of the curve; short curves stay as they are."""
    reach = len(values) // 24
    windows = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    return [statistics.mean(window) for window in windows]
