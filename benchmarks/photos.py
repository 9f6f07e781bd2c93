"""Generated photographs: JPEGs as large as a camera's, with the spectrum of natural images.

The amplitude of natural images falls with the spatial frequency f as f to the power -1.2 (the mean that
Tolhurst, Tadmor and Chao report in "Amplitude spectra of natural images", 1992). So decoding these takes what
decoding photographs takes. Classes differ in colour and in the direction of their structures,
images of a class in both as well, so there is something to learn that is not given away.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

WIDTH, HEIGHT = 1280, 960
JPEG_QUALITY = 90
CONTRAST = 48.0  # standard deviation of the brightness, in gray levels
COLOUR_CONTRAST = 24.0  # of the colour that varies within an image
TINT_SPREAD = 24.0  # of the mean colour of a class's images around the class's own

# By class: the mean colour, and the direction along which structures are stretched, in degrees.
CLASSES: dict[str, tuple[tuple[int, int, int], float]] = {
    "heath": ((146, 112, 128), 0.0),
    "meadow": ((116, 142, 104), 60.0),
    "shore": ((108, 126, 150), 120.0),
}
FALL = 1.2  # of the amplitude with the frequency
STRETCH = 2.0

FloatArray = npt.NDArray[np.float32]


def write_photos(folder: Path, n_photos: int, *, seed: int = 0) -> Path:
    """Write photographs into class folders, as even as possible: the same bytes for the same seed."""
    names = list(CLASSES)
    files = [(names[n % len(names)], n // len(names)) for n in range(n_photos)]
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)

    def write(file: tuple[str, int]) -> None:
        name, number = file
        image = Image.fromarray(draw_photo(name, number, seed=seed))
        image.save(folder / name / f"{number:04d}.jpg", quality=JPEG_QUALITY)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(write, files))
    return folder


def draw_photo(
    name: str, number: int, *, seed: int = 0, width: int = WIDTH, height: int = HEIGHT
) -> npt.NDArray[np.uint8]:
    """A photograph (height, width, 3) of a class; it follows from the arguments alone."""
    tint, degrees = CLASSES[name]
    random = np.random.default_rng([seed, list(CLASSES).index(name), number])
    direction = np.deg2rad(degrees + random.normal(0, 20))
    brightness = CONTRAST * _natural_noise(random, width, height, direction)
    warmth = COLOUR_CONTRAST * _natural_noise(random, width, height, direction)
    mean = np.array(tint) + random.normal(0, TINT_SPREAD, 3)
    hue = random.normal(0, 1, 3)
    hue -= hue.mean()  # changes the colour, not the brightness
    pixels = mean + brightness[..., None] + warmth[..., None] * hue / np.linalg.norm(hue)
    photo: npt.NDArray[np.uint8] = np.clip(pixels, 0, 255).astype(np.uint8)
    return photo


def _natural_noise(random: np.random.Generator, width: int, height: int, direction: float) -> FloatArray:
    """Noise (height, width) of mean 0 and variance 1 of a natural spectrum, stretched along a line."""
    rows, columns = np.fft.fftfreq(height), np.fft.rfftfreq(width)
    y, x = np.meshgrid(rows.astype(np.float32), columns.astype(np.float32), indexing="ij")
    along = x * np.cos(direction) + y * np.sin(direction)
    across = y * np.cos(direction) - x * np.sin(direction)
    frequency = np.hypot(STRETCH * along, across)
    frequency[0, 0] = np.inf  # no constant part: the mean colour is drawn on its own
    spectrum = np.fft.rfft2(random.standard_normal((height, width), np.float32)) / frequency**FALL
    noise = np.fft.irfft2(spectrum, s=(height, width))
    scaled: FloatArray = noise / noise.std()
    return scaled
