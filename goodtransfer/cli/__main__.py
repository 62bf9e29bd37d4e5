"""``python -m goodtransfer.cli``: the command by its interpreter, as cells are started."""

from goodtransfer.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
