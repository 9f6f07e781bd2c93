"""An image file as an upright RGB picture, whole, or the reason why it cannot be one."""

import os
import stat
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tune_inat.likeness import signature_of

if TYPE_CHECKING:  # Pillow is imported where it is used: commands answer before it is loaded
    from PIL.Image import Image

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # what is tried; Pillow's other readers stay shut
MAX_PIXELS = 178_956_970  # Pillow's own limit against decompression bombs: 0.5 GB as RGB
SIGNATURE_AT_LEAST = 672  # pixels that a JPEG keeps on either side: what the default of 224 px is decoded at
MAX_BYTES = 2**31  # of a file: an RGBA image of 16 bits and MAX_PIXELS has 1.4 GB
ORIENTATION_TAG = 0x0112
BITS_TAG = 0x0102  # of a TIFF file, as the next
PHOTOMETRIC_TAG = 0x0106
MIN_IS_WHITE = 0
WHITE = (255, 255, 255, 255)


class UnreadableImage(Exception):
    """A file that is no image, or not a whole one. `reason` goes on from the file's name: `is empty`."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class UnreachableImage(UnreadableImage):
    """A file that could not be read from the disk: its content may be a sound image."""


@dataclass(frozen=True)
class PictureFacts:
    """What a file says of its image: `format` in Pillow's word, sizes in pixels as stored (not turned).

    `signature` is that of `likeness.signature_of`, whatever scale the picture was asked for at.
    """

    format: str
    width: int
    height: int
    signature: bytes = b""


def read_picture(path: Path, *, at_least: int | None = None) -> "Image":
    """The first frame of an image file as RGB: upright by EXIF, alpha laid over white, 16 bits scaled to 8.

    Args:
        path: the file; its content decides the format, its name does not.
        at_least: a JPEG may come smaller than it is, by 2, 4 or 8, down to this many pixels on either
            side. It decodes several times faster so.

    Raises:
        UnreachableImage: the file system failed.
        UnreadableImage: the content is not a whole image.
    """
    data = _read_bytes(path)
    return _decode(_open(data), data, at_least)


def inspect_picture(path: Path) -> PictureFacts:
    """Decode a file as `read_picture` does and say what it holds.

    Raises:
        UnreadableImage: exactly where `read_picture` does.
    """
    return read_and_inspect(path, at_least=SIGNATURE_AT_LEAST)[1]


def read_and_inspect(path: Path, *, at_least: int) -> tuple["Image", PictureFacts]:
    """`read_picture` and `inspect_picture` of one decoding; of two where a JPEG's scales differ.

    Raises:
        UnreadableImage: exactly where `read_picture` does.
    """
    data = _read_bytes(path)
    stored = _open(data)
    file_format, width, height = stored.format or "", *stored.size
    rgb = shown = _decode(stored, data, at_least)
    if _drafted_size(data, at_least) != _drafted_size(data, SIGNATURE_AT_LEAST):
        shown = _decode(_open(data), data, SIGNATURE_AT_LEAST)
    return rgb, PictureFacts(file_format, width, height, signature_of(shown))


@contextmanager
def strict_pillow() -> Iterator[None]:
    """Keep Pillow strict and quiet while many pictures are read.

    Pillow's switch for accepting truncated files is off, whatever a notebook has set it to, and its
    warnings (of bad EXIF, of large images), which repeat what is reported anyway, are not shown. Both are
    settings of the process: enter once around a batch, not in each thread.
    """
    from PIL import ImageFile

    before = ImageFile.LOAD_TRUNCATED_IMAGES
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = before


def _read_bytes(path: Path) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableImage("is not a regular file")
        if status.st_size == 0:
            raise UnreadableImage("is empty")
        if status.st_size > MAX_BYTES:
            raise UnreadableImage(f"has {status.st_size:,} bytes, more than the limit of {MAX_BYTES:,}")
        return path.read_bytes()
    except OSError as error:
        raise UnreachableImage(f"cannot be read ({os.strerror(error.errno or 0)})") from error


def _open(data: bytes) -> "Image":
    """The image's header, found sound and within the limits. Nothing is decoded yet."""
    from PIL import Image

    try:
        with _damage_as_unreadable():
            picture = Image.open(BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise UnreadableImage(f"has more than {MAX_PIXELS:,} pixels, the limit") from error
    n_pixels = picture.width * picture.height
    if n_pixels > MAX_PIXELS:
        raise UnreadableImage(f"has {n_pixels:,} pixels, more than the limit of {MAX_PIXELS:,}")
    return picture


def _decode(picture: "Image", data: bytes, at_least: int | None) -> "Image":
    """The first frame of what `_open` gave, decoded to its last pixel, as RGB and upright."""
    with _damage_as_unreadable():
        if picture.format == "PNG":
            _check_png(data)
        if at_least is not None:
            picture.draft(None, (at_least, at_least))  # None: the mode stays
        picture.load()
        return _turn_upright(_to_rgb(picture), picture)


def _drafted_size(data: bytes, at_least: int) -> tuple[int, int]:
    """The size that a file is decoded at."""
    picture = _open(data)
    picture.draft(None, (at_least, at_least))
    return picture.size


def _check_png(data: bytes) -> None:
    """Hold all chunks against their checksums: Pillow decodes without looking at those of the pixels."""
    from PIL import Image

    with Image.open(BytesIO(data), formats=("PNG",)) as picture:
        picture.verify()


def _to_rgb(picture: "Image") -> "Image":
    if picture.mode.startswith("I;16"):
        picture = _to_8_bits(picture)
    elif picture.mode in ("I", "F"):
        raise UnreadableImage("has 32 bits a value, of unknown scale: convert it to 8 or 16 bits")
    if picture.has_transparency_data:
        return _over_white(picture)
    return picture.convert("RGB")


def _to_8_bits(picture: "Image") -> "Image":
    """Gray of 16 bits scaled (65,535 / 257 = 255); Pillow's own conversion clips at 255.

    Pillow gives TIFF's 12 bits unscaled and, unlike those of 8 bits, 16 bits that count from white as stored.
    """
    from PIL import Image

    tags = getattr(picture, "tag_v2", {})
    highest = 2 ** tags.get(BITS_TAG, (16,))[0] - 1
    values = np.asarray(picture).astype(np.uint32)
    gray = ((values * 255 + highest // 2) // highest).astype(np.uint8)
    if tags.get(PHOTOMETRIC_TAG) == MIN_IS_WHITE:
        gray = 255 - gray
    if isinstance(clear := picture.info.get("transparency"), int):
        gray[values == clear] = 255
    return Image.fromarray(gray)


def _over_white(picture: "Image") -> "Image":
    from PIL import Image

    picture = picture.convert("RGBA")
    white = Image.new("RGBA", picture.size, WHITE)
    return Image.alpha_composite(white, picture).convert("RGB")


def _turn_upright(rgb: "Image", original: "Image") -> "Image":
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    turn = turns.get(_orientation(original))
    return rgb if turn is None else rgb.transpose(turn)


def _orientation(picture: "Image") -> int:
    """EXIF's orientation, 1..8; 1 (upright) where there is none or EXIF is damaged, which harms no pixel."""
    try:
        return int(picture.getexif().get(ORIENTATION_TAG, 1))
    except (OSError, ValueError, TypeError, LookupError, SyntaxError, struct.error):
        return 1


@contextmanager
def _damage_as_unreadable() -> Iterator[None]:
    """Whatever Pillow raises on damaged content, as the reason why it cannot be read."""
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except (UnreadableImage, MemoryError, Image.DecompressionBombError):
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImage("is not a whole JPEG, PNG, WebP, BMP, GIF or TIFF image") from error
    except Exception as error:
        cause = str(error) or type(error).__name__
        state = "is cut short" if "truncated" in cause.lower() else "is damaged"
        raise UnreadableImage(f"{state} ({cause})") from error
