"""VOCDetectionDataModule on small devkits and on real photos: by value, and what it refuses."""

import re
import shutil
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn

from goodtransfer.data import VOCDetectionDataModule, make_voc
from goodtransfer.data.detection import DetectionDataset, Records
from goodtransfer.data.files import listed
from goodtransfer.data.fingerprint import voc_fingerprint
from goodtransfer.data.loader import EpochSampler, GroupedSampler
from goodtransfer.data.toy import CLASSES
from goodtransfer.data.voc import VOC_CLASSES, VOCRecord

CAT, DOG, SOFA = (VOC_CLASSES.index(name) for name in ("cat", "dog", "sofa"))


def an_object(box, name="cat", more=""):
    """Its XML; ``box`` as in the file, and may be cut short."""
    tags = ("xmin", "ymin", "xmax", "ymax")[: len(box)]
    sides = "".join(f"<{tag}>{side}</{tag}>" for tag, side in zip(tags, box, strict=True))
    return f"<object><name>{name}</name>{more}<bndbox>{sides}</bndbox></object>"


def add(root, name, size=(20, 10), objects=(), split="2007/trainval", white=()):
    """An image, its annotation and its line in the list; the pixels of ``white`` are drawn."""
    year, listed = split.split("/")
    folder = root / "VOCdevkit" / f"VOC{year}"
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    pixels = np.full((size[1], size[0], 3), 40, dtype=np.uint8)
    if white:
        pixels[white] = 255
    Image.fromarray(pixels).save(folder / "JPEGImages" / f"{name}.png")
    (folder / "Annotations" / f"{name}.xml").write_text(
        f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>"
        f"{''.join(objects)}</annotation>"
    )
    with (folder / "ImageSets" / "Main" / f"{listed}.txt").open("a") as file:
        file.write(f"{name}\n")


def annotation(root, name):
    return root / "VOCdevkit" / "VOC2007" / "Annotations" / f"{name}.xml"


@pytest.fixture
def devkit(tmp_path):
    """Five images to train on (three wide, one without objects), three to test on."""
    add(tmp_path, "wide1", (20, 10), [an_object((3, 2, 8, 9))])
    add(tmp_path, "high1", (10, 20), [an_object((1, 1, 10, 20), "dog")])
    add(tmp_path, "empty", (20, 10))
    add(tmp_path, "wide2", (30, 10), [an_object((5, 1, 5, 1), "sofa")])
    add(tmp_path, "high2", (10, 10), [an_object((2, 2, 3, 4)), an_object((6, 6, 9, 10), "dog")])
    for name in ("b", "a", "c"):
        add(tmp_path, name, (12, 9), [an_object((2, 3, 6, 7))], "2007/test")
    add(tmp_path, "empty2", (12, 9), split="2007/test")
    return tmp_path


def items(loader, epoch=0):
    loader.sampler.set_epoch(epoch)
    for images, targets in loader:
        assert isinstance(images, list)
        yield from zip(images, targets, strict=True)


# Ten lines like the second would be a billion names.
BOMB = """<!DOCTYPE annotation [<!ENTITY lol "lol"><!ENTITY lol2 "&lol;&lol;&lol;&lol;&lol;&lol;">]>
<annotation><size><width>12</width><height>9</height></size>
<object><name>&lol2;</name></object></annotation>"""


def test_counts_names_and_records(devkit):
    data = VOCDetectionDataModule(devkit)
    assert (data.num_classes, data.num_images, data.class_names) == (20, 4, list(VOC_CLASSES))
    assert [r.name for r in data.records("train")] == ["wide1", "high1", "wide2", "high2"]
    assert [r.name for r in data.records("test")] == ["b", "a", "c", "empty2"]
    assert data.records("test")[1].image.endswith("VOCdevkit/VOC2007/JPEGImages/a.png")
    assert VOCDetectionDataModule(devkit, loader={"skip_empty": False}).num_images == 5
    assert list(VOC_CLASSES) == sorted(VOC_CLASSES)
    itself = VOCDetectionDataModule(devkit / "VOCdevkit")
    assert [r.name for r in itself.records("test")] == ["b", "a", "c", "empty2"]


def test_several_training_splits(devkit):
    add(devkit, "2012_x", (9, 9), [an_object((1, 2, 3, 4))], "2012/trainval")
    data = VOCDetectionDataModule(devkit, train=("2012/trainval", "2007/trainval"))
    assert [r.name for r in data.records("train")][:2] == ["2012_x", "wide1"]
    assert VOCDetectionDataModule(devkit, train="2012/trainval").num_images == 1


