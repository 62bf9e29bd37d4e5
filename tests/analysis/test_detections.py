"""What the three formats and the tasks give becomes the same rows; what is wrong is named."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from goodtransfer.analysis.detection_files import class_names_in, read_coco, read_detections
from goodtransfer.analysis.detections import GroundTruth, checked, from_tasks, voc_pixels
from goodtransfer.analysis.errors import diagnose
from goodtransfer.metrics.voc import Detections, Objects

CLASSES = ("cat", "dog")
# image, label, score, box in continuous coordinates
FOUND = [
    ("a", 0, 0.9, (0.0, 0.0, 10.0, 10.0)),
    ("c", 0, 0.25, (5.0, 2.5, 9.0, 4.0)),
    ("a", 1, 0.5, (1.0, 2.0, 3.5, 4.0)),
]
NUMBERS = {"a": 11, "b": 5, "c": 7}  # COCO's of the images; of the classes 3 and 8


def truth(names=("a", "b", "c"), **more):
    objects = Objects([0, 2], [0, 1], [[1, 1, 10, 10], [6, 3, 9, 4]], [False, True])
    return GroundTruth(CLASSES, names, objects, **more)


def numbered():
    """The same ground truth as COCO's file has it: images by number."""
    return truth([str(number) for number in NUMBERS.values()], category_ids=(3, 8))


def write_study(folder, found=FOUND, names=("b", "c", "a"), classes=("dog", "cat"), **replaced):
    """As the study writes it, with images and classes in an order of its own."""
    tensors = {
        "images": torch.tensor([names.index(i) if i in names else 9 for i, *_ in found]),
        "labels": torch.tensor([classes.index(CLASSES[label]) for _, label, *_ in found]),
        "scores": torch.tensor([score for _, _, score, _ in found]),
        "boxes": torch.tensor([box for *_, box in found]).reshape(-1, 4),
    } | replaced
    described = {"images": json.dumps(names), "class_names": json.dumps(classes)}
    path = folder / "detections.safetensors"
    save_file({k: v for k, v in tensors.items() if v is not None}, path, described)
    return path


def results(found=FOUND):
    return [
        {"image_id": NUMBERS[i], "category_id": (3, 8)[label], "score": score,
         "bbox": [x1, y1, x2 - x1, y2 - y1]}
        for i, label, score, (x1, y1, x2, y2) in found
    ]  # fmt: skip


def write_coco(folder, entries):
    path = folder / "results.json"
    path.write_text(json.dumps(entries))
    return path


def write_voc(folder, found=FOUND, name="comp4_det_test_{}.txt"):
    folder.mkdir(exist_ok=True)
    for label, cls in enumerate(CLASSES):
        lines = [
            f"{i} {score} {x1 + 1} {y1 + 1} {x2} {y2}"
            for i, its, score, (x1, y1, x2, y2) in found
            if its == label
        ]
        (folder / name.format(cls)).write_text("\n".join(lines) + "\n\n")
    return folder


def expected(order=(0, 1, 2)):
    rows = [FOUND[row] for row in order]
    return Detections(
        np.array(["abc".index(i) for i, *_ in rows]),
        np.array([label for _, label, *_ in rows]),
        np.array([score for _, _, score, _ in rows]),
        np.array([(x1 + 1, y1 + 1, x2, y2) for *_, (x1, y1, x2, y2) in rows]),
    )


def same(found, wanted):
    assert found.scores == pytest.approx(wanted.scores)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == (
            np.float64 if ours is found.scores or ours is found.boxes else np.int64
        )
        assert np.allclose(ours, theirs, rtol=0, atol=1e-6)


def test_all_formats_give_the_same_rows(tmp_path):
    same(read_detections(write_study(tmp_path), truth()), expected())
    same(read_detections(write_coco(tmp_path, results()), numbered()), expected())
    for name in ("comp4_det_test_{}.txt", "comp3_det_val_{}.txt"):
        folder = write_voc(tmp_path / name[:5], name=name)
        same(read_detections(folder, truth()), expected())


def test_nothing_found_is_no_error(tmp_path):
    study = write_study(tmp_path, found=FOUND[:0])
    for path, world in (
        (study, truth()),
        (write_coco(tmp_path, []), numbered()),
        (write_voc(tmp_path / "voc", FOUND[:0]), truth()),
    ):
        found = read_detections(path, world)
        assert [len(column) for column in found] == [0] * 4
        assert len(diagnose(found, world, ()).classes[0].rows) == 0


