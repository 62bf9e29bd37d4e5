"""FewShot: what it scores and chooses against plain loops, its data, its picture, and its faults."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from goodtransfer.data import ImageFolderDataModule, MiniImageNetDataModule
from goodtransfer.data.toy_layouts import make_mini_imagenet
from goodtransfer.encoders import OwnTrunk, build, pooled
from goodtransfer.transfer.episodes import epoch_orders, initial_heads, sample_episodes
from goodtransfer.transfer.fewshot import LEARNING_RATES, FewShot

sys.path.insert(0, str(Path(__file__).parent))
import fewshot_ddp
from literal_few_shot import literal_accuracy, literal_episode

SMALL = {"way": 3, "shots": (1, 2), "queries": 3, "episodes": 12, "lrs": (0.001, 0.1, 10.0)}
SHORT = {**SMALL, "epochs": 6, "seed": 4}


class Coloured(Dataset):
    """Noise around a colour for each class; classes overlap."""

    def __init__(self, classes=5, per_class=8, seed=0, noise=0.5):
        chance = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(classes * per_class) % classes
        colours = 0.5 * torch.rand(classes, 3, 1, 1, generator=chance)
        noises = noise * torch.rand(classes * per_class, 3, 8, 8, generator=chance)
        self.images = colours[self.labels] + noises

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return (self.images[i],), self.labels[i], i


def trunk(last=None):
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 16, 3, stride=2, bias=False), nn.ReLU(), *([last] if last else [])]
    return OwnTrunk(nn.Sequential(*parts), normalization=None)


def loaders(*data, **options):
    return [DataLoader(each, **{"batch_size": 7, **options}) for each in data]


def scores_of(options, data, encoder=None, **arguments):
    task = FewShot(encoder or trunk(), **SHORT | arguments)
    trainer = pl.Trainer(**options)
    first, second = trainer.test(task, data, verbose=False)
    assert first == second  # Lightning reports once for each loader
    return first, task


# --- Scores


def literal_accuracies(encoder, data, shot, lr):
    """Of each episode, one step after another."""
    features = pooled(encoder.eval(), data.images).detach()
    episodes = sample_episodes(data.labels, episodes=12, way=3, shot=shot, queries=3, seed=4)
    chance = torch.Generator().manual_seed(4)
    heads = initial_heads(12, 3, 16, chance)
    orders = epoch_orders(12, 6, 3 * shot, chance)
    return [
        literal_accuracy(literal_episode(features[s], features[q], 3, w, b, order, lr), 3)
        for _, s, q, w, b, order in zip(*episodes, *heads, orders, strict=True)
    ]


def test_the_rate_is_chosen_on_validation_and_novel_is_reported(trainer_options):
    validation, novel = Coloured(seed=2), Coloured(seed=1)
    validation.images *= 10  # larger features want a smaller rate
    scores, task = scores_of(trainer_options, loaders(validation, novel))
    for shot in (1, 2):
        chosen, elsewhere = (
            [np.mean(literal_accuracies(task.encoder, data, shot, lr)) for lr in task.lrs]
            for data in (validation, novel)
        )
        best = int(np.argmax(chosen))
        expected = literal_accuracies(task.encoder, novel, shot, task.lrs[best])
        assert scores[f"chosen_lr_{shot}shot"] == pytest.approx(task.lrs[best])
        assert scores[f"novel_{shot}shot"] == pytest.approx(np.mean(expected), abs=1e-4)
        interval = 1.96 * np.std(expected) / 12**0.5
        assert scores[f"novel_{shot}shot_ci95"] == pytest.approx(interval, abs=1e-4)
        assert best != np.argmax(elsewhere)  # so that the wrong classes would show
    assert len(scores) == 6


def test_the_defaults_are_the_papers():
    task = FewShot(trunk())
    assert (task.way, task.shots, task.queries, task.episodes) == (5, (1, 5), 15, 600)
    assert (task.epochs, task.batch, task.weight_decay) == (100, 4, 0.001)
    assert task.lrs == LEARNING_RATES
    assert (min(LEARNING_RATES), max(LEARNING_RATES)) == (0.001, 100)
    assert FewShot().encoder.name == "resnet18"


def test_every_image_is_encoded_once_and_the_encoder_stays_as_it_was(trainer_options):
    encoder = build("resnet10w8")
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    seen = []
    task = FewShot(encoder, **SHORT)
    task.encoder.conv1.register_forward_hook(lambda _, x, __: seen.append(len(x[0])))
    pl.Trainer(**trainer_options).test(task, loaders(Coloured(), Coloured(seed=1)), verbose=False)
    assert sum(seen) == 2 + 40 + 40  # two of them by the check at set-up
    assert not task.encoder.training
    assert not any(p.requires_grad for p in task.encoder.parameters())
    assert all(p.requires_grad for p in encoder.parameters())  # the user's own is a copy's origin
    for name, value in task.encoder.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_order_of_the_images_and_repeated_ones_do_not_count(trainer_options):
    data = Coloured(seed=1), Coloured(seed=2)
    expected, _ = scores_of(trainer_options, loaders(*data))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0)).tolist()
    mixed, _ = scores_of(trainer_options, loaders(*data, sampler=[*order, *order[:5]]))
    assert mixed == pytest.approx(expected, abs=1e-4)
    torch.manual_seed(7)  # no chance but the seed's
    assert scores_of(trainer_options, loaders(*data))[0] == expected
    assert scores_of(trainer_options, loaders(*data), seed=5)[0] != expected


def test_labels_without_index_and_images_without_label(trainer_options):
    class Plain(Coloured):
        def __getitem__(self, i):
            return self.images[i], self.labels[i]

    class Half(Coloured):
        """Every class's images twice over, once without label."""

        def __len__(self):
            return 80

        def __getitem__(self, i):
            views, label, _ = super().__getitem__(i % 40)
            return views, label if i < 40 else torch.tensor(-1), i

    expected, _ = scores_of(trainer_options, loaders(Coloured(seed=1), Coloured(seed=2)))
    for kind in (Plain, Half):
        found, _ = scores_of(trainer_options, loaders(kind(seed=1), kind(seed=2)))
        assert found == pytest.approx(expected, abs=1e-4)


