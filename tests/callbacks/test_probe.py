"""OnlineProbe against a hand-written loop, and proof that the method never notices it."""

from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from goodtransfer.callbacks import OnlineKNN, OnlineProbe, knn, probe
from goodtransfer.methods import MoCoV2

CLASSES = 3


class Emitter(pl.LightningModule):
    """Gives the batch back as features, scaled; its one weight is there to be trained."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def training_step(self, batch, batch_idx):
        features, label = batch
        return {
            "loss": (self.weight * features).pow(2).mean(),
            "features": self.weight.detach() * features,
            "label": label,
        }

    def validation_step(self, batch, batch_idx):
        return {"features": self.weight * batch[0], "label": batch[1]}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class Log:
    """Stands in for the LightningModule: keeps what is logged."""

    device = "cpu"

    def __init__(self):
        self.seen = []

    def log(self, name, value, batch_size=None, sync_dist=False):
        self.seen.append((name, float(value), batch_size))


def clusters(count, seed=0, dim=8, spread=0.3):
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(CLASSES, (count,), generator=generator)
    centres = torch.randn(CLASSES, dim, generator=torch.Generator().manual_seed(99))
    noise = torch.randn(count, dim, generator=generator)
    return centres[label] + spread * noise, label


def batches(numbers, size=16):
    return DataLoader([clusters(size, seed=n) for n in numbers], batch_size=None)


def probe_at(classes=CLASSES, **arguments):
    probe = OnlineProbe(num_classes=classes, **arguments)
    probe.setup(SimpleNamespace(), None, "fit")
    return probe


def train(probe, features, label, log=None):
    outputs = {"features": features, "label": label}
    probe.on_train_batch_end(None, log or Log(), outputs, None, 0)


def validate(callback, *loaders):
    """Each loader is one batch of features, labels and perhaps the images' numbers."""
    log = Log()
    callback.on_validation_epoch_start(None, log)
    for number, batch in enumerate(loaders):
        outputs = dict(zip(("features", "label", "index"), batch, strict=False))
        callback.on_validation_batch_end(None, log, outputs, None, 0, number)
    callback.on_validation_epoch_end(None, log)
    return log.seen


def assert_same_state(one, two):
    torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_equals_a_literal_loop():
    """Weights by the formulas of softmax regression and of SGD with momentum 0.9."""
    probe, log = probe_at(lr=0.1), Log()
    weight, bias = torch.zeros(CLASSES, 8), torch.zeros(CLASSES)
    momentum = [torch.zeros_like(weight), torch.zeros_like(bias)]
    accuracies = []
    for step in range(5):
        x, label = clusters(16, seed=step)
        train(probe, x, label, log)
        unit = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()
        logits = unit @ weight.T + bias
        accuracies.append(100 * (logits.argmax(1) == label).float().mean().item())
        error = (logits.softmax(1) - F.one_hot(label, CLASSES)) / len(x)
        for i, gradient in enumerate((error.T @ unit, error.sum(0))):
            momentum[i] = 0.9 * momentum[i] + gradient
        weight, bias = weight - 0.1 * momentum[0], bias - 0.1 * momentum[1]
    state = probe.state_dict()["probe"]
    torch.testing.assert_close(state["1.weight"], weight)
    torch.testing.assert_close(state["1.bias"], bias)
    assert [name for name, *_ in log.seen] == ["online_train_acc"] * 5
    assert [value for _, value, _ in log.seen] == pytest.approx(accuracies)
    assert accuracies[-1] > accuracies[0]


def test_learns_under_a_trainer(trainer_options):
    probe, knn = OnlineProbe(num_classes=CLASSES), OnlineKNN(k=5)
    trainer = pl.Trainer(max_epochs=3, callbacks=[probe, knn], **trainer_options)
    trainer.fit(Emitter(), batches(range(8)), batches([50, 51, 52]))
    assert trainer.callback_metrics["online_acc"] > 95
    assert trainer.callback_metrics["knn_acc"] > 95
    assert trainer.callback_metrics["online_train_acc"] > 95


