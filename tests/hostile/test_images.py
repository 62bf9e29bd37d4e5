"""Images and label maps that are broken, that claim too much, or that are no images at all."""

import io
import os
import struct
import sys
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from goodtransfer.data.check import oddities
from goodtransfer.data.label_maps import LabelReader
from goodtransfer.views import ImageReadError, decode

sys.path.insert(0, str(Path(__file__).parent))
from forked import assert_clean, outcomes
from mutations import CASES, dice, mutated

IDS = {0: 255, 10: 0, 20: 1}


def encoded(mode, kind, **options):
    y, x = np.mgrid[:40, :56]
    image = Image.fromarray(np.stack([x * 4, y * 5, (x + y) * 2], 2).astype(np.uint8))
    stream = io.BytesIO()
    (image if mode == "RGB" else image.convert(mode)).save(stream, kind, **options)
    return stream.getvalue()


def turned():
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a note"
    return encoded("RGB", "JPEG", exif=exif)


GOOD = [
    turned(),
    encoded("RGB", "JPEG", progressive=True),
    encoded("L", "JPEG"),
    encoded("CMYK", "JPEG"),
    encoded("RGB", "PNG"),
    encoded("P", "PNG", transparency=3),
    encoded("LA", "PNG"),
    encoded("I;16", "PNG"),
    encoded("RGB", "TIFF", compression="tiff_lzw"),
    encoded("RGB", "TIFF", compression="jpeg"),
    encoded("RGBA", "WEBP"),
    encoded("P", "GIF"),
    encoded("RGB", "BMP"),
    encoded("RGB", "PPM"),
    encoded("RGB", "JPEG2000"),
]


@pytest.mark.slow
def test_broken_images(tmp_path):
    path = tmp_path / "image.jpg"

    def case(number):
        random = dice("image", number)
        good = GOOD[number % len(GOOD)]
        path.write_bytes(mutated(good, random, random.choice(GOOD), ends=400))
        pixels = decode(path)
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 3
        assert pixels.shape[2] == 3
        assert isinstance(oddities(str(path)), list)

    for content in GOOD:
        path.write_bytes(content)
        assert decode(path).shape == (40, 56, 3)
    assert_clean(outcomes(case, CASES["image"], tmp_path), CASES["image"])


def labels():
    numbers = np.random.default_rng(0).choice(list(IDS), (30, 20)).astype(np.uint8)
    one = cv2.imencode(".png", numbers)[1].tobytes()
    three = cv2.imencode(".png", np.dstack([numbers] * 3).astype(np.uint16))[1].tobytes()
    return one, three


@pytest.mark.slow
def test_broken_labels(tmp_path):
    path = tmp_path / "label.png"
    readers = LabelReader(1, 8, IDS), LabelReader(3, 16, IDS)

    def case(number):
        random = dice("label", number)
        path.write_bytes(mutated(labels()[number % 2], random, labels()[1 - number % 2], ends=60))
        classes = readers[number % 2](str(path))
        assert set(np.unique(classes)) <= {255, 0, 1}

    found = outcomes(case, CASES["label"], tmp_path)
    assert_clean(found, CASES["label"], least=0.02)  # a PNG has sums to check its bytes by


# --- What would start a program, take for ever, or fill the memory


def test_postscript_is_not_given_to_ghostscript(tmp_path, monkeypatch):
    """PIL would start the program `gs` on it."""
    trap = tmp_path / "trap"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {trap}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # as if it had not been looked for
    content = encoded("RGB", "EPS")
    (tmp_path / "image.jpg").write_bytes(content)
    with pytest.raises(ImageReadError, match="image.jpg, but it cannot be decoded .it is no image"):
        decode(tmp_path / "image.jpg")
    assert not trap.exists()
    with Image.open(io.BytesIO(content)) as image, pytest.raises(OSError, match=".*"):
        image.load()
    assert trap.exists()  # so it would


