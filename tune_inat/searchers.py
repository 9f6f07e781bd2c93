"""Where trials come from: the known ones of a plan, or those that Optuna proposes."""

import math
import sqlite3
from collections.abc import Callable, Collection, Mapping
from contextlib import closing, suppress
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
from ray.tune.search.optuna import OptunaSearch

from tune_inat.distributions import Choice, Distribution, Rounded
from tune_inat.ledger import TrialRecord
from tune_inat.objective import Goal
from tune_inat.plan import PlannedTrial
from tune_inat.rows import best_row
from tune_inat.runs import STUDY_FILE
from tune_inat.space import SearchSpace
from tune_inat.store import hash_of

LATENT_SUFFIX = " (quantile)"  # of a parameter that Optuna knows only by its quantile in [0, 1]
N_BISECTIONS = 40  # to find a value's quantile: to 1e-12
STUDY_HASH_DIGITS = 8
FIXED_PARAMS = "fixed_params"  # where Optuna keeps what `enqueue_trial` was told
DAMAGED_SUFFIX = ".damaged"


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
        study: its name, as `name_study` gives it.
        earlier: finished trials of this space. Those that the study does not know, it is told of: the space
            has changed since, or a kill came between the ledger and the study.
        failed: trials of this space that failed in an earlier run of the command: they are proposed first.
        n_trials: how many trials to propose.
        complete: makes a named trial of a point of the space.
        seed: of TPE. Trials that the study has already shift it, or the same points would come again.
    """

    def __init__(
        self,
        space: SearchSpace,
        folder: Path,
        *,
        study: str,
        earlier: Collection[TrialRecord] = (),
        failed: Collection[TrialRecord] = (),
        n_trials: int,
        seed: int,
        complete: Callable[[Mapping[str, Any]], PlannedTrial],
    ) -> None:
        self._space = space
        self._n_left = n_trials
        self._complete = complete
        self._keys: dict[str, str] = {}  # OptunaSearch's own ids by trial id
        self._metric = space.metric.name
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        storage = open_study_storage(folder / STUDY_FILE)
        n_known = _bring_up_to_date(storage, study, space, earlier, failed)
        self._search = OptunaSearch(
            space=_dimensions(space),
            metric=self._metric,
            mode=tune_mode(space.metric.goal),
            study_name=study,
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


def set_aside_damaged_study(path: Path) -> str | None:
    """Rename the database of a study that is not whole, and say so: a new one learns from the ledger.

    A kill or power loss does not damage it: SQLite takes back what was half written.
    """
    if not path.exists():
        return None
    with suppress(sqlite3.DatabaseError), closing(sqlite3.connect(path)) as database:
        if database.execute("PRAGMA quick_check").fetchone() == ("ok",):
            return None
    aside = path.with_name(path.name + DAMAGED_SUFFIX)
    path.replace(aside)
    return (
        f"{path} is damaged and is now {aside.name}: a new study begins with the trials that have finished."
    )


def name_study(search_name: str, space: SearchSpace) -> str:
    """The name of a search's study: another one for each metric and range, which Optuna cannot change."""
    asked = space.identity()
    return f"{search_name}-{hash_of([asked['metric'], asked['parameters']])[:STUDY_HASH_DIGITS]}"


def _bring_up_to_date(
    storage: optuna.storages.BaseStorage,
    name: str,
    space: SearchSpace,
    earlier: Collection[TrialRecord],
    failed: Collection[TrialRecord],
) -> int:
    """Tell a study what it does not know to be finished.

    What a kill left running, and what failed, is proposed first.

    Returns:
        How many trials the study knows.
    """
    goal = space.metric.goal
    study = optuna.create_study(storage=storage, study_name=name, direction=goal, load_if_exists=True)
    untold = list(earlier)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        known = _find(untold, space, trial)
        if known is not None:
            untold.remove(known)
    waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    proposed = [trial.system_attrs.get(FIXED_PARAMS) for trial in waiting]
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        # Of a trial that was to be proposed again, a kill may have left a part.
        params = trial.system_attrs.get(FIXED_PARAMS, trial.params)
        if _find(untold, space, trial) is None and params not in proposed:
            study.enqueue_trial(params)
            proposed.append(params)
        study.tell(trial.number, state=TrialState.FAIL)
    for record in untold:
        study.add_trial(_completed(space, record))
    queued = [
        trial.system_attrs.get("fixed_params", {})
        for trial in study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    ]
    ended = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
    for record in failed:
        suggested = (trial.params for trial in ended if _find([record], space, trial) is not None)
        params = next(suggested, None) or _params(space, record)
        if params not in queued:
            study.enqueue_trial(params)
    return len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL)))


def _find(
    records: Collection[TrialRecord], space: SearchSpace, trial: optuna.trial.FrozenTrial
) -> TrialRecord | None:
    """The record of a trial of the study. One that a kill left half asked for has none."""
    if len(trial.params) < len(space.parameters):
        return None
    point = _point(space, trial.params)
    return next((record for record in records if _is_at(record.config, point)), None)


def _is_at(config: Mapping[str, Any], point: Mapping[str, Any]) -> bool:
    """Whether a configuration has these values; a quantile may have given back almost the value."""
    return all(
        math.isclose(value, config[name], rel_tol=1e-9, abs_tol=1e-12)
        if isinstance(value, float)
        else value == config[name]
        for name, value in point.items()
    )


def _completed(space: SearchSpace, record: TrialRecord) -> optuna.trial.FrozenTrial:
    """A finished trial as the study is to know it: by the metric that the search has now."""
    name, goal = space.metric.name, space.metric.goal
    return optuna.trial.create_trial(
        value=best_row(record.rows, name, goal)[name],
        params=_params(space, record),
        distributions=_dimensions(space),
        intermediate_values={int(row["epoch"]): row[name] for row in record.rows},
    )


def _params(space: SearchSpace, record: TrialRecord) -> dict[str, Any]:
    """What Optuna would have suggested for a trial."""
    return {
        _optuna_name(parameter, distribution): _to_optuna(distribution, record.config[parameter])
        for parameter, distribution in space.parameters.items()
    }


def _to_optuna(distribution: Distribution, value: Any) -> Any:
    """What Optuna would have suggested for a value: the value, or its quantile."""
    native = distribution.optuna()
    if native is None:
        return _quantile(distribution, value)
    return int(value) if native.kind == "int" else value


def _quantile(distribution: Distribution, value: Any) -> float:
    """A quantile at which a value stands; of the many that a listed or rounded value has, the middle."""
    if isinstance(distribution, Choice):
        place = distribution.values.index(value)
        weights = distribution.weights
        return (math.fsum(weights[:place]) + weights[place] / 2) / math.fsum(weights)
    first = _bisect(lambda u: bool(distribution.ppf(u) >= value))
    if not isinstance(distribution, Rounded):
        return first
    return (first + _bisect(lambda u: bool(distribution.ppf(u) > value))) / 2


def _bisect(holds: Callable[[float], bool]) -> float:
    """The smallest number in [0, 1] for which it holds; 1 where it never does."""
    low, high = 0.0, 1.0
    if holds(low):
        return low
    for _ in range(N_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _dimensions(space: SearchSpace) -> dict[str, BaseDistribution]:
    return {
        _optuna_name(name, distribution): _dimension(distribution)
        for name, distribution in space.parameters.items()
    }


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
