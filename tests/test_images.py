"""Pixels are decoded once, the same by each way, and kept by content."""

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.image_files import encode, noise, photo
from tune_inat.augment import Augment
from tune_inat.contents import hash_content
from tune_inat.errors import DataError, ResourceError
from tune_inat.images import Pixels, View, augment, decode, decode_batch, load_pixels, pixels_key
from tune_inat.meter import Advance, SilentMeter
from tune_inat.store import Store

FLIP, LIGHT, STRONG = (View(kind, seed=1, index=2) for kind in ("flip", "light", "strong"))


def load(store: Store, files: Mapping[str, Path], view: View | None = None, *, n_workers: int = 2) -> Pixels:
    return load_pixels(store, files, size=16, view=view, n_workers=n_workers, meter=SilentMeter())


@pytest.fixture
def store(own_cache: Path) -> Store:
    return Store(own_cache)


@pytest.fixture
def files(hostile_path: Path) -> dict[str, Path]:
    """Seven images by content, one of them a JPEG."""
    for number in range(6):
        (hostile_path / f"{number}.png").write_bytes(encode(noise(number, 20 + number, 30), "PNG"))
    (hostile_path / "6.jpg").write_bytes(encode(photo(100, 80), "JPEG"))
    return {hash_content(path): path for path in sorted(hostile_path.iterdir())}


def test_whole_picture_is_squeezed_to_a_square(tmp_path: Path) -> None:
    path = tmp_path / "wide.png"
    path.write_bytes(encode(photo(50, 300), "PNG"))
    square = decode(path, 40)
    assert square.shape == (40, 40, 3)
    assert square.dtype == np.uint8
    assert square[20, 0, 0] < 8  # both ends of the wide side are there
    assert square[20, -1, 0] > 247


def test_shrinking_is_antialiased(tmp_path: Path) -> None:
    checks = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)
    path = tmp_path / "checks.png"
    path.write_bytes(encode(Image.fromarray(checks), "PNG"))
    assert np.abs(decode(path, 32).astype(int) - 127).max() <= 2  # without, it would be black or white


@pytest.mark.parametrize("size", [32, 60, 100])
def test_reduced_decoding_of_jpegs_costs_no_quality(tmp_path: Path, size: int) -> None:
    # Smooth shapes with texture, as photographs are.
    draws = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    large = np.asarray(Image.fromarray(draws).resize((1280, 960), Image.Resampling.BICUBIC))
    path = tmp_path / "large.jpg"
    path.write_bytes(encode(large, "JPEG", quality=95))
    whole = Image.open(path).convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    assert np.abs(decode(path, size).astype(int) - np.asarray(whole)).mean() < 1.0


def test_rows_are_in_the_order_of_contents(store: Store, files: dict[str, Path]) -> None:
    pixels = load(store, files)
    assert list(pixels.row_of) == sorted(files)
    for content, path in files.items():
        np.testing.assert_array_equal(pixels.array[pixels.row_of[content]], decode(path, 16))


@pytest.mark.parametrize("view", [FLIP, LIGHT, STRONG], ids=["flip", "light", "strong"])
def test_views_are_the_same_by_each_way(store: Store, files: dict[str, Path], view: View) -> None:
    pixels = load(store, files, view)
    pairs = list(files.items())
    with ThreadPoolExecutor(3) as pool:
        batch = decode_batch(pairs, 16, view, pool=pool)
    for (content, path), from_batch in zip(pairs, batch, strict=True):
        kept = pixels.array[pixels.row_of[content]]
        np.testing.assert_array_equal(kept, decode(path, 16, view, content))
        np.testing.assert_array_equal(kept, from_batch)


def test_view_of_an_array_is_that_of_its_file(files: dict[str, Path]) -> None:
    content, path = next((c, p) for c, p in files.items() if p.suffix == ".png")
    array = np.asarray(Image.open(path))
    np.testing.assert_array_equal(augment(array, 16, LIGHT, content), decode(path, 16, LIGHT, content))


def test_number_of_threads_changes_no_pixel(tmp_path: Path, files: dict[str, Path]) -> None:
    alone = load(Store(tmp_path / "a"), files, STRONG, n_workers=1)
    many = load(Store(tmp_path / "b"), files, STRONG, n_workers=8)
    np.testing.assert_array_equal(alone.array, many.array)


def test_images_are_decoded_once(store: Store, files: dict[str, Path]) -> None:
    first = load(store, files)
    for path in files.values():
        path.unlink()  # whatever still needs the files fails now
    again = load(Store(store.root), files)
    assert (first.n_decoded, again.n_decoded) == (7, 0)
    assert again.key == first.key
    np.testing.assert_array_equal(again.array, first.array)


def test_names_and_places_do_not_matter(store: Store, files: dict[str, Path], tmp_path: Path) -> None:
    load(store, files)
    moved = {content: path.rename(tmp_path / f"{content}.bin") for content, path in files.items()}
    assert load(store, moved).n_decoded == 0


