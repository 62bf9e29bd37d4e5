"""From a file to RGB pixels: what PIL would give, by the fastest decoder that gives the same bits."""

import io
import re
import threading
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from goodtransfer.foreign import content as content_of
from goodtransfer.foreign import plain

Pixels = NDArray[np.uint8]  # RGB (height, width, 3)

# Where PIL stops by itself: a few kilobytes can claim to be gigabytes of pixels.
MAX_PIXELS = 178_956_970

# What PIL is asked for, since it knows more: EPS it hands to Ghostscript, a program.
_KINDS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "DIB", "GIF", "PPM", "JPEG2000")
# Decoding takes as long as pixels times scans. A progressive JPEG has ten; thousands fit in a megabyte.
_SCANNED, _MAX_SCANS = 2**22, 100  # pixels from which on they are counted
_MARKER = re.compile(rb"\xff([\x02-\xcf\xd9-\xfe])")  # of those that a length follows, and the last


class ImageReadError(OSError):
    """An image that cannot be decoded; the message names its file, also out of a loader worker."""


def decode(source: str | Path | bytes, *, max_pixels: int = MAX_PIXELS) -> Pixels:
    """An image at full resolution as uint8 RGB (H, W, 3): JPEG, PNG, WebP, TIFF, BMP, GIF, PPM, JPEG 2000.

    The content decides, not the file's name. As torchvision's ImageFolder does, grey, palette and
    CMYK images are converted, alpha is dropped, and an orientation in EXIF is not applied; of 16-bit
    grey the upper eight bits count. JPEGs are decoded by libjpeg-turbo, with the bits that PIL gives.

    Args:
        source: a path, or the file's content.
        max_pixels: an image that claims more is refused before it is decoded.

    Raises:
        ImageReadError: naming the file and what is wrong with it.

    >>> file = io.BytesIO()
    >>> Image.new("L", (4, 2), color=7).save(file, "png")
    >>> pixels = decode(file.getvalue())
    >>> pixels.shape, pixels[0, 0].tolist()
    ((2, 4, 3), [7, 7, 7])
    """
    name = "the given bytes" if isinstance(source, bytes) else str(source)
    try:
        # Sixteen bits of four channels for each pixel; the rest is for profiles and notes.
        limit = 8 * max_pixels + 2**26
        content = source if isinstance(source, bytes) else content_of(source, limit)
    except (OSError, ValueError) as error:
        raise ImageReadError(
            f"Expected an image at {name}, but cannot read it: {error}."
        ) from error
    if not content:
        raise ImageReadError(_undecodable(name, "it is empty"))
    if content[:3] == b"\xff\xd8\xff":
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
            _guard(width, height, max_pixels, name)
            _guard_scans(width * height, content, name)
            if colours in ("YCbCr", "Gray"):  # CMYK it rounds otherwise than PIL
                pixels: Pixels = simplejpeg.decode_jpeg(content, colorspace="RGB")
                return pixels
        except ValueError:
            pass  # a fault, which PIL may forgive, or words better
    return _decode_by_pil(content, max_pixels, name)


def _decode_by_pil(content: bytes, max_pixels: int, name: str) -> Pixels:
    try:
        with open_image(content) as image:
            _guard(*image.size, max_pixels, name)
            if image.format in ("JPEG", "MPO"):
                _guard_scans(image.width * image.height, content, name)
            image.info.pop("transparency", None)  # dropped anyhow, and PIL warns of some
            # PIL would clip at 255. It calls PGM's 16 bits "I".
            if image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PPM"):
                grey = (np.asarray(image) >> 8).astype(np.uint8)
                return np.repeat(grey[:, :, None], 3, axis=2)
            return np.array(image.convert("RGB"))
    except ImageReadError:
        raise
    except Exception as error:  # on damaged files PIL's readers raise nearly everything
        # PIL names a buffer by its address.
        words = "it is no image PIL knows" if "identify" in str(error) else plain(str(error))
        raise ImageReadError(_undecodable(name, words or type(error).__name__)) from error


_OPENING = threading.Lock()


def open_image(content: bytes) -> Image.Image:
    """Read the header, without PIL's own limit, since ours may be higher."""
    with _OPENING:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(io.BytesIO(content), formats=_KINDS)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _guard(width: int, height: int, max_pixels: int, name: str) -> None:
    if width * height > max_pixels:
        raise ImageReadError(
            f"Expected an image of at most {max_pixels:,} pixels at {name}, but it claims "
            f"{width} x {height}: remove it, or pass a higher max_pixels if you trust it."
        )


def _guard_scans(pixels: int, content: bytes, name: str) -> None:
    """Refuse a large JPEG that draws its pixels again and again."""
    at, scans = 2, 0
    while pixels > _SCANNED and (marker := _MARKER.search(content, at)) and marker[1] != b"\xd9":
        scans += marker[1] == b"\xda"
        at = marker.end() + int.from_bytes(content[marker.end() : marker.end() + 2], "big")
        if scans > _MAX_SCANS:
            raise ImageReadError(_undecodable(name, f"it has more than {_MAX_SCANS} scans"))


def _undecodable(name: str, fault: str) -> str:
    return (
        f"Expected an image at {name}, but it cannot be decoded ({fault}): replace or remove "
        "the file."
    )
