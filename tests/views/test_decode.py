"""Files of every kind, whole and damaged, as PIL reads them."""

import io
import struct
import warnings
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from goodtransfer.views import MAX_PIXELS, ImageReadError, decode


def picture(height=40, width=56):
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 4, y * 5, (x + y) * 2], 2).astype(np.uint8)


def encoded(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def by_pil(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


@pytest.mark.parametrize("options", [{}, {"quality": 30, "subsampling": 2}, {"progressive": True}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "YCbCr"])
def test_jpegs_have_pils_bits(tmp_path, mode, options):
    content = encoded(Image.fromarray(picture()).convert(mode), "JPEG", **options)
    (tmp_path / "image.jpg").write_bytes(content)
    for source in (content, tmp_path / "image.jpg", str(tmp_path / "image.jpg")):
        found = decode(source)
        assert (found.dtype, found.flags.writeable) == (np.uint8, True)
        assert np.array_equal(found, by_pil(content))


@pytest.mark.data
def test_real_photos_have_pils_bits(shared):
    paths = [
        *shared.glob("data/imagenet_samples/val/*/*"),
        *sorted(shared.glob("data/coco128/val2017/*"))[:8],
    ]
    assert len(paths) == 108
    for path in paths:
        assert np.array_equal(decode(path), by_pil(path.read_bytes())), path


@pytest.mark.data
def test_png_with_alpha_named_jpg(shared):
    path = sorted(shared.glob("data/youtube_faces_68/data/training/*.jpg"))[0]
    assert path.read_bytes()[:4] == b"\x89PNG"
    with Image.open(path) as image:
        assert image.mode == "RGBA"
        expected = np.asarray(image)[:, :, :3]
    assert np.array_equal(decode(path), expected)


def test_sixteen_bits_of_grey_are_not_clipped(tmp_path):
    deep = np.linspace(0, 65535, 12, dtype=np.uint16).reshape(3, 4)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert decode(tmp_path / "deep.png").tolist() == (deep >> 8)[:, :, None].repeat(3, 2).tolist()
    Image.fromarray(deep).save(tmp_path / "deep.tif")
    assert decode(tmp_path / "deep.tif").tolist() == decode(tmp_path / "deep.png").tolist()


def test_sixteen_bits_of_a_pgm(tmp_path):
    deep = np.linspace(0, 65535, 12).astype(">u2").reshape(3, 4)
    (tmp_path / "deep.pgm").write_bytes(b"P5 4 3 65535\n" + deep.tobytes())
    assert decode(tmp_path / "deep.pgm")[..., 0].tolist() == (deep >> 8).tolist()


def test_sixteen_bits_of_colour(tmp_path):
    deep = (picture().astype(np.uint16) << 8) + 77
    cv2.imwrite(str(tmp_path / "deep.png"), deep[:, :, ::-1])
    assert np.array_equal(decode(tmp_path / "deep.png"), picture())


def test_palettes_bilevel_and_one_pixel():
    image = Image.fromarray(picture())
    for mode, kind in (("P", "PNG"), ("P", "GIF"), ("1", "PNG"), ("LA", "PNG"), ("RGBA", "WEBP")):
        content = encoded(image.convert(mode), kind)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert np.array_equal(decode(content), by_pil(content))
    for kind in ("JPEG", "PNG"):
        assert decode(encoded(Image.new("RGB", (1, 1), (9, 9, 9)), kind)).shape == (1, 1, 3)


def test_an_orientation_in_exif_is_not_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(Image.fromarray(picture()), "JPEG", exif=exif)
    assert decode(content).shape == (40, 56, 3)


JPEG, PNG = (encoded(Image.fromarray(picture()), kind) for kind in ("JPEG", "PNG"))


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "it is empty"),
        (b"not an image", "no image PIL knows"),
        (b"<svg></svg>", "no image PIL knows"),
        (JPEG[:2], "no image PIL knows"),
        (JPEG[:30], None),
        (JPEG[:-300], "runcated"),
        (PNG[:-60], None),
        (PNG[:40] + b"\0" * 40 + PNG[80:], None),
    ],
)
def test_a_damaged_file_is_one_sentence(tmp_path, content, fault):
    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageReadError) as caught:
        decode(path)
    message = str(caught.value)
    assert message.startswith(f"Expected an image at {path}, but it cannot be decoded (")
    assert message.endswith("): replace or remove the file.")
    assert "\n" not in message
    assert fault is None or fault in message
    with pytest.raises(ImageReadError, match="image at the given bytes, but"):
        decode(content)


def test_every_cut_of_a_file_is_an_image_or_one_error():
    """PIL reads some files to which nothing but padding is missing."""
    for content in (JPEG, PNG):
        for end in range(0, len(content), 37):
            try:
                assert decode(content[:end]).shape == (40, 56, 3)
            except ImageReadError as error:
                assert "\n" not in str(error)  # noqa: PT017 - either is right


@pytest.mark.parametrize("name", ["gone.jpg", ".", "nul\0.jpg"])
def test_what_is_no_readable_file(tmp_path, name):
    with pytest.raises(ImageReadError, match="(?s)Expected an image at .*, but cannot read it: "):
        decode(f"{tmp_path}/{name}")


def bomb(side):
    """A PNG of few bytes that claims side x side pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunk = lambda kind, data: (  # noqa: E731
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    )
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_a_bomb_is_not_decoded():
    limit, message = Image.MAX_IMAGE_PIXELS, r"at most 178,956,970 pixels .*claims 60000 x 60000"
    for content in (bomb(60_000), JPEG.replace(struct.pack(">HH", 40, 56), b"\xea\x60" * 2)):
        with pytest.raises(ImageReadError, match=message):
            decode(content)
    assert limit == Image.MAX_IMAGE_PIXELS
    assert MAX_PIXELS < 60_000 * 60_000


@pytest.mark.parametrize("content", [JPEG, PNG])
def test_the_limit_can_be_moved(content):
    assert decode(content, max_pixels=40 * 56).shape == (40, 56, 3)
    with pytest.raises(
        ImageReadError, match="at most 2,239 pixels .* claims 56 x 40: .*max_pixels"
    ):
        decode(content, max_pixels=40 * 56 - 1)


def test_the_limit_may_exceed_pils(monkeypatch):
    """PIL alone would warn above its limit, and refuse above twice that."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert decode(PNG).shape == (40, 56, 3)
    assert Image.MAX_IMAGE_PIXELS == 100
