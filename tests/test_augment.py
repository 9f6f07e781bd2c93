"""A view follows from seed, image and number alone, and shows the picture that it is of."""

import numpy as np
import pytest
from PIL import Image

from tests.image_files import PixelArray, noise, photo
from tune_inat.augment import OPERATIONS, Augment, draw_view, draws_of

KINDS: tuple[Augment, ...] = ("flip", "light", "strong")


def view(pixels: PixelArray, kind: Augment, index: int, *, seed: int = 0, content: str = "c") -> PixelArray:
    return np.asarray(draw_view(Image.fromarray(pixels), 24, kind, draws_of(seed, content, index)))


@pytest.mark.parametrize("kind", KINDS)
def test_same_draws_give_the_same_view(kind: Augment) -> None:
    for index in range(20):
        np.testing.assert_array_equal(view(noise(0), kind, index), view(noise(0), kind, index))


@pytest.mark.parametrize("kind", ["light", "strong"])
def test_seed_image_and_number_each_change_the_view(kind: Augment) -> None:
    first = view(noise(0), kind, 0)
    for other in (
        view(noise(0), kind, 1),
        view(noise(0), kind, 0, seed=1),
        view(noise(0), kind, 0, content="d"),
    ):
        assert not np.array_equal(first, other)


def test_draws_stay_the_same_in_all_versions() -> None:
    # Python promises `random()` for a text as seed; kept views of all users depend on it.
    assert draws_of(7, "abc", 3).random() == 0.24121754796154682


def test_flip_mirrors_about_half_of_the_views() -> None:
    pixels = noise(0, 24, 24)  # no resize
    mirrored = [np.array_equal(view(pixels, "flip", index), pixels[:, ::-1]) for index in range(200)]
    plain = [np.array_equal(view(pixels, "flip", index), pixels) for index in range(200)]
    assert all(np.logical_xor(mirrored, plain))
    assert 70 < sum(mirrored) < 130  # 4 standard deviations


def test_crop_keeps_within_the_picture_and_its_limits() -> None:
    pixels = photo(300, 300)  # red and green are the coordinates
    for index in range(300):
        seen = view(pixels, "light", index).astype(float)
        height = (seen[..., 1].max() - seen[..., 1].min()) / 255
        width = (seen[..., 0].max() - seen[..., 0].min()) / 255
        # A view of 24 pixels shows the middles of its outermost pixels: 23/24 of the crop.
        area, ratio = width * height * (24 / 23) ** 2, width / height
        assert 0.57 < area < 1.03
        assert 0.73 < ratio < 1.37


def test_strong_keeps_a_picture_recognisable_in_most_views() -> None:
    pixels = photo(24, 24).astype(float)
    views = [view(photo(24, 24), "strong", index).astype(float) for index in range(100)]
    changes = [np.abs(seen - pixels).mean() for seen in views]
    assert min(changes) > 0
    assert np.median(changes) < 80  # noise would be at 85


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("strength", [-1.0, -0.3, 0.0, 1.0])
def test_each_operation_takes_each_strength(operation: object, strength: float) -> None:
    assert callable(operation)
    seen = operation(Image.fromarray(photo(24, 24)), strength)
    assert (seen.size, seen.mode) == ((24, 24), "RGB")


@pytest.mark.parametrize(
    "operation", [o for o in OPERATIONS if o.__name__ not in ("_autocontrast", "_equalize")]
)
def test_strength_zero_changes_nothing(operation: object) -> None:
    assert callable(operation)
    pixels = photo(24, 24)
    np.testing.assert_array_equal(np.asarray(operation(Image.fromarray(pixels), 0.0)), pixels)
