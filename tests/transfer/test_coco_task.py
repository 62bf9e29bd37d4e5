"""The COCO run: its schedules, its masks through sizes and flips, its scores, encoder and pictures."""

import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from goodtransfer.data.coco import COCODetectionDataModule
from goodtransfer.data.coco_masks import pack, unpack
from goodtransfer.data.detection import collate
from goodtransfer.data.toy import CLASSES
from goodtransfer.data.toy_layouts import make_coco
from goodtransfer.metrics.coco import COCODetectionAP
from goodtransfer.optim import warmup_step
from goodtransfer.transfer.coco import PRETRAINING, COCODetection
from goodtransfer.transfer.draw_boxes import drawing
from goodtransfer.transfer.mask_rcnn_c4 import MaskRCNNC4
from goodtransfer.transfer.rcnn_c4 import RCNNC4
from goodtransfer.weights import load_encoder, save_encoder

sys.path.insert(0, str(Path(__file__).parent))
from small import SMALL

BOXES = {"coco_APbox", "coco_APbox50", "coco_APbox75"}
MASKS = {"coco_APseg", "coco_APseg50", "coco_APseg75"}


def task(encoder="resnet10w8", **changes):
    torch.manual_seed(0)
    narrow = {"mask_channels": 8} if changes.get("masks", True) else {}
    given = {
        "num_classes": 20, "batch": 4, "lr": 0.04, "iterations": 2, "milestones": (1,), "warmup": 0,
        "short_sides": (56, 64, 72), "test_side": 64, "precise_bn": 3, "detector": SMALL | narrow,
    }  # fmt: skip
    return COCODetection(encoder, **{**given, **changes})


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """20 images to train on, two of them without objects; 8 to report on, the last without."""
    return make_coco(tmp_path_factory.mktemp("coco") / "coco", train=20, val=8, size=64)


def data(world, **changes):
    return COCODetectionDataModule(world, **{"batch_size": 4, "masks": "polygons", **changes})


def trainer(options, **changes):
    return pl.Trainer(**{"max_epochs": -1, "num_sanity_val_steps": 0, **options, **changes})


# --- The paper's run, and those that pretrain


def test_defaults_are_the_paper_s_run():
    module = COCODetection("resnet10w8", num_classes=80)
    assert module.schedule == (0.02, 90_000, (60_000, 80_000), 1_000, ())
    assert module.short_sides == (640, 672, 704, 736, 768, 800)
    assert (module.test_side, module.max_side, module.precise_bn) == (800, 1333, 200)
    assert (module.momentum, module.weight_decay, module.batch) == (0.9, 1e-4, 16)
    assert (module.prefix, type(module.detector)) == ("coco", MaskRCNNC4)
    assert module.detector.mask_head.deconv.out_channels == 256
    alone = COCODetection("resnet10w8", num_classes=80, masks=False)
    assert (type(alone.detector), alone.schedule) == (RCNNC4, module.schedule)


def test_pretraining_schedules():
    """One is the default; six times as long falls 60k and 20k iterations before its end."""
    short = COCODetection("resnet10w8", num_classes=80, **PRETRAINING["1x"])
    assert short.schedule == COCODetection("resnet10w8", num_classes=80).schedule
    plan = COCODetection("resnet10w8", num_classes=80, **PRETRAINING["6x"]).schedule
    assert (plan.iterations, plan.warmup) == (6 * 90_000, 1_000)
    factors = {i: warmup_step(i, plan.milestones, plan.warmup) for i in (479_999, 480_000, 520_000)}
    assert factors == pytest.approx({479_999: 1, 480_000: 0.1, 520_000: 0.01})


# --- Sizes


@pytest.mark.parametrize("kind", ["pixels", "polygons"])
def test_masks_move_with_the_pixels(kind):
    """A white shape on black stays under its mask."""
    module = task(short_sides=(72,))
    polygons = [[40.0, 12, 80, 12, 80, 30, 40, 30], [10, 40, 30, 40, 20, 55]]
    pixels = unpack([pack(polygons, 60, 100)], 60, 100)
    image = (pixels * 255).to(torch.uint8).expand(3, -1, -1)
    target = {
        "boxes": torch.tensor([[10, 12, 80, 55]]),
        "labels": torch.tensor([1]),
        "masks": pixels if kind == "pixels" else [polygons],
    }
    (larger,), (moved,) = module._resized([image], [target], random.Random(3))
    assert larger.shape[1:] == (72, 120)
    (mask,) = moved["masks"]
    if kind == "polygons":
        mask = unpack([pack([p.tolist() for p in mask], 72, 120)], 72, 120)[0]
    white = larger[0] > 127
    assert mask.shape == white.shape
    assert (mask != white).float().mean() < 0.01 < white.float().mean()
    assert "masks" not in task(masks=False)._resized([image], [target], random.Random(3))[1][0]


