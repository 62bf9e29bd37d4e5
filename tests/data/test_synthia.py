"""SYNTHIA's data modules on the drawn world, whose files are as the real ones."""

import shutil

import cv2
import numpy as np
import pytest
from PIL import Image

from goodtransfer.data.cityscapes import CITYSCAPES_CLASSES
from goodtransfer.data.synthia import SYNTHIADataModule, SYNTHIASegmentationDataModule
from goodtransfer.data.toy_layouts import make_synthia

SPRING, SUMMER = "SYNTHIA-SEQS-01-SPRING", "SYNTHIA-SEQS-02-SUMMER"
FRONT = "Stereo_Left/Omni_F"
CAMERAS = [f"Stereo_{eye}/Omni_{way}" for eye in ("Left", "Right") for way in "FBLR"]

# Told once more: number in a label file, and train id.
OWN = {1: 0, 2: 1, 3: 2, 4: 3, 5: 4, 6: 5, 7: 6, 8: 7, 9: 8, 10: 9, 11: 10, 12: 11, 15: 12}
BOTH = {3: 0, 4: 1, 2: 2, 5: 4, 7: 5, 15: 6, 9: 7, 6: 8, 1: 10, 10: 11, 8: 13, 11: 18}
RAND = BOTH | {21: 3, 16: 9, 17: 12, 18: 14, 19: 15, 20: 16, 12: 17}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_synthia(tmp_path_factory.mktemp("toy") / "synthia", frames=2, rand=5, size=32)


@pytest.fixture
def copied(world, tmp_path):
    """One that a test may spoil."""
    return shutil.copytree(world, tmp_path / "synthia")


