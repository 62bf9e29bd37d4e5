"""MAFLDataModule: landmarks stay on what they mark, against a literal computation; and its faults."""

import random
import shutil

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageOps

from goodtransfer.data.mafl import LANDMARKS, MAFLDataModule, MAFLDataset
from goodtransfer.data.toy_layouts import make_celeba

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255)]
HEADING = " ".join(f"{landmark}_{axis}" for landmark in LANDMARKS for axis in "xy")
POINTS = [(40, 80), (130, 95), (85, 120), (50, 160), (120, 150)]
OTHERS = [(60, 90), (110, 85), (70, 110), (66, 141), (101, 150)]


def write(root, faces, training=(), testing=()):
    """A tree of drawn faces: black, with five dots of 3 x 3 pixels around the landmarks."""
    (root / "img_align_celeba").mkdir(parents=True)
    (root / "MAFL").mkdir()
    lines = [str(len(faces)), HEADING]
    for name, points in faces.items():
        image = Image.new("RGB", (178, 218))
        for (x, y), colour in zip(points, COLOURS, strict=True):
            ImageDraw.Draw(image).rectangle((x - 1, y - 1, x + 1, y + 1), colour)
        image.save(root / "img_align_celeba" / name, format="PNG")  # exact; the content decides
        lines.append(f"{name}  " + " ".join(f"{x:3d} {y:3d}" for x, y in points))
    (root / "list_landmarks_align_celeba.txt").write_text("\n".join(lines) + "\n")
    for part, names in (("training", training or faces), ("testing", testing or faces)):
        (root / "MAFL" / f"{part}.txt").write_text("\n".join(names))  # no final line break
    return root


@pytest.fixture
def drawn(tmp_path):
    return write(tmp_path / "faces", {"1.jpg": POINTS, "2.jpg": OTHERS})


def dots(image):
    """Centre of each colour in a view, in continuous coordinates: x, y (5, 2)."""
    pixels = image.permute(1, 2, 0).double().numpy()
    strength = pixels.max(2)
    hue = pixels / np.maximum(strength, 1)[:, :, None] * 255
    rows, columns = np.mgrid[: pixels.shape[0], : pixels.shape[1]] + 0.5
    found = []
    for colour in COLOURS:
        weight = np.where(np.abs(hue - colour).max(2) < 60, strength, 0)
        found.append(
            [(weight * columns).sum() / weight.sum(), (weight * rows).sum() / weight.sum()]
        )
    return found


@pytest.mark.parametrize("size", [224, 178, 96, 300])
def test_landmarks_stay_on_their_dots(drawn, size):
    data = MAFLDataModule(drawn, size=size, batch_size=2, flip=0.0)
    for loader in (data.train_dataloader(), data.test_dataloader()):
        ((images, target),) = loader
        assert (images.dtype, images.shape) == (torch.uint8, (2, 3, size, size))
        assert (target["landmarks"].dtype, target["landmarks"].shape) == (torch.float32, (2, 5, 2))
        for image, landmarks in zip(images, target["landmarks"], strict=True):
            assert np.abs(np.array(dots(image)) - landmarks.numpy()).max() < 0.1


@pytest.mark.parametrize("size", [224, 96])
def test_a_flip_moves_the_dots_and_swaps_left_and_right(drawn, size):
    straight, flipped = (
        MAFLDataset(MAFLDataModule(drawn).faces("train"), size=size, flip=p) for p in (0.0, 1.0)
    )
    for number in range(2):
        (image, target), (before, unflipped) = flipped[0, number], straight[0, number]
        torch.testing.assert_close(image, before.flip(2))
        left_eye, right_eye, nose, left_mouth, right_mouth = dots(image)
        # What is drawn red, the left eye, is now on the right.
        expected = [right_eye, left_eye, nose, right_mouth, left_mouth]
        assert np.abs(np.array(expected) - target["landmarks"].numpy()).max() < 0.1
        for landmarks in (target["landmarks"], unflipped["landmarks"]):
            assert landmarks[0, 0] < landmarks[1, 0]
            assert landmarks[3, 0] < landmarks[4, 0]


