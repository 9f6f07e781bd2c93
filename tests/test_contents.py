"""A file is hashed once for as long as it stays as it is."""

import hashlib
import os
import time
from pathlib import Path

import pytest

from tune_inat.contents import hash_content, hash_files
from tune_inat.meter import SilentMeter


@pytest.fixture
def record(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "record.json"


def write_settled(path: Path, content: bytes) -> None:
    """Write a file that seems to have lain there for a minute."""
    path.write_bytes(content)
    a_minute_ago = time.time_ns() - 60 * 10**9
    os.utime(path, ns=(a_minute_ago, a_minute_ago))


def hash_one(path: Path, record: Path) -> str:
    return hash_files([path], record=record, meter=SilentMeter())[0][path]


def test_hash_is_of_the_content(hostile_path: Path, record: Path) -> None:
    path = hostile_path / "1.png"
    path.write_bytes(b"content")
    assert hash_one(path, record) == hashlib.blake2b(b"content", digest_size=16).hexdigest()
    assert hash_content(path) == hash_one(path, record)


def test_unchanged_file_is_not_read_again(hostile_path: Path, record: Path) -> None:
    path = hostile_path / "1.png"
    write_settled(path, b"content")
    hash_one(path, record)
    kept = record.read_text()
    record.write_text(kept.replace(hash_content(path), "0" * 32))  # only who trusts the record sees this
    assert hash_one(path, record) == "0" * 32


def test_file_changed_without_changing_size_or_date_is_read_again(hostile_path: Path, record: Path) -> None:
    path = hostile_path / "1.png"
    write_settled(path, b"content")
    hash_one(path, record)
    times = path.stat()
    time.sleep(0.02)  # more than a tick of the inode's clock, which cannot be set by hand
    path.write_bytes(b"CONTENT")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert hash_one(path, record) == hash_content(path)


def test_file_from_the_future_is_read_once(
    hostile_path: Path, record: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As cameras with a wrong clock leave them: what counts is when the file was written here."""
    monkeypatch.setattr("tune_inat.contents.SETTLED_NS", 0)
    path = hostile_path / "1.png"
    path.write_bytes(b"content")
    in_a_year = time.time_ns() + 365 * 86_400 * 10**9
    os.utime(path, ns=(in_a_year, in_a_year))
    hash_one(path, record)
    assert hash_content(path) in record.read_text()


def test_file_just_written_is_not_trusted_yet(hostile_path: Path, record: Path) -> None:
    path = hostile_path / "1.png"
    path.write_bytes(b"content")
    hash_one(path, record)
    assert hash_content(path) not in record.read_text()


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"a": 1}', '{"a": [1, 2, 3]}', '{"a": ["x", 2, 3, "h"]}'])
def test_damaged_record_is_made_anew(hostile_path: Path, record: Path, damage: str) -> None:
    path = hostile_path / "1.png"
    write_settled(path, b"content")
    record.parent.mkdir()
    record.write_text(damage)
    assert hash_one(path, record) == hash_content(path)
    assert hash_content(path) in record.read_text()


def test_names_that_are_not_utf8_are_recorded(tmp_path: Path, record: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\n.png"))
    write_settled(path, b"content")
    assert hash_one(path, record) == hash_one(path, record) == hash_content(path)


def test_what_cannot_be_read_has_its_reason(hostile_path: Path, record: Path) -> None:
    os.mkfifo(hostile_path / "pipe.png")
    (hostile_path / "broken.png").symlink_to(hostile_path / "nowhere")
    (hostile_path / "loop.png").symlink_to(hostile_path / "loop.png")
    (hostile_path / "good.png").write_bytes(b"good")
    paths = sorted(hostile_path.iterdir())
    contents, unreadable = hash_files(paths, record=record, meter=SilentMeter())
    assert [path.name for path in contents] == ["good.png"]
    assert {path.name: reason for path, reason in unreadable.items()} == {
        "pipe.png": "is not a regular file",
        "broken.png": "is a broken link",
        "loop.png": "is a broken link",
    }
