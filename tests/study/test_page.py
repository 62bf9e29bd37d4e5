"""The report in a real browser: nothing is asked for, nothing fails, tables sort, figures draw, and fit."""

import re
import shutil
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from goodtransfer.study.entries import printed
from goodtransfer.study.report import write_report
from goodtransfer.study.results import Results
from goodtransfer.study.tables import TABLES

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]

# A figure's own canvases, wherever they are in the shadow of its element: how many have something on.
DRAWN = """figure => {
  const canvases = [];
  const walk = node => {
    if (node.tagName === "CANVAS") canvases.push(node);
    for (const child of node.children ?? []) walk(child);
    if (node.shadowRoot) walk(node.shadowRoot);
  };
  walk(figure);
  return canvases.filter(canvas => canvas.width && canvas.height &&
    canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.some(v => v)).length;
}"""


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("needs a Chromium on this machine, and there is none")
    with api.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


class Page:
    """A page of the report, and all that was said and asked for while it was looked at."""

    def __init__(self, browser, path, width):
        self.page = browser.new_page(viewport={"width": width, "height": 900})
        self.said, self.requests = [], []
        self.page.on("console", lambda m: self.said.append((m.type, m.text)))
        self.page.on("pageerror", lambda error: self.said.append(("error", str(error))))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.resolve().as_uri(), wait_until="load")
        self.page.wait_for_function("() => Bokeh.index && Bokeh.documents.length === 1")
        self.page.wait_for_function(
            "() => Bokeh.documents[0].roots().every(root => Bokeh.index.find_one(root))"
        )
        self.page.wait_for_timeout(500)

    def overflow(self):
        return self.page.evaluate("() => document.scrollingElement.scrollWidth - window.innerWidth")

    def column(self, table, index, whose="ours"):
        """The values of a column, top to bottom, None where there is none."""
        texts = self.page.eval_on_selector_all(
            f'table[data-table="{table}"] tbody',
            f"bodies => bodies.map(body => body.querySelector('tr.{whose}')"
            f"?.cells[{index}].dataset.value ?? null)",
        )
        return [None if text is None else float(text) for text in texts]

    def rows(self, table):
        return self.page.eval_on_selector_all(
            f'table[data-table="{table}"] tbody', "bodies => bodies.map(b => b.dataset.row)"
        )

    def click(self, table, index):
        self.page.click(f'table[data-table="{table}"] thead th:nth-child({index + 1}) button')

    def sorted_by(self, table, index):
        return self.page.get_attribute(
            f'table[data-table="{table}"] thead th:nth-child({index + 1})', "aria-sort"
        )


@pytest.fixture(scope="module", params=[400, 1400], ids=["400px", "1400px"])
def page(request, reported, browser):
    page = Page(browser, reported.out / "report.html", request.param)
    yield page
    page.page.close()


@pytest.fixture(scope="module")
def wide(reported, browser):
    page = Page(browser, reported.out / "report.html", 1400)
    yield page
    page.page.close()


def test_nothing_is_asked_for_and_nothing_fails(page, reported):
    page.page.evaluate("() => window.scrollTo(0, document.body.scrollHeight)")
    for summary in page.page.query_selector_all("summary"):
        summary.evaluate("element => { element.parentElement.open = true }")
    page.page.wait_for_timeout(200)
    url = (reported.out / "report.html").resolve().as_uri()
    assert [r for r in page.requests if not r.startswith("data:")] == [url]
    assert [text for kind, text in page.said if kind in ("error", "warning")] == []
    broken = page.page.eval_on_selector_all(
        "img", "images => images.filter(i => !i.complete || !i.naturalWidth).length"
    )
    assert broken == 0
    # All of it is open now, and still fits.
    assert page.overflow() <= 0


