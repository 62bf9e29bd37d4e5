"""The Detection run against literal steps, averages and schedules; its resume, scores and sentences."""

import json
import random
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, Dataset

from goodtransfer.data import VOCDetectionDataModule, make_voc
from goodtransfer.data.detection import collate
from goodtransfer.data.toy import CLASSES
from goodtransfer.encoders import OwnTrunk, build
from goodtransfer.metrics import VOCDetectionAP
from goodtransfer.optim import warmup_step, without_norm_decay
from goodtransfer.transfer import Detection
from goodtransfer.transfer.rcnn_c4 import RCNNC4, detectron2_name

sys.path.insert(0, str(Path(__file__).parent))
from small import SMALL


def task(encoder="resnet10w8", **changes):
    torch.manual_seed(0)
    given = {
        "num_classes": 20, "batch": 4, "lr": 0.04, "iterations": 2, "milestones": (1,), "warmup": 0,
        "short_sides": (56, 64, 72), "test_side": 64, "precise_bn": 3, "detector": SMALL,
    }  # fmt: skip
    return Detection(encoder, **{**given, **changes})


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_voc(tmp_path_factory.mktemp("voc"), train=20, test=6, size=64)


def data(world, **changes):
    return VOCDetectionDataModule(world, class_names=CLASSES, **{"batch_size": 4, **changes})


def trainer(options, **changes):
    return pl.Trainer(**{"max_epochs": -1, "num_sanity_val_steps": 0, **options, **changes})


# --- Optimizer and schedule


@pytest.mark.data
@pytest.mark.parametrize("yaml", ["pascal_voc_R_50_C4_24k_moco.yaml", "coco_R_50_C4_2x_moco.yaml"])
def test_learning_rate_is_detectron2_s(shared, yaml):
    run = json.loads((shared / "parity/det_c4_full_r50/full_r50_names.json").read_text())[yaml]
    solver = run["solver"]
    for iteration, expected in run["lr_by_iteration"].items():
        factor = warmup_step(int(iteration), solver["STEPS"], solver["WARMUP_ITERS"])
        assert solver["BASE_LR"] * factor == pytest.approx(expected, rel=1e-9)


@pytest.mark.data
def test_weight_decay_is_detectron2_s(shared):
    run = json.loads((shared / "parity/det_c4_full_r50/full_r50_names.json").read_text())
    with torch.device("meta"):
        detector = RCNNC4(build("resnet50"), 20)
    names = {id(p): detectron2_name(name) for name, p in detector.named_parameters()}
    ours = {
        names[id(p)]: group["weight_decay"]
        for group in without_norm_decay(detector, 1e-4)
        for p in group["params"]
    }
    assert ours == run["pascal_voc_R_50_C4_24k_moco.yaml"]["weight_decay"]


def test_defaults_are_the_paper_s_run():
    plan = Detection("resnet10w8", num_classes=20).schedule
    assert plan == (0.02, 9_000, (6_000, 8_000), 100, ())
    factors = [warmup_step(i, plan.milestones, plan.warmup) for i in (0, 5_999, 6_000, 8_000)]
    assert factors == pytest.approx([1e-3, 1, 0.1, 0.01])


def test_a_smaller_batch_scales_every_count():
    given = {"iterations": 9_000, "milestones": (6_000, 8_000), "warmup": 100, "lr": 0.02}
    plan = task(batch=2, eval_iters=(1_000, 9_000), **given).schedule
    assert plan == (0.0025, 72_000, (48_000, 64_000), 800, (8_000, 72_000))
    with pytest.raises(
        ValueError, match=r"Expected `eval_iters` up to `iterations`, 9, but got 10"
    ):
        task(iterations=9, eval_iters=(10,))


# --- Sizes


def shortest_edge(height, width, short, long):
    """detectron2's ResizeShortestEdge.get_output_shape, as it stands there."""
    scale = short / min(height, width)
    new_h, new_w = (short, scale * width) if height < width else (scale * height, short)
    if max(new_h, new_w) > long:
        scale = long / max(new_h, new_w)
        new_h, new_w = new_h * scale, new_w * scale
    return int(new_h + 0.5), int(new_w + 0.5)


