"""Says when a search is to end before its trials do."""

import time
from collections.abc import Callable


class Ending:
    """Says when a search is to end before its trials do: its time is up, after Ctrl-C, or trials cannot run.

    Args:
        max_seconds: from `begin` on.
    """

    def __init__(self, max_seconds: float | None = None) -> None:
        self.max_seconds = max_seconds
        self.is_interrupted = False
        self.is_lost = False  # what trials do could not be kept
        self.problem: str | None = None  # why no trial can run where one of them was
        self.settle: Callable[[], None] = lambda: None  # to be called when Tune has ended its trials
        self._deadline: float | None = None

    def begin(self) -> None:
        """The search begins: the clock runs from the first time that this is said."""
        if self.max_seconds is not None and self._deadline is None:
            self._deadline = time.monotonic() + self.max_seconds

    def lose(self) -> None:
        """What trials do can no longer be kept: they are to end."""
        self.is_lost = True

    def give_up(self, problem: str) -> None:
        """What has failed is no trial but a machine, as when its disk is full: others would fail as well."""
        self.problem = self.problem or problem

    def is_over(self) -> bool:
        """Whether trials that run now are to end."""
        is_cut = self.is_interrupted or self.is_lost or self.problem is not None
        return is_cut or (self._deadline is not None and time.monotonic() >= self._deadline)
