"""Tells a trial that hangs from one that is slow: by how long it has given no sign of life."""

from collections.abc import Mapping
from dataclasses import dataclass

SIGN_SECONDS = 20.0  # a trial that works gives a sign of life at least this often, between two steps
# A trial hangs that has given no sign for so many times what an epoch should take, and for at least so long.
# While it trains, signs come with each step: what is slower by this much than a whole epoch is no step any
# more. The floor is for what goes on in one piece: weights that are downloaded, a file system that stalls.
EPOCHS_OF_SILENCE = 3.0
FLOOR_SECONDS = 600.0
MAX_GAP_SECONDS = 5.0  # a longer time between two looks was the watcher's own absence


@dataclass
class _Watched:
    """A trial that runs: how long it has been silent, and the longest that an epoch of it should take."""

    silent: float
    epoch: float


class HangWatch:
    """Watches trials that run. Time counts only while somebody looks, so not while the machine sleeps.

    Args:
        trial_seconds: what a trial should take, by its id, where that is known.
    """

    def __init__(self, trial_seconds: Mapping[str, float]) -> None:
        self._expected = dict(trial_seconds)
        self._slowest = 0.0  # epoch so far, of any trial
        self._watched: dict[str, _Watched] = {}
        self._looked: float | None = None

    def start(self, trial_id: str, n_epochs: int) -> None:
        """A trial of so many epochs starts."""
        self._watched[trial_id] = _Watched(0.0, self._expected.get(trial_id, 0.0) / n_epochs)

    def hear(self, trial_id: str, epoch_seconds: float = 0.0) -> None:
        """A trial gives a sign of life, perhaps with an epoch that took so long."""
        self._slowest = max(self._slowest, epoch_seconds)
        if trial_id in self._watched:
            self._watched[trial_id].silent = 0.0

    def end(self, trial_id: str) -> None:
        """A trial has ended, or a try of it."""
        self._watched.pop(trial_id, None)

    def look(self, now: float) -> dict[str, float]:
        """The trials that hang, and for how many seconds each has been silent; they are watched no longer.

        Args:
            now: in seconds that only ever grow.
        """
        passed = 0.0 if self._looked is None else min(now - self._looked, MAX_GAP_SECONDS)
        self._looked = now
        hanging = {}
        for trial_id, watched in list(self._watched.items()):
            watched.silent += passed
            if watched.silent > self.limit(trial_id):
                hanging[trial_id] = watched.silent
                self.end(trial_id)
        return hanging

    def limit(self, trial_id: str) -> float:
        """After how many seconds without a sign a trial hangs."""
        epoch = max(self._watched[trial_id].epoch, self._slowest)
        return max(FLOOR_SECONDS, EPOCHS_OF_SILENCE * epoch)