def test_tasks_give_the_same_rows_and_the_ground_truth():
    predictions = [
        {
            "boxes": torch.tensor([box for i, _, _, box in FOUND if i == name]).reshape(-1, 4),
            "scores": torch.tensor([score for i, _, score, _ in FOUND if i == name]),
            "labels": torch.tensor(
                [label for i, label, *_ in FOUND if i == name], dtype=torch.long
            ),
            "masks": None,
        }
        for name in "abc"
    ]
    boxes = [torch.tensor([[0.0, 0, 10, 10]]), torch.zeros(0, 4), torch.tensor([[5.0, 2, 9, 4]])]
    labels = [torch.tensor([0]), torch.zeros(0).long(), torch.tensor([1])]
    flags = [torch.tensor([False]), torch.zeros(0).bool(), torch.tensor([True])]
    for key in ("difficult", "crowd"):
        targets = [
            {"boxes": b, "labels": c, key: f, "image_id": n}
            for b, c, f, n in zip(boxes, labels, flags, (4, 2, 9), strict=True)
        ]
        found, world = from_tasks(predictions, targets, CLASSES, [[20, 10]] * 3)
        same(found, expected((0, 2, 1)))
        assert world.images == ("4", "2", "9")
        assert world.sizes.tolist() == [[20, 10]] * 3
        for ours, theirs in zip(world.objects, truth().objects, strict=True):
            assert np.array_equal(ours, theirs)
        assert [len(errors.rows) for errors in diagnose(found, world, ()).classes] == [2, 1]
    bare = [{"boxes": b, "labels": c} for b, c in zip(boxes, labels, strict=True)]
    _, world = from_tasks(predictions, bare, CLASSES)
    assert world.images == ("0", "1", "2")
    assert not world.objects.difficult.any()
    with pytest.raises(ValueError, match="different names of classes and of images .*'4'"):
        from_tasks(predictions, [t | {"image_id": 4} for t in bare], CLASSES)


def test_boxes_wholly_or_partly_outside_are_clipped_as_the_toolbox_does():
    found = Detections([0, 0], [0, 0], [0.5, 0.4], [[-5, -5, 15, 15], [30, 1, 40, 10]])
    world = truth(sizes=np.array([[10, 10]] * 3))
    assert diagnose(found, world, ()).classes[0].strong.tolist() == [1, -1]  # IoU 1, not 100/441
    assert diagnose(found, truth(), ()).classes[0].strong.tolist() == [-1, -1]


def test_voc_pixels_keep_a_box_s_width():
    assert voc_pixels([[0, 0, 10, 4]]).tolist() == [[1, 1, 10, 4]]
    narrow = checked(Detections([0], [0], [1.0], voc_pixels([[3, 3, 3, 4]])), truth())
    assert narrow.boxes.tolist() == [[4, 4, 3, 4]]  # no width is no error


def test_class_names_of_a_study(tmp_path):
    assert class_names_in(write_study(tmp_path)) == ("dog", "cat")
    assert class_names_in(tmp_path) == class_names_in(tmp_path / "results.json") == ()


# --- COCO's ground truth


def instances():
    return {
        "images": [{"id": 11, "width": 30, "height": 20, "file_name": "x.jpg"},
                   {"id": 5, "width": 9, "height": 8}],
        "categories": [{"id": 8, "name": "dog"}, {"id": 3, "name": "cat"}],
        "annotations": [{"image_id": 5, "category_id": 8, "bbox": [1, 2, 3, 4], "iscrowd": 1},
                        {"image_id": 11, "category_id": 3, "bbox": [0, 0, 2.5, 2]}],
    }  # fmt: skip


def test_coco_ground_truth(tmp_path):
    path = write_coco(tmp_path, instances())
    world = read_coco(path)
    assert (world.class_names, world.category_ids) == (CLASSES, (3, 8))
    assert world.images == ("11", "5")
    assert world.sizes.tolist() == [[30, 20], [9, 8]]
    assert world.objects.images.tolist() == [1, 0]
    assert world.objects.labels.tolist() == [1, 0]
    assert world.objects.boxes.tolist() == [[2, 3, 4, 6], [1, 1, 2.5, 2]]
    assert world.objects.difficult.tolist() == [True, False]
    without = instances()
    del without["images"][0]["width"]
    assert read_coco(write_coco(tmp_path, without)).sizes is None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda w: w.pop("images"), "a list with each image"),
        (lambda w: w["annotations"][1].pop("bbox"), "annotation number 1 .*KeyError: 'bbox'"),
        (lambda w: w["annotations"][0].update(image_id=6), "annotation number 0 .*no image_id 6"),
        (lambda w: w["annotations"][0].update(bbox=[1, 2, -3, 4]), "annotation number 0 .*-3"),
        (lambda w: w["annotations"][0].update(bbox=[1, 2, float("nan"), 4]), "annotation number 0 .*nan"),
        (lambda w: w["categories"][0].update(name="cat"), "different names .*'cat' more than once"),
        (lambda w: w["categories"].append({"id": 3, "name": "cow"}), "different names .* 3 more than once"),
        (lambda w: w["images"].append({"id": 5}), "different names .*'5' more than once"),
        (lambda w: w.update(images=[], annotations=[]), "classes and images .* 2 classes and 0 images"),
    ],
)  # fmt: skip
def test_bad_coco_ground_truth_is_one_sentence(change, told, tmp_path):
    world = instances()
    change(world)
    path = write_coco(tmp_path, world)
    with pytest.raises(ValueError, match=f"(?s)^Expected .*{told}"):
        read_coco(path)


