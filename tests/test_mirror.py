"""What a search writes to its folder is in the bucket, in an order that any machine can go on from."""

import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.buckets import Bucket
from tune_inat.bucket import RemoteFolder
from tune_inat.errors import EXIT_FAILED
from tune_inat.interrupts import interruptible
from tune_inat.meter import SilentMeter
from tune_inat.mirror import Mirror, StorageError

pytest_plugins = ["tests.bucket_fixtures"]


def mirror_of(folder: Path, bucket: Bucket, may_write: Callable[[], None] = lambda: None) -> Mirror:
    remote = RemoteFolder(bucket.uri("runs"), "grid")
    return Mirror(folder, remote, first=("search.json",), last=("summary.json",), may_write=may_write)


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


FILES = {"search.json": b"{}", "trials.jsonl": b"1\n", "best_model/a.json": b"x", "wandb/run 1/ü.wandb": b""}


def test_what_one_machine_sent_another_has(bucket: Bucket, hostile_path: Path) -> None:
    here, there = hostile_path / "here", hostile_path / "there"
    write(here, {**FILES, ".lock": b"", ".trials.csv.1.2.tmp": b"half"})
    mirror_of(here, bucket).flush()
    assert bucket.files("runs/grid").keys() == FILES.keys()
    write(there, {"trials.jsonl": b"of an earlier run\n", "left": b"over"})
    mirror_of(there, bucket).fetch(SilentMeter())
    assert {p.relative_to(there).as_posix(): p.read_bytes() for p in there.rglob("*") if p.is_file()} == FILES


def test_what_is_sent_while_it_grows_is_whole_in_the_end(bucket: Bucket, tmp_path: Path) -> None:
    write(tmp_path, FILES)
    mirror = mirror_of(tmp_path, bucket)
    mirror.start()
    for number in range(200):
        with (tmp_path / "trials.jsonl").open("a") as journal:
            journal.write(f"{number}\n")
    mirror.flush()
    assert bucket.read("runs/grid/trials.jsonl") == (tmp_path / "trials.jsonl").read_bytes()


def test_what_has_gone_here_goes_there(bucket: Bucket, tmp_path: Path) -> None:
    write(tmp_path, FILES)
    mirror = mirror_of(tmp_path, bucket)
    mirror.flush()
    (tmp_path / "best_model" / "a.json").unlink()
    mirror.flush()
    assert bucket.files("runs/grid").keys() == FILES.keys() - {"best_model/a.json"}


def test_what_is_the_same_is_neither_fetched_nor_sent_again(bucket: Bucket, tmp_path: Path) -> None:
    write(tmp_path, FILES)
    mirror_of(tmp_path, bucket).flush()
    before = (tmp_path / "trials.jsonl").stat()
    again = mirror_of(tmp_path, bucket, may_write=lambda: pytest.fail("it was sent again"))
    again.fetch(SilentMeter())
    again.flush()
    assert (tmp_path / "trials.jsonl").stat().st_ino == before.st_ino  # a fetched file is another one


def test_summary_comes_last_and_identity_first(bucket: Bucket, tmp_path: Path) -> None:
    write(tmp_path, {"summary.json": b"{}", **FILES})
    seen: list[set[str]] = []
    mirror_of(tmp_path, bucket, may_write=lambda: seen.append(set(bucket.files("runs/grid")))).flush()
    assert seen[0] == set()
    assert all("search.json" in there for there in seen[1:])
    assert seen[-1] == FILES.keys()


def test_database_in_use_is_sent_whole(bucket: Bucket, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    with closing(sqlite3.connect(folder / "optuna.db")) as study:
        study.execute("create table trials (number int)")
        study.commit()
        study.executemany("insert into trials values (?)", [(n,) for n in range(9)])
        mirror_of(folder, bucket).flush()  # in the middle of a transaction
    (tmp_path / "copy.db").write_bytes(bucket.read("runs/grid/optuna.db"))
    with closing(sqlite3.connect(tmp_path / "copy.db")) as copy:
        assert copy.execute("pragma integrity_check").fetchone() == ("ok",)
        assert copy.execute("select count(*) from trials").fetchone() == (0,)


def test_what_cannot_be_sent_is_told_and_ends_the_command_with_1(bucket: Bucket, tmp_path: Path) -> None:
    write(tmp_path, FILES)
    is_told = threading.Event()
    mirror = mirror_of(tmp_path, bucket)
    mirror.tell(is_told.set)
    with bucket.refusing():
        mirror.start()
        assert is_told.wait(30)
        with pytest.raises(
            StorageError, match=r"--storage s3://a-bucket/runs/grid/.* the same command goes on"
        ):
            mirror.flush()
    assert StorageError.exit_code == EXIT_FAILED


def test_what_could_not_be_sent_before_anybody_asked_is_told_to_who_asks_later(
    bucket: Bucket, tmp_path: Path
) -> None:
    write(tmp_path, FILES)
    mirror = mirror_of(tmp_path, bucket)
    with bucket.refusing():
        mirror.start()
        deadline = time.monotonic() + 30
        while _is_well(mirror):  # as while frozen layers run, before there are trials to be ended
            assert time.monotonic() < deadline
            time.sleep(0.05)
    with pytest.raises(StorageError, match="the same command goes on"):
        mirror.tell(lambda: pytest.fail("it has been told already"))


def test_bucket_that_answers_gets_the_rest_however_long_it_takes(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tune_inat.mirror.SILENCE_SECONDS", 0.5)
    monkeypatch.setattr("tune_inat.mirror.LOOK_SECONDS", 0.1)
    write(tmp_path, FILES)
    mirror = mirror_of(tmp_path, bucket, may_write=lambda: time.sleep(1.5))
    with interruptible() as interruption:
        interruption.is_requested = True
        mirror.flush()
    assert bucket.files("runs/grid").keys() == FILES.keys()


def test_bucket_that_does_not_answer_is_given_up_when_the_user_wants_the_end(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tune_inat.mirror.SILENCE_SECONDS", 0.5)
    mirror = mirror_of(tmp_path, bucket)
    mirror.fetch(SilentMeter())
    write(tmp_path, FILES)
    with bucket.silent(), interruptible() as interruption:
        mirror.start()
        interruption.is_requested = True
        with pytest.raises(
            StorageError,
            match=r"runs/grid: does not answer\. Not sent: search\.json, .*\. What counts",
        ):
            mirror.flush()


def _is_well(mirror: Mirror) -> bool:
    try:
        mirror.check()
    except StorageError:
        return False
    return True
