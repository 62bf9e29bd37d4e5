"""The readout against separate SGD loops, its choice of a rate, and its frozen encoder."""

import warnings

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from PIL import Image
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from goodtransfer.encoders import OwnTrunk, build, pooled
from goodtransfer.transfer import LinearProbe


class Coloured(Dataset):
    """Images whose class is their brightest channel, with noise."""

    def __init__(self, count=48, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(count) % 3
        self.images = 0.6 * torch.rand(count, 3, 8, 8, generator=generator)
        self.images[torch.arange(count), self.labels] += 0.3

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return (self.images[i],), self.labels[i], i


def trunk():
    torch.manual_seed(0)
    return OwnTrunk(nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU()))


def fitted(options, lrs=(0.1, 1.0, 30.0), epochs=5, encoder=None, **arguments):
    probe = LinearProbe(encoder or trunk(), num_classes=3, lrs=lrs, **arguments)
    start = 0.01 * torch.randn(3, 6, generator=torch.Generator().manual_seed(7))
    probe.classifiers.weight.data.copy_(start.repeat(len(lrs), 1))
    options = {"check_val_every_n_epoch": epochs, "num_sanity_val_steps": 0, **options}
    trainer = pl.Trainer(max_epochs=epochs, **options)
    batches = DataLoader(Coloured(), batch_size=16)
    trainer.fit(probe, batches, DataLoader(Coloured(24, seed=1), batch_size=8))
    return probe, trainer


