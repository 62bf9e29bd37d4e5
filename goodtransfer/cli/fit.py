"""``goodtransfer fit | validate | test | predict``: LightningCLI, with errors that teach."""

import difflib
import re
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Iterable
from pathlib import Path
from pydoc import locate
from typing import Any, NoReturn

import pytorch_lightning as pl
import torch
from jsonargparse import ActionConfigFile, DefaultHelpFormatter  # type: ignore[attr-defined]
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.cli import (
    ArgsType,
    LightningArgumentParser,
    LightningCLI,
    SaveConfigCallback,
)
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.exceptions import SIGTERMException

import goodtransfer
from goodtransfer.callbacks import SaveOnSigterm

EPILOG = """\
a whole command:
  goodtransfer {verb} --model=ExemplarMoCo --data=ImageNetDataModule --data.root=DIR \\
      --model.temperature=0.07 --trainer.max_epochs=1

  --model=CLASS and --data=CLASS choose; --model.NAME, --data.NAME and --trainer.NAME set.
  models:  {models}
  data:    {data}
  your own classes go by package.module.Class.

where to go on:
  the options of a class     goodtransfer {verb} --model.help=ExemplarMoCo
  a command as a file        goodtransfer {verb} --model=... --data=... --print_config > run.yaml
  run the file, change one   goodtransfer {verb} --config=run.yaml --model.lr=0.015
"""

# What an option's class must descend from.
_BASES: dict[str, type] = {
    "model": pl.LightningModule,
    "data": pl.LightningDataModule,
    "trainer.callbacks": pl.Callback,
    "trainer.logger": Logger,
}


def main(verb: str, words: list[str]) -> None:
    """Parse the words after the verb, build model, data and trainer, and run.

    Raises:
        SystemExit: 2 for a command that cannot be parsed, 143 after SIGTERM.
        ValueError: what Lightning says of a trainer that cannot work here.
    """
    for name in goodtransfer.__all__:  # a class that is loaded goes by its short name
        getattr(goodtransfer, name)
    try:
        _CLI(
            pl.LightningModule,
            pl.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,  # methods and tasks bring their own
            seed_everything_default=0,
            # Whole or not there, and saved when a scheduler takes the machine away.
            trainer_defaults={
                "callbacks": [SaveOnSigterm()],
                "plugins": [{"class_path": "goodtransfer.checkpoints.SafeCheckpointIO"}],
            },
            save_config_callback=_SaveConfig,
            save_config_kwargs={"save_to_log_dir": False},
            parser_kwargs={verb: _help(verb)},
            args=[verb, *_choices_first(words)],
        )
    except MisconfigurationException as error:
        raise ValueError(str(error)) from error
    except SIGTERMException:  # its own exit code is 0, which reads as success
        raise SystemExit(143) from None
    except SystemExit as stop:
        # Lightning turns Ctrl-C into exit code 1, as if something had failed.
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise


class _CLI(LightningCLI):
    """LightningCLI on our parser, whose words come from ``main`` and not from ``sys.argv``."""

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        parser = _Parser(
            prog="goodtransfer",
            allow_abbrev=False,
            dump_header=[f"goodtransfer=={goodtransfer.__version__}"],
            formatter_class=_Help,
            **kwargs,
        )
        parser.add_argument(
            "-c", "--config", action=ActionConfigFile, help="a file that --print_config wrote"
        )
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        self.config = parser.parse_args(args)  # type: ignore[arg-type]

    def _parse_ckpt_path(self) -> None:
        """Lightning takes the model from a checkpoint; one of a script's Trainer does not name its class."""
        verb = self.config.get("subcommand")
        path = verb and self.config[verb].get("ckpt_path")
        if path and Path(path).is_file():
            known = torch.load(path, weights_only=True, map_location="cpu")
            if "_class_path" not in known.get("hyper_parameters", {}):
                return  # the model is what the command says
        super()._parse_ckpt_path()


class _SaveConfig(SaveConfigCallback):
    """Writes ``config.yaml`` beside the checkpoints: W&B's ``log_dir`` is that of all its runs."""

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        folder = Path(trainer.default_root_dir)
        if logger := trainer.logger:  # as Lightning's ModelCheckpoint finds its folder
            version = logger.version
            number = version if isinstance(version, str) else f"version_{version}"
            folder = Path(logger.save_dir or folder, str(logger.name), number)
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / self.config_filename
        self.parser.save(self.config, file, skip_none=False, overwrite=True, multifile=False)