# --- The run


@pytest.mark.parametrize("masks", ["polygons", True])
def test_a_step_equals_a_literal_one(masks, world, trainer_options):
    module, literal = task(iterations=1, milestones=(), weight_decay=0.0), task().detector.train()
    run = trainer(trainer_options, max_steps=1)
    with pytest.warns(UserWarning, match="ended after 1 of 4 steps"):
        run.fit(module, data(world, masks=masks))
    loader = data(world, masks=masks, loader=module.recommended_loader()).train_dataloader()
    images, targets = next(iter(loader))
    chance = random.Random(repr((0, "train", 0, 0, 0)))
    torch.manual_seed(chance.getrandbits(63))
    losses, _ = literal(*module._resized(images, targets, chance))
    sum(losses.values()).backward()
    for (name, p), q in zip(module.detector.named_parameters(), literal.parameters(), strict=True):
        torch.testing.assert_close(p, q - 0.01 * q.grad, rtol=1e-4, atol=1e-6, msg=name)
    assert run.callback_metrics["loss_mask"] == losses["loss_mask"] > 0


def test_polygons_and_pixels_are_not_the_same_targets(world, trainer_options):
    """They differ by pixels' edges: both train, neither is taken for the other."""
    found = []
    for masks in ("polygons", True):
        run = trainer(trainer_options)
        run.fit(task(iterations=1, milestones=()), data(world, masks=masks))
        found.append(run.callback_metrics["loss_mask"].item())
    assert found[0] != found[1]
    assert found[0] == pytest.approx(found[1], rel=0.1)


def test_resumed_in_mid_epoch_it_ends_with_the_same_bits(world, trainer_options, tmp_path):
    options = {**trainer_options, "enable_checkpointing": True}

    def saving():
        return ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")

    whole = task()
    trainer(options, callbacks=[saving()]).fit(whole, data(world))
    torch.manual_seed(99)
    module = task()
    run = trainer(options, callbacks=[saving()])
    run.fit(module, data(world), ckpt_path=tmp_path / "step=3.ckpt", weights_only=True)
    assert run.global_step == whole.trainer.global_step == 8
    again = module.state_dict()
    assert any("mask_head" in name for name in again)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again[name]), name


@pytest.mark.parametrize("masks", [True, False])
def test_scores_are_those_of_the_metric(masks, world, trainer_options):
    """Of the images as they are, alone; the image without objects, too."""
    module = task(masks=masks, precise_bn=0, detector=None)
    plain = data(world, masks=masks)
    (logged,) = trainer(trainer_options).test(module, plain, verbose=False)
    metric = COCODetectionAP(20, masks=masks)
    for images, targets in data(world, masks=masks, batch_size=1).test_dataloader():
        found = module.eval()(images)
        assert ("masks" in found[0]) == masks
        metric.update(found, targets)
    alone = {f"coco_{name}": float(value) for name, value in metric.compute().items()}
    assert logged == pytest.approx(alone, abs=1e-4)
    assert logged.keys() == (BOXES | MASKS if masks else BOXES)


def test_scores_along_the_way(world, trainer_options):
    module = task(iterations=1, milestones=(), eval_iters=(1,), precise_bn=1)
    run = trainer(trainer_options)
    run.fit(module, data(world))
    assert run.callback_metrics.keys() >= BOXES | MASKS


def test_bf16_trains_and_masks_stay_exact(world, trainer_options):
    module = task(iterations=1, milestones=())
    run = trainer(trainer_options, precision="bf16-mixed")
    run.fit(module, data(world))
    assert all(p.isfinite().all() for p in module.parameters())
    run.test(module, data(world), verbose=False)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        _, (found,) = module.detector.eval()([torch.rand(3, 64, 64)])
    assert found["mask_probabilities"].dtype == torch.float32


def test_images_without_objects_train(world, trainer_options):
    """Read when asked for, in batches of one: their losses are finite, that of masks is zero."""
    seen = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            objects = len(batch[1][0]["labels"])
            seen.append((objects, trainer.callback_metrics["loss_mask"].item()))
            assert outputs["loss"].isfinite()

    things = data(world, batch_size=1, loader={"skip_empty": False})
    module = task(iterations=5, milestones=(), batch=4)
    run = trainer(trainer_options, accumulate_grad_batches=4, callbacks=[Watch()])
    run.fit(module, things)
    assert {loss for objects, loss in seen if not objects} == {0.0}
    assert all(loss > 0 for objects, loss in seen if objects)
    assert sum(not objects for objects, _ in seen) == 8  # two in each of four epochs


