"""Who trains next: leaders before their followers, and what failed before all others."""

from typing import Any

import pytest
from ray.tune.search import Searcher

from tune_inat.config import TrialConfig
from tune_inat.families import FAILURE, FamilySearcher
from tune_inat.plan import PlannedTrial, make_plan
from tune_inat.searchers import PlannedProposer
from tune_inat.space import load_space
from tune_inat.tries import Tries


class Told(PlannedProposer):
    """A plan that remembers what it is told."""

    def __init__(self, trials: tuple[PlannedTrial, ...]) -> None:
        super().__init__(trials)
        self.results: list[tuple[str, int]] = []
        self.ends: dict[str, float | None] = {}

    def on_result(self, trial: PlannedTrial, epoch: int, value: float) -> None:
        self.results.append((trial.trial_id, epoch))

    def on_end(self, trial: PlannedTrial, value: float | None) -> None:
        self.ends[trial.trial_id] = value


def searcher_of(
    trials: tuple[PlannedTrial, ...], *, proposer: PlannedProposer | None = None, **options: Any
) -> FamilySearcher:
    return FamilySearcher(
        proposer or PlannedProposer(trials),
        metric="val_accuracy",
        goal="maximize",
        n_ahead=len(trials),
        **options,
    )


def grid_of_four() -> tuple[PlannedTrial, ...]:
    return make_plan(load_space("grid"), {"batch_size": 32}, n_trials=None, seed=0).trials[:4]


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


def test_longest_trials_go_first_and_those_that_are_equal_in_the_plans_order() -> None:
    grid = make_plan(load_space("grid"), {}, n_trials=None, seed=0).trials
    trials = tuple(trial for trial in grid if trial.config.batch_size == 32)
    leaders = [trial for trial in trials if trial.config.epochs == 7]
    seconds = {trial.trial_id: 10.0 + 20.0 * (trial.config.freeze == 0.8) for trial in leaders}
    started = run_all(searcher_of(trials, seconds=seconds), n_concurrent=1)
    order = [(params["freeze"], params["epochs"]) for params in started]
    assert order == [(0.8, 7), (0.7, 7), (0.9, 7), (0.7, 5), (0.8, 5), (0.9, 5)]


def test_trial_that_fails_comes_before_longer_ones() -> None:
    trials = make_plan(load_space("random"), {}, n_trials=4, seed=0).trials
    seconds = {trial.trial_id: float(number) for number, trial in enumerate(trials)}
    searcher = searcher_of(trials, seconds=seconds, tries=Tries(max_failures=1))
    first, second = searcher.suggest("1"), searcher.suggest("2")
    assert isinstance(first, dict)
    assert isinstance(second, dict)
    assert [first["trial_id"], second["trial_id"]] == [trials[-1].trial_id, trials[-2].trial_id]
    searcher.on_trial_complete("2", error=True)
    assert searcher.suggest("3") == second


def test_devices_do_not_stand_idle_while_the_next_proposal_waits_for_its_family() -> None:
    """As Optuna proposes trials: one at a time, and two of a family after another."""
    leader, *followers, other = [
        PlannedTrial(f"{number}", TrialConfig(epochs=epochs, lr=lr))
        for number, (epochs, lr) in enumerate([(7, 0.1), (5, 0.1), (4, 0.1), (7, 0.2)])
    ]
    trials = (leader, *followers, other)
    searcher = FamilySearcher(
        PlannedProposer(trials), metric="val_accuracy", goal="maximize", n_ahead=1, max_concurrent=3
    )
    started = [searcher.suggest(str(number)) for number in range(3)]
    assert [each and each["trial_id"] for each in started] == ["0", "3", None]  # type: ignore[index]


def test_no_more_is_proposed_than_can_run_while_families_wait() -> None:
    trials = tuple(PlannedTrial(str(n), TrialConfig(epochs=9 - n)) for n in range(8))
    told = Told(trials)
    searcher = FamilySearcher(told, metric="val_accuracy", goal="maximize", n_ahead=1, max_concurrent=3)
    assert isinstance(searcher.suggest("1"), dict)
    for number in range(2, 9):
        assert searcher.suggest(str(number)) is None
    left = told.propose()
    assert left is not None
    assert left.trial_id == "4"  # one runs, three wait


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


def test_trial_that_fails_is_handed_out_again_next_and_its_proposer_hears_of_one_trial() -> None:
    trials = grid_of_four()
    told = Told(trials)
    searcher = searcher_of(trials, proposer=told, tries=Tries(max_failures=1))
    first = searcher.suggest("1")
    assert isinstance(first, dict)
    searcher.on_trial_result("1", {"val_accuracy": 0.5, "epoch": 1})
    searcher.on_trial_complete("1", error=True)
    assert searcher.suggest("2") == first
    searcher.on_trial_result("2", {"val_accuracy": 0.5, "epoch": 1})  # replayed
    searcher.on_trial_complete("2", {"val_accuracy": 0.75, "epoch": 2})
    assert told.results == [(first["trial_id"], 1), (first["trial_id"], 2)]
    searcher.tell_ends()
    assert told.ends == {first["trial_id"]: 0.75}


def test_trial_without_another_try_counts_as_failed_and_its_followers_come() -> None:
    trials = grid_of_four()
    told = Told(trials)
    searcher = searcher_of(trials, proposer=told, tries=Tries(max_failures=0))
    leader = searcher.suggest("1")
    assert isinstance(leader, dict)
    searcher.on_trial_complete("1", error=True)
    searcher.tell_ends()
    assert told.ends == {leader["trial_id"]: None}
    started = [leader["params"], *run_all(searcher, 1)]
    assert len(started) == len(trials)


def test_trial_that_reports_its_failure_is_not_tried_again() -> None:
    trials = grid_of_four()
    told = Told(trials)
    searcher = searcher_of(trials, proposer=told, tries=Tries(max_failures=5))
    first = searcher.suggest("1")
    assert isinstance(first, dict)
    searcher.on_trial_result("1", {"val_accuracy": 0.5, "epoch": 1})
    searcher.on_trial_complete("1", {FAILURE: "the loss is nan"})
    searcher.tell_ends()
    assert told.ends == {first["trial_id"]: None}
    assert searcher.suggest("2") != first


def test_sign_of_life_is_no_result() -> None:
    trials = grid_of_four()
    told = Told(trials)
    searcher = searcher_of(trials, proposer=told)
    searcher.suggest("1")
    searcher.on_trial_result("1", {"alive": True})
    assert told.results == []


def test_when_memory_runs_out_no_more_trials_run_than_were_left() -> None:
    trials = make_plan(load_space("grid"), {}, n_trials=None, seed=0).trials
    searcher = searcher_of(trials, max_concurrent=3, tries=Tries(max_failures=1))
    for number in range(3):
        assert isinstance(searcher.suggest(str(number)), dict)
    searcher.on_trial_complete("0", error=True)
    assert searcher.have_fewer() == 2
    assert searcher.suggest("3") is None
    searcher.on_trial_complete("1", {"val_accuracy": 0.5, "epoch": 7})
    assert isinstance(searcher.suggest("3"), dict)
    searcher.on_trial_complete("2", error=True)
    assert searcher.have_fewer() == 1
    searcher.on_trial_complete("3", error=True)
    assert searcher.have_fewer() is None  # one at a time is the least
