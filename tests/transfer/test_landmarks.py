"""The landmark task against literal SGD, its scores and floor, resume, ranks, pictures and sentences."""

import math

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

import goodtransfer.data.mafl as mafl
from goodtransfer.data.mafl import MAFLDataModule, collate, mirrored
from goodtransfer.data.toy_layouts import make_celeba
from goodtransfer.encoders import OwnTrunk, build
from goodtransfer.metrics.landmarks import inter_ocular_error
from goodtransfer.transfer.landmarks import LandmarkHead, Landmarks

SIDE = 32


class Faces(Dataset):
    """Grey images with a bright dot at each of their landmarks."""

    def __init__(self, count=12, points=5, seed=0, side=SIDE):
        generator = torch.Generator().manual_seed(seed)
        places = torch.randint(2, side - 2, (count, points, 2), generator=generator)
        self.images = 0.4 * torch.rand(count, 3, side, side, generator=generator)
        for image, face in zip(self.images, places, strict=True):
            image[:, face[:, 1], face[:, 0]] = 1.0
        self.landmarks, self.numbers = places + 0.5, torch.arange(count) + 100 * seed

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.images[i], {"landmarks": self.landmarks[i], "image_id": self.numbers[i]}


def faces(count=12, batch_size=4, **arguments):
    return DataLoader(Faces(count, **arguments), batch_size=batch_size, collate_fn=collate)


def task(encoder="resnet10w8", **changes):
    torch.manual_seed(0)
    return Landmarks(encoder, **{"size": SIDE, **changes})


def trainer(options, **changes):
    return pl.Trainer(**{"num_sanity_val_steps": 0, "max_epochs": 1, **options, **changes})


def trunk(*modules):
    torch.manual_seed(0)
    return OwnTrunk(
        nn.Sequential(nn.Conv2d(3, 6, 3, stride=4), nn.BatchNorm2d(6), nn.ReLU(), *modules)
    )


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make_celeba(tmp_path_factory.mktemp("toy") / "celeba", images=60, identities=10)


# --- The head and its training


def test_the_head_and_the_run_are_the_paper_s():
    module = Landmarks("resnet50", size=224)
    counts = [
        sum(p.numel() for p in m.parameters()) for m in (*module.head.squeeze, module.head.fc)
    ]
    assert counts == [262_272, 256, 0, 0, 62_730]  # protocol 6.2
    kinds = [type(m) for m in module.head.squeeze]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.LeakyReLU, nn.Flatten]
    module._trainer = pl.Trainer(max_epochs=200, accelerator="cpu", logger=False)
    (group,) = module.configure_optimizers()["optimizer"].param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.02, 0.9, 1e-4)
    assert len(group["params"]) == len(list(module.parameters()))
    schedule = module.configure_optimizers()["lr_scheduler"]
    assert schedule["interval"] == "epoch"
    assert schedule["scheduler"].lr_lambdas[0](100) == pytest.approx(0.5)


def test_the_head_by_its_formula():
    torch.manual_seed(0)
    head, features = LandmarkHead(6, 4, positions=2 * 3, points=5), torch.randn(7, 6, 2, 3)
    conv, norm, _, _ = head.squeeze
    found = head(features)
    squeezed = torch.einsum("nchw,kc->nkhw", features, conv.weight[..., 0, 0])
    squeezed = squeezed + conv.bias[:, None, None]
    mean, var = squeezed.mean((0, 2, 3)), squeezed.var((0, 2, 3), unbiased=False)
    x = (squeezed - mean[:, None, None]) / (var[:, None, None] + norm.eps).sqrt()
    x = torch.where(x > 0, x, 0.01 * x)
    expected = x.reshape(7, 24) @ head.fc.weight.T + head.fc.bias
    torch.testing.assert_close(found, expected.reshape(7, 5, 2))


def test_points_are_pixels_of_the_view():
    module = task().eval()
    nn.init.zeros_(module.head.fc.weight)
    module.head.fc.bias.data = torch.tensor([-1, -1, 1, 1, 0, 0, 0.5, -0.25, 2, 0])
    expected = [[0, 0], [32, 32], [16, 16], [24, 12], [48, 16]]
    assert module(Faces().images).tolist() == [expected] * 12


