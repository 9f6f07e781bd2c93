"""The trials that wait to be handed out: of each family one at a time, the longest first."""

import heapq
from collections import defaultdict
from collections.abc import Mapping

from tune_inat.plan import PlannedTrial

Place = tuple[int, float, int]  # in the order: the smallest is next, and no two are equal


class TrialQueue:
    """Trials in the order in which they are to be taken; each step takes the logarithm of their number.

    Of the trials that may be taken now, the one that should take longest goes first, so that none of the long
    ones is left alone at the end (Graham, "Bounds on Multiprocessing Timing Anomalies", 1969); of equal ones
    the one that was added first.

    Args:
        by_family: whether trials of a family wait for each other; else each is taken for itself.
        seconds: what a trial should take, by its id. Those that are not named come last.
    """

    def __init__(self, *, by_family: bool, seconds: Mapping[str, float] | None = None) -> None:
        self._by_family = by_family
        self._seconds = seconds or {}
        self._n_added = self._n_returned = 0
        self._families: dict[str, list[tuple[int, Place, PlannedTrial]]] = defaultdict(list)  # heaps
        self._ready: list[tuple[Place, str]] = []  # a heap of families, some of which have changed since
        self._busy: set[str] = set()
        self._n_waiting = 0

    def __len__(self) -> int:
        return self._n_waiting

    def add(self, trial: PlannedTrial) -> None:
        """Let a trial wait."""
        self._n_added += 1
        self._put(trial, (0, -self._seconds.get(trial.trial_id, 0.0), self._n_added))

    def give_back(self, trial: PlannedTrial) -> None:
        """A trial that was taken is to be taken again, before all others."""
        self._n_returned += 1
        self._put(trial, (-self._n_returned, 0.0, 0))
        self.release(trial)

    def take(self) -> PlannedTrial | None:
        """The next trial, whose family then waits for its release; `None` where each has to wait."""
        while self._ready:
            place, key = heapq.heappop(self._ready)
            if key not in self._busy and self._families[key] and self._families[key][0][1] == place:
                self._n_waiting -= 1
                self._busy.add(key)
                return heapq.heappop(self._families[key])[2]
        return None

    def release(self, trial: PlannedTrial) -> None:
        """A trial that was taken has ended: the next of its family may be taken."""
        key = self._key(trial)
        self._busy.discard(key)
        if self._families[key]:
            heapq.heappush(self._ready, (self._families[key][0][1], key))
        else:
            del self._families[key]

    def _put(self, trial: PlannedTrial, place: Place) -> None:
        key = self._key(trial)
        self._n_waiting += 1
        heapq.heappush(self._families[key], (-trial.config.epochs, place, trial))
        if key not in self._busy and self._families[key][0][2] is trial:
            heapq.heappush(self._ready, (place, key))

    def _key(self, trial: PlannedTrial) -> str:
        return trial.family_key if self._by_family else trial.trial_id
