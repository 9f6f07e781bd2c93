"""The leaderboard and the files of a search."""

import csv
import itertools
import json
from pathlib import Path

import pytest

from tune_inat.config import TrialConfig
from tune_inat.leaderboard import (
    BEST_MODEL_FOLDER,
    TestResult,
    TrialResult,
    best_of,
    best_to_json,
    exported_trial,
    leaderboard,
    read_summary,
    recorded_test,
    trial_result,
    varied_parameters,
    write_leaderboard,
    write_summary,
)
from tune_inat.ledger import Status, TrialRecord
from tune_inat.objective import Goal
from tune_inat.rows import Row


def row(epoch: int, accuracy: float, loss: float = 1.0) -> Row:
    names = ("val_macro_f1", "val_balanced_accuracy", "val_ece")
    rest = dict.fromkeys(names, 0.5)
    peak = 0.1 * epoch
    return {
        "epoch": epoch,
        "val_accuracy": accuracy,
        "val_loss": loss,
        "steps": 10 * epoch,
        "peak_lr": peak,
        **rest,
    }


def result(
    trial_id: str,
    *rows: Row,
    status: Status = "TERMINATED",
    model: str = "resnet50",
    epochs: int = 5,
) -> TrialResult:
    config = TrialConfig(model=model, epochs=epochs).model_dump()
    record = TrialRecord(trial_id, config, rows=list(rows), status=status, did={"cut": "layer3"})
    return trial_result(record, "val_accuracy", "maximize")


def test_trial_stands_for_its_best_epoch() -> None:
    trial = result("a", row(1, 0.6), row(2, 0.9, 0.3), row(3, 0.8))
    assert trial.best_epoch == 2
    assert trial.to_json()["val_loss"] == 0.3
    assert trial.epochs == 3
    assert trial.did == {"cut": "layer3", "steps": 30, "peak_lr": 0.1 * 3}


def test_leaderboard_puts_the_best_first_and_the_failed_last() -> None:
    trials = [
        result("none", status="SKIPPED"),
        result("failed", row(1, 0.99), status="ERROR"),
        result("worse", row(1, 0.7)),
        result("tied, higher loss", row(1, 0.8, 0.5)),
        result("tied, lower loss", row(1, 0.8, 0.4)),
    ]
    ranked = [trial.trial_id for trial in leaderboard(trials, "val_accuracy", "maximize")]
    assert ranked == ["tied, lower loss", "tied, higher loss", "worse", "failed", "none"]


def test_order_of_equal_trials_does_not_depend_on_which_ended_first() -> None:
    same = [result(name, row(1, 0.8), epochs=epochs) for name, epochs in (("c", 5), ("a", 7), ("b", 5))]
    for trials in itertools.permutations(same):
        ranked = leaderboard(trials, "val_accuracy", "maximize")
        assert [trial.trial_id for trial in ranked] == ["b", "c", "a"]


def test_goal_to_minimize_turns_the_leaderboard() -> None:
    trials = [result("a", row(1, 0.9, 0.5)), result("b", row(1, 0.8, 0.4))]
    ranked = leaderboard(trials, "val_loss", "minimize")
    assert [trial.trial_id for trial in ranked] == ["b", "a"]


def test_failed_or_empty_trial_is_never_the_best() -> None:
    assert best_of([]) is None
    assert best_of([result("failed", row(1, 0.9), status="ERROR")]) is None
    assert best_of([result("none", status="SKIPPED")]) is None


def test_varied_parameters_are_those_in_which_trials_differ() -> None:
    assert varied_parameters([result("a"), result("b", model="vgg11")]) == ("model",)
    assert varied_parameters([result("a")]) == ()


def test_csv_has_a_row_for_each_trial_and_no_formula(hostile_path: Path) -> None:
    write_leaderboard(hostile_path, [result("a", row(1, 0.7)), result("b", model='=HYPERLINK("x")')])
    with (hostile_path / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [line["trial_id"] for line in rows] == ["a", "b"]
    assert rows[0]["val_accuracy"] == "0.7"
    assert rows[1]["model"] == '\'=HYPERLINK("x")'


def test_summary_comes_back_and_a_torn_one_counts_as_none(hostile_path: Path) -> None:
    write_summary(hostile_path, {"status": "DONE"})
    assert read_summary(hostile_path) == {"status": "DONE"}
    (hostile_path / "summary.json").write_text('{"status": ')
    assert read_summary(hostile_path) is None


def test_exported_model_counts_only_with_the_summary_that_tested_it(hostile_path: Path) -> None:
    best = result("a", row(1, 0.7))
    test = TestResult(0.75, 0.6, (0.7, 0.8), 100)
    model = hostile_path / BEST_MODEL_FOLDER
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"trial_id": "a", "epoch": 1}))
    assert exported_trial(hostile_path) is None
    write_summary(hostile_path, {"best": best_to_json(best, test)})
    assert exported_trial(hostile_path) == ("a", 1)
    assert recorded_test(read_summary(hostile_path) or {}) == test
    (model / "config.json").write_text(json.dumps({"trial_id": "b", "epoch": 1}))
    assert exported_trial(hostile_path) is None


NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize("goal", ["maximize", "minimize"])
@pytest.mark.parametrize("bad", [NAN, INFINITE, -INFINITE])
def test_number_that_is_not_finite_never_ranks_above_one_that_is(goal: Goal, bad: float) -> None:
    trials = [
        result("bad", row(1, bad)),
        result("good", row(1, bad), row(2, 0.2)),
        result("fine", row(1, 0.1)),
    ]
    names = [trial.trial_id for trial in leaderboard(trials, "val_accuracy", goal)]
    assert names == (["good", "fine", "bad"] if goal == "maximize" else ["fine", "good", "bad"])
    assert trials[1].best_epoch == 2


def test_number_that_is_not_finite_is_null_in_json_and_no_trial_of_such_is_the_best() -> None:
    trial = result("bad", row(1, NAN, INFINITE))
    told = json.loads(json.dumps(trial.to_json(), allow_nan=False))
    assert (told["val_accuracy"], told["val_loss"]) == (None, None)
    assert best_of([trial]) is None


def test_trial_that_was_tried_again_says_why() -> None:
    record = TrialRecord("a", TrialConfig().model_dump(), rows=[row(1, 0.5)], failures=["killed"])
    assert trial_result(record, "val_accuracy", "maximize").to_json()["failures"] == ["killed"]
    assert "failures" not in result("b", row(1, 0.5)).to_json()
