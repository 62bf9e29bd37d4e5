"""MiniImageNetDataModule: both dialects, the originals behind the file names, and few-shot's view."""

import csv
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torchvision import transforms

from goodtransfer.data.folder import ImageFolderDataModule
from goodtransfer.data.mini_imagenet import LISTS, MiniImageNetDataModule, feature_view
from goodtransfer.data.toy_layouts import make_mini_imagenet
from goodtransfer.transfer.linear import LinearProbe
from goodtransfer.views import decode

SIZE = 8
OPTIONS = {"size": SIZE, "batch_size": 4, "views": "center", "drop_last": False}

# As published (protocol 5.3).
VALIDATION = [
    "n01855672", "n02091244", "n02114548", "n02138441", "n02174001", "n02950826", "n02971356",
    "n02981792", "n03075370", "n03417042", "n03535780", "n03584254", "n03770439", "n03773504",
    "n03980874", "n09256479",
]  # fmt: skip
NOVEL = [
    "n01930112", "n01981276", "n02099601", "n02110063", "n02110341", "n02116738", "n02129165",
    "n02219486", "n02443484", "n02871525", "n03127925", "n03146219", "n03272010", "n03544143",
    "n03775546", "n04146614", "n04149813", "n04418357", "n04522168", "n07613480",
]  # fmt: skip


def listing(data, part):
    return [(Path(path).relative_to(data.root).as_posix(), n) for path, n in data.files(part)]


def rows(root, part, dialect):
    """Path and label of each image of a toy list."""
    with (root / LISTS[part]).open() as file:
        lines = list(csv.DictReader(file))
    name, label = {"ravi": ("filename", "label"), "sicara": ("image_name", "class_name")}[dialect]
    classes = sorted({line[label] for line in lines})
    folder = "images" if dialect == "ravi" else "{}"
    return [
        (f"{folder.format(line[label])}/{line[name]}", classes.index(line[label])) for line in lines
    ], classes


@pytest.fixture(scope="module", params=["ravi", "sicara"])
def toy(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("toy") / request.param
    return make_mini_imagenet(root, per_class=10, size=32, dialect=request.param), request.param


def test_every_list_in_both_dialects(toy):
    root, dialect = toy
    data = MiniImageNetDataModule(root, **OPTIONS)
    assert data.parts == ("train", "val", "validation", "novel")
    for part in LISTS:
        expected, classes = rows(root, part, dialect)
        assert listing(data, part) == expected
        assert data.label_names(part) == classes
    assert data.class_names == data.label_names("train") == data.label_names("base")
    assert [len(data.label_names(part)) for part in LISTS] == [10, 5, 5]


def test_a_fixed_tenth_of_each_base_class_is_kept_back(toy):
    root, dialect = toy
    base, _ = rows(root, "base", dialect)
    kept = []
    for seed in (0, 1):
        data = MiniImageNetDataModule(root, seed=seed)
        train, val = listing(data, "train"), listing(data, "val")
        assert sorted(train + val) == sorted(base)
        assert Counter(label for _, label in val) == dict.fromkeys(range(10), 1)
        kept.append(val)
    assert kept[0] == kept[1]


def test_selection_comes_from_the_rest(toy):
    data = MiniImageNetDataModule(toy[0], selection=0.2, **OPTIONS)
    parts = [listing(data, part) for part in ("train", "selection", "val")]
    assert [len(part) for part in parts] == [70, 20, 10]  # round(0.2 * 9) of each
    assert sorted(image for part in parts for image in part) == sorted(listing(data, "base"))


def test_batches_show_the_listed_images(toy):
    root, _ = toy
    data = MiniImageNetDataModule(root, **OPTIONS)
    data.setup("fit")
    for part, loader in (("train", data.train_dataloader()), ("val", data.val_dataloader())):
        seen = []
        for batch in loader:
            for view, label, index in zip(batch.views[0], batch.label, batch.index, strict=True):
                path, expected = list(data.files(part))[int(index)]
                assert int(label) == expected
                middle = decode(path)[4:-4, 4:-4].mean((0, 1))  # the centre crop's, by and large
                assert np.abs(view.float().mean((1, 2)).numpy() - middle).max() < 12
                seen.append(int(index))
        assert sorted(seen) == list(range(len(data.files(part))))


# --- Few-shot


@pytest.mark.parametrize("part", LISTS)
def test_features_come_in_order(toy, part):
    data = MiniImageNetDataModule(toy[0], size=24, batch_size=16)
    index, label, views = [], [], []
    for batch in data.features_dataloader(part):
        (view,) = batch.views
        index, label = index + batch.index.tolist(), label + batch.label.tolist()
        views.append(view)
    files = list(data.files(part))
    assert index == list(range(len(files)))
    assert label == [number for _, number in files]
    expected = torch.stack([upstream_view(Image.open(path), 24) for path, _ in files])
    assert (torch.cat(views).int() - expected.int()).abs().max() <= 1


class Task(pl.LightningModule):
    """What is tested on every image once."""

    def __init__(self, parts):
        super().__init__()
        self.seen = {}
        if parts:
            self.feature_parts = parts

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        self.seen.setdefault(dataloader_idx, []).extend(
            zip(batch.index.tolist(), batch.label.tolist(), strict=True)
        )


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        (("validation", "novel"), ["validation", "novel"]),
        (("novel",), ["novel"]),
        ((), ["val"]),  # what is kept back of the base classes
    ],
)
def test_a_task_is_tested_on_the_parts_it_asks_for(toy, asked, given, trainer_options):
    data, task = MiniImageNetDataModule(toy[0], **OPTIONS), Task(asked)
    pl.Trainer(**trainer_options).test(task, data, verbose=False)
    assert [task.seen[n] for n in range(len(given))] == [
        [(number, label) for number, (_, label) in enumerate(data.files(part))] for part in given
    ]
    loaders = task.trainer.test_dataloaders
    recipes = [each.dataset.recipe.name for each in (loaders if asked else [loaders])]
    assert recipes == (["few_shot"] * len(asked) if asked else ["center"])


