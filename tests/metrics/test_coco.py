"""`coco_ap` and `COCODetectionAP` against pycocotools on files, and against numbers made by hand."""

import contextlib
import copy
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from goodtransfer.analysis.error_measures import average_precision
from goodtransfer.metrics import coco_engines
from goodtransfer.metrics.coco import COCODetectionAP
from goodtransfer.metrics.coco_files import coco_ap

sys.path.insert(0, str(Path(__file__).parent))
from coco_worlds import as_images, hit, outlined, random_world, thing, world_of

ENGINES = ["pycocotools", "faster-coco-eval"]
STATS = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
SHAPES = {"bbox": "bbox", "segm": "segmentation"}


def by_metric(world, found, kind, engine, **options):
    metric = COCODetectionAP(len(world["categories"]), masks=kind == "segm", engine=engine)
    metric.update(*as_images(world, found, kind == "segm", **options))
    return metric


def official(world, found, kind, folder):
    """pycocotools on files, as its demo runs it."""
    files = folder / "world.json", folder / "found.json"
    for file, content in zip(files, (world, found), strict=True):
        file.write_text(json.dumps(content))
    with contextlib.redirect_stdout(io.StringIO()):
        there = COCO(str(files[0]))
        run = COCOeval(there, there.loadRes(str(files[1])), kind)
        run.evaluate()
        run.accumulate()
        run.summarize()
    return dict(zip(STATS, run.stats.tolist(), strict=True)), run.eval["precision"]


def assert_percent(found, fractions, within=1e-6):
    """The same numbers, where -1 is NaN."""
    assert list(found) == STATS
    expected = [np.nan if fractions[name] == -1 else fractions[name] for name in STATS]
    np.testing.assert_allclose(np.array(list(found.values())) / 100, expected, rtol=0, atol=within)


@pytest.mark.data
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", SHAPES)
def test_the_official_example_by_file_and_image_by_image(kind, engine, shared, capfd):
    folder = shared / "data/metrics_reference/cocoapi"
    numbers = json.loads((folder / "expected.json").read_text())[kind]
    expected = dict(zip(STATS, numbers.values(), strict=True))
    files = (
        folder / "instances_val2014_100.json",
        folder / f"instances_val2014_fake{kind}100_results.json",
    )
    assert_percent(coco_ap(*files, kind, engine=engine), expected)

    world, found = (json.loads(file.read_text()) for file in files)
    # What a task has is of less precision; here that changes nothing.
    dtype = {"bbox": torch.float32, "segm": torch.float64}[kind]
    metric = by_metric(world, found, kind, engine, dtype=dtype)
    assert_percent(metric.evaluation()[kind].stats, expected)
    computed = metric.compute()
    name = {"bbox": "APbox", "segm": "APseg"}[kind]
    for at in ("", "50", "75"):
        ap = computed[name + at]
        assert ap.shape == ()
        assert ap.dtype == torch.float64
        assert float(ap) == pytest.approx(100 * expected[f"AP{at}"], abs=1e-6)
    assert len(computed) == (3 if kind == "bbox" else 6)
    assert capfd.readouterr() == ("", "")


def of_kind(found, kind):
    """What was found, with its boxes or its masks alone."""
    other = {"bbox": "segmentation", "segm": "bbox"}[kind]
    return [{key: value for key, value in entry.items() if key != other} for entry in found]


@pytest.mark.parametrize("kind", SHAPES)
def test_equals_pycocotools_on_random_worlds_by_each_engine(kind, tmp_path):
    rng = np.random.default_rng(0)
    seen = []
    for _ in range(25):
        world, both = random_world(rng)
        expected, precision = official(world, of_kind(both, kind), kind, tmp_path)
        untouched = copy.deepcopy((world, both))
        seen.append(list(expected.values()))
        for engine in ENGINES:
            # A result that has a box and a mask is of the mask's size, as in detectron2.
            assert_percent(coco_ap(world, both, kind, engine=engine), expected, within=1e-12)
            assert (world, both) == untouched
            found = by_metric(world, both, kind, engine).evaluation()[kind]
            assert_percent(found.stats, expected, within=1e-12)
            cells = precision[:, :, :, 0, -1]  # threshold, recall, category
            for label in range(4):
                ap = 100 * cells[:, :, label].mean()
                same = (
                    np.isnan(found.per_class[label])
                    if ap < 0
                    else found.per_class[label] == pytest.approx(ap)
                )
                assert same
    spread = np.array(seen)
    assert (
        (spread[:, :3] > 0.01) & (spread[:, :3] < 0.9)
    ).mean() > 0.9  # the worlds are not trivial
    assert (spread[:, 3:6] == -1).any()
    assert (np.ptp(spread, axis=0) > 0.1).all()


