"""The paper's figures from the results that are there; readable without colours."""

import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file

from goodtransfer.analysis.error_figures import draw_shares, draw_trend
from goodtransfer.analysis.error_measures import Measures
from goodtransfer.analysis.gallery import read
from goodtransfer.analysis.inversion_figures import Panel, grid, scatter
from goodtransfer.study.images import picture
from goodtransfer.study.plan import Cell, Study
from goodtransfer.study.protocol import EXEMPLAR_V2, GIVEN, MOCO_V2, SUPERVISED
from goodtransfer.study.results import Results, finished
from goodtransfer.study.tables import paper

# Finished ones, by kind.
Cells = Mapping[str, list[Cell]]

LARGE = 400_000  # bytes of an SVG; above it is a picture


class Figure(NamedTuple):
    """A picture of the report.

    Attributes:
        caption: what it shows.
        html: to stand in a page.
    """

    caption: str
    html: str


def figures(study: Study, results: Results) -> list[Figure]:
    """All that there are runs for, in the paper's order."""
    parts = (_figures17, _figure2, _figure3, _figure4, _figure6)
    cells = finished(study, results)
    return sorted(figure for part in parts for figure in part(study, results, cells))


def _figures17(study: Study, results: Results, made: Cells) -> Iterator[Figure]:
    """Where detections fail: cross-entropy, MoCo and Exemplar side by side, or what a user holds.

    The mean of the classes, and of the paper's three those that there are objects of.
    """
    compared = [study.scale.apply(row) for row in (SUPERVISED, MOCO_V2, EXEMPLAR_V2)]
    cells = [c for c in made.get("voc07", []) if c.row in compared or c.row.method == GIVEN]
    if not cells:
        return
    files = {cell.row.name: results.folder(cell.key) / "errors.safetensors" for cell in cells}
    models = {name: Measures(**load_file(file)) for name, file in files.items()}
    some, first = next(iter(models.values())), next(iter(files.values()))
    with safe_open(first, "numpy") as opened:
        names = json.loads(opened.metadata()["class_names"])
    panels: dict[str, Sequence[int]] = {"mean of the classes": range(len(names))}
    for name in paper()["prose_numbers"]["figure1_categories"]:
        if name in names and np.isfinite(some.ap[names.index(name)]).all():
            panels[name] = [names.index(name)]
    for draw, caption in (
        (draw_trend, "Figure 1: types of false positives, best ones first"),
        (draw_shares, "Figure 7: what the first detections are, as many as there are objects"),
    ):
        yield _placed(caption, partial(draw, models, panels))


def _galleries(results: Results, made: Cells) -> dict[str, Path]:
    """By row, the images that were rebuilt from its features."""
    cells = made.get("inversion", [])
    return {cell.row.name: results.folder(cell.key) / "gallery" for cell in cells}


def _figure2(study: Study, results: Results, made: Cells) -> Iterator[Figure]:
    """Images beside what is rebuilt from the features of each pretraining."""
    galleries = _galleries(results, made)
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
    caption = "Figure 2: images, and what is rebuilt from their features"
    yield _pictured(caption, buffer.getvalue())


def _figure6(study: Study, results: Results, made: Cells) -> Iterator[Figure]:
    """Each image's distance, MoCo's against the others'."""
    distances = {}
    for name, folder in _galleries(results, made).items():
        entries = json.loads((folder / "results.json").read_text())["inversions"]
        if all("lpips_uncalibrated" in entry for entry in entries):
            distances[name] = [entry["lpips_uncalibrated"] for entry in entries]
    ordered = dict(sorted(distances.items(), key=lambda item: item[0] != MOCO_V2.name))
    if len(ordered) > 1:
        yield _saved("Figure 6: distance of rebuilt images from theirs", scatter(ordered))


def _figure3(study: Study, results: Results, made: Cells) -> Iterator[Figure]:
    """Landmarks on the same faces, a row for each pretraining (the paper's Figure 3)."""
    cells = made.get("landmarks", [])
    if not cells:
        return
    from matplotlib.figure import Figure as Canvas

    runs = [load_file(results.folder(cell.key) / "faces.safetensors") for cell in cells]
    shown = len(runs[0]["faces"])
    size = (1.3 * shown, 1.45 * len(runs))
    figure = Canvas(size, layout="constrained")
    grid = figure.subplots(len(runs), shown, squeeze=False)
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
    yield _saved("Figure 3: true landmarks are crosses, predicted ones dots", figure)


def _figure4(study: Study, results: Results, made: Cells) -> Iterator[Figure]:
    """VOC07 AP over the epoch of pretraining and the iteration of fine-tuning."""
    cells = made.get("voc07_course", [])
    names = list(dict.fromkeys(cell.row.title for cell in cells))
    if not cells:
        return
    from matplotlib.figure import Figure as Canvas

    protocol = study.scale.protocol("voc07_course")
    iterations, steps = protocol.eval_iters, protocol.schedule().eval_iters
    size = (4.2 * len(names), 3.6)
    figure = Canvas(size, layout="constrained")
    places = figure.subplots(1, len(names), squeeze=False)
    courses = {cell.key: _course(results, cell, steps) for cell in cells}
    known = [v for course in courses.values() for v in course if np.isfinite(v)]
    low, high = min(known, default=0.0), max(known, default=0.0)
    for axes, name in zip(places[0], names, strict=True):
        own = sorted((c.epoch or 0, c.key) for c in cells if c.row.title == name)
        values = np.array([courses[key] for _, key in own])
        axes.imshow(values, cmap="gray", vmin=low, vmax=high, origin="lower", aspect="auto")
        for y, x in np.argwhere(np.isfinite(values)):
            value = values[y, x]
            dark = value < (low + high) / 2
            text = {"ha": "center", "va": "center", "fontsize": 7}
            axes.text(x, y, f"{value:.1f}", color="white" if dark else "black", **text)
        axes.set_xticks(range(len(iterations)), [str(i) for i in iterations], fontsize=7)
        axes.set_yticks(range(len(own)), [str(epoch) for epoch, _ in own], fontsize=7)
        axes.set(title=name, xlabel="iterations of fine-tuning", ylabel="epochs of pretraining")
    yield _saved("Figure 4: VOC07 AP in the course of both trainings", figure)


def _course(results: Results, cell: Cell, steps: Sequence[int]) -> list[float]:
    """The AP after each of these steps of the fit, NaN where it was not kept."""
    found = {
        row["step"] + 1: row["voc07_course_AP"]  # Lightning counts the steps of a row from 0
        for row in results.curves(cell.key)
        if "voc07_course_AP" in row
    }
    return [found.get(step, np.nan) for step in steps]


# --- Drawing


def _placed(caption: str, draw: Callable[[Path], None]) -> Figure:
    """What ``draw`` writes into a file: as SVG, or as a picture of bounded size where that is large."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "figure.svg"
        draw(file)
        if file.stat().st_size <= LARGE:
            return Figure(caption, _bare(file.read_text("utf-8")))
        draw(file.with_suffix(".png"))
        return _pictured(caption, file.with_suffix(".png").read_bytes())


def _saved(caption: str, figure: Any) -> Figure:
    """A figure of matplotlib's."""
    return _placed(caption, partial(figure.savefig, dpi=150))


def _pictured(caption: str, content: bytes) -> Figure:
    _, uri, width, height = picture(caption, content)
    size = f'width="{width}" height="{height}"'
    return Figure(caption, f'<img alt="{caption}" src="{uri}" {size}>')


def _bare(svg: str) -> str:
    """An SVG as it stands in a page, without its date and its makers."""
    return re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
