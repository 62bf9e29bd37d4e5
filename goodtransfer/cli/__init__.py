"""The command ``goodtransfer``: its verbs, and errors as one sentence.

Nothing heavy is imported before a verb is chosen, so help and misspelt verbs answer at once.
"""

import contextlib
import difflib
import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module

import goodtransfer

HELP = """\
usage: goodtransfer VERB [--OPTION=VALUE ...]

Pretrain an encoder by cross-entropy, MoCo or Exemplar, and measure how it transfers.

  fit        pretrain an encoder, or train a transfer task on one
  validate   score a checkpoint on the validation images
  test       score a checkpoint on the test images
  predict    run a checkpoint over the images of a data module of your own
  data       check a download, look at it, draw the toy world
  diagnose   tell where detections fail: localization, similar classes, background
  invert     see what an encoder's features remember of an image
  weights    see what a weight file holds, write it in another library's names
  card       tell how any weights transfer, as one page
  verify     hold a released encoder to its published numbers
  study      run rows of the paper's tables and lay them out beside its numbers

One command of each; DIR holds train/CLASS/*.jpg and val/CLASS/*.jpg:

  goodtransfer fit --model=ExemplarMoCo --data=ImageNetDataModule --data.root=DIR \\
      --model.temperature=0.07 --trainer.max_epochs=200
  goodtransfer validate --model=SupervisedCE --data=ImageNetDataModule --data.root=DIR \\
      --ckpt_path=FILE.ckpt
  goodtransfer test --model=SupervisedCE --data=ImageNetDataModule --data.root=DIR \\
      --ckpt_path=FILE.ckpt
  goodtransfer predict --model=SupervisedCE --data=my_package.MyDataModule --ckpt_path=FILE.ckpt
  goodtransfer data check DIR --dataset imagenet
  goodtransfer diagnose DETECTIONS --gt ANNOTATIONS --out FOLDER
  goodtransfer invert --encoders resnet50 FILE.safetensors --images PHOTO.jpg --out FOLDER
  goodtransfer weights inspect FILE.pth
  goodtransfer card FILE.pth --quick
  goodtransfer study run --scale smoke --out smoke

Read on: `goodtransfer VERB --help`, `goodtransfer fit --model.help=ExemplarMoCo`, README.md.
`goodtransfer --version` prints the version. GOODTRANSFER_TRACEBACK=1 shows where an error arose.
"""

_OF_LIGHTNING = ("fit", "validate", "test", "predict")
# Each a file of this folder.
_VERBS = (*_OF_LIGHTNING, "data", "diagnose", "invert", "weights", "card", "verify", "study")
# What these packages raise of these types is about arguments, files and machines.
_SPEAKERS = {"goodtransfer", "pytorch_lightning", "lightning_fabric"}
_SPOKEN = (ValueError, OSError, ModuleNotFoundError, FloatingPointError)


def main(argv: Sequence[str] | None = None) -> int | None:
    """Run one verb and return its exit code.

    It is 2, with one sentence on stderr, for what the user can mend, and 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    if words[0] == "--version":
        print(f"goodtransfer {goodtransfer.__version__}")
        return 0
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files need not be UTF-8
        with contextlib.suppress(OSError):  # a file that is appended to cannot be sought
            sys.stdout.reconfigure(errors="backslashreplace")
    verb, *rest = words
    if verb not in _VERBS:
        near = difflib.get_close_matches(verb, _VERBS, n=1)
        hint = f"did you mean `{near[0]}`?" if near else "see `goodtransfer --help`."
        return _fail(f"Expected a verb among {', '.join(_VERBS)}, but got {verb!r}: {hint}")
    try:
        return _run(verb, rest)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        sentence = _sentence(error)
        if sentence is None or os.environ.get("GOODTRANSFER_TRACEBACK"):
            raise
        return _fail(sentence)


def _run(verb: str, rest: list[str]) -> int | None:
    if verb not in _OF_LIGHTNING:
        main: Callable[[Sequence[str]], int] = import_module(f"goodtransfer.cli.{verb}").main
        return main(rest)
    try:
        from goodtransfer.cli import fit
    except ModuleNotFoundError as error:
        if error.name != "jsonargparse":
            raise
        raise ModuleNotFoundError(
            f"`goodtransfer {verb}` needs jsonargparse: pip install 'goodtransfer[cli]'"
        ) from error
    fit.main(verb, rest)
    return None


def _sentence(error: BaseException | None) -> str | None:
    """Find what was written for the user; None for a bug, which keeps its traceback."""
    while error is not None:  # jsonargparse wraps what a constructor raises
        modules = [
            f.f_globals.get("__name__", "") for f, _ in traceback.walk_tb(error.__traceback__)
        ]
        if isinstance(error, _SPOKEN) and modules and modules[-1].split(".")[0] in _SPEAKERS:
            return str(error)
        error = error.__cause__
    return None


def _fail(sentence: str) -> int:
    print(f"goodtransfer: error: {sentence}", file=sys.stderr)
    return 2
