"""What a study costs, against real modules, torch's own counter, and sums written out again."""

import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from goodtransfer import methods
from goodtransfer.cli import main as cli
from goodtransfer.data import MAFLDataModule, MiniImageNetDataModule
from goodtransfer.encoders import build
from goodtransfer.encoders.resnet import RESNETS, Bottleneck
from goodtransfer.losses import infonce
from goodtransfer.momentum import KeyQueue
from goodtransfer.study import cost, cost_text, counting, sizes
from goodtransfer.study.cells import DRAWN
from goodtransfer.study.cost import Planned, Size, memory, work
from goodtransfer.study.plan import Study
from goodtransfer.study.pretrainings import images
from goodtransfer.study.protocol import EXEMPLAR_V1, INSTDISC, MOCO_V2, SIMCLR, SUPERVISED
from goodtransfer.study.scales import SCALES
from goodtransfer.study.sources import SOURCES
from goodtransfer.transfer.deeplab import DeepLabV3
from goodtransfer.transfer.rcnn_c4 import RCNNC4

sys.path.insert(0, str(Path(__file__).parent))
from tiny import TINY

NAMES = ("resnet50", "resnet18", "resnet34", "resnet101w16", "resnet10w8", "resnet18w32")


def on_meta(name):
    """An encoder without memory: its shapes are all that is counted."""
    with torch.device("meta"):
        return build(name)


def counted(call):
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


# --- counting


def test_the_depths_are_those_of_the_encoders():
    known = {k: (depths, block is Bottleneck) for k, (block, depths) in RESNETS.items()}
    assert known == counting.DEPTHS


@pytest.mark.parametrize("name", NAMES)
def test_parameters_and_bytes_are_the_encoders_own(name):
    encoder = on_meta(name)
    assert counting.parameters(name) == sum(p.numel() for p in encoder.parameters())
    assert counting.state_bytes(name) == sum(v.nbytes for v in encoder.state_dict().values())
    assert counting.features(name) == encoder.channels[5]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side", [(224, 224), (97, 131)])
def test_multiplications_are_those_torch_counts(name, side):
    encoder, image = on_meta(name), torch.zeros(1, 3, *side, device="meta")
    assert 2 * counting.macs(name, *side) == counted(lambda: encoder(image))
    fourth = 2 * counting.macs(name, *side, stages=(1, 2, 3, 4))
    assert fourth == counted(lambda: encoder(image, stages=(4,)))


def test_the_known_number_of_resnet50():
    assert counting.macs("resnet50", 224, 224) == 4_087_136_256  # of the 4.09 G, 2 M are its fc's
    assert counting.macs("pixels224", 224, 224) == counting.parameters("pixels224") == 0
    assert counting.features("pixels48") == 3 * 48 * 48
    with pytest.raises(ValueError, match="Expected a ResNet such as .* but got 'timm:x'"):
        counting.macs("timm:x", 8, 8)


@pytest.mark.parametrize("name", ["resnet50", "resnet18w32"])
def test_trunks_of_the_tasks_are_counted_as_torch_does(name):
    """DeepLab's dilated one, and both parts of a C4 detector's."""
    city, boxes = DeepLabV3(build(name), 19).to("meta"), RCNNC4(build(name), 20).to("meta")
    crop = torch.zeros(1, 3, 128, 192, device="meta")
    assert 2 * counting.macs(name, 128, 192, coarsest=8) == counted(lambda: city.encoder(crop))
    trunk, last = boxes.encoder.split(4)
    of_trunk = 2 * counting.macs(name, 128, 192, stages=(1, 2, 3, 4))
    assert of_trunk == counted(lambda: trunk(crop))
    for side in (14, 7, 4):
        regions = torch.zeros(3, boxes.encoder.channels[4], side, side, device="meta")
        expected = counted(lambda regions=regions: last(regions))
        assert 3 * 2 * counting.macs(name, side, side, stages=(5,)) == expected