def test_sizes_are_detectron2_s():
    module, chance = Detection("resnet10w8", num_classes=1), random.Random(0)
    for _ in range(60):
        height, width = chance.randint(40, 700), chance.randint(40, 700)
        short = chance.choice(module.short_sides)
        image = torch.zeros(1, 1, 1, dtype=torch.uint8).expand(1, height, width)
        expected = shortest_edge(height, width, short, 1333)
        assert tuple(module.resize(image, short).shape[-2:]) == expected


@pytest.mark.parametrize("short", [40, 64, 131])
def test_pixels_are_pil_s(short):
    module = task(max_side=10_000)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 90, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(pixels).resize((90, 64), Image.Resampling.BICUBIC))
    ours = module.resize(torch.from_numpy(pixels.copy()).permute(2, 0, 1), short)
    size = tuple(reversed(ours.shape[-2:]))
    theirs = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
    gap = ours.permute(1, 2, 0).int() - torch.from_numpy(theirs.copy()).int()
    assert gap.abs().max() <= 1


def test_boxes_move_with_the_pixels():
    """A white rectangle on black stays under its box, in training and on the way back."""
    module, chance = task(), random.Random(3)
    image = torch.zeros(3, 60, 100, dtype=torch.uint8)
    image[:, 12:30, 40:80] = 255
    target = {"boxes": torch.tensor([[40, 12, 80, 30]]), "labels": torch.tensor([1])}
    (larger,), (moved,) = module._resized([image], [target], chance)
    lit = (larger[0] > 127).nonzero().float()
    corners = torch.cat((lit.min(0).values.flip(0), lit.max(0).values.flip(0) + 1))
    assert (corners - moved["boxes"][0]).abs().max() <= 1

    found = {**moved, "scores": torch.ones(1)}
    sizes = []
    (back,) = module._detections([image], lambda resized: sizes.append(resized[0].shape) or [found])
    scale = 64 / 60
    assert sizes == [(3, 64, round(100 * scale))]
    expected = moved["boxes"][0] / torch.tensor([107 / 100, scale, 107 / 100, scale])
    assert torch.allclose(back["boxes"][0], expected)


# --- Training


def test_steps_equal_literal_ones(world, trainer_options):
    """Two steps of the loop, by hand: chance, sizes, losses, momentum, decay but not of norms."""
    module, literal = task(weight_decay=0.1), task(weight_decay=0.1).detector.train()
    with pytest.warns(UserWarning, match="ended after 2 of 8 steps"):
        trainer(trainer_options, max_steps=2).fit(module, data(world))

    norms = [m for m in literal.modules() if isinstance(m, nn.BatchNorm2d)]
    undecayed = {p for norm in norms for p in norm.parameters()}
    velocity = dict.fromkeys(literal.parameters(), 0)
    loader = data(world, loader=module.recommended_loader()).train_dataloader()
    for step, (images, targets) in enumerate(islice(loader, 2)):
        chance = random.Random(repr((0, "train", step, step, 0)))
        torch.manual_seed(chance.getrandbits(63))
        losses, _ = literal(*module._resized(images, targets, chance))
        literal.zero_grad()
        sum(losses.values()).backward()
        for p in literal.parameters():
            decay = 0 if p in undecayed else 0.1
            velocity[p] = 0.9 * velocity[p] + p.grad + decay * p.detach()
            p.data -= 0.04 * 4 / 16 * velocity[p]
    for (name, p), q in zip(module.detector.named_parameters(), literal.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6, msg=name)


def test_resumed_in_mid_epoch_it_ends_with_the_same_bits(world, trainer_options, tmp_path):
    """Whatever the global generators did; 8 steps, 5 in an epoch, cut after step 3 and after 7."""
    options = {**trainer_options, "enable_checkpointing": True}

    def saving():
        return ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")

    torch.manual_seed(1)
    whole = task()
    trainer(options, callbacks=[saving()]).fit(whole, data(world))
    assert whole.trainer.global_step == 8
    for step in (3, 7):
        module = task()
        torch.manual_seed(99)
        random.seed(step)
        run = trainer(options, callbacks=[saving()])
        path = tmp_path / f"step={step}.ckpt"
        run.fit(module, data(world), ckpt_path=path, weights_only=True)
        assert run.global_step == 8
        again = module.state_dict()
        for name, value in whole.state_dict().items():
            assert torch.equal(value, again[name]), name


