"""Table 10 as heat maps: the readout over queue size and temperature, the paper's and ours."""

import math
from collections.abc import Mapping, Sequence

from goodtransfer.study.entries import Entry, Printed
from goodtransfer.study.interactive import Interactive, base

# Light to dark, of one hue: also in grey, and under black or white numbers.
SHADES = ("#f7fbff", "#deebf7", "#c6dbef", "#9ecae1", "#6baed6", "#4292c6", "#2171b5", "#08519c")
_DARK = 5  # shades from here on have white numbers
_ROW, _REST = 34, 110  # pixels of a row of the map, and of all else


def heat_maps(shown: Printed) -> list[Interactive]:
    """One for the paper's numbers and one for ours, where there are any; in the order of the rows."""
    axes = [tuple(line.label.split(", ")) for line in shown.lines]
    return [
        _map(f"acc over queue size and temperature: {whose}", axes, values)
        for whose, values in (
            ("the paper's", _values(shown, paper=True)),
            ("ours", _values(shown, paper=False)),
        )
        if values
    ]


def _values(shown: Printed, *, paper: bool) -> dict[tuple[str, str, str], tuple[float, Entry]]:
    """(method, "K=...", "τ=...") -> number, and the entry it is from."""
    found = {}
    for line in shown.lines:
        entry = line.entries.get("acc", Entry("acc"))
        value = entry.paper if paper else entry.mean
        if value is not None and math.isfinite(value):
            method, k, tau = line.label.split(", ")
            found[method, k, tau] = (value, entry)
    return found


def _map(
    caption: str,
    axes: Sequence[tuple[str, ...]],
    values: Mapping[tuple[str, str, str], tuple[float, Entry]],
) -> Interactive:
    from bokeh.models import ColumnDataSource, FactorRange, HoverTool

    down = list(dict.fromkeys((method, k) for method, k, _ in axes))[::-1]  # the first on top
    across = sorted({tau for *_, tau in axes})
    low, high = (f(value for value, _ in values.values()) for f in (min, max))
    shades = [
        round((len(SHADES) - 1) * ((value - low) / (high - low) if high > low else 0.5))
        for value, _ in values.values()
    ]
    cells = {
        "tau": [tau for *_, tau in values],
        "row": [(method, k) for method, k, _ in values],
        "method": [method for method, *_ in values],
        "k": [k for _, k, _ in values],
        "value": [value for value, _ in values.values()],
        "text": [entry.text(value) for value, entry in values.values()],
        "shade": [SHADES[shade] for shade in shades],
        "ink": ["white" if shade >= _DARK else "black" for shade in shades],
    }
    plot = base(
        height=_REST + _ROW * len(down),
        x_range=across,
        y_range=FactorRange(factors=down, range_padding=0, group_padding=0.3, factor_padding=0),
        tools="save",
        x_axis_label="temperature",
    )
    source = ColumnDataSource(cells)
    squares = plot.rect("tau", "row", width=1, height=1, source=source, fill_color="shade",
                        line_color="#888888", name="cells")  # fmt: skip
    plot.text("tau", "row", text="text", source=source, text_color="ink", text_align="center",
              text_baseline="middle", text_font_size="13px")  # fmt: skip
    tips = [("", "@method, @k, @tau"), ("acc", "@value{0.00}")]
    plot.add_tools(HoverTool(renderers=[squares], tooltips=tips))
    plot.grid.grid_line_color = None
    plot.yaxis.major_label_text_font_size = "11px"
    plot.yaxis.group_text_font_size = "11px"
    plot.yaxis.group_label_orientation = "horizontal"
    plot.yaxis.separator_line_color = None
    return Interactive(caption, plot)
