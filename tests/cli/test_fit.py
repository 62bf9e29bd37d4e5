"""``goodtransfer fit`` and its sisters, run as a user would, on a folder of random images."""

import re
import signal
import sys
import textwrap

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import yaml
from PIL import Image

from goodtransfer import ExemplarMoCo, ImageNetDataModule, LinearProbe, SupervisedCE
from goodtransfer.cli import main
from goodtransfer.cli.fit import _choices_first


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for path, count in (("train/ant", 8), ("train/bee", 8), ("val/ant", 4), ("val/bee", 4)):
        (folder / path).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 256, (36, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / path / f"{number}.png")
    return folder


@pytest.fixture
def moco(root, tmp_path):
    """A complete, tiny and silent command after `fit`."""
    return [*_tiny(root, tmp_path), "--model=ExemplarMoCo", "--model.queue_size=10"]


@pytest.fixture
def supervised(root, tmp_path):
    return [*_tiny(root, tmp_path), "--model=SupervisedCE"]


def _tiny(root, folder):
    return [
        "--data=ImageNetDataModule",
        f"--data.root={root}",
        "--data.size=32",
        "--data.batch_size=8",
        "--model.encoder=resnet10w32",
        "--trainer.max_epochs=1",
        "--trainer.accelerator=cpu",
        "--trainer.devices=1",
        "--trainer.logger=false",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        f"--trainer.default_root_dir={folder}",
    ]


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    """Leave no seeds in the environment and no handlers of signals behind."""
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning's use of it
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.setenv("PL_SEED_WORKERS", "0")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _checkpoints(folder):
    return sorted(folder.glob("checkpoints/*.ckpt"))