def test_equals_separate_sgd_runs(trainer_options):
    """One optimizer over weighted losses is one SGD per rate, step decay included."""
    lrs, epochs = (0.1, 1.0, 30.0), 5
    probe = LinearProbe(trunk(), num_classes=3, lrs=lrs)
    start = probe.classifiers.weight[:3].detach().clone()
    features = pooled(probe.encoder, Coloured().images).detach()
    trainer = pl.Trainer(max_epochs=epochs, **trainer_options)
    trainer.fit(probe, DataLoader(Coloured(), batch_size=16))
    for number, lr in enumerate(lrs):
        weight, bias = start.clone().requires_grad_(), torch.zeros(3, requires_grad=True)
        optimizer = torch.optim.SGD([weight, bias], lr=lr, momentum=0.9)
        for epoch in range(epochs):
            optimizer.param_groups[0]["lr"] = lr * 0.1 ** ((epoch >= 3) + (epoch >= 4))
            for rows in torch.arange(48).split(16):
                loss = F.cross_entropy(features[rows] @ weight.T + bias, rows % 3)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        rows = slice(3 * number, 3 * number + 3)
        torch.testing.assert_close(probe.classifiers.weight[rows], weight, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(probe.classifiers.bias[rows], bias, rtol=1e-3, atol=1e-4)


def test_all_rates_start_alike_from_small_weights():
    probe = LinearProbe(trunk(), num_classes=200, lrs=(1.0, 30.0))
    weight = probe.classifiers.weight.detach()
    assert torch.equal(weight[:200], weight[200:])
    assert weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert not probe.classifiers.bias.any()


def test_the_validation_set_chooses_and_the_test_set_is_only_reported(trainer_options):
    head = nn.Linear(6, 3)
    probe, trainer = fitted(trainer_options, head=head)

    def accuracy_of(count, seed, weights):
        dataset = Coloured(count, seed)
        features = pooled(probe.encoder.eval(), dataset.images)
        return 100 * float((weights(features).argmax(1) == dataset.labels).float().mean())

    def rate(number):
        rows = slice(3 * number, 3 * number + 3)
        layer = probe.classifiers
        return lambda x: x @ layer.weight[rows].T + layer.bias[rows]

    on_validation = [accuracy_of(24, 1, rate(n)) for n in range(3)]
    assert int(probe.chosen) == max(range(3), key=lambda n: (on_validation[n], -n))
    (reported,) = trainer.test(probe, DataLoader(Coloured(30, seed=2), batch_size=7), verbose=False)
    assert reported["acc"] == pytest.approx(accuracy_of(30, 2, rate(int(probe.chosen))))
    assert reported["acc_lr30"] == pytest.approx(accuracy_of(30, 2, rate(2)))
    assert reported["acc_head"] == pytest.approx(accuracy_of(30, 2, head))
    assert reported["chosen_lr"] == pytest.approx(probe.lrs[int(probe.chosen)])
    assert reported["acc"] > 60
    images = Coloured(30, seed=2).images
    torch.testing.assert_close(
        probe(images), rate(int(probe.chosen))(pooled(probe.encoder, images))
    )


def test_no_weight_and_no_statistic_of_the_encoder_moves(trainer_options):
    encoder = trunk()
    probe, _ = fitted(trainer_options, encoder=encoder)
    for name, value in probe.encoder.state_dict().items():
        assert torch.equal(value, encoder.state_dict()[name]), name


def test_the_user_s_encoder_stays_trainable(trainer_options):
    encoder = trunk().train()
    fitted(trainer_options, encoder=encoder)
    assert all(p.requires_grad for p in encoder.parameters())
    assert encoder.training


class Thaw(pl.Callback):
    """What must not happen: batch norm back in training mode, or a weight nudged."""

    def __init__(self, how):
        self.how = how

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if self.how == "statistics":
            module.encoder.train()
        else:
            next(module.encoder.parameters()).data.add_(1e-7)


@pytest.mark.parametrize(
    ("how", "named"), [("statistics", "trunk.1.running_mean"), ("weight", "trunk.0.weight")]
)
def test_the_frozen_check_fires(how, named, trainer_options):
    with pytest.raises(RuntimeError, match=f"`encoder` to stay frozen.*moved.*{named}"):
        fitted(trainer_options | {"callbacks": [Thaw(how)]})


def test_a_rate_that_diverges_spoils_no_other(trainer_options):
    alone, _ = fitted(trainer_options, lrs=(0.1,))
    both, _ = fitted(trainer_options, lrs=(0.1, float("inf")))
    torch.testing.assert_close(both.classifiers.weight[:3], alone.classifiers.weight)
    assert int(both.chosen) == 0


@pytest.mark.parametrize("lrs", [(), (0.1, 0.0)])
def test_bad_rates_get_a_sentence(lrs):
    with pytest.raises(ValueError, match="`lrs` to be positive rates"):
        LinearProbe(trunk(), num_classes=3, lrs=lrs)


def test_classes_must_be_known(trainer_options):
    trainer = pl.Trainer(max_epochs=1, **trainer_options)
    with pytest.raises(ValueError, match=r"pass LinearProbe\(num_classes=...\)"):
        trainer.fit(LinearProbe(trunk()), DataLoader(Coloured(), batch_size=16))


def test_validating_later_chooses_nothing(trainer_options):
    probe, trainer = fitted(trainer_options)
    probe.chosen.fill_(0)
    probe.classifiers.weight.data[:3].neg_()  # the worst by far
    trainer.validate(probe, DataLoader(Coloured(24, seed=1), batch_size=8), verbose=False)
    assert int(probe.chosen) == 0


def test_a_choice_on_the_reported_images_warns(trainer_options):
    class Data(pl.LightningDataModule):
        num_classes, selection = 3, 0.0

        def train_dataloader(self):
            return DataLoader(Coloured(), batch_size=16)

    trainer = pl.Trainer(max_epochs=1, **trainer_options)
    with pytest.warns(UserWarning, match=r"images that are reported.*Data\(selection=0.1\)"):
        trainer.fit(LinearProbe(trunk()), Data())


def test_unlabelled_images_count_nowhere(trainer_options):
    class Partly(Coloured):
        def __getitem__(self, i):
            views, label, index = super().__getitem__(i)
            return views, label if i < 24 else torch.tensor(-1), index

    results = []
    for data in (Partly(), Subset(Coloured(), range(24))):
        probe = LinearProbe(trunk(), num_classes=3, lrs=(1.0,))
        probe.classifiers.weight.data.fill_(0.01)
        trainer = pl.Trainer(max_epochs=1, **trainer_options)
        trainer.fit(probe, DataLoader(data, batch_size=48))
        (scores,) = trainer.test(probe, DataLoader(data, batch_size=48), verbose=False)
        results.append((probe.classifiers.weight.detach(), scores["acc"]))
    torch.testing.assert_close(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


def test_normalised_images_get_a_sentence(trainer_options):
    data = DataLoader([((4 * v[0] - 2,), y) for v, y, _ in Coloured()], batch_size=16)
    trainer = pl.Trainer(max_epochs=1, **trainer_options)
    with pytest.raises(ValueError, match=r"images in \[0, 1\].*remove Normalize"):
        trainer.fit(LinearProbe(trunk(), num_classes=3), data)


def test_a_checkpoint_brings_back_head_and_input_convention(trainer_options, tmp_path):
    encoder = build("resnet10w8")
    encoder.set_normalization(None)
    head = nn.Linear(64, 3)
    images = DataLoader([((v[0].repeat(1, 4, 4),), y) for v, y, _ in Coloured()], batch_size=16)
    probe = LinearProbe(encoder, num_classes=3, head=head, lrs=(1.0,))
    trainer = pl.Trainer(max_epochs=1, **trainer_options)
    trainer.fit(probe, images)
    trainer.save_checkpoint(tmp_path / "p.ckpt")
    loaded = LinearProbe.load_from_checkpoint(tmp_path / "p.ckpt", weights_only=True)
    assert loaded.encoder.normalization is None
    (a,), (b,) = (trainer.test(m, images, verbose=False) for m in (probe, loaded))
    assert a == b
    assert {"acc", "acc_head"} <= set(a)


@pytest.mark.parametrize("name", ["acc", "base_acc"])
def test_the_accuracies_have_the_name_asked_for(name, trainer_options):
    named = {} if name == "acc" else {"name": name}
    probe, trainer = fitted(trainer_options, head=nn.Linear(6, 3), epochs=1, **named)
    (scores,) = trainer.test(probe, DataLoader(Coloured(30, seed=2), batch_size=7), verbose=False)
    assert set(scores) == {name, f"{name}_lr30", f"{name}_head", "chosen_lr"}


class Named(pl.LightningDataModule):
    """Test images of three named classes, the first one unlabelled."""

    num_classes, class_names = 3, ["red", "green", "blue"]

    def test_dataloader(self):
        data = Coloured(30, seed=2)
        data.labels = data.labels.clone()
        data.labels[0] = -1
        return DataLoader(data, batch_size=10)


def test_pictures_show_what_images_are_taken_for(trainer_options, tmp_path):
    probe, _ = fitted(trainer_options, lrs=(1.0, 0.001))
    probe.chosen.fill_(1)  # wrong now and then
    data = Named()
    trainer = pl.Trainer(**trainer_options)
    trainer.test(probe, data, verbose=False)
    picture = torch.from_numpy(np.array(Image.open(tmp_path / "linear.png"))).long()
    assert picture.shape == (4 + 2 * 244, 4 + 3 * 230, 3)
    shown, found = [0, 1, 10, 11, 20, 21], set()  # two of each batch
    images, predicted = Coloured(30, seed=2).images, probe(Coloured(30, seed=2).images).argmax(1)
    for place, number in enumerate(shown):
        y, x = 4 + place // 3 * 244, 4 + place % 3 * 230
        middle = picture[y + 20 : y + 206, x + 20 : x + 206].double().mean((0, 1)) / 255
        assert (middle - images[number][:, 1:7, 1:7].mean((1, 2))).abs().max() < 0.1
        ink = picture[y + 226 : y + 240, x : x + 226].amin((0, 1))
        label = None if number == 0 else number % 3
        right = None if label is None else int(predicted[number]) == label
        assert (bool(ink[1] > ink[0]), bool(ink[0] > ink[1])) == (right is True, right is False)
        found.add(right)
    assert found == {None, True, False}


def test_captions_are_the_names_of_the_predicted_classes(trainer_options, monkeypatch):
    texts = []
    monkeypatch.setattr(
        "goodtransfer.transfer.linear.captioned",
        lambda image, text, right: texts.append((text, right)) or image,
    )
    probe, trainer = fitted(trainer_options, epochs=1)
    trainer.test(probe, Named(), verbose=False)
    batch = next(iter(Named().test_dataloader()))
    texts.clear()
    drawn = probe.drawings(batch, {"predicted": torch.tensor([2, 0, 2, 1, *[0] * 6])}, 4)
    assert texts == [("blue", None), ("red", False), ("blue", True), ("green", False)]
    assert [tuple(image.shape) for image in drawn] == [(3, 226, 226)] * 4
    loaders = DataLoader(Coloured(30, seed=2), batch_size=30)
    pl.Trainer(**trainer_options).test(probe, loaders, verbose=False)  # no data module, no names
    assert len(texts) == 10
    assert {text for text, _ in texts[4:]} <= {"0", "1", "2"}


def test_validation_returns_nothing():
    """Callbacks and Lightning's own loops get no features to keep."""
    probe = LinearProbe(trunk(), num_classes=3, lrs=(1.0, 3.0))
    probe.chosen.fill_(1)
    probe.classifiers.weight.data[3:].mul_(-1)
    images, labels = Coloured(6).images, Coloured(6).labels
    assert probe.validation_step(((images,), labels), 0) is None
    (predicted,) = probe.test_step(((images,), labels), 0).values()
    assert torch.equal(predicted, probe(images).argmax(1))


def test_a_test_tells_the_class_by_every_classifier_it_reports():
    head = nn.Linear(6, 3)
    probe = LinearProbe(trunk(), num_classes=3, lrs=(1.0, 30.0), head=head)
    probe.chosen.fill_(0)
    probe.classifiers.weight.data[3:].mul_(-1)
    images, labels = Coloured(9).images, Coloured(9).labels
    features = pooled(probe.encoder, images)
    told = probe.test_step(((images,), labels), 0)
    both = probe.classifiers(features).view(9, 2, 3).argmax(2)
    assert torch.equal(told["predicted"], both[:, 0])
    assert torch.equal(told["predicted_lr30"], both[:, 1])
    assert torch.equal(told["predicted_head"], head(features).argmax(1))
    assert not torch.equal(told["predicted"], told["predicted_lr30"])


def test_features_that_tell_nothing_apart(trainer_options):
    trainer = pl.Trainer(max_epochs=1, **trainer_options)
    encoder = trunk()
    encoder.trunk.append(nn.Threshold(1e9, 0.5))
    for spoil, what in ((0.5, "the same for any image"), (float("nan"), "NaN or infinite")):
        encoder.trunk[-1].value = spoil
        probe = LinearProbe(encoder, num_classes=3)
        with pytest.raises(ValueError, match=f"images apart for LinearProbe, .* {what}"):
            trainer.fit(probe, DataLoader(Coloured(), batch_size=16))


def test_another_number_of_classes(trainer_options):
    probe = LinearProbe(trunk(), num_classes=4)
    with pytest.raises(ValueError, match="a data module of 4 classes, .* but Named has 3"):
        pl.Trainer(**trainer_options).test(probe, Named(), verbose=False)


def test_pixels_are_an_encoder_too(trainer_options):
    class Large(Coloured):
        def __getitem__(self, i):
            (view,), label, index = super().__getitem__(i)
            return (view.repeat(1, 6, 6),), label, index

    probe = LinearProbe("pixels48", num_classes=3, lrs=(0.001,))
    trainer = pl.Trainer(max_epochs=5, **trainer_options)
    trainer.fit(probe, DataLoader(Large(), batch_size=16))
    (scores,) = trainer.test(probe, DataLoader(Large(24, seed=1), batch_size=8), verbose=False)
    assert scores["acc"] > 90


def test_without_a_validation_no_rate_is_reported(trainer_options):
    """The smallest rate is not the answer where none was chosen; a single one needs no choice."""
    for lrs in ((0.1, 1.0), (1.0,)):
        probe = LinearProbe(trunk(), num_classes=3, lrs=lrs)
        trainer = pl.Trainer(max_epochs=1, **trainer_options)
        trainer.fit(probe, DataLoader(Coloured(), batch_size=16))
        assert int(probe.chosen) == -1
        if len(lrs) > 1:
            said = r"have chosen one of 2 learning rates, but none have: .*check_val_every_n_epoch"
            with pytest.raises(ValueError, match=said):
                trainer.test(probe, DataLoader(Coloured(), batch_size=16), verbose=False)
            with pytest.raises(ValueError, match=said):
                probe(Coloured().images)
        else:
            (scores,) = trainer.test(probe, DataLoader(Coloured(), batch_size=16), verbose=False)
            assert scores["chosen_lr"] == 1.0


def test_the_fit_leaves_the_warnings_as_they_were(trainer_options):
    before = list(warnings.filters)
    fitted(trainer_options, epochs=1)
    assert list(warnings.filters) == before


def test_labels_beyond_the_classes_get_a_sentence(trainer_options):
    probe = LinearProbe(trunk(), num_classes=2)
    with pytest.raises(
        ValueError, match="labels from 0 to 1, or -1 for none, but a batch has 0 to 2"
    ):
        pl.Trainer(max_epochs=1, **trainer_options).fit(
            probe, DataLoader(Coloured(), batch_size=16)
        )


def test_classes_are_told_in_full_precision(trainer_options):
    """Rounded to bfloat16, these two classes tie, and the first one is taken."""
    encoder = OwnTrunk(nn.Conv2d(3, 6, 8))
    head = nn.Linear(6, 3)
    probe = LinearProbe(encoder, num_classes=3, lrs=(1.0,), head=head)
    for layer in (probe.classifiers, probe.head):
        layer.weight.data.zero_()
        layer.bias.data = torch.tensor([1.0, 1.001, 0.0])
    trainer = pl.Trainer(precision="bf16-mixed", **trainer_options)
    ones = DataLoader([((v[0],), 1) for v, _, _ in Coloured(6)], batch_size=6)
    (scores,) = trainer.test(probe, ones, verbose=False)
    assert (scores["acc"], scores["acc_head"]) == (100, 100)


@pytest.mark.filterwarnings("ignore:The dirpath has changed", "ignore:You're resuming from a")
def test_resumed_twice_at_the_end_of_an_epoch_it_takes_no_step_more(trainer_options, tmp_path):
    """Lightning alone begins the third epoch anew after the second resume (see `EpochCount`)."""

    class Steps(pl.Callback):
        def __init__(self):
            self.seen = []

        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            self.seen.append((trainer.current_epoch, batch_idx))

    options, files, steps = {**trainer_options, "enable_checkpointing": True}, [], []
    for stop in (3, 4, 9):  # batches of 16 images: three are an epoch
        saved = ModelCheckpoint(tmp_path / str(stop), every_n_train_steps=1, save_top_k=-1)
        steps.append(Steps())
        trainer = pl.Trainer(max_epochs=3, callbacks=[saved, steps[-1]], **options)
        probe = LinearProbe(trunk(), num_classes=3, lrs=(1.0,))
        file = files[-1] if files else None
        trainer.fit(probe, DataLoader(Coloured(), batch_size=16), ckpt_path=file)
        files += list((tmp_path / str(stop)).glob(f"*step={stop}.ckpt"))
    assert steps[1].seen == [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]
    assert trainer.global_step == 9


@pytest.mark.filterwarnings("ignore:The dirpath has changed", "ignore:You're resuming from a")
def test_the_choice_that_was_not_made_before_a_kill_is_made_on_resume(trainer_options, tmp_path):
    """Of the last epoch, alone validated: Lightning passes it over after a checkpoint of its last batch."""
    options = {**trainer_options, "enable_checkpointing": True, "max_epochs": 2}
    train, val = (DataLoader(Coloured(n), batch_size=16) for n in (48, 24))

    def run(folder, file=None):
        saved = ModelCheckpoint(tmp_path / folder, every_n_train_steps=1, save_top_k=-1)
        trainer = pl.Trainer(check_val_every_n_epoch=2, callbacks=[saved], **options)
        torch.manual_seed(0)
        probe = LinearProbe(trunk(), num_classes=3)
        trainer.fit(probe, train, val, ckpt_path=file)
        return probe, trainer.test(probe, val, verbose=False)

    probe, expected = run("whole")
    (file,) = (tmp_path / "whole").glob("*step=6.ckpt")
    assert torch.load(file, weights_only=True)["state_dict"]["chosen"] == -1
    again, found = run("again", file)
    assert int(again.chosen) == int(probe.chosen) >= 0
    assert found == expected
