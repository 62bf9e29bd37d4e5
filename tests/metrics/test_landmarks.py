"""The error of landmarks against a literal loop and hand-made numbers, and every image once."""

import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.utils.data import DistributedSampler

from goodtransfer.metrics.landmarks import LandmarkError, inter_ocular_error, mean_shape


def literal(predicted, true, left, right):
    """Percent of the distance between two true points, one face after the other."""
    errors = []
    for points, there in zip(predicted.tolist(), true.tolist(), strict=True):
        apart = math.dist(there[left], there[right])
        distances = [math.dist(p, t) for p, t in zip(points, there, strict=True)]
        errors.append(100 * sum(distances) / len(distances) / apart)
    return errors


def faces(count=7, points=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    true = 100 * torch.rand(count, points, 2, generator=generator)
    return true + 5 * torch.randn(true.shape, generator=generator), true


@pytest.mark.parametrize(("points", "eyes"), [(5, (0, 1)), (7, (4, 2)), (2, (1, 0))])
def test_equals_a_loop(points, eyes):
    predicted, true = faces(50, points)
    expected = literal(predicted, true, *eyes)
    found = inter_ocular_error(predicted, true, eyes)
    torch.testing.assert_close(found, torch.tensor(expected))
    metric = LandmarkError(eyes)
    for rows in torch.arange(50).split(8):
        metric.update(predicted[rows], true[rows], rows)
    assert float(metric.compute()) == pytest.approx(sum(expected) / 50)


def test_by_hand():
    """Eyes 40 apart. One face is off by 4 at each point, one at the nose alone, by 3 and 4."""
    true = torch.tensor([[70.0, 110], [110, 110], [90, 140], [73, 152], [108, 152]]).repeat(2, 1, 1)
    predicted = true.clone()
    predicted[0, :, 1] += 4
    predicted[1, 2] += torch.tensor([3.0, -4.0])
    assert inter_ocular_error(predicted, true).tolist() == pytest.approx([10, 2.5])
    # The predicted eyes, however near each other, are no unit.
    predicted[1] = 90
    assert inter_ocular_error(predicted, true)[1] > 50


def test_the_size_and_place_of_the_image_do_not_matter():
    predicted, true = faces()
    moved = (224 / 178 * (x - torch.tensor([0.0, 30.0])) for x in (predicted, true))
    torch.testing.assert_close(inter_ocular_error(*moved), inter_ocular_error(predicted, true))


def test_the_mean_shape_is_the_mean_of_each_coordinate():
    _, true = faces()
    expected = [
        [sum(face[k][axis] for face in true.tolist()) / len(true) for axis in (0, 1)]
        for k in range(5)
    ]
    torch.testing.assert_close(mean_shape(true), torch.tensor(expected))


def test_an_image_seen_again_counts_once_and_its_first_time():
    predicted, true = faces()
    expected = literal(predicted, true, 0, 1)
    metric = LandmarkError()
    numbers = torch.tensor([40, 7, 3, 99, 0, 12, 5])
    metric.update(predicted[:4], true[:4], numbers[:4])
    metric.update(predicted, true, numbers)
    metric.update(predicted[:2] + 50, true[:2], [40, 7])
    assert float(metric.compute()) == pytest.approx(sum(expected) / 7)


def test_half_precision_is_read_as_fp32():
    predicted, true = faces()
    metric, half, rounded = LandmarkError(), predicted.bfloat16(), true.bfloat16()
    metric.update(half, rounded, range(7))
    expected = literal(half.float(), rounded.float(), 0, 1)
    assert float(metric.compute()) == pytest.approx(sum(expected) / 7)


def deal(rank, folder):
    """A padded sampler over 7 images; then one rank has them all, and the other none; then nobody."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    predicted, true = faces()
    padded = list(DistributedSampler(range(7), num_replicas=2, rank=rank, shuffle=False))
    found = []
    for rows in (padded, [*range(7)] if rank else []):
        metric = LandmarkError()
        for row in rows:
            metric.update(predicted[row : row + 1], true[row : row + 1], [row])
        found.append(float(metric.compute()))
    try:
        LandmarkError().compute()
    except RuntimeError as error:
        torch.save((padded, found, str(error)), f"{folder}/{rank}.pt")
    dist.barrier()  # gloo of PyTorch 2.6 waits for ever where the other is gone
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric .* was called before")
def test_two_ranks_count_every_image_once(tmp_path):
    mp.start_processes(deal, args=(str(tmp_path),), nprocs=2, start_method="fork")
    expected = literal(*faces(), 0, 1)
    seen = []
    for rank in range(2):
        padded, found, sentence = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found == pytest.approx([sum(expected) / 7] * 2)
        assert "no rank has seen any" in sentence
        seen += padded
    assert sorted(seen) == [0, 0, 1, 2, 3, 4, 5, 6]


def test_refusals():
    predicted, true = faces(3)
    coincide = true.clone()
    coincide[1, 1] = coincide[1, 0] = torch.tensor([40.5, 61.5])
    with pytest.raises(ValueError, match=r"points 0 and 1 of face 1 of 3 are \[40.5, 61.5\] and"):
        inter_ocular_error(predicted, coincide)
    assert inter_ocular_error(predicted, coincide, (0, 2)).isfinite().all()
    coincide[1, 1, 0] = float("nan")
    with pytest.raises(ValueError, match=r"of face 1 of 3 are .* and \[nan, 61.5\]"):
        inter_ocular_error(predicted, coincide)
    for one, other in ((predicted[:2], true), (predicted[..., :1], true[..., :1]), (true[0],) * 2):
        with pytest.raises(ValueError, match=r"true points \(N, K, 2\), but got \("):
            inter_ocular_error(one, other)
    with pytest.raises(ValueError, match=r"a number for each of 3 faces, but got \(2,\)"):
        LandmarkError().update(predicted, true, [0, 1])
    with (
        pytest.warns(UserWarning, match="before the ``update``"),
        pytest.raises(RuntimeError, match="Expected images to evaluate.*call `update` first"),
    ):
        LandmarkError().compute()