def _config(capsys, words):
    """What a command would run, without running it."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["fit", *words, "--print_config"])
    assert stop.value.code == 0
    return capsys.readouterr().out


def _error(capsys, words, verb="fit"):
    """The sentence, exit code 2, and nothing else."""
    capsys.readouterr()
    try:
        code = main([verb, *words])
    except SystemExit as stop:
        code = stop.code
    output = capsys.readouterr()
    assert code == 2
    assert "Traceback" not in output.err
    assert "usage:" not in output.err
    sentence = [
        line for line in output.err.splitlines() if line.startswith("goodtransfer: error: ")
    ]
    assert len(sentence) == 1
    return sentence[0].removeprefix("goodtransfer: error: ")


def test_fit_equals_the_same_run_in_python(moco, root, tmp_path, trainer_options):
    assert main(["fit", *moco, "--model.temperature=0.07", "--seed_everything=3"]) is None

    pl.seed_everything(3, workers=True)
    model = ExemplarMoCo("resnet10w32", queue_size=10, temperature=0.07)
    data = ImageNetDataModule(root, size=32, batch_size=8)
    pl.Trainer(max_epochs=1, **trainer_options).fit(model, data)

    (checkpoint,) = _checkpoints(tmp_path)
    saved = ExemplarMoCo.load_from_checkpoint(checkpoint, weights_only=True)
    assert saved.temperature == 0.07
    assert saved.encoder.name == "resnet10w32"
    expected = model.state_dict()
    assert saved.state_dict().keys() == expected.keys()
    for name, value in saved.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert int(saved.queue.filled) == 10
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert config["seed_everything"] == 3
    assert config["model"]["init_args"]["temperature"] == 0.07


def test_a_second_run_in_the_same_folder_works_and_the_checkpoint_scores(
    supervised, root, tmp_path, capsys, trainer_options
):
    for lr in ("0.1", "0.01"):
        assert main(["fit", *supervised, f"--model.lr={lr}"]) is None
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert config["model"]["init_args"]["lr"] == 0.01
    assert len(_checkpoints(tmp_path)) == 2

    checkpoint = _checkpoints(tmp_path)[-1]
    model = SupervisedCE.load_from_checkpoint(checkpoint, weights_only=True)
    data = ImageNetDataModule(root, size=32, batch_size=8)
    (scores,) = pl.Trainer(**trainer_options).test(model, data, verbose=False)
    for verb in ("validate", "test"):
        capsys.readouterr()
        assert main([verb, *supervised, f"--ckpt_path={checkpoint}"]) is None
        printed = re.search(r"acc_head\W+([\d.]+)", capsys.readouterr().out)
        assert float(printed[1]) == pytest.approx(scores["acc_head"])


def test_a_checkpoint_of_a_script_is_tested_too(
    supervised, root, tmp_path, capsys, trainer_options
):
    """It does not name its class, and holds arguments that its data gave."""
    model, data = SupervisedCE("resnet10w32"), ImageNetDataModule(root, size=32, batch_size=8)
    trainer = pl.Trainer(max_epochs=1, **trainer_options)
    trainer.fit(model, data)
    trainer.save_checkpoint(tmp_path / "script.ckpt")
    (scores,) = trainer.test(model, data, verbose=False)
    capsys.readouterr()
    assert main(["test", *supervised, f"--ckpt_path={tmp_path / 'script.ckpt'}"]) is None
    printed = re.search(r"acc_head\W+([\d.]+)", capsys.readouterr().out)
    assert float(printed[1]) == pytest.approx(scores["acc_head"])


def test_a_printed_config_runs_as_it_stands_and_with_changes(moco, tmp_path, capsys):
    printed = _config(capsys, [*moco, "--trainer.callbacks+=OnlineKNN", "--trainer.callbacks.k=3"])
    file = tmp_path / "run.yaml"
    file.write_text(printed)

    assert _config(capsys, [f"--config={file}"]) == printed
    changed = yaml.safe_load(printed)
    changed["model"]["init_args"]["lr"] = 0.5
    for words in ([f"--config={file}", "--model.lr=0.5"], ["--model.lr=0.5", "-c", str(file)]):
        assert yaml.safe_load(_config(capsys, words)) == changed
    assert changed["trainer"]["callbacks"][0]["init_args"]["k"] == 3

    assert main(["fit", f"--config={file}", "--trainer.limit_train_batches=1"]) is None
    assert len(_checkpoints(tmp_path)) == 1


def test_options_may_come_before_their_class(moco, capsys):
    expected = _config(capsys, moco)
    assert "class_path: goodtransfer.ExemplarMoCo" in expected
    assert _config(capsys, moco[::-1]) == expected


def test_choices_first_keeps_the_values_and_the_order_of_the_rest():
    words = ["--model.lr", "-1", "--trainer.x=1", "--model", "A", "-c", "run.yaml", "--data=B"]
    assert _choices_first([*words, "--trainer.x=2"]) == [
        *["-c", "run.yaml", "--model", "A", "--data=B"],
        *["--model.lr", "-1", "--trainer.x=1", "--trainer.x=2"],
    ]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["--model=MoCoV1", "--model.queue_size=64"],
            {"queue_size": 64, "temperature": 0.07, "mlp": False, "schedule": "step"},
        ),
        (
            ["--model=ExemplarMoCo", "--model.mlp=false", "--model.encoder=resnet10w32"],
            {"queue_size": 2**20, "mlp": False, "encoder": "resnet10w32", "exclude": "label"},
        ),
        (
            ["--model=ExemplarMoCo", "--model.encoder=torchvision:mobilenet_v2@pretrained"],
            {"encoder": "torchvision:mobilenet_v2@pretrained", "momentum": 0.999},
        ),
    ],
)
def test_arguments_passed_on_to_the_parent_class_are_options(words, expected, capsys):
    arguments = yaml.safe_load(_config(capsys, words))["model"]["init_args"]
    assert {name: arguments[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["--model=ExemplarMoCo", "--model.temprature=0.1"],
            "Expected an option of ExemplarMoCo, but got --model.temprature: "
            "did you mean --model.temperature?",
        ),
        (
            ["--model=MoCoV1", "--model.queue_sise=64"],  # of the parent class
            "Expected an option of MoCoV1, but got --model.queue_sise: "
            "did you mean --model.queue_size?",
        ),
        (
            ["--model=ExemplrMoCo"],
            "Expected --model to name a class, but got 'ExemplrMoCo': did you mean ExemplarMoCo?",
        ),
        (
            ["--data=ImagenetDataModule"],
            "Expected --data to name a class, but got 'ImagenetDataModule': "
            "did you mean ImageNetDataModule?",
        ),
        (
            ["--trainer.callbacks+=OnlineKN"],
            "Expected --trainer.callbacks to name a class, but got 'OnlineKN': "
            "did you mean OnlineKNN?",
        ),
        (
            ["--trainer.callbacks+=OnlineKNN", "--trainer.callbacks.temprature=1"],
            "Expected an option of OnlineKNN, but got --trainer.callbacks.temprature: "
            "did you mean --trainer.callbacks.temperature?",
        ),
        (
            ["--model=nowhere.ExemplarMoCo"],
            "Expected --model to name a class, but got 'nowhere': "
            "write your own as package.module.Class.",
        ),
        (
            ["--trainer.max_epocs=1"],
            "Expected an option of goodtransfer, but got --trainer.max_epocs: "
            "did you mean --trainer.max_epochs?",
        ),
        (
            ["--trainer.max_epoch=1"],  # argparse alone would take it for an abbreviation
            "Expected an option of goodtransfer, but got --trainer.max_epoch: "
            "did you mean --trainer.max_epochs?",
        ),
        (
            ["--data=ImageNetDataModule", "--dta.root=DIR"],
            "Expected an option of goodtransfer, but got --dta.root: did you mean --data.root?",
        ),
        (
            ["--xyz"],
            "Expected an option of goodtransfer, but got --xyz: --help lists what there is.",
        ),
        (
            ["--model.temperature=0.1"],
            "Expected --model=CLASS beside --model.temperature, which is an option of it.",
        ),
        (["--model=MoCoV2"], "Expected --data=..., but none came."),
        ([], "Expected --data=... and --model=..., but none came."),
        (
            ["--model=MoCoV2", "--data=ImageNetDataModule"],
            "Expected --data.root=..., but none came.",
        ),
        (
            ["--model=MoCoV2", "--model.exclude=lable"],
            "Expected --model.exclude to be 'none', 'image' or 'label', but got 'lable'.",
        ),
        (
            ["--model=MoCoV2", "--model.temperature=warm"],
            "Expected --model.temperature to be float, but got 'warm'.",
        ),
        (
            ["--trainer.max_epochs=one"],
            "Expected --trainer.max_epochs to be int or null, but got 'one'.",
        ),
        (["--config=/none.yaml"], "--config: File does not exist: '/none.yaml'"),
        (
            ["--model.help=MoCov2"],
            "Expected --model to name a class, but got 'MoCov2': did you mean MoCoV2?",
        ),
    ],
)
def test_a_mistake_is_one_sentence_with_the_nearest_name(words, sentence, capsys):
    assert _error(capsys, words) == sentence


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "trainer: {max_epocs: 1}",
            "Expected an option of goodtransfer, but got --trainer.max_epocs: "
            "did you mean --trainer.max_epochs?",
        ),
        (
            "modle: MoCoV2",
            "Expected an option of goodtransfer, but got --modle: did you mean --model?",
        ),
        (
            "model: {class_path: MoCoV2, init_args: {temprature: 1}}",
            "Expected an option of MoCoV2, but got --model.temprature: "
            "did you mean --model.temperature?",
        ),
        (
            "model: {class_path: MoCo2}",
            "Expected --model to name a class, but got 'MoCo2': did you mean MoCoV2?",
        ),
    ],
)
def test_a_mistake_in_a_file_is_the_same_sentence(text, sentence, tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    assert _error(capsys, [f"--config={file}"]) == sentence


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["--model.temperature=-1"],
            "Expected argument `temperature` to be above 0, but got -1.0.",
        ),
        (["--model.encoder=resnet51"], "Expected an encoder name like resnet50"),
        (["--model.encoder=none.pth"], "Expected a weight file, but there is none at none.pth."),
        (["--data.root=nowhere"], "Expected a folder of classes at nowhere/train."),
        (["--data.batch_size=100"], "Expected at least one batch"),
        (["--data.views=supervised"], "Expected 2 views per image for ExemplarMoCo"),
        (["--trainer.sync_batchnorm=true"], "Expected plain batch norm"),
        (["--ckpt_path=none.ckpt"], "Expected a checkpoint at none.ckpt, but there is none"),
        (["--trainer.overfit_batches=-1"], "You have passed invalid value -1"),
    ],
)
def test_what_cannot_run_is_a_sentence(words, sentence, moco, capsys):
    assert _error(capsys, [*moco, *words]).startswith(sentence)


OWN_CODE = """
import os, signal
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import BasePredictionWriter
from torch.utils.data import DataLoader, TensorDataset
import goodtransfer

