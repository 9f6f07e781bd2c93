"""What images are is found once and kept by content; the decoding for a search finds it along the way."""

from pathlib import Path

import numpy as np
import pytest

from tests.image_files import encode, noise, scene
from tune_inat.contents import hash_content
from tune_inat.errors import DataError
from tune_inat.facts import ImageFacts, has_facts, load_facts
from tune_inat.images import load_pixels
from tune_inat.meter import SilentMeter
from tune_inat.pictures import inspect_picture
from tune_inat.store import Store


@pytest.fixture
def store(own_cache: Path) -> Store:
    return Store(own_cache)


@pytest.fixture
def files(hostile_path: Path) -> dict[str, Path]:
    """A picture, its near copy as a large JPEG, another picture, and one that is cut short; by content."""
    large = scene(0, 2_400, 3_200)
    (hostile_path / "large.jpg").write_bytes(encode(large, "JPEG", quality=80))
    (hostile_path / "small.png").write_bytes(encode(large[::20, ::20], "PNG"))
    (hostile_path / "other.png").write_bytes(encode(scene(1), "PNG"))
    (hostile_path / "short.png").write_bytes(encode(noise(2), "PNG")[:-30])
    return {hash_content(path): path for path in sorted(hostile_path.iterdir())}


def load(store: Store, files: dict[str, Path]) -> ImageFacts:
    return load_facts(store, files, n_workers=2, meter=SilentMeter())


def names(files: dict[str, Path], contents: object) -> set[str]:
    assert isinstance(contents, tuple | dict)
    return {files[content].name for content in contents}


def test_facts_say_format_size_damage_and_near_copies(store: Store, files: dict[str, Path]) -> None:
    facts = load(store, files)
    found = {files[c].name: (p.format, p.width, p.height) for c, p in facts.pictures.items()}
    assert found == {
        "large.jpg": ("JPEG", 3_200, 2_400),
        "small.png": ("PNG", 160, 120),
        "other.png": ("PNG", 160, 120),
    }
    assert names(files, facts.unreadable) == {"short.png"}
    assert [names(files, pair) for pair in facts.near] == [{"large.jpg", "small.png"}]


def test_facts_are_kept(store: Store, files: dict[str, Path]) -> None:
    assert not has_facts(store, files)
    first = load(store, files)
    assert has_facts(store, files)
    for path in files.values():
        path.unlink()  # so nothing can be decoded again
    again = load(store, files)
    assert (again.unreadable, again.near) == (first.unreadable, first.near)
    assert again.pictures.keys() == first.pictures.keys()


@pytest.mark.parametrize("size", [16, 224, 512])
def test_decoding_at_any_size_finds_the_same(store: Store, files: dict[str, Path], size: int) -> None:
    pixels = load_pixels(store, files, size=size, n_workers=2, meter=SilentMeter(), with_facts=True)
    readable = {content: path for content, path in files.items() if content in pixels.row_of}
    assert pixels.facts == {content: inspect_picture(path) for content, path in readable.items()}
    for path in files.values():
        path.unlink()  # what the decoding has found is not looked for again
    known = ImageFacts(pixels.facts, pixels.unreadable)
    facts = load_facts(store, files, known=known, n_workers=2, meter=SilentMeter())
    assert facts.unreadable == pixels.unreadable
    assert [names(files, pair) for pair in facts.near] == [{"large.jpg", "small.png"}]


def test_pixels_are_the_same_with_facts(own_cache: Path, files: dict[str, Path]) -> None:
    plain, with_facts = (
        load_pixels(
            Store(own_cache / str(asked)), files, size=48, n_workers=2, meter=SilentMeter(), with_facts=asked
        )
        for asked in (False, True)
    )
    assert plain.key == with_facts.key
    np.testing.assert_array_equal(plain.array, with_facts.array)


def test_failing_disk_is_an_error_and_is_not_kept(store: Store, files: dict[str, Path]) -> None:
    hidden = next(path for path in files.values() if path.name == "other.png")
    away = hidden.rename(hidden.with_suffix(".away"))
    with pytest.raises(DataError, match="No such file"):
        load(store, files)
    away.rename(hidden)
    assert len(load(store, files).pictures) == 3