# --- Bad detections


def changed(row, **values):
    entries = results()
    for key, value in values.items():
        if value is None:
            del entries[row][key]
        else:
            entries[row][key] = value
    return entries


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        (changed(1, image_id=12), "result number 1 of .*the ground truth has no image_id 12"),
        (changed(2, category_id=1), "result number 2 of .*the ground truth has no category_id 1"),
        (changed(0, score=None), "result number 0 of .*KeyError: 'score'"),
        (changed(0, score=float("nan")), "result number 0 of .*nan"),
        (changed(0, bbox=[1, 2, float("nan"), 4]), "result number 0 of .*nan"),
        (changed(0, bbox=[1, 2, -3, 4]), r"result number 0 of .*\[1, 2, -3, 4\]"),
        (changed(0, bbox=[1, 2, 3]), r"result number 0 of .*\[1, 2, 3\]"),
        (changed(0, score=10**400), "result number 0 of .*OverflowError"),
        ({"annotations": []}, "a list with each result"),
        ([3], "result number 0 of .*3"),
    ],
)
def test_bad_coco_results_are_one_sentence_with_file_and_value(entries, told, tmp_path):
    path = write_coco(tmp_path, entries)
    with pytest.raises(ValueError, match=f"^Expected .*{told}") as caught:
        read_detections(path, numbered())
    assert "results.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_coco_results_need_coco_ground_truth(tmp_path):
    with pytest.raises(ValueError, match="Expected COCO's ground truth as .json"):
        read_detections(write_coco(tmp_path, results()), truth())


def test_what_is_no_json_is_one_sentence(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("[{")
    with pytest.raises(ValueError, match=r"Expected JSON at .*results\.json"):
        read_detections(path, numbered())


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("d 0.5 1 1 2 2", "images of the ground truth, but line 2 of .*cat.txt is of 'd'"),
        ("a 1 1 2 2", "score, x1, y1, x2 and y2, but line 2 of .*cat.txt is 'a 1 1 2 2'"),
        ("a x 1 1 2 2", "score, x1, y1, x2 and y2, but line 2 of .*cat.txt is 'a x 1 1 2 2'"),
        ("a nan 1 1 2 2", "finite scores, but line 2 of .*cat.txt has nan"),
        ("a 0.5 1 nan 2 2", "x1 <= x2 .*line 2 of .*cat.txt has x1, y1, x2, y2 = 1, nan, 2, 2"),
        ("a 0.5 30 1 20 2", "x1 <= x2 .*line 2 of .*cat.txt has x1, y1, x2, y2 = 30, 1, 20, 2"),
        ("a 0.5 1 inf 2 inf", "x1 <= x2 .*line 2 of .*cat.txt has .*inf"),
    ],
)
def test_bad_voc_lines_are_one_sentence_with_file_and_value(line, told, tmp_path):
    folder = write_voc(tmp_path / "voc")
    path = folder / "comp4_det_test_cat.txt"
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([first, line, *rest]))
    with pytest.raises(ValueError, match=f"^Expected .*{told}") as caught:
        read_detections(folder, truth())
    assert "\n" not in str(caught.value)


def test_a_line_of_a_later_class_is_named_by_its_own_file(tmp_path):
    folder = write_voc(tmp_path / "voc")
    (folder / "comp4_det_test_dog.txt").write_text("\na 0.5 1 1 2 2\n\na 0.5 9 1 2 2\n")
    with pytest.raises(ValueError, match=r"line 4 of .*comp4_det_test_dog\.txt"):
        read_detections(folder, truth())
    (folder / "comp4_det_test_dog.txt").write_bytes(b"a 0.5 1 1 2 2\n\xff 0.5 1 1 2 2\n")
    with pytest.raises(ValueError, match=r"line 2 of .*comp4_det_test_dog\.txt is of '\ufffd'"):
        read_detections(folder, truth())