def test_equals_literal_sgd_on_the_squared_error(trainer_options):
    """Two epochs with a cosine over them; decay and momentum on every parameter."""
    module, reference = task(trunk(), lr=0.05, weight_decay=0.01), task(trunk())
    trainer(trainer_options, max_epochs=2).fit(module, faces())
    reference.train()
    data, parameters = Faces(), list(reference.parameters())
    velocity = [torch.zeros_like(p) for p in parameters]
    for epoch in range(2):
        lr = 0.05 * 0.5 * (1 + math.cos(math.pi * epoch / 2))
        for rows in torch.arange(12).split(4):
            found = reference.head(reference.encoder(data.images[rows])[5])
            loss = 0
            for n, row in enumerate(rows.tolist()):
                for k in range(5):
                    for axis in (0, 1):
                        pixel = (found[n, k, axis] + 1) / 2 * SIDE
                        off = (pixel - data.landmarks[row, k, axis]) / SIDE
                        loss = loss + off**2 / (4 * 5 * 2)
            reference.zero_grad()
            loss.backward()
            with torch.no_grad():
                for p, v in zip(parameters, velocity, strict=True):
                    v.mul_(0.9).add_(p.grad + 0.01 * p)
                    p.sub_(lr * v)
    for (name, value), other in zip(module.named_parameters(), parameters, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-3, atol=1e-5, msg=name)


def test_it_learns(trainer_options):
    """The very faces, far better than by their mean."""
    loader = faces(count=16, batch_size=16, points=2, side=16)
    module = task("pixels16", points=2, lr=0.1, size=16)
    fit = trainer(trainer_options, max_epochs=100)
    fit.fit(module, loader)
    (scores,) = fit.test(module, loader, verbose=False)
    assert scores["landmark_error"] < 0.2 * scores["landmark_error_mean_shape"]


def test_all_of_a_frozen_encoder_is_fine_tuned_and_the_user_s_stays(trainer_options):
    encoder = build("resnet10w8").requires_grad_(False).eval()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    module = task(encoder)
    trainer(trainer_options).fit(module, faces())
    assert not encoder.training
    assert not any(p.requires_grad for p in encoder.parameters())
    for name, value in module.encoder.state_dict().items():
        assert torch.equal(encoder.state_dict()[name], before[name])
        assert not torch.equal(value, before[name]), name


def test_16_bit_does_not_round_the_points(trainer_options):
    module = task()
    trainer(trainer_options, precision="bf16-mixed").fit(module, faces())
    with torch.autocast("cpu", torch.bfloat16):
        found = module.eval()(Faces().images) / 16 - 1
    assert found.dtype == torch.float32
    assert (found != found.bfloat16().float()).float().mean() > 0.9


# --- Scores


def literal_error(found, true):
    return sum(
        100 * sum(math.dist(p, t) for p, t in zip(f, g, strict=True)) / 5 / math.dist(g[0], g[1])
        for f, g in zip(found.tolist(), true.tolist(), strict=True)
    ) / len(true)  # fmt: skip


def test_scores_are_those_of_its_points_and_of_the_mean_training_face(trainer_options, tmp_path):
    """The mean is over all training batches; neither validation nor test faces move it."""
    module, training = task(), faces(count=10)
    given = []
    fit = trainer(trainer_options, max_epochs=2)
    (untrained,) = fit.test(module, faces(seed=3), verbose=False)
    assert list(untrained) == ["landmark_error"]
    fit.fit(module, training, faces(count=7, seed=1))
    module.eval()
    validation, test = Faces(7, seed=1), Faces(9, seed=2)
    logged = float(fit.callback_metrics["val_landmark_error"])
    assert logged == pytest.approx(literal_error(module(validation.images), validation.landmarks))
    fit.save_checkpoint(tmp_path / "l.ckpt")
    mean = Faces(10).landmarks.mean(0).expand(9, 5, 2)
    expected = {
        "landmark_error": literal_error(module(test.images), test.landmarks),
        "landmark_error_mean_shape": literal_error(mean, test.landmarks),
    }
    loaded = Landmarks.load_from_checkpoint(tmp_path / "l.ckpt", weights_only=True)
    for scored in (module, loaded):
        given += trainer(trainer_options).test(scored, faces(count=9, seed=2), verbose=False)
    assert given == [pytest.approx(expected, rel=1e-5)] * 2


