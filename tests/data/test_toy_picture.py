import math
from dataclasses import replace

import numpy as np
import pytest

from goodtransfer.data import toy, toy_coco, toy_faces, toy_layouts, toy_places, toy_streets
from goodtransfer.data.toy_picture import box, draw
from goodtransfer.data.toy_places import PLACES

# Told here once more, by hand: Cityscapes' labelIds.
LABEL_IDS = {"disc": 26, "square": 28, "triangle": 24, "star": 33, "cross": 32}
SKY, VEGETATION, BUILDING, ROAD, TERRAIN = 23, 21, 11, 7, 22


def test_these_are_the_pictures_of_version_1():
    """Other pixels need another VERSION, so that folders of the older world are refused."""
    pictures = [
        toy_layouts.place_picture(0, "train", 5),
        toy_layouts.face_picture(0, 10, 3),
        toy_coco.coco_picture(0, "val", 3),
        toy_streets.sequence_picture(0, 3, 2, "Stereo_Right"),
        toy_streets.rand_picture(0, 1),
        toy_streets.city_picture(0, "train", 3),
    ]
    sums = [int(draw(what, 32).pixels.sum()) for what in pictures]
    assert sums == pytest.approx(
        [455690, 468854, 313126, 347749, 501224, 840290], abs=50
    )  # of rounding


# --- Maps, masks and boxes


def covers(what, size):
    """Share of every pixel that each instance covers, from the objects' own masks."""

    def wide(thing):
        moved = [(thing.centre[0] - left, thing.centre[1]) for left in range(what.wide)]
        return np.hstack([toy.mask(replace(thing, centre=centre), size) for centre in moved])

    groups = [[thing] for thing in what.objects] + ([what.crowd] if what.crowd else [])
    return [(sum(wide(thing) for thing in group), group[0]) for group in groups]


def behind(place, size, wide):
    """LabelIds of the place, a pixel at a time."""
    skyline, ground = PLACES[place.label].split("-")
    far = {"flat": SKY, "hills": VEGETATION, "towers": BUILDING}[skyline]
    labels = np.empty((size, wide * size), dtype=int)
    for column in range(wide * size):
        along = ((column + 0.5) / size + place.left) / place.step
        low, high = (place.heights[(int(along) + i) % len(place.heights)] for i in (0, 1))
        share = (1 - math.cos(math.pi * (along % 1))) / 2 if skyline == "hills" else 0
        top = low * (1 - share) + high * share
        for row in range(size):
            y = (row + 0.5) / size
            is_ground, is_far = y > place.horizon, y > place.horizon - top
            labels[row, column] = far if is_far else SKY
            if is_ground:
                labels[row, column] = {"plain": ROAD, "striped": TERRAIN}[ground]
    return labels


PICTURES = [toy_coco.coco_picture(1, "train", index) for index in range(12)] + [
    toy_streets.city_picture(1, "val", index) for index in range(12)
]


def test_maps_agree_with_the_description():
    for what in PICTURES:
        drawing = draw(what, 48)
        labels = behind(what.place, 48, what.wide)
        numbers = np.zeros_like(labels)
        for number, (covered, thing) in enumerate(covers(what, 48), start=1):
            numbers[covered >= 0.5] = number
            labels[covered >= 0.5] = LABEL_IDS[thing.shape]
        assert (drawing.instances == numbers).all()
        assert np.mean(drawing.classes == labels) > 0.9995  # but for a border through a middle
        assert drawing.pixels.shape == (48, 48 * what.wide, 3)


def test_boxes_are_tight():
    for what in PICTURES:
        drawing = draw(what, 48)
        for number, covered in enumerate(drawing.masks, start=1):
            seen = np.argwhere(drawing.instances == number)
            y1, x1 = seen.min(0)
            y2, x2 = seen.max(0) + 1
            assert box(covered) == (x1, y1, x2, y2)


def test_objects_do_not_overlap_and_pictures_are_varied():
    for what in PICTURES:
        shares = [covered > 0 for covered, _ in covers(what, 48)]
        assert np.max(np.sum(shares, axis=0)) <= 1
        assert what.crowd == () or (len(what.crowd) > 2 and len({o.label for o in what.crowd}) == 1)
    assert {len(what.objects) for what in PICTURES} >= {0, 1, 2, 3, 4, 5}
    assert {bool(what.crowd) for what in PICTURES} == {True, False}
    assert {what.place.label for what in PICTURES} == set(range(6))


def test_a_wide_picture_goes_on_beyond_its_middle():
    for what in PICTURES[12:]:
        left, right = (draw(what, 64).pixels[:, column].astype(int) for column in (63, 64))
        apart = draw(what, 64).pixels[:, 127].astype(int)
        assert np.abs(left - right).mean() < np.abs(left - apart).mean()
        middle = replace(what.shifted(-0.5, -0.5), wide=1)
        assert (draw(middle, 64).classes == draw(what, 64).classes[:, 32:96]).mean() > 0.999


# --- Colour tells nothing, structure does


def mean_colour(images):
    return images.reshape(len(images), -1, 3).mean(1) / 255


