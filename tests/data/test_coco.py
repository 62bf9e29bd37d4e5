"""COCO's data modules on the toy world, on files written here and on real photos, by value."""

import json
import re
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from goodtransfer.data.coco import COCODataModule, COCODetectionDataModule
from goodtransfer.data.loader import GroupedSampler
from goodtransfer.data.toy import CLASSES
from goodtransfer.data.toy_coco import CATEGORIES
from goodtransfer.data.toy_layouts import make_coco

AS_IS = {"flip": 0.0}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """16 images to train on, two of them without objects and two with a crowd; 9 to report on."""
    return make_coco(tmp_path_factory.mktemp("coco") / "coco", train=16, val=9, size=64)


def thing(image, box, category=2, **more):
    x, y, w, h = box
    corners = [x, y, x + w, y, x + w, y + h, x, y + h]
    return {
        "image_id": image,
        "category_id": category,
        "bbox": list(box),
        "area": w * h,
        "iscrowd": 0,
        "segmentation": [corners],
    } | more


def write(root, split, annotations, sizes, **more):
    """Images of ``sizes`` by id, in backward order, and their file; ``more`` replaces lists."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / split).mkdir(exist_ok=True)
    images = []
    for number, (width, height) in sorted(sizes.items(), reverse=True):
        pixels = np.arange(height * width * 3).reshape(height, width, 3) % 251
        Image.fromarray(pixels.astype(np.uint8)).save(root / split / f"{number}.png")
        images.append(
            {"id": number, "file_name": f"{number}.png", "width": width, "height": height}
        )
    content = {
        "images": images,
        "annotations": [{"id": 100 + n} | entry for n, entry in enumerate(annotations)],
        "categories": [{"id": 7, "name": "dog"}, {"id": 2, "name": "cat"}],
    } | more
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


@pytest.fixture
def own(tmp_path):
    """A set of one's own: three images to train on, two to report on."""
    sizes = {3: (8, 6), 1: (6, 8), 20: (5, 5)}
    objects = [
        thing(3, (1, 2, 3, 3)), thing(1, (0, 0, 6, 8), 7), thing(3, (4, 0, 4, 6), 7),
        thing(20, (0, 0, 5, 5), iscrowd=1),
    ]  # fmt: skip
    write(tmp_path, "mine", objects, sizes)
    write(
        tmp_path,
        "rest",
        [thing(5, (1, 1, 2, 2)), thing(4, (0, 1, 5, 2), 7)],
        {5: (7, 4), 4: (6, 4)},
    )
    return tmp_path


def module(root, **options):
    return COCODetectionDataModule(root, **{"train": "mine", "test": "rest"} | options)


def items(loader, epoch=0):
    loader.sampler.set_epoch(epoch)
    for images, targets in loader:
        yield from zip(images, targets, strict=True)


def content(root, split):
    return json.loads((root / "annotations" / f"instances_{split}.json").read_text())


def change(root, split, edit):
    """Rewrite a file after ``edit`` has changed what is in it."""
    parsed = content(root, split)
    edit(parsed)
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(parsed))


def official_mask(coco, entry):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.from_numpy(coco.annToMask(entry)).bool()


def compare(data, part, loader, source):
    """Every item against pycocotools' reading of ``source``; the numbers of objects and images."""
    coco = COCO(source)
    ids, seen = data.image_ids(part), []
    for image, target in items(loader):
        number = ids[target["image_id"]]
        about = coco.loadImgs(number)[0]
        assert image.shape == (3, about["height"], about["width"])
        entries = [e for e in coco.imgToAnns[number] if not e["iscrowd"] or part == "test"]
        corners = [[x, y, x + w, y + h] for x, y, w, h in (e["bbox"] for e in entries)]
        for key, values, dtype in (
            ("boxes", corners, "float32"),
            ("labels", [coco.getCatIds().index(e["category_id"]) for e in entries], "int64"),
            ("crowd", [e["iscrowd"] == 1 for e in entries], "bool"),
            ("area", [e["area"] for e in entries], "float32"),
        ):
            dtype = getattr(torch, dtype)
            shape = (-1, 4) if key == "boxes" else (-1,)
            assert target[key].dtype == dtype
            assert torch.equal(target[key], torch.tensor(values, dtype=dtype).reshape(shape))
        masks = [official_mask(coco, entry) for entry in entries]
        assert target["masks"].shape == (len(entries), *image.shape[1:])
        assert target["masks"].dtype == torch.bool
        for mask, expected in zip(target["masks"], masks, strict=True):
            assert torch.equal(mask, expected)
        seen.append((number, len(entries), int(target["crowd"].sum())))
    return seen