def test_it_learns(tmp_path, trainer_options):
    """One class, any thing: boxes and masks."""
    easy = make_coco(tmp_path / "coco", train=40, val=24, size=64, seed=1)
    for path in (easy / "annotations").iterdir():
        content = json.loads(path.read_text())
        content["categories"] = [{"id": 1, "name": "thing"}]
        for annotation in content["annotations"]:
            annotation["category_id"] = 1
        path.write_text(json.dumps(content))
    module = task(
        "resnet10w16", num_classes=1, batch=8, lr=0.2, iterations=25, milestones=(20,), warmup=5,
        short_sides=(64,), detector=SMALL | {"rois": 32, "mask_channels": 32},
    )  # fmt: skip
    things = data(easy, batch_size=8)
    before = trainer(trainer_options).test(module, things, verbose=False)[0]
    trainer(trainer_options).fit(module, things)
    after = trainer(trainer_options).test(module, things, verbose=False)[0]
    for score in ("coco_APbox50", "coco_APseg50"):
        assert before[score] < 10 < 30 < after[score]


# --- The encoder afterwards


def test_the_encoder_of_a_pretraining_is_trunk_and_last_stage(world, trainer_options, tmp_path):
    """Saved and read again it gives the detector's C4, and what the detector makes of it."""
    module = task(iterations=1, milestones=())
    before = {k: v.clone() for k, v in module.encoder.state_dict().items()}
    trainer(trainer_options).fit(module, data(world))
    save_encoder(tmp_path / "coco.safetensors", module.encoder)
    encoder = load_encoder(tmp_path / "coco.safetensors").eval()
    detector = module.detector.eval()
    image = torch.rand(1, 3, 64, 96)
    found = encoder(image, stages=(4, 5))
    c4 = detector.encoder(image, stages=(4,))[4]
    _, last_stage = detector.encoder.split(4)
    assert torch.equal(found[4], c4)
    assert torch.equal(found[5], last_stage(c4))
    moved = [k for k, v in encoder.named_parameters() if not torch.equal(v, before[k])]
    assert len(moved) == len(list(encoder.parameters()))


@pytest.mark.parametrize("masks", [True, False])
def test_load_from_checkpoint(masks, world, trainer_options, tmp_path):
    module = task(masks=masks, num_classes=None, iterations=1, milestones=())
    run = trainer(trainer_options)
    run.fit(module, data(world))
    run.save_checkpoint(tmp_path / "x.ckpt")
    loaded = COCODetection.load_from_checkpoint(tmp_path / "x.ckpt", weights_only=True).eval()
    images = [torch.randint(0, 256, (3, 50, 80), dtype=torch.uint8)]
    for ours, theirs in zip(module.eval()(images), loaded(images), strict=True):
        assert ("masks" in ours) == masks
        for name, value in ours.items():
            assert torch.equal(value, theirs[name])
    assert (loaded.num_classes, loaded.prefix, loaded.schedule) == (20, "coco", module.schedule)


# --- Pictures


def test_a_test_leaves_pictures(world, trainer_options, tmp_path):
    module = task(precise_bn=0)
    trainer(trainer_options).test(module, data(world), verbose=False)
    picture = np.asarray(Image.open(tmp_path / "coco_detections.png"))
    assert picture.shape == (2 * 240 + 12, 3 * 240 + 16, 3)
    assert len(np.unique(picture)) > 100


def colours(picture, colour):
    """Where a picture (3, H, W) has exactly that colour."""
    return (picture == torch.tensor(colour, dtype=torch.uint8)[:, None, None]).all(0)


def test_drawings_tell_right_from_wrong():
    """Three objects: one found, one taken for another class, one by a box that is too small."""
    image = torch.zeros(3, 120, 240, dtype=torch.uint8)
    boxes = torch.tensor([[10.0, 30, 60, 110], [90, 30, 140, 110], [170, 30, 220, 110]])
    target = {"boxes": boxes, "labels": torch.tensor([0, 1, 2])}
    found = {
        "boxes": torch.tensor([[10, 30, 58, 110.0], [90, 30, 140, 110], [170, 30, 190, 110],
                               [0, 0, 240, 120]]),
        "scores": torch.tensor([0.9, 0.8, 0.7, 0.6]),
        "labels": torch.tensor([0, 0, 2, 1]),
        "masks": torch.zeros(4, 120, 240, dtype=torch.bool),
    }  # fmt: skip
    found["masks"][0, 40:100, 20:50] = True
    found["masks"][1, 40:100, 100:130] = True
    picture = drawing(image, target, found, ["ant", "bee", "cat"])
    assert picture.shape == (3, 120, 240)
    lime, yellow = colours(picture, [0, 255, 0]), colours(picture, [255, 255, 0])
    white = colours(picture, [255, 255, 255])
    columns = {name: which.any(0).nonzero().flatten() for name, which in
               (("lime", lime), ("yellow", yellow), ("white", white))}  # fmt: skip
    assert columns["lime"].max() < 90 <= columns["yellow"].min()
    assert columns["yellow"].max() < 240
    assert columns["white"].max() >= 218  # all objects; the whole image's box is one too many
    assert not yellow[115:].any()
    inside = picture[:, 60:90, 25:45].reshape(3, -1)
    assert (inside == torch.tensor([[0], [102], [0]])).all()  # four tenths of lime over black
    assert (picture[:, 60:90, 105:125].reshape(3, -1) == torch.tensor([[102], [102], [0]])).all()
    assert not picture[:, 60:90, 195:210].any()