def test_an_item_by_value(tmp_path):
    """Floats are read; parts of an object are no objects, and their boxes not its box."""
    part = "<part><name>head</name><bndbox><xmin>3</xmin></bndbox></part>"
    objects = [
        an_object((3, 2, 8, 9), "dog", f"<difficult>1</difficult>{part}"),
        an_object(("12.5", " 4.25 ", "45.70000076293945", 10), " cat ", "<difficult>0</difficult>"),
        an_object((1, 1, 60, 40), "sofa"),
    ]
    add(tmp_path, "x", (60, 40), objects, "2007/test")
    ((images, targets),) = VOCDetectionDataModule(tmp_path).test_dataloader()
    (image,), (target,) = images, targets
    assert (image.dtype, image.shape) == (torch.uint8, (3, 40, 60))
    assert type(target) is dict
    assert set(target) == {"boxes", "labels", "difficult", "image_id"}
    assert target["boxes"].dtype == torch.float32
    boxes = [[2, 1, 8, 9], [11.5, 3.25, 45.70000076293945, 10], [0, 0, 60, 40]]
    assert torch.equal(target["boxes"], torch.tensor(boxes))
    assert (target["labels"].dtype, target["labels"].tolist()) == (torch.int64, [DOG, CAT, SOFA])
    assert target["difficult"].dtype == torch.bool
    assert target["difficult"].tolist() == [True, False, False]
    assert target["image_id"] == 0
    assert type(target["image_id"]) is int


def inside(image, box):
    """The box's pixels, and one more around it where there is one."""
    x1, y1, x2, y2 = (int(v) for v in box)
    around = image[:, max(y1 - 1, 0) : y2 + 1, max(x1 - 1, 0) : x2 + 1]
    return image[:, y1:y2, x1:x2], around


@pytest.mark.parametrize(("flip", "expected"), [(0, [2, 1, 8, 9]), (1, [12, 1, 18, 9])])
def test_boxes_flip_with_their_pixels(tmp_path, flip, expected):
    white = np.s_[1:9, 2:8]  # what VOC calls 3, 2, 8, 9
    for name, split in (("x", "2007/trainval"), ("y", "2007/test")):
        add(tmp_path, name, (20, 10), [an_object((3, 2, 8, 9))], split, white)
    data = VOCDetectionDataModule(tmp_path, loader={"flip": flip}, batch_size=1)
    [(image, target)] = items(data.train_dataloader())
    assert target["boxes"].tolist() == [expected]
    own, around = inside(image, target["boxes"][0])
    assert own.shape == (3, 8, 6)
    assert (own == 255).all()
    assert (around == 255).sum() == own.numel()
    assert image.dtype == torch.uint8
    assert image.shape == (3, 10, 20)
    assert image.is_contiguous()
    [(_, target)] = items(data.test_dataloader())
    assert target["boxes"].tolist() == [[2, 1, 8, 9]]  # never flipped


def test_flips_depend_on_seed_epoch_and_image_alone():
    def flips(seed, epoch, probability=0.5):
        dataset = DetectionDataset(records, flip=probability, seed=seed)
        return [dataset[epoch, i][1]["boxes"][0, 0].item() == 1 for i in range(200)]

    def read(path, **options):
        return np.zeros((3, 4, 3), np.uint8)

    files = listed(Path("/"), ["x"] * 200, None, Path("list"))
    sizes = {"width": np.full(200, 4), "height": np.full(200, 3)}
    objects = {
        "boxes": np.tile(np.float32([0, 0, 3, 3]), (200, 1)),
        "labels": np.zeros(200, np.int64),
        "difficult": np.zeros(200, np.bool_),
    }
    records = Records(VOCRecord, files, sizes, objects, np.ones(200, np.int64))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("goodtransfer.data.detection.decode", read)
        first = flips(0, 0)
        torch.manual_seed(1)
        assert flips(0, 0) == first
        assert 70 < sum(first) < 130
        assert len({tuple(f) for f in (first, flips(0, 1), flips(1, 0), flips(1, 1))}) == 4
        assert 20 < sum(flips(0, 0, 0.2)) < 60


def contents(loader, epoch):
    return [
        (target["image_id"], target["boxes"].tolist(), target["labels"].tolist(), image.tolist())
        for image, target in items(loader, epoch)
    ]


