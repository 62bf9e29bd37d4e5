"""The files of ``examples/sweeps``, by W&B's own schema, agent and offline runs."""

import importlib.util
import itertools
import json
import os
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import pytest
import yaml
from wandb import wandb_agent
from wandb.proto.wandb_internal_pb2 import Record

from goodtransfer.cli import main
from goodtransfer.data import make_imagefolder
from goodtransfer.study.tables import TABLES

SWEEPS = Path(__file__).resolve().parents[2] / "examples/sweeps"
FILES = ("table10.yaml", "own_images.yaml")

# What makes any of the runs small, as arguments of the sweep: they override the file's command.
SMALL = {
    "data.size": 32,
    "data.batch_size": 4,
    "data.num_workers": 0,
    "model.encoder": "resnet10w8",
    "trainer.max_epochs": 2,
    "trainer.accelerator": "cpu",
    "trainer.devices": 2,
    "trainer.log_every_n_steps": 1,
    "trainer.enable_progress_bar": False,
    "trainer.enable_model_summary": False,
    "trainer.callbacks+": "arrived.Arrived",
}

ARRIVED = """
import json
import pytorch_lightning as pl

class Arrived(pl.Callback):
    def on_train_end(self, trainer, module):
        found = {
            "model": type(module).__name__,
            "temperature": module.temperature,
            "queue_size": len(module.queue.keys),
            "ranks": trainer.world_size,
            "online_acc": float(trainer.callback_metrics["online_acc"]),
        }
        with open(f"rank{trainer.global_rank}.json", "w") as file:
            json.dump(found, file)
"""


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """An agent's machine without an account: a folder, images, and W&B's variables."""
    monkeypatch.chdir(tmp_path)
    images = make_imagefolder(tmp_path / "images", train=40, val=20, size=32)
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    for name in ("IMAGENET", "IMAGES"):
        monkeypatch.setenv(name, str(images))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_PROJECT", "goodtransfer")  # as `wandb agent` sets these
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep0")
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):  # set by the agent for a run
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


@pytest.fixture
def command_only(monkeypatch):
    """The agent keeps its command line instead of running it."""
    monkeypatch.setattr(wandb_agent, "AgentProcess", lambda **given: SimpleNamespace(**given))


def _sweep(name):
    return yaml.safe_load((SWEEPS / name).read_text())


def _agent_runs(sweep, arguments):
    """What W&B's own agent makes of a run that the server sends it."""
    agent = wandb_agent.Agent(api=None, queue=None, sweep_id="sweep0")
    agent._sweep_command = sweep["command"]
    values = {name: {"value": value} for name, value in arguments.items()}
    agent._command_run({"run_id": "run0", "program": sweep["program"], "args": values})
    return agent._run_processes["run0"]


def _values(parameter):
    """All values of a parameter, or the ends of its range."""
    one = [parameter[name] for name in ("value", "min", "max") if name in parameter]
    return parameter.get("values", one)


def _records(file):
    """Records of an offline run, in LevelDB's log format: blocks of 32 KiB, a header of 7 bytes each.

    Source: https://github.com/google/leveldb/blob/main/doc/log_format.md, after W&B's own 7 bytes.
    """
    data, at, record = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if -at % 32768 < 7:  # no room for a header: the block is filled up
            at += -at % 32768
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the end of one
            yield Record.FromString(record)
            record = b""


def _logged(records):
    """The run's config, and the last value of each metric, as W&B's server adds them up."""
    config, last = {}, {}
    for record in records:
        for item in (*record.run.config.update, *record.config.update):
            config[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
        for item in record.history.item:
            last[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
    return config, last


@pytest.fixture(scope="session")
def schema():
    """W&B's schema of sweep files, read and not imported: its package needs more than it."""
    package = importlib.util.find_spec("sweeps")
    if package is None:
        pytest.skip("needs W&B's schema of sweep files: pip install 'wandb[sweeps]'")
    file = Path(package.submodule_search_locations[0], "config/schema.json")
    return jsonschema.Draft7Validator(json.loads(file.read_text()))


@pytest.mark.parametrize("name", FILES)
def test_a_sweep_file_is_valid_by_the_schema_of_wandb(name, schema):
    sweep = _sweep(name)
    assert [error.message for error in schema.iter_errors(sweep)] == []

    sweep["method"] = "girds"
    sweep["parameters"]["model.temperature"] = {"minimum": 0.1}
    assert len(list(schema.iter_errors(sweep))) == 2


def test_the_grid_holds_the_v2_rows_of_table_10():
    parameters = _sweep("table10.yaml")["parameters"]
    grid = set(itertools.product(*(parameters[name]["values"] for name in sorted(parameters))))
    printed = {
        (row.method, row.arguments["queue_size"], row.arguments["temperature"])
        for row in (row.pretraining for row in TABLES["10"].rows)
        if row.name.endswith("v2")
    }
    assert sorted(parameters) == ["model", "model.queue_size", "model.temperature"]
    assert len(grid) == 12
    assert len(printed) == 6
    assert printed < grid


@pytest.mark.usefixtures("offline", "command_only")
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("end", [0, -1])
def test_the_command_of_the_agent_means_what_the_file_says(name, end, capsys, tmp_path):
    sweep = _sweep(name)
    chosen = {key: _values(value)[end] for key, value in sweep["parameters"].items()}
    backwards = dict(reversed(chosen.items()))  # --model.temperature before --model
    env, program, *words = _agent_runs(sweep, backwards).command
    assert (env, program) == ("/usr/bin/env", "goodtransfer")
    assert words[-3:] == [f"--{key}={value}" for key, value in backwards.items()]

    with pytest.raises(SystemExit):
        main([*words, "--print_config"])
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["model"]["class_path"] == f"goodtransfer.{chosen['model']}"
    arguments = config["model"]["init_args"]
    assert arguments["queue_size"] == chosen["model.queue_size"]
    assert arguments["temperature"] == chosen["model.temperature"]
    assert config["data"]["init_args"]["root"] == str(tmp_path / "images")
    trainer = config["trainer"]
    assert trainer["logger"]["class_path"].endswith(".WandbLogger")
    assert [c["class_path"] for c in trainer["callbacks"]] == ["goodtransfer.OnlineProbe"]


@pytest.mark.slow
def test_the_agent_runs_a_cell_of_table_10_on_two_ranks(offline):
    (offline / "arrived.py").write_text(ARRIVED)
    sweep = _sweep("table10.yaml")
    cell = {"model.temperature": 0.07, "model.queue_size": 65536, "model": "MoCoV2"}
    assert all(value in sweep["parameters"][name]["values"] for name, value in cell.items())
    assert _agent_runs(sweep, SMALL | cell).wait(timeout=120) == 0

    first, second = (json.loads((offline / f"rank{r}.json").read_text()) for r in range(2))
    assert first == second
    accuracy = first.pop("online_acc")
    assert first == {"model": "MoCoV2", "temperature": 0.07, "queue_size": 65536, "ranks": 2}

    (file,) = offline.glob("wandb/offline-run-*/run-run0.wandb")  # of rank 0 alone
    records = list(_records(file))
    config, last = _logged(records)
    assert (config["temperature"], config["queue_size"]) == (0.07, 65536)
    assert last[sweep["metric"]["name"]] == pytest.approx(accuracy)
    assert [r.exit.exit_code for r in records if r.HasField("exit")] == [0]

    run = offline / "goodtransfer/run0"  # by project and run: no run overwrites another's
    assert len(list(run.glob("checkpoints/*.ckpt"))) == 1
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["model"]["init_args"]["temperature"] == 0.07
