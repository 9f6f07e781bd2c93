"""Who trains next: leaders before their followers, and what failed before all others."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from tune_inat.metrics import is_better
from tune_inat.objective import Goal
from tune_inat.plan import PlannedTrial
from tune_inat.queue import TrialQueue
from tune_inat.searchers import Proposer, tune_mode
from tune_inat.slots import Slots
from tune_inat.tries import Tries

FAILURE = "failure"  # in a trial's last report: why it fails, now and whenever it is tried again
ENDS_SEARCH = "ends search"  # in the same report, where others would fail on that machine as well


class FamilySearcher(Searcher):
    """Hands trials to Tune so that of each family the longest trains first and alone.

    A follower is handed out when no trial of its family runs: then the epochs it shares are in the store,
    and it replays them. If its leader was stopped early, it goes on from there.

    A trial that fails is handed out again, before all others, as long as `tries` has another one for it: to
    Tune it is a new trial, to the proposer the same.

    Args:
        n_ahead: how many trials to know beforehand: all of a plan, one of Optuna's. Where each of them waits
            for its family, more are asked for, as many as can run at a time.
        max_concurrent: how many trials run at a time.
        reuse: without it no trial has anything to wait for.
        seconds: what a trial should take, by its id: the longest goes first. Without it, and among equals,
            the order is the proposer's.
        tries: is told of each failure.
        has_lost_machine: whether a try, by Tune's id, that has failed did so because its machine is gone.
        is_over: whether the search is being ended. Then no more trials are handed out, and of one that ends
            short its proposer is not told, so that it comes again when the search goes on.
        slots: where trials run, if that is not the same for all; each gets one as its `place`.
    """

    def __init__(
        self,
        proposer: Proposer,
        *,
        metric: str,
        goal: Goal,
        n_ahead: int,
        max_concurrent: int | None = None,
        reuse: bool = True,
        seconds: Mapping[str, float] | None = None,
        tries: Tries | None = None,
        has_lost_machine: Callable[[str], bool] = lambda try_id: False,
        is_over: Callable[[], bool] = lambda: False,
        slots: Slots | None = None,
    ) -> None:
        super().__init__(metric=metric, mode=tune_mode(goal))
        self._max_concurrent = max_concurrent
        self._slots = slots
        self._tries = tries or Tries()
        self._has_lost_machine = has_lost_machine
        self._proposer = proposer
        self._n_ahead = n_ahead
        self._goal = goal
        self._is_over = is_over
        self._waiting = TrialQueue(by_family=reuse, seconds=seconds)
        self._running: dict[str, PlannedTrial] = {}  # by Ray's id, which each try has anew
        self._best: dict[str, float] = {}  # by ours, as all below
        self._last_epoch: dict[str, int] = {}
        self._cannot_succeed: set[str] = set()
        self._untold: list[tuple[PlannedTrial, float | None]] = []  # trials that ended, with their best value

    def suggest(  # type: ignore[override]  # Ray leaves FINISHED out of its types
        self, trial_id: str
    ) -> dict[str, Any] | str | None:
        """Tune's question for one more trial: its config, `None` for "not now", or FINISHED."""
        if self._is_over():
            return Searcher.FINISHED
        if self._max_concurrent is not None and len(self._running) >= self._max_concurrent:
            return None
        self.tell_ends()
        config: dict[str, Any] = {}
        if self._slots is not None:
            place = self._slots.take(trial_id)
            if place is None:
                return None
            config["place"] = place
        trial = self._next()
        if trial is None:
            if self._slots is not None:
                self._slots.release(trial_id)
            return None if self._waiting or self._running else Searcher.FINISHED
        config |= {"trial_id": trial.trial_id, "params": trial.config.model_dump()}
        self._running[trial_id] = trial
        return config

    def runs(self, trial_id: str) -> bool:
        """Whether a try, by Tune's id, has not ended as far as is known here."""
        return trial_id in self._running

    def have_fewer(self) -> int | None:
        """Memory has run out: from now on no more trials run at a time than are left running now.

        Returns:
            How many that is, `None` where no fewer can run than did.
        """
        left = max(1, len(self._running))
        if self._max_concurrent is not None and left >= self._max_concurrent:
            return None
        self._max_concurrent = left
        return left

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """A report: of an epoch, of a failure for good, or a sign of life."""
        trial = self._running[trial_id]
        if FAILURE in result:
            self._cannot_succeed.add(trial.trial_id)
        if "epoch" not in result:
            return
        value, epoch = float(result[self.metric]), int(result["epoch"])
        if epoch <= self._last_epoch.get(trial.trial_id, 0):
            return
        self._last_epoch[trial.trial_id] = epoch
        best = self._best.get(trial.trial_id)
        if best is None or is_better(value, best, self._goal):
            self._best[trial.trial_id] = value
        self._proposer.on_result(trial, epoch, value)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """The end of a try, whatever its reason. Of a report that ended it, Tune tells only here.

        The proposer learns of a trial's end by `tell_ends`.
        """
        if result is not None:
            self.on_trial_result(trial_id, result)
        trial = self._running.pop(trial_id)
        if self._slots is not None:
            self._slots.release(trial_id)
        is_final = trial.trial_id in self._cannot_succeed
        has_failed = error or is_final
        is_lost = error and not is_final and self._has_lost_machine(trial_id)
        if has_failed and self._tries.fail(trial.trial_id, is_final=is_final, has_lost_machine=is_lost):
            self._waiting.give_back(trial)
            return
        self._waiting.release(trial)
        last_epoch = self._last_epoch.pop(trial.trial_id, 0)
        best = self._best.pop(trial.trial_id, None)
        if not has_failed and last_epoch < trial.config.epochs and self._is_over():
            return
        self._untold.append((trial, None if has_failed else best))

    def tell_ends(self) -> None:
        """Tell the proposer which trials have ended: after the ledger, so that a kill in between loses none.

        What the ledger has and a study lacks, the study is told later; a trial that only the study has would
        count there and not in the search.
        """
        while self._untold:
            self._proposer.on_end(*self._untold.pop(0))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a search is taken up from its ledger, not from Tune's snapshots."""
        Path(checkpoint_path).write_text(json.dumps({}))

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, likewise."""

    def _next(self) -> PlannedTrial | None:
        """The trial to hand out now, if there is one."""
        while len(self._waiting) < self._n_ahead and self._ask():
            pass
        trial = self._waiting.take()
        while trial is None and len(self._waiting) < (self._max_concurrent or 1) and self._ask():
            trial = self._waiting.take()
        return trial

    def _ask(self) -> bool:
        """Ask the proposer for one more trial; returns whether there was one."""
        trial = self._proposer.propose()
        if trial is not None:
            self._waiting.add(trial)
        return trial is not None
