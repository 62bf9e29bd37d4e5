"""COCO's files that are broken, nested without end, or whose masks would hang or crash pycocotools."""

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as official

from goodtransfer import COCODetectionDataModule
from goodtransfer.analysis.detection_files import read_coco
from goodtransfer.data.check import check
from goodtransfer.data.coco_masks import pack, unpack
from goodtransfer.foreign import plain, shown
from goodtransfer.metrics.coco_files import coco_ap
from goodtransfer.run_lengths import FaultError, _uncompressed

sys.path.insert(0, str(Path(__file__).parent))
from forked import assert_clean, fault_of, outcomes
from mutations import CASES, dice, mutated, mutated_tree

TRIANGLE = [[1, 1, 12, 2, 6, 9]]
DEPTHS = [10, 200, *range(900, 1000, 7), 5_000, 100_000]


def runs(seed=0):
    mask = np.asfortranarray(np.random.default_rng(seed).uniform(size=(12, 16)) < 0.5).astype(
        np.uint8
    )
    found = official.encode(np.asfortranarray(mask))
    return {"size": found["size"], "counts": found["counts"].decode()}


def instances():
    def thing(image, segmentation, **more):
        return {
            "id": image, "image_id": image, "category_id": 3, "bbox": [1, 1, 9, 8], "area": 70.5,
            "iscrowd": 0, "segmentation": segmentation,
        } | more  # fmt: skip

    return {
        "info": {"year": 2017},
        "images": [
            {"id": n, "file_name": f"{n}.png", "width": 16, "height": 12} for n in range(1, 5)
        ],
        "annotations": [
            thing(1, TRIANGLE),
            thing(2, runs(), category_id=8),
            thing(3, {"size": [12, 16], "counts": [10, 20, 162]}, iscrowd=1),
            thing(4, [*TRIANGLE, [2, 2, 5, 2, 5, 5, 2, 5]]),
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 8, "name": "dog"}],
    }


def results():
    return [
        {"image_id": n, "category_id": (3, 8)[n % 2], "score": 0.1 * n, "bbox": [1, 1, 8, 8],
         "segmentation": runs(n)}
        for n in range(1, 5)
    ]  # fmt: skip


def text(tree):
    return json.dumps(tree).encode()


def nested(depth):
    """As text: Python does not write what is nested that deep."""
    return "[" * depth + "1" + "]" * depth


@pytest.fixture
def root(tmp_path):
    (tmp_path / "annotations").mkdir()
    for split in ("a", "b"):
        (tmp_path / split).mkdir()
        for number in range(1, 5):
            Image.new("RGB", (16, 12)).save(tmp_path / split / f"{number}.png")
        (tmp_path / "annotations" / f"instances_{split}.json").write_bytes(text(instances()))
    return tmp_path


def looked_through(root, on_error="skip"):
    module = COCODetectionDataModule(root, train="a", test="b", masks=True, on_error=on_error)
    if on_error == "raise":
        return module.records("train")
    findings = check(module)
    for fault in findings.faults:
        assert not (told := fault_of(fault, root)), told
    return findings


@pytest.mark.slow
def test_broken_instances(root):
    path = root / "annotations" / "instances_a.json"

    def case(number):
        random = dice("instances", number)
        tree = number % 2
        path.write_bytes(
            text(mutated_tree(instances(), random)) if tree else mutated(text(instances()), random)
        )
        looked_through(root, "raise" if number % 3 else "skip")

    assert looked_through(root).faults == []
    assert_clean(outcomes(case, CASES["instances"], root), CASES["instances"])


