"""How the toy world's layouts are written: once, whole, and each kind of image as its readers expect."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from goodtransfer.data import toy

VERSION = 1  # of all layouts but the first two; raise it with any change of pixels or annotation
LONG = 2000  # images that are drawn without telling the progress


def write_layout(
    root: str | Path,
    layout: str,
    write: Callable[[Path], None],
    *,
    size: int,
    seed: int,
    **counts: int,
) -> Path:
    """Have the layout written once; it appears whole or not at all.

    Args:
        root: the folder.
        layout: its name, kept in the folder.
        write: is given an absent folder to write into, which is then renamed.
        size: height of the images in pixels.
        seed: of everything that is drawn.
        counts: of images or whatever else makes up the layout.

    Raises:
        ValueError: for a count of nothing, or where ``root`` holds something else.
    """
    if min(counts.values()) < 1:
        raise ValueError(
            f"Expected at least 1 of everything in {layout}, but found {counts}: ask for more."
        )
    toy.check(size, seed, at_least=32)  # a tiny object would have no pixel
    version = f"{toy.VERSION}.{VERSION}"
    wanted = {"layout": layout, "version": version, **counts, "size": size, "seed": seed}
    return toy.write_once(root, wanted, write)


def numbers(count: int) -> Iterable[int]:
    """From 0; a long row tells its progress."""
    return tqdm(range(count), leave=False, disable=count <= LONG)


def save(pixels: NDArray[Any], path: Path) -> None:
    """Write an image (H x W or H x W x RGB), and its folder where that is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if pixels.dtype == np.uint16 and pixels.ndim == 3:  # Pillow has no 16-bit colours
        path.write_bytes(cv2.imencode(".png", pixels[..., ::-1])[1].tobytes())
    elif path.suffix == ".png":
        Image.fromarray(pixels).save(path)
    else:
        Image.fromarray(pixels).save(path, quality=toy.JPEG_QUALITY)


def save_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a list."""
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
