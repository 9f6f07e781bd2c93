"""Who trains next: leaders before followers, and a study that goes on."""

import random
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from ray.tune.search import Searcher

from tune_inat.families import FamilySearcher
from tune_inat.ledger import TrialRecord
from tune_inat.plan import TrialNamer, complete_config
from tune_inat.runs import STUDY_FILE
from tune_inat.searchers import (
    OptunaProposer,
    name_study,
    open_study_storage,
    set_aside_damaged_study,
)
from tune_inat.space import SearchSpace, load_space


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
        searcher.tell_ends()
    first, second = study_of(space, hostile_path).trials
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


def proposer_of(
    space: SearchSpace,
    folder: Path,
    n_trials: int,
    earlier: tuple[TrialRecord, ...] = (),
    failed: tuple[TrialRecord, ...] = (),
) -> OptunaProposer:
    namer = TrialNamer()
    return OptunaProposer(
        space,
        folder,
        study=name_study("search", space),
        earlier=earlier,
        failed=failed,
        n_trials=n_trials,
        seed=3,
        complete=lambda point: namer.name(complete_config(point, {})),
    )


def study_of(space: SearchSpace, folder: Path) -> optuna.Study:
    storage = open_study_storage(folder / STUDY_FILE)
    return optuna.load_study(study_name=name_study("search", space), storage=storage)


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
    trials = study_of(space, hostile_path).trials
    assert [trial.value for trial in trials] == [0.6, 0.6]
    assert trials[0].intermediate_values == {1: 0.4, 2: 0.6}


def test_distribution_that_optuna_lacks_is_searched_by_its_quantile(
    space: SearchSpace, hostile_path: Path
) -> None:
    trial = proposer_of(space, hostile_path, 1).propose()
    assert trial is not None
    (known,) = study_of(space, hostile_path).trials
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


def test_trial_that_two_kills_left_half_asked_for_is_proposed_again_as_it_was(
    space: SearchSpace, hostile_path: Path
) -> None:
    cut_off = proposer_of(space, hostile_path, 5).propose()
    proposer_of(space, hostile_path, 5)  # killed before it proposed anything
    study = study_of(space, hostile_path)
    study.ask()  # killed before it had asked for the first value
    again = proposer_of(space, hostile_path, 5)
    assert again.propose() == cut_off
    assert not study.get_trials(states=(TrialState.WAITING,))  # and once only


def test_study_learns_of_an_end_after_the_ledger(space: SearchSpace, hostile_path: Path) -> None:
    searcher = FamilySearcher(
        proposer_of(space, hostile_path, 1), metric="val_accuracy", goal="maximize", n_ahead=1
    )
    searcher.suggest("1")
    searcher.on_trial_complete("1", {"val_accuracy": 0.5, "epoch": 1})  # Tune's callbacks come after this
    (running,) = study_of(space, hostile_path).trials
    assert running.state == TrialState.RUNNING
    searcher.tell_ends()
    (complete,) = study_of(space, hostile_path).trials
    assert (complete.state, complete.value) == (TrialState.COMPLETE, 0.5)


@pytest.mark.parametrize("n_bytes", [0, 50, 5_000, 40_000])
def test_study_that_was_cut_short_is_set_aside_and_begun_anew(
    space: SearchSpace, hostile_path: Path, n_bytes: int
) -> None:
    records = records_of(space, 3)
    proposer_of(space, hostile_path, 0, records)
    path = hostile_path / STUDY_FILE
    assert set_aside_damaged_study(path) is None
    path.write_bytes(path.read_bytes()[:n_bytes])
    notice = set_aside_damaged_study(path)
    assert n_bytes == 0 or (notice is not None and "optuna.db.damaged" in notice)  # empty, it is a new one
    proposer_of(space, hostile_path, 0, records)
    assert [trial.value for trial in study_of(space, hostile_path).trials] == [0.5, 0.6, 0.7]


def test_failed_trial_is_told_as_failed(space: SearchSpace, hostile_path: Path) -> None:
    proposer = proposer_of(space, hostile_path, 1)
    trial = proposer.propose()
    assert trial is not None
    proposer.on_end(trial, None)
    assert study_of(space, hostile_path).trials[0].state == TrialState.FAIL


def test_study_that_goes_on_does_not_repeat_its_points(space: SearchSpace, hostile_path: Path) -> None:
    points = []
    for _ in range(3):
        proposer = proposer_of(space, hostile_path, 1)
        trial = proposer.propose()
        assert trial is not None
        proposer.on_end(trial, 0.5)
        points.append(trial.config.lr)
    assert len(set(points)) == 3


def other_space(folder: Path, old: str, new: str) -> SearchSpace:
    assert old in BAYES
    path = folder / "other.yaml"
    path.write_text(BAYES.replace(old, new))
    return load_space(str(path))