def test_a_sanity_check_scores_nothing(trainer_options):
    fit = trainer(trainer_options, num_sanity_val_steps=2, limit_train_batches=0)
    module = task()
    fit.fit(module, faces(), faces(seed=1))
    assert "val_landmark_error" not in fit.callback_metrics
    assert not module.error.update_called


def test_a_flipped_face_has_the_error_of_the_face():
    true = torch.tensor([[69.0, 111], [109, 111], [88, 136], [73, 152], [108, 152]])
    found = true + torch.randn(6, 5, 2, generator=torch.Generator().manual_seed(0))
    true = true.expand_as(found)
    errors = inter_ocular_error(found, true)
    flipped = inter_ocular_error(mirrored(found, 178), mirrored(true, 178))
    torch.testing.assert_close(flipped, errors)


def eyes_apart(root, options):
    """Mean of right less left eye in x, predicted and true, after training on faces half flipped."""
    data = MAFLDataModule(root, batch_size=4, size=16)
    module = task("pixels16", lr=0.1, size=16)
    trainer(options, max_epochs=12, limit_val_batches=0).fit(module, data)
    module.eval().requires_grad_(False)
    batches = [(module(images), t["landmarks"]) for images, t in data.test_dataloader()]
    points = [torch.cat(p) for p in zip(*batches, strict=True)]
    return [float((p[:, 1, 0] - p[:, 0, 0]).mean()) for p in points]


def test_flips_keep_left_and_right_apart(toy, trainer_options, monkeypatch):
    found, true = eyes_apart(toy, trainer_options)
    assert found == pytest.approx(true, rel=0.3)
    monkeypatch.setattr(mafl, "MIRRORED", (0, 1, 2, 3, 4))  # what the swap is for
    confused, _ = eyes_apart(toy, trainer_options)
    assert abs(confused) < 0.5 * true


# --- Checkpoints


class Stop(pl.Callback):
    """Kills a run in mid-epoch, its checkpoint saved."""

    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, module, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            raise KeyboardInterrupt


def test_a_killed_run_goes_on_bit_for_bit(toy, trainer_options, tmp_path):
    """In mid-epoch, with flips and dropout, whatever the global generator did meanwhile."""

    def run(callbacks=(), **arguments):
        module = task(trunk(nn.Dropout2d(0.3)), size=16)
        torch.manual_seed(len(callbacks) + len(arguments))
        data = MAFLDataModule(toy, batch_size=4, size=16)
        fit = trainer(trainer_options, max_epochs=3, callbacks=list(callbacks))
        fit.fit(module, data, **arguments)
        return module, fit, data

    whole, fit, data = run()
    with pytest.raises(SystemExit):
        run([Stop(7, tmp_path / "k.ckpt")])  # the second of five batches of the second epoch
    resumed, *_ = run(ckpt_path=tmp_path / "k.ckpt", weights_only=True)
    state = resumed.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in whole.state_dict().items())
    assert int(whole._shapes[0, 2]) == 60
    (scores,) = fit.test(whole, data, verbose=False)
    assert scores == fit.test(resumed, data, verbose=False)[0]


def test_dropout_changes_with_seed_and_step(trainer_options):
    def weights(seed):
        module = task(OwnTrunk(nn.Sequential(nn.Conv2d(3, 4, 8), nn.Dropout(0.5))), seed=seed)
        masks = []
        module.encoder.trunk[1].register_forward_hook(
            lambda m, x, y: masks.append((y != 0).float())
        )
        trainer(trainer_options, limit_val_batches=0).fit(module, faces())
        return torch.stack([mask for mask in masks if len(mask) == 4])

    first, again, other = weights(0), weights(0), weights(1)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])