def unchanged(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def names(files):
    return [files.name(number) for number in range(len(files))]


def frames(*sequences, cameras=CAMERAS, kind="RGB"):
    found = (
        f"{s}/{kind}/{c}/{frame:06d}.png" for s in sequences for c in cameras for frame in range(2)
    )
    return sorted(found)


def whole(data):
    for images, target in data.test_dataloader():
        yield images[0].numpy(), target["classes"][0].numpy(), int(target["image_id"])


# --- Images for pretraining


def test_all_frames_of_the_sequences_are_images_without_labels(world):
    data = SYNTHIADataModule(world, size=16, batch_size=4, views="center", drop_last=False)
    assert (data.num_images, data.num_classes, data.class_names) == (32, 0, [])
    assert sorted(names(data.files("train"))) == frames(SPRING, SUMMER)
    seen = []
    for batch in data.train_dataloader():
        assert batch.views[0].shape[1:] == (3, 16, 16)
        assert (batch.label == -1).all()
        seen += batch.index.tolist()
    assert sorted(seen) == list(range(32))
    assert data.val_dataloader() == []


@pytest.mark.parametrize(
    ("options", "train", "val"),
    [
        ({"sequences": SPRING}, frames(SPRING), []),
        ({"val": SUMMER}, frames(SPRING), frames(SUMMER)),
        ({"val": [SPRING]}, frames(SUMMER), frames(SPRING)),
        ({"sequences": [SPRING, SUMMER], "val": (SUMMER,)}, frames(SPRING), frames(SUMMER)),
        ({"cameras": FRONT}, frames(SPRING, SUMMER, cameras=[FRONT]), []),
        (
            {"cameras": CAMERAS[2:5], "val": SPRING},
            frames(SUMMER, cameras=CAMERAS[2:5]),
            frames(SPRING, cameras=CAMERAS[2:5]),
        ),
        (
            {"sequences": ["RAND_CITYSCAPES", SPRING], "cameras": FRONT},
            [f"RAND_CITYSCAPES/RGB/{n:07d}.png" for n in range(5)]
            + frames(SPRING, cameras=[FRONT]),
            [],
        ),
    ],
)
def test_sequences_and_cameras_are_chosen(world, options, train, val):
    data = SYNTHIADataModule(world, **options)
    assert sorted(names(data.files("train"))) == train
    assert sorted(names(data.files("val"))) == val if val else data.val_dataloader() == []
    if "RAND_CITYSCAPES" not in options.get("sequences", ()):
        labelled = SYNTHIASegmentationDataModule(world, **options).files("train")
        assert names(labelled.images) == train
        assert names(labelled.labels) == [n.replace("/RGB/", "/GT/LABELS/") for n in train]


@pytest.mark.parametrize("module", [SYNTHIADataModule, SYNTHIASegmentationDataModule])
def test_what_is_not_there_is_answered_with_the_tree(world, tmp_path, module):
    tree = "(.*\n)*.*SYNTHIA-SEQS-01-DAWN/GT/LABELS/Stereo_Left/Omni_F/000000.png"
    (tmp_path / "SYNTHIA-SEQS-01-DAWN.rar").touch()  # packed still
    for root, options, missing in (
        (tmp_path, {}, r"SYNTHIA-SEQS-\*/RGB"),
        (world, {"sequences": "SYNTHIA-SEQS-09-DAWN"}, "SYNTHIA-SEQS-09-DAWN/RGB"),
        (world, {"val": ["SYNTHIA-SEQS-09-DAWN"]}, "SYNTHIA-SEQS-09-DAWN/RGB"),
    ):
        with pytest.raises(FileNotFoundError, match=f"Expected frames in {root}/{missing}, {tree}"):
            module(root, **options).setup("fit")
    message = "`cameras` of Stereo_Left/Omni_F, .*, but got Omni_F, Omni_X"
    with pytest.raises(ValueError, match=message):
        module(world, cameras=["Omni_X", FRONT, "Omni_F"])
    with pytest.raises(ValueError, match="Expected images of 'train' in"):
        module(world, val=[SPRING, SUMMER]).setup("fit")


# --- The class of each pixel


def assert_mapped(data, world, part, table):
    """Every pixel of every file; returns the train ids that occur."""
    pairs, seen = data.files(part), set()
    found = list(whole(data))
    assert [number for *_, number in found] == list(range(len(pairs)))
    for image, classes, number in found:
        pixels = unchanged(world / pairs.images.name(number))
        label = unchanged(world / pairs.images.name(number).replace("/RGB/", "/GT/LABELS/"))
        assert label.dtype == np.uint16
        assert (image.transpose(1, 2, 0) == pixels[..., ::-1]).all()
        assert classes.tolist() == [[table.get(int(n), 255) for n in row] for row in label[..., -1]]
        seen |= set(np.unique(classes).tolist())
    return seen


def test_the_sequences_own_classes(world):
    data = SYNTHIASegmentationDataModule(world, val=SPRING, cameras=FRONT)
    assert data.num_classes == 13
    assert data.class_names == [
        "sky", "building", "road", "sidewalk", "fence", "vegetation", "pole", "car", "traffic sign",
        "pedestrian", "bicycle", "lane marking", "traffic light",
    ]  # fmt: skip
    assert data.train_ids == {number: OWN.get(number, 255) for number in range(16)}
    assert len(assert_mapped(data, world, "val", OWN)) > 3


def test_the_sequences_by_the_names_of_cityscapes(world):
    data = SYNTHIASegmentationDataModule(world, val=SUMMER, classes="cityscapes")
    assert data.class_names == list(CITYSCAPES_CLASSES)
    assert data.train_ids == {number: BOTH.get(number, 255) for number in range(16)}
    assert len(assert_mapped(data, world, "val", BOTH)) > 3


def test_single_frames_by_the_names_of_cityscapes(world):
    data = SYNTHIASegmentationDataModule(
        world, sequences="RAND_CITYSCAPES", classes="cityscapes", crop=(16, 16), nominal=(32, 32),
        batch_size=5,
    )  # fmt: skip
    assert (data.num_images, data.num_classes) == (5, 19)
    assert data.train_ids == {number: RAND.get(number, 255) for number in range(23)}
    ((images, target),) = data.train_dataloader()
    assert images.shape == (5, 3, 16, 16)
    assert set(target["classes"].unique().tolist()) <= {*RAND.values(), 255}
    held_out = SYNTHIASegmentationDataModule(
        world, sequences="RAND_CITYSCAPES", val="RAND_CITYSCAPES", classes="cityscapes"
    )
    assert len(assert_mapped(held_out, world, "val", RAND)) > 3


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"sequences": "RAND_CITYSCAPES"}, "RAND_CITYSCAPES with classes='own'"),
        (
            {"sequences": ["RAND_CITYSCAPES", SPRING], "classes": "cityscapes"},
            f"RAND_CITYSCAPES, {SPRING} with classes='cityscapes'",
        ),
        (
            {"val": "RAND_CITYSCAPES", "classes": "cityscapes"},
            r"RAND_CITYSCAPES, SYNTHIA-SEQS-\* with classes='cityscapes'",
        ),
    ],
)
def test_two_numberings_are_not_mixed(world, options, named):
    message = f"RAND_CITYSCAPES by itself and with classes='cityscapes', .*, but got {named}"
    with pytest.raises(ValueError, match=message):
        SYNTHIASegmentationDataModule(world, **options)
    with pytest.raises(ValueError, match="`classes` 'own' or 'cityscapes', but got 'coco'"):
        SYNTHIASegmentationDataModule(world, classes="coco")


