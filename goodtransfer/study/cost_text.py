"""The cost of a study as lines of at most 100 columns: table by table, then in all."""

import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from goodtransfer.study import counting
from goodtransfer.study.cost import Memory, Planned, Work, memory, passes, work
from goodtransfer.study.plan import Cell
from goodtransfer.study.protocol import MOCO_V2
from goodtransfer.study.tables import TABLES, Table

LABEL = 28
# Share of the images from which on a queue is told of: their own earlier keys fill it.
NEAR = 0.5

NOTES = (
    "seen: images that a training takes in all, each once a step.",
    "FLOP, and that of the transfers: of the encoders' convolutions, two to a multiply-add. Forward "
    "and backward are three forward passes, the key encoder's is one. Not counted: heads, decoders, "
    "region proposals, the comparison with the queue, scoring, the generator of figure 2, and the "
    "drawing of a toy world.",
    "queue: keys in fp32, their labels and indices, on each device. logits: the most that the "
    "streamed loss holds at once on an accelerator, with the mask of labels; dense: all N x K, which "
    "it never makes. gathered: by each device in a step, keys, labels, indices and shuffle-BN's "
    "images, without gradients. checkpoint: encoder, key encoder, head, queue and optimizer; of a "
    "task its encoder alone.",
)


def lines(study: Planned, devices: int = 8, rate: float | None = None) -> Iterator[str]:
    """All that is printed.

    Args:
        study: whose cells are counted.
        devices: that share a batch.
        rate: images per second of MoCo-v2's pretraining at the study's scale, on them all.

    Raises:
        ValueError: for devices or a rate that cannot be.
    """
    if devices < 1 or (rate is not None and rate <= 0):
        raise ValueError(
            f"Expected positive numbers, but got {devices} devices and {rate} images/s."
        )
    cells = study.cells()
    works = {cell.key: work(study, cell) for cell in cells}
    hours = None if rate is None else _hours_a_flop(study, rate)
    data = "the paper's data" if study.imagined else "the data it is given or draws"
    yield f"Scale {study.scale.name}, {data}, a batch shared by {_count(devices, 'device')}."
    for name in study.tables:
        yield ""
        yield from _table(study, TABLES[name], works, devices, hours)
    yield ""
    yield from _totals(study, cells, works, devices, hours)
    yield ""
    notes = [*NOTES]
    if rate is not None:
        notes.append(
            f"hours: at {rate:g} images/s of MoCo-v2's pretraining, other runs by their FLOP."
        )
    if left_out := sorted(study.left_out()):
        notes.append(f"Left out: what needs {', '.join(left_out)}.")
    for note in (*notes, *_warnings(study, cells)):
        yield from textwrap.wrap(note, 100, subsequent_indent="  ")


def _hours_a_flop(study: Planned, rate: float) -> float:
    row = study.scale.apply(MOCO_V2)
    image = 2 * passes(row) * counting.macs(row.arguments["encoder"], row.size, row.size)
    return 1 / (3600 * rate * image)


# --- A table


def _table(
    study: Planned, table: Table, works: Mapping[str, Work], devices: int, hours: float | None
) -> Iterator[str]:
    """Of one run of every row: what it does, then what it holds."""
    yield table.title
    yield _line("", "images", "steps", "seen", "FLOP", "transfers", "hours" if hours else "")
    held = [_line("", "K", "queue", "logits", "dense", "gathered", "checkpoint")]
    for row in study.rows_of(table):
        own = study.cells_of(table, row, seed=0)
        first = works[own.pop("pretrain").key]
        after = sum((works[cell.key] for cell in own.values()), Work())
        run = study.scale.apply(row.pretraining)
        size = study.pretrained_on(run.data).size
        yield _line(
            row.label,
            short(size.images) if run.trains else "-",
            short(first.steps),
            short(first.images),
            short(first.flops),
            short(after.flops),
            _hours(first.flops + after.flops, hours),
        )
        found = memory(run, size, devices)
        if run.trains:
            queue = run.arguments.get("queue_size")
            held.append(_line(row.label, f"{queue:,}" if queue else "-", *_bytes(found)))
    yield from held if len(held) > 1 else ()


def _bytes(found: Memory) -> Sequence[str]:
    shown = (found.queue, found.logits, found.dense, found.gathered, found.checkpoint)
    return [in_bytes(value) if value else "-" for value in shown]


