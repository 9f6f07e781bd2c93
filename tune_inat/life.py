"""Signs of life of a process that is busy for long: whoever watches it can tell work from a hang."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from filelock import FileLock

from tune_inat.meter import Advance

_listeners: list[Callable[[], None]] = []  # of this process


@contextmanager
def heard_by(listener: Callable[[], None]) -> Iterator[None]:
    """Within it, `listener` is called at each sign of life. What it raises ends the work that gave it."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def sign() -> None:
    """Something was done, or is being waited for; may be called as often as one likes."""
    for listener in _listeners:
        listener()


def acquire(lock: FileLock) -> None:
    """Take a lock file. To wait for who holds it, another search perhaps, is a sign of life."""

    def wait_on() -> bool:
        sign()
        return False

    lock.acquire(cancel_check=wait_on)


class SigningMeter:
    """A meter that shows nothing but that there is progress."""

    @contextmanager
    def task(self, title: str, total: int | None, unit: str) -> Iterator[Advance]:
        """Take progress as a sign of life."""
        yield lambda amount: sign()