def literal(root, name, size, flipped):
    """One face by PIL and plain arithmetic."""
    for line in (root / "list_landmarks_align_celeba.txt").read_text().splitlines()[2:]:
        if line.split()[0] == name:
            numbers = [int(word) for word in line.split()[1:]]
    with Image.open(root / "img_align_celeba" / name) as file:
        image = file.convert("RGB").crop((0, 30, 178, 208))
    image = image.resize((size, size), Image.Resampling.BILINEAR)
    points = []
    for n in range(5):
        x, y = numbers[2 * n], numbers[2 * n + 1]
        points.append([(x + 0.5) / 178 * size, (y + 0.5 - 30) / 178 * size])
    if flipped:
        image = ImageOps.mirror(image)
        points = [[size - x, y] for x, y in points]
        points[0], points[1] = points[1], points[0]
        points[3], points[4] = points[4], points[3]
    return np.asarray(image).transpose(2, 0, 1), points


def check(data, root, part, loader, epoch, flip):
    """Every face of a loader against `literal`; returns whether each was flipped."""
    names = (root / "MAFL" / f"{part}.txt").read_text().split()
    flips = {}
    for images, target in loader:
        for image, landmarks, number in zip(
            images, target["landmarks"], target["image_id"].tolist(), strict=True
        ):
            draw = random.Random(f"{data.seed}/{epoch}/{number}").random()
            flips[number] = draw < flip
            pixels, points = literal(root, names[number], data.size, flips[number])
            assert np.abs(image.numpy().astype(int) - pixels).max() <= 1
            np.testing.assert_allclose(landmarks.numpy(), points, atol=1e-4)
    assert sorted(flips) == list(range(len(names)))
    return flips


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make_celeba(tmp_path_factory.mktemp("toy") / "celeba", images=40, identities=10)


def test_every_face_against_a_literal_computation(toy):
    data = MAFLDataModule(toy, batch_size=4, drop_last=False, size=64, seed=3)
    data.setup("fit")
    loader, seen = data.train_dataloader(), []
    for epoch in (0, 1):
        loader.sampler.set_epoch(epoch)
        seen.append(check(data, toy, "training", loader, epoch, flip=0.5))
    assert seen[0] != seen[1]
    assert 0 < sum(seen[0].values()) < len(seen[0])
    for loader in (data.val_dataloader(), data.test_dataloader()):
        check(data, toy, "testing", loader, 0, flip=0.0)


def test_workers_change_nothing(toy):
    read = []
    for workers in (0, 2):
        data = MAFLDataModule(toy, batch_size=4, size=32, num_workers=workers)
        read.append(list(data.train_dataloader()))
    assert len(read[0]) == data.num_images // 4
    for (images, target), (others, other) in zip(*read, strict=True):
        assert torch.equal(images, others)
        assert all(torch.equal(target[key], other[key]) for key in ("landmarks", "image_id"))


def test_selection_is_a_seeded_share_of_training(toy):
    names = (toy / "MAFL" / "training.txt").read_text().split()
    chosen = []
    for seed in (0, 0, 1):
        data = MAFLDataModule(toy, selection=0.25, seed=seed, size=16, batch_size=4)
        parts = [
            [path.rpartition("/")[2] for path, _ in data.files(p)] for p in ("train", "selection")
        ]
        assert len(parts[1]) == round(0.25 * len(names))
        assert sorted(parts[0] + parts[1]) == sorted(names)
        assert data.num_images == len(parts[0])
        chosen.append(parts[1])
    assert chosen[0] == chosen[1] != chosen[2]
    validated = torch.cat([target["landmarks"] for _, target in data.val_dataloader()])
    expected = [literal(toy, name, 16, False)[1] for name in chosen[2]]
    torch.testing.assert_close(validated, torch.tensor(expected))
    assert sum(len(images) for images, _ in data.test_dataloader()) == len(data.files("test"))
    with pytest.raises(ValueError, match="faces of 'selection' in .* another `selection`"):
        MAFLDataModule(toy).files("selection")


def test_the_folders_of_the_official_download(drawn, tmp_path):
    root = tmp_path / "official"
    for folder, name in {
        "Anno": "list_landmarks_align_celeba.txt",
        "Img": "img_align_celeba",
    }.items():
        (root / folder).mkdir(parents=True)
        (root / folder / name).symlink_to(drawn / name)
    for part in ("training", "testing"):
        shutil.copy(drawn / "MAFL" / f"{part}.txt", root)
    data = MAFLDataModule(root)
    assert data.faces("train").landmarks.tolist() == [
        [list(p) for p in f] for f in (POINTS, OTHERS)
    ]
    assert data.files("test").path(1) == str(root / "Img" / "img_align_celeba" / "2.jpg")


