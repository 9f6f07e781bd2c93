"""How a running search stands: what has ended, what leads, how long it will take."""

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from tune_inat.objective import DEFAULT_METRIC, Metric
from tune_inat.rows import Rank, rank

ENDED = frozenset({"TERMINATED", "STOPPED", "SKIPPED", "ERROR"})


class LiveTrial(Protocol):
    """A trial as Ray Tune sees it now.

    `row` is its last report; `status` is one of Ray's words; `failures` says why earlier tries failed.
    """

    @property
    def trial_id(self) -> str: ...
    @property
    def config(self) -> Mapping[str, Any]: ...
    @property
    def status(self) -> str: ...
    @property
    def row(self) -> Mapping[str, Any] | None: ...
    @property
    def seconds(self) -> float: ...
    @property
    def failures(self) -> Sequence[str]: ...


@dataclass
class Standings:
    """All trials of a search as they stand now. Those that have ended are not looked at again and again.

    Attributes:
        total: how many trials there will be, with the `n_earlier` that had ended before this run.
        best: the best value of `metric` that each trial has had, by its id.
        varied: the parameters in which they differ so far.
        costs: the seconds that each trial should take, by its id, also of those that have not started; empty
            where nobody knows.
    """

    total: int
    n_earlier: int = 0
    metric: Metric = DEFAULT_METRIC
    best: dict[str, float] = field(default_factory=dict)
    varied: set[str] = field(default_factory=set)
    costs: Mapping[str, float] = field(default_factory=dict)
    _trials: dict[str, LiveTrial] = field(default_factory=dict)
    _running: dict[str, LiveTrial] = field(default_factory=dict)  # those that have not ended
    _best_rows: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    _n_epochs_ended: int = 0  # of trials that have ended; so are those below
    _n_asked_ended: int = 0
    _cost_done_ended: float = 0.0
    _cost_started: float = 0.0  # of all that have started

    def update(self, trials: Sequence[LiveTrial]) -> None:
        """Take in how trials stand now: new ones, and of those known any that may have changed."""
        for trial in trials:
            trial_id = trial.trial_id
            if trial_id not in self._trials:
                self._trials[trial_id] = self._running[trial_id] = trial
                first = next(iter(self._trials.values())).config
                self.varied |= {name for name, value in first.items() if trial.config.get(name) != value}
                self._cost_started += self.costs.get(trial_id, 0.0)
            if trial_id not in self._running:
                continue
            value, known = self.value(trial), self.best.get(trial_id)
            if value is not None and (known is None or self._cost(value) < self._cost(known)):
                self.best[trial_id] = value
                self._best_rows[trial_id] = trial.row or {}
            self._trials[trial_id] = self._running[trial_id] = trial
            if trial.status in ENDED:
                del self._running[trial_id]
                self._n_epochs_ended += epochs_done(trial)
                self._n_asked_ended += epochs_asked(trial)
                self._cost_done_ended += self._cost_done(trial)

    @property
    def trials(self) -> tuple[LiveTrial, ...]:
        """Those that have started in this run, in that order."""
        return tuple(self._trials.values())

    @property
    def varied_names(self) -> list[str]:
        """The parameters, other than `epochs`, in which trials differ, in the configuration's order."""
        if not self.varied:
            return []
        names = next(iter(self._trials.values())).config
        return [name for name in names if name in self.varied and name != "epochs"]

    @property
    def running(self) -> list[LiveTrial]:
        """The trials that have not ended."""
        return list(self._running.values())

    @property
    def n_done(self) -> int:
        """How many trials have ended, in whatever way, in this run and before."""
        return self.n_earlier + len(self._trials) - len(self._running)

    def leaders(self, n: int) -> list[LiveTrial]:
        """The `n` trials with the best values, best first, in the order that the leaderboard will have."""
        metric = self.metric

        def order(trial: LiveTrial) -> Rank:
            best = self._best_rows[trial.trial_id]
            return rank(trial.trial_id, trial.config, "", best, metric.name, metric.goal)

        return heapq.nsmallest(n, (self._trials[trial_id] for trial_id in self._best_rows), key=order)

    @property
    def n_epochs(self) -> int:
        """The epochs that trials have reported in this run."""
        return self._n_epochs_ended + sum(map(epochs_done, self._running.values()))

    @property
    def share_done(self) -> float:
        """How much of this run's work is done, 0 to 1.

        Trials that have not started count as average ones. What early stopping will spare is not known.
        """
        done, left = self._work_by_cost() if self.costs else self._work_by_epochs()
        return done / (done + left) if done > 0 else 0.0

    def seconds_left(self, elapsed: float) -> float | None:
        """How long the rest will take at the speed so far; `None` before there is any."""
        share = self.share_done
        return elapsed * (1 - share) / share if share > 0 else None

    def _work_by_epochs(self) -> tuple[float, float]:
        """What is done and what is left, in epochs."""
        running = self._running.values()
        n_left = sum(epochs_asked(trial) - epochs_done(trial) for trial in running)
        n_asked = self._n_asked_ended + sum(map(epochs_asked, running))
        n_unstarted = max(0, self.total - self.n_earlier - len(self._trials))
        return self.n_epochs, n_left + n_unstarted * n_asked / max(1, len(self._trials))

    def _work_by_cost(self) -> tuple[float, float]:
        """The same in seconds, since one that replays another's epochs costs next to nothing."""
        done_running = sum(map(self._cost_done, self._running.values()))
        of_running = sum(self.costs.get(trial_id, 0.0) for trial_id in self._running)
        unstarted = max(0.0, self._cost_total - self._cost_started)
        return self._cost_done_ended + done_running, unstarted + of_running - done_running

    @cached_property
    def _cost_total(self) -> float:
        return math.fsum(self.costs.values())

    def _cost_done(self, trial: LiveTrial) -> float:
        return self.costs.get(trial.trial_id, 0.0) * epochs_done(trial) / epochs_asked(trial)

    def value(self, trial: LiveTrial) -> float | None:
        """A trial's last value of the metric, `None` where there is none or it is not finite."""
        found = (trial.row or {}).get(self.metric.name)
        return float(found) if found is not None and math.isfinite(found) else None

    def _cost(self, value: float) -> float:
        return -value if self.metric.goal == "maximize" else value


def epochs_done(trial: LiveTrial) -> int:
    """The epochs that a trial has reported."""
    return int((trial.row or {}).get("epoch", 0))


def epochs_asked(trial: LiveTrial) -> int:
    """The epochs that a trial will have if nothing stops it."""
    return int(trial.config["epochs"])


def tries(trial: LiveTrial) -> int:
    """Which try of a trial this is, from 1; of one that has ended, how many it took."""
    return len(trial.failures) + (trial.status != "ERROR")