def held_out(root, **options):
    return SYNTHIASegmentationDataModule(root, val=SPRING, cameras=FRONT, **options)


def test_a_label_that_went_through_pil_is_refused(copied):
    """PIL reads the upper byte of each channel: all classes are void to it, without a word."""
    path = copied / SPRING / "GT" / "LABELS" / FRONT / "000000.png"
    with Image.open(path) as image:
        read = np.asarray(image)
        image.save(path)
    assert (read == 0).all()
    message = f"of 3 x 16 bits a pixel at {path}, but it has 3 x 8"
    with pytest.raises(ValueError, match=message):
        list(whole(held_out(copied)))
    data = held_out(copied, on_error="skip")
    assert [number for *_, number in whole(data)] == [1, 1]
    assert data.skipped == [str(copied / SPRING / "RGB" / FRONT / "000000.png")]


def test_numbers_kept_for_later_do_not_count_and_others_are_unknown(copied):
    path = copied / SPRING / "GT" / "LABELS" / FRONT / "000000.png"
    label = unchanged(path)
    label[0, :6, -1] = 0, 12, 13, 14, 15, 5
    cv2.imwrite(str(path), label)
    _, classes, _ = next(whole(held_out(copied)))
    assert classes[0, :6].tolist() == [255, 11, 255, 255, 12, 4]
    label[1, 1, -1] = 16
    cv2.imwrite(str(path), label)
    with pytest.raises(ValueError, match=rf"in the label {path}, but found 16:"):
        next(whole(held_out(copied)))


def test_an_image_and_its_label_come_together(copied):
    label = copied / SPRING / "GT" / "LABELS" / FRONT / "000000.png"
    label.unlink()
    with pytest.raises(FileNotFoundError, match=f"a label at {label}, because there is an image"):
        held_out(copied).setup("test")
    data = held_out(copied, on_error="skip")
    assert names(data.files("val").images) == [f"{SPRING}/RGB/{FRONT}/000001.png"]
    assert len(data.skipped) == 1
    image = copied / SUMMER / "RGB" / FRONT / "000001.png"
    image.unlink()
    with pytest.raises(
        FileNotFoundError, match=f"for the label .*{SUMMER}/GT/LABELS/{FRONT}/000001"
    ):
        held_out(copied).files("train")


def test_crops_and_order_do_not_depend_on_workers(world):
    def epochs(workers):
        data = held_out(world, crop=(16, 16), nominal=(32, 32), num_workers=workers, batch_size=1)
        loader, found = data.train_dataloader(), []
        for epoch in (0, 1):
            loader.sampler.set_epoch(epoch)
            found += [(i.numpy().tobytes(), t["image_id"].tolist()) for i, t in loader]
        return found

    assert epochs(0) == epochs(2)
    assert len({image for image, _ in epochs(0)}) == 4
