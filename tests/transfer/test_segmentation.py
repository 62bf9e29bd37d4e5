"""The Segmentation run against literal steps and schedules; its resume, scores and sentences."""

import json
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from PIL import Image
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

from goodtransfer import save_encoder
from goodtransfer.data import (
    CityscapesDataModule,
    SYNTHIASegmentationDataModule,
    make_cityscapes,
    make_synthia,
)
from goodtransfer.data.segmentation import collate
from goodtransfer.encoders import Normalization, OwnTrunk, build
from goodtransfer.metrics.segmentation import confusion, scores
from goodtransfer.optim import poly
from goodtransfer.study.logger import CellBar, CurveLogger
from goodtransfer.transfer import LinearProbe, Segmentation
from goodtransfer.transfer.segmentation import colours
from goodtransfer.weights import load_encoder

VIEW = {"crop": (32, 64), "nominal": (32, 64)}


def task(encoder="resnet10w8", **changes):
    torch.manual_seed(0)
    given = {"batch": 4, "iterations": 6, "network": {"channels": 8, "aux_channels": 4}}
    return Segmentation(encoder, **{**given, **changes})


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_cityscapes(tmp_path_factory.mktemp("city"), train=12, val=3, size=32)


def data(world, **changes):
    return CityscapesDataModule(world, **{"batch_size": 4, **VIEW, **changes})


def trainer(options, **changes):
    return pl.Trainer(**{"max_epochs": -1, "num_sanity_val_steps": 0, **options, **changes})


def test_poly_is_mmsegmentation_s():
    rates = [0.01 * poly(t, 40_000, floor=0.01) for t in (0, 1, 20_000, 39_999, 40_000)]
    literal = [
        (0.01 - 1e-4) * (1 - t / 40_000) ** 0.9 + 1e-4 for t in (0, 1, 20_000, 39_999, 40_000)
    ]
    assert rates == pytest.approx(literal, rel=1e-12)
    assert rates[-1] == pytest.approx(1e-4)


