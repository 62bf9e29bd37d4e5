"""SegmentationDataModule on small trees: what is in a batch, by value, and what it refuses."""

import logging
import pickle
import random

import cv2
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from goodtransfer.data.files import scan_flat
from goodtransfer.data.segmentation import Pairs, SegmentationDataModule
from goodtransfer.views import ImageReadError
from goodtransfer.views.segmentation import SegmentationView

IDS = {0: 255, 10: 0, 20: 1, 30: 2}  # numbers in the files, and their train ids
TINY = {"crop": (6, 8), "nominal": (12, 16)}


class Streets(SegmentationDataModule):
    """ROOT/{train,val}/{images,labels}/*.png."""

    class_names = ("road", "tree", "car")
    train_ids = IDS

    def read(self, part):
        images, labels = (scan_flat(self.root / part / kind) for kind in ("images", "labels"))
        return self.paired(images, labels, images.names)


def make_pair(folder, number, size):
    """Noise and a map of blocks; returns both, and the train ids by a plain loop."""
    generator = np.random.default_rng(number)
    image = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
    numbers = generator.choice(list(IDS), size).astype(np.uint8)
    for kind, pixels in (("images", image[..., ::-1]), ("labels", numbers)):
        path = folder / kind / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), pixels)
    return image, np.array([[IDS[int(n)] for n in row] for row in numbers], dtype=np.uint8)


@pytest.fixture
def tree(tmp_path):
    """The root, and what is in it by part."""
    made = {
        "train": [make_pair(tmp_path / "train", n, (12, 16)) for n in range(10)],
        "val": [make_pair(tmp_path / "val", 50 + n, (9 + n, 14 - n)) for n in range(4)],
    }
    return tmp_path, made


def batches(loader, epoch=0):
    loader.sampler.set_epoch(epoch)
    return [
        (images.numpy(), target["classes"].numpy(), target["image_id"].tolist())
        for images, target in loader
    ]


def as_bytes(found):
    return [(images.tobytes(), classes.tobytes(), ids) for images, classes, ids in found]


def test_counts_and_classes(tree):
    data = Streets(tree[0])
    assert (data.num_images, data.num_classes) == (10, 3)
    pairs = data.files("train")
    assert [pairs.images.name(n) for n in range(10)] == [f"{n:03d}.png" for n in range(10)]
    assert [pairs.labels.name(n) for n in range(10)] == [f"{n:03d}.png" for n in range(10)]
    assert pairs.labels.root == tree[0] / "train" / "labels"


def test_evaluation_gives_whole_images_one_by_one_in_order(tree):
    root, made = tree
    data = Streets(root, batch_size=3, **TINY)
    data.setup("test")
    for loader in (data.val_dataloader(), data.test_dataloader()):
        found = batches(loader)
        assert [ids for *_, ids in found] == [[0], [1], [2], [3]]
        for (images, classes, _), (image, train_ids) in zip(found, made["val"], strict=True):
            assert (images.dtype, classes.dtype) == (np.uint8, np.uint8)
            assert (images == image.transpose(2, 0, 1)[None]).all()
            assert (classes == train_ids[None]).all()


def test_training_gives_crops_of_every_image_once_an_epoch(tree):
    root, made = tree
    data = Streets(root, batch_size=3, seed=7, **TINY)
    data.setup("fit")
    view = SegmentationView((6, 8), (0.5, 2.0), (12, 16))
    orders = []
    for epoch in (0, 1):
        found = batches(data.train_dataloader(), epoch)
        assert [images.shape for images, *_ in found] == [(3, 3, 6, 8)] * 3  # the tenth is dropped
        orders.append([number for *_, ids in found for number in ids])
        assert len(set(orders[-1])) == 9
        for images, classes, ids in found:
            for image, told, number in zip(images, classes, ids, strict=True):
                crop = view(*made["train"][number], seed=7, epoch=epoch, index=number)
                assert (image.transpose(1, 2, 0) == crop[0]).all()
                assert (told == crop[1]).all()
    assert orders[0] != orders[1] != sorted(orders[1])


def test_the_order_is_the_seeds(tree):
    def order(seed):
        found = batches(Streets(tree[0], seed=seed, **TINY).train_dataloader())
        return [number for *_, ids in found for number in ids]

    assert order(0) == order(0)
    assert order(0) != order(1)


