"""How long work says how far it has come, without knowing of a terminal."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int], None]


class Meter(Protocol):
    """Whoever shows progress: a terminal, a log, or nobody."""

    def task(self, title: str, total: int | None, unit: str) -> AbstractContextManager[Advance]:
        """Start a task of `total` units (`None`: unknown); call the value with what has been done since."""
        ...


class SilentMeter:
    """A meter that shows nothing."""

    @contextmanager
    def task(self, title: str, total: int | None, unit: str) -> Iterator[Advance]:
        """Accept progress and drop it."""
        yield lambda amount: None
