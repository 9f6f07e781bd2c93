"""Each way to name a data set leads to a folder here, or to an error that says what would."""

import os
import re
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tests.image_files import encode, noise, write_classes
from tune_inat.errors import DataError, ResourceError
from tune_inat.meter import SilentMeter
from tune_inat.origins import INATURALIST, Archive, Origin, locate

SMALL = replace(INATURALIST, n_classes=2, n_images={"train": 6, "val": 4})


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Archive]:
    """A small data set of iNaturalist-12K's shape on a server of our own; the current folder is empty."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    site, here = tmp_path / "site", tmp_path / "here"
    for folder in (site, here):
        folder.mkdir()
    monkeypatch.chdir(here)
    write_archive(site / "nature_12K.zip", n_train=3, n_val=2)
    handler = partial(QuietHandler, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield replace(SMALL, url=f"http://127.0.0.1:{http.server_port}/nature_12K.zip")
        http.shutdown()


def write_archive(path: Path, *, n_train: int, n_val: int) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("__MACOSX/inaturalist_12K/._x", b"")
        archive.writestr("inaturalist_12K/train/.DS_Store", b"")
        for part, count in (("train", n_train), ("val", n_val)):
            for class_name in ("Amphibia", "Aves"):
                for number in range(count):
                    name = f"inaturalist_12K/{part}/{class_name}/{number}.png"
                    archive.writestr(name, encode(noise(number), "PNG"))


def find(source: str, cache: Path, archive: Archive = SMALL) -> Origin:
    return locate(source, cache=cache, meter=SilentMeter(), inaturalist=archive)


def test_sample_is_scikit_learns_digits(own_cache: Path) -> None:
    root = find("sample", own_cache).root
    digits = load_digits()
    files = {int(path.stem): path for path in root.rglob("*.png")}
    assert len(files) == 1_797
    for number in range(0, 1_797, 100):
        assert files[number].parent.name == str(digits.target[number])
        values = np.asarray(Image.open(files[number])).astype(float) * 16 / 255
        np.testing.assert_array_equal(values.round(), digits.images[number])


def test_sample_is_written_once_and_mended(own_cache: Path) -> None:
    root = find("sample", own_cache).root
    before = (root / "0" / "0000.png").stat().st_mtime_ns
    find("sample", own_cache)
    assert (root / "0" / "0000.png").stat().st_mtime_ns == before
    os.truncate(root / "1" / "0001.png", 0)
    find("sample", own_cache)
    assert Image.open(root / "1" / "0001.png").size == (8, 8)


def test_inaturalist_is_fetched_once(published: Archive, own_cache: Path) -> None:
    origin = find("inaturalist12k", own_cache, published)
    assert len(list(origin.root.rglob("*.png"))) == 10
    again = find("inaturalist12k", own_cache, replace(published, url="http://127.0.0.1:1/gone.zip"))
    assert again == origin


def test_inaturalists_val_is_the_test_set(published: Archive, own_cache: Path) -> None:
    assert find("inaturalist12k", own_cache, published).parts == {"train": "train", "val": "test"}


def test_nothing_but_the_data_is_left_of_a_download(published: Archive, own_cache: Path) -> None:
    find("inaturalist12k", own_cache, published)
    left = sorted(path.name for path in (own_cache / "data").iterdir() if path.suffix != ".lock")
    assert left == ["inaturalist_12K"]


def test_folder_that_lies_here_is_used_as_it_is(published: Archive, own_cache: Path) -> None:
    here = Path.cwd() / "inaturalist_12K"
    write_classes(here, {"train/Aves": 3, "train/Mammalia": 3, "val/Aves": 2, "val/Mammalia": 1})
    origin = find("inaturalist12k", own_cache, replace(published, url="http://127.0.0.1:1/gone.zip"))
    assert origin.root == here
    assert origin.notices == (
        f"{here}: used as it is.",
        f"{here}: val/ has 3 images in 2 classes; published were 4 in 2.",
    )


def test_download_with_other_counts_is_refused_and_removed(published: Archive, own_cache: Path) -> None:
    with pytest.raises(
        DataError, match=r"(?s)train/ has 6 images in 2 classes; published were 9,999 in 2.*anew"
    ):
        find("inaturalist12k", own_cache, replace(published, n_images={"train": 9_999}))
    assert not [path for path in (own_cache / "data").iterdir() if path.suffix != ".lock"]
    find("inaturalist12k", own_cache, published)  # and it can be had again


def test_damaged_download_is_refused_and_removed(published: Archive, own_cache: Path, tmp_path: Path) -> None:
    archive = tmp_path / "site" / "nature_12K.zip"
    archive.write_bytes(archive.read_bytes()[:-40])  # the server itself has a short file
    with pytest.raises(DataError, match=r"(?s)not a whole zip archive.*downloads it anew"):
        find("inaturalist12k", own_cache, published)
    write_archive(archive, n_train=3, n_val=2)
    find("inaturalist12k", own_cache, published)


def test_published_inaturalist_is_what_the_readme_says() -> None:
    assert INATURALIST.n_images == {"train": 9_999, "val": 2_000}
    assert INATURALIST.n_classes == 10
    assert INATURALIST.url.endswith("/nature_12K.zip")


def test_path_is_made_absolute(hostile_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(hostile_path.parent)
    monkeypatch.setenv("HOME", str(hostile_path.parent))
    assert find(hostile_path.name, own_cache).root == hostile_path
    assert find(f"~/{hostile_path.name}", own_cache).root == hostile_path


def test_uri_is_copied_here(hostile_path: Path, own_cache: Path) -> None:
    write_classes(hostile_path, {"a": 1, "b": 2})
    root = find(hostile_path.as_uri(), own_cache).root
    assert root.is_relative_to(own_cache)
    assert len(list(root.rglob("*.png"))) == 3


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("smaple", r"no such folder\. Did you mean sample\?"),
        ("inaturalist_12k", r"Did you mean inaturalist12k\?"),
        ("{}/imagse/a", r"no such folder\. Did you mean .*/images\?"),
        ("{}/nothing/like/it", r"no such folder\.$"),
        ("{}/a.zip", r"is an archive\. Unpack it"),
        ("{}/a.csv", r"is a file\. Give a folder"),
        ("", "empty"),
        ("a\0b", "NUL"),
    ],
)
def test_what_is_no_folder_says_so(tmp_path: Path, own_cache: Path, source: str, message: str) -> None:
    (tmp_path / "images").mkdir()
    for name in ("a.zip", "a.csv"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=message):
        find(source.format(tmp_path), own_cache)


def test_cache_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(ResourceError, match=re.escape(f"{tmp_path}/cache/data: cannot be written")):
        find("sample", tmp_path / "cache")