A, B, C = [0, 0, 10, 10], [20, 20, 10, 10], [50, 50, 40, 40]
FAR = [90, 90, 5, 5]

# What is there, what was found, and some of what comes out. A mean is over 101 points of recall.
BY_HAND = {
    "IoU 8/9 is a hit at 8 of 10 thresholds": (
        [thing([0, 0, 9, 10])], [hit([0, 0, 8, 10], 0.9)], {"AP": 80, "AP50": 100, "AP75": 100},
    ),
    "an IoU of the threshold itself is a hit": (
        [thing([0, 0, 10, 10])], [hit([0, 0, 5, 10], 0.9)], {"AP": 10, "AP50": 100, "AP75": 0},
    ),
    "one of two objects is found": (
        [thing(A), thing(B)], [hit(A, 0.9)], {"AP": 100 * 51 / 101, "AR100": 50},
    ),
    "an object hit twice": ([thing(A)], [hit(FAR, 0.9), hit(A, 0.8), hit(A, 0.7)], {"AP": 50, "AR1": 0}),
    "a crowd takes what lies in it": (
        [thing(A), thing(C, crowd=1)],
        [hit([55, 55, 5, 5], 0.95), hit([60, 60, 9, 9], 0.94), hit(A, 0.9)],
        {"AP": 100, "AR1": 0, "AR10": 100},
    ),
    "a crowd takes nothing beside it": (
        [thing(A), thing(C, crowd=1)], [hit([20, 50, 40, 40], 0.95), hit(A, 0.9)], {"AP": 50},
    ),
    "a crowd need not be found": ([thing(A), thing(C, crowd=1)], [hit(A, 0.9)], {"AP": 100, "AR100": 100}),
    "an image without objects": ([thing(A)], [hit(A, 0.95, image=2), hit(A, 0.9)], {"AP": 50}),
    "an image without detections": (
        [thing(A), thing(A, image=2), thing(A, image=3)], [hit(A, 0.9)],
        {"AP": 100 * 34 / 101, "AR100": 100 / 3},
    ),
    "of equal scores the lower image goes first, here right": (
        [thing(A)], [hit(A, 0.5, image=3), hit(A, 0.5)], {"AP": 100},
    ),
    "of equal scores the lower image goes first, here wrong": (
        [thing(A, image=3)], [hit(A, 0.5, image=3), hit(A, 0.5)], {"AP": 50},
    ),
    "of equal scores in an image the first goes first, here right": (
        [thing(A)], [hit(A, 0.5), hit(FAR, 0.5)], {"AP": 100, "AR1": 100},
    ),
    "of equal scores in an image the first goes first, here wrong": (
        [thing(A)], [hit(FAR, 0.5), hit(A, 0.5)], {"AP": 50, "AR1": 0},
    ),
    "the hundredth detection of an image counts": (
        [thing(A)], [*(hit(FAR, 0.9) for _ in range(99)), hit(A, 0.8)], {"AP": 1, "AR10": 0, "AR100": 100},
    ),
    "the one after it does not": (
        [thing(A)], [*(hit(FAR, 0.9) for _ in range(100)), hit(A, 0.8)], {"AP": 0, "AR100": 0},
    ),
    "but a hundred of each category do": (
        [thing(A)], [*(hit(FAR, 0.9, category=2) for _ in range(100)), hit(A, 0.8)], {"AP": 100},
    ),
    "a category without objects is in no mean": (
        [thing(A)], [hit(A, 0.9), hit(A, 0.9, category=2)], {"AP": 100, "AR100": 100},
    ),
    "a category without detections is": ([thing(A), thing(A, category=2)], [hit(A, 0.9)], {"AP": 50}),
    "sizes are those of the areas": (
        [thing(A, area=1025), thing(B, area=9217)], [hit(A, 0.9)],
        {"APs": np.nan, "APm": 100, "APl": 0, "ARs": np.nan, "ARm": 100, "ARl": 0},
    ),
    "what hits nothing counts among those of its size": (
        [thing(A, area=2000)], [hit(C, 0.95), hit(A, 0.9)], {"AP": 50, "APm": 50},
    ),
    "and among no others": (
        [thing(A, area=2000)], [hit(B, 0.95), hit(A, 0.9)], {"AP": 50, "APm": 100},
    ),
    "nothing is found": ([thing(A)], [], dict.fromkeys(STATS, 0) | dict.fromkeys(
        ("APm", "APl", "ARm", "ARl"), np.nan)),
    "nothing is there": ([], [hit(A, 0.9)], dict.fromkeys(STATS, np.nan)),
    "nothing but a crowd is there": ([thing(A, crowd=1)], [hit(A, 0.9)], dict.fromkeys(STATS, np.nan)),
    "nothing at all": ([], [], dict.fromkeys(STATS, np.nan)),
}  # fmt: skip


