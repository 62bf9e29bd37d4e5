"""From tables to cells: which runs a study needs, each under a key made of its content."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from goodtransfer.data import toy
from goodtransfer.data.fingerprint import Fingerprint, fingerprint
from goodtransfer.study.protocol import SCALES, Linear, Pretraining, Scale, deviations
from goodtransfer.study.tables import TABLES, Row, Table

IMAGENET = "1,281,167 images of 1,000 classes"

# Raise by hand when a change of the code changes results: it is part of every key.
PROTOCOL_VERSION = 1


@dataclass(frozen=True)
class Cell:
    """A run as the study executes it.

    Attributes:
        key: hash of everything below that decides the result.
        kind: ``"pretrain"`` or ``"linear"``.
        row: the pretraining at the study's scale.
        fidelity: how it deviates from the paper.
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
        tables: names among ``TABLES``.
        seeds: how many runs of every row.
    """

    out: Path
    scale: Scale
    data: Path | None = None
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
        for name in ("scale", "data"):
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
        return cls(out, scale, data and Path(data), tables, seeds)

    def save(self) -> None:
        """Write ``study.json``, so that `study cell`, `list` and `report` know the rest."""
        self.out.mkdir(parents=True, exist_ok=True)
        settings = {"scale": self.scale.name, "tables": self.tables, "seeds": self.seeds}
        if self.data is not None:
            settings["data"] = str(self.data)
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

    def rows(self) -> Iterator[tuple[Table, Row]]:
        """Table by table, top to bottom."""
        for name in self.tables:
            for row in TABLES[name].rows:
                yield TABLES[name], row

    def cells(self) -> list[Cell]:
        """Every run once, each after what it needs."""
        found: dict[str, Cell] = {}
        for _, row in self.rows():
            for seed in range(self.seeds):
                for cell in self.cells_of(row.pretraining, seed):
                    found.setdefault(cell.key, cell)
        return list(found.values())

    def cells_of(self, pretraining: Pretraining, seed: int) -> tuple[Cell, Cell]:
        """A row's pretraining and its readout."""
        row = self.scale.apply(pretraining)
        paper, ours = pretraining.values(), row.values()
        if row.method != "none":  # run.py makes a cell on one device; BN there is in groups
            paper, ours = paper | {"devices": 8}, ours | {"devices": 1}
        fidelity = deviations(paper | {"data": "ImageNet"}, ours | {"data": self._data()[1]})
        first = self._cell("pretrain", row, fidelity, seed, row.values())
        readout = asdict(self.scale.linear)
        paper_readout = deviations(asdict(Linear()), readout)
        fidelity = "; ".join(
            part if label == "" else f"{label}: {part}"
            for label, part in (("", fidelity), ("readout", paper_readout))
            if part != "as in the paper"
        )
        content = {"encoder": first.key, **readout}
        needs = (first.key,)
        return first, self._cell("linear", row, fidelity or "as in the paper", seed, content, needs)

    def _cell(
        self,
        kind: str,
        row: Pretraining,
        fidelity: str,
        seed: int,
        content: dict[str, Any],
        needs: Sequence[str] = (),
    ) -> Cell:
        identity = {
            "version": PROTOCOL_VERSION,
            "kind": kind,
            "scale": self.scale.name,
            "data": self._data()[0],
            "seed": seed,
            **content,
        }
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        return Cell(digest[:16], kind, row, fidelity, seed, tuple(needs))


@cache
def _fingerprint(root: Path) -> Fingerprint:
    return fingerprint(root)
