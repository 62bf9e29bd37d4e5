"""What tasks ask of encoder and data: sound encoders pass and stay as they are, others are named."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from goodtransfer.encoders import OwnTrunk, build
from goodtransfer.transfer.checks import check_encoder, resolve_classes


def trunk(*modules):
    torch.manual_seed(0)
    return OwnTrunk(nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), *modules))


def ruined(name, value):
    """A ResNet with a weight of another value throughout."""
    torch.manual_seed(0)
    encoder = build("resnet10w8")
    encoder.get_parameter(name).data.fill_(value)
    return encoder


@pytest.mark.parametrize("name", ["resnet10w8", "torchvision:squeezenet1_1", "pixels16"])
def test_untrained_encoders_pass(name):
    encoder = build(name)
    seen = []
    encoder.register_forward_hook(lambda module, given, found: seen.append(sorted(found)))
    stages = tuple(encoder.strides)
    check_encoder(encoder, stages, "a task")
    assert seen == [sorted(stages)]


def test_nothing_of_the_encoder_changes():
    """Not weights, statistics, modes of single modules, gradients, nor the global generator."""
    encoder = build("resnet10w8").train()
    encoder.bn1.eval()  # a norm that its user has frozen
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    modes = [module.training for module in encoder.modules()]
    assert set(modes) == {True, False}
    state = torch.get_rng_state()
    check_encoder(encoder, (4, 5), "a task")
    assert [module.training for module in encoder.modules()] == modes
    assert all(torch.equal(value, before[n]) for n, value in encoder.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in encoder.parameters())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_encoders_in_other_precision_pass(dtype):
    encoder, seen = build("pixels16").to(dtype), []
    encoder.register_forward_hook(lambda module, given, found: seen.append(found[5].dtype))
    check_encoder(encoder, (5,), "a task")
    assert seen == [dtype]


def test_a_stage_that_is_not_there_is_named():
    encoder = trunk()
    with pytest.raises(ValueError, match=r"with stage 2, 5 for COCO, but Sequential has stage 5 and"
                       " lacks 2: take a ResNet"):  # fmt: skip
        check_encoder(encoder, (5, 2), "COCO")


@pytest.mark.parametrize(
    ("encoder", "stages", "sentence"),
    [
        (ruined("layer4.0.conv1.weight", float("nan")), (4, 5), "stage 5 are NaN or infinite"),
        (ruined("bn1.bias", float("inf")), (1,), "stage 1 are NaN or infinite"),
        (ruined("bn1.weight", 0.0), (2, 5), "stage 2 are the same for any image"),
        (trunk(nn.ReLU(), nn.Hardtanh(-2, -1)), (5,), "stage 5 are the same for any image"),
        (trunk(nn.Threshold(1e9, 0.0)), (5,), "stage 5 are the same for any image"),
    ],
)
def test_features_that_tell_nothing_are_refused(encoder, stages, sentence):
    with pytest.raises(ValueError, match=f"tell images apart for a task, but those of {sentence}: "
                       "check its weights"):  # fmt: skip
        check_encoder(encoder, stages, "a task")


def test_a_ruined_stage_that_is_not_asked_for_is_none_of_the_task_s():
    check_encoder(ruined("layer4.0.conv1.weight", float("nan")), (4,), "a task")


def test_the_number_of_classes_is_the_argument_s_or_the_data_module_s():
    data = SimpleNamespace(num_classes=20)
    assert resolve_classes(None, data, "Detection") == 20
    assert resolve_classes(20, data, "Detection") == 20
    assert resolve_classes(7, None, "Detection") == 7
    assert resolve_classes(7, SimpleNamespace(), "Detection") == 7
    with pytest.raises(ValueError, match=r"no data module to ask: pass Detection\(num_classes"):
        resolve_classes(None, None, "Detection")
    for number in (7, 21):
        with pytest.raises(
            ValueError, match=rf"module of {number} classes, .*SimpleNamespace has 20"
        ):
            resolve_classes(number, data, "Detection")
