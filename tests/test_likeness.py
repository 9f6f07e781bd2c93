"""Pictures that show the same are found, whatever was done to the file; others are told apart."""

from collections.abc import Callable
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter
from sklearn.datasets import load_digits, load_sample_images

from tests.image_files import encode, noise, scene
from tune_inat.likeness import NEAR, SIDE, link_near_copies, signature_of

Change = Callable[[Image.Image], Image.Image]


def again(image: Image.Image, file_format: str, **options: int) -> Image.Image:
    """The image as another file gives it back."""
    return Image.open(BytesIO(encode(image, file_format, **options))).convert("RGB")


def crop(image: Image.Image) -> Image.Image:
    """Without 1 % on each side."""
    x, y = round(image.width / 100), round(image.height / 100)
    return image.crop((x, y, image.width - x, image.height - y))


CHANGES: dict[str, Change] = {
    "jpeg": lambda image: again(image, "JPEG", quality=30),
    "webp": lambda image: again(image, "WEBP", quality=50),
    "gif": lambda image: again(image, "GIF"),
    "third of the size": lambda image: image.resize((image.width // 3, image.height // 3)),
    "twice the size": lambda image: image.resize((image.width * 2, image.height * 2)),
    "gray": lambda image: image.convert("L").convert("RGB"),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(1)),
    "cropped": crop,
}


def pairs_of(images: list[Image.Image]) -> list[list[int]]:
    """The near copies among images, each of which has a signature."""
    signatures = [np.frombuffer(signature_of(image), np.int8) for image in images]
    pairs: list[list[int]] = link_near_copies(np.stack(signatures)).tolist()
    return pairs


def ramps(n: int) -> list[Image.Image]:
    """Skies: brightness that changes evenly in some direction, with the noise of a camera."""
    images = []
    for seed in range(n):
        draws = np.random.default_rng(seed)
        y, x = np.mgrid[0:120, 0:160] / 160
        along, down = draws.uniform(-1, 1, 2)
        gray = 128 + 90 * (along * x + down * y) + draws.normal(0, 3, x.shape)
        images.append(Image.fromarray(np.clip(gray, 0, 255).astype(np.uint8)).convert("RGB"))
    return images


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changed_file_of_a_photograph_is_a_near_copy(change: Change) -> None:
    photographs = [Image.fromarray(array) for array in load_sample_images().images]
    assert pairs_of([*photographs, *map(change, photographs)]) == [[0, 2], [1, 3]]


def test_different_scenes_are_no_copies() -> None:
    assert pairs_of([Image.fromarray(scene(seed)) for seed in range(150)]) == []
    assert pairs_of([Image.fromarray(noise(seed, 40, 40)) for seed in range(150)]) == []


def test_mirrored_picture_is_no_copy() -> None:
    image = Image.fromarray(scene(0))
    assert pairs_of([image, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]) == []


def test_plain_pictures_are_not_compared() -> None:
    flat = [Image.new("RGB", (100, 80), colour) for colour in ("white", "black", "navy")]
    assert {signature_of(image) for image in (*flat, *ramps(10))} == {b""}


def test_picture_of_few_pixels_is_not_compared() -> None:
    image = Image.fromarray(scene(0))
    assert signature_of(image.resize((SIDE, SIDE)))
    assert signature_of(image.resize((SIDE - 1, 200))) == b""
    digits = [Image.fromarray((digit * 15).astype(np.uint8)).convert("RGB") for digit in load_digits().images]
    assert {signature_of(digit) for digit in digits} == {b""}  # the sample's split cannot change


def test_what_looks_alike_does_not_flow_into_one() -> None:
    # 1,797 digits of 8 x 8 pixels, enlarged: the hardest case that there is. A digit is no copy of another.
    digits = [Image.fromarray((digit * 15).astype(np.uint8)).convert("RGB") for digit in load_digits().images]
    assert len(pairs_of([digit.resize((64, 64)) for digit in digits])) < len(digits) / 10


def test_pairs_are_those_of_plain_arithmetic_and_connect_all_copies() -> None:
    draws = np.random.default_rng(0)
    kinds = draws.integers(-127, 128, (30, 75))
    each = np.repeat(kinds, 4, axis=0) + draws.integers(-20, 21, (120, 75))
    signatures = np.clip(each, -127, 127).astype(np.int8)[draws.permutation(120)]
    unit = signatures / np.linalg.norm(signatures.astype(float), axis=1)[:, None]
    is_near = unit @ unit.T >= NEAR
    pairs = link_near_copies(signatures)
    assert is_near[pairs[:, 0], pairs[:, 1]].all()
    reached = np.eye(120, dtype=bool)
    reached[pairs[:, 0], pairs[:, 1]] = reached[pairs[:, 1], pairs[:, 0]] = True
    for matrix in (reached, is_near):
        for _ in range(7):  # all that can be reached in 2^7 steps
            matrix |= matrix @ matrix
    np.testing.assert_array_equal(reached, is_near)
    n_groups = len(np.unique(reached, axis=0))
    assert 30 < n_groups < 120  # copies are at the edge of being near ones
    assert len(pairs) == 120 - n_groups  # so none that is not needed


def test_many_pictures_are_compared_across_all_blocks() -> None:
    signatures = np.random.default_rng(0).integers(-127, 128, (9_000, 75)).astype(np.int8)
    signatures[8_999] = signatures[3]
    signatures[5_000] = signatures[4_999]
    assert link_near_copies(signatures).tolist() == [[3, 8_999], [4_999, 5_000]]


def test_many_copies_of_one_picture_need_few_pairs() -> None:
    one = np.random.default_rng(0).integers(-127, 128, (1, 75)).astype(np.int8)
    assert len(link_near_copies(np.repeat(one, 3_000, axis=0))) == 2_999
