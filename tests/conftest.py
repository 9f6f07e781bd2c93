"""What all tests share: paths as hostile as users' own, and a cache of their own."""

from pathlib import Path

import pytest

from tests.benches import write_images
from tune_inat.store import Store


@pytest.fixture
def hostile_path(tmp_path: Path) -> Path:
    """A folder whose name has spaces, quotes and umlauts."""
    folder = tmp_path / 'it\'s a "Wald" mit Bäumen'
    folder.mkdir()
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test has an empty cache of its own, and no W&B key."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("TUNE_INAT_CACHE", str(cache))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    return cache


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a few coloured images, for a workbench (`tests.benches`)."""
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture
def store(hostile_path: Path) -> Store:
    """An empty store."""
    return Store(hostile_path / "cache")
