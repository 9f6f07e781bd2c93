"""What a search will do, decided before any training: its trials, who shares with whom, who goes first."""

import math
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tune_inat.config import TrialConfig
from tune_inat.distributions import Distribution, Integers, Rounded
from tune_inat.errors import SpaceError
from tune_inat.space import SearchSpace
from tune_inat.store import hash_of
from tune_inat.sweep import DEFAULT_TRIALS, MAX_GRID

TRIAL_ID_DIGITS = 8


@dataclass(frozen=True)
class PlannedTrial:
    """A trial to be run. Its id follows from its configuration, so it is the same in every search."""

    trial_id: str
    config: TrialConfig

    @cached_property
    def family_key(self) -> str:
        """The key of the trials that train the same epochs, within one search."""
        return hash_of(self.config.family())


@dataclass(frozen=True)
class SearchPlan:
    """The trials of a search. `trials` are those known beforehand: all, except for bayes, which learns."""

    n_trials: int
    trials: tuple[PlannedTrial, ...]

    @property
    def epochs_asked(self) -> int:
        """The epochs of all trials known beforehand."""
        return sum(trial.config.epochs for trial in self.trials)

    @property
    def epochs_to_train(self) -> int:
        """The epochs left when each family trains its longest trial only."""
        return sum(max(trial.config.epochs for trial in family) for family in self.families().values())

    def families(self) -> dict[str, list[PlannedTrial]]:
        """The trials of each family, in the plan's order."""
        families: dict[str, list[PlannedTrial]] = defaultdict(list)
        for trial in self.trials:
            families[trial.family_key].append(trial)
        return dict(families)

    def horizons(self) -> dict[str, tuple[int, ...]]:
        """The numbers of epochs that each family's trials ask for, ascending."""
        return {
            key: tuple(sorted({trial.config.epochs for trial in family}))
            for key, family in self.families().items()
        }


class TrialNamer:
    """Gives each configuration its id; one that comes again is a trial of its own, `-2`, `-3`, ..."""

    def __init__(self) -> None:
        self._times: dict[str, int] = defaultdict(int)

    def name(self, config: TrialConfig) -> PlannedTrial:
        """The trial of a configuration."""
        trial_id = hash_of(config.model_dump())[:TRIAL_ID_DIGITS]
        self._times[trial_id] += 1
        times = self._times[trial_id]
        return PlannedTrial(trial_id if times == 1 else f"{trial_id}-{times}", config)


def make_plan(space: SearchSpace, fixed: Mapping[str, Any], *, n_trials: int | None, seed: int) -> SearchPlan:
    """The plan of a search.

    Args:
        fixed: the values that all trials share; the space varies the rest.
        n_trials: at most so many trials; `None` leaves it to the sweep (`run_cap`).
        seed: of the draws of a random search.

    Raises:
        SpaceError: so many trials would fill the memory before they start.
    """
    limit = n_trials if n_trials is not None else space.run_cap
    if limit is not None and limit > MAX_GRID and space.method != "grid":  # a grid ends by itself
        text = f"{limit:,} trials are more than {MAX_GRID:,}. --trials asks for fewer."
        raise SpaceError(f"{space.source}: {text}")
    if space.method == "bayes":
        return SearchPlan(limit or DEFAULT_TRIALS, ())
    if space.method == "grid":
        points: Iterable[dict[str, Any]] = space.grid()[:limit]
    else:
        points = _sample(space, limit or DEFAULT_TRIALS, seed)
    namer = TrialNamer()
    trials = tuple(namer.name(complete_config(point, fixed)) for point in points)
    return SearchPlan(len(trials), trials)


def representative_plan(
    space: SearchSpace, fixed: Mapping[str, Any], *, n_trials: int, seed: int
) -> SearchPlan:
    """So many random trials of a space: what to reckon with where nobody knows what will be proposed."""
    namer = TrialNamer()
    points = _sample(space, n_trials, seed)
    return SearchPlan(n_trials, tuple(namer.name(complete_config(point, fixed)) for point in points))


def complete_config(point: Mapping[str, Any], fixed: Mapping[str, Any]) -> TrialConfig:
    """A trial's configuration from a point of the space and the values that all trials share."""
    return TrialConfig(**{**fixed, **point})


def _sample(space: SearchSpace, n: int, seed: int) -> Iterator[dict[str, Any]]:
    """Each point has a stream of its own, so that a longer search begins with the same points."""
    for number in range(n):
        yield space.sample(random.Random(hash_of([seed, number])))


def default_notice(space: SearchSpace, n_trials: int | None) -> str | None:
    """What to say where nobody has said how many trials there are to be."""
    if space.method == "grid" or space.run_cap is not None or n_trials is not None:
        return None
    return (
        f"{space.source}: method {space.method} without run_cap, endless with W&B, means {DEFAULT_TRIALS} "
        "trials here. run_cap or --trials says otherwise."
    )


def longest_trial(space: SearchSpace, fixed: Mapping[str, Any]) -> int:
    """The most epochs that any trial of a space can ask for."""
    if "epochs" not in space.parameters:
        return complete_config({}, {"epochs": fixed["epochs"]} if "epochs" in fixed else {}).epochs
    distribution = space.parameters["epochs"]
    return int(distribution.ppf(1.0) if distribution.values is None else max(distribution.values))


def is_of_space(config: Mapping[str, Any], space: SearchSpace, fixed: Mapping[str, Any]) -> bool:
    """Whether a space, with the values that all trials share, can give this configuration."""
    point = {name: config.get(name) for name in space.parameters}
    if not all(_can_give(space.parameters[name], value) for name, value in point.items()):
        return False
    return complete_config(point, fixed).model_dump() == config


def _can_give(distribution: Distribution, value: Any) -> bool:
    if distribution.values is not None:
        return value in distribution.values
    low, high = distribution.ppf(0.0), distribution.ppf(1.0)
    if not isinstance(value, int | float) or not low <= value <= high:
        return False
    if isinstance(distribution, Rounded):  # a grid counts its steps from the lower bound
        starts = (0.0, low) if math.isfinite(low) else (0.0,)
        steps = [(value - start) / distribution.q for start in starts]
        return any(math.isclose(step, round(step), rel_tol=1e-9, abs_tol=1e-9) for step in steps)
    return not isinstance(distribution, Integers) or value == int(value)


def check_early_stopping(space: SearchSpace, longest: int) -> None:
    """Refuse an early stopping that could never stop a trial, however it went.

    Raises:
        SpaceError: the first rung lies at or after the last epoch of the longest trial.
    """
    problem = space.early_stopping.problem(longest) if space.early_stopping is not None else None
    if problem is not None:
        raise SpaceError(f"{space.source}: {problem}")
