"""``goodtransfer fit | validate | test | predict``: LightningCLI, with errors that teach."""

import difflib
import re
import sys
from collections.abc import Iterable, Iterator
from pydoc import locate
from typing import Any, NoReturn

import pytorch_lightning as pl
from lightning_utilities.core.imports import RequirementCache
from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.exceptions import MisconfigurationException, SIGTERMException

# Imported so that their classes go by short names.
from goodtransfer import __version__, callbacks, data, methods, transfer  # noqa: F401

# The kinds of class that an option can name.
_BASES = (pl.LightningModule, pl.LightningDataModule, pl.Callback, Logger)

USAGE = "goodtransfer {verb} --model=CLASS --data=CLASS [--PART.NAME=VALUE ...]"
EPILOG = """
how to use it:
  goodtransfer {verb} --model=ExemplarMoCo --data=ImageNetDataModule --data.root=DIR \\
      --model.temperature=0.07 --trainer.max_epochs=1

  --model=CLASS and --data=CLASS choose, --model.NAME, --data.NAME and --trainer.NAME set.
  Classes are {models};
  {data}; or your own, as package.module.Class.

  options of one class    goodtransfer {verb} --model.help=ExemplarMoCo
  write them to a file    goodtransfer {verb} --model=... --data=... --print_config > run.yaml
  run from that file      goodtransfer {verb} --config=run.yaml --model.lr=0.015
"""


def main(verb: str, words: list[str]) -> None:
    """Parse, build and run.

    Raises:
        SystemExit: 2 for a command that cannot be parsed, 130 after Ctrl-C and 143 after SIGTERM.
        ModuleNotFoundError: without jsonargparse, naming the extra.
        ValueError: what Lightning or our classes say of arguments that cannot work.
    """
    if not RequirementCache("jsonargparse[signatures]>=4.39"):
        raise ModuleNotFoundError(
            f"`goodtransfer {verb}` needs jsonargparse: pip install 'goodtransfer[cli]'"
        )
    try:
        _CLI(
            pl.LightningModule,
            pl.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,  # methods and tasks bring their own
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            args=[verb, *_choices_first(words)],
        )
    except MisconfigurationException as error:
        raise ValueError(str(error)) from error
    except SIGTERMException:  # its own code is 0, which reads as success
        raise SystemExit(143) from None
    except (KeyboardInterrupt, SystemExit) as stop:
        # Lightning turns Ctrl-C into exit code 1.
        if isinstance(stop, KeyboardInterrupt) or isinstance(stop.__context__, KeyboardInterrupt):
            raise SystemExit(130) from None
        raise


def _choices_first(words: Iterable[str]) -> list[str]:
    """Move files, then choices of classes to the front: options are read in order, and need them."""
    options: list[list[str]] = []
    for word in words:
        if re.match(r"--?[a-z]", word) or not options:
            options.append([])
        options[-1].append(word)
    rank = {"-c": 0, "--config": 0, "--model": 1, "--data": 1}
    options.sort(key=lambda option: rank.get(option[0].partition("=")[0], 2))
    return [word for option in options for word in option]


class _Parser(LightningArgumentParser):
    """A parser whose errors are one sentence each, with the nearest name."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        parser = getattr(ex, "subcommand_parser", None) or self
        sentence = _explain(message, parser._option_string_actions)
        print(f"goodtransfer: error: {sentence}", file=sys.stderr)
        raise SystemExit(2)

    def format_help(self) -> str:
        # A type like nn.Module has hundreds of subclasses: a screenful that names no choice.
        text = re.sub(r",\s+known\s+subclasses:[^)]{2000,}\)", ")", super().format_help())
        return text + (self.epilog or "")


class _CLI(LightningCLI):
    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        header = [f"goodtransfer=={__version__}", f"pytorch_lightning=={pl.__version__}"]
        return _Parser(prog="goodtransfer", dump_header=header, allow_abbrev=False, **kwargs)
