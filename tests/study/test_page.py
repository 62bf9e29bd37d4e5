"""The report in a real browser: nothing is asked for, nothing fails, tables sort, figures draw, and fit.

Twice: with what cells really left, and with every table and figure, from numbers that are made up.
"""

import re
import shutil
import statistics
import sys
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest

from goodtransfer.study.entries import printed
from goodtransfer.study.plain import FIELDS
from goodtransfer.study.plan import Study
from goodtransfer.study.report import write_report
from goodtransfer.study.results import Results
from goodtransfer.study.tables import PUBLISHED, TABLES
from goodtransfer.study.transfers import LOWER_IS_BETTER

sys.path.insert(0, str(Path(__file__).parent))
from made_up import made_up_card, make_up

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

# Of an SVG or an image as it is drawn: its own size, and how many shades are on it.
PICTURED = """async drawn => {
  let image = drawn;
  if (drawn.tagName === "svg") {
    image = new Image();
    const text = new XMLSerializer().serializeToString(drawn);
    image.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(text);
  }
  await image.decode();
  const [width, height] = [image.naturalWidth, image.naturalHeight];
  const context = Object.assign(document.createElement("canvas"), {width, height}).getContext("2d");
  context.drawImage(image, 0, 0);
  const values = context.getImageData(0, 0, width, height).data;
  return [width, height, new Set(values.filter((_, n) => n % 4 === 0)).size];
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

    def __init__(self, browser, study, width):
        self.study, path = study, study.out / "report.html"
        self.page = browser.new_page(viewport={"width": width, "height": 900})
        self.said, self.requests = [], []
        self.page.on("console", lambda m: self.said.append((m.type, m.text)))
        self.page.on("pageerror", lambda error: self.said.append(("error", str(error))))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.resolve().as_uri(), wait_until="load")
        if not study.encoders:  # what nobody trained logged nothing to draw
            self.page.wait_for_function("() => Bokeh.index && Bokeh.documents.length === 1")
            self.page.wait_for_function(
                "() => Bokeh.documents[0].roots().every(root => Bokeh.index.find_one(root))"
            )
        self.page.wait_for_timeout(500)

    def overflow(self):
        return self.page.evaluate("() => document.scrollingElement.scrollWidth - window.innerWidth")

    def values(self, table, whose="ours"):
        """The values of every column but the labels', top to bottom, None where there is none."""
        columns = self.page.eval_on_selector(
            f'table[data-table="{table}"]',
            """(table, whose) => [...table.tHead.rows[0].cells].map((_, n) => [...table.tBodies].map(
              body => body.querySelector(`tr.${whose}`)?.cells[n].dataset.value ?? null))""",
            whose,
        )[1:]
        return [[None if text is None else float(text) for text in texts] for texts in columns]

    def column(self, table, index, whose="ours"):
        """Those of one column."""
        return self.values(table, whose)[index - 1]

    def rows(self, table):
        return self.page.eval_on_selector_all(
            f'table[data-table="{table}"] tbody', "bodies => bodies.map(b => b.dataset.row)"
        )

    def click(self, table, index):
        self.page.click(f'table[data-table="{table}"] thead th:nth-child({index + 1}) button')

    def orders(self, table):
        """By column, the rows after one, two and three clicks on its heading."""
        return self.page.eval_on_selector(
            f'table[data-table="{table}"]',
            """table => [...table.tHead.rows[0].cells].map(heading => [1, 2, 3].map(_ => {
              heading.querySelector("button").click();
              return [...table.tBodies].map(body => body.dataset.row) }))""",
        )[1:]

    def sorted_by(self, table, index):
        return self.page.get_attribute(
            f'table[data-table="{table}"] thead th:nth-child({index + 1})', "aria-sort"
        )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study of every table, two seeds of each row, whose results are made up."""
    out = tmp_path_factory.mktemp("whole") / "s"
    study = Study.open(out, scale="tiny", tables=["all"], seeds=2)
    study.save()
    make_up(study)
    write_report(study)
    return study


@pytest.fixture(
    scope="module",
    params=[
        ("whole", 400),
        ("whole", 1400),
        pytest.param(("reported", 400), marks=pytest.mark.slow),
        pytest.param(("reported", 1400), marks=pytest.mark.slow),
    ],
    ids=lambda param: f"{param[0]}-{param[1]}px",
)
def page(request, browser):
    study, width = request.param
    page = Page(browser, request.getfixturevalue(study), width)
    yield page
    page.page.close()


@pytest.fixture(scope="module")
def wide(reported, browser):
    page = Page(browser, reported, 1400)
    yield page
    page.page.close()


def test_nothing_is_asked_for_and_nothing_fails(page):
    page.page.evaluate("() => window.scrollTo(0, document.body.scrollHeight)")
    page.page.eval_on_selector_all("details", "all => all.forEach(e => { e.open = true })")
    page.page.wait_for_timeout(200)
    url = (page.study.out / "report.html").resolve().as_uri()
    assert [r for r in page.requests if not r.startswith("data:")] == [url]
    assert [text for kind, text in page.said if kind in ("error", "warning")] == []
    broken = page.page.eval_on_selector_all(
        "img", "images => images.filter(i => !i.complete || !i.naturalWidth).length"
    )
    assert broken == 0
    # All of it is open now, and still fits.
    assert page.overflow() <= 0


def test_every_interactive_figure_draws(page):
    figures = page.page.query_selector_all("figure.plot")
    captions = [figure.get_attribute("aria-label") for figure in figures]
    # Three logged quantities, and precision where VOC is detected on; cross-entropy has no pretext,
    # what is not pretrained logs nothing; of Table 10 two heat maps.
    drawn = dict.fromkeys(("1", "2", "3", "6"), 4) | {"supervised": 3, "floor": 1, "10": 2 + 3}
    assert len(captions) == sum(drawn.get(table, 3) for table in page.study.tables)
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


def test_every_figure_of_the_paper_draws(page):
    figures = page.page.query_selector_all(".drawn figure")
    captions = [figure.inner_text().partition(":")[0] for figure in figures]
    everything = page.study.tables == tuple(PUBLISHED)
    assert captions == [f"Figure {n}" for n in ([1, 2, 3, 4, 6, 7] if everything else [1, 7])]
    page.page.eval_on_selector_all(
        ".pictures details", "all => all.forEach(e => { e.open = true })"
    )
    figures += page.page.query_selector_all(".pictures details:has-text('(Figure 5)') figure")
    assert len(figures) == len(captions) + (9 if everything else 1)  # data sets pretrained on
    for number, figure in enumerate(figures):
        drawn, window = figure.query_selector("svg, img"), figure.bounding_box()
        assert window["x"] >= 0
        assert window["x"] + window["width"] <= page.page.viewport_size["width"]
        width, height, colours = drawn.evaluate(PICTURED)
        shown = drawn.bounding_box()["width"]
        assert shown > 100
        # A wide figure of letters is scrolled over, not shrunk until nobody can read it.
        assert number >= len(captions) or shown == pytest.approx(width, abs=1)
        assert min(width, height) > 30
        assert colours > 10, figure.inner_text()  # none of them is blank


@pytest.fixture
def card(browser, tmp_path):
    """A report card on a phone, of encoders that are called by long names and by two of the paper."""
    labels = [
        "epoch=199-step=1000800.ckpt",
        "tf_efficientnetv2_rw_m_with_a_long_tag",
        "MoCo-v2",
        "Supervised",
    ]
    study = made_up_card(tmp_path / "c", labels)
    write_report(study)
    page = Page(browser, study, 400)
    yield page
    page.page.close()


def test_nothing_is_cut_off(page):
    """The page is no wider than the window; what is wider scrolls within its own box."""
    assert_nothing_is_cut_off(page)


def test_long_labels_leave_room_for_the_numbers(card):
    """They stay where they are, so that what is beneath them cannot be seen; yet they can be read."""
    assert_nothing_is_cut_off(card)
    box = card.page.query_selector('.scroll:has(table[data-table="card"])').bounding_box()
    cells = 'table[data-table="card"] tr.ours td'
    every = [cell.bounding_box()["width"] for cell in card.page.query_selector_all(cells)]
    labels = card.page.query_selector_all(f"{cells}:first-child")
    widths = [label.bounding_box()["width"] for label in labels]
    assert len(labels) == 4
    assert set(widths) == {widths[0]}
    assert 100 < widths[0] <= 160
    assert max(every) <= box["width"] - widths[0]
    assert [e.evaluate("e => e.scrollWidth - e.clientWidth") for e in labels] == [0] * 4


def assert_nothing_is_cut_off(page):
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
    # The last column of every table, and the right edge of every figure, can be scrolled to.
    reached = page.page.eval_on_selector_all(
        ".scroll",
        """all => all.map(box => { box.scrollLeft = 1e6;
          const last = box.querySelector("table thead th:last-child, svg, img");
          const beyond = last.getBoundingClientRect().right - box.getBoundingClientRect().right;
          box.scrollLeft = 0;
          return beyond })""",
    )
    assert max(reached) <= 1


def test_tables_show_the_numbers_of_the_results(page):
    for name in page.study.tables:
        shown = printed(page.study, TABLES[name], Results(page.study))
        assert page.rows(name) == [line.label for line in shown.lines]
        for whose, attribute in (("ours", "mean"), ("paper", "paper"), ("delta", "delta")):
            expected = [
                [getattr(line.entries[column], attribute) for line in shown.lines]
                for column in shown.columns
            ]
            assert page.values(name, whose) == expected, (name, whose)


def test_every_column_of_every_table_sorts(page):
    """What has no number stays below, such as a row that the paper quotes."""
    for name in page.study.tables:
        shown = printed(page.study, TABLES[name], Results(page.study))
        rows = [line.label for line in shown.lines]
        for column, (first, second, third) in zip(shown.columns, page.orders(name), strict=True):
            mean = {line.label: line.entries[column].mean for line in shown.lines}
            known = sorted(value for value in mean.values() if value is not None)
            gaps = [None] * (len(rows) - len(known))
            rising, falling = (first, second) if column in LOWER_IS_BETTER else (second, first)
            assert [mean[row] for row in rising] == known + gaps, (name, column)
            assert [mean[row] for row in falling] == known[::-1] + gaps, (name, column)
            assert third == rows


def test_a_row_that_the_paper_quotes_is_its_number_alone(whole):
    """In the page as in ``report.md`` and ``report.csv``."""
    html, md, table = (
        (whole.out / f"report.{kind}").read_text(encoding="utf-8") for kind in ("html", "md", "csv")
    )
    label = "Baseline (Chen et al. 2019)"
    assert f">the paper's {label}</td>" in unescape(html)
    told = [line for line in md.splitlines() if label in line]
    assert told == [f"| the paper's {label} | paper | 82.3 | – | 51.75 | 0.80 | 74.27 | 0.63 |"]
    lines = [line.split(",") for line in table.splitlines() if label in line]
    assert [line[2:4] for line in lines] == [
        ["base_acc", "82.3"], ["novel_1shot", "51.75"], ["novel_1shot_ci95", "0.8"],
        ["novel_5shot", "74.27"], ["novel_5shot_ci95", "0.63"],
    ]  # fmt: skip
    assert {line[FIELDS.index("ours")] + line[FIELDS.index("keys")] for line in lines} == {""}


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_footnotes_lead_to_their_text(wide):
    links = wide.page.eval_on_selector_all(
        "sup a", "all => all.map(a => [a.textContent, a.getAttribute('href')])"
    )
    assert {mark for mark, _ in links} == {"C2", "C3", "C4", "C7", "R2", "R9", "R10", "R11"}
    for mark, href in links:
        text = wide.page.inner_text(f'[id="{href[1:]}"]')
        assert text.startswith(mark)


@pytest.mark.slow
def test_the_page_names_no_address_but_of_its_parts(reported):
    """Outside BokehJS, which asks for nothing either, as the requests show."""
    html = (reported.out / "report.html").read_text(encoding="utf-8")
    own = re.sub(r"<script>\n/\* BEGIN bokeh.*?</script>", "", html, flags=re.DOTALL)
    assert len(html) - len(own) > 1_000_000
    assert not re.findall(r'(?:src|href)="(?!data:|#)', own)
    assert not re.findall(r"https?://(?!www\.w3\.org/)", own)


@pytest.mark.slow
def test_the_report_is_written_anew_the_same(reported, tmp_path):
    """But for Bokeh's running numbers."""
    (tmp_path / "results").symlink_to(reported.out / "results")
    write_report(replace(reported, out=tmp_path))
    for name in ("report.md", "report.csv"):
        assert (tmp_path / name).read_bytes() == (reported.out / name).read_bytes()
    assert Path(tmp_path / "report.html").is_file()
