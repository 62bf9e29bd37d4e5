"""From tables to cells: which runs a study needs, each under a key made of its content."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from goodtransfer.data import toy, toy_voc
from goodtransfer.data.fingerprint import Fingerprint, VOCFingerprint, fingerprint, voc_fingerprint
from goodtransfer.study.protocol import SCALES, VOC07, Linear, Pretraining, Scale, deviations
from goodtransfer.study.tables import TABLES, Row, Table

IMAGENET = "1,281,167 images of 1,000 classes"
VOC2007 = ("2007/trainval", "2007/test")

# Raise by hand when a change of the code changes results: it is part of every key.
PROTOCOL_VERSION = 3

# Which column each kind of transfer measures.
TASKS = {"acc": "linear", "voc07_AP": "voc07"}


@dataclass(frozen=True)
class Cell:
    """A run as the study executes it.

    Attributes:
        key: hash of everything below that decides the result.
        kind: ``"pretrain"``, ``"linear"`` or ``"voc07"``.
        row: the pretraining at the study's scale.
        fidelity: how it deviates from the paper, by itself.
        seed: of initialisation, order and views.
        needs: keys of the cells that come before.
    """

    key: str
    kind: str
    row: Pretraining
    fidelity: str
    seed: int
    needs: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """One line for bars and lists."""
        queue, tau = (self.row.arguments.get(k) for k in ("queue_size", "temperature"))
        detail = f" K={queue} τ={tau}" if queue else ""
        return f"{self.row.name}{detail} · {self.kind} · seed {self.seed}"


@dataclass(frozen=True)
class Study:
    """A folder of results: the choice of scale, data and tables that it holds.

    Attributes:
        out: holds ``study.json``, ``results/<key>/``, ``work/<key>/`` and ``report.html``.
        scale: one for the whole folder.
        data: root of an ImageNet-like folder; None for the scale's toy world.
        voc: root of a VOCdevkit; None for the scale's toy world, or for no detection.
        voc_splits: of it, to train and to test on.
        tables: names among ``TABLES``.
        seeds: how many runs of every row.
    """

    out: Path
    scale: Scale
    data: Path | None = None
    voc: Path | None = None
    voc_splits: tuple[str, str] = VOC2007
    tables: tuple[str, ...] = ("3", "supervised")
    seeds: int = 1

    @classmethod
    def open(cls, out: Path, **given: Any) -> "Study":
        """The study of a folder, new or as it was, with what was given instead.

        Raises:
            FileNotFoundError: for a folder without a study, when no scale is given.
            ValueError: for another scale or data root than the folder's, or one that is needed.
        """
        file = out / "study.json"
        known = json.loads(file.read_text()) if file.is_file() else {}
        given = {name: value for name, value in given.items() if value is not None}
        if "scale" not in {**known, **given}:
            raise FileNotFoundError(
                f"Expected a study in {out} (study.json), but there is none: begin one with "
                f"`goodtransfer study run --scale smoke --out {out}`."
            )
        for name in ("scale", "data", "voc", "voc_splits"):
            if name in given and name in known and given[name] != known[name]:
                raise ValueError(
                    f"Expected one {name} in a study, but {out} has {known[name]!r} and "
                    f"{given[name]!r} was asked for: use another --out."
                )
        settings = {**known, **given}
        if settings["scale"] not in SCALES:
            raise ValueError(
                f"Expected scale to be one of {', '.join(SCALES)}, but got {settings['scale']!r}."
            )
        unknown = [t for t in settings.get("tables", ()) if t not in TABLES]
        if unknown:
            raise ValueError(f"Expected tables among {', '.join(TABLES)}, but got {unknown}.")
        scale, data = SCALES[settings["scale"]], settings.get("data")
        if scale.toy is None and data is None:
            raise ValueError(
                f"Expected --data ROOT at scale {scale.name}: a folder with train/CLASS/*.jpg and "
                "val/CLASS/*.jpg (only the smoke scale draws its own images)."
            )
        tables, seeds = tuple(settings.get("tables") or scale.tables), settings.get("seeds", 1)
        if seeds < 1:
            raise ValueError(f"Expected at least one seed, but got {seeds}.")
        voc, splits = settings.get("voc"), tuple(settings.get("voc_splits", VOC2007))
        return cls(out, scale, data and Path(data), voc and Path(voc), splits, tables, seeds)

    def save(self) -> None:
        """Write ``study.json``, so that `study cell`, `list` and `report` know the rest."""
        self.out.mkdir(parents=True, exist_ok=True)
        settings = {"scale": self.scale.name, "tables": self.tables, "seeds": self.seeds}
        if self.data is not None:
            settings["data"] = str(self.data)
        if self.voc is not None:
            settings |= {"voc": str(self.voc), "voc_splits": self.voc_splits}
        temporary = self.out / "study.json.tmp"
        temporary.write_text(json.dumps(settings, indent=2) + "\n")
        os.replace(temporary, self.out / "study.json")

    @property
    def data_root(self) -> Path:
        """Where the images are, or will be."""
        return self.out / "toy" if self.data is None else self.data

    def _data(self) -> tuple[Any, str]:
        """What tells the data set from others, and what to call it."""
        if self.data is None:
            return {"toy": toy.VERSION, **(self.scale.toy or {})}, "toy world"
        found = _fingerprint(self.data)
        size = f"{found.images:,} images of {found.classes:,} classes"
        return found.digest, "ImageNet" if size == IMAGENET else f"{self.data.name}, {size}"

    @property
    def voc_root(self) -> Path | None:
        """Where the detection images are, or will be; None where there is no detection."""
        return self.out / "toy_voc" if self.voc is None and self.scale.toy_voc else self.voc

    def _voc(self) -> tuple[Any, str]:
        """As :meth:`_data`, of the detection images."""
        if self.voc is None:
            version = (toy.VERSION, toy_voc.VERSION)
            return {"toy": version, **(self.scale.toy_voc or {})}, "toy world"
        found = _voc_fingerprint(self.voc, self.voc_splits)
        train, test = (
            f"{count:,} of {name}"
            for count, name in zip(found.images, self.voc_splits, strict=True)
        )
        return found.digest, f"{train}, {test}"

    def rows(self) -> Iterator[tuple[Table, Row]]:
        """Table by table, top to bottom."""
        for name in self.tables:
            for row in TABLES[name].rows:
                yield TABLES[name], row

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
        if run.method != "none":  # run.py makes a cell on one device; BN there is in groups
            paper, ours = paper | {"devices": 8}, ours | {"devices": 1}
        differs = deviations(paper | {"data": "ImageNet"}, ours | {"data": self._data()[1]})
        cells = {
            "pretrain": self._cell("pretrain", run, differs, seed, self._data()[0], run.values())
        }
        for kind in (kind for column, kind in TASKS.items() if column in table.columns):
            if kind == "linear":
                data, paper, ours = self._data()[0], asdict(Linear()), asdict(self.scale.linear)
            elif self.voc_root is None or run.arguments["encoder"].startswith("pixels"):
                continue  # nothing to detect in, or nothing to detect with
            else:
                data, name = self._voc()
                paper = VOC07().values() | {"data": "5,011 of 2007/trainval, 4,952 of 2007/test"}
                ours = self.scale.voc07.values() | {"data": name}
            needs = (cells["pretrain"].key,)
            content = {"encoder": needs[0], **ours}
            cells[kind] = self._cell(kind, run, deviations(paper, ours), seed, data, content, needs)
        return cells

    def _cell(
        self,
        kind: str,
        row: Pretraining,
        fidelity: str,
        seed: int,
        data: Any,
        content: dict[str, Any],
        needs: Sequence[str] = (),
    ) -> Cell:
        identity = {
            "version": PROTOCOL_VERSION,
            "kind": kind,
            "scale": self.scale.name,
            "data": data,
            "seed": seed,
            **content,
        }
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        return Cell(digest[:16], kind, row, fidelity, seed, tuple(needs))


@cache
def _fingerprint(root: Path) -> Fingerprint:
    return fingerprint(root)


@cache
def _voc_fingerprint(root: Path, splits: tuple[str, str]) -> VOCFingerprint:
    return voc_fingerprint(root, splits)