def test_voc_folders_have_one_file_for_each_class(tmp_path):
    folder = write_voc(tmp_path / "voc")
    (folder / "comp4_det_test_cow.txt").write_text("")
    with pytest.raises(ValueError, match=r"for each class .*found comp4_det_test_cow\.txt"):
        read_detections(folder, truth())
    (folder / "comp4_det_test_cow.txt").rename(folder / "comp3_det_test_dog.txt")
    with pytest.raises(ValueError, match=r"comp4_det_test_dog\.txt beside comp3_det_test_dog\.txt"):
        read_detections(folder, truth())
    for file in folder.glob("*_dog.txt"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match=r"Expected comp4_det_test_dog\.txt in "):
        read_detections(folder, truth())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"names": ("b", "c", "x"), "found": [("x", *FOUND[0][1:])]}, "images of the ground truth .*'x'"),
        ({"classes": ("dog", "cat", "cow"), "labels": torch.tensor([0, 1, 2])}, "class_names of .*'cow'"),
        ({"labels": torch.tensor([0, 1, 7])}, "labels from 0 to 1 in .*safetensors, but got 0 to 7"),
        ({"images": torch.tensor([0, 1, -1])}, "images of .*-1"),
        ({"scores": None}, "scores and boxes in .*but scores is missing"),
        ({"scores": torch.tensor([0.5, 0.4])}, "everything else .* in .*safetensors"),
        ({"boxes": torch.zeros(3, 3)}, r"boxes \(n, 4\) .* in .*safetensors.*'boxes': \(3, 3\)"),
        ({"scores": torch.tensor([0.5, float("nan"), 0])}, "finite scores, but row 1 of .* has nan"),
        ({"boxes": torch.tensor([[5.0, 1, 2, 2]] * 3)}, "x1 <= x2 .*row 0 of .* has .* = 6, 2, 2, 2"),
    ],
)  # fmt: skip
def test_bad_files_of_a_study_are_one_sentence_with_file_and_value(options, told, tmp_path):
    path = write_study(tmp_path, **options)
    with pytest.raises(ValueError, match=f"^Expected .*{told}") as caught:
        read_detections(path, truth())
    assert "\n" not in str(caught.value)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Expected a `detections.safetensors`.* at .*gone"):
        read_detections(tmp_path / "gone", truth())
    path = tmp_path / "detections.safetensors"
    path.write_bytes(b"no tensors")
    with pytest.raises(
        ValueError, match="names of their images and classes in .*detections.safetensors"
    ):
        class_names_in(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="names of their images and classes in .*KeyError"):
        read_detections(path, truth())
    save_file({"x": torch.zeros(1)}, path, {"images": "3", "class_names": "[]"})
    with pytest.raises(ValueError, match="names of their images and classes in .*TypeError"):
        read_detections(path, truth())


# --- Bad arrays


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        (([3], [0], [0.5], [[1, 1, 2, 2]]), "images from 0 to 2, but row 0 is in image 3"),
        (([0], [2], [0.5], [[1, 1, 2, 2]]), "labels from 0 to 1"),
        (([0, 0], [0], [0.5], [[1, 1, 2, 2]]), "everything else"),
        (([0], [0], [float("inf")], [[1, 1, 2, 2]]), "finite scores, but row 0 has inf"),
    ],
)
def test_bad_rows_are_named(columns, told):
    with pytest.raises(ValueError, match=told):
        diagnose(Detections(*columns), truth(), ())


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        (([3], [0], [[1, 1, 2, 2]], [False]), "images from 0 to 2, but object 0 is in image 3"),
        (([0], [0], [[1, 1, -2, 2]], [False]), "object 0 has x1, y1, x2, y2 = 1, 1, -2, 2"),
        (([0], [-1], [[1, 1, 2, 2]], [False]), "labels from 0 to 1 in the ground truth"),
    ],
)
def test_bad_objects_are_named(columns, told):
    with pytest.raises(ValueError, match=told):
        GroundTruth(CLASSES, "abc", Objects(*columns))


def test_ground_truth_needs_images_and_their_sizes():
    objects = Objects([], [], [], [])
    with pytest.raises(ValueError, match="Expected classes and images .*2 classes and 0 images"):
        GroundTruth(CLASSES, (), objects)
    with pytest.raises(ValueError, match="width and height of each of 1 images"):
        GroundTruth(CLASSES, ["a"], objects, np.zeros((2, 2), int))