@pytest.mark.parametrize("kind", SHAPES)
def test_outcomes_count_an_image_as_often_as_its_weight_as_if_it_had_been_copied(kind, tmp_path):
    rng, checked = np.random.default_rng(1), 0
    for _ in range(12):
        world, both = random_world(rng)
        # Of equal scores in an image, a copy's stand behind all of the image's, a weight's do not.
        both = [{**one, "score": one["score"] + 1e-6 * n} for n, one in enumerate(both)]
        weights = rng.integers(0, 3, len(world["images"]))
        ids = sorted(image["id"] for image in world["images"])
        outcomes = by_metric(world, both, kind, "pycocotools").outcomes()[kind]
        for drawn in (np.ones_like(weights), weights):
            copied, found = copies(world, of_kind(both, kind), dict(zip(ids, drawn, strict=True)))
            if not found or not copied["annotations"]:
                continue
            _, precision = official(copied, found, kind, tmp_path)
            for label, one in enumerate(outcomes):
                for row, counts in enumerate(one.counts):
                    ap = average_precision(
                        one.images, counts, one.objects, drawn[:, None], "101-point"
                    )
                    expected = precision[row, :, label, 0, -1].mean()
                    if expected < 0:
                        assert np.isnan(ap[0])
                    else:
                        assert ap[0] == pytest.approx(expected, abs=1e-12)
                        checked += 1
    assert checked > 300


def copies(world, found, weights):
    """Each image as often as its weight says, one copy beside the other, under new numbers."""
    images, sides = [], ([], [])
    for image in sorted(world["images"], key=lambda image: image["id"]):
        for _ in range(weights[image["id"]]):
            number = len(images) + 1
            images.append({**image, "id": number})
            for side, entries in zip(sides, (world["annotations"], found), strict=True):
                mine = [entry for entry in entries if entry["image_id"] == image["id"]]
                side += [{**entry, "image_id": number} for entry in mine]
    there = [{**entry, "id": number} for number, entry in enumerate(sides[0], 1)]
    return {**world, "images": images, "annotations": there}, sides[1]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("case", BY_HAND)
def test_cases_by_hand(case, kind, engine, capfd):
    things, found, expected = BY_HAND[case]
    things, found = outlined(things), outlined(found)
    told = [
        coco_ap(world_of(*things), found, kind, engine=engine),
        by_metric(world_of(*things), found, kind, engine).evaluation()[kind].stats,
    ]
    for stats in told:
        for name, value in expected.items():
            assert stats[name] == pytest.approx(value, abs=1e-6, nan_ok=True), name
    assert capfd.readouterr() == ("", "")


def test_per_class_tells_categories_apart():
    world = world_of(thing(A), thing(B), thing(A, category=5), categories=(5, 2, 1))
    metric = by_metric(world, [hit(A, 0.9), hit(A, 0.9, category=5)], "bbox", "auto")
    found = metric.evaluation()["bbox"].per_class
    assert found == pytest.approx([100 * 51 / 101, np.nan, 100], nan_ok=True)


def square(side, corner, size=(60, 60)):
    mask = torch.zeros(size, dtype=torch.bool)
    mask[corner : corner + side, corner : corner + side] = True
    return mask


def one_image(**changes):
    """A box of 50 x 50 with a mask of 8 x 8 in it, found with a mask of 8 x 7."""
    shorter = square(8, 1)
    shorter[1] = False
    prediction = {"boxes": torch.tensor([[0.0, 0, 50, 50]]), "scores": torch.tensor([0.9]),
                  "labels": torch.tensor([0]), "masks": shorter[None]}  # fmt: skip
    target = {"boxes": torch.tensor([[0.0, 0, 50, 50]]), "labels": torch.tensor([0]),
              "masks": square(8, 1)[None], "image_id": torch.tensor(5)}  # fmt: skip
    return [prediction], [{**target, **changes}]