def test_every_interactive_figure_draws(page, reported):
    figures = page.page.query_selector_all("figure.plot")
    captions = [figure.get_attribute("aria-label") for figure in figures]
    # Three logged quantities and precision; cross-entropy has no pretext; of Table 10 two heat maps.
    assert len(captions) == 4 + 3 + 1 + (2 + 3)
    assert [c for c in captions if c.startswith("acc over queue size")] == [
        "acc over queue size and temperature: the paper's",
        "acc over queue size and temperature: ours",
    ]
    for figure, caption in zip(figures, captions, strict=True):
        figure.scroll_into_view_if_needed()
        assert figure.evaluate(DRAWN) >= 1, caption
        box = figure.bounding_box()
        assert box["height"] > 200
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= page.page.viewport_size["width"]
    pictures = page.page.eval_on_selector_all(
        "#figures ~ .grid svg", "all => all.map(s => s.getBoundingClientRect().width)"
    )
    assert len(pictures) == 2  # Figures 1 and 7
    assert all(100 < width <= page.page.viewport_size["width"] for width in pictures)


def test_nothing_is_cut_off(page):
    """The page is no wider than the window; what is wider scrolls within its own box."""
    assert page.overflow() <= 0
    cut = page.page.evaluate(
        """() => [...document.querySelectorAll("body *")].filter(e => {
          if (e.closest(".scroll") || e.closest("svg") || e.closest(".bk-Figure")) return false;
          const box = e.getBoundingClientRect();
          return box.width && (box.right > window.innerWidth + 1 || box.left < -1);
        }).map(e => e.tagName + "." + e.className)"""
    )
    assert cut == []
    boxes = page.page.eval_on_selector_all(
        ".scroll",
        "all => all.map(e => [e.getBoundingClientRect().right, getComputedStyle(e).overflowX])",
    )
    width = page.page.viewport_size["width"]
    assert all(right <= width and style == "auto" for right, style in boxes)
    # The last column can be scrolled to.
    reached = page.page.eval_on_selector(
        'table[data-table="3"]',
        """table => { const box = table.parentElement; box.scrollLeft = 1e6;
          const cell = table.tHead.rows[0].lastElementChild.getBoundingClientRect();
          const right = box.getBoundingClientRect().right; box.scrollLeft = 0;
          return cell.right - right }""",
    )
    assert reached <= 1


def test_tables_show_the_numbers_of_the_results(wide, reported):
    for name in reported.tables:
        shown = printed(reported, TABLES[name], Results(reported))
        assert wide.rows(name) == [line.label for line in shown.lines]
        for index, column in enumerate(shown.columns, 1):
            entries = [line.entries[column] for line in shown.lines]
            for whose, values in (
                ("ours", [e.mean for e in entries]),
                ("paper", [e.paper for e in entries]),
                ("delta", [e.delta for e in entries]),
            ):
                assert wide.column(name, index, whose) == values, (name, column, whose)


@pytest.mark.parametrize(("table", "index"), [("3", 1), ("10", 1), ("floor", 1), ("3", 4)])
def test_a_click_on_a_heading_sorts(wide, table, index):
    rows, values = wide.rows(table), wide.column(table, index)
    pairs = dict(zip(rows, values, strict=True))
    for order, expected in (
        ("descending", sorted(values, reverse=True)),
        ("ascending", sorted(values)),
        ("none", values),
    ):
        wide.click(table, index)
        assert wide.sorted_by(table, index) == order
        assert wide.column(table, index) == expected
        assert [pairs[row] for row in wide.rows(table)] == expected  # whole groups move
    assert wide.rows(table) == rows


def test_sorting_by_the_paper_by_labels_and_with_gaps(wide):
    rows = wide.rows("10")
    wide.click("10", 0)
    assert wide.rows("10") == sorted(rows, key=str.lower)
    wide.click("10", 0)
    assert wide.rows("10") == sorted(rows, key=str.lower, reverse=True)
    wide.click("10", 0)
    section = wide.page.locator("section", has=wide.page.locator('table[data-table="10"]'))
    section.locator("select").select_option("paper")
    wide.click("10", 1)
    theirs = [60.8, 60.9, 64.6, 63.9, 67.5, 66.9, 67.8, 68.1, 68.9, 67.9]
    assert wide.column("10", 1, "paper") == sorted(theirs, reverse=True)
    section.locator("select").select_option("delta")
    deltas = wide.column("10", 1, "delta")
    assert deltas == sorted(deltas, reverse=True)
    wide.click("10", 1)
    wide.click("10", 1)
    assert wide.rows("10") == rows
    # Pixels detect nothing: below in both orders.
    index = 3
    for _ in range(2):
        wide.click("floor", index)
        assert wide.rows("floor") == ["Untrained", "Pixels"]
    wide.click("floor", index)
    assert wide.rows("floor") == ["Pixels", "Untrained"]