def test_a_checkpoint_brings_back_size_and_input_convention(trainer_options, tmp_path, toy):
    encoder = build("resnet10w8")
    encoder.set_normalization(None)
    module, data = Landmarks(encoder, points=5), MAFLDataModule(toy, batch_size=4, size=48)
    fit = trainer(trainer_options)
    fit.fit(module, data)
    assert module.head.fc.in_features == 128 * 2 * 2
    fit.save_checkpoint(tmp_path / "l.ckpt")
    loaded = Landmarks.load_from_checkpoint(tmp_path / "l.ckpt", weights_only=True)
    assert (loaded.size, loaded.encoder.normalization) == (48, None)
    assert fit.test(loaded, data, verbose=False) == fit.test(module, data, verbose=False)


# --- Ranks


class Seen(pl.Callback):
    """Saves what a rank knows after fit and test."""

    def __init__(self, folder):
        self.folder = folder

    def on_fit_end(self, trainer, module):
        torch.save(module.state_dict(), self.folder / f"fit{module.global_rank}.pt")

    def on_test_end(self, trainer, module):
        torch.save(dict(trainer.callback_metrics), self.folder / f"test{module.global_rank}.pt")


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_two_ranks_score_every_image_once_and_know_one_mean_shape(toy, trainer_options, tmp_path):
    names = (toy / "MAFL/testing.txt").read_text().split()
    root = tmp_path / "odd"
    root.mkdir()
    for entry in toy.iterdir():
        (root / entry.name).symlink_to(entry)
    (root / "MAFL").unlink()
    (root / "MAFL").mkdir()
    (root / "MAFL/training.txt").write_text((toy / "MAFL/training.txt").read_text())
    (root / "MAFL/testing.txt").write_text("\n".join(names[:7]))  # one is read twice
    data, module = MAFLDataModule(root, batch_size=2, size=32), task()
    options = {"devices": 2, "strategy": "ddp_fork", "callbacks": [Seen(tmp_path)]}
    fit = trainer(trainer_options, **options)
    fit.fit(module, data)
    (scores,) = fit.test(module, data, verbose=False)
    fits = [torch.load(tmp_path / f"fit{r}.pt", weights_only=True) for r in (0, 1)]
    tests = [torch.load(tmp_path / f"test{r}.pt", weights_only=True) for r in (0, 1)]
    assert torch.equal(fits[0]["_extra_state"], fits[1]["_extra_state"])
    assert torch.equal(fits[0]["head.fc.weight"], fits[1]["head.fc.weight"])
    landmarks = torch.cat([t["landmarks"] for _, t in data.train_dataloader()]).double()
    assert len(landmarks) == 20
    torch.testing.assert_close(module._shapes[:, :2] / 20, landmarks.mean(0))
    assert tests[0] == tests[1]

    images, target = zip(*[data.test_dataloader().dataset[i] for i in range(7)], strict=True)
    true = torch.stack([t["landmarks"] for t in target])
    mean = landmarks.mean(0).float().expand_as(true)
    assert scores == pytest.approx(
        {
            "landmark_error": literal_error(module.eval()(torch.stack(images)), true),
            "landmark_error_mean_shape": literal_error(mean, true),
        },
        rel=1e-5,
    )
    assert (tmp_path / "landmarks.png").is_file()


# --- Pictures


def test_a_drawing_marks_true_and_predicted_points():
    module = task(size=53)  # drawn twice as large
    images = torch.full((3, 3, 53, 53), 100, dtype=torch.uint8)
    true = torch.tensor([[10.0, 10], [40, 10], [25, 25], [12, 40], [40, 40]]).expand(3, 5, 2)
    found = true + torch.tensor([0.0, 6])
    batch = (images, {"landmarks": true, "image_id": torch.arange(3)})
    first, second = module.drawings(batch, {"landmarks": found}, 2)
    assert first.shape == second.shape == (3, 120, 106)
    face = first[:, :106].permute(1, 2, 0)
    for x, y in true[0].int().tolist():
        for dx, dy in ((0, 0), (3, 0), (-3, 0), (0, 3), (0, -3)):
            assert face[2 * y + dy, 2 * x + dx].tolist() == [0, 220, 0]
    for x, y in found[0].int().tolist():
        assert face[2 * y, 2 * x].tolist() == [255, 40, 40]
    marked = (face != 100).any(2).sum()
    assert 5 * 13 < marked < 5 * (13 + 16) + 1
    assert (first[:, 106:] < 128).any()  # the error, in words