def test_without_an_area_an_object_is_as_large_as_its_mask_or_else_its_box():
    for masks, area, sizes in ((True, None, "s"), (False, None, "m"), (True, 10_000, "l")):
        given = {} if area is None else {"area": torch.tensor([float(area)])}
        metric = COCODetectionAP(1, masks=masks)
        metric.update(*one_image(**given))
        for found in metric.evaluation().values():
            there = [size for size in "sml" if not np.isnan(found.stats[f"AP{size}"])]
            assert there == [sizes]
    computed = metric.compute()  # the IoU of the masks is 7/8, of the boxes 1
    assert {name: round(float(ap), 6) for name, ap in computed.items()} == {
        "APbox": 100, "APbox50": 100, "APbox75": 100, "APseg": 80, "APseg50": 100, "APseg75": 100,
    }  # fmt: skip


def test_masks_may_come_as_pixels_or_run_lengths_and_are_kept_small():
    rng = np.random.default_rng(1)
    world, found = random_world(rng)
    predictions, targets = as_images(world, found, masks=True)
    metric = COCODetectionAP(4, masks=True)
    metric.update(predictions, targets)
    for text in (False, True):
        runs = COCODetectionAP(4, masks=True)
        for prediction, target in zip(predictions, targets, strict=True):
            for side in (prediction, target):
                pack = [
                    rle.encode(np.asfortranarray(m.numpy().astype(np.uint8))) for m in side["masks"]
                ]
                side["packed"] = [
                    {**mask, "counts": mask["counts"].decode()} if text else mask for mask in pack
                ]
        packed = [
            [{**side, "masks": side["packed"]} for side in sides]
            for sides in (predictions, targets)
        ]
        runs.update(*packed)
        assert runs.evaluation()["segm"].stats == metric.evaluation()["segm"].stats

    many = {"boxes": torch.tensor([[0.0, 0, 9, 9]]).repeat(300, 1), "labels": torch.zeros(300).long(),
            "masks": square(200, 100, (480, 640)).expand(300, -1, -1)}  # fmt: skip
    large = COCODetectionAP(1, masks=True)
    large.update([{**many, "scores": torch.ones(300)}], [{**many, "image_id": 0}])
    assert float(large.compute()["APseg"]) == pytest.approx(100 * 34 / 101)  # 100 of 300 may count
    kept = sum(part.nbytes for name in ("rows", "tags", "counts") for part in getattr(large, name))
    assert kept < 600 * 480 * 640 / 200


def many_images():
    """12 images in which scores are equal within and over images, some of them empty."""
    parts = [random_world(np.random.default_rng(seed)) for seed in (3, 4)]
    predictions, targets = [], []
    for number, (world, found) in enumerate(parts):
        for side, images in zip(
            (predictions, targets), as_images(world, found, masks=True), strict=True
        ):
            side += images
        for target in targets[6 * number :]:
            target["image_id"] += 100 * number
    order = np.argsort([target["image_id"] for target in targets])
    for side in (*predictions, *targets):
        side["labels"] = side["labels"] % 3
    return [predictions[i] for i in order], [targets[i] for i in order]


def dealt(predictions, targets, order, metric):
    for i in order:
        metric.update([predictions[i]], [targets[i]])
    return metric


def everything(metric):
    """All that the metric says, of plain types."""
    evaluation = metric.evaluation()
    return {
        "compute": metric.compute(),
        "stats": {kind: found.stats for kind, found in evaluation.items()},
        "per_class": {kind: torch.tensor(found.per_class) for kind, found in evaluation.items()},
        "results": metric.results(),
    }


def assert_same(found, expected):
    assert found["compute"] == expected["compute"]
    for kind, stats in expected["stats"].items():
        np.testing.assert_array_equal(list(found["stats"][kind].values()), list(stats.values()))
        assert torch.equal(found["per_class"][kind], expected["per_class"][kind])
    assert found["results"] == expected["results"]


def in_one_process():
    metric = COCODetectionAP(3, masks=True, engine="pycocotools")
    return everything(dealt(*many_images(), range(12), metric))


