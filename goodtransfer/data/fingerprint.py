"""What a folder of images holds, told without reading an image, and without torch."""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

# As torchvision's ImageFolder takes them.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


class Fingerprint(NamedTuple):
    """Attributes: ``digest``, sixteen hex digits; ``classes`` and ``images`` of ``train``."""

    digest: str
    classes: int
    images: int


def fingerprint(root: Path) -> Fingerprint:
    """Hash of split, class, name and size of every image below ``root/{train,val}/CLASS``.

    Raises:
        FileNotFoundError: for a root without both splits.
    """
    digest = hashlib.sha256()
    classes = images = 0
    for split in ("train", "val"):
        folder = root / split
        if not folder.is_dir():
            raise FileNotFoundError(
                f"Expected images at {folder}/CLASS/*.jpg, but there is no such folder."
            )
        for label in sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()):
            files = sorted(
                (entry.name, entry.stat().st_size)
                for entry in os.scandir(folder / label)
                if entry.name.lower().endswith(EXTENSIONS)
            )
            digest.update(repr((split, label, files)).encode())
            if split == "train":
                classes, images = classes + 1, images + len(files)
    return Fingerprint(digest.hexdigest()[:16], classes, images)
