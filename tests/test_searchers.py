"""Who trains next: leaders before followers, and a study that goes on."""

from pathlib import Path
from typing import Any

import optuna
import pytest
from ray.tune.search import Searcher

from tune_inat.plan import PlannedTrial, TrialNamer, complete_config, make_plan
from tune_inat.searchers import (
    STUDY_FILE,
    FamilySearcher,
    OptunaProposer,
    PlannedProposer,
    open_study_storage,
)
from tune_inat.space import SearchSpace, load_space


def searcher_of(trials: tuple[PlannedTrial, ...]) -> FamilySearcher:
    return FamilySearcher(
        PlannedProposer(trials), metric="val_accuracy", goal="maximize", n_ahead=len(trials)
    )


def run_all(searcher: FamilySearcher, n_concurrent: int) -> list[dict[str, Any]]:
    """Start trials as slots come free, the oldest ending first; returns their parameters as started."""
    started: list[dict[str, Any]] = []
    running: list[str] = []
    while True:
        suggestion = searcher.suggest(f"ray-{len(started)}") if len(running) < n_concurrent else None
        if suggestion == Searcher.FINISHED:
            return started
        if isinstance(suggestion, dict):
            running.append(f"ray-{len(started)}")
            started.append(suggestion["params"])
        else:
            assert running, "nothing runs and nothing is started"
            searcher.on_trial_complete(running.pop(0), {"val_accuracy": 0.5})


@pytest.mark.parametrize("n_concurrent", [1, 2, 5])
def test_every_trial_of_the_grid_is_started_once_and_leaders_first(n_concurrent: int) -> None:
    plan = make_plan(load_space("grid"), {}, n_trials=None, seed=0)
    started = run_all(searcher_of(plan.trials), n_concurrent)
    assert sorted(map(repr, started)) == sorted(repr(trial.config.model_dump()) for trial in plan.trials)
    seen: set[tuple[float, int]] = set()
    for params in started:
        family = (params["freeze"], params["batch_size"])
        assert params["epochs"] == 7 or family in seen
        seen.add(family)


def test_follower_waits_for_the_end_of_its_leader() -> None:
    plan = make_plan(load_space("grid"), {"batch_size": 32}, n_trials=None, seed=0)
    family = tuple(t for t in plan.trials if t.config.freeze == 0.7 and t.config.batch_size == 32)
    searcher = searcher_of(family)
    leader = searcher.suggest("1")
    assert isinstance(leader, dict)
    assert leader["params"]["epochs"] == 7
    assert searcher.suggest("2") is None
    searcher.on_trial_complete("1", {"val_accuracy": 0.9})
    follower = searcher.suggest("2")
    assert isinstance(follower, dict)
    assert follower["params"]["epochs"] == 5


def test_report_that_ends_a_trial_counts_as_well(space: SearchSpace, hostile_path: Path) -> None:
    searcher = FamilySearcher(
        proposer_of(space, hostile_path, 2), metric="val_accuracy", goal="maximize", n_ahead=1
    )
    for trial_id, reports in {"stopped at once": [0.3], "stopped later": [0.5, 0.4]}.items():
        searcher.suggest(trial_id)
        results = [{"val_accuracy": value, "epoch": n} for n, value in enumerate(reports, start=1)]
        for result in results[:-1]:
            searcher.on_trial_result(trial_id, result)
        searcher.on_trial_complete(trial_id, results[-1])
    first, second = study_of(hostile_path).trials
    assert (first.value, first.intermediate_values) == (0.3, {1: 0.3})
    assert (second.value, second.intermediate_values) == (0.5, {1: 0.5, 2: 0.4})


BAYES = """
method: bayes
metric: {name: val_accuracy, goal: maximize}
parameters:
  lr: {distribution: log_uniform_values, min: 1e-4, max: 1e-1}
  dropout: {distribution: beta, a: 2, b: 5}
  optimizer: {values: [adam, sgd]}
"""


@pytest.fixture
def space(hostile_path: Path) -> SearchSpace:
    path = hostile_path / "bayes.yaml"
    path.write_text(BAYES)
    return load_space(str(path))


def proposer_of(space: SearchSpace, folder: Path, n_trials: int) -> OptunaProposer:
    namer = TrialNamer()
    return OptunaProposer(
        space,
        folder,
        study_name="search",
        n_trials=n_trials,
        seed=3,
        complete=lambda point: namer.name(complete_config(point, {})),
    )


def study_of(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name="search", storage=open_study_storage(folder / STUDY_FILE))


def test_study_has_every_trial_with_its_epochs_and_its_best_value(
    space: SearchSpace, hostile_path: Path
) -> None:
    proposer = proposer_of(space, hostile_path, 2)
    for _ in range(2):
        trial = proposer.propose()
        assert trial is not None
        proposer.on_result(trial, 1, 0.4)
        proposer.on_result(trial, 2, 0.6)
        proposer.on_end(trial, 0.6)
    assert proposer.propose() is None
    trials = study_of(hostile_path).trials
    assert [trial.value for trial in trials] == [0.6, 0.6]
    assert trials[0].intermediate_values == {1: 0.4, 2: 0.6}


def test_distribution_that_optuna_lacks_is_searched_by_its_quantile(
    space: SearchSpace, hostile_path: Path
) -> None:
    trial = proposer_of(space, hostile_path, 1).propose()
    assert trial is not None
    (known,) = study_of(hostile_path).trials
    assert known.params["lr"] == trial.config.lr
    quantile = known.params["dropout (quantile)"]
    assert trial.config.dropout == space.parameters["dropout"].ppf(quantile)


def test_trial_that_a_kill_left_running_is_proposed_again_first(
    space: SearchSpace, hostile_path: Path
) -> None:
    cut_off = proposer_of(space, hostile_path, 5).propose()
    again = proposer_of(space, hostile_path, 5).propose()
    assert cut_off is not None
    assert again == cut_off


def test_failed_trial_is_told_as_failed(space: SearchSpace, hostile_path: Path) -> None:
    proposer = proposer_of(space, hostile_path, 1)
    trial = proposer.propose()
    assert trial is not None
    proposer.on_end(trial, None)
    assert study_of(hostile_path).trials[0].state == optuna.trial.TrialState.FAIL


def test_study_that_goes_on_does_not_repeat_its_points(space: SearchSpace, hostile_path: Path) -> None:
    points = []
    for _ in range(3):
        proposer = proposer_of(space, hostile_path, 1)
        trial = proposer.propose()
        assert trial is not None
        proposer.on_end(trial, 0.5)
        points.append(trial.config.lr)
    assert len(set(points)) == 3