def test_validation_is_the_share_of_all_labelled_images(trainer_options):
    """Batches of other sizes, some images without label, one batch without any."""
    sets = [clusters(size, seed=size, spread=2.0) for size in (5, 16, 9, 4)]
    sets[1][1][:7] = -1
    sets[3][1][:] = -1
    probe = OnlineProbe(num_classes=CLASSES)
    trainer = pl.Trainer(max_epochs=1, callbacks=[probe], **trainer_options)
    trainer.fit(Emitter(), batches(range(3)), DataLoader(sets, batch_size=None))
    features = torch.cat([x for x, _ in sets]) * trainer.lightning_module.weight.detach()
    label = torch.cat([y for _, y in sets])
    state = probe.state_dict()["probe"]
    unit = (features - state["0.running_mean"]) / (state["0.running_var"] + 1e-5).sqrt()
    right = (unit @ state["1.weight"].T + state["1.bias"]).argmax(1) == label
    expected = 100 * right[label >= 0].float().mean()
    assert 0 < expected < 100
    torch.testing.assert_close(trainer.callback_metrics["online_acc"], expected)


def test_an_image_that_comes_again_counts_once_and_those_of_another_loader_are_others():
    features, label = clusters(6)
    probe = probe_at()
    train(probe, *clusters(64, seed=1))
    assert validate(probe, (features, label)) == [("online_acc", 100, None)]
    label[4:] = (label[4:] + 1) % CLASSES  # two wrong of six
    index = torch.tensor([3, 9, 9, 9, 4, 4])  # images 3, 9 and 4
    wrong_thrice = validate(probe, (features, label, index))
    assert wrong_thrice == [("online_acc", pytest.approx(200 / 3), None)]
    both = validate(probe, (features, label, index), (features[:3], label[:3], index[:3]))
    assert both == [("online_acc", pytest.approx(400 / 5), None)]


def test_sanity_check_logs_nothing():
    assert validate(probe_at(), clusters(4)) == []


def moco_run(callbacks, options):
    """Two epochs of MoCo with dropout, which draws from the global generator at every step."""
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout())
    module = MoCoV2(trunk, queue_size=20, dim=4)
    draw = torch.Generator().manual_seed(1)
    data = [
        ((torch.rand(8, 3, 12, 12, generator=draw), torch.rand(8, 3, 12, 12, generator=draw)),
         torch.randint(CLASSES, (8,), generator=draw))
        for _ in range(4)
    ]  # fmt: skip
    loader = DataLoader(data, batch_size=None)
    trainer = pl.Trainer(max_epochs=2, callbacks=callbacks, **options)
    trainer.fit(module, loader, loader)
    optimizer = trainer.optimizers[0].state_dict()["state"]
    return module.state_dict(), optimizer, torch.get_rng_state()


def test_the_method_trains_bit_for_bit_as_without(trainer_options):
    alone = moco_run([], trainer_options)
    watched = moco_run([OnlineProbe(num_classes=CLASSES), OnlineKNN(k=3, size=10)], trainer_options)
    assert_same_state(watched, alone)


def test_features_with_a_graph_send_no_gradient_back():
    features, label = clusters(8)
    features.requires_grad_()
    train(probe_at(), features * 2, label)
    assert features.grad is None


def test_resume_goes_on_exactly(trainer_options, tmp_path):
    """Weights, momentum and bank of three epochs equal those of one, saved, and two more."""

    def run(epochs, ckpt_path=None):
        callbacks = [OnlineProbe(num_classes=CLASSES), OnlineKNN(k=5, size=40)]
        trainer = pl.Trainer(max_epochs=epochs, callbacks=callbacks, **trainer_options)
        loaders = batches(range(5)), batches([9])
        trainer.fit(Emitter(), *loaders, ckpt_path=ckpt_path, weights_only=True)
        return trainer, callbacks, loaders[1]

    straight, expected, _ = run(3)
    first, _, _ = run(1)
    first.save_checkpoint(tmp_path / "one.ckpt")
    resumed, callbacks, validation = run(3, tmp_path / "one.ckpt")
    for callback, other in zip(callbacks, expected, strict=True):
        assert_same_state(callback.state_dict(), other.state_dict())
    for name in ("online_acc", "knn_acc"):
        assert resumed.callback_metrics[name] == straight.callback_metrics[name]

    resumed.save_checkpoint(tmp_path / "three.ckpt")
    fresh = [OnlineProbe(num_classes=CLASSES), OnlineKNN(k=5, size=40)]
    [scores] = pl.Trainer(callbacks=fresh, **trainer_options).validate(
        Emitter(), validation, ckpt_path=tmp_path / "three.ckpt", verbose=False, weights_only=True
    )
    assert scores == {n: float(resumed.callback_metrics[n]) for n in ("online_acc", "knn_acc")}


