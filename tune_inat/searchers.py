"""Who trains next: leaders before their followers, the known trials of a plan or those Optuna proposes."""

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from tune_inat.distributions import Distribution
from tune_inat.metrics import is_better
from tune_inat.objective import Goal
from tune_inat.plan import PlannedTrial
from tune_inat.space import SearchSpace

STUDY_FILE = "optuna.db"
LATENT_SUFFIX = " (quantile)"  # of a parameter that Optuna knows only by its quantile in [0, 1]


class Proposer(Protocol):
    """Where trials come from."""

    def propose(self) -> PlannedTrial | None:
        """The next trial, or `None` when there are no more."""
        ...

    def on_result(self, trial: PlannedTrial, epoch: int, value: float) -> None:
        """A trial reported an epoch."""
        ...

    def on_end(self, trial: PlannedTrial, value: float | None) -> None:
        """A trial ended with its best metric, or failed (`None`)."""
        ...


class PlannedProposer:
    """Proposes the trials of a plan, in its order."""

    def __init__(self, trials: Collection[PlannedTrial]) -> None:
        self._trials = iter(tuple(trials))

    def propose(self) -> PlannedTrial | None:
        """The next trial of the plan."""
        return next(self._trials, None)

    def on_result(self, trial: PlannedTrial, epoch: int, value: float) -> None:
        """A plan learns nothing."""

    def on_end(self, trial: PlannedTrial, value: float | None) -> None:
        """A plan learns nothing."""


class OptunaProposer:
    """Asks Optuna's TPE for trials, through Ray's `OptunaSearch`; the study lives in a database file.

    Distributions that Optuna lacks (normal, beta, quantized logarithms, ...) are searched by their quantile,
    which keeps what they mean. Bergstra et al., "Algorithms for Hyper-Parameter Optimization" (NIPS 2011).

    Args:
        n_trials: how many trials to propose.
        complete: makes a named trial of a point of the space.
        seed: of TPE. Trials that the study has already shift it, or the same points would come again.
    """

    def __init__(
        self,
        space: SearchSpace,
        folder: Path,
        *,
        study_name: str,
        n_trials: int,
        seed: int,
        complete: Callable[[Mapping[str, Any]], PlannedTrial],
    ) -> None:
        assert space.metric is not None, "a bayes sweep without a metric is refused when it is read"
        self._space = space
        self._n_left = n_trials
        self._complete = complete
        self._keys: dict[str, str] = {}  # OptunaSearch's own ids by trial id
        self._metric = space.metric.name
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        storage = open_study_storage(folder / STUDY_FILE)
        n_known = _requeue_unfinished(storage, study_name, space.metric.goal)
        self._search = OptunaSearch(
            space={
                _optuna_name(name, distribution): _dimension(distribution)
                for name, distribution in space.parameters.items()
            },
            metric=self._metric,
            mode=tune_mode(space.metric.goal),
            study_name=study_name,
            storage=storage,
            seed=(seed + n_known) % 2**32,
        )

    def propose(self) -> PlannedTrial | None:
        """The trial that TPE thinks most promising, given the ends it has been told."""
        if self._n_left == 0:
            return None
        self._n_left -= 1
        key = f"proposal-{self._n_left}"
        suggested = self._search.suggest(key)
        assert suggested is not None, "a study always has a suggestion"
        trial = self._complete(_point(self._space, suggested))
        self._keys[trial.trial_id] = key
        return trial

    def on_result(self, trial: PlannedTrial, epoch: int, value: float) -> None:
        """Record an intermediate value."""
        key = self._keys[trial.trial_id]
        self._search.on_trial_result(key, {self._metric: value, "training_iteration": epoch})

    def on_end(self, trial: PlannedTrial, value: float | None) -> None:
        """Tell the study how the trial ended."""
        key = self._keys.pop(trial.trial_id)
        result = None if value is None else {self._metric: value}
        self._search.on_trial_complete(key, result, error=value is None)


def open_study_storage(path: Path) -> optuna.storages.RDBStorage:
    """The database of a search's Optuna study, which optuna-dashboard opens as well."""
    from sqlalchemy import URL

    return optuna.storages.RDBStorage(str(URL.create("sqlite", database=str(path))))


