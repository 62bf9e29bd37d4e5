"""LabelReader: numbers in a PNG as train ids, and what is not such a PNG."""

import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from goodtransfer.data.label_maps import LabelReader
from goodtransfer.views import ImageReadError

IDS = {0: 255, 10: 0, 20: 1, 30: 2}  # numbers in the files, and their train ids


def png(pixels):
    """A PNG of 16-bit RGB by the letter of the format, so that no library decides on its channels."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">2I5B", width, height, 16, 2, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    chunks = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.fixture
def label(tmp_path):
    """A good label of one channel, 7 wide and 5 high."""
    path = tmp_path / "label.png"
    numbers = np.random.default_rng(0).choice(list(IDS), (5, 7)).astype(np.uint8)
    assert cv2.imwrite(str(path), numbers)
    return path, numbers


def test_every_number_has_its_train_id(label):
    path, numbers = label
    classes = LabelReader(1, 8, IDS)(str(path))
    assert classes.dtype == np.uint8
    assert classes.tolist() == [[IDS[int(n)] for n in row] for row in numbers]


def test_the_class_is_in_the_first_channel_of_the_file(tmp_path):
    """Which is R, and OpenCV's last."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 65536, (5, 7, 3), dtype=np.uint16)
    pixels[..., 0] = generator.choice([3, 300, 65535], (5, 7))
    path, ids = tmp_path / "label.png", {3: 0, 300: 7, 65535: 255}
    path.write_bytes(png(pixels))
    classes = LabelReader(3, 16, ids)(str(path))
    assert classes.dtype == np.uint8
    assert classes.tolist() == [[ids[int(n)] for n in row] for row in pixels[..., 0]]
    with pytest.raises(ValueError, match=r"known classes in the label .*, but found 300, 65535: "):
        LabelReader(3, 16, {3: 0})(str(path))
    with pytest.raises(ValueError, match=r"of 1 x 8 bits a pixel at .*, but it has 3 x 16: "):
        LabelReader(1, 8, IDS)(str(path))


def test_some_of_the_unknown_numbers_are_named(label):
    path, numbers = label
    numbers[1] = range(40, 47)
    cv2.imwrite(str(path), numbers)
    with pytest.raises(ValueError, match=rf"the label {path}, but found 40, 41, 42, 43, 44: "):
        LabelReader(1, 8, IDS)(str(path))


def claiming(width, height):
    return lambda content: content[:16] + struct.pack(">2I", width, height) + content[24:]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda content: b"", "label.png, but it is no PNG"),
        (lambda content: content[:20], "label.png, but it is no PNG"),
        (lambda content: b"P5" + content, "label.png, but it is no PNG"),
        (lambda content: content[:60], "label.png, but its PNG is damaged"),
        (claiming(0, 0), "label.png, but its PNG is damaged"),
        (
            claiming(30_000, 30_000),
            "178,956,970 pixels at .*label.png, but it claims 30000 x 30000",
        ),
    ],
)
def test_a_file_that_cannot_be_decoded_is_named(label, spoil, message):
    path, _ = label
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ImageReadError, match=message):
        LabelReader(1, 8, IDS)(str(path))


def test_a_file_that_is_gone(tmp_path):
    with pytest.raises(ImageReadError, match=r"none.png, but cannot read it: .*No such file"):
        LabelReader(1, 8, IDS)(str(tmp_path / "none.png"))


def test_max_pixels(label):
    path, _ = label
    assert LabelReader(1, 8, IDS, max_pixels=35)(str(path)).shape == (5, 7)
    with pytest.raises(
        ImageReadError, match=rf"at most 34 pixels at {path}, but it claims 7 x 5: "
    ):
        LabelReader(1, 8, IDS, max_pixels=34)(str(path))


@pytest.mark.parametrize(
    ("convert", "kind"),
    [
        (lambda numbers: np.dstack([numbers] * 3), "3 x 8"),
        (lambda numbers: np.dstack([numbers] * 4), "4 x 8"),
        (lambda numbers: numbers.astype(np.uint16), "1 x 16"),
    ],
)
def test_a_converted_file_is_refused(label, convert, kind):
    path, numbers = label
    cv2.imwrite(str(path), convert(numbers))
    with pytest.raises(ValueError, match=f"1 x 8 bits a pixel at {path}, but it has {kind}: "):
        LabelReader(1, 8, IDS)(str(path))


def test_a_palette_is_refused(label):
    """Its indices and its colours may both be meant."""
    path, numbers = label
    Image.fromarray(numbers).convert("P").save(path)
    with pytest.raises(ValueError, match="1 x 8 bits a pixel at .*, but it has 3 x 8: "):
        LabelReader(1, 8, IDS)(str(path))