def test_a_step_leaves_the_global_generators_alone(world, trainer_options):
    module = task(iterations=1, milestones=())

    class Watch(pl.Callback):
        def on_train_batch_start(self, *_):
            self.before = torch.get_rng_state(), random.getstate()

        def on_train_batch_end(self, *_):
            assert torch.equal(torch.get_rng_state(), self.before[0])
            assert random.getstate() == self.before[1]

    trainer(trainer_options, callbacks=[Watch()]).fit(module, data(world))


def test_the_wrong_number_of_images_is_a_sentence(world, trainer_options):
    with pytest.raises(ValueError, match=r"Expected 8 images a step, but 4 in a batch x 1 ranks x "
                       r"accumulate_grad_batches=1 makes 4. Either .*accumulate_grad_batches=2\).* "
                       r"or pass Detection\(batch=4\)"):  # fmt: skip
        trainer(trainer_options).fit(task(batch=8), data(world))


@pytest.mark.parametrize(
    ("batch", "micro", "accumulate", "expected"),
    [
        (16, 2, 8, "accumulated to 16 images a step, BN over 2 images (paper: 16)"),
        (4, 4, 1, "batch 4 (paper: 16), learning rate x 4/16 and steps x 16/4, "
                  "BN over 4 images (paper: 16)"),
        (16, 16, 1, "16 images a step, as in the paper"),
    ],
)  # fmt: skip
def test_the_way_is_printed_and_kept(
    batch, micro, accumulate, expected, world, trainer_options, tmp_path, caplog
):
    module = task(batch=batch, iterations=1, milestones=(), short_sides=(32,))
    caplog.set_level("INFO", logger="pytorch_lightning")  # a study in the same process quiets it
    run = trainer(trainer_options, accumulate_grad_batches=accumulate)
    run.fit(module, data(world, batch_size=micro))
    assert run.global_step == 16 // batch
    assert module.fidelity == expected
    assert expected in caplog.text
    run.save_checkpoint(tmp_path / "x.ckpt")
    kept = torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert kept["fidelity"] == expected
    assert kept["lr_schedulers"][0]["base_lrs"] == [0.04 * batch / 16] * 2


def test_accumulated_gradients_are_the_mean_of_the_micro_batches(world, trainer_options):
    """Without batch norm's coupling: two micro-batches of 2, one step."""
    module = task(iterations=1, milestones=(), batch=16, short_sides=(32,), weight_decay=0.0)
    literal = task(iterations=1, milestones=(), batch=16, short_sides=(32,)).detector.train()
    run = trainer(trainer_options, accumulate_grad_batches=8)
    run.fit(module, data(world, batch_size=2))
    loader = data(world, batch_size=2, loader=module.recommended_loader()).train_dataloader()
    for number, (images, targets) in enumerate(islice(loader, 8)):
        chance = random.Random(repr((0, "train", 0, number, 0)))
        torch.manual_seed(chance.getrandbits(63))
        losses, _ = literal(*module._resized(images, targets, chance))
        (sum(losses.values()) / 8).backward()
    for (name, p), q in zip(module.detector.named_parameters(), literal.parameters(), strict=True):
        torch.testing.assert_close(p, q - 0.04 * q.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_bf16_trains_and_boxes_stay_exact(world, trainer_options):
    module = task()
    run = trainer(trainer_options, precision="bf16-mixed")
    run.fit(module, data(world))
    assert all(p.isfinite().all() for p in module.parameters())
    run.test(module, data(world), verbose=False)
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = module.eval()([torch.rand(3, 64, 64)])
    assert found["boxes"].dtype == found["scores"].dtype == torch.float32


def test_images_without_objects_are_background(world, trainer_options):
    """A batch of one such image and one other, and a batch of none but such, train."""
    detector = task().detector.train()
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    filled = {"boxes": torch.tensor([[8.0, 8, 40, 40]]), "labels": torch.tensor([3])}
    for targets in ([empty, filled], [empty, empty]):
        losses, _ = detector([image, image], targets)
        sum(losses.values()).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())
        assert all(loss.isfinite() for loss in losses.values())
    assert losses["loss_box_reg"] == losses["loss_rpn_loc"] == 0
    labels, _ = detector.label_anchors(detector.anchors((4, 4)), empty)
    assert not labels.any()


