"""The store: built once, whole or not at all, within its budget."""

import json
import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tune_inat.disk import size_of
from tune_inat.errors import ResourceError
from tune_inat.runs import held
from tune_inat.states import RECORD_FILE, FamilyStates
from tune_inat.store import (
    CACHE_VARIABLE,
    ENTRY_FILE,
    STAMPS_FILE,
    STATES_KIND,
    Store,
    _hash_file,
    default_root,
    hash_of,
    write_atomically,
)


@pytest.fixture
def store(hostile_path: Path) -> Store:
    return Store(hostile_path / "cache")


def write_hello(folder: Path) -> None:
    (folder / "hello.txt").write_text("hello")


def fail_to_build(folder: Path) -> None:
    pytest.fail("an entry that is there must not be built again")


def test_entry_is_built_once(store: Store) -> None:
    folder = store.get_or_build("greetings", "a", write_hello)
    assert (folder / "hello.txt").read_text() == "hello"
    assert Store(store.root).get_or_build("greetings", "a", fail_to_build) == folder
    assert store.has("greetings", "a")
    assert not store.has("greetings", "b")


def test_failed_build_leaves_no_entry_and_the_next_goes_on_from_it(store: Store) -> None:
    def half(folder: Path) -> None:
        (folder / "half.txt").write_text("half")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        store.get_or_build("things", "a", half)
    assert not store.has("things", "a")
    folder = store.get_or_build("things", "a", lambda folder: (folder / "rest.txt").touch())
    assert sorted(file.name for file in folder.iterdir()) == [
        ENTRY_FILE,
        "half.txt",
        "rest.txt",
        STAMPS_FILE,
    ]


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "hello.txt").write_text("hell"),
        lambda folder: (folder / "hello.txt").write_text("hallo"),
        lambda folder: (folder / "hello.txt").unlink(),
        lambda folder: (folder / ENTRY_FILE).write_text("{"),
        lambda folder: (folder / ENTRY_FILE).write_text(
            (folder / ENTRY_FILE).read_text().replace('"bytes": 5', '"bytes": 4')
        ),
    ],
    ids=["cut short", "altered", "a file gone", "torn record", "altered record"],
)
def test_damaged_entry_is_seen_and_built_anew(store: Store, damage) -> None:  # type: ignore[no-untyped-def]
    folder = store.get_or_build("greetings", "a", write_hello)
    damage(folder)
    assert not store.has("greetings", "a")
    again = store.get_or_build("greetings", "a", write_hello)
    assert (again / "hello.txt").read_text() == "hello"


def copy_entry(folder: Path) -> None:
    """Put a copy in an entry's place, as a backup that was played back does: other inodes, other times."""
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    shutil.rmtree(folder)
    copy.rename(folder)


def test_entry_that_was_copied_is_whole_and_one_altered_on_the_way_is_not(store: Store) -> None:
    folder = store.get_or_build("greetings", "a", write_hello)
    copy_entry(folder)
    assert store.has("greetings", "a")
    assert store.get_or_build("greetings", "a", fail_to_build) == folder
    copy_entry(folder)
    (folder / "hello.txt").write_text("hallo")
    os.utime(folder / "hello.txt", (1000, 1000))
    assert not store.has("greetings", "a")


