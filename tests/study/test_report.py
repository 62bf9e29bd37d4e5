"""What the report says, against numbers computed literally from the files of the results."""

import csv
import json
import math
import re
import shutil
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from goodtransfer.study.claims import findings
from goodtransfer.study.curves import POINTS, Curves, thinned
from goodtransfer.study.entries import Entry, printed
from goodtransfer.study.heat_maps import heat_maps
from goodtransfer.study.images import PLAIN, SHOWN, SIDE, picture, sections
from goodtransfer.study.plan import Study
from goodtransfer.study.report import summary, write_report
from goodtransfer.study.results import Results
from goodtransfer.study.runs import configuration, runs
from goodtransfer.study.tables import TABLES
from goodtransfer.study.transfers import TRANSFERS

sys.path.insert(0, str(Path(__file__).parent))
from made_up import made_up_card
from tiny import TINY

T_OF_TWO = 12.706  # Student's, for one degree of freedom


@pytest.fixture(scope="module")
def literal(reported):
    """(table, row, column) -> (values by seed, keys), from the files alone."""
    found = {}
    for table, row in reported.rows():
        for seed in range(reported.seeds):
            for kind, cell in reported.cells_of(table, row, seed).items():
                file = reported.out / "results" / cell.key / "metrics.json"
                if kind == "pretrain" or not file.is_file():
                    continue
                for name, value in json.loads(file.read_text()).items():
                    values, keys = found.setdefault((table.name, row.label, name), ([], []))
                    values.append(value)
                    keys.append(cell.key)
    return found