def test_the_papers_protocol_is_the_default(tree):
    data = Streets(tree[0])
    assert data.view == SegmentationView((512, 1024), (0.5, 2.0), (1024, 2048))
    assert data.batch_size == 2


def test_crops_and_order_do_not_depend_on_workers(tree):
    root, _ = tree

    def epochs(**options):
        data = Streets(root, **TINY, **options)
        loader = data.train_dataloader()
        return [as_bytes(batches(loader, epoch)) for epoch in (0, 1)]

    def states():
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()

    expected, before = epochs(), states()
    for workers in (1, 2):
        assert epochs(num_workers=workers) == expected
    assert states() == before
    assert expected[0] != expected[1]
    assert epochs(seed=1)[0] != expected[0]


def test_a_data_set_can_be_sent_to_a_worker(tree):
    dataset = Streets(tree[0], **TINY).train_dataloader().dataset
    again = pickle.loads(pickle.dumps(dataset))
    for (image, target), (other, told) in ((dataset[1, n], again[1, n]) for n in range(10)):
        assert torch.equal(image, other)
        assert torch.equal(target["classes"], told["classes"])


class Task(pl.LightningModule):
    """Counts what it is given."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen = {"train": [], "val": []}

    def training_step(self, batch, batch_idx):
        self.seen["train"].append(tuple(batch[1]["classes"].shape))
        return self.weight * 0

    def validation_step(self, batch, batch_idx):
        self.seen["val"].append(tuple(batch[1]["classes"].shape))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_it_trains_and_every_step_is_whole(tree, trainer_options):
    """Ten images, two micro-batches of two: two steps of four, and two images wait."""
    task = Task()
    trainer = pl.Trainer(
        max_epochs=1, accumulate_grad_batches=2, num_sanity_val_steps=0, **trainer_options
    )
    trainer.fit(task, datamodule=Streets(tree[0], batch_size=2, **TINY))
    assert task.seen["train"] == [(2, 6, 8)] * 4
    assert task.seen["val"] == [(1, 9 + n, 14 - n) for n in range(4)]


def test_too_few_images_for_a_step(tree):
    with pytest.raises(ValueError, match=r"has 10 images to train on for 1 ranks x batch_size=11"):
        Streets(tree[0], batch_size=11).setup("fit")
    with pytest.raises(ValueError, match="`batch_size` to be positive, but got 0"):
        Streets(tree[0], batch_size=0)


def test_a_part_without_images(tree):
    class NoVal(Streets):
        def read(self, part):
            pairs = super().read(part)
            none = np.zeros(0, dtype=np.int64)
            return pairs if part == "train" else Pairs(*(f.take(none) for f in (pairs.images,) * 2))

    data = NoVal(tree[0])
    data.setup("fit")
    assert data.val_dataloader() == []
    for refused in (data.test_dataloader, lambda: data.setup("test")):
        with pytest.raises(ValueError, match=r"images of 'val' in .*, but NoVal finds none"):
            refused()


def test_fingerprint_changes_with_the_files_and_the_classes(tree):
    root, _ = tree
    before = Streets(root).fingerprint()
    assert Streets(root, batch_size=5, seed=3).fingerprint() == before

    class Other(Streets):
        train_ids = IDS | {30: 255}

    assert Other(root).fingerprint() != before
    label = root / "val" / "labels" / "051.png"
    kept = label.read_bytes()
    label.write_bytes(kept + b"\0")
    assert Streets(root).fingerprint() != before
    label.write_bytes(kept)
    assert Streets(root).fingerprint() == before
    make_pair(root / "train", 99, (12, 16))
    assert Streets(root).fingerprint() != before


# --- Faults of the folders


def lose(root, part, kind, number):
    (root / part / kind / f"{number:03d}.png").unlink()


def test_an_image_and_its_label_come_together(tree):
    root, made = tree
    lose(root, "val", "labels", 51)
    lose(root, "val", "images", 53)
    label, image = root / "val/labels/051.png", root / "val/images/051.png"
    message = rf"Expected a label at {label}, because there is an image at {image}"
    for use in (lambda data: data.setup("test"), lambda data: data.setup("fit")):
        with pytest.raises(FileNotFoundError, match=message):
            use(Streets(root))
    data = Streets(root, on_error="skip")
    found = batches(data.test_dataloader())
    assert [ids for *_, ids in found] == [[0], [1]]
    for (images, classes, _), number in zip(found, (0, 2), strict=True):
        image, train_ids = made["val"][number]
        assert (images[0] == image.transpose(2, 0, 1)).all()
        assert (classes[0] == train_ids).all()
    first, second = data.skipped
    assert "labels/051.png, because" in first
    assert f"below {root}/val/images for the label {root}/val/labels/053.png" in second
    lose(root, "val", "images", 51)
    with pytest.raises(FileNotFoundError, match=r"for the label .*labels/053.png, but found none"):
        Streets(root).files("val")


def test_labels_are_found_by_name_not_by_place(tree):
    """Where the names of images and labels sort differently."""
    root, _ = tree
    files = scan_flat(root / "val" / "images")
    wanted = np.array([b"053.png", b"050.png", b"052.png", b"051.png"])
    pairs = Streets(root).paired(files, scan_flat(root / "val" / "labels"), wanted)
    together = [(pairs.images.name(n), pairs.labels.name(n)) for n in range(len(pairs))]
    images = [f"{n:03d}.png" for n in range(50, 54)]
    assert sorted(together) == list(zip(images, wanted.astype(str).tolist(), strict=True))


# --- Faults of files


def cut_off(path):
    path.write_bytes(path.read_bytes()[:70])


def unknown(path):
    numbers = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    numbers[3, 4] = 31
    cv2.imwrite(str(path), numbers)


def lower(path):
    cv2.imwrite(str(path), np.full((10, 12), 10, dtype=np.uint8))


def on_its_side(path):
    cv2.imwrite(str(path), np.full((12, 11), 10, dtype=np.uint8))


# What is done to which file, and what is said; how labels themselves go wrong, test_label_maps has.
FAULTS = [
    ("images", cut_off, OSError, "images/052.png, but it cannot be decoded"),
    ("labels", cut_off, OSError, "labels/052.png, but its PNG is damaged"),
    ("labels", unknown, ValueError, "labels/052.png, but found 31: "),
    (
        "labels", lower, ValueError,
        "labels/052.png to be 12 x 11 pixels, as its image is, but it is 12 x 10: ",
    ),
    ("labels", on_its_side, ValueError, "to be 12 x 11 .* but it is 11 x 12: "),
]  # fmt: skip


@pytest.mark.parametrize(("folder", "spoil", "kind", "message"), FAULTS)
def test_a_file_that_cannot_be_used(tree, caplog, folder, spoil, kind, message):
    root, made = tree
    data = Streets(root, on_error="raise"), Streets(root, on_error="skip")
    for module in data:
        module.setup("test")
    spoil(root / "val" / folder / "052.png")
    with pytest.raises(kind, match=message):
        batches(data[0].test_dataloader())
    with caplog.at_level(logging.WARNING):
        found = batches(data[1].test_dataloader())
        assert [ids for *_, ids in found] == [[0], [1], [3], [3]]
        assert (found[2][1] == made["val"][3][1]).all()
        assert data[1].skipped == [str(root / "val/images/052.png")]
        caplog.clear()
        data[1].teardown("test")
    assert "1 images or entries were skipped" in caplog.text
    assert "images/052.png" in caplog.text


@pytest.mark.parametrize("workers", [0, 2])
def test_training_skips_too(tree, workers):
    root, _ = tree
    path = root / "train" / "labels" / "004.png"
    path.write_bytes(b"")
    data = Streets(root, on_error="skip", num_workers=workers, **TINY)
    ids = [number for *_, ids in batches(data.train_dataloader()) for number in ids]
    assert len(ids) == 10
    assert sorted(ids) == [0, 1, 2, 3, 5, 5, 6, 7, 8, 9]
    assert data.skipped == [str(root / "train/images/004.png")]


def test_max_pixels(tree):
    root, _ = tree
    data = Streets(root, max_pixels=12 * 16 - 1, **TINY)
    assert len(batches(data.test_dataloader())) == 4
    with pytest.raises(ImageReadError, match=r"at most 191 pixels at .*images/\d+.png"):
        batches(data.train_dataloader())