def test_the_fingerprint_follows_the_landmarks(drawn):
    before = MAFLDataModule(drawn).fingerprint()
    assert MAFLDataModule(drawn, seed=1).fingerprint() == before
    source = drawn / "list_landmarks_align_celeba.txt"
    source.write_text(source.read_text().replace("130", "131"))
    assert MAFLDataModule(drawn).fingerprint() != before


# --- Faults


def row(points, name="2.jpg"):
    return f"{name} " + " ".join(f"{x} {y}" for x, y in points)


@pytest.mark.parametrize(
    "line",
    [
        row(OTHERS[:4]),
        row([*OTHERS, (5, 5)]),
        row(OTHERS).replace("60", "60.5"),
        row(OTHERS).replace("60", "x"),
        row([(178, 90), *OTHERS[1:]]),
        row([(-1, 90), *OTHERS[1:]]),
        row([*OTHERS[:4], (101, 218)]),
        row([*OTHERS[:4], (101, -2)]),
        "2.jpg",
    ],
)
def test_landmarks_that_cannot_be_used(drawn, line):
    source = drawn / "list_landmarks_align_celeba.txt"
    lines = source.read_text().splitlines()
    source.write_text("\n".join([*lines[:3], line]))
    with pytest.raises(ValueError) as error:
        MAFLDataModule(drawn).setup("test")
    assert str(error.value) == (
        f"Expected 10 whole numbers in line 4 of {source}, x from 0 to 177 and y from 0 to 217, but "
        f"found {line[6:]!r}: correct the line."
    )
    data = MAFLDataModule(drawn, on_error="skip", batch_size=1)
    data.setup("fit")
    for part in ("train", "test"):
        assert data.faces(part).landmarks.tolist() == [[list(point) for point in POINTS]]
        assert data.files(part).name(0) == "1.jpg"
    assert data.skipped == [str(error.value)] * 2  # once for each of MAFL's lists


def test_landmarks_at_the_border_are_inside(tmp_path):
    points = [(0, 0), (177, 0), (88, 100), (0, 217), (177, 217)]
    data = MAFLDataModule(write(tmp_path / "faces", {"1.jpg": points}), size=178, batch_size=1)
    ((_, target),) = data.test_dataloader()
    assert target["landmarks"].tolist() == [[[x + 0.5, y + 0.5 - 30] for x, y in points]]


def test_a_face_without_landmarks(drawn):
    (drawn / "MAFL" / "testing.txt").write_text("3.jpg\n1.jpg")
    shutil.copy(drawn / "img_align_celeba" / "1.jpg", drawn / "img_align_celeba" / "3.jpg")
    with pytest.raises(ValueError, match=r"landmarks of 3.jpg in .*list_landmarks.*no line begins"):
        MAFLDataModule(drawn).setup("test")
    data = MAFLDataModule(drawn, on_error="skip")
    assert [path.rpartition("/")[2] for path, _ in data.files("test")] == ["1.jpg"]


def test_a_listed_image_that_is_missing(drawn):
    lost = drawn / "img_align_celeba" / "1.jpg"
    lost.unlink()
    with pytest.raises(
        FileNotFoundError, match=f"image at {lost}, because MAFL's list training.txt"
    ):
        MAFLDataModule(drawn).setup("fit")
    data = MAFLDataModule(drawn, on_error="skip", batch_size=1)
    data.setup("fit")
    assert data.faces("train").landmarks.tolist() == [[list(point) for point in OTHERS]]
    assert len(data.skipped) == 2


def test_a_name_that_leads_elsewhere(drawn):
    (drawn / "MAFL" / "training.txt").write_text("1.jpg\n\n../faces/2.jpg")
    with pytest.raises(ValueError, match=r"Line 3: .*training.txt, but found '../faces/2.jpg'"):
        MAFLDataModule(drawn).setup("fit")
    assert MAFLDataModule(drawn, on_error="skip").num_images == 1


def test_an_unaligned_image(drawn):
    """Its size is known when it is read: with "skip", the next face takes its place."""
    path = drawn / "img_align_celeba" / "1.jpg"
    Image.new("RGB", (218, 178)).save(path)
    data = MAFLDataModule(drawn, batch_size=2)
    with pytest.raises(ValueError, match=f"178 x 218 pixels at {path}, but it is 218 x 178: its"):
        next(iter(data.test_dataloader()))
    data = MAFLDataModule(drawn, batch_size=2, on_error="skip", size=178)
    ((images, target),) = data.test_dataloader()
    assert target["image_id"].tolist() == [1, 1]
    assert torch.equal(images[0], images[1])
    assert target["landmarks"][0, 0].tolist() == [60.5, 60.5]
    assert data.skipped == [str(path)]