# --- What is there


@pytest.mark.filterwarnings("ignore:.*unclosed file:ResourceWarning")
def test_every_item_is_what_pycocotools_reads(world):
    data = COCODetectionDataModule(world, masks=True, loader=AS_IS)
    data.setup("fit")
    assert (data.num_images, data.num_classes) == (14, 20)
    assert (data.class_names, data.category_ids) == (list(CLASSES), list(CATEGORIES))
    path = world / "annotations" / "instances_{}2017.json"
    seen = compare(data, "train", data.train_dataloader(), str(path).format("train"))
    assert len({number for number, *_ in seen}) == 14
    assert not sum(crowds for *_, crowds in seen)
    seen = compare(data, "test", data.test_dataloader(), str(path).format("val"))
    assert [number for number, *_ in seen] == list(range(500_001, 500_010))
    assert (seen[7][1], sum(crowds for *_, crowds in seen)) == (0, 1)


@pytest.mark.data
@pytest.mark.filterwarnings("ignore:.*unclosed file:ResourceWarning")
def test_real_photos(shared):
    """725 and 214 objects, 10 crowds; no box of them is outside its image or without area."""
    root = shared / "data" / "coco128"
    data = COCODetectionDataModule(root, masks=True, loader=AS_IS)
    assert (data.num_classes, data.class_names[:2], data.category_ids[-1]) == (
        80, ["person", "bicycle"], 90)  # fmt: skip
    path = root / "annotations" / "instances_{}2017.json"
    seen = compare(data, "train", data.train_dataloader(), str(path).format("train"))
    assert (len(seen), sum(count for _, count, _ in seen)) == (94, 725 - 8)
    seen = compare(data, "test", data.test_dataloader(), str(path).format("val"))
    assert (len(seen), sum(n for _, n, _ in seen), sum(c for *_, c in seen)) == (32, 214, 2)
    for image, target in items(data.test_dataloader()):
        with Image.open(data.records("test")[target["image_id"]].image) as photo:
            pixels = np.asarray(photo.convert("RGB"))
        assert image.numpy().tobytes() == pixels.transpose(2, 0, 1).tobytes()


def test_records_name_the_official_ids(own):
    data = module(own, loader={"skip_empty": False})
    assert (data.class_names, data.category_ids) == (["cat", "dog"], [2, 7])
    assert data.image_ids() == [4, 5]  # sorted, though the file is not
    assert data.image_ids("train") == [1, 3, 20]
    record = data.records("test")[1]
    assert (record.id, record.name, record.width, record.height) == (5, "5", 7, 4)
    assert record.image == str(own / "rest" / "5.png")
    assert (record.boxes.tolist(), record.labels.tolist()) == ([[1, 1, 3, 3]], [0])
    assert (record.crowd.tolist(), record.area.tolist(), record.outline) == ([False], [4], None)
    [(_, first), _] = items(data.test_dataloader())
    assert set(first) == {"boxes", "labels", "crowd", "area", "image_id"}
    assert (first["image_id"], first["labels"].tolist()) == (0, [1])


def test_training_leaves_out_crowds_and_images_with_nothing_else(own):
    data = module(own, loader=AS_IS, batch_size=1)
    assert (data.num_images, data.image_ids("train")) == (2, [1, 3])
    found = {t["image_id"]: t for _, t in items(data.train_dataloader())}
    assert found[0]["boxes"].tolist() == [[0, 0, 6, 8]]
    assert found[1]["boxes"].tolist() == [[1, 2, 4, 5], [4, 0, 8, 6]]
    whole = module(own, loader=AS_IS | {"skip_empty": False}, batch_size=1)
    assert whole.num_images == 3
    found = {t["image_id"]: t for _, t in items(whole.train_dataloader())}
    assert found[2]["boxes"].shape == (0, 4)
    tested = module(own, test="mine")
    *_, (_, last) = items(tested.test_dataloader())
    assert (last["boxes"].tolist(), last["crowd"].tolist()) == ([[0, 0, 5, 5]], [True])


