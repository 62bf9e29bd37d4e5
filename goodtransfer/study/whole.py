"""Text files that are there as a whole or not at all, whenever their writer is killed."""

import os
from pathlib import Path


def write(file: Path, text: str) -> None:
    """Write aside, and rename into place."""
    aside = file.with_name(f"{file.name}.{os.getpid()}.tmp")  # others may write the same file
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, file)
