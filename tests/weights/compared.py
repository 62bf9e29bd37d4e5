"""What the tests of weights share: networks that no initialisation gives, compared by all their maps."""

import pytest
import torch

from goodtransfer import load_encoder

STAGES = (2, 3, 4, 5)


def scrambled(network):
    """Weights and statistics that no initialisation gives, of maps that stay near one."""
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.ndim == 0:
                tensor.fill_(7)
            elif name.endswith("running_var"):
                tensor.uniform_(0.8, 1.2)
            elif tensor.ndim == 1:
                tensor.add_(torch.rand_like(tensor) / 10)
    return network.eval()


@torch.no_grad()
def maps(encoder):
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return encoder.eval()(images, stages=STAGES)


def assert_same_maps(one, other, atol=1e-5):
    expected, found = maps(one), maps(other)
    for stage in STAGES:
        torch.testing.assert_close(found[stage], expected[stage], rtol=0, atol=atol)


def refused(spec, read=load_encoder, **options):
    """The sentence of a ValueError, on one line."""
    with pytest.raises(ValueError, match=r"^Expected") as caught:
        read(spec, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)