def test_size_view_and_contents_each_have_a_key_of_their_own() -> None:
    kinds: tuple[Augment, ...] = ("flip", "light", "strong")
    views = [None, *(View(kind, seed, index) for kind in kinds for seed in (0, 1) for index in (0, 1))]
    keys = {pixels_key(c, size=s, view=v) for c in (["a"], ["a", "b"]) for s in (32, 64) for v in views}
    assert len(keys) == 2 * 2 * 13
    assert pixels_key(["b", "a"], size=32) == pixels_key(["a", "b"], size=32)


def test_pixels_cannot_be_written_to(store: Store, files: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="read-only"):
        load(store, files).array[0] = 0


def test_what_cannot_be_read_has_a_reason_and_no_row(
    store: Store, files: dict[str, Path], hostile_path: Path
) -> None:
    bad = hostile_path / "bad.png"
    bad.write_bytes(encode(noise(9), "PNG")[:-30])
    content = hash_content(bad)
    for pixels in (load(store, {**files, content: bad}), load(store, {**files, content: bad})):
        assert "cut short" in pixels.unreadable[content]
        assert content not in pixels.row_of
        assert len(pixels.row_of) == 7


def test_failing_disk_is_an_error_and_is_not_kept(store: Store, files: dict[str, Path]) -> None:
    content, path = next(iter(files.items()))
    hidden = path.rename(path.with_suffix(".away"))
    with pytest.raises(DataError, match="No such file"):
        load(store, files)
    hidden.rename(path)
    assert content in load(store, files).row_of


def test_batch_names_the_file_that_is_gone(files: dict[str, Path]) -> None:
    pairs = list(files.items())
    pairs[3][1].unlink()
    with ThreadPoolExecutor(2) as pool, pytest.raises(DataError, match=pairs[3][1].name):
        decode_batch(pairs, 16, None, pool=pool)


def test_pixels_that_do_not_fit_are_refused_before_decoding(store: Store) -> None:
    files = {f"{number:032x}": Path("nowhere") for number in range(100)}
    with pytest.raises(ResourceError, match=r"300,000\.00 GB are needed for the decoded images"):
        load_pixels(store, files, size=10**6, n_workers=1, meter=SilentMeter())


def test_room_is_taken_before_decoding(store: Store, files: dict[str, Path]) -> None:
    taken = []

    class Watching:
        def task(self, title: str, total: int | None, unit: str) -> AbstractContextManager[Advance]:
            array_file = next(store.root.rglob("pixels.npy"))
            taken.append(array_file.stat().st_blocks * 512 - array_file.stat().st_size)
            return SilentMeter().task(title, total, unit)

    load_pixels(store, files, size=128, n_workers=1, meter=Watching())
    assert taken[0] >= 0


def test_disk_that_fills_up_is_an_error(store: Store, files: dict[str, Path]) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, before[1]))
    try:
        with pytest.raises(ResourceError, match=r"pixels.npy: cannot be written \(File too large\)"):
            load(store, files)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_killed_decoding_goes_on_where_it_was(store: Store, hostile_path: Path) -> None:
    for number in range(40):
        (hostile_path / f"{number}.png").write_bytes(encode(noise(number), "PNG"))
    script = """
import os, sys
from pathlib import Path
from tune_inat import images
from tune_inat.contents import hash_content
from tune_inat.meter import SilentMeter
from tune_inat.store import Store
images.ROWS_A_CHUNK = 8
decode, n_left = images.decode, 20
def decode_and_die(*args):
    global n_left
    n_left -= 1
    if n_left < 0:
        os.kill(os.getpid(), 9)
    return decode(*args)
images.decode = decode_and_die
files = {hash_content(path): path for path in Path(sys.argv[2]).iterdir()}
images.load_pixels(Store(Path(sys.argv[1])), files, size=16, n_workers=1, meter=SilentMeter())
"""
    dead = subprocess.run([sys.executable, "-c", script, store.root, hostile_path], check=False)
    assert dead.returncode == -signal.SIGKILL
    files = {hash_content(path): path for path in hostile_path.iterdir()}
    pixels = load(store, files)
    assert pixels.n_decoded == 24  # 16 of 40 were recorded, in two chunks of 8
    for content, path in files.items():
        np.testing.assert_array_equal(pixels.array[pixels.row_of[content]], decode(path, 16))


def _load_in_process(root: Path, files: dict[str, Path]) -> int:
    return load(Store(root), files).n_decoded


def test_processes_share_one_decoding(own_cache: Path, files: dict[str, Path]) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        decoded = pool.starmap(_load_in_process, [(own_cache, files)] * 3)
    assert sorted(decoded) == [0, 0, 7]


def test_entry_cut_short_is_built_anew(store: Store, files: dict[str, Path]) -> None:
    key = load(store, files).key
    array_file = store.path("pixels", key) / "pixels.npy"
    os.truncate(array_file, array_file.stat().st_size - 1)
    pixels = load(Store(store.root), files)
    assert pixels.n_decoded == 7
    assert json.loads((array_file.parent / "index.json").read_bytes())["n_done"] == 7