def test_heat_maps_show_the_numbers_of_the_results(wide, reported):
    results = Results(reported)
    maps = wide.page.evaluate(
        """() => Bokeh.documents[0].roots().flatMap(root => {
          const cells = root.renderers.filter(r => r.name === "cells");
          return cells.map(r => Object.fromEntries(["row", "tau", "text"].map(
            name => [name, Array.from(r.data_source.get(name))])));
        })"""
    )
    assert len(maps) == 2
    for whose, shown in zip(("paper", "ours"), maps, strict=True):
        told = {
            (f"{row[0]}, {row[1]}, {tau}"): text
            for row, tau, text in zip(shown["row"], shown["tau"], shown["text"], strict=True)
        }
        for row in TABLES["10"].rows:
            keys = [
                reported.cells_of(TABLES["10"], row, seed)["linear"].key
                for seed in range(reported.seeds)
            ]
            mean = statistics.fmean(results.metrics(key)["acc"] for key in keys)
            value = row.paper["acc"] if whose == "paper" else mean
            assert told.pop(row.label) == f"{value:.1f}"
        assert not told


def test_a_click_in_the_legend_hides_a_line(wide):
    hidden = (
        """() => Bokeh.documents[0].roots()[0].renderers.filter(r => !r.visible).map(r => r.name)"""
    )
    assert wide.page.evaluate(hidden) == []
    wide.page.query_selector("figure.plot").scroll_into_view_if_needed()
    left, top = wide.page.evaluate(
        """() => { const view = Bokeh.index.find_one(Bokeh.documents[0].roots()[0]);
          const legend = view.owner.query_one(v => v.model.type === "Legend");
          const box = legend.el.getBoundingClientRect();
          return [box.left, box.top] }"""
    )
    wide.page.mouse.click(left + 15, top + 12)
    wide.page.wait_for_timeout(200)
    assert wide.page.evaluate(hidden) == ["MoCo-v1", "MoCo-v1"]  # the line and its markers
    wide.page.mouse.click(left + 15, top + 12)
    wide.page.wait_for_timeout(200)
    assert wide.page.evaluate(hidden) == []


def test_footnotes_lead_to_their_text(wide):
    links = wide.page.eval_on_selector_all(
        "sup a", "all => all.map(a => [a.textContent, a.getAttribute('href')])"
    )
    assert {mark for mark, _ in links} == {"C2", "C3", "C4", "C7", "R2", "R9", "R10", "R11"}
    for mark, href in links:
        text = wide.page.inner_text(f'[id="{href[1:]}"]')
        assert text.startswith(mark)


def test_the_page_names_no_address_but_of_its_parts(reported):
    """Outside BokehJS, which asks for nothing either, as the requests show."""
    html = (reported.out / "report.html").read_text(encoding="utf-8")
    own = re.sub(r"<script>\n/\* BEGIN bokeh.*?</script>", "", html, flags=re.DOTALL)
    assert len(html) - len(own) > 1_000_000
    assert not re.findall(r'(?:src|href)="(?!data:|#)', own)
    assert not re.findall(r"https?://(?!www\.w3\.org/)", own)


def test_the_report_is_written_anew_the_same(reported, tmp_path):
    """But for Bokeh's running numbers."""
    (tmp_path / "results").symlink_to(reported.out / "results")
    write_report(replace(reported, out=tmp_path))
    for name in ("report.md", "report.csv"):
        assert (tmp_path / name).read_bytes() == (reported.out / name).read_bytes()
    assert Path(tmp_path / "report.html").is_file()
