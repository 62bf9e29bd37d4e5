"""From tables to cells: which runs a study needs, each under a key made of its content."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

from goodtransfer.study import whole
from goodtransfer.study.checks import check_choices, check_micro_batches
from goodtransfer.study.protocol import GIVEN, Pretraining, deviations, given
from goodtransfer.study.scales import SCALES, Scale
from goodtransfer.study.sources import (
    ENCODERS,
    ROOTS,
    SOURCES,
    VOC2007,
    Found,
    find,
    find_classes,
    toy_classes,
    toy_source,
)
from goodtransfer.study.tables import CARD, PUBLISHED, TABLES, Row, Table, published
from goodtransfer.study.transfers import PAPER, TRANSFERS

# Choices that a user makes of data of their own.
_OWN = ("classes", "tasks", "voc_classes")
# The name of those classes among what was found.
CHOSEN = "chosen classes"
# Raise by hand when a change of the code changes results: it is part of every key.
PROTOCOL_VERSION = 6


class Given(NamedTuple):
    """An encoder that a user holds.

    Attributes:
        source: where it was read from.
        encoder: name of its network.
        digest: of its weights, and the name of their copy in the study's folder.
    """

    source: str
    encoder: str
    digest: str


@dataclass(frozen=True)
class Cell:
    """A run as the study executes it.

    Attributes:
        key: hash of everything below that decides the result.
        kind: ``"pretrain"``, or one of ``TRANSFERS``.
        row: the pretraining at the study's scale.
        fidelity: how it deviates from the paper, by itself.
        seed: of initialisation, order and views.
        needs: keys of the cells that come before.
        epoch: of the pretraining, whose encoder is measured; None is the last.

    >>> Cell("0123456789abcdef", "linear", Pretraining(), fidelity="", seed=0, epoch=10).title
    'MoCo-v2 K=65536 τ=0.2 · epoch 10 · linear · seed 0'
    """

    key: str
    kind: str
    row: Pretraining
    fidelity: str
    seed: int
    needs: tuple[str, ...] = ()
    epoch: int | None = None

    @property
    def title(self) -> str:
        """One line for bars and lists."""
        epoch = "" if self.epoch is None else f" · epoch {self.epoch}"
        return f"{self.row.title}{epoch} · {self.kind} · seed {self.seed}"


@dataclass(frozen=True)
class Study:
    """A folder of results: the choice of scale, data and tables that it holds.

    Attributes:
        out: holds ``study.json``, ``results/<key>/``, ``work/<key>/`` and ``report.html``.
        scale: one for the whole folder.
        roots: the user's folders, by name in ``ROOTS``; the scale's toy world is drawn for others.
        voc_splits: of VOC, to train and to test on.
        tables: names among ``TABLES``; when opened, ``all`` is every one of the paper's.
        seeds: how many runs of every row.
        classes: folders of the user's images that are pretrained on; none for all.
        tasks: kinds of transfer among ``TRANSFERS`` that are measured; none for a table's own.
        voc_classes: names in the annotations of the user's VOCdevkit, where they are not VOC's.
        encoders: that the user holds, by label: the rows of table ``card``.
        found: what a run saw in the user's folders, which are not looked into then.

    Raises:
        FileNotFoundError: when opened, for a folder without a study.
        ValueError: when opened, for choices that do not go together; the message names them.

    >>> from goodtransfer.study.scales import SCALES
    >>> study = Study(Path("results"), SCALES["smoke"], tables=("supervised",))
    >>> [cell.kind for cell in study.cells()]
    ['pretrain', 'linear', 'voc07', 'coco', 'city']
    """

    out: Path
    scale: Scale
    roots: Mapping[str, Path] = field(default_factory=dict)
    voc_splits: tuple[str, str] = VOC2007
    tables: tuple[str, ...] = ("3", "supervised")
    seeds: int = 1
    classes: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    voc_classes: tuple[str, ...] = ()
    encoders: Mapping[str, Given] = field(default_factory=dict)
    found: Mapping[str, Found] = field(default_factory=dict)

    @classmethod
    def open(cls, out: Path, **given: Any) -> Self:
        """The study of a folder, new or as it was, with what was given instead.

        Args:
            out: the folder.
            given: attributes by name; the scale by its own, each root by its name in ``ROOTS``; and
                ``micro_batches``, of a detector's step. None is as it was.

        Raises:
            FileNotFoundError: for a folder without a study, when no scale is given.
            ValueError: for another scale or data root than the folder's, or one that is needed.
        """
        known = _known(out / "study.json")
        given = {k: _as_saved(k, value) for k, value in given.items() if value is not None}
        if "scale" not in {**known, **given}:
            raise FileNotFoundError(
                f"Expected a study in {out} (study.json), but there is none: begin one with "
                f"`goodtransfer study run --scale smoke --out {out}`."
            )
        for name in ("scale", "voc_splits", "classes", "voc_classes", *ROOTS):
            if name in given and name in known and given[name] != known[name]:
                raise ValueError(
                    f"Expected one {name} in a study, but {out} has {known[name]!r} and "
                    f"{given[name]!r} was asked for: use another --out."
                )
        settings = {**known, **given}
        if "all" in settings.get("tables", ()):
            settings["tables"] = list(PUBLISHED)
        if settings["scale"] not in SCALES:
            raise ValueError(
                f"Expected scale to be one of {', '.join(SCALES)}, but got {settings['scale']!r}."
            )
        unknown = [t for t in settings.get("tables", ()) if t not in TABLES]
        if unknown:
            raise ValueError(f"Expected tables among {', '.join(TABLES)}, but got {unknown}.")
        scale, parts = SCALES[settings["scale"]], settings.get("micro_batches", 1)
        check_micro_batches(scale, parts)
        scale = replace(scale, micro_batches=parts)
        seeds = settings.get("seeds", 1)
        if seeds < 1:
            raise ValueError(f"Expected at least one seed, but got {seeds}.")
        roots = {name: Path(settings[name]) for name in ROOTS if name in settings}
        splits = tuple(settings.get("voc_splits", VOC2007))
        names: dict[str, Any] = {name: tuple(settings.get(name, ())) for name in _OWN}
        tables = tuple(settings.get("tables") or scale.tables)
        held = {label: Given(*of) for label, of in settings.get("encoders", {}).items()}
        study = cls(out, scale, roots, splits, tables, seeds, **names, encoders=held)
        if "tables" not in settings:  # those that there are images for, and never none
            named = [t for t in study.tables[1:] if not study._lacks(t)]
            study = replace(study, tables=(study.tables[0], *named))
        if {CARD in study.tables, *(t == CARD for t in known.get("tables", ()))} == {True, False}:
            raise ValueError(
                f"Expected a folder of its own for a report card, but {out} has tables "
                f"{', '.join(known['tables'])}: use another --out."
            )
        if CARD in study.tables and not held:
            raise ValueError(
                f"Expected encoders for table {CARD}, but got none: begin with `goodtransfer card "
                f"ENCODER --out {out}`."
            )
        for table in study.tables:
            if lacking := study._lacks(table):
                option, holds = ROOTS[SOURCES[lacking].root]
                raise ValueError(
                    f"Expected {option} ROOT at scale {scale.name} for table {table}: a folder with "
                    f"{holds} (only the smoke scale draws its own images)."
                )
        check_choices(study)
        return study

    def _lacks(self, table: str) -> str | None:
        """A data set of a table none of whose rows has images."""
        needed = [row.pretraining.data for row in self.all_rows(TABLES[table])]
        return None if any(map(self.root, needed)) else needed[0]

    def save(self) -> None:
        """Write ``study.json``, so that `study cell`, `list` and `report` know the rest."""
        if not self.saved():
            self.out.mkdir(parents=True, exist_ok=True)
            whole.write(self.file, self._text())

    def saved(self) -> bool:
        """Whether ``study.json`` holds this very choice."""
        return self.file.is_file() and self.file.read_text("utf-8") == self._text()

    def _text(self) -> str:
        settings = {"scale": self.scale.name, "tables": self.tables, "seeds": self.seeds}
        if self.scale.micro_batches > 1:
            settings["micro_batches"] = self.scale.micro_batches
        settings |= {name: str(root) for name, root in self.roots.items()}
        if "voc" in self.roots:
            settings["voc_splits"] = self.voc_splits
        settings |= {name: given for name in (*_OWN, "encoders") if (given := getattr(self, name))}
        return json.dumps(settings, indent=2) + "\n"

    @property
    def file(self) -> Path:
        """What the folder remembers of its choices."""
        return self.out / "study.json"

    def drawn(self, data: str) -> bool:
        """Whether a data set is the toy world's."""
        root = SOURCES[data].root
        return root not in self.roots and root in self.scale.toy

    def own(self, data: str) -> bool:
        """Whether a data set is in a folder that the user named."""
        return SOURCES[data].root in self.roots

    def root(self, data: str) -> Path | None:
        """Where the images of a data set are, or will be drawn; None where there are none."""
        root = SOURCES[data].root
        if root == ENCODERS:
            return self.out / root
        return self.out / "toy" / root if self.drawn(data) else self.roots.get(root)

    def source(self, data: str) -> Found:
        """What tells a data set from others, what to call it, and how much it holds."""
        if data in self.found:
            return self.found[data]
        if self.drawn(data):
            return toy_source(data, self.scale.toy[SOURCES[data].root])
        if data == GIVEN:
            return find(data, self.out / ENCODERS, ())
        found = find(data, self.roots[SOURCES[data].root], self.voc_splits)
        if SOURCES[data].root == "voc" and self.voc_classes:
            return found._replace(identity=[found.identity, self.voc_classes])
        return found

    def pretrained_on(self, data: str) -> Found:
        """The same of what a pretraining sees: the chosen classes, where they are of this data set."""
        if data != "imagenet" or not self.classes:
            return self.source(data)
        classes = tuple(sorted(set(self.classes)))
        if self.drawn(data):
            return toy_classes(self.scale.toy[data], classes)
        if CHOSEN in self.found:
            return self.found[CHOSEN]
        return find_classes(self.roots[data], classes)

    def rows(self) -> Iterator[tuple[Table, Row]]:
        """Table by table, top to bottom."""
        for name in self.tables:
            for row in self.rows_of(TABLES[name]):
                yield TABLES[name], row

    def rows_of(self, table: Table) -> list[Row]:
        """Those whose images were named, or are drawn."""
        return [r for r in self.all_rows(table) if self.root(r.pretraining.data) is not None]

    def all_rows(self, table: Table) -> Sequence[Row]:
        """Those of the paper, or of the report card the encoders that the user holds."""
        if table.name != CARD:
            return table.rows
        return [
            Row(label, given(label, of.encoder, of.digest), published(of.source))
            for label, of in self.encoders.items()
        ]

    def left_out(self) -> set[str]:
        """Options that would add rows or columns to these tables."""
        tables = [TABLES[name] for name in self.tables]
        wanted = {row.pretraining.data for t in tables for row in self.all_rows(t)} | {
            TRANSFERS[kind].data for t in tables for kind in self.kinds(t)
        }
        return {ROOTS[SOURCES[data].root][0] for data in wanted if self.root(data) is None}

    def kinds(self, table: Table) -> list[str]:
        """The transfers that a table is made of, whether or not there are images.

        Unasked, nothing is drawn beside a user's own folders for a table that has ``tasks``.
        """
        asked = list(self.tasks or table.tasks or TRANSFERS)
        if table.tasks and self.roots and not self.tasks:
            asked = [kind for kind in asked if not self.drawn(TRANSFERS[kind].data)]
        return [kind for kind in TRANSFERS if kind in asked and table.measures(kind)]

    def cells(self) -> list[Cell]:
        """Every run once, each after what it needs."""
        found: dict[str, Cell] = {}
        for table, row in self.rows():
            for seed in range(self.seeds):
                for cell in self.cells_of(table, row, seed).values():
                    found.setdefault(cell.key, cell)
        return list(found.values())

    def cells_of(self, table: Table, row: Row, seed: int) -> dict[str, Cell]:
        """By kind: a row's pretraining, and the transfers that the table's columns want."""
        run = self.scale.apply(row.pretraining)
        paper, ours = row.pretraining.values(), run.values()
        if run.trains:  # run.py makes a cell on one device; BN there is in groups
            paper, ours = paper | {"devices": 8}, ours | {"devices": 1}
        cells = {"pretrain": self._cell("pretrain", run, seed, run.data, paper, ours)}
        epoch = None if row.kept is None else run.kept_epoch(row.kept)
        for kind in self.kinds(table):
            transfer = TRANSFERS[kind]
            if self.root(transfer.data) is None:
                continue
            if transfer.maps and run.arguments["encoder"].startswith("pixels"):
                continue  # nothing to detect with
            paper, ours = PAPER[kind].values(), self.scale.protocol(kind).values()
            needs = (cells["pretrain"].key,)
            cells[kind] = self._cell(kind, run, seed, transfer.data, paper, ours, needs, epoch)
        return cells

    def _cell(
        self,
        kind: str,
        row: Pretraining,
        seed: int,
        data: str,
        paper: dict[str, Any],
        ours: dict[str, Any],
        needs: Sequence[str] = (),
        epoch: int | None = None,
    ) -> Cell:
        source = self.pretrained_on(data) if kind == "pretrain" else self.source(data)
        identity = {
            "version": PROTOCOL_VERSION,
            "kind": kind,
            "scale": self.scale.name,
            "data": source.identity,
            "seed": seed,
            "encoder": needs or None,
            "epoch": epoch,
            "run": ours,
        }
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        named = {"data": SOURCES[data].paper}, {"data": source.text}
        fidelity = deviations({**paper, **named[0]}, {**ours, **named[1]})
        return Cell(digest[:16], kind, row, fidelity, seed, tuple(needs), epoch)


def _known(file: Path) -> dict[str, Any]:
    """The choices of a folder; none of a new one."""
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text("utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"Expected a study's choices in {file}, but it was changed or cut off ({error}): delete it "
            "and give the options of `study run` once more; finished cells are kept."
        ) from None


def _as_saved(name: str, value: Any) -> Any:
    """A choice as ``study.json`` has it, to compare with what is there; classes have no order."""
    if name == "classes":
        return sorted(set(value))
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value
