"""ImageFolderDataModule: your own images, with or without classes and splits."""

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from goodtransfer import ImageFolderDataModule, MoCoV2


def paint(root, *names):
    """Every image has a colour of its own."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 10), (number, 0, 90)).save(root / name)


NAMES = [
    f"seg_{s}/{c}/{n}.png" for s in ("train", "test") for c in ("sea", "ice") for n in range(5)
]


@pytest.fixture
def tree(tmp_path):
    paint(tmp_path, *NAMES)
    return tmp_path


def contents(loader):
    return [
        (index, label, colour)
        for b in loader
        for index, label, colour in zip(
            b.index.tolist(), b.label.tolist(), b.views[0][:, 0, 0, 0].tolist(), strict=True
        )
    ]


def test_splits_of_any_name(tree):
    data = ImageFolderDataModule(tree, train="seg_train", val="seg_test", size=8, batch_size=4)
    assert data.class_names == ["ice", "sea"]
    assert (data.num_classes, data.num_images, data.parts) == (2, 10, ("train", "val"))
    samples = ImageFolder(str(tree / "seg_test")).samples
    expected = [
        (n, label, NAMES.index(path[len(str(tree)) + 1 :]))
        for n, (path, label) in enumerate(samples)
    ]
    assert contents(data.test_dataloader()) == contents(data.val_dataloader()) == expected


def test_the_root_may_be_the_only_split(tree):
    data = ImageFolderDataModule(tree / "seg_train", train=".", val=None, size=8, selection=0.2)
    assert data.num_images == 8
    assert data.parts == ("train",)
    shown = contents(data.val_dataloader())
    assert sorted(label for _, label, _ in shown) == [0, 1]
    with pytest.raises(ValueError, match=r"images of 'val' in .*pass selection=0.1 to validate"):
        data.test_dataloader()
    without = ImageFolderDataModule(tree / "seg_train", train=".", val=None, size=8)
    assert without.val_dataloader() == []
    with pytest.raises(ValueError, match="images of 'selection' .*: pass selection=0.1"):
        without.files("selection")


def test_images_without_labels(tree):
    paint(tree, "loose.png")
    data = ImageFolderDataModule(tree, train=".", val=None, labelled=False, size=8, views="center")
    assert (data.num_images, data.num_classes, data.class_names) == (21, 0, [])
    batches = contents(ImageFolderDataModule(
        tree, train=".", val=None, labelled=False, size=8, views="center", batch_size=21
    ).train_dataloader())  # fmt: skip
    assert {label for _, label, _ in batches} == {-1}
    assert sorted(index for index, _, _ in batches) == list(range(21))


def test_a_method_pretrains_on_a_folder_without_labels(tree, trainer_options):
    data = ImageFolderDataModule(
        tree, train=".", val=None, labelled=False, size=16, batch_size=8, num_workers=0
    )
    method = MoCoV2("resnet10w32", queue_size=16, bn_groups=2)
    before = {name: p.clone() for name, p in method.named_parameters() if p.requires_grad}
    pl.Trainer(max_epochs=1, limit_val_batches=0, **trainer_options).fit(method, data)
    assert any(not torch.equal(before[n], p) for n, p in method.named_parameters() if n in before)
    labels = method.queue.labels
    assert set(np.unique(labels.numpy())) == {-1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"(?s)folder of classes at .*/train\..*/train/CLASS/image.jpg"),
        ({"train": "seg_train", "val": "x"}, r"(?s)folder of classes at .*/x\..*/x/CLASS/image.jpg"),
        ({"train": "x", "val": None, "labelled": False}, "folder of images at .*/x"),
    ],
)  # fmt: skip
def test_a_missing_folder(tree, options, message):
    with pytest.raises(FileNotFoundError, match=message):
        _ = ImageFolderDataModule(tree, **options).num_images


def test_other_classes_in_another_split(tree):
    (tree / "seg_test" / "ice").rename(tree / "seg_test" / "fog")
    with pytest.raises(
        ValueError, match=r"in seg_train and seg_test of .* 2 are in one only: \['fog'"
    ):
        _ = ImageFolderDataModule(tree, train="seg_train", val="seg_test").num_images


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_class_without_images(tree, on_error, caplog):
    for path in (tree / "seg_train" / "ice").iterdir():
        path.unlink()
    data = ImageFolderDataModule(tree, train="seg_train", val="seg_test", on_error=on_error)
    if on_error == "raise":
        with pytest.raises(
            FileNotFoundError, match=r"(?s)found none in ice \(1 of 2 classes\).*CLASS"
        ):
            _ = data.num_images
    else:
        assert (data.num_images, data.class_names) == (5, ["ice", "sea"])
        assert ["none in ice" in line for line in data.skipped] == [True]
        assert "left out" in caplog.text


@pytest.mark.data
def test_real_folders_with_other_names(shared):
    """Scenes whose splits are called seg_train and seg_test; some are less high than the others."""
    data = ImageFolderDataModule(
        shared / "data/intel_scenes", train="seg_train", val="seg_test", size=64, batch_size=32
    )
    assert (data.num_images, data.num_classes) == (360, 6)
    batch = next(iter(data.test_dataloader()))
    assert batch.views[0].shape == (32, 3, 64, 64)
    assert batch.label.tolist() == [0] * 25 + [1] * 7
