"""Image files and folders for the tests of data and images."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

PixelArray = npt.NDArray[np.uint8]


def noise(seed: int, height: int = 12, width: int = 16) -> PixelArray:
    """(height, width, 3) random pixels: no two seeds give the same."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def photo(height: int, width: int) -> PixelArray:
    """(height, width, 3) smooth colours with an orientation: red rises to the right, green downwards."""
    red = np.linspace(0, 255, width)[None, :].repeat(height, 0)
    green = np.linspace(0, 255, height)[:, None].repeat(width, 1)
    return np.stack([red, green, np.full((height, width), 90.0)], 2).round().astype(np.uint8)


def scene(seed: int, height: int = 120, width: int = 160) -> PixelArray:
    """(height, width, 3) shapes of all sizes, as a photograph has them: no two seeds look alike."""
    draws = np.random.default_rng(seed)
    whole = np.zeros((height, width, 3))
    for side, strength in ((3, 60.0), (8, 40.0), (20, 25.0)):
        part = Image.fromarray(draws.integers(0, 256, (side, side, 3), np.uint8))
        large = part.resize((width, height), Image.Resampling.BICUBIC)
        whole += (np.asarray(large, np.float64) - 128) * strength / 128
    return np.clip(whole + 128, 0, 255).round().astype(np.uint8)


def encode(pixels: PixelArray | Image.Image, file_format: str, **options: Any) -> bytes:
    """The bytes of an image file."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def write_classes(root: Path, counts: Mapping[str, int], *, first_seed: int = 0) -> None:
    """Folders of PNG files under `root`, all of different content."""
    seed = first_seed
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            (root / folder / f"{number}.png").write_bytes(encode(noise(seed), "PNG"))
            seed += 1