def test_float_images_are_drawn_alike():
    module, loader = task(), faces()
    (images, target), *_ = loader
    outputs = {"landmarks": target["landmarks"] + 1}
    pixels = (images * 255).round().to(torch.uint8)
    one, two = (module.drawings((x, target), outputs, 4) for x in (images, pixels))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_the_caption_is_the_face_s_error(monkeypatch):
    module, said = task(), []
    monkeypatch.setattr(
        "goodtransfer.transfer.landmarks.captioned", lambda image, text: said.append(text) or image
    )
    true = torch.tensor([[0.0, 0], [10, 0], [5, 5], [2, 8], [8, 8]]).repeat(2, 1, 1)
    found = true + torch.tensor([[[0.0, 1.234]], [[3, 4]]])
    batch = (torch.zeros(2, 3, SIDE, SIDE), {"landmarks": true, "image_id": torch.arange(2)})
    module.drawings(batch, {"landmarks": found}, 2)
    assert said == ["12.3 %", "50.0 %"]


def test_a_test_leaves_its_picture(trainer_options, tmp_path):
    trainer(trainer_options).test(task(), faces(count=30, batch_size=2), verbose=False)
    picture = np.asarray(Image.open(tmp_path / "landmarks.png"))
    assert picture.shape == (2 * 124 + 4, 6 * 110 + 4, 3)  # twelve faces of 106 pixels and a line
    assert ((picture == (0, 220, 0)).all(2)).sum() > 12 * 20


# --- Sentences


def broken(**changes):
    """A loader whose first batch has its target changed."""
    images, target = next(iter(faces()))
    images = changes.pop("images", images)
    target = {k: v for k, v in {**target, **changes}.items() if v is not None}
    return DataLoader([(images, target)], batch_size=None)


def one(value, face=2):
    landmarks = Faces(4).landmarks.clone()
    landmarks[face, 3, 1] = value
    return landmarks