def test_drawings_of_nothing():
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    found = {**empty, "scores": torch.zeros(0), "masks": torch.zeros(0, 30, 20, dtype=torch.bool)}
    picture = drawing(torch.full((3, 30, 20), 0.5), empty, found, [])
    assert (picture == 128).all()
    assert picture.shape == (3, 240, 160)
    one = {"boxes": torch.tensor([[2.0, 2, 9, 9]]), "labels": torch.tensor([0])}
    assert colours(drawing(torch.zeros(3, 30, 20), one, found, ["a"]), [255] * 3).any()


# --- Sentences


def without(key):
    def change(target):
        del target[key]

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("masks"), r"targets with `masks` to train on, but that of image \d+ has \['area', "
         r"'boxes', .*COCODetectionDataModule\(masks='polygons'\).*COCODetection\(masks=False\)"),
        (lambda t: t.update(masks=torch.zeros(len(t["labels"]), 64, 65, dtype=torch.bool)),
         r"masks of 64 x 64 pixels, as image \d+ has, but got one of 64 x 65"),
        (lambda t: t.update(masks=t["masks"][:-1]), r"a mask of each object, but image \d+ has \d"),
        (lambda t: t.update(masks=[[1.0, 2, 3, 4, 5, 6]] * len(t["labels"])), "or as polygons"),
        (lambda t: t.update(masks=[[[1.0, 2, 3, 4]]] * len(t["labels"])), r"has \[\[1.0, 2, 3, 4\]\]"),
        (lambda t: t.update(masks=[[]] * len(t["labels"])), r"image \d+ has \[\]"),
    ],
)  # fmt: skip
def test_sentences_of_masks(change, words, world, trainer_options):
    def changed(items):
        images, targets = collate(items)
        for target in targets:
            change(target)
        return images, targets

    dataset = data(world, loader={"flip": 0.0}).train_dataloader().dataset
    loader = DataLoader(dataset, batch_size=4, collate_fn=changed)
    with pytest.raises(ValueError, match=f"Expected .*{words}"):
        trainer(trainer_options).fit(task(), loader)


def test_sentences_of_data_and_encoders(world, trainer_options):
    with pytest.raises(
        ValueError, match=r"targets with `masks` to train on, but that of image \d+"
    ):
        trainer(trainer_options).test(task(), data(world, masks=False), verbose=False)
    with pytest.raises(ValueError, match="data module of 3 classes, .* has 20: leave num_classes="):
        trainer(trainer_options).fit(task(num_classes=3), data(world))
    loader = DataLoader([], batch_size=4, collate_fn=collate)
    with pytest.raises(ValueError, match=r"pass COCODetection\(num_classes=...\)"):
        trainer(trainer_options).fit(task(num_classes=None), loader)
    module = task()
    torch.nn.init.constant_(module.encoder.conv1.weight, float("nan"))
    with pytest.raises(ValueError, match="for COCODetection, but those of stage 4 are NaN or inf"):
        trainer(trainer_options).fit(module, data(world))


class Endless(torch.utils.data.IterableDataset):
    """Of unknown length, and nothing in it."""

    def __iter__(self):
        return iter(())


def test_nothing_to_score_is_a_sentence(trainer_options):
    loader = DataLoader(Endless(), batch_size=4, collate_fn=collate)
    with pytest.raises(ValueError, match="Expected images to score, but the .* loader gave none"):
        trainer(trainer_options).test(task(precise_bn=0), loader, verbose=False)


def test_class_names_are_the_data_s(world, trainer_options, monkeypatch):
    """And numbers without a data module."""
    named = []
    monkeypatch.setattr(
        "goodtransfer.transfer.detection.drawing",
        lambda image, target, found, names: named.append(names) or image,
    )
    module = task(precise_bn=0)
    trainer(trainer_options).test(module, data(world), verbose=False)
    assert named[0] == list(CLASSES)
    loader = DataLoader(data(world).test_dataloader().dataset, batch_size=4, collate_fn=collate)
    trainer(trainer_options).test(module, loader, verbose=False)
    assert named[-1] == [str(n) for n in range(20)]
