"""How often each trial of a search has failed, and whether it is tried again."""

from collections import Counter


class Tries:
    """The tries of one run of the command.

    Args:
        max_failures: how often a trial that fails is tried again.
    """

    def __init__(self, max_failures: int = 0) -> None:
        self.max_failures = max_failures
        self._n_failed: Counter[str] = Counter()
        self._given_up: set[str] = set()

    def fail(self, trial_id: str, *, is_final: bool = False) -> bool:
        """A try has failed; returns whether there is another one.

        Args:
            is_final: it would fail again, whatever the machine does.
        """
        self._n_failed[trial_id] += 1
        if is_final or self._n_failed[trial_id] > self.max_failures:
            self._given_up.add(trial_id)
        return trial_id not in self._given_up

    def n_failed(self, trial_id: str) -> int:
        """How many tries of a trial have failed."""
        return self._n_failed[trial_id]

    def has_given_up(self, trial_id: str) -> bool:
        """Whether a trial has failed for the last time."""
        return trial_id in self._given_up