# --- Data sets


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_mini_imagenet(tmp_path_factory.mktemp("mini") / "w", per_class=10, size=32)


def test_mini_imagenet_just_works(world, trainer_options):
    data = MiniImageNetDataModule(world, size=32, batch_size=16)
    scores, task = scores_of(trainer_options, data, "pixels32")
    parts = [data.features_dataloader(part) for part in ("validation", "novel")]
    assert scores_of(trainer_options, parts, "pixels32")[0] == scores
    assert set(scores) == {
        f"{name}_{shot}" for name in ("novel", "chosen_lr") for shot in ("1shot", "2shot")
    } | {"novel_1shot_ci95", "novel_2shot_ci95"}
    assert task.hparams["encoder"] == "pixels32"


def test_two_folders_of_classes(tmp_path, trainer_options):
    """As the docstring has it."""
    chance = np.random.default_rng(0)
    for part, classes in (("validation", "abc"), ("novel", "vwxyz")):
        for name in classes:
            (tmp_path / part / name).mkdir(parents=True)
            colour = chance.integers(0, 200, 3, dtype=np.uint8)
            for n in range(6):
                pixels = colour + chance.integers(0, 50, (20, 30, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / name / f"{n}.png")
    parts = [
        ImageFolderDataModule(
            tmp_path, train=name, val=None, size=16, batch_size=4
        ).features_dataloader("train")
        for name in ("validation", "novel")
    ]
    scores, _ = scores_of(trainer_options, parts, "pixels16")
    assert scores["novel_2shot"] > 80  # a class is its colour


# --- The picture


def test_the_picture_shows_an_episode(world, trainer_options, tmp_path):
    data = MiniImageNetDataModule(world, size=32, batch_size=16)
    guesses = []

    class Spied(FewShot):
        def _draw(self, novel, episodes, predicted):
            guesses.append(predicted)
            super()._draw(novel, episodes, predicted)

    task = Spied("pixels32", **SHORT | {"lrs": (0.001,)})
    pl.Trainer(**trainer_options).test(task, data, verbose=False)
    ((predicted),) = guesses
    picture = np.array(Image.open(tmp_path / "few_shot.png")).astype(int)
    assert picture.shape == (4 + 4 * (120 + 14 + 4), 4 + 3 * (120 + 4), 3)

    dataset = data.features_dataloader("novel").dataset
    images = torch.stack([item.views[0] for item in map(dataset.__getitem__, range(50))])
    labels = torch.tensor(data.files("novel").labels)
    episodes = sample_episodes(labels, episodes=12, way=3, shot=2, queries=3, seed=4)
    features, chance = pooled(task.encoder, images), torch.Generator().manual_seed(4)
    heads, orders = initial_heads(12, 3, 3072, chance), epoch_orders(12, 6, 6, chance)
    support, query = (rows[0] for rows in (episodes.support, episodes.query))
    start = heads.weight[0], heads.bias[0], orders[0]
    scores = literal_episode(features[support], features[query], 3, *start, 0.001)
    assert predicted == scores.argmax(1).view(3, 3).tolist()
    assert (
        len({g == c for c, row in enumerate(predicted) for g in row}) == 2
    )  # right and wrong ones
    shown = images[torch.cat([support[:, :1], query], dim=1)]  # class, row
    for column in range(3):
        for row in range(4):
            y, x = 4 + row * 138, 4 + column * 124
            tile = picture[y : y + 120, x : x + 120]
            small = tile.reshape(4, 30, 4, 30, 3).mean((1, 3))  # the image, blurred
            image = shown[column, row].permute(1, 2, 0).float().numpy()
            expected = image.reshape(4, 8, 4, 8, 3).mean((1, 3))
            assert np.abs(small - expected).max() < 12
            ink = picture[y + 120 : y + 134, x : x + 120].min((0, 1))
            right = None if row == 0 else predicted[column][row - 1] == column
            assert (ink[1] > ink[0], ink[0] > ink[1]) == (right is True, right is False)


@pytest.mark.parametrize("kind", ["iterable", "another index", "no data set"])
def test_images_that_cannot_be_shown_do_not_spoil_the_scores(kind, trainer_options, tmp_path):
    class Stream(IterableDataset):
        def __init__(self, data):
            self.data = data

        def __iter__(self):
            return (self.data[i] for i in range(len(self.data)))

    class Batches:
        def __init__(self, loader):
            self.batches = list(loader)

        def __iter__(self):
            return iter(self.batches)

    class Numbered(Coloured):
        def __getitem__(self, i):
            views, label, _ = super().__getitem__(i)
            return views, label, i + 1000

    make = {
        "iterable": lambda seed: DataLoader(Stream(Coloured(seed=seed)), batch_size=7),
        "another index": lambda seed: DataLoader(Numbered(seed=seed), batch_size=7),
        "no data set": lambda seed: Batches(DataLoader(Coloured(seed=seed), batch_size=7)),
    }[kind]
    expected, _ = scores_of(trainer_options, loaders(Coloured(seed=1), Coloured(seed=2)))
    (tmp_path / "few_shot.png").unlink()
    found, _ = scores_of(trainer_options, [make(1), make(2)])
    assert found == expected
    assert not (tmp_path / "few_shot.png").exists()


# --- Checkpoints


def test_a_checkpoint_brings_back_the_task(trainer_options, tmp_path):
    encoder = build("resnet10w8")
    encoder.set_normalization(None)
    data = loaders(Coloured(seed=1), Coloured(seed=2))
    task, trainer = FewShot(encoder, **SHORT), pl.Trainer(**trainer_options)
    scores = trainer.test(task, data, verbose=False)
    trainer.save_checkpoint(tmp_path / "f.ckpt")
    loaded = FewShot.load_from_checkpoint(tmp_path / "f.ckpt", weights_only=True)
    assert loaded.encoder.normalization is None
    assert (loaded.shots, loaded.lrs, loaded.seed) == (task.shots, task.lrs, 4)
    assert trainer.test(loaded, data, verbose=False) == scores


# --- Faults


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shots": ()}, r"of at least 1, but got \(\), 3, 3"),
        ({"shots": (1, 0)}, r"of at least 1, but got \(1, 0\)"),
        ({"queries": 0}, "of at least 1"),
        ({"lrs": ()}, "`lrs` to be positive rates"),
        ({"lrs": (0.1, -1.0)}, "`lrs` to be positive rates"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        FewShot(trunk(), **SHORT | arguments)


@pytest.mark.parametrize("count", [1, 3])
def test_other_than_two_loaders(count, trainer_options):
    data = loaders(*[Coloured()] * count)
    with pytest.raises(ValueError, match=rf"two test loaders, .* got {count}: pass Trainer.test"):
        scores_of(trainer_options, data if count > 1 else data[0])


def test_too_few_are_told_before_any_image_is_read(world, trainer_options, monkeypatch):
    data = MiniImageNetDataModule(world, size=32, batch_size=16)
    monkeypatch.setattr(FewShot, "test_step", lambda *_: pytest.fail("an image was read"))
    with pytest.raises(
        ValueError,
        match=r"at least 11 images of every class.* validation class 0 \(n0+\d+\) has 10",
    ):
        scores_of(trainer_options, data, "pixels32", queries=9)
    with pytest.raises(ValueError, match="at least 6 classes .*, but validation images are of 5"):
        scores_of(trainer_options, data, "pixels32", way=6)


def test_too_few_of_a_loader_that_does_not_tell_its_labels(trainer_options):
    with pytest.raises(ValueError, match="at least 5 images .*, but novel class 0 has 4: lower"):
        scores_of(trainer_options, loaders(Coloured(), Coloured(per_class=4)))


def test_constant_features(trainer_options):
    with pytest.raises(ValueError, match="images apart for FewShot, .* the same for any image"):
        scores_of(trainer_options, loaders(Coloured(), Coloured()), trunk(nn.Threshold(1e9, 0.5)))


def test_features_that_are_not_finite_for_some_images(trainer_options):
    class Overflows(nn.Module):
        def forward(self, x):
            return x / (x.amin((1, 2, 3), keepdim=True) < 1)

    novel = Coloured(seed=2)
    novel.images[[5, 9]] = 1.0
    encoder = OwnTrunk(Overflows(), normalization=None)
    with pytest.raises(
        ValueError,
        match="finite features, but Overflows .* ones for 2 of 40 novel images, such as number 5:",
    ):
        scores_of(trainer_options, loaders(Coloured(seed=1), novel), encoder)


def test_normalised_images(trainer_options):
    data = Coloured(noise=3.0)
    with pytest.raises(ValueError, match=r"images in \[0, 1\].*remove Normalize"):
        scores_of(trainer_options, loaders(data, data), build("resnet10w8"))


def test_labels_must_be_there(trainer_options):
    data = [[(torch.rand(3, 8, 8),)]] * 2
    with pytest.raises(ValueError, match="Expected labels for FewShot"):
        scores_of(trainer_options, [DataLoader(each) for each in data])


# --- Ranks


def test_two_ranks_are_one(tmp_path, trainer_options):
    """13 images of each of 5 classes: a rank repeats one of each part."""
    world = make_mini_imagenet(tmp_path / "mini", per_class=13, size=32)
    script = Path(__file__).with_name("fewshot_ddp.py")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "LOCAL_"))}
    call = [sys.executable, "-W", "error::UserWarning:goodtransfer", str(script), str(world)]
    done = subprocess.run(
        [*call, str(tmp_path)], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "sync_dist" not in done.stderr
    first, second = (json.loads((tmp_path / f"rank{r}.json").read_text()) for r in range(2))
    assert first == second
    assert first["numbers"] == [list(range(65))] * 2
    for name, task in (("scores", fewshot_ddp.task()), ("base", fewshot_ddp.probe())):
        alone = pl.Trainer(**trainer_options | {"default_root_dir": tmp_path / "alone"}).test(
            task, fewshot_ddp.data(world), verbose=False
        )
        assert first[name] == pytest.approx(alone[0], abs=1e-4)
    assert {"few_shot.png", "linear.png"} <= {file.name for file in tmp_path.iterdir()}
