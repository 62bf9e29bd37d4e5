"""LARS against the official rule in numpy, tensor by tensor; its groups, its warm-up, its resume."""

import math

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from goodtransfer.optim import LARS, lars, lars_groups, warmup_cosine


class LiteralLARS:
    """google-research/simclr, lars_optimizer.py, ``classic_momentum``: one variable at a time."""

    def __init__(self, weight, *, momentum, weight_decay, adapt, trust):
        self.w, self.v = weight.copy(), np.zeros_like(weight)
        self.momentum, self.weight_decay = momentum, weight_decay
        self.adapt, self.trust = adapt, trust

    def step(self, grad, lr):
        grad = grad + self.weight_decay * self.w
        trust_ratio = 1.0
        if self.adapt:
            w_norm, g_norm = math.sqrt((self.w**2).sum()), math.sqrt((grad**2).sum())
            if w_norm > 0 and g_norm > 0:
                trust_ratio = self.trust * w_norm / g_norm
        self.v = self.momentum * self.v + lr * trust_ratio * grad
        self.w = self.w - self.v


SHAPES = {
    "conv": (4, 3, 3, 3),
    "linear": (5, 7),
    "zero": (3, 3),
    "no gradient": (2, 2),
    "bias": (7,),
}


def parameters():
    """One of each kind: also one that starts at zero."""
    generator = torch.Generator().manual_seed(0)
    made = {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in SHAPES.items()}
    made["zero"].zero_()
    return {name: nn.Parameter(value) for name, value in made.items()}


def gradients(step):
    """Those of ``no gradient`` and of step 2 are zero, without weight decay too."""
    generator = torch.Generator().manual_seed(100 + step)
    made = {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in SHAPES.items()}
    made["no gradient"].zero_()
    return made if step != 2 else {name: 0 * value for name, value in made.items()}


def run(given, optimizer, steps, lr=lambda step: 0.3 * (step + 1)):
    for step in steps:
        for name, grad in gradients(step).items():
            given[name].grad = grad
        for group in optimizer.param_groups:
            group["lr"] = lr(step)  # a schedule: what v holds keeps the rate it came with
        optimizer.step()


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("trust", [0.001, 0.5])
def test_equals_the_official_rule_over_steps(weight_decay, trust):
    given = parameters()
    literal = {
        name: LiteralLARS(
            value.detach().numpy(),
            momentum=0.9,
            weight_decay=weight_decay if name != "bias" else 0.0,
            adapt=name != "bias",
            trust=trust,
        )
        for name, value in given.items()
    }
    optimizer = LARS(lars_groups(given.values(), weight_decay), lr=1.0, trust=trust)
    for step in range(5):
        run(given, optimizer, [step])
        for name, grad in gradients(step).items():
            literal[name].step(grad.numpy(), 0.3 * (step + 1))
            torch.testing.assert_close(
                given[name].detach(), torch.from_numpy(literal[name].w), rtol=1e-12, atol=1e-14
            )
    start = parameters()
    assert torch.equal(given["no gradient"], start["no gradient"]) == (weight_decay == 0)
    assert given["zero"].abs().max() > 0.1  # its first step is one of plain SGD


def test_an_adapted_tensor_moves_by_a_share_of_its_length_whatever_the_gradient_s():
    for scale in (1e-6, 1.0, 1e6):
        (weight,) = given = [nn.Parameter(torch.full((4, 4), 2.0))]  # of length 8
        weight.grad = scale * torch.ones(4, 4)
        LARS(given, lr=0.5, trust=0.01).step()
        assert (weight - 2.0).norm().item() == pytest.approx(0.5 * 0.01 * 8, rel=1e-4)


def test_groups_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    model[0].bias.requires_grad_(False)
    weights, vectors = lars_groups(model.parameters(), 1e-6)
    assert {id(p) for p in weights["params"]} == {id(model[0].weight), id(model[3].weight)}
    norm = {id(model[1].weight), id(model[1].bias), id(model[3].bias)}
    assert {id(p) for p in vectors["params"]} == norm
    assert (weights["weight_decay"], vectors["weight_decay"]) == (1e-6, 0.0)
    plain, adapted = LARS([vectors], lr=1.0), LARS([weights], lr=1.0)
    assert not plain.param_groups[0]["adapt"]
    assert adapted.param_groups[0]["adapt"]
    assert adapted.param_groups[0]["momentum"] == 0.9