def test_base_accuracy_is_of_the_tenth_kept_back(toy, trainer_options):
    """Table 4's other column: a readout on the base classes."""
    data = MiniImageNetDataModule(toy[0], selection=0.2, **{**OPTIONS, "size": 32})
    probe = LinearProbe("pixels32", lrs=(0.001,), name="base_acc")
    trainer = pl.Trainer(max_epochs=2, **trainer_options)
    trainer.fit(probe, data)
    (scores,) = trainer.test(probe, data, verbose=False)
    right = []
    for number, (_, label) in enumerate(data.files("val")):
        (view,) = data.test_dataloader().dataset[number].views
        right.append(int(probe(view.unsqueeze(0)).argmax()) == label)
    assert len(right) == probe.num_classes == 10
    assert scores["base_acc"] == pytest.approx(100 * np.mean(right))
    assert "acc" not in scores


def test_features_of_the_parts_that_all_data_sets_have(tmp_path):
    """By a centre view, in order."""
    for name, value in (("b", 200), ("a", 90)):
        for n in range(3):
            path = tmp_path / "train" / name / f"{n}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 30), (value + n,) * 3).save(path)
    data = ImageFolderDataModule(tmp_path, val=None, size=8, batch_size=4)
    batches = list(data.features_dataloader("train"))
    assert torch.cat([batch.index for batch in batches]).tolist() == list(range(6))
    assert torch.cat([batch.label for batch in batches]).tolist() == [0, 0, 0, 1, 1, 1]
    views = torch.cat([batch.views[0] for batch in batches])
    assert views.shape == (6, 3, 8, 8)
    assert views[:, 0, 0, 0].tolist() == [90, 91, 92, 200, 201, 202]
    assert data.features_dataloader().dataset.targets.tolist() == [0, 0, 0, 1, 1, 1]


def upstream_view(image, size):
    side = int(size * 1.15)
    steps = [transforms.Resize([side, side]), transforms.CenterCrop(size), transforms.PILToTensor()]
    return transforms.Compose(steps)(image)


@pytest.mark.parametrize(("size", "side", "start"), [(224, 257, 16), (84, 96, 6), (100, 114, 7)])
def test_the_feature_view_is_upstreams(size, side, start):
    """The image's aspect does not count."""
    pixels = np.random.default_rng(size).integers(0, 256, (50, 90, 3), dtype=np.uint8)
    pixels = np.kron(pixels, np.ones((4, 4, 1), dtype=np.uint8))
    recipe = feature_view(size)
    assert [
        (operation.function.__name__, operation.parameters)
        for operation in recipe.draw(200, 360, 0, seed=3, epoch=1, index=2)
    ] == [("resize", (side, side)), ("crop", (start, start, size, size))]
    (view,) = recipe(pixels)
    expected = upstream_view(Image.fromarray(pixels), size)
    assert view.shape == expected.shape == (3, size, size)
    assert (view.int() - expected.int()).abs().max() <= 1


