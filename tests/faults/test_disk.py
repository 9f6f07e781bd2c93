"""Disks that are full, read-only or another user's: said with what needs how much, and gone on from."""

import errno
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch

from tests.benches import config_of, make_bench
from tests.faults.processes import GRID, new_search
from tests.test_forecast import forecaster_of
from tune_inat.disk import is_of_full_disk, make_folder
from tune_inat.errors import EXIT_DONE, EXIT_FAILED, ResourceError
from tune_inat.ledger import LEDGER_FILE, Ledger
from tune_inat.report import is_current
from tune_inat.states import FamilyStates
from tune_inat.store import CACHE_VARIABLE, Store

NOBODY = 65534
BLOCK_BYTES = 4096


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A file system of its own; the test is skipped where mounting is not allowed."""
    folder.mkdir(parents=True)
    mounting = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounting.returncode != 0:
        pytest.skip("no right to mount a file system here: a full or read-only disk cannot be had")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "small disk", "size=4m") as folder:
        yield folder


def fill(folder: Path, leaving: int = 0) -> Path:
    """Leave so many bytes."""
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    ballast = folder / "ballast"
    with suppress(OSError), ballast.open("wb") as file:  # others may write as well
        for _ in range(0, free - leaving, BLOCK_BYTES):
            file.write(bytes(BLOCK_BYTES))
            file.flush()
    return ballast


@contextmanager
def as_nobody() -> Iterator[None]:
    """Within it, this process has no rights of its own."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


def test_state_that_finds_no_room_says_how_much_it_needs_and_is_written_when_there_is(
    small_disk: Path,
) -> None:
    states = FamilyStates(small_disk, "family")
    weights = {"w": torch.zeros(250_000)}  # a megabyte
    ballast = fill(small_disk, leaving=500_000)
    with pytest.raises(ResourceError, match=r"1\.0 MB are needed .* and 0\.5 MB are free"):
        states.save(1, weights, {})
    assert states.resumable_epoch(1) == 0
    ballast.unlink()
    states.save(1, weights, {})
    states.append({"epoch": 1}, {})
    assert states.resumable_epoch(1) == 1