@pytest.fixture(scope="module")
def written(reported):
    """The lines of ``report.csv``, by table, row and column."""
    with (reported.out / "report.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    by = {(r["table"], r["row"], r["column"]): r for r in rows}
    assert len(by) == len(rows)
    return by


def test_csv_has_every_number_of_the_results_and_of_the_paper(reported, literal, written):
    known = {c for transfer in TRANSFERS.values() for c in transfer.columns}
    measured = {place for place in literal if place[2] in known}
    # Nothing detects by pixels; of the paper only columns of this study's kinds are shown.
    printed_ones = {
        (table.name, row.label, column)
        for table, row in reported.rows()
        for column, value in row.paper.items()
        if value is not None
    }
    assert set(written) == measured | printed_ones
    for place, line in written.items():
        values, keys = literal.get(place, ([], []))
        seeds = 1 if place[2].startswith("city") else 2
        assert int(line["seeds"]) == len(values) == (seeds if place in measured else 0)
        assert line["keys"].split() == keys
        assert line["scale"] == "tiny"
        row = next(r for r in TABLES[place[0]].rows if r.label == place[1])
        theirs = row.paper.get(place[2])
        assert line["paper"] == ("" if theirs is None else repr(theirs))
        if values:
            mean = sum(values) / seeds
            assert float(line["ours"]) == pytest.approx(mean)
            half = T_OF_TWO * statistics.stdev(values) / math.sqrt(2) if seeds == 2 else None
            assert as_number(line["half_width"]) == (half and pytest.approx(half))
            delta = None if theirs is None else pytest.approx(mean - theirs)
            assert as_number(line["delta"]) == delta
        else:
            assert line["ours"] == line["half_width"] == line["delta"] == ""


def as_number(text):
    return float(text) if text else None


def tables_of(markdown):
    """Heading -> the cells of its table, row by row, without the rule."""
    found = {}
    for part in re.split(r"^## ", markdown, flags=re.MULTILINE)[1:]:
        lines = [line for line in part.splitlines() if line.startswith("|")]
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        found[part.splitlines()[0]] = [cells[0], *cells[2:]]
    return found


def number(text):
    return None if text == "–" else float(text.split(" ")[0].replace("−", "-"))


def test_markdown_has_the_numbers_of_the_csv(reported, written):
    found = tables_of((reported.out / "report.md").read_text(encoding="utf-8"))
    assert list(found)[-1] == "The paper's claims"
    seen = set()
    for heading, (head, *rows) in list(found.items())[:-1]:
        (table,) = (t for t in TABLES.values() if heading.startswith(t.title))
        shown = printed(reported, table, Results(reported))
        assert len(head) == 2 + len(shown.columns)
        for label, whose, *cells in rows:
            row = re.sub(r" \[[\w, ]+\]", "", label)
            for column, text in zip(shown.columns, cells, strict=True):
                line = written.get((table.name, row, column), {})
                field = {"ours": "ours", "paper": "paper", "Δ": "delta"}[whose]
                value = line.get(field)
                digits = 0.0051 if column.startswith("novel") else 0.051
                expected = pytest.approx(float(value), abs=digits) if value else None
                assert number(text) == expected, (table.name, row, column, whose)
                if whose == "ours" and value:
                    half = float(text.split(" ± ")[1]) if " ± " in text else None
                    exact = as_number(line["half_width"])
                    assert half == (exact if exact is None else pytest.approx(exact, abs=0.051))
                if whose == "paper":
                    assert re.findall(r"[CR]\d+", text) == line.get("footnotes", "").split()
                seen.add((table.name, row, column))
    assert set(written) <= seen


def test_markdown_tells_what_deviates_and_which_claims_hold(reported):
    text = (reported.out / "report.md").read_text(encoding="utf-8")
    assert "- MoCo-v1: queue size 16 (paper: 65,536)" in text
    assert re.search(r"All rows: epochs 3 \(paper: 200\).*; linear: epochs 2 \(paper: 100\)", text)
    rows = {row[0]: row[1:] for row in tables_of(text)["The paper's claims"][1:]}
    for found in findings(reported):
        where, theirs, ours, verdict = rows.pop(found.claim.text)
        assert (where, ours, verdict) == (
            found.claim.where, str(found.ours or "–"), found.verdict,
        )  # fmt: skip
        assert theirs == ("–" if found.printed is None else f"{found.printed:+.1f}")
    assert not rows


def test_an_entry_is_mean_interval_and_difference():
    entry = Entry("acc", 60.8, (59.0, 62.0), ("a", "b"))
    assert entry.mean == 60.5
    assert entry.half == pytest.approx(T_OF_TWO * 1.5)
    assert entry.delta == pytest.approx(-0.3)
    assert [entry.text(v) for v in (entry.paper, entry.mean, None)] == ["60.8", "60.5", "–"]
    assert entry.text(entry.delta, "+") == "−0.3"
    alone = Entry("novel_1shot", None, (51.754,))
    assert (alone.half, alone.delta, alone.text(alone.mean)) == (None, None, "51.75")
    silent = Entry("acc", 60.8)
    assert (silent.mean, silent.half, silent.delta) == (None, None, None)


def test_the_best_of_a_column_is_marked(reported, literal):
    shown = printed(reported, TABLES["3"], Results(reported))
    for column in (c for c in shown.columns if not c.startswith("coco")):
        means = {
            line.label: statistics.fmean(literal["3", line.label, column][0])
            for line in shown.lines
        }
        best = (min if column == "voc07_loc" else max)(means.values())
        marked = {line.label for line in shown.lines if ("ours", column) in line.best}
        assert marked == {label for label, mean in means.items() if mean == best}, column
    theirs = {line.label for line in shown.lines if ("paper", "city_mIoU") in line.best}
    assert theirs == {"Exemplar-v1"}


# --- Curves, heat maps, pictures, runs


def test_curves_are_what_was_logged(reported):
    results = Results(reported)
    loss, pretext, online, precision = Curves(reported, results).of(TABLES["3"])
    assert [f.caption for f in (loss, pretext, online, precision)] == [
        "pretraining loss",
        "positive ranked first, %",
        "online linear probe on training views, %",
        "precision at IoU .5, mean of the classes",
    ]
    for figure, name in ((loss, "loss"), (pretext, "pretext_acc"), (online, "online_train_acc")):
        lines = {r.name: r for r in figure.model.renderers if r.glyph.__class__.__name__ == "Line"}
        assert list(lines) == [row.label for row in TABLES["3"].rows]
        for row in TABLES["3"].rows:
            key = reported.cells_of(TABLES["3"], row, 0)["pretrain"].key
            file = reported.out / "results" / key / "curves.jsonl"
            logged = [json.loads(line) for line in file.read_text().splitlines()]
            data = lines[row.label].data_source.data
            assert data["x"].tolist() == [r["step"] for r in logged if name in r]
            expected = [r[name] for r in logged if name in r]
            np.testing.assert_allclose(data["y"], expected, rtol=1e-6)
    shapes = [(r.glyph.line_color, r.glyph.line_dash) for r in loss.model.renderers[::2]]
    marks = [r.glyph.marker for r in loss.model.renderers[1::2]]
    assert len({str(dash) for _, dash in shapes}) == len(set(marks)) == 4  # told without colours
    (legend,) = loss.model.legend
    assert legend.click_policy == "hide"
    assert [len(item.renderers) for item in legend.items] == [2] * 4


def test_a_row_looks_alike_in_all_figures_of_its_table(reported, tmp_path):
    """Also where the rows before it have no such curve."""
    shutil.copytree(reported.out / "results", tmp_path / "results")
    study = replace(reported, out=tmp_path)
    first = study.cells_of(TABLES["3"], TABLES["3"].rows[0], 0)["pretrain"].key
    folder = tmp_path / "results" / first
    (folder / "curves.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    run = json.loads((folder / "run.json").read_text())
    del run["digests"]  # as if the cell itself had left it
    (folder / "run.json").write_text(json.dumps(run))
    loss, pretext, *_ = Curves(study, Results(study)).of(TABLES["3"])
    looks = [
        {r.name: (r.glyph.line_color, str(r.glyph.line_dash)) for r in f.model.renderers[::2]}
        for f in (loss, pretext)
    ]
    assert set(looks[0]) - set(looks[1]) == {"MoCo-v1"}
    assert looks[1].items() <= looks[0].items()


def test_a_long_curve_is_thinned_to_means_of_neighbours():
    steps, values = [float(n) for n in range(10, 10_010, 10)], [float(n % 7) for n in range(1000)]
    x, y = thinned(steps, values)
    assert len(x) == len(y) == POINTS
    assert x[:2] == [statistics.fmean(steps[:5]), statistics.fmean(steps[5:10])]
    assert y[-1] == pytest.approx(statistics.fmean(values[-5:]))
    odd = thinned(steps[:401], values[:401])
    assert odd[0][-1] == statistics.fmean(steps[399:401])
    assert thinned([], []) == ([], [])


def test_heat_maps_have_the_numbers_of_table_10(reported, literal):
    theirs, ours = heat_maps(printed(reported, TABLES["10"], Results(reported)))
    for figure in (theirs, ours):
        data = figure.model.select_one("cells").data_source.data
        found = dict(zip(zip(data["row"], data["tau"], strict=True), data["value"], strict=True))
        assert len(found) == 10
        for row in TABLES["10"].rows:
            method, k, tau = row.label.split(", ")
            value = found[(method, k), tau]
            mean = statistics.fmean(literal["10", row.label, "acc"][0])
            assert value == (row.paper["acc"] if figure is theirs else pytest.approx(mean))
        assert [text.replace("−", "-") for text in data["text"]] == [
            f"{value:.1f}" for value in data["value"]
        ]


def test_what_came_out_as_nan_is_told_and_not_ranked(reported, tmp_path):
    shutil.copytree(reported.out / "results", tmp_path / "results")
    study = replace(reported, out=tmp_path, tables=("10",), seeds=1)
    row = TABLES["10"].rows[3]
    key = study.cells_of(TABLES["10"], row, 0)["linear"].key
    folder = tmp_path / "results" / key
    (folder / "metrics.json").write_text('{"acc": NaN}')
    run = json.loads((folder / "run.json").read_text())
    del run["digests"]  # as if the cell itself had left it
    (folder / "run.json").write_text(json.dumps(run))
    shown = printed(study, TABLES["10"], Results(study))
    best = {line.label for line in shown.lines if ("ours", "acc") in line.best}
    assert best
    assert row.label not in best
    _, ours = heat_maps(shown)
    assert len(ours.model.select_one("cells").data_source.data["value"]) == 9
    assert "<td>nan</td>" in write_report(study).read_text(encoding="utf-8")


def test_pictures_are_bounded_in_size_and_number(reported, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (900, 2000, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    title, uri, width, height = picture("large", (tmp_path / "large.png").read_bytes())
    assert (title, width, height) == ("large", SIDE, 540)
    assert uri.startswith("data:image/webp;base64,")
    Image.new("RGB", (30, 20), "red").save(tmp_path / "small.png")
    small = (tmp_path / "small.png").read_bytes()
    assert len(small) < PLAIN
    assert picture("small", small)[1:] == (picture("small", small).uri, 30, 20)
    assert picture("small", small).uri.startswith("data:image/png;base64,")

    found = {s.heading: s for s in sections(reported, Results(reported))}
    readouts = {c.key for c in reported.cells() if c.kind == "linear" and c.seed == 0}
    section = found["What the linear readout said"]
    assert len(section.pictures) == SHOWN
    assert section.left_out == len(readouts) - SHOWN == 5
    html = (reported.out / "report.html").read_text(encoding="utf-8")
    assert "5 more are left out here" in html


def test_views_and_images_are_of_those_that_were_trained(reported):
    """The untrained encoder would have the views and the images of cross-entropy."""
    found = {
        s.heading: [p.title for p in s.pictures] for s in sections(reported, Results(reported))
    }
    saw, trained_on = list(found.values())[-2:]
    assert set(saw) == {"moco_v1", "moco_v2", "supervised"}
    assert trained_on == ["imagenet"]


def test_large_figures_are_pictures(monkeypatch, reported):
    from goodtransfer.study import figures

    drawn = [figure.html for figure in figures.figures(reported, Results(reported))]
    assert all(html.startswith("<svg") and len(html) < figures.LARGE for html in drawn)
    monkeypatch.setattr(figures, "LARGE", 1000)
    drawn = [figure.html for figure in figures.figures(reported, Results(reported))]
    assert len(drawn) == 2
    assert all(re.match('<img alt="Figure .*" src="data:image/', html) for html in drawn)


def test_runs_tell_their_whole_configuration(reported):
    results = Results(reported)
    made = [run for group in runs(reported, results).values() for run in group]
    assert sorted(run.cell.key for run in made) == sorted(
        cell.key for cell in reported.cells() if results.done(cell.key)
    )
    for run in made:
        told = json.loads((reported.out / "results" / run.cell.key / "run.json").read_text())
        assert (run.environment, run.cpu) == (told["environment"], told["cpu_seconds"])
        assert run.metrics == results.metrics(run.cell.key)
        if run.cell.kind == "pretrain":
            for name, value in told["row"]["arguments"].items():
                assert run.configuration[name.replace("_", " ")] == str(value)
    voc07 = next(c for c in reported.cells() if c.kind == "voc07")
    values = configuration(reported, voc07)
    assert (values["iterations"], values["anchor sizes"]) == ("2", "16/32")
    assert values["encoder of"] == voc07.needs[0]


def test_an_empty_study_has_a_report(tmp_path):
    study = Study(tmp_path, TINY, tables=("3", "10"), seeds=2)
    html = write_report(study).read_text(encoding="utf-8")
    assert f"0 of {len(study.cells())} runs finished" in html
    assert "acc over queue size and temperature: the paper" in html
    with (tmp_path / "report.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert {line["ours"] + line["half_width"] + line["keys"] for line in lines} == {""}
    assert {line["seeds"] for line in lines} == {"0"}
    assert lines[0]["paper"] == "60.8"


def test_one_seed_has_no_interval(reported):
    shown = printed(replace(reported, seeds=1), TABLES["3"], Results(reported))
    assert all(entry.half is None for line in shown.lines for entry in line.entries.values())


def test_a_card_tells_its_encoders_from_the_paper_s_rows_of_the_same_name(tmp_path):
    """In what scripts get, in the CSV and in the Markdown."""
    study = made_up_card(tmp_path / "c", ["Supervised", "mine", "MoCo-v2"])
    write_report(study)
    acc = {}
    for label, row in zip(study.encoders, study.rows_of(TABLES["card"]), strict=True):
        cells = [study.cells_of(TABLES["card"], row, seed)["linear"] for seed in range(2)]
        acc[label] = [Results(study).metrics(cell.key)["acc"] for cell in cells]
    assert [label for label, _ in summary(study)] == list(acc)
    assert {label: columns["acc"] for label, columns in summary(study)} == acc

    with (study.out / "report.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    by = {(line["row"], line["column"]): line for line in lines}
    assert len(by) == len(lines)
    for label, values in acc.items():
        assert float(by[label, "acc"]["ours"]) == pytest.approx(statistics.fmean(values))
        assert by[label, "acc"]["paper"] == ""
    theirs = {"Supervised": "77.3", "MoCo-v2": "67.5"}
    for label, printed_one in theirs.items():
        line = by[f"the paper's {label}", "acc"]
        assert (line["paper"], line["ours"], line["keys"]) == (printed_one, "", "")

    (rows,) = tables_of((study.out / "report.md").read_text(encoding="utf-8")).values()
    told = {(label, whose): cells[0] for label, whose, *cells in rows[1:]}
    assert len(told) == len(rows) - 1
    for label, printed_one in theirs.items():
        assert told[f"the paper's {label}", "paper"] == printed_one
        assert told[label, "ours"].startswith(f"{statistics.fmean(acc[label]):.1f} ±")
        assert (label, "paper") not in told