@pytest.mark.parametrize(
    ("loader", "sentence"),
    [
        (broken(landmarks=torch.ones(4, 4, 2)), r"landmarks \(4, 5, 2\) of a batch of 4 images, but"
         r" got \(4, 4, 2\): pass Landmarks\(points"),
        (broken(landmarks=torch.ones(4, 10)), r"\(4, 5, 2\) .* but got \(4, 10\)"),
        (broken(landmarks=torch.ones(3, 5, 2)), r"\(4, 5, 2\) .* but got \(3, 5, 2\)"),
        (broken(landmarks=one(torch.nan)), "finite landmarks, but those of image 2 are .*nan"),
        (broken(landmarks=one(torch.inf, 1)), "finite landmarks, but those of image 1 are .*inf"),
        (broken(landmarks=None), r"images and a target .*, but got a target of \['image_id'\]"),
        (broken(image_id=None), r"images and a target .*, but got a target of \['landmarks'\]"),
        (broken(images=torch.zeros(4, 3, 36, 36)), r"images of 32 x 32 pixels, .* but got \(4, 3, 36,"
         r" 36\): resize"),
        (broken(images=torch.zeros(4, 3, 32, 36)), "images of 32 x 32 pixels"),
        (broken(images=torch.zeros(4, 3, 36, 32)), "images of 32 x 32 pixels"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_or_scored_gets_a_sentence(loader, sentence, trainer_options):
    with pytest.raises(ValueError, match=sentence):
        trainer(trainer_options).fit(task(), loader)
    with pytest.raises(ValueError, match=sentence):
        trainer(trainer_options).test(task(), loader, verbose=False)


def test_a_target_that_is_no_dict_gets_a_sentence(trainer_options):
    pairs = DataLoader(list(zip(Faces().images, Faces().landmarks, strict=True)), batch_size=4)
    with pytest.raises(ValueError, match="images and a target .*, but got a target of Tensor"):
        trainer(trainer_options).fit(task(), pairs)


def test_eyes_without_distance_get_a_sentence(trainer_options):
    landmarks = Faces(4).landmarks.clone()
    landmarks[1, 1] = landmarks[1, 0]
    with pytest.raises(ValueError, match="eyes some distance apart, but points 0 and 1 of face 1"):
        trainer(trainer_options).test(task(), broken(landmarks=landmarks), verbose=False)


def test_normalised_images_get_a_sentence(trainer_options):
    with pytest.raises(ValueError, match=r"images in \[0, 1\].*remove Normalize"):
        trainer(trainer_options).fit(task(), broken(images=4 * Faces(4).images - 2))


def test_a_loss_that_is_not_finite_stops_the_run(trainer_options):
    module = task()
    module.head.fc.bias.data[3] = torch.nan
    with pytest.raises(
        FloatingPointError, match=r"in step 0 the loss is nan, on a batch of images \d"
    ):
        trainer(trainer_options).fit(module, faces())


def test_an_encoder_that_tells_nothing_is_refused_at_set_up(trainer_options):
    encoder = build("resnet10w8")
    encoder.bn1.weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="tell images apart for landmarks, but those of stage 5"):
        trainer(trainer_options).fit(task(encoder), faces())


class Nothing(IterableDataset):
    def __iter__(self):
        return iter(())


def test_an_empty_validation_set_is_an_error(trainer_options):
    with (
        pytest.warns(UserWarning, match="before the ``update``"),
        pytest.raises(RuntimeError, match="Expected images to evaluate, but no rank has seen any"),
    ):
        trainer(trainer_options).fit(task(), faces(), DataLoader(Nothing(), batch_size=2))
    with pytest.warns(UserWarning, match="Total length of `DataLoader` across ranks is zero"):
        trainer(trainer_options).fit(task(), faces(), DataLoader([], batch_size=2))


def test_sizes_and_points_must_be_known_and_agree(trainer_options, toy):
    fit = trainer(trainer_options)
    with pytest.raises(ValueError, match=r"no data module to ask: pass Landmarks\(size=...\)"):
        fit.fit(Landmarks("resnet10w8"), faces())
    with pytest.raises(ValueError, match="side 32, for which .* MAFLDataModule has size=48: leave"):
        fit.fit(task(), MAFLDataModule(toy, size=48, batch_size=4))
    with pytest.raises(ValueError, match="never set up"):
        Landmarks("resnet10w8")(Faces().images)
    for eyes in ((0, 0), (0, 5), (-1, 0)):
        with pytest.raises(ValueError, match=r"`eyes` to be two of 5 points, .* but got \("):
            task(eyes=eyes)


def test_other_points_and_eyes(trainer_options):
    module, loader = task(points=3, eyes=(2, 1)), faces(points=3)
    fit = trainer(trainer_options)
    fit.fit(module, loader)
    (scores,) = fit.test(module, loader, verbose=False)
    data = Faces(points=3)
    found = module.eval()(data.images).detach()
    expected = inter_ocular_error(found, data.landmarks, (2, 1)).mean()
    assert scores["landmark_error"] == pytest.approx(float(expected), rel=1e-5)


def test_an_interrupted_validation_leaves_nothing_to_the_next_test(trainer_options):
    module, loader = task(), faces()
    (expected,) = trainer(trainer_options).test(module, loader, verbose=False)
    images, target = next(iter(faces(seed=1)))
    module.eval().validation_step((images, target), 0)  # and then it was stopped
    (found,) = trainer(trainer_options).test(module, loader, verbose=False)
    assert found == expected


def test_an_encoder_on_a_gpu_is_measured_there():
    """Which "meta" stands for here."""
    module = task(trunk().to("meta"))
    assert module.head.fc.in_features == 128 * 8 * 8