def test_another_heading(drawn):
    source = drawn / "list_landmarks_align_celeba.txt"
    source.write_text(source.read_text().replace("nose_x nose_y ", ""))
    with pytest.raises(
        ValueError, match=r"Expected line 2 of .* to be 'lefteye_x .*', but got 'lefte"
    ):
        MAFLDataModule(drawn).setup("fit")


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("MAFL", "MAFL/training.txt or training.txt in"),
        ("list_landmarks_align_celeba.txt", "list_landmarks_align_celeba.txt or Anno/list_land"),
        ("img_align_celeba", "img_align_celeba or Img/img_align_celeba in"),
    ],
)
def test_a_missing_list_or_folder(drawn, lost, message):
    (drawn / lost).rename(drawn / "elsewhere")
    with pytest.raises(FileNotFoundError, match=f"(?s)Expected {message}.*ROOT/img_align_celeba"):
        MAFLDataModule(drawn).setup("fit")


def test_fewer_faces_than_one_batch(drawn):
    with pytest.raises(ValueError, match="has 2 faces to train on for 1 x batch_size=128: lower"):
        MAFLDataModule(drawn).setup("fit")
    MAFLDataModule(drawn).setup("test")
    MAFLDataModule(drawn, drop_last=False).setup("fit")


def test_an_empty_list(drawn):
    (drawn / "MAFL" / "testing.txt").write_text("\n")
    with pytest.raises(ValueError, match="faces of 'test' in .* finds none there: complete"):
        MAFLDataModule(drawn).setup("fit")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "`batch_size` to be positive, but got 0"),
        ({"size": 0}, "`size` to be positive, but got 0"),
        ({"flip": 1.1}, r"`flip` in \[0, 1\] and `selection` in \[0, 1\), but got 1.1 and 0.0"),
        ({"selection": 1.0}, "but got 0.5 and 1.0"),
        ({"on_error": "ignore"}, "'raise' or 'skip', but got 'ignore'"),
    ],
)
def test_impossible_arguments(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        MAFLDataModule(tmp_path, **arguments)


# --- Real faces in CelebA's layout, and the real lists


@pytest.mark.data
def test_real_faces(shared):
    root = shared / "data" / "celeba_layout_faces"
    data = MAFLDataModule(root, size=96, batch_size=64)
    data.setup("fit")
    assert (data.num_images, len(data.files("test"))) == (969, 231)
    check(data, root, "testing", data.test_dataloader(), 0, flip=0.0)
    landmarks = data.faces("train").landmarks
    assert (landmarks[:, 0, 0] < landmarks[:, 1, 0]).all()  # left is left in the image
    images, target = next(iter(data.train_dataloader()))
    assert images.shape == (64, 3, 96, 96)
    assert ((target["landmarks"] > 0) & (target["landmarks"] < 96)).all()
    assert (target["landmarks"][:, 0, 0] < target["landmarks"][:, 1, 0]).all()


@pytest.mark.data
def test_the_published_lists(shared, tmp_path):
    """Without landmarks, which are not there; then with made-up ones, and without images."""
    for path in (shared / "data" / "celeba_lists").iterdir():
        (tmp_path / path.name).symlink_to(path)
    with pytest.raises(FileNotFoundError, match="Expected list_landmarks_align_celeba.txt or Anno"):
        MAFLDataModule(tmp_path).setup("fit")
    names = [f"{number:06d}.jpg" for number in range(1, 202_600)]
    lines = [str(len(names)), HEADING, *(row(POINTS, name) for name in names)]
    (tmp_path / "list_landmarks_align_celeba.txt").write_text("\n".join(lines))
    (tmp_path / "img_align_celeba").mkdir()
    for name in (tmp_path / "MAFL" / "testing.txt").read_text().split():
        (tmp_path / "img_align_celeba" / name).touch()
    data = MAFLDataModule(tmp_path)
    assert len(data.files("test")) == data.expected["test"] == 1_000
    assert data.expected["train"] == len((tmp_path / "MAFL" / "training.txt").read_text().split())
    with pytest.raises(FileNotFoundError, match=f"image at {tmp_path}/img_align_celeba/142977.jpg"):
        data.setup("fit")
