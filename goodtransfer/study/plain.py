"""The report without a browser: ``report.md`` to be read, ``report.csv`` to be computed with."""

import csv
import io
from collections.abc import Iterator, Sequence

from goodtransfer.study import whole
from goodtransfer.study.claims import Finding
from goodtransfer.study.entries import Line, Printed
from goodtransfer.study.fidelity import sentence
from goodtransfer.study.plan import Study
from goodtransfer.study.transfers import HEADINGS

# Of the CSV: a line for each number that the paper or the study has.
FIELDS = (
    *("table", "row", "column", "paper", "ours", "half_width", "low", "high", "delta", "seeds", "scale"),
    *("keys", "footnotes"),
)  # fmt: skip


def write_plain(study: Study, tables: Sequence[Printed], claims: Sequence[Finding]) -> None:
    """Write both beside ``report.html``."""
    for name, text in (
        ("report.md", _markdown(study, tables, claims)),
        ("report.csv", _csv(study, tables)),
    ):
        whole.write(study.out / name, text)


def _csv(study: Study, tables: Sequence[Printed]) -> str:
    """``half_width`` is half the 95 % interval over the seeds, ``low`` to ``high`` that over the images.

    ``keys`` are the cells' folders.
    """
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, FIELDS, lineterminator="\n")
    writer.writeheader()
    for shown in tables:
        for line in shown.lines:
            for column, entry in line.entries.items():
                if entry.paper is None and not entry.ours:
                    continue
                values = (
                    *(shown.table.name, line.name, column, entry.paper, entry.mean, entry.half),
                    *(entry.images or (None, None)),
                    *(entry.delta, len(entry.ours), study.scale.name, " ".join(entry.keys)),
                    " ".join(shown.marks.get((line.label, column), ())),
                )
                writer.writerow(dict(zip(FIELDS, values, strict=True)))
    return buffer.getvalue()


def _markdown(study: Study, tables: Sequence[Printed], claims: Sequence[Finding]) -> str:
    intervals = f", ± is the 95 % interval over {study.seeds} seeds" if study.seeds > 1 else ""
    parts = [f"# goodtransfer, scale {study.scale.name}\n\nΔ is ours - paper{intervals}.\n"]
    for shown in tables:
        parts += [f"## {shown.table.title}{_marks(shown, '', '')}\n", _table(shown)]
        parts += [f"All rows: {sentence(shown.shared)}.\n"] if sentence(shown.shared) else []
        own = [f"- {line.label}: {sentence(line.fidelity)}" for line in shown.lines]
        own = [text for text in own if not text.endswith(": ")]
        parts += ["\n".join(own) + "\n"] if own else []
        notes = [f"- [{note.mark}] {note.text}" for note in shown.notes]
        parts += ["The paper's own numbers:\n\n" + "\n".join(notes) + "\n"] if notes else []
    if claims:
        parts += ["## The paper's claims\n", _claims(claims)]
    return "\n".join(parts)


def _table(shown: Printed) -> str:
    heads = [f"{HEADINGS[c]}{_marks(shown, '', c)}" for c in shown.columns]
    lines = [f"| pretraining | | {' | '.join(heads)} |", f"|---|---|{'--:|' * len(heads)}"]
    for line in shown.lines:
        for whose, texts in _texts(shown, line):
            label = f"{line.name}{_marks(shown, line.label, '')}"
            lines.append(f"| {label} | {whose} | {' | '.join(texts)} |")
    return "\n".join(lines) + "\n"


def _texts(shown: Printed, line: Line) -> Iterator[tuple[str, list[str]]]:
    entries = line.entries.values()
    if not line.beside:
        yield "ours", [f"{e.text(e.mean)} {e.spread}".rstrip() for e in entries]
    if line.printed:
        yield "paper", [e.text(e.paper) + _marks(shown, line.label, e.column) for e in entries]
    if line.printed and not line.beside:
        yield "Δ", [e.text(e.delta, "+") for e in entries]


def _marks(shown: Printed, row: str, column: str) -> str:
    marks = shown.marks.get((row, column), ())
    return f" [{', '.join(marks)}]" if marks else ""  # one after the other would be a link


def _claims(claims: Sequence[Finding]) -> str:
    lines = ["| claim | where | paper | ours | verdict |", "|---|---|--:|---|---|"]
    for found in claims:
        paper = "–" if found.printed is None else f"{found.printed:+.1f}"
        lines.append(
            f"| {found.claim.text} | {found.claim.where} | {paper} | {found.ours or '–'} "
            f"| {found.verdict} |"
        )
    note = (
        "An effect is above 0 where the claim holds; intervals are of 95 %. That two numbers are alike holds "
        "where the whole interval is less than the paper's last digit from 0: noise never confirms it. "
        "Of one seed an interval does not hold what another run would change."
    )
    return "\n".join([*lines, "", note]) + "\n"