def test_nothing_but_crowds(own):
    change(own, "mine", lambda c: [a.update(iscrowd=1) for a in c["annotations"]])
    with pytest.raises(ValueError, match="objects to train on, but all 3 images of mine in"):
        module(own).setup("fit")


def test_training_clips_boxes_and_drops_empty_ones(tmp_path):
    """As detectron2; two boxes of train2017 have no height. The test's are left as they are."""
    boxes = [(-1, 1, 4, 2), (6, 3, 4.5, 3), (2, 2, 3, 0), (8, 0, 0.5, 2), (1, 1, 2, 2)]
    write(tmp_path, "mine", [thing(3, box) for box in boxes], {3: (8, 6), 1: (8, 6)})
    write(tmp_path, "rest", [thing(3, box) for box in boxes], {3: (8, 6)})
    data = module(tmp_path, loader=AS_IS, batch_size=1, masks=True)
    [(_, target)] = items(data.train_dataloader())
    assert target["boxes"].tolist() == [[0, 1, 3, 3], [6, 3, 8, 6], [1, 1, 3, 3]]
    assert target["area"].tolist() == [8, 13.5, 4]
    assert target["masks"].sum((1, 2)).tolist() == [6, 6, 4]
    [(_, target)] = items(data.test_dataloader())
    assert target["boxes"].tolist() == [[x, y, x + w, y + h] for x, y, w, h in boxes]
    # An image whose only object is dropped stays, as upstream.
    write(tmp_path, "mine", [thing(3, boxes[2]), thing(1, boxes[4])], {3: (8, 6), 1: (8, 6)})
    data = module(tmp_path, loader=AS_IS)
    assert (data.num_images, data.records("train").counts.tolist()) == (2, [1, 0])


def test_training_on_masks_drops_objects_without_a_pixel(own):
    change(own, "mine", lambda c: c["annotations"][0].update(segmentation=[[1, 2, 4, 5]]))
    change(own, "rest", lambda c: c["annotations"][0].update(segmentation=[]))
    assert module(own).records("train").counts.tolist() == [1, 2]
    data = module(own, masks=True)
    assert data.records("train").counts.tolist() == [1, 1]
    *_, (_, target) = items(data.test_dataloader())
    assert (target["masks"].shape, target["masks"].any()) == ((1, 4, 7), False)


def test_splits_are_joined(own):
    data = module(own, train=("mine", "rest"), loader=AS_IS, masks=True, batch_size=1)
    assert data.image_ids("train") == [1, 3, 4, 5]
    found = {t["image_id"]: (image, t) for image, t in items(data.train_dataloader())}
    image, target = found[3]
    assert (image.shape, target["boxes"].tolist()) == ((3, 4, 7), [[1, 1, 3, 3]])
    expected = torch.zeros(1, 4, 7, dtype=torch.bool)
    expected[:, 1:3, 1:3] = True
    assert torch.equal(target["masks"], expected)


# --- Polygons


def test_polygons_to_train_on_and_pixels_to_score(world):
    data = COCODetectionDataModule(world, masks="polygons", loader=AS_IS)
    ids, parsed = data.image_ids("train"), content(world, "train2017")["annotations"]
    for _, target in items(data.train_dataloader()):
        entries = [e for e in parsed if e["image_id"] == ids[target["image_id"]]]
        expected = [e["segmentation"] for e in entries if not e["iscrowd"]]
        found = [[polygon.tolist() for polygon in mask] for mask in target["masks"]]
        assert found == expected
    pixels = COCODetectionDataModule(world, masks=True)
    for (_, one), (_, other) in zip(
        items(data.test_dataloader()), items(pixels.test_dataloader()), strict=True
    ):
        assert torch.equal(one["masks"], other["masks"])
    dataset = data.dataset(data.records("train"))  # as pictures and checks read it
    assert dataset[0][1]["masks"].dtype == torch.bool


