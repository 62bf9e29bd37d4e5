"""Every order of a batch that loaders of this world give."""

import numpy as np
import pytest
import torch

from goodtransfer.views import Batch, as_batch

V1, V2 = torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)
Y, INDEX = torch.tensor([3, 1]), torch.arange(2)


@pytest.mark.parametrize(
    ("given", "views", "label", "index"),
    [
        (Batch((V1, V2), Y, INDEX), (V1, V2), Y, INDEX),
        (Batch((V1,)), (V1,), None, None),
        (((V1, V2), Y, INDEX), (V1, V2), Y, INDEX),
        ([[V1, V2], Y], (V1, V2), Y, None),  # torchvision's ImageFolder, two-crop transform
        ([V1, Y], (V1,), Y, None),  # and with one view
        ([V1, Y, INDEX], (V1,), Y, INDEX),
        ([[V1], Y], (V1,), Y, None),
        ([[V1, V2], Y, ["a.png", "b.png"]], (V1, V2), Y, None),  # lightly
        ((V1, Y, ("a.png", "b.png")), (V1,), Y, None),
        ([V1, V2], (V1, V2), None, None),  # a bare pair
        ([[V1, V2]], (V1, V2), None, None),
        (([V1, V2], None, INDEX), (V1, V2), None, INDEX),
        ([V1], (V1,), None, None),  # a TensorDataset of images
        (V1, (V1,), None, None),
        ([[V1, V2, V1], Y], (V1, V2, V1), Y, None),
    ],
)
def test_is_read_as_a_batch(given, views, label, index):
    batch = as_batch(given)
    assert isinstance(batch.views, tuple)
    assert [id(v) for v in batch.views] == [id(v) for v in views]
    assert batch.label is label
    assert batch.index is index


@pytest.mark.parametrize(
    ("given", "named"),
    [({"image": V1, "label": Y}, "dict"), ([], "list"), (None, "NoneType"),
     (np.zeros((2, 3, 4, 4)), "ndarray")],
)  # fmt: skip
def test_anything_else_is_refused_by_name(given, named):
    with pytest.raises(ValueError, match=rf"\(\(view, ...\), label, index\).* but got {named}\."):
        as_batch(given)


def test_a_batch_survives_pinning_and_moving():
    """Lightning and the loader rebuild named tuples field by field; None must pass."""
    from pytorch_lightning.utilities import move_data_to_device

    moved = move_data_to_device(Batch((V1,), Y), torch.device("cpu"))
    assert isinstance(moved, Batch)
    assert torch.equal(moved.views[0], V1)
    assert moved.index is None


@pytest.mark.parametrize(
    "other", [torch.zeros(2, 40, dtype=torch.long), torch.rand(2), Y[:1], Y > 1]
)
def test_what_is_no_integer_for_each_image_is_no_label(other):
    """torchvision's CelebA gives 40 attributes an image."""
    for given in ([[V1, V2], other, other], Batch((V1, V2), other, other)):
        batch = as_batch(given)
        assert (batch.label, batch.index) == (None, None)
        with pytest.raises(
            ValueError, match=r"labels for MoCo, \(N,\) integers, but the loader gives"
        ):
            batch.labels_for("MoCo")


def test_labels_are_of_the_classes():
    batch = Batch((V1,), torch.tensor([-1, 3]))
    assert batch.labels_for("MoCo", 4) is batch.label
    for label, classes in ((batch.label, 3), (torch.tensor([-2, 0]), 3)):
        low, high = label.tolist()
        said = f"from 0 to {classes - 1}, or -1 for none, but a batch has {low} to {high}: .*MoCo"
        with pytest.raises(ValueError, match=said):
            Batch((V1,), label).labels_for("MoCo", classes)