# --- In all


def _totals(
    study: Planned,
    cells: Sequence[Cell],
    works: Mapping[str, Work],
    devices: int,
    hours: float | None,
) -> Iterator[str]:
    """By kind, and what the largest run holds."""
    yield f"In all, {_count(study.seeds, 'run')} of every row; what rows share counts once"
    yield _line("", "runs", "steps", "seen", "FLOP", "hours" if hours else "")
    counts = Counter(cell.kind for cell in cells)
    done = {kind: Work() for kind in counts}
    for cell in cells:
        done[cell.kind] += works[cell.key]
    together = sum(done.values(), Work())
    for kind, (count, all_of) in {
        **{kind: (counts[kind], done[kind]) for kind in counts},
        "in all": (len(cells), together),
    }.items():
        steps, seen, flops = map(short, (all_of.steps, all_of.images, all_of.flops))
        yield _line(kind, f"{count:,}", steps, seen, flops, _hours(all_of.flops, hours))
    made = [cell for cell in cells if cell.kind == "pretrain"]
    found = [memory(cell.row, study.pretrained_on(cell.row.data).size, devices) for cell in made]
    most = Memory(*(max(values) for values in zip(*map(_values, found), strict=True)))
    yield _line("", "", "queue", "logits", "dense", "gathered", "checkpoint")
    yield _line("the most of a run", "", *_bytes(most))
    left = sum(
        held.encoder * (1 + len(set(map(cell.row.kept_epoch, cell.row.keep))))
        for held, cell in zip(found, made, strict=True)
    )
    every = 2 * sum(held.checkpoint for held in found)  # the one before it is kept
    yield (
        f"  On disk: {in_bytes(left)} of encoders; {in_bytes(every)} of checkpoints, two each, "
        "if all are under way at once."
    )


def _values(found: Memory) -> Sequence[int]:
    return list(vars(found).values())


def _warnings(study: Planned, cells: Sequence[Cell]) -> Iterator[str]:
    """Of each queue that is near the images it is filled from, or larger."""
    near: dict[tuple[str, int, str], dict[str, None]] = {}
    for row in (cell.row for cell in cells if cell.kind == "pretrain"):
        queue = row.arguments.get("queue_size", 0)
        if queue >= NEAR * study.pretrained_on(row.data).size.images:
            near.setdefault((row.data, queue, row.arguments["exclude"]), {})[row.name] = None
    for (data, queue, exclude), names in near.items():
        images = study.pretrained_on(data).size.images
        counted = {
            "none": "count as its negatives",
            "image": "are left out by their indices",
            "label": "are left out with their class",
        }[exclude]
        yield (
            f"Warning: K = {queue:,} is {queue / images:.0%} of the {images:,} images of {data}: "
            f"earlier keys of a query's own image {counted} ({', '.join(names)})."
        )


# --- Text


def _line(label: str, *values: str) -> str:
    if len(label) > LABEL:
        label = label[: LABEL - 1] + "…"
    return f"  {label:{LABEL}}" + "".join(f"{value:>11}" for value in values).rstrip()


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number > 1)}"


def _hours(flops: int, hours: float | None) -> str:
    if hours is None:
        return ""
    found = flops * hours
    return f"{found:,.0f}" if found >= 10 else f"{found:.2g}"


def short(number: float) -> str:
    """To three digits, in powers of 1,000.

    >>> short(999), short(1_000_800), short(8.4e18)
    ('999', '1.00 M', '8.40 E')
    """
    return _scaled(number, 1000, ("", "k", "M", "G", "T", "P", "E", "Z", "Y"))


def in_bytes(number: float) -> str:
    """To three digits, in powers of 1,024.

    >>> in_bytes(512), in_bytes(2**29)
    ('512 B', '512 MiB')
    """
    return _scaled(number, 1024, ("B", "KiB", "MiB", "GiB", "TiB", "PiB"))


def _scaled(number: float, base: int, units: Sequence[str]) -> str:
    power = 0
    while number >= base - 0.5 and power < len(units) - 1:
        number, power = number / base, power + 1
    digits = 0 if number >= 99.95 or not power else 1 if number >= 9.995 else 2
    return f"{number:.{digits}f} {units[power]}".rstrip()