@pytest.mark.slow
def test_broken_ground_truth_and_results(tmp_path):
    world, found = tmp_path / "world.json", tmp_path / "found.json"

    def case(number):
        random = dice("coco_ap", number)
        trees = [instances(), results()]
        files = [text(tree) for tree in trees]
        which = random.randrange(2)
        files[which] = (
            text(mutated_tree(trees[which], random))
            if number % 2
            else mutated(files[which], random)
        )
        for path, content in zip((world, found), files, strict=True):
            path.write_bytes(content)
        kind, engine = (("bbox", "segm")[number // 2 % 2], ("pycocotools", "auto")[number // 4 % 2])
        stats = coco_ap(world, found, kind, engine=engine)
        assert all(np.isnan(v) or 0 <= v <= 100 for v in stats.values())

    assert_clean(outcomes(case, CASES["coco_ap"], tmp_path), CASES["coco_ap"])


# --- Nested without end


PLACES = {
    "the file": "{deep}",
    "a list of images": '{{"images": {deep}, "annotations": [], "categories": [{{"id": 3, "name": "a"}}]}}',
    "an image": '{{"images": [{deep}], "annotations": [], "categories": [{{"id": 3, "name": "a"}}]}}',
    "a name": '{{"images": [], "annotations": [], "categories": [{{"id": 3, "name": {deep}}}]}}',
    "a box": '{{"images": [{{"id": 1, "file_name": "1.png", "width": 16, "height": 12}}], "annotations": '
    '[{{"id": 1, "image_id": 1, "category_id": 3, "bbox": {deep}, "area": 1, "iscrowd": 0}}], '
    '"categories": [{{"id": 3, "name": "a"}}]}}',
}


@pytest.mark.parametrize("place", PLACES)
def test_json_nested_at_every_depth(place, root):
    """Just below the depth that Python can parse, it cannot write out what it has parsed."""
    path = root / "annotations" / "instances_a.json"
    readers = [looked_through, lambda _: read_coco(path), lambda _: coco_ap(path, [])]

    def case(number):
        depth, reader = divmod(number, len(readers))
        path.write_text(PLACES[place].format(deep=nested(DEPTHS[depth])))
        readers[reader](root)

    found = outcomes(case, len(DEPTHS) * len(readers), root)
    assert {*found} <= {"a result", "one sentence"}, found
    assert found.count("one sentence") >= len(DEPTHS)


def test_what_is_shown_is_short_and_on_one_line():
    assert shown([1, 2.5, "a", None, {"b": (1,)}]) == "[1, 2.5, 'a', None, {'b': (1,)}]"
    assert len(shown(["x" * 10**6] * 10**6)) == 200
    assert plain("x" * 1000) == "x" * 200 + "..."
    for value in ("a\nb", "\x1b[2J", "\u202e", "\ud800"):
        assert shown([value]).isprintable()
        assert plain(value).isprintable()


# --- Numbers


@pytest.mark.parametrize(
    "number", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 400, "9" * 5000, "1e308"]
)
@pytest.mark.parametrize("key", ["id", "width", "bbox", "area", "score", "image_id"])
def test_numbers_that_are_none(key, number, root):
    world = json.loads(text(instances()))
    found = results()
    for entries in (*(world[name] for name in ("images", "annotations")), found):
        for entry in entries[:1]:
            if key in entry:
                entry[key] = ["@", 1, 9, 9] if key == "bbox" else "@"
    written = [text(tree).replace(b'"@"', number.encode()) for tree in (world, found)]
    (root / "annotations" / "instances_a.json").write_bytes(written[0])
    (root / "found.json").write_bytes(written[1])

    def case(reader):
        path = root / "annotations" / "instances_a.json"
        if reader == 0:
            looked_through(root)
        elif reader == 1:
            read_coco(path)
        else:
            coco_ap(path, root / "found.json", ("bbox", "segm")[reader - 2])

    assert {*outcomes(case, 4, root)} <= {"a result", "one sentence"}


# --- Masks


def refused(segmentation, height=12, width=16):
    start = time.perf_counter()
    with pytest.raises((FaultError, TypeError, LookupError, ValueError)):
        pack(segmentation, height, width)
    assert time.perf_counter() - start < 1
    return True


def test_run_lengths_of_a_million_bits_are_refused_at_once():
    assert refused({"size": [12, 16], "counts": "o" * 10**6})
    assert refused({"size": [12, 16], "counts": "o" * 7 + "0"})
    assert refused({"size": [12, 16], "counts": "\x7f\x01"})
    assert refused({"size": [12, 16], "counts": [2**40, -(2**40), 192]})
    assert refused({"size": [12, 16], "counts": [192.0]})
    assert refused({"size": [12, 16], "counts": [[192]]})
    assert refused({"size": [12, 16], "counts": [192, 10**400]})
    assert refused({"size": None, "counts": [192]})
    assert refused({"size": [12, 16], "counts": "é"})


def test_a_polygon_to_and_fro_without_end_is_refused_at_once(tmp_path):
    """pycocotools would take forty gigabytes for its outline, and end in a crash."""
    far = [[0, 0, 65_000, 65_000] * 2000]
    assert refused(far, 65_535, 65_535)
    world = {
        "images": [{"id": 1, "height": 65_535, "width": 65_535}],
        "categories": [{"id": 3}],
        "annotations": [
            {"image_id": 1, "category_id": 3, "area": 1, "segmentation": far},
        ],
    }  # fmt: skip
    with pytest.raises(
        ValueError, match="annotation number 0 of `ground_truth` to have polygons in its"
    ):
        coco_ap(world, [], "segm")
    world["images"][0]["height"] = 10**9
    with pytest.raises(ValueError, match="image number 0 of `ground_truth`.*1000000000"):
        coco_ap(world, [], "segm")
    round_a_large_image = [[0, 0, 30_000, 0, 30_000, 30_000, 0, 30_000]]
    assert pack(round_a_large_image, 30_000, 30_000)


@pytest.mark.parametrize("counts", ["o" * 10**6, "0", "52203", "", "o", [1, 2], [-5, 197], None, 7])
@pytest.mark.parametrize("of", ["annotations", "results"])
def test_damaged_run_lengths_do_not_reach_pycocotools(of, counts, tmp_path):
    trees = {"annotations": instances(), "results": results()}
    mask = {"size": [12, 16], "counts": counts}
    (trees["results"] if of == "results" else trees["annotations"]["annotations"])[1][
        "segmentation"
    ] = mask
    for name, tree in trees.items():
        (tmp_path / f"{name}.json").write_bytes(text(tree))

    def case(number):
        files = tmp_path / "annotations.json", tmp_path / "results.json"
        coco_ap(*files, "segm", engine=("pycocotools", "faster-coco-eval")[number])

    assert outcomes(case, 2, tmp_path, seconds=5, gigabytes=1) == ["one sentence"] * 2


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_any_mask_is_read_as_pycocotools_writes_it(height, width, data):
    bits = data.draw(st.integers(0, 2 ** (height * width) - 1))
    flat = np.array([bits >> n & 1 for n in range(height * width)], np.uint8)
    mask = np.asfortranarray(flat.reshape(height, width))
    told = official.encode(mask)
    told["counts"] = told["counts"].decode()
    outline = pack(told, height, width)
    assert (unpack([outline], height, width)[0].numpy() == mask.astype(bool)).all()
    assert sum(_uncompressed(told["counts"])) == height * width


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(st.characters(max_codepoint=126), max_size=60))
def test_any_text_as_run_lengths_is_a_mask_or_refused(counts):
    try:
        outline = pack({"size": [12, 16], "counts": counts}, 12, 16)
    except FaultError:
        return
    assert unpack([outline], 12, 16).shape == (1, 12, 16)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(VALUES)
def test_any_value_as_a_segmentation_is_a_mask_or_refused(segmentation):
    try:
        outline = pack(segmentation, 12, 16)
    except (LookupError, TypeError, ValueError, ArithmeticError):
        return
    assert unpack([outline], 12, 16).shape == (1, 12, 16)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.dictionaries(
        st.sampled_from(["images", "annotations", "categories"]), st.lists(VALUES, max_size=4)
    )
)
def test_any_lists_are_scored_or_refused(world):
    for read in (lambda: coco_ap(world, []), lambda: coco_ap(world, [], "segm")):
        try:
            assert all(np.isnan(v) or 0 <= v <= 100 for v in read().values())
        except ValueError as error:
            assert str(error).startswith("Expected")  # noqa: PT017 - either is right
