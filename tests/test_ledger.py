"""The journal of a search: what was finished stays finished, what was cut off is done again."""

from pathlib import Path

import pytest

from tune_inat.ledger import LEDGER_FILE, Ledger
from tune_inat.rows import Row

CONFIG = {"epochs": 2, "lr": 0.1}


def row(epoch: int) -> Row:
    return {"epoch": epoch, "val_accuracy": epoch / 10}


def run_trial(ledger: Ledger, trial_id: str, n_epochs: int) -> None:
    ledger.start(trial_id, CONFIG)
    for epoch in range(1, n_epochs + 1):
        ledger.epoch(trial_id, row(epoch), trained=True, did={"cut": "layer3"})


def test_finished_trial_comes_back_whole(hostile_path: Path) -> None:
    ledger = Ledger(hostile_path)
    run_trial(ledger, "a", 2)
    ledger.end("a", "TERMINATED", seconds=1.5)
    assert Ledger(hostile_path).finished() == ledger.finished()
    record = Ledger(hostile_path).finished()["a"]
    assert record.config == CONFIG
    assert record.rows == [row(1), row(2)]
    assert record.epochs_trained == 2


def test_trial_keeps_when_and_where_it_ran_and_what_it_got_right(hostile_path: Path) -> None:
    ledger = Ledger(hostile_path)
    ledger.start("a", CONFIG)
    ledger.epoch("a", row(1), trained=True, did={}, correct="gA==", worker="box 12")
    ledger.end("a", "TERMINATED", seconds=0.0)
    record = Ledger(hostile_path).records()["a"]
    assert (record.correct, record.worker) == (["gA=="], "box 12")
    assert record.started is not None
    assert record.ended is not None
    assert record.started <= record.ended


def test_trial_that_was_cut_off_or_failed_is_not_finished(hostile_path: Path) -> None:
    ledger = Ledger(hostile_path)
    run_trial(ledger, "cut off", 1)
    run_trial(ledger, "failed", 1)
    ledger.end("failed", "ERROR", seconds=1.0, error="ValueError: no")
    run_trial(ledger, "stopped", 1)
    ledger.end("stopped", "STOPPED", seconds=1.0)
    assert list(Ledger(hostile_path).finished()) == ["stopped"]


def test_trial_that_starts_again_drops_its_rows_but_counts_its_training(hostile_path: Path) -> None:
    ledger = Ledger(hostile_path)
    run_trial(ledger, "a", 1)
    ledger.start("a", CONFIG)
    ledger.epoch("a", row(1), trained=False, did={})
    ledger.epoch("a", row(2), trained=True, did={})
    record = Ledger(hostile_path).records()["a"]
    assert record.rows == [row(1), row(2)]
    assert record.epochs_trained == 2


def test_torn_last_line_is_dropped_and_the_file_goes_on(hostile_path: Path) -> None:
    ledger = Ledger(hostile_path)
    run_trial(ledger, "a", 2)
    path = hostile_path / LEDGER_FILE
    path.write_bytes(path.read_bytes()[:-20])
    again = Ledger(hostile_path)
    assert again.records()["a"].rows == [row(1)]
    run_trial(again, "b", 1)
    assert list(Ledger(hostile_path).records()) == ["a", "b"]


def test_forgotten_ledger_is_empty(hostile_path: Path) -> None:
    ledger = Ledger(hostile_path)
    run_trial(ledger, "a", 1)
    ledger.forget()
    assert ledger.records() == Ledger(hostile_path).records() == {}


def test_trial_that_is_tried_again_keeps_why_it_failed_until_it_has_ended(hostile_path: Path) -> None:
    ledger = Ledger(hostile_path)
    run_trial(ledger, "a", 1)
    ledger.failure("a", "killed")
    assert Ledger(hostile_path).records()["a"].status is None  # goes on, if the search ends here
    run_trial(ledger, "a", 2)
    assert (len(ledger.records()["a"].rows), ledger.records()["a"].failures) == (2, ["killed"])
    ledger.end("a", "ERROR", seconds=1.0, error="killed again")
    assert Ledger(hostile_path).records() == ledger.records()
    ledger.start("a", CONFIG)  # by the same command, later
    assert ledger.records()["a"].failures == []


def test_seconds_of_a_trial_are_those_of_all_its_tries(
    hostile_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_000.0
    monkeypatch.setattr("tune_inat.ledger.time.time", lambda: now)
    ledger = Ledger(hostile_path)
    ledger.start("a", CONFIG)
    now += 3
    ledger.failure("a", "killed")
    now += 50  # of waiting
    ledger.start("a", CONFIG)
    now += 2
    ledger.epoch("a", row(1), trained=True, did={})
    now += 3_600  # it was cut off before this, and went on after it
    assert Ledger(hostile_path).records()["a"].seconds == 5
    ledger.start("a", CONFIG)
    assert ledger.earlier_seconds("a") == 5
    ledger.epoch("a", row(1), trained=False, did={})
    ledger.epoch("a", row(2), trained=True, did={})
    ledger.end("a", "TERMINATED", seconds=4.5)
    assert Ledger(hostile_path).records() == ledger.records()
    assert ledger.records()["a"].seconds == 9.5
