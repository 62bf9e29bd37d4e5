"""ImageNetDataModule on small trees: what is in a batch, by value, and what it refuses."""

import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import nn
from torchvision.datasets import ImageFolder

from goodtransfer.data import ImageNetDataModule
from goodtransfer.data.files import scan
from goodtransfer.data.folder import with_classes
from goodtransfer.data.images import Parts
from goodtransfer.views import decode, recipe

SIZE = 8


def paint(path, colour, size=(10, 9)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def colour_of(number):
    """One colour per image of a tree, so that a batch tells its files."""
    return number % 256, number // 256, 77


def make_tree(root, train, val, suffix="png"):
    """Class name -> number of images; returns the colour of every path."""
    colours = {}
    for split, classes in (("train", train), ("val", val)):
        for name, count in classes.items():
            for i in range(count):
                path = root / split / name / f"{i:03d}.{suffix}"
                colours[str(path)] = colour_of(len(colours))
                paint(path, colours[str(path)])
    return colours


@pytest.fixture
def tree(tmp_path):
    colours = make_tree(tmp_path, {"cat": 12, "ant": 8, "bee": 10}, {"cat": 2, "ant": 3, "bee": 4})
    return tmp_path, colours


def paths(data, part):
    """Paths below the root of the images of ``train``, ``selection`` or ``val``."""
    return [Path(path).relative_to(data.root).as_posix() for path, _ in data.files(part)]


def contents(loader):
    """(index, label, colour) of every image a loader gives, from one view each."""
    for batch in loader:
        (view,) = batch.views
        assert view.dtype == torch.uint8
        assert view.shape[1:] == (3, SIZE, SIZE)
        assert (view == view[:, :, :1, :1]).all()
        colours = view[:, :, 0, 0].tolist()
        yield from zip(batch.index.tolist(), batch.label.tolist(), colours, strict=True)


def expected_contents(root, colours, split):
    samples = ImageFolder(str(root / split)).samples
    return [(i, label, list(colours[path])) for i, (path, label) in enumerate(samples)]


def test_counts_and_classes(tree):
    root, _ = tree
    data = ImageNetDataModule(root)
    assert (data.num_classes, data.num_images) == (3, 30)
    assert data.class_names == ImageFolder(str(root / "train")).classes == ["ant", "bee", "cat"]


def test_evaluation_gives_every_image_in_order(tree):
    root, colours = tree
    data = ImageNetDataModule(root, size=SIZE, batch_size=4)
    for loader in (data.val_dataloader(), data.test_dataloader()):
        assert list(contents(loader)) == expected_contents(root, colours, "val")
        assert len(loader) == 3  # the last of one image


@pytest.mark.parametrize("drop_last", [True, False])
def test_training_gives_every_image_once_an_epoch(tree, drop_last):
    root, colours = tree
    data = ImageNetDataModule(root, size=SIZE, batch_size=7, views="center", drop_last=drop_last)
    seen, expected = (
        list(contents(data.train_dataloader())),
        expected_contents(root, colours, "train"),
    )
    assert len(seen) == (28 if drop_last else 30)
    assert len({index for index, *_ in seen}) == len(seen)
    assert all(image == expected[image[0]] for image in seen)
    assert seen != sorted(seen)


def test_views_keep_the_whole_range_of_uint8(tmp_path):
    for split in ("train", "val"):
        paint(tmp_path / split / "a" / "dark.png", (0, 0, 0))
        paint(tmp_path / split / "a" / "light.png", (255, 255, 255))
    (batch,) = ImageNetDataModule(tmp_path, size=SIZE).val_dataloader()
    assert [v.unique().tolist() for v in batch.views[0]] == [[0], [255]]


def test_tenth_of_every_class(tmp_path):
    make_tree(tmp_path, {"a": 30, "b": 4, "c": 20}, {"a": 1, "b": 1, "c": 1})
    data, again = (ImageNetDataModule(tmp_path, subset="10%", seed=s) for s in (0, 1))
    assert (data.num_images, data.num_classes) == (3 + 1 + 2, 3)
    assert again.num_images == 6
    assert paths(data, "train") == paths(again, "train")  # one subset for every seed of a run
    assert data.files("train").labels.tolist() == [0, 0, 0, 1, 2, 2]


def test_a_tenth_of_images_without_labels(tree):
    root, _ = tree
    data = ImageNetDataModule(root, subset="10%", labelled=False)
    assert (data.class_names, data.num_images, len(data.files("val"))) == ([], 3, 9)
    assert {*data.files("train").labels, *data.files("val").labels} == {-1}


def test_images_without_a_label_keep_none(tree):
    """Not that of the last class, which Python's -1 would be."""
    root, _ = tree
    train, names = scan(root / "train", "")
    parts = Parts(names, train, train.relabelled(np.where(train.labels == 1, -1, train.labels)))
    chosen = train.relabelled(np.where(train.labels == 0, -1, train.labels))
    chosen = chosen.take(chosen.labels < 2)
    found = with_classes(parts, chosen)
    assert found.class_names == ["bee"]
    assert found.train.labels.tolist() == [-1] * 8 + [0] * 10
    assert found.val.labels.tolist() == [-1] * 10
    assert [found.val.name(n)[:3] for n in range(10)] == ["bee"] * 10


def test_hundred_classes(tmp_path):
    names = [f"n{i:03d}" for i in range(120)]
    make_tree(tmp_path, dict.fromkeys(names, 1), dict.fromkeys(names, 1))
    data = ImageNetDataModule(tmp_path, subset="100 classes", size=SIZE)
    assert (data.num_classes, data.num_images) == (100, 100)
    assert data.class_names == sorted(set(data.class_names))
    for part in ("train", "val"):
        labelled = {path.split("/")[1]: label for path, label in zip(
            paths(data, part), data.files(part).labels.tolist(), strict=True)}  # fmt: skip
        assert labelled == {name: i for i, name in enumerate(data.class_names)}
    assert ImageNetDataModule(tmp_path, subset="100 classes", seed=5).num_classes == 100
    share = ImageNetDataModule(tmp_path, subset="10% of classes", size=SIZE)
    fewer = ImageNetDataModule(tmp_path, subset="7 classes", size=SIZE)
    whole = ImageNetDataModule(tmp_path, size=SIZE)
    assert (share.num_classes, fewer.num_classes) == (round(whole.num_classes / 10), 7)
    assert set(fewer.class_names) < set(share.class_names) < set(data.class_names)


@pytest.mark.parametrize(
    ("lines", "train", "classes"),
    [
        ("bee\n\ncat/\n", ["bee"] * 10 + ["cat"] * 12, ["bee", "cat"]),
        ("cat/003.png\nant/001.png\n", ["ant", "cat"], ["ant", "cat"]),
    ],
)
def test_a_list_of_classes_or_images(tree, lines, train, classes):
    """The classes that are left are numbered anew, in train and val alike."""
    root, colours = tree
    file = root / "list.txt"
    file.write_text(lines)
    for subset in (file, str(file)):
        data = ImageNetDataModule(root, subset=subset, size=SIZE, batch_size=2)
        assert [path.split("/")[1] for path in paths(data, "train")] == train
        assert data.class_names == classes
    named = {tuple(colour): path for path, colour in colours.items()}
    for _, label, colour in contents(data.val_dataloader()):
        assert Path(named[tuple(colour)]).parent.name == classes[label]


def test_class_names_in_any_order(tree):
    root, _ = tree
    for subset in (["cat", "bee"], ("bee", "cat")):
        data = ImageNetDataModule(root, subset=subset)
        assert data.class_names == ["bee", "cat"]
        assert [path.split("/")[1] for path in paths(data, "train")] == ["bee"] * 10 + ["cat"] * 12
        assert data.files("val").labels.tolist() == [0] * 4 + [1] * 2
    for lost, hint in (("bees", "did you mean 'bee'\\?"), ("x", "choose of ant, bee, cat.")):
        with pytest.raises(ValueError, match=f"folders of .*/train, but got '{lost}': {hint}"):
            ImageNetDataModule(root, subset=["cat", lost]).setup("fit")


@pytest.mark.parametrize(
    ("subset", "message"),
    [("dog\nbee\n", r"1 of 2 entries name nothing there: \['dog'\]"), ("", "0 of 0 entries")],
)
def test_a_list_that_names_nothing(tree, subset, message):
    root, _ = tree
    (root / "list.txt").write_text(subset)
    with pytest.raises(ValueError, match=message):
        ImageNetDataModule(root, subset=root / "list.txt").setup("fit")
    with pytest.raises(
        FileNotFoundError,
        match=r"'N classes', 'N% of classes', a text file or a list of class folders, but got 'some'",
    ):
        ImageNetDataModule(root, subset="some").setup("fit")


def test_selection_is_a_share_of_every_class_apart_from_training(tree):
    root, colours = tree
    everything = set(paths_of(root, "train"))
    data = ImageNetDataModule(root, selection=0.25, size=SIZE, batch_size=2)
    assert data.num_images == 30 - (2 + 2 + 3)  # round(0.25 * 8), round(2.5), round(3.0)
    train, selected = set(paths(data, "train")), set(paths(data, "selection"))
    assert not train & selected
    assert train | selected == everything
    assert (
        sorted(path.split("/")[1] for path in selected) == ["ant"] * 2 + ["bee"] * 2 + ["cat"] * 3
    )
    shown = {tuple(colour) for _, _, colour in contents(data.val_dataloader())}
    assert shown == {colours[str(root / path)] for path in selected}
    tested = list(contents(data.test_dataloader()))
    assert tested == expected_contents(root, colours, "val")
    for seed in (0, 1):
        again = ImageNetDataModule(root, selection=0.25, seed=seed)
        assert (set(paths(again, "selection")) == selected) == (seed == 0)


def paths_of(root, split):
    return [p.relative_to(root).as_posix() for p in (root / split).rglob("*.png")]


def test_selection_takes_at_most_fifty_of_a_class(tmp_path):
    make_tree(tmp_path, {"a": 70, "b": 5}, {"a": 1, "b": 1})
    data = ImageNetDataModule(tmp_path, selection=0.8)
    assert data.num_images == 75 - 50 - 4


class Method(pl.LightningModule):
    """The least a data module asks of a method: the name of its views."""

    def __init__(self, views=None):
        super().__init__()
        if views is not None:
            self.views = views
        self.weight = nn.Parameter(torch.zeros(()))
        self.shapes = []

    def training_step(self, batch, batch_idx):
        self.shapes.append([tuple(v.shape) for v in batch.views])
        return self.weight * 0

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(method, data, options):
    trainer = pl.Trainer(max_epochs=1, limit_train_batches=1, limit_val_batches=0, **options)
    trainer.fit(method, datamodule=data)
    return method.shapes


def test_views_come_from_the_method_or_are_given(tree, trainer_options):
    root, _ = tree
    one, two = [[(4, 3, SIZE, SIZE)]], [[(4, 3, SIZE, SIZE)] * 2]

    def data(**arguments):
        return ImageNetDataModule(root, batch_size=4, size=SIZE, **arguments)

    assert fit(Method("moco_v1"), data(), trainer_options) == two
    assert fit(Method("supervised"), data(), trainer_options) == one
    assert fit(Method("moco_v2"), data(views="linear"), trainer_options) == one
    own = recipe("moco_v2", 5)
    assert fit(Method("linear"), data(views=own), trainer_options) == [[(4, 3, 5, 5)] * 2]
    with pytest.raises(
        ValueError, match=r"the module being fitted names no recipe, so pass.*moco_v1"
    ):
        fit(Method(), data(), trainer_options)
    with pytest.raises(ValueError, match="Expected views: the module being fitted"):
        data().train_dataloader()
    with pytest.raises(ValueError, match="but got 'simsiam'"):
        fit(Method("simsiam"), data(), trainer_options)


def noisy_tree(root):
    """Images of noise, of several sizes and modes."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2)):
        for name in ("a", "b"):
            for i in range(count):
                path = root / split / name / f"{i}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = generator.integers(0, 256, (12 + i, 20 - i, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(path)
    return root


def epoch_of(loader, epoch=0):
    loader.sampler.set_epoch(epoch)
    return [
        (b.index.tolist(), b.label.tolist(), *(v.numpy().tobytes() for v in b.views))
        for b in loader
    ]


def test_views_and_order_do_not_depend_on_workers(tmp_path):
    root = noisy_tree(tmp_path)

    def loader(workers, seed=0):
        data = ImageNetDataModule(
            root, batch_size=5, size=SIZE, views="moco_v2", num_workers=workers, seed=seed
        )
        return data.train_dataloader()

    expected = [epoch_of(loader(0), epoch) for epoch in (0, 1)]
    for workers in (1, 2):
        random.seed(workers)
        torch.manual_seed(workers)
        made = loader(workers)
        assert [epoch_of(made, epoch) for epoch in (0, 1)] == expected
    assert [indices for indices, *_ in expected[0]] != [indices for indices, *_ in expected[1]]
    assert epoch_of(loader(0, seed=1)) != expected[0]
    by_image = [{}, {}]
    for views, epoch in zip(by_image, expected, strict=True):
        for indices, _, first, second in epoch:
            assert first != second
            views[tuple(indices)] = first
    assert not set(by_image[0].values()) & set(by_image[1].values())


@pytest.mark.parametrize("workers", [0, 2])
def test_no_global_generator_moves(tmp_path, workers):
    """Neither the views nor the loader: what a method draws is then the same for any data."""
    data = ImageNetDataModule(
        noisy_tree(tmp_path), batch_size=4, size=SIZE, views="moco_v2", num_workers=workers
    )

    def states():
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()

    before = states()
    list(data.train_dataloader())
    list(data.val_dataloader())
    assert states() == before


def test_fingerprint_changes_with_the_files(tree):
    root, _ = tree
    before = ImageNetDataModule(root).fingerprint()
    assert ImageNetDataModule(root, batch_size=2, views="linear").fingerprint() == before
    paint(root / "train" / "bee" / "999.png", (0, 0, 0))
    assert ImageNetDataModule(root).fingerprint() != before


@pytest.mark.parametrize(
    ("mode", "colour", "suffix", "expected"),
    [
        ("RGB", (10, 200, 30), "png", (10, 200, 30)),
        ("L", 90, "png", (90, 90, 90)),
        ("L", 90, "jpg", (90, 90, 90)),
        ("1", 1, "png", (255, 255, 255)),
        ("LA", (90, 40), "png", (90, 90, 90)),
        ("P", 5, "png", (10, 200, 30)),
        ("P", 5, "gif", (10, 200, 30)),
        ("RGBA", (10, 200, 30, 0), "png", (10, 200, 30)),
        ("CMYK", (255, 0, 0, 0), "jpg", (0, 255, 255)),
        ("YCbCr", (128, 128, 128), "jpg", (128, 128, 128)),
    ],
)
def test_every_mode_is_read_as_rgb(tmp_path, mode, colour, suffix, expected):
    image = Image.new(mode, (16, 16), colour)
    if mode == "P":
        image.putpalette([0] * 15 + [10, 200, 30])
    image.save(tmp_path / f"image.{suffix}")
    read = decode(tmp_path / f"image.{suffix}")
    assert (read.dtype, read.shape) == (np.uint8, (16, 16, 3))
    assert np.abs(read.astype(int) - expected).max() <= 2


def test_a_palette_with_transparent_entries_is_read_in_silence(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([1, 2, 3, 10, 200, 30])
    image.save(tmp_path / "image.png", transparency=b"\x00\x80")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(tmp_path / "image.png")[0, 0].tolist() == [10, 200, 30]


def failure_of(loader):
    try:
        list(loader)
    except OSError as error:
        error.__traceback__ = None  # while it lives, torch takes ten seconds to end the workers
        return str(error)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("content", [b"", b"not an image", None])
def test_an_image_that_cannot_be_decoded_is_named(tmp_path, workers, content):
    broken = noisy_tree(tmp_path) / "val" / "b" / "1.jpg"
    broken.write_bytes(broken.read_bytes()[:400] if content is None else content)
    data = ImageNetDataModule(tmp_path, batch_size=2, size=SIZE, num_workers=workers)
    message = failure_of(data.val_dataloader())
    assert f"Expected an image at {broken}, but it cannot be decoded (" in message
    assert "): replace or remove the file." in message


def test_a_missing_root(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"(?s)classes at .*nowhere/train\..*train/CLASS/image.jpg"
    ):
        ImageNetDataModule(tmp_path / "nowhere").setup("fit")
    make_tree(tmp_path, {"a": 1}, {})
    with pytest.raises(FileNotFoundError, match=r"(?s)classes at .*/val\..*val/CLASS/image.jpg"):
        _ = ImageNetDataModule(tmp_path).num_classes


def test_a_class_without_images(tree):
    root, _ = tree
    for path in (root / "train" / "bee").iterdir():
        path.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"(?s)every class folder in .*/train to hold .*bee"
    ):
        ImageNetDataModule(root).setup("fit")


def test_a_folder_without_classes(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(FileNotFoundError, match=r"(?s)there is no folder.*train/CLASS"):
        ImageNetDataModule(tmp_path).setup("fit")


def test_other_classes_in_val(tree):
    root, _ = tree
    (root / "val" / "bee").rename(root / "val" / "wasp")
    with pytest.raises(ValueError, match=r"2 are in one only: \['bee', 'wasp'\]"):
        ImageNetDataModule(root).setup("fit")


def test_fewer_images_than_one_batch(tree):
    root, _ = tree
    with pytest.raises(
        ValueError, match=r"has 30 images to train on for 1 x batch_size=31: lower it, or pass drop"
    ):
        ImageNetDataModule(root, batch_size=31).setup("fit")
    ImageNetDataModule(root, batch_size=31, drop_last=False).setup("fit")
    ImageNetDataModule(root, batch_size=31).setup("test")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "`batch_size` to be positive, but got 0"),
        ({"size": -1}, "`size` to be positive, but got -1"),
        ({"selection": 1.0}, r"`selection` in \[0, 1\), but got 1.0"),
        ({"selection": -0.1}, "but got -0.1"),
    ],
)
def test_impossible_arguments(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        ImageNetDataModule(tmp_path, **arguments)
