"""Any image file comes out upright, whole and in 8-bit RGB, or with the reason why not."""

import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from tests.image_files import PixelArray, encode, noise, photo
from tune_inat.pictures import (
    UnreachableImage,
    UnreadableImage,
    inspect_picture,
    read_picture,
    strict_pillow,
)

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
ORIENTATION = 0x0112


def read(folder: Path, content: bytes) -> PixelArray:
    path = folder / "image.jpg"  # the name says nothing
    path.write_bytes(content)
    return np.asarray(read_picture(path))


def png_header(width: int, height: int) -> bytes:
    """A PNG file that claims a size and has no pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
        + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    )  # fmt: skip


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF"])
def test_lossless_formats_give_back_each_pixel(hostile_path: Path, file_format: str) -> None:
    np.testing.assert_array_equal(read(hostile_path, encode(noise(0), file_format)), noise(0))


@pytest.mark.parametrize("file_format", ["JPEG", "WEBP", "GIF"])
def test_lossy_formats_give_back_the_colours(hostile_path: Path, file_format: str) -> None:
    pixels = read(hostile_path, encode(photo(40, 60), file_format))
    assert np.abs(pixels.astype(int) - photo(40, 60)).mean() < 15  # GIF's 256 colours are the coarsest


@pytest.mark.parametrize(("mode", "black"), [("RGBA", (0, 0, 0, 255)), ("LA", (0, 255))])
def test_what_is_clear_becomes_white(tmp_path: Path, mode: str, black: tuple[int, ...]) -> None:
    image = Image.new(mode, (4, 2), (0,) * len(black))
    image.putpixel((0, 0), black)
    pixels = read(tmp_path, encode(image, "PNG"))
    assert pixels[0, 0].tolist() == [0, 0, 0]
    assert (pixels[1] == 255).all()


def test_half_clear_is_half_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (3, 3), (200, 0, 0, 128))
    # 200 * 128/255 + 255 * 127/255 = 227.4; 0 + 127
    assert read(tmp_path, encode(image, "PNG"))[0, 0].tolist() == [227, 127, 127]


def test_clear_entry_of_a_palette_becomes_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.putpixel((1, 0), 0)
    pixels = read(tmp_path, encode(image, "PNG", transparency=0))
    assert pixels.tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_palette_gives_its_colours(tmp_path: Path) -> None:
    image = Image.new("P", (1, 1), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    assert read(tmp_path, encode(image, "GIF")).tolist() == [[[10, 20, 30]]]


def test_gray_gives_three_equal_channels(tmp_path: Path) -> None:
    assert read(tmp_path, encode(Image.new("L", (1, 1), 77), "PNG")).tolist() == [[[77, 77, 77]]]


def test_one_bit_gives_black_and_white(tmp_path: Path) -> None:
    image = Image.new("1", (2, 1), 0)
    image.putpixel((1, 0), 1)
    assert read(tmp_path, encode(image, "PNG")).tolist() == [[[0] * 3, [255] * 3]]


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_gray_of_16_bits_is_scaled_not_clipped(tmp_path: Path, file_format: str) -> None:
    image = Image.fromarray(np.array([[0, 255, 257, 32_896, 65_535]], np.uint16))
    pixels = read(tmp_path, encode(image, file_format))
    assert pixels[0, :, 0].tolist() == [0, 1, 1, 128, 255]  # value / 257, rounded


def gray_tiff(width: int, pixels: bytes, *, bits: int, photometric: int) -> bytes:
    """A TIFF file of one row of gray pixels (TIFF 6.0, section 4): Pillow writes none of 12 bits."""
    short, long = 3, 4
    entries = [
        (256, long, width),
        (257, long, 1),
        (258, short, bits),
        (259, short, 1),  # not compressed
        (262, short, photometric),
        (273, long, 8),  # the pixels follow the header
        (277, short, 1),
        (278, long, 1),
        (279, long, len(pixels)),
    ]
    directory = struct.pack("<H", len(entries))
    directory += b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    return struct.pack("<2sHI", b"II", 42, 8 + len(pixels)) + pixels + directory + bytes(4)


def test_gray_of_12_bits_is_scaled(tmp_path: Path) -> None:
    pixels = bytes([0x00, 0x08, 0x00, 0xFF, 0xF0, 0x10])  # 0, 2048, 4095, 16: three digits each
    content = gray_tiff(4, pixels, bits=12, photometric=1)
    assert read(tmp_path, content)[0, :, 0].tolist() == [0, 128, 255, 1]  # value * 255 / 4095, rounded


def test_gray_of_16_bits_that_counts_from_white_is_turned(tmp_path: Path) -> None:
    pixels = struct.pack("<4H", 0, 257, 32_896, 65_535)
    content = gray_tiff(4, pixels, bits=16, photometric=0)
    assert read(tmp_path, content)[0, :, 0].tolist() == [255, 254, 127, 0]


def test_floats_are_refused_for_their_unknown_scale(tmp_path: Path) -> None:
    image = Image.fromarray(np.zeros((2, 2), np.float32))
    with pytest.raises(UnreadableImage, match="of unknown scale"):
        read(tmp_path, encode(image, "TIFF"))


def test_cmyk_is_read_as_printed(tmp_path: Path) -> None:
    pixels = read(tmp_path, encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95))
    assert np.abs(pixels[8, 8].astype(int) - [255, 0, 0]).max() < 12  # magenta and yellow make red


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_rotation_is_undone(tmp_path: Path, file_format: str, orientation: int) -> None:
    # How an upright picture lies in the file, for each orientation: the inverse of what EXIF 2.3, 4.6.4 says.
    upright = photo(32, 64)
    flipped = upright.transpose(1, 0, 2)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: flipped,
        6: flipped[::-1],
        7: flipped[::-1, ::-1],
        8: flipped[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    pixels = read(tmp_path, encode(np.ascontiguousarray(stored), file_format, exif=exif))
    assert pixels.shape == upright.shape
    assert np.abs(pixels.astype(int) - upright).mean() < 6


@pytest.mark.parametrize("exif", [b"garbage", b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\xff\xff garbage"])
def test_damaged_exif_harms_no_pixel(tmp_path: Path, exif: bytes) -> None:
    content = encode(noise(1), "PNG", exif=exif)
    with strict_pillow():
        np.testing.assert_array_equal(read(tmp_path, content), noise(1))


@pytest.mark.parametrize("file_format", ["GIF", "TIFF", "WEBP"])
def test_first_frame_stands_for_all(tmp_path: Path, file_format: str) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("black", "white")]
    pixels = read(tmp_path, encode(frames[0], file_format, save_all=True, append_images=frames[1:]))
    assert pixels.max() < 10


@pytest.mark.parametrize("file_format", FORMATS)
def test_file_cut_anywhere_is_unreadable(tmp_path: Path, file_format: str) -> None:
    whole = encode(noise(2, 40, 50), file_format)
    with strict_pillow():
        for n_bytes in np.linspace(1, len(whole) - 12, 40, dtype=int):
            with pytest.raises(UnreadableImage, match=r"cut short|not a whole|damaged"):
                read(tmp_path, whole[:n_bytes])


def test_png_with_zeros_for_its_second_half_is_unreadable(tmp_path: Path) -> None:
    whole = encode(noise(3, 40, 50), "PNG")  # what an interrupted copy leaves: Pillow alone decodes it
    half = len(whole) // 2
    with pytest.raises(UnreadableImage, match="damaged"):
        read(tmp_path, whole[:half] + bytes(len(whole) - half))


def test_notebooks_wish_for_truncated_images_is_overruled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    whole = encode(noise(4, 64, 64), "JPEG")
    with strict_pillow(), pytest.raises(UnreadableImage, match="cut short"):
        read(tmp_path, whole[: len(whole) // 2])
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


@pytest.mark.parametrize("sides", [(20_000, 20_000), (60_000, 3_000)])
@pytest.mark.parametrize("pillows_own_limit", [89_478_485, None])  # notebooks lift it
def test_decompression_bomb_is_refused_by_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sides: tuple[int, int], pillows_own_limit: int | None
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillows_own_limit)
    with strict_pillow(), pytest.raises(UnreadableImage, match=r"pixels.*limit"):
        read(tmp_path, png_header(*sides))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"<html>404 not found</html>", "is not a whole JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not a whole JPEG"),
    ],
)
def test_what_is_no_image_says_so(tmp_path: Path, content: bytes, reason: str) -> None:
    with pytest.raises(UnreadableImage, match=reason):
        read(tmp_path, content)


def test_missing_file_is_unreachable(hostile_path: Path) -> None:
    with pytest.raises(UnreachableImage, match="No such file"):
        read_picture(hostile_path / "gone.png")


def test_pipe_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UnreadableImage, match="not a regular file"):
        read_picture(tmp_path / "pipe.png")


@pytest.mark.parametrize("seed", range(60))
def test_random_damage_never_ends_in_another_error(tmp_path: Path, seed: int) -> None:
    draws = np.random.default_rng(seed)
    content = bytearray(encode(noise(seed, 20, 20), FORMATS[seed % len(FORMATS)]))
    for position in draws.integers(0, len(content), 12):
        content[position] = draws.integers(0, 256)
    with strict_pillow():
        try:
            outcome: object = read(tmp_path, bytes(content)).shape[2]
        except UnreadableImage as error:
            outcome = error.reason
    assert outcome


def test_large_jpeg_may_come_reduced(tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    path.write_bytes(encode(photo(400, 800), "JPEG"))
    assert read_picture(path, at_least=100).size == (200, 100)
    assert read_picture(path, at_least=101).size == (400, 200)


def test_facts_are_of_the_file_as_stored(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode(photo(300, 500), "JPEG"))
    facts = inspect_picture(path)
    assert (facts.format, facts.width, facts.height) == ("JPEG", 500, 300)


def test_inspection_refuses_what_reading_refuses(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(encode(Image.fromarray(np.zeros((2, 2), np.float32)), "TIFF"))
    with pytest.raises(UnreadableImage, match="unknown scale"):
        inspect_picture(path)


def test_pillows_warnings_are_not_shown(tmp_path: Path) -> None:
    content = encode(noise(5), "JPEG", exif=b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x05\x00")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with strict_pillow():
            assert read(tmp_path, content).shape == (12, 16, 3)
        with pytest.warns(UserWarning, match="EXIF"):  # the file does make Pillow warn
            Image.open(io.BytesIO(content)).getexif()
