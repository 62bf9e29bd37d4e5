"""The dispatcher: help and mistakes answer at once, other errors keep what helps."""

import subprocess
import sys

import pytest

import goodtransfer
from goodtransfer import cli


@pytest.mark.parametrize("argv", [[], ["-h"], ["--help"]])
def test_help_has_a_line_and_a_command_for_every_verb(argv, capsys):
    assert cli.main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    for verb in ("fit", "validate", "test", "predict", "study"):
        assert sum(line.startswith(f"  {verb} ") for line in lines) == 1
        assert any(line.startswith(f"  goodtransfer {verb} ") for line in lines)
    assert any("README.md" in line for line in lines)


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"goodtransfer {goodtransfer.__version__}\n"


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("fitt", "did you mean `fit`?"),
        ("valdate", "did you mean `validate`?"),
        ("stduy", "did you mean `study`?"),
        ("--model=MoCoV2", "see `goodtransfer --help`."),
    ],
)
def test_an_unknown_verb_is_one_sentence(word, hint, capsys):
    assert cli.main([word]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == (
        "goodtransfer: error: Expected a verb among fit, validate, test, predict, data, diagnose, "
        f"invert, weights, card, verify, study, but got {word!r}: {hint}\n"
    )


def test_arguments_come_from_the_command_line_unless_given(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["goodtransfer", "--version"])
    assert cli.main() == 0
    assert "goodtransfer" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [[], ["--help"], ["--version"], ["fitt"]])
def test_torch_is_not_imported_before_a_verb_is_chosen(argv):
    code = (
        "import sys; from goodtransfer.cli import main; main(sys.argv[1:]); "
        "print('heavy:', *{'torch', 'numpy', 'pytorch_lightning', 'jsonargparse'} & {*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *argv], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1].split() == ["heavy:"]


def test_a_missing_jsonargparse_names_the_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "jsonargparse", None)
    monkeypatch.delitem(sys.modules, "goodtransfer.cli.fit", raising=False)
    monkeypatch.delattr(cli, "fit", raising=False)
    assert cli.main(["fit"]) == 2
    assert capsys.readouterr().err == (
        "goodtransfer: error: `goodtransfer fit` needs jsonargparse: "
        "pip install 'goodtransfer[cli]'\n"
    )


def test_study_gets_the_words_after_it(monkeypatch):
    from goodtransfer.cli import study

    monkeypatch.setattr(study, "main", lambda words: len(words))
    assert cli.main(["study", "run", "--out", "x"]) == 3


def _own(_verb, _words):
    """An error of this library, wrapped as jsonargparse wraps what a constructor raises."""
    from goodtransfer.encoders import build

    try:
        build("resnet51")
    except ValueError as error:
        raise ValueError("Does not validate against any of the Union subtypes") from error


def _foreign(_verb, _words):
    raise ValueError("from the user's own code")


def _ctrl_c(_verb, _words):
    raise KeyboardInterrupt


def test_errors_of_ours_are_sentences_and_others_keep_their_traceback(monkeypatch, capsys):
    monkeypatch.setattr(cli, "_run", _own)
    assert cli.main(["fit"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("goodtransfer: error: Expected an encoder name")
    assert "Union" not in error

    monkeypatch.setenv("GOODTRANSFER_TRACEBACK", "1")
    with pytest.raises(ValueError, match="Does not validate"):
        cli.main(["fit"])
    monkeypatch.delenv("GOODTRANSFER_TRACEBACK")

    monkeypatch.setattr(cli, "_run", _foreign)
    with pytest.raises(ValueError, match="own code"):
        cli.main(["fit"])


def test_ctrl_c_is_130(monkeypatch):
    monkeypatch.setattr(cli, "_run", _ctrl_c)
    assert cli.main(["fit"]) == 130