def test_half_precision_features_are_read_as_fp32(trainer_options):
    features, label = clusters(16)
    half, full = probe_at(), probe_at()
    train(half, features.bfloat16(), label)
    train(full, features.bfloat16().float(), label)
    assert_same_state(half.state_dict(), full.state_dict())
    assert validate(half, (features.bfloat16(), label))[0][1] > 90

    callbacks = [OnlineProbe(num_classes=CLASSES), OnlineKNN(k=5)]
    options = trainer_options | {"precision": "bf16-mixed", "callbacks": callbacks}
    pl.Trainer(max_epochs=1, **options).fit(Emitter(), batches(range(2)), batches([3]))
    assert callbacks[0].state_dict()["probe"]["1.weight"].dtype == torch.float32


def test_images_without_label_are_left_out():
    features, label = clusters(12)
    some = label.clone()
    some[::3] = -1
    mixed, without, log = probe_at(), probe_at(), Log()
    train(mixed, features, some, log)
    train(without, features[some >= 0], some[some >= 0])
    assert_same_state(mixed.state_dict(), without.state_dict())
    assert log.seen[0][2] == 8

    before = mixed.state_dict()["probe"]["1.weight"].clone()
    train(mixed, features, torch.full_like(label, -1))
    one = torch.full_like(label, -1)
    one[0] = 0
    train(mixed, features, one)  # batch norm cannot take one image
    assert_same_state(mixed.state_dict()["probe"]["1.weight"], before)


def test_classes_come_from_the_data_module():
    trainer = SimpleNamespace(datamodule=SimpleNamespace(num_classes=7))
    probe = OnlineProbe()
    probe.setup(trainer, None, "fit")
    train(probe, *clusters(4))
    assert probe.state_dict()["probe"]["1.weight"].shape == (7, 8)
    own = OnlineProbe(num_classes=5)
    own.setup(trainer, None, "fit")
    train(own, *clusters(4))
    assert own.state_dict()["probe"]["1.weight"].shape == (5, 8)


def test_refusals():
    with pytest.raises(ValueError, match=r"Expected argument `lr` to be above 0, but got 0"):
        OnlineProbe(lr=0)
    with pytest.raises(ValueError, match=r"number of classes.*pass OnlineProbe\(num_classes=...\)"):
        OnlineProbe().setup(SimpleNamespace(datamodule=None), None, "fit")
    features, label = clusters(4)
    with pytest.raises(ValueError, match=r"below num_classes=3, but got 3: pass OnlineProbe"):
        train(probe_at(), features, torch.full_like(label, CLASSES))
    with pytest.raises(ValueError, match=r"Expected training_step .* got no `label`"):
        train(probe_at(), features, None)
    trained = probe_at()
    train(trained, features, label)
    with pytest.raises(ValueError, match=r"Expected validation_step .* got no `features`"):
        trained.on_validation_batch_end(None, Log(), None, None, 0)


def test_what_validation_moves_can_still_be_trained():
    """On resume the sanity check, in inference mode, is the first to see the real device."""
    online, neighbours = probe_at(), OnlineKNN(size=8)
    for callback in (online, neighbours):
        train(callback, *clusters(4))
    with torch.inference_mode():
        elsewhere = torch.empty(0, device="meta")
        module, optimizer = probe._moved(online._parts, elsewhere)
        bank = knn._moved(neighbours._bank, elsewhere)
    momentum = [state["momentum_buffer"] for state in optimizer.state.values()]
    moved = [*module.parameters(), *module.buffers(), *momentum, *bank.buffers()]
    assert len(moved) == 2 + 3 + 2 + 5
    for tensor in moved:
        assert tensor.is_meta
        assert not tensor.is_inference()


def rank_trains(rank, folder):
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    probe, knn = probe_at(), OnlineKNN(k=3, size=30)
    for step in range(3):
        features, label = clusters(10, seed=step)
        label[7:] = -1
        own = slice(0, 6) if rank == 0 else slice(6, 10)  # 6 labelled images, and 1
        train(probe, features[own], label[own])
        train(knn, features[own], label[own])
    torch.save([probe.state_dict(), knn.state_dict()], f"{folder}/{rank}.pt")
    dist.barrier()  # gloo of PyTorch 2.6 waits for ever where the other is gone
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_two_ranks_equal_one_batch_of_both(tmp_path):
    mp.start_processes(rank_trains, args=(str(tmp_path),), nprocs=2, start_method="fork")
    probe, knn = probe_at(), OnlineKNN(k=3, size=30)
    for step in range(3):
        features, label = clusters(10, seed=step)
        label[7:] = -1
        train(probe, features, label)
        train(knn, features, label)
    for rank in range(2):
        assert_same_state(
            torch.load(tmp_path / f"{rank}.pt", weights_only=True),
            [probe.state_dict(), knn.state_dict()],
        )
