"""A folder of inverted images: pictures, numbers and figures, gone on with where it was left."""

import hashlib
import json
import logging
import os
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from goodtransfer.analysis.inversion import EVERY, LR, SIZE, STEPS, Search, invert
from goodtransfer.analysis.inversion_figures import Panel, grid, percent, scatter, table
from goodtransfer.analysis.perceptual import LPIPS, scores, win_rate
from goodtransfer.encoders import Encoder

log = logging.getLogger(__name__)

_ROWS = 8  # images in the grid
_PAPER = {"stage": 5, "steps": STEPS, "lr": LR, "size": SIZE, "images": 1000}

Job = tuple[str, str]  # encoder, image


class Gallery:
    """Every image inverted by every encoder, in ``out``.

    ``ENCODER/IMAGE.png`` are the pictures, ``ENCODER/IMAGE_steps/`` shows how they came to be, and
    ``original/IMAGE.png`` what they should look like. ``results.json`` holds the images, their seeds
    and every number; ``table.md`` the means; ``figure2.png`` the first images; ``figure6.png`` each
    image's distance for the first encoder against every other one.

    A picture depends on its encoder, its image with its name, and the settings alone. Those that
    ``out`` holds already are not made again.

    Args:
        out: folder.
        encoders: by the names of their columns.
        images: RGB (3, H, W), uint8, by name; a slash in it is a folder.
        stage: whose map is inverted.
        steps: updates of each search, by Adam.
        lr: its learning rate.
        seed: with the image's name it gives the image's own.
        about: kept in ``results.json``, such as where the images come from.

    Raises:
        ValueError: for a folder whose ``results.json`` cannot be read; while it is filled, as
            :func:`invert`.
    """

    def __init__(
        self,
        out: Path,
        encoders: Mapping[str, Encoder],
        images: Mapping[str, Tensor],
        *,
        stage: int = 5,
        steps: int = STEPS,
        lr: float = LR,
        seed: int = 0,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.out, self.encoders, self.images = out, encoders, images
        self.stage, self.steps, self.lr, self.about = stage, steps, lr, dict(about or {})
        size = max(int(side) for image in images.values() for side in image.shape[1:])
        self.settings = {"stage": stage, "steps": steps, "lr": lr, "size": size, "seed": seed}
        self.seeds = {name: zlib.crc32(f"{seed}/{name}".encode()) for name in images}
        self.keys = self._keys()
        self.lpips, self.note = _lpips()
        self.found = self._read()
        for name, image in images.items():
            _save(image, self.path("original", name))
        self._write()

    def path(self, label: str, name: str) -> Path:
        """Where the picture of an image is."""
        return self.out / label / f"{name}.png"

    def missing(self) -> list[Job]:
        """Encoder and image of what is not made yet, an image by all encoders before the next one."""
        return [job for job in self.keys if job not in self.found]

    def fill(self, *, device: str = "auto", every: int = EVERY, progress: bool = True) -> None:
        """Make what is missing.

        Args:
            device: of torch; ``"auto"`` is CUDA where there is some.
            every: updates between two previews, and two states to go on from.
            progress: show a bar.
        """
        from tqdm import tqdm

        jobs = self.missing()
        total = len(jobs) * self.steps
        with tqdm(total=total, unit="step", mininterval=1, disable=not (progress and jobs)) as bar:
            for number, job in enumerate(jobs):
                bar.set_description(", ".join(job))
                self._make(job, device, every, bar, number * self.steps)
        self._draw_scatter()

    def _make(self, job: Job, device: str, every: int, bar: Any, before: int) -> None:
        (label, name), path = job, self.path(*job)
        steps = path.with_name(f"{path.stem}_steps")

        def watch(search: Search) -> None:
            done = len(search.losses)
            bar.update(before + done - bar.n)
            if done % every == 0:
                bar.set_postfix(loss=f"{float(search.losses[-1]):.3g}", refresh=False)
                _save(search.picture(), steps / f"{done:05d}.png")

        checkpoint = path.with_suffix(".partial")
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        if not checkpoint.exists():  # previews of other settings, seeds or weights
            shutil.rmtree(steps, ignore_errors=True)
        made = invert(
            self.encoders[label], self.images[name], stage=self.stage, steps=self.steps, lr=self.lr,
            seed=self.seeds[name], device=device, checkpoint=checkpoint, every=every, watch=watch,
        )  # fmt: skip
        _save(made.picture, path)
        self.found[job] = {"loss": float(made.losses[-1]), **self._scores(job)}
        self._write()
        checkpoint.unlink()

    def _scores(self, job: Job) -> dict[str, float]:
        return scores(read(self.path(*job)), self.images[job[1]], self.lpips)

    # --- What is known

    def _keys(self) -> dict[Job, str]:
        """What each picture depends on, in a few letters."""
        made = {}
        weights = {label: _digest(encoder) for label, encoder in self.encoders.items()}
        for name, image in self.images.items():
            content = hashlib.sha256(image.numpy().tobytes()).hexdigest()
            for label in self.encoders:
                parts = [weights[label], content, self.settings, self.seeds[name]]
                made[label, name] = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
        return made

    def _read(self) -> dict[Job, dict[str, float]]:
        """The numbers of the pictures that are there, with distances if they had to wait."""
        file, found = self.out / "results.json", {}
        try:
            entries = json.loads(file.read_text(encoding="utf-8"))["inversions"]
        except FileNotFoundError:
            return {}
        except (NotADirectoryError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"Expected a folder that is new, or holds inversions, but cannot read {file} "
                f"({type(error).__name__}: {error}): take another folder."
            ) from error
        for entry in entries:
            job, key = (entry.pop("encoder"), entry.pop("image")), entry.pop("key")
            if self.keys.get(job) == key and self.path(*job).exists():
                waits = self.lpips is not None and "lpips" not in entry
                found[job] = {**entry, **self._scores(job)} if waits else entry
        return found

    def _write(self) -> None:
        """All but the pictures and the scatter."""
        entries = [
            {"encoder": job[0], "image": job[1], "key": self.keys[job], **self.found[job]}
            for job in self.keys
            if job in self.found
        ]
        seeds = [{"image": name, "seed": seed} for name, seed in self.seeds.items()]
        results = {"settings": self.settings, "fidelity": self.fidelity(), "images": seeds}
        text = json.dumps({**results, **self.about, "inversions": entries}, indent=2)
        aside = self.out / "results.json.tmp"
        aside.write_text(text + "\n", encoding="utf-8")
        os.replace(aside, self.out / "results.json")
        (self.out / "table.md").write_text(self.table(), encoding="utf-8")
        self._draw_grid()

    # --- What is shown

    def table(self) -> str:
        """Means, who is nearer, what could not be measured, and what differs from the paper."""
        known = {
            label: [self.found[label, name] for name in self.images if (label, name) in self.found]
            for label in self.encoders
        }
        lines = [table(known)]
        (first, a), *others = self._distances().items()
        for other, b in others if a else ():
            share = percent(win_rate(a, b))
            lines.append(f"{first} is nearer than {other} on {share}, by LPIPS uncalibrated.\n")
        if self.note:
            lines.append(f"LPIPS is not measured. {self.note}\n")
        return "\n".join([*lines, f"Other than in the paper: {self.fidelity()}.\n"])

    def fidelity(self) -> str:
        """What differs from the paper."""
        here = {**self.settings, "images": len(self.images)}
        parts = [
            f"{name} {here[name]:g} instead of {value:g}"
            for name, value in _PAPER.items()
            if here[name] != value
        ]
        return "; ".join([*parts, "pictures saved without loss instead of as JPEG"])

    def _distances(self) -> dict[str, list[float]]:
        """Uncalibrated, by encoder, of the images that all encoders have one of."""
        by_job = {job: s["lpips_uncalibrated"] for job, s in self.found.items() if "lpips" in s}
        whole = [n for n in self.images if all((label, n) in by_job for label in self.encoders)]
        return {label: [by_job[label, name] for name in whole] for label in self.encoders}

    def _draw_grid(self) -> None:
        shown = list(self.images)[:_ROWS]
        columns = {"original": [Panel(self.images[name], name) for name in shown]}
        for label in self.encoders:
            columns[label] = [self._panel((label, name)) for name in shown]
        grid(columns).save(self.out / "figure2.png")

    def _panel(self, job: Job) -> Panel:
        if job not in self.found:
            return Panel(None)
        distance = self.found[job].get("lpips")
        text = "" if distance is None else f"LPIPS {distance:.3f}"
        return Panel(read(self.path(*job)), text)

    def _draw_scatter(self) -> None:
        file, distances = self.out / "figure6.png", self._distances()
        file.unlink(missing_ok=True)
        if len(distances) < 2 or min(map(len, distances.values())) < 2:
            return  # no two of anything
        try:
            scatter(distances).savefig(file, dpi=150)
        except ModuleNotFoundError as error:
            log.warning("No figure6.png: %s", error)


def _lpips() -> tuple[LPIPS | None, str]:
    """The distance, or why there is none."""
    try:
        return LPIPS(), ""
    except FileNotFoundError as error:
        return None, str(error)


def _digest(encoder: Encoder) -> str:
    """Of weights, statistics and input convention."""
    digest = hashlib.sha256(repr(encoder.normalization).encode())
    for name, tensor in encoder.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _save(picture: Tensor, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(picture.permute(1, 2, 0).numpy())).save(path)


def read(path: Path) -> Tensor:
    """A picture, RGB in uint8 (3, H, W)."""
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