def test_an_image_seen_again_counts_once_and_the_order_of_images_changes_nothing():
    predictions, targets = many_images()
    once = in_one_process()
    assert all(5 < float(ap) < 90 for ap in once["compute"].values())
    ids = [entry["image_id"] for entry in once["results"]]
    assert ids == sorted(ids)
    assert len(ids) == sum(len(prediction["scores"]) for prediction in predictions)
    order = [*range(11, -1, -1), 3, 4, 11]
    metric = COCODetectionAP(3, masks=True, engine="pycocotools")
    assert_same(everything(dealt(predictions, targets, order, metric)), once)
    # The first copy counts, here one without any detection.
    nothing = {name: value[:0] for name, value in predictions[0].items()}
    metric.reset()
    metric.update([nothing, *predictions], [targets[0], *targets])
    assert [e for e in once["results"] if e["image_id"] != ids[0]] == metric.results()


def test_results_are_those_of_a_results_file():
    world, both = random_world(np.random.default_rng(2))
    world["images"].sort(key=lambda image: image["id"])
    predictions, targets = as_images(world, both, masks=True)
    image_ids = [target["image_id"] for target in targets]
    for number, target in enumerate(targets):
        target["image_id"] = number  # as the data modules number them
    metric = COCODetectionAP(4, masks=True)
    metric.update(predictions, targets)
    category_ids = sorted(c["id"] for c in world["categories"])
    found = json.loads(json.dumps(metric.results(image_ids, category_ids)))
    assert [set(entry) for entry in found] == [
        {"image_id", "category_id", "bbox", "score", "segmentation"}
    ] * len(both)

    def key(entry):
        return json.dumps([entry[name] for name in ("image_id", "category_id", "score", "segmentation")]
                          + [float(number) for number in entry["bbox"]], sort_keys=True)  # fmt: skip

    assert sorted(map(key, found)) == sorted(map(key, both))
    for kind in SHAPES:
        assert coco_ap(world, found, kind) == metric.evaluation()[kind].stats


def test_engines(monkeypatch):
    world, found = world_of(thing(A)), [hit(A, 0.9)]
    used = []
    programs = coco_engines._programs
    monkeypatch.setattr(
        coco_engines, "_programs", lambda engine: used.append(engine) or programs(engine)
    )

    def ask(engine):
        used.clear()
        coco_ap(world, found, engine=engine)
        by_metric(world, found, "bbox", engine).compute()
        return used

    for engine in ENGINES:
        assert ask(engine) == [engine] * 2
        assert programs(engine)[0].__module__.startswith(engine.replace("-", "_"))
    assert ask("auto") == ["faster-coco-eval"] * 2
    monkeypatch.setattr(coco_engines, "find_spec", lambda name: None)
    assert ask("auto") == ["pycocotools"] * 2
    for refuse in (lambda engine: COCODetectionAP(1, engine=engine), ask):
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'goodtransfer\[coco\]'"):
            refuse("faster-coco-eval")
        with pytest.raises(ValueError, match="`engine` to be one of .*'auto'.*, but got 'cocoapi'"):
            refuse("cocoapi")


def test_an_empty_run_says_so_and_no_objects_are_nan():
    metric = COCODetectionAP(3)
    for ask in (metric.evaluation, metric.results):
        with pytest.raises(RuntimeError, match="Expected images to evaluate.*call `update` first"):
            ask()
    predictions, _ = many_images()
    empty = {name: value[:0] for name, value in predictions[0].items()}
    metric.update([empty], [{**empty, "image_id": 1}])
    assert all(np.isnan(float(ap)) for ap in metric.compute().values())
    assert metric.results() == []