class Broken(goodtransfer.SupervisedCE):
    def training_step(self, batch, batch_idx):
        raise ValueError("a bug of mine")

class Stop(pl.Callback):
    def __init__(self, name: str):
        self.signal = signal.Signals[name]

    def on_train_batch_end(self, trainer, *_):
        if trainer.current_epoch == 1:
            os.kill(os.getpid(), self.signal)

class Heap(pl.LightningDataModule):
    num_classes = 2

    def predict_dataloader(self):
        images = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(images, torch.arange(5)), batch_size=3)

class Pairs(Heap):
    def predict_dataloader(self):
        plain = super().predict_dataloader().dataset
        return DataLoader([((x, x.flip(2)), y, y) for x, y in plain], batch_size=3)

class Keep(BasePredictionWriter):
    def __init__(self, file: str):
        super().__init__("epoch")
        self.file = file

    def write_on_epoch_end(self, trainer, module, predictions, batch_indices):
        torch.save(predictions, self.file)
"""


@pytest.fixture
def own_code(tmp_path, monkeypatch):
    (tmp_path / "own_code.py").write_text(textwrap.dedent(OWN_CODE))
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own_code", None)


@pytest.mark.usefixtures("own_code")
def test_own_classes_run_and_keep_their_tracebacks(supervised):
    with pytest.raises(ValueError, match="a bug of mine"):
        main(["fit", *supervised, "--model=own_code.Broken"])


@pytest.mark.usefixtures("own_code")
@pytest.mark.parametrize("model", [SupervisedCE, LinearProbe])
def test_predict_gives_logits_for_the_images_of_any_loader(model, root, tmp_path):
    words = [f"--model={model.__name__}", "--model.encoder=resnet10w8"]
    words += ["--model.lrs=[30.0]"] * (model is LinearProbe)
    tiny = [word for word in _tiny(root, tmp_path) if not word.startswith("--model")]
    assert main(["fit", *tiny, *words]) is None

    (checkpoint,) = _checkpoints(tmp_path)
    rest = [word for word in tiny if not word.startswith("--data")]
    rest += ["--trainer.callbacks+=own_code.Keep", f"--trainer.callbacks.file={tmp_path / 'out'}"]
    with torch.no_grad():
        module = model.load_from_checkpoint(checkpoint, weights_only=True).eval()
        images = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        expected = module(images)
    for data in ("Heap", "Pairs"):
        ours = [*words, f"--data=own_code.{data}", f"--ckpt_path={checkpoint}"]
        assert main(["predict", *rest, *ours]) is None
        torch.testing.assert_close(torch.cat(torch.load(tmp_path / "out")), expected)
        (tmp_path / "out").unlink()


@pytest.mark.usefixtures("own_code")
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_an_interrupted_run_is_no_success_and_keeps_its_checkpoints(
    name, code, supervised, tmp_path
):
    stop = ["--trainer.callbacks+=own_code.Stop", f"--trainer.callbacks.name={name}"]
    try:
        result = main(["fit", *supervised, *stop, "--trainer.max_epochs=3"])
    except SystemExit as exit_:
        result = exit_.code
    assert result == code
    found = {file.name: file for file in _checkpoints(tmp_path)}
    preempted = found.pop("preempted.ckpt", None)
    assert (preempted is not None) == (name == "SIGTERM")
    if preempted:  # at the step that it came in
        assert torch.load(preempted, weights_only=True)["epoch"] == 1
    (checkpoint,) = found.values()  # of the first epoch; the second was cut short
    assert torch.load(checkpoint, weights_only=True)["epoch"] == 0


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: goodtransfer fit --model=CLASS --data=CLASS [--PART.NAME=VALUE")
    assert "--trainer.max_epochs" in text
    assert (
        "  goodtransfer fit --model=ExemplarMoCo --data=ImageNetDataModule --data.root=DIR" in text
    )
    models = re.search(r"^  models: +(.*)$", text, re.MULTILINE)[1].split(", ")
    assert {"ExemplarMoCo", "MoCoV1", "MoCoV2", "SupervisedCE", "LinearProbe"} <= {*models}


def test_help_of_a_class_lists_what_its_parent_takes(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--model.help=MoCoV1"])
    text = capsys.readouterr().out
    assert re.search(r"--model.queue_size QUEUE_SIZE\s+K\. \(type: int, default: 65536\)", text)
    assert re.search(r"--model.temperature .*\s.*default: 0.07", text)
    assert "torch.nn" not in text  # the hundreds of modules an encoder could be
