"""How a running search stands: what has ended, what leads, how long it will take."""

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
    """All trials of a search as they stand now.

    Attributes:
        total: how many trials there will be, with the `n_earlier` that had ended before this run.
        trials: those that have started in this run.
        best: the best value of `metric` that each has had, by its id.
        varied: the parameters in which they differ so far.
        costs: the seconds that each trial should take, by its id, also of those that have not started; empty
            where nobody knows.
    """

    total: int
    n_earlier: int = 0
    metric: Metric = DEFAULT_METRIC
    trials: Sequence[LiveTrial] = ()
    best: dict[str, float] = field(default_factory=dict)
    varied: set[str] = field(default_factory=set)
    costs: Mapping[str, float] = field(default_factory=dict)
    _best_rows: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    _settled: set[str] = field(default_factory=set)  # trials that have ended, and whose last value is known

    def update(self, trials: Sequence[LiveTrial]) -> None:
        """Take in how trials stand now: those known, in their order, and new ones after them."""
        for trial in trials[len(self.trials) :]:
            first = trials[0].config
            self.varied |= {name for name, value in first.items() if trial.config.get(name) != value}
        for trial in trials:
            if trial.trial_id in self._settled:
                continue
            value, known = self.value(trial), self.best.get(trial.trial_id)
            if value is not None and (known is None or self._cost(value) < self._cost(known)):
                self.best[trial.trial_id] = value
                self._best_rows[trial.trial_id] = trial.row or {}
            if trial.status in ENDED:
                self._settled.add(trial.trial_id)
        self.trials = tuple(trials)

    @property
    def varied_names(self) -> list[str]:
        """The parameters, other than `epochs`, in which trials differ, in the configuration's order."""
        names = self.trials[0].config if self.trials else ()
        return [name for name in names if name in self.varied and name != "epochs"]

    @property
    def running(self) -> list[LiveTrial]:
        """The trials that have not ended."""
        return [trial for trial in self.trials if trial.status not in ENDED]

    @property
    def n_done(self) -> int:
        """How many trials have ended, in whatever way, in this run and before."""
        return self.n_earlier + len(self.trials) - len(self.running)

    def leaders(self, n: int) -> list[LiveTrial]:
        """The `n` trials with the best values, best first, in the order that the leaderboard will have."""
        metric = self.metric

        def order(trial: LiveTrial) -> Rank:
            best = self._best_rows[trial.trial_id]
            return rank(trial.trial_id, trial.config, "", best, metric.name, metric.goal)

        return heapq.nsmallest(n, (it for it in self.trials if it.trial_id in self._best_rows), key=order)

    @property
    def n_epochs(self) -> int:
        """The epochs that trials have reported in this run."""
        return sum(epochs_done(trial) for trial in self.trials)

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
        n_left = sum(epochs_asked(trial) - epochs_done(trial) for trial in self.running)
        n_asked = sum(epochs_asked(trial) for trial in self.trials)
        n_unstarted = max(0, self.total - self.n_earlier - len(self.trials))
        return self.n_epochs, n_left + n_unstarted * n_asked / max(1, len(self.trials))

    def _work_by_cost(self) -> tuple[float, float]:
        """The same in seconds, since one that replays another's epochs costs next to nothing."""
        started = {trial.trial_id for trial in self.trials}
        left = sum(cost for trial_id, cost in self.costs.items() if trial_id not in started)
        done = 0.0
        for trial in self.trials:
            cost = self.costs.get(trial.trial_id, 0.0)
            share = epochs_done(trial) / epochs_asked(trial)
            done += cost * share
            left += cost * (1 - share) if trial.status not in ENDED else 0.0
        return done, left

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
