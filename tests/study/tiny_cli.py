"""The command `goodtransfer` with the tiny scale; cells are started by this very file.

ACCIDENT=KEY:SECONDS:CODE has that cell (or every one, KEY being `any`) wait, and end with the code.
"""

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import tiny  # noqa: F401 - adds the scale

from goodtransfer.cli import main
from goodtransfer.study import engine

engine.PROGRAM[:] = [sys.executable, __file__]


def accident():
    key, seconds, code = os.environ.get("ACCIDENT", "none:0:0").split(":")
    if sys.argv[1:3] != ["study", "cell"] or key not in ("any", sys.argv[3]):
        return
    print("an accident", flush=True)
    time.sleep(float(seconds))
    sys.exit(int(code))


if __name__ == "__main__":
    accident()
    raise SystemExit(main())