# --- Originals


def literal_original(folder, name):
    """Upstream's rule in plain steps: sort by ImageNet's number, count from one."""
    files = folder.glob(f"{folder.name}_*")  # Imagenette has some of ImageNet's val images, too
    by_number = {int(re.split(r"_|\.", file.name)[1]): file for file in files}
    ordered = [by_number[number] for number in sorted(by_number)]
    return ordered[int(name.split(".")[0][-5:]) - 1]


NUMBERS = [9, 10, 100, 2000, 30, 7, 11111]  # by name they would be 10, 100, 11111, 2000, 30, 7, 9


def originals(root):
    """Lists of Ravi and Larochelle over an ImageNet of their own."""
    for number, value in enumerate(NUMBERS):
        for label in ("n02", "n01"):
            path = root / "imagenet" / label / f"{label}_{value}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (12, 9), (30 * number, 99, 9)).save(path)
    lines = [f"{label}{k:08d}.jpg,{label}" for label in ("n02", "n01") for k in (4, 1, 7, 3)]
    for file in LISTS.values():
        (root / file).write_text("\r\n".join(["filename,label", *lines]) + "\r\n")
    return root, root / "imagenet"


def test_file_names_count_the_originals(tmp_path):
    root, imagenet = originals(tmp_path)
    data = MiniImageNetDataModule(root, imagenet=imagenet)
    expected = [  # 7, 9, 10, 30, 100, 2000, 11111
        (f"imagenet/{label}/{label}_{value}.JPEG", int(label == "n02"))
        for label in ("n02", "n01")
        for value in (30, 7, 11111, 10)
    ]
    assert listing(data, "novel") == expected
    assert listing(data, "base") == expected
    assert data.label_names("novel") == ["n01", "n02"]


def test_other_files_do_not_count(tmp_path):
    root, imagenet = originals(tmp_path)
    expected = listing(MiniImageNetDataModule(root, imagenet=imagenet), "novel")
    for name in (".DS_Store", "n01_1.JPEG", "n02.txt", "n02_x.JPEG"):
        (imagenet / "n02" / name).write_text("")
    assert listing(MiniImageNetDataModule(root, imagenet=imagenet), "novel") == expected


@pytest.mark.data
def test_real_originals(shared, tmp_path):
    imagenet = shared / "data" / "imagenette_224" / "train"
    folders = sorted(imagenet.iterdir())
    lines = [f"{f.name}{k:08d}.jpg,{f.name}" for f in folders for k in (50, 1, 17, 5)]
    for file in LISTS.values():
        (tmp_path / file).write_text("\n".join(["filename,label", *lines]))
    data = MiniImageNetDataModule(tmp_path, imagenet=imagenet, **OPTIONS)
    data.setup("fit")
    expected = [
        (str(literal_original(imagenet / label, name)), [f.name for f in folders].index(label))
        for name, label in (line.split(",") for line in lines)
    ]
    assert list(data.files("base")) == list(data.files("novel")) == expected
    batch = next(iter(data.features_dataloader("novel")))
    assert batch.views[0].shape == (4, 3, SIZE, SIZE)


@pytest.mark.data
def test_the_published_lists(shared, monkeypatch):
    """All but the images, which are not there."""
    root = shared / "data" / "fewshot_splits" / "mini_imagenet"
    data = MiniImageNetDataModule(root)
    monkeypatch.setattr(data, "existing", lambda files, source: files)
    parts = (*LISTS, "train", "val")
    counts = {part: len(data.files(part)) for part in parts} | {"classes": data.num_classes}
    assert counts == {**data.expected, "base": 38_400}
    for part in LISTS:
        expected, classes = rows(root, part, "sicara")
        assert listing(data, part) == expected
        assert data.label_names(part) == classes
        assert set(Counter(data.files(part).labels.tolist()).values()) == {600}
    assert data.label_names("validation") == VALIDATION
    assert data.label_names("novel") == NOVEL
    base = data.label_names("base")
    assert len({*base, *VALIDATION, *NOVEL}) == 64 + 16 + 20
    assert Counter(data.files("val").labels.tolist()) == dict.fromkeys(range(64), 60)