def records_of(space: SearchSpace, n: int) -> tuple[TrialRecord, ...]:
    """Finished trials with two epochs each: accuracy up, then down; loss down, then up."""
    configs = [complete_config(space.sample(random.Random(number)), {}).model_dump() for number in range(n)]
    return tuple(
        TrialRecord(
            f"trial-{number}",
            config,
            rows=[
                {"epoch": 1, "val_accuracy": 0.5 + number / 10, "val_loss": 2.0 + number},
                {"epoch": 2, "val_accuracy": 0.4, "val_loss": 9.0},
            ],
            status="TERMINATED",
        )
        for number, config in enumerate(configs)
    )


WIDER = ("values: [adam, sgd]", "values: [adam, sgd, adamw]")
LOSS = ("{name: val_accuracy, goal: maximize}", "{name: val_loss}")


@pytest.mark.parametrize("change", [WIDER, LOSS], ids=["wider", "other metric"])
def test_changed_space_begins_a_study_of_what_the_search_has_finished(
    change: tuple[str, str], space: SearchSpace, hostile_path: Path
) -> None:
    records = records_of(space, 3)
    assert proposer_of(space, hostile_path, 1).propose() is not None
    changed = other_space(hostile_path, *change)
    assert proposer_of(changed, hostile_path, 1, records).propose() is not None
    told = study_of(changed, hostile_path).get_trials(states=(TrialState.COMPLETE,))
    is_loss = change is LOSS
    assert [trial.value for trial in told] == ([2.0, 3.0, 4.0] if is_loss else [0.5, 0.6, 0.7])
    first = {1: 2.0, 2: 9.0} if is_loss else {1: 0.5, 2: 0.4}
    assert told[0].intermediate_values == first
    for trial, record in zip(told, records, strict=True):
        assert trial.params["lr"] == record.config["lr"]
        dropout = changed.parameters["dropout"].ppf(trial.params["dropout (quantile)"])
        assert dropout == pytest.approx(record.config["dropout"], rel=1e-9)


def test_study_is_told_of_each_finished_trial_once(space: SearchSpace, hostile_path: Path) -> None:
    records = records_of(space, 3)
    for n in (2, 3, 3):
        proposer_of(space, hostile_path, 0, records[:n])
    assert [trial.value for trial in study_of(space, hostile_path).trials] == [0.5, 0.6, 0.7]


def test_finished_trial_that_the_study_holds_for_running_is_not_run_again(
    space: SearchSpace, hostile_path: Path
) -> None:
    killed = proposer_of(space, hostile_path, 1).propose()
    assert killed is not None
    (record,) = records_of(space, 1)
    record.config = killed.config.model_dump()
    again = proposer_of(space, hostile_path, 1, (record,)).propose()
    assert again is not None
    assert again.config != killed.config
    complete = study_of(space, hostile_path).get_trials(states=(TrialState.COMPLETE,))
    assert [trial.value for trial in complete] == [0.5]


LATENT = """
method: bayes
metric: {name: val_accuracy, goal: maximize}
parameters:
  lr: {distribution: q_log_uniform_values, min: 0.001, max: 0.1, q: 0.001}
  batch_size: {values: [64, 16, 32], probabilities: [0.5, 0.2, 0.3]}
  weight_decay: {distribution: q_uniform, min: 0.0, max: 0.5, q: 0.1}
  epochs: {distribution: int_uniform, min: 1, max: 9}
  mixup: {distribution: log_normal, mu: 0, sigma: 1}
"""


def test_every_kind_of_value_finds_its_way_back_into_a_study(hostile_path: Path) -> None:
    path = hostile_path / "latent.yaml"
    path.write_text(LATENT)
    space = load_space(str(path))
    records = records_of(space, 20)
    proposer_of(space, hostile_path, 0, records)
    proposer_of(space, hostile_path, 0, records)  # knows them all again
    assert len(study_of(space, hostile_path).trials) == 20


def test_trial_that_failed_in_an_earlier_run_is_proposed_first_and_once(
    space: SearchSpace, hostile_path: Path
) -> None:
    proposer = proposer_of(space, hostile_path, 2)
    failed, done = proposer.propose(), proposer.propose()
    assert failed is not None
    assert done is not None
    proposer.on_end(failed, None)
    proposer.on_end(done, 0.5)
    record = TrialRecord(failed.trial_id, failed.config.model_dump(), status="ERROR", error="killed")
    for _ in range(2):  # a kill may come before it is proposed
        again = proposer_of(space, hostile_path, 2, failed=(record,))
    assert again.propose() == failed
    following = again.propose()
    assert following is not None
    assert following.config != failed.config


def test_trial_that_the_end_of_the_search_cut_off_is_proposed_again(
    space: SearchSpace, hostile_path: Path
) -> None:
    is_over: list[bool] = []

    def searcher() -> FamilySearcher:
        return FamilySearcher(
            proposer_of(space, hostile_path, 2),
            metric="val_accuracy",
            goal="maximize",
            n_ahead=1,
            is_over=lambda: bool(is_over),
        )

    first = searcher()
    cut_off = first.suggest("1")
    first.on_trial_result("1", {"val_accuracy": 0.5, "epoch": 1})
    is_over.append(True)
    first.on_trial_complete("1", {"val_accuracy": 0.6, "epoch": 2})
    assert first.suggest("2") == Searcher.FINISHED
    is_over.clear()
    assert searcher().suggest("1") == cut_off
