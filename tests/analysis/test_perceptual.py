"""LPIPS against its documented values and a literal loop; PSNR, SSIM, win rates by hand."""

import math
import urllib.error

import pytest
import torch
from torchvision.models import squeezenet1_1

from goodtransfer.analysis.perceptual import LPIPS, as_float, scores, win_rate


@pytest.fixture(scope="module")
def lpips(shared):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(shared / "weights" / "torch_home"))
        return LPIPS()


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(42)
    return [torch.rand(2, 3, 100, 100, generator=generator) for _ in range(2)]


@pytest.mark.data
def test_the_documented_values_of_torchmetrics(lpips, pair):
    """Its documentation draws the same images and takes them to [-1, 1]."""
    found = lpips(*pair)
    assert found.calibrated.tolist() == pytest.approx([0.1024, 0.0938], abs=5e-5)


def literal(images, others, features, weights=None):
    """Sum over taps of the mean over positions of the sum over channels, one after the other."""
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)
    found = []
    for pair in zip(images, others, strict=True):
        x, y = ((2 * image - 1 - shift) / scale for image in pair)
        x, y, total = x[None], y[None], 0.0
        for number, module in enumerate(features):
            x, y = module(x), module(y)
            if number in (1, 4, 7, 9, 10, 11, 12):
                unit = [v / (1e-8 + v.square().sum(1, keepdim=True)).sqrt() for v in (x, y)]
                squares = (unit[0] - unit[1]).square()
                total += float(squares.sum(1).mean())
        found.append(total)
    return found


@pytest.mark.data
def test_uncalibrated_is_a_plain_sum(lpips, pair, shared):
    from safetensors.torch import load_file

    network = squeezenet1_1().eval()
    path = shared / "weights" / "squeezenet1_1_torchvision_features.safetensors"
    network.load_state_dict(load_file(path), strict=False)
    for module in network.features:
        module.inplace = False
    with torch.no_grad():
        expected = literal(*pair, network.features)
    found = lpips(*pair)
    torch.testing.assert_close(found.uncalibrated, torch.tensor(expected), rtol=1e-4, atol=1e-4)
    assert (found.uncalibrated > 5 * found.calibrated).all()


@pytest.mark.data
def test_distances_of_a_pair(lpips, pair):
    one, other = (x[:1] for x in pair)
    for found in (lpips(one, one), lpips(other, other)):
        assert (float(found.calibrated), float(found.uncalibrated)) == (0, 0)
    there, back = lpips(one, other), lpips(other, one)
    torch.testing.assert_close(there, back)
    near = lpips(one, (one + 0.1 * (other - one)).clamp(0, 1))
    assert near.calibrated < there.calibrated
    assert near.uncalibrated < there.uncalibrated
    found = scores(one[0], other[0], lpips)
    assert found["lpips"] == pytest.approx(float(there.calibrated))
    assert found["lpips_uncalibrated"] == pytest.approx(float(there.uncalibrated))


@pytest.mark.data
def test_uint8_is_read_as_a_share(lpips, pair):
    pixels = [(255 * x).byte() for x in pair]
    torch.testing.assert_close(lpips(*pixels), lpips(*(x.float() / 255 for x in pixels)))


def test_without_weights_it_says_where_they_go(monkeypatch, tmp_path):
    def refuse(*_args, **_options):
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(FileNotFoundError, match="no network") as caught:
        LPIPS()
    assert f"{tmp_path}/hub/checkpoints" in str(caught.value)
    assert "set TORCH_HOME" in str(caught.value)


def test_psnr_and_ssim_by_hand():
    original = torch.full((3, 70, 70), 100, dtype=torch.uint8)
    found = scores(original + 51, original, None)  # a fifth of the range apart everywhere
    assert found["psnr"] == pytest.approx(10 * math.log10(25), rel=1e-5)
    # Without variance SSIM is the comparison of means.
    x, y, c = 100 / 255, 151 / 255, 0.01**2
    assert found["ssim"] == pytest.approx((2 * x * y + c) / (x * x + y * y + c), rel=1e-4)
    assert set(found) == {"psnr", "ssim"}
    assert scores(original, original, None)["ssim"] == pytest.approx(1)


def test_as_float():
    assert as_float(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == pytest.approx(
        [0, 0.2, 1]
    )
    half = torch.tensor([0.5])
    assert as_float(half) is half


def test_win_rate_by_hand():
    """7 of 10: Wilson's interval as textbooks have it, .397 to .892."""
    found = win_rate([1.0] * 7 + [3.0] * 3, [2.0] * 10)
    assert found.rate == 0.7
    assert (found.low, found.high) == pytest.approx((0.3968, 0.8922), abs=1e-4)
    assert found.images == 10
    none, every = win_rate([2.0] * 20, [1.0] * 20), win_rate([1.0] * 20, [2.0] * 20)
    assert (none.rate, none.low, none.high) == pytest.approx((0, 0, 0.1611), abs=1e-4)
    assert (every.rate, every.low, every.high) == pytest.approx((1, 0.8389, 1), abs=1e-4)
    assert win_rate([1.0, 2.0, 5.0], [1.0, 3.0, 4.0]).rate == 0.5  # a tie is half a win


@pytest.mark.parametrize(("a", "b"), [([], []), ([1.0], [1.0, 2.0])])
def test_a_distance_of_each(a, b):
    with pytest.raises(ValueError, match=f"for A and for B, but got {len(a)} and {len(b)}"):
        win_rate(a, b)
