"""The command `goodtransfer` with the tiny scale; cells are started by this very file."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import tiny  # noqa: F401 - adds the scale

from goodtransfer.cli import main
from goodtransfer.study import engine

engine.PROGRAM[:] = [sys.executable, __file__]

if __name__ == "__main__":
    raise SystemExit(main())