class _Help(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the line breaks of an epilog."""


class _Parser(LightningArgumentParser):
    """A parser whose errors are one sentence each, with the nearest name."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # the parser of one class, whose parent explains
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        sentence = _explain(message, list(parser._option_string_actions))
        print(f"goodtransfer: error: {sentence}", file=sys.stderr)
        raise SystemExit(2)

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        # A type like nn.Module has hundreds of subclasses, pages that name no choice.
        text = super().format_help(*args, **kwargs)
        return re.sub(r",\s+known\s+subclasses:[^)]{2000,}\)", ")", text)


def _help(verb: str) -> dict[str, Any]:
    names = {
        key: ", ".join(
            c.__name__ for c in _subclasses(base) if c.__module__.startswith("goodtransfer.")
        )
        for key, base in _BASES.items()
    }
    return {
        "usage": f"goodtransfer {verb} --model=CLASS --data=CLASS [--PART.NAME=VALUE ...]",
        "epilog": EPILOG.format(verb=verb, models=names["model"], data=names["data"]),
    }


def _choices_first(words: Iterable[str]) -> list[str]:
    """Files, then classes, to the front: an option is only known once its class is."""
    options: list[list[str]] = []
    for word in words:
        if re.match(r"--?[a-z]", word) or not options:
            options.append([])
        options[-1].append(word)
    rank = {"-c": 0, "--config": 0, "--model": 1, "--data": 1}
    options.sort(key=lambda option: rank.get(option[0].partition("=")[0], 2))
    return [word for option in options for word in option]


def _explain(message: str, options: list[str]) -> str:
    """One sentence from jsonargparse's report of every type that a value could have had.

    Args:
        message: the report, outermost complaint first.
        options: what the parser knows, like ``--trainer.max_epochs``.
    """
    key = ".".join(re.findall(r'(?:Parser key "|^--)([\w.]+?)(?:"|\.help:)', message))
    if found := re.search(r"unrecognized arguments: ([^\s=]+)", message):
        return _unknown(found[1], options)
    if found := re.search(r"does not accept option '([^']+)'", message):  # in a file
        return _unknown(f"--{found[1]}", options)
    if found := re.search(r"Option '([^']+)' is not accepted", message):
        paths = re.findall(r"given class_path '([^']+)'", message)
        chosen: list[Any] = [c for c in map(locate, paths) if c not in _BASES.values()]
        if not chosen:
            return f"Expected --{key}=CLASS beside --{key}.{found[1]}, which is an option of it."
        names = _Parser().add_class_arguments(chosen[0], key)
        return _unknown(f"--{key}.{found[1]}", [f"--{n}" for n in names], chosen[0].__name__)
    if found := re.search(r"(?:path string: |attribute '|module named ')([\w.]*)", message):
        return _unknown_class(key, found[1])
    if found := re.search(r"arguments are required: ([\w., ]+)", message):
        names = [f"{key}.{name}" if key else name.split(".")[-1] for name in found[1].split(", ")]
        return f"Expected {' and '.join(f'--{name}=...' for name in names)}, but none came."
    types = re.findall(r"Subtypes: \[(.*)\]|Expected a (.*)\. Got value", message)
    value = re.search(r"(?:Given|Got) value: (.*)", message)
    if types and value:
        expected = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", "".join(types[-1]))
        expected = re.sub(r"typing\.Literal\[(.*?)\]", r"\1", expected).replace("NoneType", "null")
        choices = " or ".join(expected.rsplit(", ", maxsplit=1))
        return f"Expected --{key} to be {choices}, but got {value[1]!r}."
    return " ".join(re.sub(r'Parser key "([^"]+)"', r"--\1", message).split())


def _unknown(option: str, options: list[str], owner: str = "goodtransfer") -> str:
    part, dot, name = option.partition(".")
    parts = {known.partition(".")[0] for known in options}
    if dot and part not in parts:  # --dta.root: what --data takes depends on its class
        near = [f"{found}.{name}" for found in difflib.get_close_matches(part, parts, n=1)]
    else:
        near = difflib.get_close_matches(option, options, n=1)
    hint = f"did you mean {near[0]}?" if near else "--help lists what there is."
    return f"Expected an option of {owner}, but got {option}: {hint}"


def _unknown_class(key: str, name: str) -> str:
    names = [c.__name__ for c in _subclasses(_BASES[key])] if key in _BASES else []
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}?" if near else "write your own as package.module.Class."
    return f"Expected --{key} to name a class, but got {name!r}: {hint}"


def _subclasses(base: type) -> list[type]:
    direct: list[type] = base.__subclasses__()
    return direct + [c for child in direct for c in _subclasses(child)]
