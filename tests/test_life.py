"""Whoever works or waits gives signs of life."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

from tune_inat.life import SigningMeter, acquire, heard_by, sign


def test_progress_is_heard_while_somebody_listens() -> None:
    signs: list[int] = []
    with heard_by(lambda: signs.append(1)), SigningMeter().task("work", 2, "images") as advance:
        advance(1)
        advance(1)
    sign()
    assert len(signs) == 2


@contextmanager
def held_elsewhere(path: Path) -> Iterator[Callable[[], None]]:
    """A lock file as another process holds it; the value lets it go."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield lambda: fcntl.flock(file, fcntl.LOCK_UN)


def test_who_waits_for_a_lock_is_alive_and_gets_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with held_elsewhere(path) as let_go, heard_by(let_go):
        lock = FileLock(path)
        acquire(lock)
        file = os.open(path, os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(file)
        lock.release()


def test_wait_for_a_lock_ends_with_what_the_listener_raises(tmp_path: Path) -> None:
    def end() -> None:
        raise SystemExit

    path = tmp_path / "lock"
    with held_elsewhere(path), heard_by(end), pytest.raises(SystemExit):
        acquire(FileLock(path))