@pytest.mark.data
def test_the_published_lists_without_images(shared):
    root = shared / "data" / "fewshot_splits" / "mini_imagenet"
    imagenet = shared / "data" / "imagenette_224" / "train"
    for place in (root, imagenet):
        with pytest.raises(
            FileNotFoundError,
            match=rf"image at {place}/n01532829/n01532829_20457.JPEG, because .*train.csv lists it",
        ):
            MiniImageNetDataModule(root, imagenet=imagenet if place == imagenet else None).setup("")


# --- Faults


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("n0100000001.jpg", "Expected two words, filename,label, but found 'n0100000001.jpg'"),
        ("n0100000001.jpg,n01,3", "but found 'n0100000001.jpg,n01,3'"),
        ("n0100000001.jpg,", "but found 'n0100000001.jpg,'"),
        ("n01.jpg,n01", "name that ends in five digits, but found 'n01.jpg'"),
        (
            "n0100000000.jpg,n01",
            "image 0 of class n01 in `imagenet`, but the folder has 7: it must",
        ),
        (
            "n0100000008.jpg,n01",
            "image 8 of class n01 in `imagenet`, but the folder has 7: it must",
        ),
        (
            "n0300000001.jpg,n03",
            "image 1 of class n03 in `imagenet`, but the folder has 0: it must",
        ),
    ],
)
def test_a_line_that_cannot_be_used(tmp_path, line, message):
    root, imagenet = originals(tmp_path)
    source = root / "train.csv"
    lines = source.read_text().splitlines()
    source.write_text("\n".join([*lines[:3], line, *lines[3:]]))
    with pytest.raises(ValueError) as error:
        MiniImageNetDataModule(root, imagenet=imagenet).setup("fit")
    assert str(error.value).startswith(f"In line 4 of {source}: Expected ")
    assert message in str(error.value)
    data = MiniImageNetDataModule(root, imagenet=imagenet, on_error="skip")
    assert len(data.files("base")) == 8
    assert data.label_names("base") == ["n01", "n02"]
    assert data.skipped == [str(error.value)]


@pytest.mark.parametrize("dialect", ["ravi", "sicara"])
def test_a_name_that_leads_elsewhere(tmp_path, dialect):
    root = make_mini_imagenet(tmp_path / "toy", per_class=2, size=32, dialect=dialect)
    with (root / "val.csv").open("a") as file:
        file.write({"ravi": "../a.jpg,n1\n", "sicara": "../..,a.jpg\n"}[dialect])
    with pytest.raises(ValueError, match=r"In line 12 of .*val.csv: .*'.*\.\./.*leads elsewhere"):
        MiniImageNetDataModule(root).files("validation")
    data = MiniImageNetDataModule(root, on_error="skip")
    assert len(data.files("validation")) == 10
    assert len(data.skipped) == 1


@pytest.mark.parametrize("heading", ["", "label,filename", "n0153282900000005.jpg,n01532829"])
def test_another_heading(tmp_path, heading):
    (tmp_path / "train.csv").write_text(f"{heading}\na.jpg,b\n")
    with pytest.raises(
        ValueError,
        match=rf"heading of .*train.csv to be filename,label or class_name,.* got '{heading}'",
    ):
        MiniImageNetDataModule(tmp_path).setup("fit")


def test_an_empty_list(tmp_path):
    (tmp_path / "test.csv").write_text("")
    with pytest.raises(ValueError, match="heading of .*test.csv .* but got ''"):
        MiniImageNetDataModule(tmp_path).files("novel")


def test_a_missing_list(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"(?s)a list at .*train.csv.*expected tree.*images"
    ):
        MiniImageNetDataModule(tmp_path / "nowhere").setup("fit")


def test_a_listed_image_that_is_missing(tmp_path):
    root = make_mini_imagenet(tmp_path / "toy", per_class=2, size=32)
    name, _ = rows(root, "novel", "ravi")[0][3]
    (root / name).unlink()
    with pytest.raises(
        FileNotFoundError, match=f"image at {root / name}, because .*test.csv lists"
    ):
        MiniImageNetDataModule(root).files("novel")
    data = MiniImageNetDataModule(root, on_error="skip")
    assert (len(data.files("novel")), len(data.skipped)) == (9, 1)
