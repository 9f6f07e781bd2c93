"""Augmented views of a picture: the same draws give the same view, in any thread and process."""

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from PIL.Image import Image

Augment = Literal["flip", "light", "strong"]

MIN_CROP_AREA = 0.6  # share of the picture that a crop keeps at least
MAX_CROP_RATIO = 4 / 3  # how much wider or higher a crop may be than the picture's own shape
JITTER = 0.3  # colour jitter: brightness, contrast and saturation by a factor of 0.7..1.3
GRAY = (124, 116, 104)  # ImageNet's mean colour, for what a rotated or shifted picture uncovers

# TrivialAugment's wide space (Müller and Hutter, ICCV 2021, table 5): strengths at 1.0
MAX_FACTOR = 0.99  # of the enhancements, and of the shears
MAX_ANGLE = 135.0
MAX_SHIFT = 32 / 224  # the paper's 32 pixels, at the size that it trains at
MIN_BITS = 2

Operation = Callable[["Image", float], "Image"]


def draws_of(seed: int, content: str, index: int) -> random.Random:
    """The source of all draws for one view of one image, independent of every other.

    Python's own generator: unlike numpy's, it promises the same numbers in later versions.
    """
    return random.Random(f"{seed}/{index}/{content}")


def draw_view(picture: "Image", size: int, augment: Augment, draws: random.Random) -> "Image":
    """One augmented view of an RGB picture, (size, size).

    `flip` mirrors half of the views. `light` also crops: an area of 0.6 to 1 of the picture, whose shape
    differs from the picture's by a factor of up to 4/3, as whole pictures too are squeezed to a square.
    `strong` adds colour jitter and one operation of TrivialAugment.
    """
    from PIL.Image import Resampling, Transpose

    is_mirrored = draws.random() < 0.5
    box = None if augment == "flip" else _draw_crop(picture.width, picture.height, draws)
    view = picture.resize((size, size), Resampling.BICUBIC, box=box)
    if is_mirrored:
        view = view.transpose(Transpose.FLIP_LEFT_RIGHT)
    if augment == "strong":
        view = _apply_trivial_augment(_jitter_colours(view, draws), draws)
    return view


def _draw_crop(width: int, height: int, draws: random.Random) -> tuple[float, float, float, float]:
    area = draws.uniform(MIN_CROP_AREA, 1.0)
    widest = min(MAX_CROP_RATIO, 1.0 / area)  # a wider crop of this area would leave the picture
    ratio = widest ** draws.uniform(-1.0, 1.0)
    crop_width, crop_height = width * (area * ratio) ** 0.5, height * (area / ratio) ** 0.5
    left = draws.uniform(0.0, 1.0) * max(0.0, width - crop_width)
    top = draws.uniform(0.0, 1.0) * max(0.0, height - crop_height)
    return left, top, min(width, left + crop_width), min(height, top + crop_height)


def _jitter_colours(view: "Image", draws: random.Random) -> "Image":
    for enhance in (_brightness, _contrast, _saturation):
        view = enhance(view, draws.uniform(-JITTER, JITTER))
    return view


def _apply_trivial_augment(view: "Image", draws: random.Random) -> "Image":
    """One operation drawn evenly, at a strength drawn evenly from -1..1."""
    operation = OPERATIONS[int(draws.random() * len(OPERATIONS))]
    return operation(view, draws.uniform(-1.0, 1.0))


def _identity(view: "Image", strength: float) -> "Image":
    return view


def _brightness(view: "Image", strength: float) -> "Image":
    from PIL.ImageEnhance import Brightness

    return Brightness(view).enhance(1.0 + strength)


def _contrast(view: "Image", strength: float) -> "Image":
    from PIL.ImageEnhance import Contrast

    return Contrast(view).enhance(1.0 + strength)


def _saturation(view: "Image", strength: float) -> "Image":
    from PIL.ImageEnhance import Color

    return Color(view).enhance(1.0 + strength)


def _sharpness(view: "Image", strength: float) -> "Image":
    from PIL.ImageEnhance import Sharpness

    return Sharpness(view).enhance(1.0 + strength)


def _posterize(view: "Image", strength: float) -> "Image":
    from PIL.ImageOps import posterize

    return posterize(view, 8 - round(abs(strength) * (8 - MIN_BITS)))


def _solarize(view: "Image", strength: float) -> "Image":
    from PIL.ImageOps import solarize

    return solarize(view, round(256 * (1.0 - abs(strength))))


def _autocontrast(view: "Image", strength: float) -> "Image":
    from PIL.ImageOps import autocontrast

    return autocontrast(view)


def _equalize(view: "Image", strength: float) -> "Image":
    from PIL.ImageOps import equalize

    return equalize(view)


def _rotate(view: "Image", strength: float) -> "Image":
    from PIL.Image import Resampling

    return view.rotate(strength * MAX_ANGLE, Resampling.BILINEAR, fillcolor=GRAY)


def _shear_x(view: "Image", strength: float) -> "Image":
    shear = strength * MAX_FACTOR
    return _transform(view, (1.0, shear, -shear * view.height / 2, 0.0, 1.0, 0.0))


def _shear_y(view: "Image", strength: float) -> "Image":
    shear = strength * MAX_FACTOR
    return _transform(view, (1.0, 0.0, 0.0, shear, 1.0, -shear * view.width / 2))


def _shift_x(view: "Image", strength: float) -> "Image":
    return _transform(view, (1.0, 0.0, strength * MAX_SHIFT * view.width, 0.0, 1.0, 0.0))


def _shift_y(view: "Image", strength: float) -> "Image":
    return _transform(view, (1.0, 0.0, 0.0, 0.0, 1.0, strength * MAX_SHIFT * view.height))


def _transform(view: "Image", matrix: tuple[float, ...]) -> "Image":
    """An affine map around the middle: `matrix` leads from a point of the result to one of `view`."""
    from PIL.Image import Resampling, Transform

    return view.transform(view.size, Transform.AFFINE, matrix, Resampling.BILINEAR, fillcolor=GRAY)


OPERATIONS: tuple[Operation, ...] = (
    _identity,
    _brightness,
    _contrast,
    _saturation,
    _sharpness,
    _posterize,
    _solarize,
    _autocontrast,
    _equalize,
    _rotate,
    _shear_x,
    _shear_y,
    _shift_x,
    _shift_y,
)