def test_an_object_of_run_lengths_is_pixels_among_polygons(own):
    """Three objects: two polygons, runs, and nothing; and a mask without a pixel, which is one."""
    square = {"size": [6, 8], "counts": [8, 3, 37]}  # the second column, from the third row on
    polygons = [[4, 0, 8, 0, 8, 6], [1, 1, 2.5, 1, 2, 2]]
    change(own, "mine", lambda c: c["annotations"][0].update(segmentation=square))
    change(own, "mine", lambda c: c["annotations"][2].update(segmentation=polygons))
    change(own, "mine", lambda c: c["annotations"].extend([
        thing(3, (1, 1, 2, 2), segmentation=[[1, 2, 4, 5]], id=7),
        thing(3, (1, 1, 2, 2), segmentation=[[1, 1, 1, 1, 1, 1]], id=8),
    ]))  # fmt: skip
    for flip in (0.0, 1.0):
        data = module(own, masks="polygons", loader=AS_IS | {"flip": flip}, batch_size=1)
        found = {t["image_id"]: t for _, t in items(data.train_dataloader())}
        runs, outlines, point = found[1]["masks"]
        expected = torch.zeros(6, 8, dtype=torch.bool)
        expected[2:5, 6 if flip else 1] = True
        assert torch.equal(runs, expected)
        moved = [[8 - v if flip and n % 2 == 0 else v for n, v in enumerate(p)] for p in polygons]
        assert [polygon.tolist() for polygon in outlines] == moved
        assert [polygon.tolist() for polygon in point] == [[7, 1] * 3 if flip else [1, 1] * 3]
        assert len(found[1]["boxes"]) == 3
    # As pixels the last one is dropped, too.
    assert module(own, masks=True).records("train").counts.tolist() == [1, 2]


@pytest.mark.parametrize("workers", [0, 2])
def test_polygons_flip_once_an_epoch(own, workers):
    """What the data set keeps does not flip with what it gives."""
    data = module(own, masks="polygons", loader={"flip": 1.0}, batch_size=1, num_workers=workers)
    loader = data.train_dataloader()
    for epoch in range(2):
        found = {t["image_id"]: t["masks"] for _, t in items(loader, epoch)}
        assert found[0][0][0].tolist() == [6, 0, 0, 0, 0, 8, 6, 8]


def test_another_kind_of_masks(own):
    with pytest.raises(ValueError, match="`masks` to be False, True or 'polygons', but got 'rle'"):
        module(own, masks="rle")


# --- How it is read


def test_boxes_and_masks_flip_with_their_pixels(world):
    plain, flipped = (
        dict(contents(COCODetectionDataModule(world, masks=True, loader={"flip": flip})))
        for flip in (0.0, 1.0)
    )
    assert plain.keys() == flipped.keys()
    for number, (image, target) in plain.items():
        mirrored, moved = flipped[number]
        assert np.array_equal(mirrored, image[:, :, ::-1])
        assert np.array_equal(moved["masks"], target["masks"][:, :, ::-1])
        x1, y1, x2, y2 = target["boxes"].T
        assert np.array_equal(moved["boxes"], np.stack([64 - x2, y1, 64 - x1, y2], axis=1))
        for key in ("labels", "area", "crowd"):
            assert np.array_equal(moved[key], target[key])


def contents(data, epoch=0):
    for image, target in items(data.train_dataloader(), epoch):
        number = target.pop("image_id")
        yield number, (image.numpy(), {key: value.numpy() for key, value in target.items()})


def test_the_same_for_any_number_of_workers(world):
    def told(workers, epoch, **options):
        data = COCODetectionDataModule(world, masks=True, num_workers=workers, **options)
        return [
            (number, image.tobytes(), {key: value.tolist() for key, value in target.items()})
            for number, (image, target) in contents(data, epoch)
        ]

    assert told(2, 0) == told(0, 0)
    assert told(2, 1) == told(0, 1)
    assert len({str(told(0, 0)), str(told(0, 1)), str(told(0, 0, seed=1))}) == 3


def test_batches_hold_wide_or_high_images(tmp_path):
    sizes = {n: (8 + n % 3, 9) for n in range(12)}
    for split in ("mine", "rest"):
        write(tmp_path, split, [thing(n, (1, 1, 2, 2)) for n in sizes], sizes)
    loader = module(tmp_path, batch_size=4).train_dataloader()
    assert isinstance(loader.sampler, GroupedSampler)
    kinds = [{image.shape[2] > image.shape[1] for image in images} for images, _ in loader]
    assert sorted(map(sorted, kinds)) == [[False], [False], [True]]


def test_fingerprint_changes_with_annotations_and_images(own):
    def digest(**options):
        return module(own, **options).fingerprint()

    first = digest()
    assert re.fullmatch("[0-9a-f]{16}", first)
    assert digest(seed=3, masks=True) == first
    found = {first, digest(train="rest", test="mine"), digest(train=("mine", "rest"))}
    change(own, "mine", lambda c: c["annotations"][0].update(area=9.5))
    found.add(digest())
    (own / "mine" / "3.png").write_bytes(b"other")
    found.add(digest())
    (own / "mine" / "3.png").rename(own / "mine" / "4.png")
    found.add(digest())
    assert len(found) == 6