def test_a_resume_goes_on_to_the_bit(tmp_path):
    straight = parameters()
    run(straight, LARS(lars_groups(straight.values(), 0.1), lr=1.0), range(4))
    half = parameters()
    optimizer = LARS(lars_groups(half.values(), 0.1), lr=1.0)
    run(half, optimizer, range(2))
    torch.save([half, optimizer.state_dict()], tmp_path / "half.pt")
    weights, saved = torch.load(tmp_path / "half.pt", weights_only=True)
    resumed = {name: nn.Parameter(value) for name, value in weights.items()}
    optimizer = LARS(lars_groups(resumed.values(), 0.7), lr=9.0)
    optimizer.load_state_dict(saved)
    run(resumed, optimizer, range(2, 4))
    for name, value in straight.items():
        assert torch.equal(value, resumed[name]), name


def test_tensors_without_gradient_stay_and_a_closure_has_one():
    weight, other = (nn.Parameter(torch.ones(2, 2)) for _ in range(2))
    optimizer = LARS([weight, other], lr=1.0)

    def closure():
        loss = weight.sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 4
    assert torch.equal(other, torch.ones(2, 2))
    assert other not in optimizer.state
    torch.testing.assert_close(weight.detach(), torch.full((2, 2), 1 - 0.001))


def test_warm_up_and_cosine_by_hand():
    factors = [warmup_cosine(i, 8, 4) for i in range(9)]
    half = math.sqrt(0.5)
    expected = [0, 0.25, 0.5, 0.75, 1, (1 + half) / 2, 0.5, (1 - half) / 2, 0]
    assert factors == pytest.approx(expected, abs=1e-15)
    assert warmup_cosine(0, 8, 0) == 1


class Fit(pl.LightningModule):
    """Keeps the learning rate of every step."""

    def __init__(self, **options):
        super().__init__()
        self.linear, self.options, self.rates = nn.Linear(2, 1), options, []

    def training_step(self, batch, batch_idx):
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        return self.linear(batch).sum()

    def configure_optimizers(self):
        options = {"lr": 0.3, "weight_decay": 0.0, "warmup_epochs": 1, **self.options}
        return lars(self.parameters(), self.trainer, **options)


def fit(trainer_options, batches=None, options=None, **trainer):
    module = Fit(**options or {})
    batches = DataLoader(torch.rand(10, 2), batch_size=2) if batches is None else batches
    trainer = pl.Trainer(**{"max_epochs": 3, **trainer_options, **trainer})
    trainer.fit(module, batches)
    return module.rates


@pytest.mark.parametrize(("accumulate", "each"), [(1, 5), (2, 3)])
def test_the_schedule_counts_steps(accumulate, each, trainer_options):
    """Five batches an epoch; two by two they are three steps, the last one of one batch."""
    rates = fit(trainer_options, accumulate_grad_batches=accumulate)
    assert rates == pytest.approx([0.3 * warmup_cosine(i, 3 * each, each) for i in range(3 * each)])
    assert rates[each] == 0.3
    cut = fit(trainer_options, accumulate_grad_batches=accumulate, max_steps=4)
    assert cut == rates[:4]  # ended earlier, the schedule stays


def test_a_schedule_that_cannot_be_made(trainer_options):
    for warmup_epochs in (-1, 3, 10):
        with pytest.raises(ValueError, match=f"below the 3 of Trainer.*but got {warmup_epochs}"):
            fit(trainer_options, options={"warmup_epochs": warmup_epochs})
    with pytest.raises(ValueError, match=r"Expected Trainer\(max_epochs=...\) of at least 1"):
        fit(trainer_options, max_epochs=-1, max_steps=2)

    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(torch.rand(10, 2))

    endless = DataLoader(Endless(), batch_size=2)
    with pytest.raises(ValueError, match="loader with a length.*limit_train_batches"):
        fit(trainer_options, endless)
    assert len(fit(trainer_options, endless, limit_train_batches=4)) == 12
