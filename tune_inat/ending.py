"""Says when a search is to end before its trials do."""

import time
from collections.abc import Callable


class Ending:
    """Says when a search is to end before its trials do: when its time is up, or after Ctrl-C.

    Args:
        max_seconds: from `begin` on.
    """

    def __init__(self, max_seconds: float | None = None) -> None:
        self.max_seconds = max_seconds
        self.is_interrupted = False
        self.is_lost = False  # what trials do could not be kept
        self.settle: Callable[[], None] = lambda: None  # to be called when Tune has ended its trials
        self._deadline: float | None = None

    def begin(self) -> None:
        """The trials begin: the clock runs from now on."""
        if self.max_seconds is not None:
            self._deadline = time.monotonic() + self.max_seconds

    def lose(self) -> None:
        """What trials do can no longer be kept: they are to end."""
        self.is_lost = True

    def is_over(self) -> bool:
        """Whether trials that run now are to end."""
        is_cut = self.is_interrupted or self.is_lost
        return is_cut or (self._deadline is not None and time.monotonic() >= self._deadline)