def test_errors_of_the_metric_name_what_came():
    found, there = {"boxes": torch.zeros(2, 4), "scores": torch.ones(2),
                    "labels": torch.tensor([0, 2])}, {"boxes": torch.zeros(1, 4),
                    "labels": torch.tensor([0]), "image_id": 1}  # fmt: skip
    metric = COCODetectionAP(3)
    for prediction, target, sentence in (
        ({**found, "labels": torch.tensor([1, 3])}, there, "labels from 0 to 2 in a prediction, but"
         " got 1 to 3: count classes from 0"),
        (found, {**there, "labels": torch.tensor([-1])}, "in a target, but got -1 to -1"),
        ({**found, "scores": torch.ones(3)}, there, r"\(n,\) in a prediction, but got .*\(3,\)"),
        (found, {**there, "crowd": torch.zeros(2).bool()}, r"a target, .*'crowd': \(2,\)"),
        (found, {**there, "area": torch.zeros(2)}, r"a target, .*'area': \(2,\)"),
        (found, {"boxes": there["boxes"], "labels": there["labels"]}, "'image_id'\\), but got"),
        ({"boxes": found["boxes"]}, there, r"a prediction to have .*'scores'.*got \('boxes',\)"),
        ({**found, "scores": torch.tensor([1, np.nan])}, there, "a prediction, but its scores have others"),
        (found, {**there, "boxes": torch.full((1, 4), np.inf)}, "a target, but its boxes have others"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=sentence):
            metric.update([prediction], [target])
    with pytest.raises(ValueError, match="but got 1 predictions and 0 targets"):
        metric.update([found], [])

    metric = COCODetectionAP(3, masks=True)
    (prediction,), (target,) = one_image()
    for masks, sentence in (
        (square(8, 1, (30, 60))[None], r"of image 5 to have its size, but got \[\(30, 60\), \(60, 60\)\]"),
        (square(8, 1), r"masks \(1, H, W\) or 1 run lengths in a prediction, but got \(60, 60\)"),
        (torch.zeros(2, 60, 60), r"in a prediction, but got \(2, 60, 60\)"),
        ([], r"in a prediction, but got \(0, 'H', 'W'\)"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=sentence):
            metric.update([{**prediction, "masks": masks}], [target])
    with pytest.raises(ValueError, match=r"a target to have .*'masks'\), but got"):
        metric.update(
            [prediction], [{key: value for key, value in target.items() if key != "masks"}]
        )


def without(entry, key):
    return {name: value for name, value in entry.items() if name != key}


def test_errors_of_files_name_the_entry(tmp_path):
    there, found = thing(A), hit(A, 0.9)
    polygon = {**there, "segmentation": [[0, 0, 0, 9, 9, 9]]}
    for world, results, kind, sentence in (
        (world_of(there), [found, hit(A, 1, image=9)], "bbox", "result number 1 of `results`.*no image 9"),
        (world_of(there), [without(found, "score")], "bbox", "result number 0 .*KeyError: 'score'"),
        (world_of(there), [without(found, "bbox")], "bbox", "KeyError: 'bbox'"),
        (world_of(there), [{**found, "bbox": [1, 2, 3]}], "bbox", "result number 0 .*ValueError: not enough"),
        (world_of(there), [{**found, "score": float("nan")}], "bbox", "number 0 .*nan.* is not finite"),
        (world_of(there), ["found"], "bbox", "result number 0 .*'found'"),
        (world_of(there), {"annotations": []}, "bbox", "list with each result in `results`, but got {"),
        (world_of(thing(A), thing(A, image=9)), [], "bbox", "annotation number 1 of `ground_tr.*no image 9"),
        (world_of(without(there, "area")), [], "bbox", "annotation number 0 .*KeyError: 'area'"),
        ([found], [], "bbox", "list with each image in `ground_truth`, but got None"),
        (without(world_of(there), "categories"), [], "bbox", "list with each category in"),
        (world_of(there), [], "segm", "annotation number 0 .*KeyError: 'segmentation'"),
        (world_of({**there, "segmentation": []}), [], "segm", "annotation number 0 .*IndexError"),
        (world_of({**there, "segmentation": [[1, 2]]}), [], "segm", "annotation number 0 of"),
        (world_of(polygon), [{**found, "segmentation": {"size": [9, 9], "counts": "0"}}], "segm",
         r"result number 0 .*a mask of \[9, 9\] in an image of \[100, 100\]"),
        ({**world_of(polygon), "images": [{"id": 1}]}, [], "segm", "image number 0 .*KeyError: 'height'"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=sentence):
            coco_ap(world, results, kind)

    file = tmp_path / "found.json"
    with pytest.raises(
        FileNotFoundError, match="`results` at .*found.json, but there is no such file"
    ):
        coco_ap(world_of(there), file)
    file.write_text("[{")
    with pytest.raises(ValueError, match="Expected JSON at .*found.json, but it cannot be parsed"):
        coco_ap(world_of(there), str(file))
    file.write_text(json.dumps([without(found, "bbox")]))
    with pytest.raises(ValueError, match="result number 0 of .*found.json .*KeyError: 'bbox'"):
        coco_ap(world_of(there), file)
    with pytest.raises(ValueError, match="`iou_type` to be one of .*'bbox'.*, but got 'keypoints'"):
        coco_ap(world_of(there), [found], "keypoints")