def test_steps_are_sgd_s(world, trainer_options):
    """Two steps by hand, from the same weights, crops and dropout."""
    module, twin = task(network={"channels": 8, "aux_channels": 4, "dropout": 0.0}), None
    loaded = data(world)
    fit = trainer(trainer_options, max_steps=2)
    batches = []

    class Keep(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            nonlocal twin
            import copy

            twin = copy.deepcopy(pl_module.network)

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            batches.append(batch)

    fit.callbacks.append(Keep())
    with pytest.warns(UserWarning, match="ended after 2 of 6 steps"):
        fit.fit(module, loaded)
    velocity = [torch.zeros_like(p) for p in twin.parameters()]
    twin.train()
    for step, (images, target) in enumerate(batches):
        rate = (0.01 - 1e-4) * (1 - step / 6) ** 0.9 + 1e-4
        truth = target["classes"].long()
        logits, auxiliary = twin(images)
        loss = 0
        for weight, told in ((1.0, logits), (0.4, auxiliary)):
            each = F.cross_entropy(told, truth, ignore_index=255, reduction="none")
            loss = loss + weight * each.sum() / truth.numel()
        gradients = torch.autograd.grad(loss, list(twin.parameters()))
        with torch.no_grad():
            for n, (p, g) in enumerate(zip(twin.parameters(), gradients, strict=True)):
                velocity[n] = 0.9 * velocity[n] + g + 5e-4 * p
                p -= rate * velocity[n]
    for (name, mine), theirs in zip(
        module.network.named_parameters(), twin.parameters(), strict=True
    ):
        assert torch.allclose(mine, theirs, atol=1e-6), name


def test_defaults_are_the_paper_s():
    given = Segmentation("resnet10w8").hparams
    wanted = {"batch": 8, "lr": 0.01, "min_lr": 1e-4, "iterations": 40_000, "momentum": 0.9,
              "weight_decay": 5e-4, "aux_weight": 0.4}  # fmt: skip
    assert {name: given[name] for name in wanted} == wanted


def test_scores_are_those_of_whole_images(world, trainer_options, tmp_path):
    module, loaded = task(), data(world)
    fit = trainer(trainer_options)
    fit.fit(module, loaded)
    assert fit.global_step == 6
    (found,) = fit.test(module, loaded, verbose=False)
    matrix = torch.zeros(19, 19, dtype=torch.long)
    module.eval()
    for image, target in (loaded.test_dataloader().dataset[n] for n in range(3)):
        with torch.no_grad():
            told = module.network(image[None])[0].argmax(1)[0]
        assert told.shape == (32, 64)
        matrix += confusion(told, target["classes"], 19)
    expected = {f"city_{k}": float(v) for k, v in scores(matrix).items() if v.ndim == 0}
    assert found == pytest.approx(expected, abs=1e-4)
    with Image.open(tmp_path / "city_segmentation.png") as picture:
        assert picture.size == (3 * 364 + 4, 548)


def test_resumed_in_mid_epoch_it_ends_with_the_same_bits(world, trainer_options, tmp_path):
    """Dropout and crops, too, are those of the step."""
    keep = {**trainer_options, "enable_checkpointing": True}
    saved = ModelCheckpoint(tmp_path, every_n_train_steps=4, save_top_k=-1)
    straight = task()
    trainer(keep, callbacks=[saved]).fit(straight, data(world))
    (file,) = tmp_path.glob("*step=4.ckpt")
    resumed = task()
    torch.rand(7)  # another global state
    again = ModelCheckpoint(tmp_path, every_n_train_steps=4, save_top_k=-1)
    trainer(keep, callbacks=[again]).fit(resumed, data(world), ckpt_path=file)
    for (name, a), b in zip(
        straight.state_dict().items(), resumed.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
    loaded = Segmentation.load_from_checkpoint(file)
    assert loaded.num_classes == 19
    assert loaded.encoder.normalization == straight.encoder.normalization


def test_dropout_is_another_at_every_step(world, trainer_options):
    """And, whatever the global generator did, the same in a second run."""

    def dropped(seed):
        module = task(iterations=3, num_classes=19)
        masks, layer = [], module.network.decoder.aspp.project[3]
        layer.register_forward_pre_hook(lambda _, given: torch.ones_like(given[0]))
        layer.register_forward_hook(lambda _, given, made: masks.append(made == 0))
        torch.manual_seed(seed)
        trainer(trainer_options).fit(module, data(world))
        return masks

    first, second = dropped(1), dropped(2)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert len(first) == 3
    assert not any(torch.equal(first[i], first[j]) for i, j in ((0, 1), (1, 2), (0, 2)))


def test_a_picture_is_image_truth_and_what_was_told(trainer_options):
    """One below another, in the data module's colours; pixels that do not count are black."""
    module = task(num_classes=3)
    module.trainer = trainer(trainer_options)
    module.trainer.datamodule = SimpleNamespace(palette=[(255, 0, 0), (0, 255, 0), (0, 0, 255)])
    image = torch.randint(256, (2, 3, 1, 2), dtype=torch.uint8)
    truth = torch.tensor([[[0, 255]], [[1, 1]]], dtype=torch.uint8)
    told = torch.tensor([[[2, 1]], [[0, 0]]])
    (drawn,) = module.drawings((image, {"classes": truth}), told, 1)
    painted = [[[255, 0, 0], [0, 0, 0]], [[0, 0, 255], [0, 255, 0]]]
    assert drawn.permute(1, 2, 0).tolist() == [image[0, :, 0].T.tolist(), *painted]


def test_colours_without_a_palette_are_told_apart():
    found = [tuple(c) for c in colours(19).tolist()]
    assert len({*found[:19], found[255]}) == 20
    assert found[255] == (0, 0, 0)


def test_a_checkpoint_knows_its_input_convention(world, trainer_options, tmp_path):
    encoder = build("resnet10w8")
    encoder.set_normalization(Normalization((0.5,) * 3, (0.25,) * 3))
    module = task(encoder, iterations=1)
    run = trainer(trainer_options)
    run.fit(module, data(world))
    run.save_checkpoint(tmp_path / "x.ckpt")
    loaded = Segmentation.load_from_checkpoint(tmp_path / "x.ckpt", weights_only=True)
    assert loaded.encoder.normalization == encoder.normalization
    image = torch.randint(256, (1, 3, 32, 48), dtype=torch.uint8)
    with torch.no_grad():
        expected = module.network.eval()(image)[0]
        assert torch.equal(loaded.network.eval()(image)[0], expected)


def test_its_encoder_has_its_strides_back(world, trainer_options, tmp_path):
    module = task()
    trainer(trainer_options).fit(module, data(world))
    save_encoder(tmp_path / "e.safetensors", module.encoder)
    loaded, image = load_encoder(tmp_path / "e.safetensors").eval(), torch.rand(1, 3, 64, 64)
    assert loaded.strides[5] == 32
    with torch.no_grad():
        assert torch.equal(loaded.dilated(8)(image)[5], module.network.encoder.eval()(image)[5])


def test_it_pretrains_on_synthia_s_thirteen_classes(trainer_options, tmp_path):
    root = make_synthia(tmp_path, frames=2, rand=1, size=32)
    loaded = SYNTHIASegmentationDataModule(root, batch_size=4, crop=(32, 32), nominal=(32, 32))
    module = task(iterations=2, name="synthia")
    before = module.encoder.layer4[0].conv1.weight.clone()
    trainer(trainer_options, limit_val_batches=0).fit(module, loaded)
    assert module.num_classes == 13
    assert module.encoder.strides[5] == 32
    assert not torch.equal(module.encoder.layer4[0].conv1.weight, before)


@pytest.mark.parametrize("name", ["timm:tf_efficientnet_lite0", "torchvision:mobilenet_v3_small"])
def test_other_libraries_trunks_train(name, world, trainer_options):
    module = task(name, iterations=1)
    trainer(trainer_options).fit(module, data(world))
    assert module.encoder.strides[5] == 32


def test_eval_iters_score_along_the_way(world, trainer_options):
    seen = []

    class Seen(pl.Callback):
        def on_validation_end(self, trainer, pl_module):
            seen.append((trainer.global_step, float(trainer.callback_metrics["city_mIoU"])))

    fit = trainer(trainer_options, callbacks=[Seen()])
    fit.fit(task(eval_iters=(2, 5)), data(world))
    assert [step for step, _ in seen] == [2, 5]


def items(classes, count=8, size=16):
    def item():
        truth = torch.randint(classes, (size, size))
        return torch.rand(3, size, size), {"classes": truth, "image_id": torch.tensor(3)}

    return [item() for _ in range(count)]


@pytest.mark.parametrize(
    ("changes", "given", "text"),
    [
        ({"batch": 8}, items(3), "Expected 8 crops a step, but 4 in a batch x 1 ranks"),
        ({}, items(6), r"classes from 0 to 2, or 255, but the images \[3, 3, 3, 3\] have"),
        ({}, [(i, {**t, "classes": t["classes"][:8]}) for i, t in items(3)], r"\(4, 8, 16\) for the"),
        ({}, [(9 * i, t) for i, t in items(3)], "0, 1"),
    ],
)  # fmt: skip
def test_sentences_of_the_first_batch(changes, given, text, trainer_options):
    loader = DataLoader(given, batch_size=4, collate_fn=collate)
    with pytest.raises(ValueError, match=text):
        trainer(trainer_options).fit(task(num_classes=3, **changes), loader)


@pytest.mark.parametrize(("batch", "count"), [(1, 8), (4, 5)])  # each; the last
def test_one_crop_is_too_few_for_batch_norm(batch, count, trainer_options):
    loader = DataLoader(items(3, count), batch_size=batch, collate_fn=collate)
    with pytest.raises(ValueError, match="see two crops at least"):
        trainer(trainer_options).fit(task(num_classes=3, batch=batch), loader)


def test_a_target_without_classes_is_a_sentence(trainer_options):
    bare = DataLoader([(i, t["classes"]) for i, t in items(3)], batch_size=4)
    with pytest.raises(ValueError, match=r"'image_id': \(N,\)}, but got a target of Tensor"):
        trainer(trainer_options).fit(task(num_classes=3), bare)
    named = DataLoader([(i, {"mask": t["classes"]}) for i, t in items(3)], batch_size=4)
    with pytest.raises(ValueError, match=r"but got a target of \['mask'\]"):
        trainer(trainer_options).test(task(num_classes=3), named, verbose=False)


def test_the_batch_is_checked_in_every_fit(world, trainer_options, tmp_path):
    """Also in one that goes on from a checkpoint, which holds what was said of the first."""
    module = task(iterations=2)
    run = trainer(trainer_options)
    run.fit(module, data(world))
    run.save_checkpoint(tmp_path / "x.ckpt")
    for changed in (module, Segmentation.load_from_checkpoint(tmp_path / "x.ckpt")):
        assert changed.fidelity.startswith("batch 4 (paper: 8), BN over 4 crops")
        with pytest.raises(ValueError, match="Expected 4 crops a step, but 2 in a batch"):
            trainer(trainer_options).fit(changed, data(world, batch_size=2))


def test_an_encoder_that_a_readout_froze_is_fine_tuned(world, trainer_options):
    encoder = LinearProbe("resnet10w8", num_classes=2).encoder
    before = {name: p.clone() for name, p in encoder.named_parameters()}
    module = task(encoder, iterations=1)
    trainer(trainer_options).fit(module, data(world))
    found = module.network.encoder
    assert not any(torch.equal(p, before[name]) for name, p in found.named_parameters())
    assert all(int(m.num_batches_tracked) == 1 for m in found.modules() if hasattr(m, "momentum"))
    assert all(torch.equal(p, before[name]) for name, p in encoder.named_parameters())


@pytest.mark.parametrize("encoder", ["timm:tf_efficientnet_lite0", "resnet10w8"])
def test_sync_batchnorm_may_not_drop_activations(encoder, trainer_options):
    """timm fuses them with norms; here the conversion that ``sync_batchnorm=True`` makes."""
    module = nn.SyncBatchNorm.convert_sync_batchnorm(task(encoder, num_classes=3))
    assert isinstance(module.network.decoder.bn, nn.SyncBatchNorm)
    if encoder == "resnet10w8":
        module.on_fit_start()
        return
    with pytest.raises(ValueError, match="hold activations, which PyTorch's conversion drops"):
        module.on_fit_start()


def test_sentences_at_set_up(world, trainer_options):
    with pytest.raises(ValueError, match="data module of 5 classes, as num_classes says"):
        trainer(trainer_options).fit(task(num_classes=5), data(world))
    trunk = OwnTrunk(nn.Sequential(nn.Conv2d(3, 4, 3, stride=8, padding=1)))
    with pytest.raises(ValueError, match="lacks 4"):
        trainer(trainer_options).fit(task(trunk), data(world))


def test_a_diverged_run_names_step_and_images(world, trainer_options):
    module = task(lr=1e30, min_lr=1e-4)
    with pytest.raises(
        FloatingPointError,
        match=r"in step \d the loss is (nan|inf) \(loss_seg (nan|inf), .*\), on a batch of images \d",
    ):
        trainer(trainer_options).fit(module, data(world))


def test_an_interrupted_validation_leaves_nothing_to_the_next_test(trainer_options):
    module, loader = task(num_classes=3), DataLoader(items(3), batch_size=4, collate_fn=collate)
    (expected,) = trainer(trainer_options).test(module, loader, verbose=False)
    image, target = items(3, count=1)[0]
    other = {"classes": target["classes"][None], "image_id": torch.tensor([8])}
    module.eval().validation_step((image[None], other), 0)  # and then it was stopped
    (found,) = trainer(trainer_options).test(module, loader, verbose=False)
    assert found == expected


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_score_that_was_not_made_before_a_kill_is_made_on_resume(
    world, trainer_options, tmp_path
):
    """Of a step within an epoch, of one at its end and of the last one; none is made twice."""

    class Seen(pl.Callback):
        def __init__(self):
            self.steps = []

        def on_validation_start(self, trainer, pl_module):
            self.steps.append(trainer.global_step)

    def run(name, file=None):
        """Its end, and the rows of its scores."""
        module, seen, logger = task(eval_iters=(2, 3, 5)), Seen(), CurveLogger(tmp_path / name)
        saved = ModelCheckpoint(tmp_path / f"{name} kept", every_n_train_steps=1, save_top_k=-1)
        options = {**trainer_options, "enable_checkpointing": True, "logger": logger}
        fit = trainer(options, callbacks=[saved, seen, CellBar("run")], log_every_n_steps=1)
        fit.fit(module, data(world), ckpt_path=file)
        rows = [json.loads(row) for row in (tmp_path / name).read_text().splitlines()]
        scores = [{k: row[k] for k in row if k != "epoch"} for row in rows if "city_mIoU" in row]
        return module.state_dict(), scores, seen.steps

    straight, scored, _ = run("straight")
    assert [row["step"] + 1 for row in scored] == [2, 3, 5]
    for killed, made in ((1, [2, 3, 5]), (2, [2, 3, 5]), (3, [3, 5]), (4, [5]), (5, [5])):
        (file,) = (tmp_path / "straight kept").glob(f"*step={killed}.ckpt")
        state, rows, steps = run(f"again {killed}", file)
        assert steps == made
        assert rows == scored[3 - len(made) :]
        assert all(
            torch.equal(a, b) for a, b in zip(straight.values(), state.values(), strict=True)
        )