def test_expected_counts(tmp_path):
    expected = {"train": 117_266, "test": 5_000, "classes": 80}
    assert COCODetectionDataModule(tmp_path).expected == expected
    whole = COCODetectionDataModule(tmp_path, loader={"skip_empty": False})
    assert whole.expected == expected | {"train": 118_287}
    assert COCODetectionDataModule(tmp_path, train="train2014").expected == {}


# --- What it refuses


def entry_of(key, number, **changed):
    """An edit of one entry; None takes a field out."""

    def edit(parsed):
        entry = parsed[key][number]
        entry.update(changed)
        for field in [field for field in changed if changed[field] is None]:
            del entry[field]

    return edit


FAULTS = [
    # edit of the file "rest", which has images 5 and 4 and annotations 100 (of 5) and 101 (of 4);
    # what is left of the images, and the words
    (entry_of("annotations", 0, bbox=None), [4], r"annotation 100 of \S+instances_rest\.json to have "
     r"image_id, category_id, bbox, area, iscrowd, but found \{'image_id': 5, 'category_id': 2, "),
    (entry_of("annotations", 0, area=None), [4], "annotation 100 of .* to have image_id"),
    (entry_of("annotations", 0, iscrowd="no"), [4], "annotation 100 of .*'iscrowd': 'no'"),
    (entry_of("annotations", 0, image_id=6), [4, 5], "annotation 100 of .*the image_id.*found 6"),
    (entry_of("annotations", 0, image_id=[5]), [4, 5], "annotation 100 of .* to have image_id"),
    (entry_of("annotations", 0, category_id=3), [4], "annotation 100 of .*category_id.* found 3"),
    (entry_of("annotations", 0, bbox=[1, 1, 2]), [4], r"annotation 100 .*'bbox': \[1, 1, 2\]"),
    (entry_of("annotations", 0, bbox=[1, 1, "a", 2]), [4], "annotation 100 .*'a'"),
    (entry_of("annotations", 0, bbox=[1, 1, -1, 2]), [4], "annotation 100 .* to have a size, but"),
    (entry_of("annotations", 0, bbox=[1, 1, float("nan"), 2]), [4], "annotation 100 .* size, but .* nan"),
    (entry_of("annotations", 0, area=10**400), [4], "annotation 100 .* to have image_id"),
    (entry_of("annotations", 0, bbox=[9, 1, 2, 2]), [4], r"annotation 100 .*image of 7 x 4 pixels.*\[9, 1"),
    (entry_of("annotations", 0, bbox=[1, -4, 2, 2]), [4], "annotation 100 .* in its image of 7 x 4 pixels"),
    (lambda parsed: parsed["annotations"].append(7), [4, 5], "annotation number 2 of .* found 7:"),
    (entry_of("images", 0, width=None), [4], "image 5 of .* to have id, file_name, width, height"),
    (entry_of("images", 0, width=0), [4], "image 5 of .* to have a size, but found 0 x 4"),
    (entry_of("images", 0, width=7.5), [4], "image 5 of .* to have id, file_name, .*7.5"),
    (entry_of("images", 0, id=4), [], "image 4 of .* to have an id of its own"),
    (entry_of("images", 0, file_name="../4.png"), [4], r"image 5 of .*but found '\.\./4\.png'"),
    (entry_of("images", 0, file_name="/5.png"), [4], "image 5 of .* stays in the folder"),
    (entry_of("images", 0, file_name="\ud900"), [4], "image 5 of .* stays in the folder"),
    (entry_of("images", 0, file_name=5), [4], "image 5 of .* 'file_name': 5"),
    (entry_of("images", 0, file_name="6.png"), [4], r"image at \S+6\.png, because \S+ lists it as "
     "image 5: add the file, or remove the entry"),
]  # fmt: skip