@pytest.fixture
def varied(tmp_path):
    """23 images, 10 of them high."""
    for i in range(23):
        size = (8, 12 + i) if i % 5 < 2 else (12 + i, 8)
        add(tmp_path, f"{i:02d}", size, [an_object((2, 2, 3 + i % 4, 5))])
    add(tmp_path, "t", (9, 9), [an_object((2, 3, 6, 7))], "2007/test")
    return tmp_path


def test_the_same_for_any_number_of_workers(varied):
    def epochs(workers):
        loader = VOCDetectionDataModule(varied, num_workers=workers).train_dataloader()
        return [contents(loader, epoch) for epoch in (0, 1)]

    torch.manual_seed(1)
    expected = epochs(0)
    state = torch.get_rng_state()
    assert epochs(2) == expected
    assert torch.equal(torch.get_rng_state(), state)
    assert [image[0] for image in expected[0]] != [image[0] for image in expected[1]]


def test_training_batches_hold_wide_or_high_images(varied):
    data = VOCDetectionDataModule(varied, batch_size=4)
    loader = data.train_dataloader()
    assert isinstance(loader.sampler, GroupedSampler)
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        batches = [{image.shape[2] > image.shape[1] for image in images} for images, _ in loader]
        assert len(batches) == 5
        # 10 high and 13 wide images: two and three batches, and three images dropped.
        assert [len(kinds) for kinds in batches] == [1] * 5
        assert {frozenset(kinds) for kinds in batches} == {frozenset({a}) for a in (True, False)}
    plain = VOCDetectionDataModule(varied, loader={"group_by_aspect_ratio": False})
    assert type(plain.train_dataloader().sampler) is EpochSampler
    assert type(data.test_dataloader().sampler) is EpochSampler


def test_testing_is_in_order_and_complete(devkit):
    data = VOCDetectionDataModule(devkit, batch_size=3)
    for loader in (data.val_dataloader(), data.test_dataloader()):
        assert [target["image_id"] for _, target in items(loader)] == [0, 1, 2, 3]
        assert len(loader) == 2
    *_, (_, empty) = items(data.test_dataloader())
    assert {key: empty[key].shape for key in ("boxes", "labels", "difficult")} == {
        "boxes": (0, 4), "labels": (0,), "difficult": (0,)}  # fmt: skip


