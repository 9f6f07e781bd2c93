"""How often each trial of a search has failed, and whether it is tried again."""

from collections import Counter

MAX_LOST = 10  # machines that a trial may lose: more than that is no bad luck, it takes them down with it


class Tries:
    """The tries of one run of the command.

    A machine that is lost is no fault of the trials on it: that leaves them as many tries as they had.

    Args:
        max_failures: how often a trial that fails is tried again.
    """

    def __init__(self, max_failures: int = 0) -> None:
        self.max_failures = max_failures
        self._n_failed: Counter[str] = Counter()
        self._n_lost: Counter[str] = Counter()
        self._given_up: set[str] = set()
        self._lost: set[str] = set()  # trials whose last try ended with its machine

    @property
    def most(self) -> int:
        """The most tries that a trial may come to."""
        return 1 + self.max_failures + MAX_LOST

    def fail(self, trial_id: str, *, is_final: bool = False, has_lost_machine: bool = False) -> bool:
        """A try has failed; returns whether there is another one.

        Args:
            is_final: it would fail again, whatever the machine does.
            has_lost_machine: the machine that it ran on is gone.
        """
        self._n_failed[trial_id] += 1
        (self._lost.add if has_lost_machine else self._lost.discard)(trial_id)
        if has_lost_machine and self._n_lost[trial_id] < MAX_LOST:
            self._n_lost[trial_id] += 1
        if is_final or self._n_failed[trial_id] - self._n_lost[trial_id] > self.max_failures:
            self._given_up.add(trial_id)
        return trial_id not in self._given_up

    def n_failed(self, trial_id: str) -> int:
        """How many tries of a trial have failed."""
        return self._n_failed[trial_id]

    def has_lost_machine(self, trial_id: str) -> bool:
        """Whether a trial's last try failed because its machine was lost."""
        return trial_id in self._lost

    def has_given_up(self, trial_id: str) -> bool:
        """Whether a trial has failed for the last time."""
        return trial_id in self._given_up
