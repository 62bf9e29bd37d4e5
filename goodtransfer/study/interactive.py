"""Figures by Bokeh, whose JavaScript stands in the page once: hover, zoom, and a legend that hides lines.

A line is told by its dashes and markers as well as by its colour.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

# Okabe and Ito's, which the colour-blind tell apart; without the yellow, which is too faint on white.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
DASHES = ("solid", "dashed", "dotdash", "dotted", "dashdot")
MARKERS = ("circle", "square", "triangle", "diamond", "inverted_triangle", "x", "cross", "asterisk")
HEIGHT = 300  # of a figure without its legend, in pixels
_LETTER, _LEGEND_LINE = 6.2, 17  # pixels of the legend's letters and lines


class Curve(NamedTuple):
    """A line of a figure.

    Attributes:
        label: in the legend.
        x, y: its points.
        look: number of its colour, dashes and marker.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    look: int


class Interactive(NamedTuple):
    """A figure to be embedded.

    Attributes:
        caption: what it shows.
        model: Bokeh's.
    """

    caption: str
    model: Any


def base(**options: Any) -> Any:
    """An empty figure as wide as its place in the page, which a finger can still scroll over."""
    from bokeh.plotting import figure

    plot = figure(
        sizing_mode="stretch_width",
        min_width=200,
        toolbar_location="above",
        active_drag=None,
        active_scroll=None,
        **{"height": HEIGHT, "tools": "pan,box_zoom,wheel_zoom,reset,save", **options},
    )
    plot.toolbar.logo = None
    for axis in plot.axis:
        axis.axis_label_text_font_style = "normal"
        axis.axis_label_text_font_size = "12px"
        axis.major_label_text_font_size = "11px"
    return plot


def lines(caption: str, x: str, curves: Sequence[Curve]) -> Interactive:
    """A figure of curves over x."""
    from bokeh.models import ColumnDataSource, HoverTool, Line, Scatter
    from bokeh.models.annotations import Legend, LegendItem

    longest = max(len(curve.label) for curve in curves)
    columns = max(1, int(330 // (_LETTER * longest + 40)))
    below = -(-len(curves) // columns)
    plot = base(height=HEIGHT + _LEGEND_LINE * below + 16, x_axis_label=x, y_axis_label=caption)
    plot.grid.grid_line_alpha = 0.5
    items, drawn = [], []
    for curve in curves:
        colour, dash, marker = (k[curve.look % len(k)] for k in (COLOURS, DASHES, MARKERS))
        points = [np.asarray(values, np.float32) for values in (curve.x, curve.y)]
        every = max(1, len(curve.x) // 6)
        some = [values[curve.look % every :: every] for values in points]
        # Not plot.line and plot.scatter, which add three more glyphs each: half the time and size.
        line, marks = (
            plot.add_glyph(ColumnDataSource({"x": of[0], "y": of[1]}), glyph, name=curve.label)
            for of, glyph in (
                (points, Line(line_color=colour, line_dash=dash, line_width=1.8)),
                (some, Scatter(marker=marker, size=7, line_color=colour, fill_color="white")),
            )
        )
        items.append(LegendItem(label=curve.label, renderers=[line, marks]))
        drawn += [line, marks]
    look: dict[str, Any] = {
        "ncols": columns,
        "label_width": round(_LETTER * longest) + 8,
        "label_text_font_size": "11px",
        "border_line_color": None,
        "location": "bottom_left",
        "glyph_width": 30,
        **dict.fromkeys(("label_height", "glyph_height"), 16),
        "margin": 0,
        "padding": 4,
        "spacing": 0,
    }
    plot.add_layout(Legend(items=items, click_policy="hide", **look), "below")
    tips = [("", "$name"), (x, "@x{0,0.[00]}"), (caption, "@y{0,0.[000]}")]
    plot.add_tools(HoverTool(renderers=drawn, tooltips=tips, line_policy="nearest"))
    return Interactive(caption, plot)


def embedded(figures: Sequence[Interactive]) -> tuple[str, list[str]]:
    """A script for the end of the page, and the place of each figure in it."""
    from bokeh.document import Document
    from bokeh.embed import components

    if not figures:
        return "", []
    page = Document()
    with page.models.freeze():  # else every figure is searched anew with each that is added
        for figure in figures:
            page.add_root(figure.model)
    script, places = components([figure.model for figure in figures])
    return javascript() + script, list(places)


@cache
def javascript() -> str:
    """BokehJS as a script of the page, of its components only the one that draws figures."""
    from bokeh.resources import Resources

    text: str = Resources(mode="inline", components=["bokeh"], log_level="warn").render_js()
    return text