@pytest.mark.parametrize(("edit", "left", "words"), FAULTS)
def test_a_faulty_entry(own, edit, left, words):
    """One sentence; or, when skipping, its image is left out, if it is known."""
    change(own, "rest", edit)
    with pytest.raises((ValueError, FileNotFoundError), match=f"Expected (an )?{words}") as found:
        module(own).setup("test")
    assert str(found.value).count(". ") == 0
    data = module(own, on_error="skip")
    if not left:
        with pytest.raises(ValueError, match="images of rest in .* but none is left"):
            data.setup("test")
        return
    data.setup("test")
    assert data.image_ids() == left
    assert any(re.search(words, fault) for fault in data.skipped)


def test_an_image_is_lost_with_all_its_objects(own):
    """Whichever of them is faulty; and the others keep theirs."""
    for number in (0, 2):
        before = (own / "annotations" / "instances_mine.json").read_text()
        change(own, "mine", entry_of("annotations", number, category_id=99))
        data = module(own, on_error="skip", loader={"skip_empty": False})
        assert data.image_ids("train") == [1, 20]
        assert data.records("train").counts.tolist() == [1, 0]
        (own / "annotations" / "instances_mine.json").write_text(before)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "JSON at .*instances_rest.json, but it cannot be parsed .*: replace the file"),
        ('{"images": [}', "cannot be parsed"),
        ("[" * 100_000, "cannot be parsed"),
        ("[]", "a list of images in .*instances_rest.json, but there is none"),
        ('{"images": []}', "a list of annotations in"),
        ('{"images": [], "annotations": {}, "categories": []}', "a list of annotations in"),
        ('{"images": [], "annotations": [], "categories": []}', "categories in .*instances_rest"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1}]}', r"but found \[\{'id': 1"),
        (
            '{"images": [], "annotations": [], "categories": '
            '[{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}',
            "each with an id and a name of its own",
        ),
    ],
)
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_broken_file(own, text, words, on_error):
    (own / "annotations" / "instances_rest.json").write_text(text)
    with pytest.raises(ValueError, match=words):
        module(own, on_error=on_error).setup("test")


def test_missing_files_and_folders(own, tmp_path):
    tree = (
        r"(?s)objects of 'val2017' at .*instances_val2017\.json.*found: instances_mine\.json, inst"
    )
    with pytest.raises(FileNotFoundError, match=tree):
        COCODetectionDataModule(own).setup("test")
    (own / "rest").rename(own / "elsewhere")
    with pytest.raises(FileNotFoundError, match="folder of images at .*/rest"):
        module(own, on_error="skip").setup("test")


def test_splits_of_other_categories(own):
    change(own, "rest", lambda c: c["categories"].append({"id": 9, "name": "yak"}))
    with pytest.raises(ValueError, match=r"same categories in all splits.*differs in \[\(9, 'yak"):
        module(own).setup("fit")
    assert module(own).class_names == ["cat", "dog", "yak"]


@pytest.mark.parametrize(
    "segmentation", [None, 3, [3], [["a"] * 6], [[[1, 2]] * 6], {"size": [4, 7]}]
)
def test_a_faulty_mask_is_named(own, segmentation):
    change(own, "rest", entry_of("annotations", 0, segmentation=segmentation))
    with pytest.raises(ValueError, match=r"Expected annotation 100 of \S+instances_rest\.json to "):
        module(own, masks=True).setup("test")
    data = module(own, masks=True, on_error="skip")
    data.setup("test")
    assert (data.image_ids(), len(data.skipped)) == ([4], 1)
    module(own).setup("test")  # which reads no masks


# --- Images alone


def test_images_to_pretrain_on(world):
    data = COCODataModule(world, size=16, batch_size=4, views="moco_v2")
    data.setup("fit")
    assert (data.num_images, data.num_classes, data.class_names) == (16, 0, [])
    assert data.files("train").name(15) == "000000000016.jpg"
    batches = list(data.train_dataloader())
    assert [tuple(batch.views[1].shape) for batch in batches] == [(4, 3, 16, 16)] * 4
    assert torch.cat([batch.label for batch in batches]).tolist() == [-1] * 16
    assert sorted(torch.cat([batch.index for batch in batches]).tolist()) == list(range(16))
    assert sum(len(batch.label) for batch in data.val_dataloader()) == 9
    assert COCODataModule(world, train="val2017", val=None).num_images == 9
    assert re.fullmatch("[0-9a-f]{16}", data.fingerprint())
    assert data.expected == {"train": 118_287, "val": 5_000}
    with pytest.raises(FileNotFoundError, match="folder of images at .*/train2014, such as"):
        COCODataModule(world, train="train2014").setup("fit")