class Task(pl.LightningModule):
    """Trains nothing; keeps (epoch, image numbers, boxes) of every step."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.steps = []

    def training_step(self, batch, batch_idx):
        _, targets = batch
        seen = [(t["image_id"], tuple(t["boxes"].flatten().tolist())) for t in targets]
        self.steps.append((self.current_epoch, tuple(seen)))
        return self.weight * 0

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def run(root, options, task=None, ckpt_path=None, **arguments):
    """The steps of two epochs; each step leaves a checkpoint."""
    task, folder = task or Task(), options["default_root_dir"]
    saver = ModelCheckpoint(folder, filename="{step}", save_top_k=-1, every_n_train_steps=1)
    options = options | {"enable_checkpointing": True, "callbacks": [saver]}
    trainer = pl.Trainer(max_epochs=2, limit_val_batches=0, **options)
    data = VOCDetectionDataModule(root, **arguments)
    trainer.fit(task, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return task.steps


@pytest.mark.parametrize("workers", [0, 2])
def test_a_cut_run_goes_on_as_if_never_cut(varied, tmp_path, trainer_options, workers):
    arguments = {"batch_size": 4, "num_workers": workers}
    straight = run(varied, trainer_options, **arguments)
    assert len(straight) == 10
    assert len({number for _, batch in straight[:5] for number, _ in batch}) == 20
    for step in (1, 3, 4, 7) if workers == 0 else (3,):
        ckpt_path = tmp_path / f"step={step}.ckpt"
        resumed = run(varied, trainer_options, ckpt_path=ckpt_path, **arguments)
        assert resumed == straight[step:], f"from step {step}"


def test_the_task_says_how_to_read(devkit, trainer_options):
    class Choosy(Task):
        def recommended_loader(self):
            return {"flip": 1.0, "skip_empty": False}

    def boxes(task, **arguments):
        steps = run(devkit, trainer_options, task, batch_size=1, **arguments)
        return dict(chain.from_iterable(seen for epoch, seen in steps if epoch == 0))

    assert len(boxes(Task())) == 4
    chosen = boxes(Choosy())
    assert (len(chosen), chosen[0], chosen[2]) == (5, (12.0, 1.0, 18.0, 9.0), ())
    given = boxes(Choosy(), loader={"flip": 0.0})
    assert (len(given), given[0]) == (4, (2.0, 1.0, 8.0, 9.0))

    class Wrong(Task):
        def recommended_loader(self):
            return {"flip": 0.5, "short_side": 800}

    with pytest.raises(
        ValueError, match=r"`loader` to have the keys flip, .* got \['short_side'\]"
    ):
        boxes(Wrong())


def test_lists_with_spaces_and_columns(devkit):
    main = devkit / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main"
    (main / "cat_test.txt").write_text("b  -1\na   1\n\nc  0 \r\n")
    data = VOCDetectionDataModule(devkit, test="2007/cat_test")
    assert [record.name for record in data.records("test")] == ["b", "a", "c"]


def test_fingerprint_changes_with_lists_and_annotations(devkit):
    splits = ("2007/trainval", "2007/test")
    before = voc_fingerprint(devkit, splits)
    assert before.images == (5, 4)
    assert re.fullmatch("[0-9a-f]{16}", before.digest)
    assert VOCDetectionDataModule(devkit, seed=3).fingerprint() == before.digest
    copy = devkit / "copy"
    shutil.copytree(devkit / "VOCdevkit", copy)
    assert voc_fingerprint(copy, splits) == before
    digests = {before.digest, voc_fingerprint(devkit, splits[::-1]).digest}
    annotation(devkit, "a").write_text(annotation(devkit, "a").read_text() + " ")
    digests.add(voc_fingerprint(devkit, splits).digest)
    listed = devkit / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main" / "test.txt"
    listed.write_text("a\nb\n")
    digests.add(voc_fingerprint(devkit, splits).digest)
    assert len(digests) == 4
    annotation(devkit, "b").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"annotation at .*b\.xml, because the split 2007/t"
    ):
        voc_fingerprint(devkit, splits)


def test_a_missing_root_or_split(devkit, tmp_path):
    tree = r"(?s)splits found: none.*VOCdevkit/VOC2007/ImageSets/Main/trainval\.txt"
    with pytest.raises(FileNotFoundError, match=tree):
        VOCDetectionDataModule(tmp_path / "nowhere").setup("fit")
    for train, missing in (("2012/trainval", "VOC2012"), ("2007/train", "Main/train.txt")):
        with pytest.raises(
            FileNotFoundError,
            match=rf"{missing}.*no such file; splits found: 2007/test, 2007/trainval\.",
        ):
            VOCDetectionDataModule(devkit, train=train).setup("fit")
    VOCDetectionDataModule(devkit, train="2012/trainval").setup("test")  # needs no training data
    with pytest.raises(FileNotFoundError, match=r"the split '2007test' .*found: 2007/test"):
        VOCDetectionDataModule(devkit, test="2007test").setup("test")
    main = devkit / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main"
    (main / "val.txt").write_text("\n")
    with pytest.raises(
        ValueError, match=r"names of images in .*val\.txt, one a line, but it is em"
    ):
        VOCDetectionDataModule(devkit, test="2007/val").setup("test")
    for path in main.iterdir():
        path.unlink()
    (main / "my_split.txt").write_text("a\n")
    with pytest.raises(FileNotFoundError, match=r"splits found: 2007/my_split\."):
        VOCDetectionDataModule(devkit).setup("test")


def test_a_missing_annotation_or_image(devkit):
    image = devkit / "VOCdevkit" / "VOC2007" / "JPEGImages" / "a.png"
    image.rename(devkit / "a.png")
    with pytest.raises(
        FileNotFoundError, match=r"image at .*JPEGImages/a\.jpg.*2007/test lists it"
    ):
        VOCDetectionDataModule(devkit).setup("fit")
    (devkit / "a.png").rename(image)
    annotation(devkit, "c").unlink()
    with pytest.raises(FileNotFoundError, match=r"annotation at .*/c\.xml.*add the file, or take"):
        VOCDetectionDataModule(devkit).setup("fit")
    shutil.rmtree(image.parent)
    with pytest.raises(FileNotFoundError, match=r"image at .*JPEGImages/b\.jpg"):
        VOCDetectionDataModule(devkit).setup("fit")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"XML at .*/a\.xml, but it cannot be parsed \(no element found.*replace the file"),
        ("<annotation><size></annotation>", r"cannot be parsed \(mismatched tag"),
        ("<annotation/>", r"a number in <size/width> of .*/a\.xml, but found None"),
        ("<annotation><size><width>12</width><height>a</height></size></annotation>", "found 'a'"),
        (
            "<annotation><size><width>0</width><height>9</height></size></annotation>",
            r"size of the image in .*/a\.xml, but found 0 x 9: some tools write 0",
        ),
        (
            "<annotation><size><width>1e400</width><height>9</height></size></annotation>",
            r"a number in <size/width> of .*/a\.xml, but found '1e400'",
        ),
        (
            "<annotation><size><width>1e30</width><height>9</height></size></annotation>",
            r"size of the image in .*/a\.xml, but found 1000000.* x 9",
        ),
        ('<?xml version="1.0" encoding="none-such"?><annotation/>', r"parsed \(.*none-such"),
        (BOMB, r"XML at .*/a\.xml, but it cannot be parsed \(DTDForbidden"),
    ],
)
def test_a_broken_annotation(devkit, text, message):
    annotation(devkit, "a").write_text(text)
    with pytest.raises(ValueError, match=message):
        VOCDetectionDataModule(devkit).setup("fit")


@pytest.mark.parametrize(
    ("box", "message"),
    [
        (
            (3, 2, 2, 9),
            r"xmin <= xmax.*/a\.xml, but found xmin, ymin, xmax, ymax = \[3\.0, 2\.0, 2",
        ),
        ((3, 5, 4, 4), "ymin <= ymax"),
        ((3, 5, 4, "nan"), r"a number in <bndbox/ymax> of .*/a\.xml, but found 'nan'"),
        ((3, 2, 14, 9), r"inside the image of 12 x 9 pixels in .*/a\.xml, but found .* = \[3\.0"),
        ((3, 2, 12, "10.5"), "inside the image"),
        ((-1, 2, 12, 9), "inside the image"),
        ((13, 2, 13, 9), "xmin <= xmax"),
        ((3, 2, 12), r"a number in <bndbox/ymax> of .*/a\.xml, but found None"),
        ((3, 2, 12, "x"), "found 'x': correct the file"),
    ],
)
def test_impossible_boxes(devkit, box, message):
    path = annotation(devkit, "a")
    whole = path.read_text()
    path.write_text(re.sub("<object>.*</object>", an_object(box), whole))
    assert path.read_text() != whole
    with pytest.raises(ValueError, match=message):
        VOCDetectionDataModule(devkit).setup("fit")


@pytest.mark.parametrize(
    ("box", "expected"), [((0, 0, 11, 8), (0, 0, 11, 8)), ((1, 1, 13, "9.6"), (0, 0, 12, 9))]
)
def test_boxes_out_by_one_pixel_are_clipped(tmp_path, box, expected):
    """As tools write them that count from 0 or round up."""
    add(tmp_path, "a", (12, 9), split="2007/test")
    path = annotation(tmp_path, "a")
    path.write_text(path.read_text().replace("</annotation>", an_object(box) + "</annotation>"))
    assert VOCDetectionDataModule(tmp_path).records("test")[0].boxes.tolist() == [list(expected)]


def test_unknown_classes(devkit):
    path = annotation(devkit, "a")
    path.write_text(path.read_text().replace("cat", "cats"))
    with pytest.raises(
        ValueError,
        match=r"20 classes in .*/a\.xml, but found a 'cats' \(perhaps 'cat'.*correct the",
    ):
        VOCDetectionDataModule(devkit).setup("fit")
    path.write_text(path.read_text().replace("cats", "zebra"))
    with pytest.raises(
        ValueError, match=r"found a 'zebra': correct the file, or pass class_names="
    ):
        VOCDetectionDataModule(devkit).setup("fit")
    data = VOCDetectionDataModule(devkit, class_names=["zebra", "dog", "cat", "sofa"])
    data.setup("fit")
    assert data.num_classes == 4
    assert [label for r in data.records("test") for label in r.labels] == [2, 0, 2]


def test_names_that_lead_out_of_the_root(devkit):
    main = devkit / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main"
    for name in ("../../../a", "/etc/a", "..\\a"):
        (main / "test.txt").write_text(f"a\n{name}\n")
        sentence = f"in {main / 'test.txt'}, but found {name!r}, which leads elsewhere"
        with pytest.raises(ValueError, match=re.escape(sentence)):
            VOCDetectionDataModule(devkit).setup("test")


def test_faulty_entries_are_left_out(devkit):
    """One of each kind; what is left keeps its order, and each is named."""
    files = devkit / "VOCdevkit" / "VOC2007"
    for name in ("box", "bomb", "class", "field", "gone", "unseen", "good"):
        add(devkit, name, (12, 9), [an_object((2, 3, 6, 7))], "2007/test")
    with (files / "ImageSets" / "Main" / "test.txt").open("a") as file:
        file.write("../up\n")
    annotation(devkit, "bomb").write_text(BOMB)
    annotation(devkit, "gone").unlink()
    (files / "JPEGImages" / "unseen.png").unlink()
    for name, old, new in (("box", ">7<", ">17<"), ("class", "cat", "yak"), ("field", "xmax", "x")):
        path = annotation(devkit, name)
        path.write_text(path.read_text().replace(old, new))
    data = VOCDetectionDataModule(devkit, on_error="skip")
    data.setup("fit")
    assert [record.name for record in data.records("test")] == ["b", "a", "c", "empty2", "good"]
    words = ("inside the image of 12 x 9", "bomb.xml, but it cannot be parsed", "a 'yak'",
             "<bndbox/xmax>", "an annotation at", "an image at", "'../up', which leads")  # fmt: skip
    assert len(data.skipped) == len(words)
    for fault, word in zip(data.skipped, words, strict=True):
        assert word in fault
    assert [t["image_id"] for _, t in items(data.test_dataloader())] == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="`on_error` to be 'raise' or 'skip', but got 'no'"):
        VOCDetectionDataModule(devkit, on_error="no")


def test_nothing_left(devkit):
    for name in ("a", "b", "c", "empty2"):
        annotation(devkit, name).unlink()
    data = VOCDetectionDataModule(devkit, on_error="skip")
    with pytest.raises(ValueError, match="images of 2007/test in .* but none is left: 4 were skip"):
        data.setup("test")


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_gives_its_place_to_the_next(devkit, workers, caplog):
    """With the next one's objects and number; another's size is as bad as no image."""
    images = devkit / "VOCdevkit" / "VOC2007" / "JPEGImages"
    (images / "b.png").write_bytes(b"no image")
    Image.new("RGB", (9, 12)).save(images / "a.png")
    data = VOCDetectionDataModule(devkit, num_workers=workers, on_error="skip", batch_size=1)
    assert [t["image_id"] for _, t in items(data.test_dataloader())] == [2, 2, 2, 3]
    assert data.skipped == [str(images / "b.png"), str(images / "a.png")]
    data.teardown("test")
    assert "2 images or entries were skipped" in caplog.text


def test_a_larger_image_than_allowed(devkit):
    data = VOCDetectionDataModule(devkit, max_pixels=12 * 9)
    assert len(list(data.test_dataloader())) == 2
    data = VOCDetectionDataModule(devkit, max_pixels=12 * 9 - 1)
    with pytest.raises(OSError, match=r"at most 107 pixels at .*b\.png, but it claims 12 x 9"):
        list(data.test_dataloader())


def test_records_are_packed(devkit):
    data = VOCDetectionDataModule(devkit, loader={"skip_empty": False})
    records = data.records("train")
    assert (len(records), records[-1].name, records[2].name) == (5, "high2", "empty")
    assert records[-1].boxes.tolist() == [[1, 1, 3, 4], [5, 5, 9, 10]]
    assert records[-1].labels.tolist() == [CAT, DOG]
    assert records[2].boxes.shape == (0, 4)
    with pytest.raises(IndexError):
        _ = records[5]
    arrays = [*records.objects.values(), *records.images.values(), records.files.names]
    assert {array.dtype.kind for array in arrays} == {"f", "i", "b", "S"}  # and no objects


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, {"train": 5011, "test": 4952, "classes": 20}),
        (
            {"train": ("2007/trainval", "2012/trainval")},
            {"train": 16551, "test": 4952, "classes": 20},
        ),
        ({"test": "2012/val"}, {}),
        ({"class_names": ["cat"]}, {}),
    ],
)
def test_expected_counts(tmp_path, arguments, expected):
    assert VOCDetectionDataModule(tmp_path, **arguments).expected == expected


def test_no_objects_to_train_on(devkit):
    for name in ("wide1", "wide2", "high1", "high2"):
        path = annotation(devkit, name)
        path.write_text(re.sub("<object>.*</object>", "", path.read_text()))
    with pytest.raises(ValueError, match="but all 5 images of 2007/trainval in .* are without"):
        VOCDetectionDataModule(devkit).setup("fit")


def test_fewer_images_than_one_batch(devkit):
    with pytest.raises(
        ValueError, match="2007/trainval in .* has 4 images for 1 ranks x batch_size=5"
    ):
        VOCDetectionDataModule(devkit, batch_size=5).setup("fit")
    VOCDetectionDataModule(devkit, batch_size=5).setup("test")


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_cannot_be_used_is_named(devkit, workers):
    image = devkit / "VOCdevkit" / "VOC2007" / "JPEGImages" / "a.png"

    def failure():
        try:
            list(VOCDetectionDataModule(devkit, num_workers=workers).test_dataloader())
        except (OSError, ValueError) as error:
            error.__traceback__ = None  # while it lives, torch takes ten seconds to end the workers
            return str(error)

    Image.new("RGB", (9, 12)).save(image)
    assert re.search(r"Expected .*a\.png to be 12 x 9 pixels.* but it is 9 x 12: the", failure())
    image.write_bytes(b"not an image")
    assert f"Expected an image at {image}, but it cannot be decoded (" in failure()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "`batch_size` to be positive, but got 0"),
        ({"class_names": []}, "`class_names` to be different names"),
        ({"class_names": ["cat", "cat"]}, "`class_names` to be different names"),
        ({"loader": {"flip": 1.5}}, r"`flip` in \[0, 1\], but got 1.5"),
        ({"loader": {"flips": 1}}, r"keys flip, group_by_aspect_ratio, skip_empty, but got \['fl"),
    ],
)
def test_impossible_arguments(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        VOCDetectionDataModule(tmp_path, **arguments)


# --- Real photos


def read_literally(path):
    """(name, box, difficult) of each object, by the lines of VOC's own files."""
    text = path.read_text()
    for block in text.split("<object>")[1:]:
        value = {key: re.search(rf"<{key}>(.*?)</{key}>", block).group(1)
                 for key in ("name", "difficult", "xmin", "ymin", "xmax", "ymax")}  # fmt: skip
        x1, y1, x2, y2 = (float(value[key]) for key in ("xmin", "ymin", "xmax", "ymax"))
        yield value["name"], [x1 - 1, y1 - 1, x2, y2], value["difficult"] == "1"