def test_a_training_step_is_three_forward_passes_and_a_frozen_one_two():
    encoder = build("resnet10w8")
    forward = 2 * 2 * counting.macs("resnet10w8", 32, 32)
    first = 2 * 2 * 3 * 8 * 7**2 * 16**2  # whose images need no gradient
    plain = torch.rand(2, 3, 32, 32)
    assert counted(lambda: encoder(plain)[5].sum().backward()) == 3 * forward - first
    encoder.requires_grad_(False).eval()
    made = torch.rand(2, 3, 32, 32, requires_grad=True)
    assert counted(lambda: encoder(made)[5].sum().backward()) == 2 * forward


# --- sizes


def test_the_paper_s_sizes_are_those_its_text_tells():
    assert set(sizes.PAPER) == set(SOURCES) - {"given"}
    for name in ("places", "voc", "coco", "cityscapes", "coco_images"):
        assert f"{sizes.PAPER[name].images:,}" in SOURCES[name].paper
    assert sizes.PAPER["mafl"].images == 19_000
    assert MiniImageNetDataModule.expected["train"] == sizes.PAPER["mini_imagenet"].images
    assert sizes.PAPER["voc0712"].images == 5_011 + 11_540
    assert sizes.part(Size(1_281_167, 1000), "imagenet10") == sizes.PAPER["imagenet10"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A study of the tiny scale, its images drawn."""
    study = Planned(tmp_path_factory.mktemp("world"), TINY)
    for root, arguments in TINY.toy.items():
        DRAWN[root](study.out / "toy" / root, **arguments)
    return study


@pytest.fixture(autouse=True)
def _no_workers(monkeypatch):
    monkeypatch.setattr("goodtransfer.study.fitting.workers", lambda: 0)


def test_the_toy_world_s_sizes_are_what_is_drawn(world):
    pretrained = ("imagenet", "imagenet10", "imagenet100", "places", "coco_images", "synthia",
                  "mini_imagenet", "celeba")  # fmt: skip
    named = {SOURCES[name].root: world.root(name) for name in SOURCES}
    own = Planned(world.out, replace(TINY, toy={}), named, tables=world.tables)
    for name in pretrained:
        data = images(world, name, 0)()
        assert world.source(name).size[:2] == (data.num_images, data.num_classes), name
        if name != "imagenet10":  # whose classes are of unlike size in general
            assert own.source(name).size == world.source(name).size, name
    data = MiniImageNetDataModule(world.root("mini_imagenet"))
    others = len(data.files("validation")) + len(data.files("novel"))
    assert world.source("mini_imagenet").size.others == others
    assert world.source("mafl").size.images == MAFLDataModule(world.root("mafl")).num_images
    for name in ("voc", "coco", "cityscapes"):
        assert own.source(name).size.images == world.source(name).size.images, name


def test_steps_are_those_of_the_loaders(world):
    for table in ("2", "4", "5", "figure2"):
        study = replace(world, tables=(table,))
        for cell in study.cells():
            row, found = cell.row, work(study, cell)
            if cell.kind == "pretrain" and row.method in vars(methods):
                data = images(study, row.data, 0)(batch_size=row.batch_size, views=row.views)
                assert found.steps == row.epochs * len(data.train_dataloader()), cell.title
                assert found.images == found.steps * row.batch_size
            if cell.kind in ("linear", "base"):
                protocol = TINY.protocol(cell.kind)
                name = {"linear": "imagenet", "base": "mini_imagenet"}[cell.kind]
                data = images(study, name, 0)(
                    batch_size=10, views="linear", selection=protocol.selection
                )
                assert found.steps == 2 * len(data.train_dataloader())
            if cell.kind == "landmarks":
                data = MAFLDataModule(study.root("mafl"), batch_size=8)
                assert found.steps == len(data.train_dataloader())


# --- memory


def one_batch(row, count):
    """As many noise images as a batch, with what the method wants."""
    generator = torch.Generator().manual_seed(0)
    views = 1 if row.method in ("InstDisc", "SupervisedCE") else 2
    noise = torch.randint(256, (count, views, 3, 16, 16), generator=generator, dtype=torch.uint8)
    return DataLoader([(tuple(noise[n]), n % 4, n) for n in range(count)], batch_size=count)


@pytest.mark.filterwarnings("ignore:.*(does not have many workers|logging interval|The queue)")
@pytest.mark.filterwarnings("ignore:.*running_var.*|.*lr_scheduler.*|NCE draws")
@pytest.mark.parametrize(
    "row", [MOCO_V2, EXEMPLAR_V1, INSTDISC, SIMCLR, SUPERVISED], ids=lambda row: row.name
)
def test_checkpoint_and_traffic_are_a_real_fit_s(row, tmp_path, monkeypatch):
    """Every tensor of the checkpoint; what is gathered is noted on its way."""
    row = TINY.apply(row).but(batch_size=8, **{"warmup_epochs": 0} if row is SIMCLR else {})
    own = {"SupervisedCE": {"num_classes": 4}, "InstDisc": {"num_images": 8}}
    method = getattr(methods, row.method)(**row.arguments, **own.get(row.method, {}))
    gathered = []

    def noted(x):
        gathered.append(x.nbytes)
        return real(x)

    from goodtransfer.distributed import gather as real

    for room in ("distributed", "methods.moco", "methods.instdisc"):
        monkeypatch.setattr(f"goodtransfer.{room}.gather", noted)
    trainer = pl.Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(method, one_batch(row, 8))
    trainer.save_checkpoint(tmp_path / "c.ckpt")
    saved = torch.load(tmp_path / "c.ckpt", weights_only=True)
    (optimizer,) = saved["optimizer_states"]
    tensors = [*saved["state_dict"].values()]
    for state in optimizer["state"].values():
        tensors += [value for value in state.values() if torch.is_tensor(value)]
    found = memory(row, Size(8, 4), devices=8)
    assert found.checkpoint == sum(value.nbytes for value in tensors)
    if row.method == "SimCLR":  # its gather is of several ranks only
        gathered = [2 * 8 * 128 * 4]
    assert found.gathered == sum(gathered)
    assert memory(row, Size(8, 4), devices=1).gathered == 0
    state = method.encoder.state_dict().values()
    assert found.encoder == sum(value.nbytes for value in state)


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("keys", [500, 1_500, 10_000])
def test_the_streamed_loss_holds_what_is_told(keys, labelled, monkeypatch):
    """As torch's allocator has it, on the CPU with small blocks: 1,024 keys to 16 queries."""
    monkeypatch.setattr(infonce, "_BLOCK_ELEMENTS", {"cpu": 2**14})
    torch.manual_seed(0)
    q, p, k = (torch.randn(n, 4) for n in (16, 16, keys))
    labels = {"query_labels": torch.zeros(16).long(), "key_labels": torch.ones(keys).long()}

    def compare():
        infonce.info_nce(q, p, k, temperature=1.0, **labels if labelled else {})

    compare()
    with torch.profiler.profile(profile_memory=True) as profile:
        compare()
    held = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    expected = 16 * cost.streamed(16, keys, 2**14) * (4 + labelled)
    assert expected <= most <= expected + 2**13  # what is of the size of the queries
    assert cost.BLOCK_ELEMENTS == infonce._BLOCK_ELEMENTS_ACCELERATOR


def test_memory_of_the_paper_s_rows_written_out():
    row = SCALES["paper"].apply(EXEMPLAR_V1)
    found = memory(row, sizes.PAPER["imagenet"], devices=1)
    assert found.queue == 2**20 * (128 * 4 + 8 + 8) == 528 * 2**20
    small = KeyQueue(16, 128)
    stored = small.keys.nbytes + small.labels.nbytes + small.indices.nbytes
    assert found.queue == stored * 2**16
    # 2^24 elements to 256 queries are 65,536 keys; two such blocks, and their masks.
    assert found.logits == 2 * 2**24 * 5
    assert found.dense == 256 * 2**20 * 5
    assert found.gathered == 0
    eight = memory(row, sizes.PAPER["imagenet"], devices=8)
    assert eight.gathered == 256 * (3 * 224 * 224 + 128 * 4 + 8 + 8)
    assert eight.logits == eight.dense == 32 * 2**20 * 5
    # torchvision's resnet50 has 25,557,032 parameters, with a classifier of 2048 x 1000 + 1000.
    encoder, head = 25_557_032 - 2_049_000, 2048 * 128 + 128
    channels = 26_560  # of its 53 norms
    state = 4 * (encoder + head) + 8 * channels + 53 * 8
    assert found.checkpoint == 2 * state + found.queue + 16 + 4 * (encoder + head)


# --- in all


def test_work_of_the_paper_s_rows_written_out(tmp_path):
    study = Planned.open(tmp_path, scale="paper", tables=["3", "5", "figure2"])
    found = {}
    for cell in study.cells():
        found.setdefault((cell.row.name, cell.row.data, cell.kind), work(study, cell))
    r50 = 4_087_136_256
    moco = found["MoCo-v2", "imagenet", "pretrain"]
    assert moco == cost.Work(1_000_800 * 256, 1_000_800, 2 * 1_000_800 * 256 * 4 * r50)
    supervised = found["Supervised", "imagenet", "pretrain"]
    assert supervised.flops == 3 * moco.flops // 4
    assert found["SimCLR", "imagenet", "pretrain"].flops == 6 * moco.flops // 4
    linear = found["MoCo-v2", "imagenet", "linear"]
    steps = 100 * ((1_281_167 - 1000 * 50) // 256)
    assert linear == cost.Work(256 * steps, steps, 2 * 256 * steps * r50)
    rebuilt = found["MoCo-v2", "imagenet", "inversion"]
    assert rebuilt == cost.Work(3_001_000, 3_001_000, 2 * 3_001_000 * 2 * r50)
    faces = found["MoCo-v2", "celeba", "landmarks"]
    assert faces == cost.Work(200 * 148 * 128, 200 * 148, 2 * 200 * 148 * 128 * 3 * r50)
    city = found["MoCo-v2", "imagenet", "city"]
    crop = counting.macs("resnet50", 512, 1024, coarsest=8)
    assert city == cost.Work(320_000, 40_000, 2 * 320_000 * 3 * crop)
    # A photo of 4:3 at each of the sides, 600 to 800 wide and so on, and 512 regions of it.
    voc = found["MoCo-v2", "imagenet", "voc07"]
    shorts = range(480, 801, 32)
    trunk = sum(
        counting.macs("resnet50", s, round(s * 4 / 3), stages=(1, 2, 3, 4)) for s in shorts
    ) / len(shorts)
    region = counting.macs("resnet50", 14, 14, stages=(5,))
    assert voc.images == 144_000
    assert voc.flops == pytest.approx(2 * 144_000 * 3 * (trunk + 512 * region), rel=1e-9)


def test_every_row_of_every_table_has_a_cost_within_100_columns(tmp_path):
    from goodtransfer.study.tables import TABLES

    for scale in ("paper", "small", "smoke", "tiny"):
        study = Planned.open(tmp_path, scale=scale, tables=[t for t in TABLES if t != "card"])
        text = list(cost_text.lines(study, 8, 1500.0))
        assert max(map(len, text)) <= 100
        for table in (table for name, table in TABLES.items() if name != "card"):
            start = text.index(table.title)
            labels = [line[2:30].strip() for line in text[start + 2 : start + 2 + len(table.rows)]]
            assert labels == [row.label for row in table.rows]


def columns(line):
    return re.split(r"\s{2,}", line.strip())


def test_totals_count_what_rows_share_once(tmp_path, capsys):
    """Table 10's own MoCo-v2 row is Table 3's, and Figure 4's rows are two pretrainings."""
    asked = ["study", "cost", "--scale", "paper", "--table", "3", "10", "figure4"]
    assert cli([*asked, "--out", str(tmp_path / "none"), "--images-per-second", "1000"]) == 0
    printed = capsys.readouterr().out.splitlines()
    start = next(n for n, line in enumerate(printed) if line.startswith("In all, 1 run"))
    rows = {columns(line)[0]: columns(line)[1:] for line in printed[start + 2 : start + 9]}
    assert rows["pretrain"][0] == "11"  # ten of Table 10, four of them Table 3's, and Supervised
    assert rows["linear"][0] == "10"
    assert rows["voc07"][0] == rows["coco"][0] == rows["city"][0] == "4"
    assert rows["voc07_course"][0] == "20"
    image = 2 * 4 * 4_087_136_256
    flops = (10 + 3 / 4) * 1_000_800 * 256 * image
    assert rows["pretrain"][3] == cost_text.short(flops)
    assert rows["pretrain"][4] == f"{flops / image / 1000 / 3600:,.0f}"
    moco = next(line for line in printed if line.startswith("  MoCo-v2, K=64K"))
    assert columns(moco)[1:4] == ["1.28 M", "1.00 M", "256 M"]
    warned = " ".join(" ".join(printed).split())
    assert (
        "Warning: K = 1,048,576 is 82% of the 1,281,167 images of imagenet: earlier keys of a query's "
        "own image count as its negatives (MoCo-v1, MoCo-v2)." in warned
    )
    assert "are left out with their class (Exemplar-v1, Exemplar-v2)." in warned
    assert "hours: at 1000 images/s of MoCo-v2's pretraining" in warned
    assert not (tmp_path / "none").exists()


def test_a_study_s_own_folder_and_roots_are_taken(tmp_path, capsys, world):
    study = Study(tmp_path / "s", TINY, tables=("supervised",), seeds=2)
    study.save()
    assert cli(["study", "cost", "--out", str(study.out), "--devices", "1"]) == 0
    printed = capsys.readouterr().out
    assert "Scale tiny, the data it is given or draws, a batch shared by 1 device." in printed
    assert "hours" not in printed
    line = next(line for line in printed.splitlines() if line.startswith("  pretrain "))
    assert columns(line)[:4] == ["pretrain", "2", "24", "240"]  # 3 epochs of 4 steps, twice
    root = str(world.root("imagenet"))
    asked = ["study", "cost", "--scale", "small", "--data", root, "--table", "supervised"]
    assert cli([*asked, "--out", str(tmp_path / "none")]) == 0
    printed = capsys.readouterr().out
    assert "Left out: what needs --cityscapes, --coco, --voc." in printed
    assert columns(next(x for x in printed.splitlines() if "Supervised  " in x))[1] == "40"
    for wrong in (["--devices", "0"], ["--images-per-second", "0"]):
        assert cli(["study", "cost", "--out", str(study.out), *wrong]) == 2
        assert "Expected positive numbers" in capsys.readouterr().err


def test_the_cost_is_told_without_torch_and_at_once(tmp_path):
    code = (
        "import sys; from goodtransfer.cli import main\n"
        "from goodtransfer.study.tables import TABLES\n"
        "code = main(['study', 'cost', '--scale', 'paper', '--table', *(t for t in TABLES if t != 'card')])\n"
        "sys.exit(code or 3 * ('torch' in sys.modules))"
    )
    started = os.times()
    begun = time.monotonic()
    call = [sys.executable, "-c", code]
    done = subprocess.run(call, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    ended = os.times()
    used = ended.children_user + ended.children_system
    assert used - started.children_user - started.children_system < 3
    assert time.monotonic() - begun < 15  # on a busy machine