def _requeue_unfinished(storage: optuna.storages.BaseStorage, study_name: str, goal: Goal) -> int:
    """Have what a killed search left running proposed again, first; returns how many trials are known."""
    study = optuna.create_study(storage=storage, study_name=study_name, direction=goal, load_if_exists=True)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        study.enqueue_trial(trial.params)
    return len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL)))


def _optuna_name(name: str, distribution: Distribution) -> str:
    return name if distribution.optuna() is not None else name + LATENT_SUFFIX


def _dimension(distribution: Distribution) -> BaseDistribution:
    """Optuna's own distribution, or quantiles."""
    native = distribution.optuna()
    if native is None:
        return FloatDistribution(0.0, 1.0)
    if native.kind == "categorical":
        return CategoricalDistribution(native.choices)
    if native.kind == "int":
        step = int(native.step or 1)
        return IntDistribution(int(native.low), int(native.high), log=native.log, step=step)
    return FloatDistribution(native.low, native.high, log=native.log, step=native.step)


def _point(space: SearchSpace, suggested: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: distribution.from_optuna(suggested[_optuna_name(name, distribution)])
        for name, distribution in space.parameters.items()
    }


def tune_mode(goal: Goal) -> str:
    """Ray's word for a goal."""
    return "max" if goal == "maximize" else "min"


class FamilySearcher(Searcher):
    """Hands trials to Tune so that of each family the longest trains first and alone.

    A follower is handed out when no trial of its family runs: then the epochs it shares are in the store,
    and it replays them. If its leader was stopped early, it goes on from there.
    """

    def __init__(
        self, proposer: Proposer, *, metric: str, goal: Goal, n_ahead: int, reuse: bool = True
    ) -> None:
        super().__init__(metric=metric, mode=tune_mode(goal))
        self._proposer = proposer
        self._n_ahead = n_ahead  # how many trials to know beforehand: all of a plan, one of Optuna's
        self._goal = goal
        self._reuse = reuse  # without it no trial has anything to wait for
        self._waiting: list[PlannedTrial] = []
        self._running: dict[str, PlannedTrial] = {}  # by Ray's id
        self._best: dict[str, float] = {}
        self._last_epoch: dict[str, int] = {}

    def suggest(  # type: ignore[override]  # Ray leaves FINISHED out of its types
        self, trial_id: str
    ) -> dict[str, Any] | str | None:
        """Tune's question for one more trial: its config, `None` for "not now", or FINISHED."""
        self._fill()
        trial = next((trial for trial in self._waiting if self._is_ready(trial)), None)
        if trial is None:
            return None if self._waiting or self._running else Searcher.FINISHED
        self._waiting.remove(trial)
        self._running[trial_id] = trial
        return {"trial_id": trial.trial_id, "params": trial.config.model_dump()}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """An epoch's report."""
        trial, value, epoch = self._running[trial_id], float(result[self.metric]), int(result["epoch"])
        if epoch <= self._last_epoch.get(trial_id, 0):
            return
        self._last_epoch[trial_id] = epoch
        best = self._best.get(trial_id)
        if best is None or is_better(value, best, self._goal):
            self._best[trial_id] = value
        self._proposer.on_result(trial, epoch, value)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """A trial's end, whatever its reason. Of a report that ended it, Tune tells only here."""
        if result is not None and self.metric in result and "epoch" in result:
            self.on_trial_result(trial_id, result)
        trial = self._running.pop(trial_id)
        self._last_epoch.pop(trial_id, None)
        best = self._best.pop(trial_id, None)
        self._proposer.on_end(trial, None if error else best)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a search is taken up from its ledger, not from Tune's snapshots."""
        Path(checkpoint_path).write_text(json.dumps({}))

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, likewise."""

    def _fill(self) -> None:
        while len(self._waiting) < self._n_ahead and (trial := self._proposer.propose()) is not None:
            self._waiting.append(trial)

    def _is_ready(self, trial: PlannedTrial) -> bool:
        if not self._reuse:
            return True
        if any(running.family_key == trial.family_key for running in self._running.values()):
            return False
        return not any(
            other.family_key == trial.family_key and other.config.epochs > trial.config.epochs
            for other in self._waiting
        )