def tint_histogram(images, bins=6):
    """Shares of the differences of red and blue to green: colour without brightness."""
    channels = images.reshape(len(images), -1, 3).astype(np.int64)
    tint = channels[..., [0, 2]] - channels[..., [1]]
    cell = np.clip((tint + 32) * bins // 64, 0, bins - 1)
    cell = cell[..., 0] * bins + cell[..., 1]
    return np.stack([np.bincount(c, minlength=bins**2) for c in cell]) / cell.shape[1]


def edges(images, bands=7):
    """How much brightness changes along and across, in bands from top to bottom."""
    grey = images.mean(-1)
    along = np.abs(np.diff(grey, axis=2))[:, :28, :28]
    across = np.abs(np.diff(grey, axis=1))[:, :28, :28]
    changes = [along, across, np.minimum(along, across)]
    banded = [np.log1p(c).reshape(len(images), bands, -1).mean(2) for c in changes]
    return np.concatenate(banded, axis=1)


def linear_score(features, classes):
    """Standard errors above chance of a least-squares classifier, and its share of right answers.

    The first half of the images is for fitting; class = index modulo classes.
    """
    half, labels = len(features) // 2, np.arange(len(features)) % classes
    padded = np.c_[features, np.ones(len(features))]
    fitted, *_ = np.linalg.lstsq(padded[:half], np.eye(classes)[labels[:half]], rcond=None)
    right = np.mean((padded[half:] @ fitted).argmax(1) == labels[half:])
    chance = 1 / classes
    return (right - chance) / math.sqrt(chance * (1 - chance) / (len(features) - half)), right


@pytest.fixture(scope="module")
def pictures():
    """Images, and the number of classes that take turns."""
    places = [draw(toy_layouts.place_picture(3, "train", i), 32).pixels for i in range(1800)]
    faces = [draw(toy_layouts.face_picture(3, 10, i), 32).pixels for i in range(1800)]
    return {"places": (np.stack(places), 6), "faces": (np.stack(faces), 10)}


@pytest.mark.parametrize("kind", ["places", "faces"])
def test_colour_tells_neither_place_nor_identity(pictures, kind):
    images, classes = pictures[kind]
    for features in (mean_colour, tint_histogram):
        assert abs(linear_score(features(images), classes)[0]) < 3
    # Two steps of brightness in a hundred per class, and the same check is far from chance.
    tinted = mean_colour(images) + 0.02 * (np.arange(len(images)) % classes)[:, None]
    assert linear_score(tinted, classes)[0] > 4


def test_structure_tells_the_place(pictures):
    assert linear_score(edges(pictures["places"][0]), 6)[1] > 0.55  # chance: 0.17


def test_stripes_have_the_mean_of_the_plain_ground():
    for index in range(10):
        what = toy_layouts.place_picture(0, "train", 6 * index).place
        means = []
        for ground in ("plain", "striped"):
            pixels, _ = toy_places.draw(replace(what, label=PLACES.index(f"flat-{ground}")), 128)
            means.append(pixels[100:].mean((0, 1)))
            spread = pixels[100:, :, 0].std()
            assert spread == pytest.approx({"plain": 0, "striped": 0.1}[ground], abs=0.02)
        assert means[0] == pytest.approx(means[1], abs=0.03)


# --- Faces


def portrait(index, identities=10, size=218):
    what = toy_layouts.face_picture(2, identities, index)
    return what.face, draw(what, size)


def test_landmarks_lie_on_the_parts_as_drawn():
    for index in range(20):
        face, drawing = portrait(index)
        pixels = drawing.pixels / 255
        turn = face.head.radius * np.exp(1j * face.head.angle)
        own = [-face.eyes - 0.15j, face.eyes - 0.15j, face.nose * 1j, -face.mouth + 0.52j]
        own += [face.mouth + 0.52j]
        expected = [complex(*face.head.centre) + turn * point for point in own]
        assert [complex(*point) for point in drawing.landmarks] == pytest.approx(
            [point * 218 - 0.5 - 0.5j for point in expected]
        )
        for x, y in drawing.landmarks[:2]:
            assert pixels[round(y), round(x)] == pytest.approx(face.head.dark, abs=0.01)
        inside = [(2, (0, -0.04)), (3, (0.06, 0)), (4, (-0.06, 0))]  # a step into nose and mouth
        for number, (u, v) in inside:
            step = turn * complex(u, v) * 218
            for way, on_part in ((1, True), (-1, False)):
                spot = complex(*drawing.landmarks[number]) + way * step
                colour = pixels[round(spot.imag), round(spot.real)]
                assert (np.abs(colour - face.head.background).max() > 0.03) == on_part


def test_parts_leave_the_mean_colour_of_a_face():
    """So that colour does not tell identities apart."""
    for index in range(5):
        face, _ = portrait(index)
        behind = np.full((218, 218, 3), 0.5, dtype=np.float32)
        covered = toy_faces.mask(face, 218)
        small, large = (
            toy_faces.paint(replace(face, eye=eye, nose=nose, mouth=mouth), covered, behind)
            for eye, nose, mouth in ((0.08, 0.08, 0.2), (0.13, 0.3, 0.42))
        )
        assert np.abs(large - small).max() > 0.2
        assert large.mean((0, 1)) == pytest.approx(small.mean((0, 1)), abs=2e-3)


def test_an_identity_keeps_its_geometry_and_nothing_else():
    def geometry(face):
        return (face.aspect, face.eyes, face.eye, face.nose, face.mouth, face.head.texture)

    faces = [portrait(index, size=32)[0] for index in range(40)]
    assert len({geometry(face) for face in faces}) == 10
    assert all(geometry(face) == geometry(faces[i % 10]) for i, face in enumerate(faces))
    assert [face.identity for face in faces] == [i % 10 for i in range(40)]
    assert {face.head.texture for face in faces} == set(toy.TEXTURES)
    assert (
        len({(f.head.background, f.head.angle, f.head.centre, f.head.phase) for f in faces}) == 40
    )