def test_content_is_read_again_only_where_files_were_touched(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = store.get_or_build("greetings", "a", write_hello)
    hashed: list[Path] = []

    def hash_file(path: Path) -> str:
        hashed.append(path)
        return _hash_file(path)

    monkeypatch.setattr("tune_inat.store._hash_file", hash_file)
    assert store.has("greetings", "a")
    assert hashed == []
    (folder / "hello.txt").touch()
    assert store.has("greetings", "a")
    assert store.has("greetings", "a")
    assert hashed == [folder / "hello.txt"]


def write_kilobyte(folder: Path) -> None:
    (folder / "data").write_bytes(bytes(1000))


def test_oldest_unused_entries_go_when_the_budget_is_full(hostile_path: Path) -> None:
    store = Store(hostile_path / "cache")
    for number, key in enumerate("abc"):
        folder = store.get_or_build("data", key, write_kilobyte)
        os.utime(folder / ENTRY_FILE, (1000 + number, 1000 + number))
        store.release("data", key)
    tight = Store(store.root, budget_bytes=4200)
    tight.get_or_build("data", "d", write_kilobyte)
    assert [store.has("data", key) for key in "abcd"] == [False, True, True, True]


def test_entry_in_use_stays_even_over_budget(hostile_path: Path) -> None:
    store = Store(hostile_path / "cache", budget_bytes=1500)
    store.get_or_build("data", "a", write_kilobyte)
    store.get_or_build("data", "b", write_kilobyte)
    assert store.has("data", "a")
    store.release("data", "a")
    store.release("data", "b")
    store.get_or_build("data", "c", write_kilobyte)
    assert [store.has("data", key) for key in "abc"] == [False, False, True]


def make_family(store: Store, key: str, used: float) -> FamilyStates:
    """A family of epochs with a kilobyte of weights."""
    family = FamilyStates(store.root / STATES_KIND, key)
    with family.exclusively():
        family.save(1, {"w": torch.zeros(250)}, {})
        family.append({"epoch": 1}, {})
    os.utime(family.folder / RECORD_FILE, (used, used))
    return family


def make_entry(store: Store, key: str, used: float) -> None:
    folder = store.get_or_build("data-of-trials", key, write_kilobyte)
    os.utime(folder / ENTRY_FILE, (used, used))
    store.release("data-of-trials", key)


def tight(store: Store, n_bytes_too_many: int) -> Store:
    """The same store with a budget that it exceeds."""
    return Store(store.root, budget_bytes=size_of(store.root) - n_bytes_too_many)


def test_epochs_and_entries_go_together_the_oldest_use_first(store: Store) -> None:
    families = [make_family(store, "f1", 1001), make_family(store, "f3", 1003)]
    make_entry(store, "e2", 1002)
    tight(store, 1).make_room()
    assert [family.folder.exists() for family in families] == [False, True]
    tight(store, 1).make_room()
    assert not store.has("data-of-trials", "e2")
    assert families[1].record().rows == ({"epoch": 1},)
    tight(store, 1).make_room()
    assert not families[1].folder.exists()


def test_epochs_that_are_trained_on_stay_and_count_as_used(store: Store) -> None:
    family = make_family(store, "f1", 1001)
    make_entry(store, "e2", 1002)
    with family.exclusively():
        tight(store, 10**6).make_room()
    assert family.record().rows == ({"epoch": 1},)
    make_entry(store, "e3", 1003)
    tight(store, 1).make_room()
    assert family.folder.exists()
    assert not store.has("data-of-trials", "e3")


def make_copy(store: Store, name: str, used: float) -> Path:
    """A copy of a search's folder that is in a bucket."""
    folder = store.root / name
    folder.mkdir(parents=True)
    write_kilobyte(folder)
    for path in (folder / "data", folder):
        os.utime(path, (used, used))
    return folder


def test_copies_of_what_is_in_buckets_go_when_they_were_unused_for_longest(store: Store) -> None:
    make_entry(store, "e2", 1002)
    written, read = (make_copy(store, f"{kind}/abc/photos", 1001) for kind in ("storage", "looked-at"))
    with held(written):
        tight(store, 1).make_room()
        assert (written.exists(), read.exists()) == (True, False)
    for path in (*written.iterdir(), written):  # its lock is of now
        os.utime(path, (1001, 1001))
    tight(store, 1).make_room()
    assert not written.exists()
    assert store.has("data-of-trials", "e2")


def left_over(path: Path, *, age_seconds: float) -> Path:
    """A kilobyte that a killed process left."""
    path.mkdir(parents=True)
    write_kilobyte(path)
    then = time.time() - age_seconds
    for part in (path / "data", path):
        os.utime(part, (then, then))
    return path


DAY = 24 * 3600


@pytest.mark.parametrize(
    "name",
    [
        "pixels/.{}.part",
        "pixels/.{}.7.8.gone",
        "states/.{}.7.8.gone",
        "contents/.{}.json.7.8.tmp",
        "storage/abc/.{}.7.8.gone",
    ],
)
def test_what_killed_processes_left_goes_after_a_day_and_goes_first(store: Store, name: str) -> None:
    make_entry(store, "e1", 1001)
    old = left_over(store.root / name.format("a"), age_seconds=DAY + 60)
    fresh = left_over(store.root / name.format("b"), age_seconds=DAY - 600)
    tight(store, 1).make_room()
    assert (old.exists(), fresh.exists(), store.has("data-of-trials", "e1")) == (False, True, True)
    Store(store.root, budget_bytes=0).make_room()
    assert (fresh.exists(), store.has("data-of-trials", "e1")) == (True, False)


def test_slow_build_is_no_left_over(store: Store) -> None:
    def build(folder: Path) -> None:
        write_kilobyte(folder)
        for path in (folder / "data", folder):
            os.utime(path, (1000, 1000))
        Store(store.root, budget_bytes=0).make_room()

    assert (store.get_or_build("pixels", "a", build) / "data").exists()


def test_downloads_count_and_stay(store: Store) -> None:
    make_entry(store, "e1", 1001)
    paths = [
        left_over(store.root / name, age_seconds=9 * DAY) for name in ("data/.x.part", "remote/abc/files")
    ]
    Store(store.root, budget_bytes=2500).make_room()
    assert all(path.exists() for path in paths)
    assert not store.has("data-of-trials", "e1")


def test_what_was_used_in_the_future_is_taken_for_used_now_and_grows_old(store: Store) -> None:
    make_entry(store, "ahead", time.time() + 30 * DAY)  # by a clock that went wrong
    make_family(store, "f1", time.time() + 30 * DAY)
    left = left_over(store.root / "pixels/.a.part", age_seconds=-30 * DAY)
    tight(store, 1).make_room()  # sees them all, and one goes
    assert left.exists()
    now = time.time() + 60
    used = [path.stat().st_mtime for path in (left, *store.root.glob("*/*/*.json")) if path.exists()]
    assert all(time_of_use < now for time_of_use in used)


def test_nothing_goes_within_the_budget(store: Store) -> None:
    make_entry(store, "e1", 1001)
    old = left_over(store.root / "pixels/.a.part", age_seconds=9 * DAY)
    tight(store, 0).make_room()
    assert old.exists()
    assert store.has("data-of-trials", "e1")


BUILDER = """
import sys, time
from pathlib import Path
from tune_inat.store import Store
def build(folder):
    (folder / "owner").write_text(sys.argv[2])
    with open(Path(sys.argv[1]).parent / "builds", "a") as log: log.write(sys.argv[2])
    time.sleep(0.5)
print((Store(Path(sys.argv[1])).get_or_build("things", "a", build) / "owner").read_text())
"""


def test_one_process_builds_while_the_others_wait(hostile_path: Path) -> None:
    root = hostile_path / "cache"
    processes = [
        subprocess.Popen([sys.executable, "-c", BUILDER, str(root), name], stdout=subprocess.PIPE, text=True)
        for name in "123"
    ]
    outputs = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert len((hostile_path / "builds").read_text()) == 1
    assert len(set(outputs)) == 1


def test_cache_is_the_users_alone(store: Store) -> None:
    store.get_or_build("greetings", "a", write_hello)
    assert stat.S_IMODE(store.root.stat().st_mode) == 0o700


def test_place_that_cannot_be_a_folder_is_said(hostile_path: Path) -> None:
    file = hostile_path / "file"
    file.touch()
    with pytest.raises(ResourceError, match=CACHE_VARIABLE):
        Store(file / "cache").get_or_build("greetings", "a", write_hello)
    with pytest.raises(
        ResourceError, match=rf"it is a file\). Set {CACHE_VARIABLE} to a folder that you can"
    ):
        Store(file).get_or_build("greetings", "a", write_hello)


def test_default_place_follows_the_variable(monkeypatch: pytest.MonkeyPatch, hostile_path: Path) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(hostile_path))
    assert default_root() == hostile_path


def test_hash_ignores_the_order_of_mappings_and_nothing_else() -> None:
    assert hash_of({"a": 1, "b": [1, 2]}) == hash_of({"b": (1, 2), "a": 1})
    assert len({hash_of(value) for value in (1, "1", [1], {"a": 1}, 1.5, None, True)}) == 7


def test_atomic_write_replaces_the_whole_file(hostile_path: Path) -> None:
    path = hostile_path / "record.json"
    write_atomically(path, json.dumps([1] * 1000).encode())
    write_atomically(path, b"[2]")
    assert path.read_bytes() == b"[2]"
    assert list(hostile_path.iterdir()) == [path]