def scans(count, side):
    """A progressive JPEG in which ``count`` scans say the same: that all is black."""
    height_width = struct.pack(">HH", side, side)
    parts = [b"\xff\xd8\xff\xdb\x00\x43\x00" + b"\x01" * 64]
    parts.append(b"\xff\xc2\x00\x0b\x08" + height_width + b"\x01\x01\x11\x00")
    # One code of one bit: a difference of zero, or for AC the end of a run of 32,767 blocks.
    parts.append(b"\xff\xc4\x00\x14\x00" + b"\x01" + bytes(15) + b"\x00")
    parts.append(b"\xff\xc4\x00\x14\x10" + b"\x01" + bytes(15) + b"\xe0")
    blocks = (side // 8) ** 2
    parts.append(b"\xff\xda\x00\x08\x01\x01\x00\x00\x00\x00" + bytes(-(-blocks // 8)))
    run = b"\x7f\xff" * (blocks // 2**14 + 1)
    parts += [
        b"\xff\xda\x00\x08\x01\x01\x00\x01\x3f\x00" + run.replace(b"\xff", b"\xff\x00")
    ] * count
    return b"".join(parts) + b"\xff\xd9"


def test_a_jpeg_of_thousands_of_scans_is_refused_at_once(tmp_path):
    path = tmp_path / "scans.jpg"
    path.write_bytes(scans(4000, 8192))
    start = time.perf_counter()
    with pytest.raises(ImageReadError, match="scans.jpg, .*more than 100 scans"):
        decode(path)
    assert time.perf_counter() - start < 2
    path.write_bytes(scans(4000, 8192).replace(b"\xff\xd8", b"\xff\xd8\xff\xff", 1))  # fill bytes
    with pytest.raises(ImageReadError):
        decode(path)


def test_scans_are_counted_in_the_image_alone():
    """Phones put a film behind a photo, in which the bytes of a scan's mark come by chance."""
    side = 2100
    stream = io.BytesIO()
    Image.new("RGB", (side, side), (9, 99, 199)).save(stream, "JPEG", progressive=True)
    assert side * side > 2**22
    note = b"\xff\xe5\x02\x02" + b"\xff\xda" * 256
    content = stream.getvalue()
    content = content[:2] + note + content[2:] + b"\xff\xda" * 1000
    assert np.abs(decode(content).astype(int) - (9, 99, 199)).max() <= 3


def test_a_file_that_is_larger_than_an_image_can_be(tmp_path):
    path = tmp_path / "sparse.png"
    path.write_bytes(encoded("RGB", "PNG"))
    os.truncate(path, 2**42)  # takes no room
    for read in (decode, LabelReader(1, 8, IDS)):
        with pytest.raises(
            ImageReadError, match=r"sparse.png, but cannot read it: .*File too large"
        ):
            read(str(path))


def test_what_never_ends_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    (tmp_path / "itself.jpg").symlink_to("itself.jpg")
    for name, words in (
        ("pipe", "Neither file nor folder"), ("zero", "Neither file nor folder"), ("itself", "Too many"),
    ):  # fmt: skip
        for read in (decode, LabelReader(1, 8, IDS)):
            with pytest.raises(ImageReadError, match=rf"{name}.jpg, but cannot read it: .*{words}"):
                read(str(tmp_path / f"{name}.jpg"))


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_notes_that_unpack_to_gigabytes(kind, tmp_path):
    """A note of 64 KB that is 64 MB inside, fifty times."""
    packed = zlib.compress(bytes(2**26))
    head = b"a\0\1\0\0\0" if kind == b"iTXt" else b"a\0\0"
    good = encoded("RGB", "PNG")
    path = tmp_path / "notes.png"
    path.write_bytes(good[:33] + chunk(kind, head + packed) * 50 + good[33:])

    def case(number):
        decode(path)

    (told,) = outcomes(case, 1, tmp_path, gigabytes=1)
    assert told in ("a result", "one sentence")


def test_label_maps_are_as_large_as_they_claim(tmp_path):
    """Of two headers the decoder takes the second."""
    good = labels()[0]
    head = struct.pack(">2I5B", 10, 10, 8, 0, 0, 0, 0)
    (tmp_path / "two.png").write_bytes(good[:8] + chunk(b"IHDR", head) + good[8:])
    with pytest.raises(ImageReadError, match="two.png"):
        LabelReader(1, 8, IDS)(str(tmp_path / "two.png"))


def test_metadata_that_pil_cannot_read_are_odd_and_no_fault(tmp_path):
    content = turned()
    broken = content.replace(b"Exif\0\0", b"Exif\0\0\xff\xff\xff\xff", 1)
    path = tmp_path / "a.jpg"
    path.write_bytes(broken)
    assert decode(path).shape == (40, 56, 3)
    assert isinstance(oddities(str(path)), list)
