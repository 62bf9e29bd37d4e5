"""BN in groups against a loop over the groups, and the one-device shuffle."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from goodtransfer.distributed import (
    bn_groups,
    encode_shuffled,
    gather,
    permutation,
    split_batch_norm,
)
from goodtransfer.encoders import build, pooled


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
@pytest.mark.parametrize("dims", [(), (5,), (4, 4)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_groups_equal_a_loop_over_them(groups, dims, channels_last):
    kind = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d}[len(dims)]
    bn = kind(3).double()
    with torch.no_grad():
        bn.weight.uniform_(0.5, 2)
        bn.bias.normal_()
    x = torch.randn(12, 3, *dims, dtype=torch.float64) * 3 + 1
    if channels_last and len(dims) == 2:
        x = x.to(memory_format=torch.channels_last)
    x.requires_grad_()
    literal, parts, means, variances = deepcopy(bn), [None] * 12, [], []
    for g in range(groups):
        part = deepcopy(bn)
        for n, row in zip(range(g, 12, groups), part(x[g::groups]), strict=True):
            parts[n] = row
        means.append(part.running_mean)
        variances.append(part.running_var)
    literal.running_mean = torch.stack(means).mean(0)
    literal.running_var = torch.stack(variances).mean(0)
    expected = torch.stack(parts)
    with split_batch_norm(groups):
        got = bn(x)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(bn.running_mean, literal.running_mean)
    torch.testing.assert_close(bn.running_var, literal.running_var)
    assert int(bn.num_batches_tracked) == 1
    upstream = torch.randn_like(x)
    (a,) = torch.autograd.grad(got, x, upstream)
    (b,) = torch.autograd.grad(expected, x, upstream)
    torch.testing.assert_close(a, b)


def test_evaluation_and_the_world_outside_are_untouched():
    bn = nn.BatchNorm2d(3)
    x = torch.randn(4, 3, 2, 2)
    plain = deepcopy(bn)(x)
    with split_batch_norm(2):
        grouped = deepcopy(bn)(x)
        evaluated = deepcopy(bn).eval()(x)
    assert not torch.allclose(plain, grouped)
    assert torch.equal(evaluated, deepcopy(bn).eval()(x))
    assert torch.equal(deepcopy(bn)(x), plain)


@pytest.mark.parametrize("name", ["resnet10w32", "timm:tf_efficientnet_lite0"])
def test_covers_the_batch_norms_of_other_libraries(name):
    """Images of one group do not see those of the other, whatever the network."""
    encoder = build(name).double().train()
    x = torch.rand(4, 3, 32, 32, dtype=torch.float64)
    changed = x.clone()
    changed[1::2] = 1 - changed[1::2]
    with torch.no_grad(), split_batch_norm(2):
        a, b = (pooled(deepcopy(encoder), images) for images in (x, changed))
    torch.testing.assert_close(a[0::2], b[0::2])
    assert not torch.allclose(a[1::2], b[1::2])


@pytest.mark.parametrize(
    ("batch", "setting", "groups"),
    [(256, "auto", 8), (64, "auto", 2), (32, "auto", 2), (4, "auto", 2),
     (62, "auto", 2), (63, "auto", 3), (35, "auto", 5), (96, "auto", 3),
     (66, 4, 3), (64, 1, 1), (12, 100, 12), (35, 2, 5)],
)  # fmt: skip
def test_group_count(batch, setting, groups):
    assert bn_groups(batch, setting) == groups


def test_gather_on_one_device_is_the_tensor_itself():
    x = torch.randn(3, 2)
    rows, sizes = gather(x)
    assert rows is x
    assert sizes == [3]


def test_shuffle_restores_the_order_and_hands_over_another():
    seen = []

    def encode(images):
        seen.append(images)
        return images * 2

    images = torch.arange(10.0).unsqueeze(1)
    state = torch.get_rng_state()
    keys, own = encode_shuffled(encode, images, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(keys[own], images * 2)
    assert torch.equal(seen[0], images[permutation(10, 5)])
    assert not torch.equal(seen[0], images)
    assert not torch.equal(permutation(10, 5), permutation(10, 6))


def test_a_compiled_encoder_has_groups_too():
    """Backend "eager" traces as any other would, without a compiler."""
    encoder = build("resnet10w8").train()
    compiled = deepcopy(encoder)
    compiled.compile(backend="eager")
    x = torch.rand(8, 3, 32, 32)
    for groups in (2, 4, 1):
        with split_batch_norm(groups):
            torch.testing.assert_close(pooled(compiled, x), pooled(encoder, x))
    for name, value in encoder.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[name], value)


@pytest.mark.parametrize("batch", [2, 61])
def test_a_batch_that_cannot_be_split_warns(batch):
    with pytest.warns(UserWarning, match=f"{batch} images cannot be split.*use an even batch_size"):
        assert bn_groups(batch) == 1