@pytest.mark.data
def test_real_photos(shared):
    root = shared / "data" / "voc2012_100"
    data = VOCDetectionDataModule(root, train="2012/train", test="2012/val", loader={"flip": 0})
    data.setup("fit")
    assert data.num_images == 70
    assert len(data.records("test")) == 30
    counts = []
    for loader, part in ((data.train_dataloader(), "train"), (data.test_dataloader(), "test")):
        for image, target in items(loader):
            record = data.records(part)[target["image_id"]]
            path = root / "VOCdevkit" / "VOC2012" / "Annotations" / f"{record.name}.xml"
            expected = list(read_literally(path))
            names = [data.class_names[label] for label in target["labels"]]
            found = zip(names, target["boxes"].tolist(), target["difficult"].tolist(), strict=True)
            assert list(found) == expected
            with Image.open(record.image) as photo:
                assert image.numpy().tobytes() == np.asarray(photo).transpose(2, 0, 1).tobytes()
            counts.append((record.name, len(names), int(target["difficult"].sum())))
    assert len({name for name, *_ in counts}) == 100
    assert (sum(n for _, n, _ in counts), sum(d for *_, d in counts)) == (273, 38)


def test_no_step_is_made_from_fewer_images(tmp_path, trainer_options):
    """Accumulating 3 micro-batches of 2 over 20 images: 3 whole steps an epoch, not a fourth of 2."""
    root = make_voc(tmp_path / "voc", train=20, test=2, size=32)
    data = VOCDetectionDataModule(root, class_names=CLASSES, batch_size=2)
    data.trainer = pl.Trainer(accumulate_grad_batches=3, max_epochs=1, **trainer_options)
    assert len(data.train_dataloader()) == 9
    data.trainer = pl.Trainer(accumulate_grad_batches=11, max_epochs=1, **trainer_options)
    with pytest.raises(ValueError, match=r"has 20 images for 1 ranks x batch_size=2 x 11 micro"):
        data.setup("fit")