def test_it_learns(tmp_path, trainer_options):
    """One class, any thing: a detector before its fit finds next to nothing, after it most."""
    easy = make_voc(tmp_path / "voc", train=40, test=24, size=64, seed=1)
    for path in easy.glob("VOCdevkit/VOC2007/Annotations/*.xml"):  # a thing is a thing
        text = path.read_text()
        for name in CLASSES:
            text = text.replace(f"<name>{name}</name>", "<name>thing</name>")
        path.write_text(text)
    things = VOCDetectionDataModule(easy, class_names=["thing"], batch_size=8)
    module = task(
        "resnet10w16", num_classes=1, batch=8, lr=0.2, iterations=25, milestones=(20,), warmup=5,
        short_sides=(64,),
    )  # fmt: skip
    run = trainer(trainer_options)
    before = run.test(module, things, verbose=False)[0]["voc07_AP50"]
    run = trainer(trainer_options)
    run.fit(module, things)
    after = run.test(module, things, verbose=False)[0]["voc07_AP50"]
    assert before < 20 < 50 < after


# --- Scores


@pytest.mark.parametrize("accumulate", [1, 2])
def test_scores_along_the_way(world, trainer_options, accumulate):
    """After the steps asked for and no other, over the ends of epochs (of 5 batches, or 4)."""
    module = task(
        iterations=4, milestones=(), eval_iters=(1, 2), batch=4, name="voc0712", precise_bn=1
    )
    asked = []

    class Watch(pl.Callback):
        def on_validation_end(self, trainer, *_):
            asked.append((trainer.global_step, dict(trainer.callback_metrics)))

    run = trainer(trainer_options, accumulate_grad_batches=accumulate, callbacks=[Watch()])
    run.fit(module, data(world, batch_size=4 // accumulate))
    assert [step for step, _ in asked] == [4, 8]
    assert run.global_step == 16
    for _, metrics in asked:
        assert {"voc0712_AP", "voc0712_AP50", "voc0712_AP75"} <= metrics.keys()


def test_the_sanity_check_and_no_eval_iters_score_nothing(world, trainer_options):
    seen = []

    class Watch(pl.Callback):
        def on_validation_end(self, trainer, *_):
            seen.append(
                (trainer.sanity_checking, [k for k in trainer.callback_metrics if "AP" in k])
            )

    module = task(iterations=3, milestones=())
    trainer(trainer_options, callbacks=[Watch()], num_sanity_val_steps=1).fit(module, data(world))
    assert seen == [(True, [])]
    assert module.trainer.current_epoch >= 2  # epochs did end


def test_precise_statistics_are_the_true_average(world, trainer_options):
    """Mean and unbiased variance of what each norm sees, averaged over batches, on a copy."""
    module = task(iterations=1, milestones=(), precise_bn=7)  # more than an epoch
    run = trainer(trainer_options)
    run.fit(module, data(world))
    before = {k: v.clone() for k, v in module.state_dict().items()}
    copies, original = [], module.with_precise_bn
    module.with_precise_bn = lambda: copies.append(original()) or copies[-1]
    run.test(module, data(world), verbose=False)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())

    literal = task().detector
    literal.load_state_dict(module.detector.state_dict())
    literal.train()
    seen = {}
    for name, norm in literal.named_modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.register_forward_pre_hook(
                lambda _, x, name=name: seen.setdefault(name, []).append(x[0].detach())
            )
    loader = data(world, loader=module.recommended_loader()).train_dataloader()
    batches = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        batches += list(loader)
    for number, (images, targets) in enumerate(batches[:7]):
        chance = random.Random(repr((0, "precise BN", number, 0)))
        torch.manual_seed(chance.getrandbits(63))
        literal(*module._resized(images, targets, chance))
    scored = dict(copies[0].named_modules())
    assert len(seen) > 10
    for name, inputs in seen.items():
        mean = torch.stack([x.mean((0, 2, 3)) for x in inputs]).mean(0)
        var = torch.stack([x.var((0, 2, 3)) for x in inputs]).mean(0)
        torch.testing.assert_close(scored[name].running_mean, mean, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(scored[name].running_var, var, rtol=1e-3, atol=1e-4)
    assert not copies[0].training


class Listed(Dataset):
    """A user's own data set, without a data module."""

    def __init__(self, world):
        self.items = data(world, loader={"flip": 0.0}).train_dataloader().dataset

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        image, target = self.items[i]
        return image / 255, target


def test_a_user_s_own_loader(world, trainer_options):
    """Float images and plain lists; precise BN from the fit's loader, or a warning without one."""
    loader = DataLoader(Listed(world), batch_size=4, collate_fn=collate)
    module, run = task(iterations=1, milestones=(), eval_iters=(1,)), trainer(trainer_options)
    run.fit(module, loader, loader)
    assert "voc07_AP" in run.callback_metrics
    with pytest.warns(UserWarning, match="scored with its running statistics, since there are no"):
        trainer(trainer_options).test(module, loader, verbose=False)
    score = trainer(trainer_options).test(task(precise_bn=0), loader, verbose=False)[0]
    metric = VOCDetectionAP(20)
    untouched = task(precise_bn=0).eval()
    for image, target in (loader.dataset[i] for i in range(20)):
        metric.update(untouched([image]), [target])
    assert score["voc07_AP50"] == pytest.approx(float(metric.compute()["AP50"]), abs=1e-4)


def test_a_test_leaves_pictures(world, trainer_options, tmp_path):
    """Six images in two rows, objects of all and detections, with the class's name."""
    trainer(trainer_options).test(task(precise_bn=0), data(world, batch_size=3), verbose=False)
    picture = np.asarray(Image.open(tmp_path / "voc07_detections.png"))
    assert picture.shape == (2 * 240 + 12, 3 * 240 + 16, 3)
    for row in range(2):
        for column in range(3):
            cell = picture[4 + 244 * row : 244 + 244 * row, 4 + 244 * column : 244 + 244 * column]
            assert (cell == (255, 255, 255)).all(-1).any()  # a true box
            drawn = (cell == (0, 255, 0)).all(-1) | (cell == (255, 255, 0)).all(-1)
            assert drawn.any()


# --- Checkpoints and encoders


@pytest.mark.parametrize("encoder", ["resnet10w8", "timm:mobilenetv3_small_050"])
def test_load_from_checkpoint(encoder, world, trainer_options, tmp_path):
    if encoder.startswith("timm"):
        pytest.importorskip("timm", reason="needs timm")
    module = task(encoder, num_classes=None, iterations=1, milestones=())
    run = trainer(trainer_options)
    run.fit(module, data(world))
    run.save_checkpoint(tmp_path / "x.ckpt")
    loaded = Detection.load_from_checkpoint(tmp_path / "x.ckpt", weights_only=True).eval()
    images = [torch.randint(0, 256, (3, 50, 80), dtype=torch.uint8)]
    for ours, theirs in zip(module.eval()(images), loaded(images), strict=True):
        for name, value in ours.items():
            assert torch.equal(value, theirs[name])
    assert loaded.encoder.normalization == module.encoder.normalization
    assert loaded.num_classes == 20
    assert loaded.fidelity == module.fidelity != ""
    assert loaded.encoder is loaded.detector.encoder


def test_an_encoder_is_copied_and_fine_tuned_whole(world, trainer_options):
    encoder = build("resnet10w8")
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    module = task(encoder, iterations=1, milestones=())
    trainer(trainer_options).fit(module, data(world))
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())
    moved = [k for k, v in module.encoder.named_parameters() if not torch.equal(v, before[k])]
    assert len(moved) == len(list(encoder.parameters()))  # the last stage, too


# --- Sentences


def test_sentences_of_encoders_and_classes(world, trainer_options):
    for encoder in ("pixels48", OwnTrunk(nn.Conv2d(3, 8, 3, stride=2))):
        with pytest.raises(ValueError, match="run alone on stage 4's map"):
            task(encoder)
    with pytest.raises(
        ValueError, match="data module of 3 classes, .* has 20: leave num_classes=None"
    ):
        trainer(trainer_options).fit(task(num_classes=3), data(world))
    constant = task()
    for parameter in constant.encoder.layer4.parameters():
        nn.init.zeros_(parameter)
    for parameter in constant.encoder.layer3.parameters():
        nn.init.zeros_(parameter)
    with pytest.raises(
        ValueError, match="for Detection, but those of stage 4 are the same for any"
    ):
        trainer(trainer_options).fit(constant, data(world))
    loader = DataLoader(Listed(world), batch_size=4, collate_fn=collate)
    with pytest.raises(ValueError, match=r"pass Detection\(num_classes=...\)"):
        trainer(trainer_options).fit(task(num_classes=None), loader)
    with pytest.raises(ValueError, match="Expected labels from 0 to 2, but a batch has"):
        trainer(trainer_options).fit(task(num_classes=3), loader)


def test_a_normalised_image_is_a_sentence(world, trainer_options):
    class Normalised(Listed):
        def __getitem__(self, i):
            image, target = super().__getitem__(i)
            return (image - 0.5) / 0.2, target

    loader = DataLoader(Normalised(world), batch_size=4, collate_fn=collate)
    with pytest.raises(ValueError, match="remove Normalize from your transform"):
        trainer(trainer_options).fit(task(), loader)


def test_a_loss_that_is_no_number_names_images_and_step(world, trainer_options):
    module = task()
    nn.init.constant_(module.detector.box_predictor.cls_score.bias, float("nan"))
    with pytest.raises(
        FloatingPointError,
        match=r"in step 0 the loss is nan \(.*loss_cls nan.*\), on a batch of images \d+, ",
    ):
        trainer(trainer_options).fit(module, data(world))
    module = task()
    nn.init.constant_(module.detector.rpn_head.anchor_deltas.bias, float("nan"))
    with pytest.raises(FloatingPointError, match="training has diverged. Lower `lr`"):
        trainer(trainer_options).fit(module, data(world))


def test_lightning_s_default_number_of_epochs_does_not_end_it(world, trainer_options):
    """1,000 epochs, which Lightning takes where none are given, are no limit of the user's."""
    module = task(iterations=1, milestones=())
    run = trainer(trainer_options, max_epochs=None)
    with pytest.warns(UserWarning, match="`max_epochs` was not set"):
        run.fit(module, data(world))
    assert (run.global_step, run.max_steps, run.max_epochs) == (4, 4, -1)


@pytest.mark.parametrize("encoder", ["timm:tf_efficientnet_lite0", "resnet10w8"])
def test_sync_batchnorm_may_not_drop_activations(encoder, world, trainer_options):
    """timm fuses them with norms; here the conversion that ``sync_batchnorm=True`` makes."""
    if encoder.startswith("timm"):
        pytest.importorskip("timm", reason="needs timm")
    module = task(encoder)
    module.trainer = trainer(trainer_options)
    module.setup("fit")
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(module)
    assert converted is module
    assert isinstance(module.detector.norm, nn.SyncBatchNorm)
    if encoder == "resnet10w8":
        module.on_fit_start()
        return
    with pytest.raises(ValueError, match="hold activations, which PyTorch's conversion drops"):
        module.on_fit_start()


def test_precise_statistics_need_batches(world, trainer_options):
    few = VOCDetectionDataModule(world, class_names=CLASSES, batch_size=21)
    with pytest.raises(ValueError, match="Expected"):  # and no endless wait
        trainer(trainer_options).test(task(), few, verbose=False)


def test_an_encoder_that_comes_frozen_from_a_readout_is_fine_tuned():
    frozen = build("resnet10w8").requires_grad_(False).eval()
    module = task(frozen)
    assert all(p.requires_grad for p in module.parameters())
    assert all(m.training for m in module.encoder.modules())
    assert not any(p.requires_grad for p in frozen.parameters())  # the user's stays as it is