def test_disk_that_fills_while_a_state_is_written_is_told_with_what_is_free(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = FamilyStates(small_disk, "family")
    fill(small_disk)
    monkeypatch.setattr("tune_inat.states.check_room", lambda *_: None)  # there was room a moment ago
    with pytest.raises(ResourceError, match=r"No space left on device.*0\.0 MB free\. Make room"):
        states.save(1, {"w": torch.zeros(250_000)}, {})


def test_journal_on_a_full_disk_stays_whole_and_goes_on(small_disk: Path) -> None:
    ledger = Ledger(small_disk)
    ledger.start("a", {"epochs": 3})
    ledger.epoch("a", {"epoch": 1}, trained=True, did={})
    whole = (small_disk / LEDGER_FILE).read_bytes()
    ballast = fill(small_disk)
    with pytest.raises(ResourceError, match=r"No space left on device.*0\.0 MB free.*Make room"):
        ledger.epoch("a", {"epoch": 2}, trained=True, did={"long": "x" * 10_000})
    assert (small_disk / LEDGER_FILE).read_bytes() == whole
    ballast.unlink()
    ledger.epoch("a", {"epoch": 2}, trained=True, did={})
    assert Ledger(small_disk).records()["a"].rows == [{"epoch": 1}, {"epoch": 2}]


def test_disk_too_small_for_an_epoch_is_refused_before_training(
    images: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(small_disk))
    bench = make_bench(images, Store(small_disk))
    heavy, light = config_of(freeze=0.0, epochs=2), config_of(freeze=1.0, epochs=2)
    forecaster_of(bench, light).check_states()
    with pytest.raises(ResourceError, match=rf"GB are needed .* are free .*set {CACHE_VARIABLE} to"):
        forecaster_of(bench, light, heavy).check_states()


@pytest.mark.end_to_end
def test_search_whose_disk_fills_ends_at_once_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    with (
        mounted(tmp_path / "small disk", "size=64m") as disk,
        mounted(tmp_path / "runs", "size=20m") as storage,
    ):
        search = new_search(tmp_path, GRID, "--wandb", "disabled", cache=disk / "cache")
        running = search.start()
        running.await_that(lambda: any(event["event"] == "epoch" for event in search.events()))
        ballast = fill(disk)
        assert running.wait() == EXIT_FAILED, running.text
        said = " ".join(running.text.split())
        assert re.search(r"0\.0 MB (are )?free\. Make room", said), running.text
        assert f"The search ends with {search.summary['trials_left']} of 8 trials left" in said
        failed = [trial for trial in search.summary["trials"] if trial["status"] == "ERROR"]
        assert 1 <= len(failed) <= 2  # those that ran: what is left was not run into the ground
        ballast.unlink()
        ballast = fill(storage, leaving=1_000_000)
        running = search.run()
        said = " ".join(running.text.split())
        assert running.popen.returncode == EXIT_FAILED, running.text
        assert [trial["status"] for trial in search.summary["trials"]] == ["TERMINATED"] * 8
        assert search.summary["best"]["model"] is None
        best = search.summary["best"]["trial_id"]
        assert f"Best: trial {best}" in said, running.text  # below the table
        assert "are needed for the best model and" in said
        assert f"All trials have ended. The same command goes on: {search.summary['command']}" in said
        ballast.unlink()
        assert search.run().popen.returncode == EXIT_DONE
        assert search.summary["best"]["model"] == "best_model"
        assert is_current(search.folder)  # not the report that the first command had left
        (search.folder / "report.html").unlink()
        ballast = fill(storage, leaving=500_000)
        running = search.run()
        assert running.popen.returncode == EXIT_FAILED, running.text
        assert "report.html: cannot be written (No space left on device)" in " ".join(running.text.split())
        assert search.summary["status"] == "FAILURES"
        ballast.unlink()
        assert search.run().popen.returncode == EXIT_DONE
        assert (search.folder / "report.html").exists()


def test_cache_on_a_read_only_disk_is_refused(tmp_path: Path) -> None:
    with (
        mounted(tmp_path / "disk", "ro") as disk,
        pytest.raises(ResourceError, match=f"cannot be (made|written).*{CACHE_VARIABLE}"),
    ):
        Store(disk / "cache").get_or_build("things", "a", Path.mkdir)


def let_pass(folder: Path) -> None:
    """Let other users through to a folder of a test's: pytest keeps its own to itself."""
    while folder.is_relative_to(tempfile.gettempdir()) and folder != Path(tempfile.gettempdir()):
        folder.chmod(0o755)
        folder = folder.parent


def test_folder_of_another_user_is_refused_with_the_owner(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    let_pass(tmp_path)
    with as_nobody():
        with pytest.raises(ResourceError, match="cache belongs to root"):
            make_folder(cache)
        with pytest.raises(ResourceError, match=f"cache folder belongs to the user root.*{CACHE_VARIABLE}"):
            Store(cache).get_or_build("things", "a", Path.mkdir)


def test_part_of_the_cache_that_belongs_to_another_user_is_refused(tmp_path: Path) -> None:
    """As after one search with sudo."""
    let_pass(tmp_path)
    Store(tmp_path / "cache").get_or_build("things", "a", lambda folder: (folder / "x").touch())
    with FamilyStates(tmp_path / "cache" / "states", "family").exclusively():
        pass
    os.chown(tmp_path / "cache", NOBODY, NOBODY)
    with as_nobody():
        with pytest.raises(ResourceError, match="belongs to root"):
            Store(tmp_path / "cache").get_or_build("things", "b", Path.mkdir)
        with (
            pytest.raises(ResourceError, match="belongs to root"),
            FamilyStates(tmp_path / "cache" / "states", "family").exclusively(),
        ):
            pass


def test_search_for_a_full_disk_comes_to_an_end_where_causes_go_round_in_circles() -> None:
    first, second = RuntimeError("first"), RuntimeError("second")
    first.__cause__, second.__cause__ = second, first
    assert not is_of_full_disk(first)
    second.__cause__ = OSError(errno.ENOSPC, "full")
    assert is_of_full_disk(first)
