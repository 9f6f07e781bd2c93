"""Ray Tune as a search has it: where early stopping looks, why a trial failed, when the search is over."""

import signal
import time
from pathlib import Path
from typing import Any

import pytest
from ray.tune.experiment import Trial

from tune_inat.ending import Ending
from tune_inat.ledger import TrialRecord
from tune_inat.objective import Goal, Metric
from tune_inat.sweep import EarlyStopping
from tune_inat.tuning import RUNG_METRIC, make_scheduler, prompt_interrupt

ACCURACY = Metric("val_accuracy", "maximize")


def early_of(first: int, eta: float, *, max_epochs: int | None = None, strict: bool = False) -> EarlyStopping:
    return EarlyStopping(first, max_epochs, eta, 1, strict)


def rungs_of(scheduler: Any) -> dict[int, dict[str, float]]:
    (bracket,) = scheduler._brackets
    return dict(bracket._rungs)


@pytest.mark.parametrize(
    ("early", "longest", "milestones"),
    [
        (early_of(1, 2.0), 8, [4, 2, 1]),
        (early_of(2, 1.5), 10, [6, 4, 3, 2]),  # W&B cuts 4.5 and 6.75 down
        (early_of(1, 3.0), 244, [243, 81, 27, 9, 3, 1]),  # log 243 / log 3 is 4.999... in floats
        (early_of(1, 3.0, max_epochs=27), 100, [9, 3, 1]),
    ],
)
def test_early_stopping_looks_where_wandb_does(
    early: EarlyStopping, longest: int, milestones: list[int]
) -> None:
    scheduler = make_scheduler(early, longest, ACCURACY, finished=[])
    assert list(rungs_of(scheduler)) == milestones == sorted(early.rungs(longest), reverse=True)


def record_of(trial_id: str, *accuracies: float) -> TrialRecord:
    rows = [
        {"epoch": epoch, "val_accuracy": accuracy, "val_loss": 1 - accuracy}
        for epoch, accuracy in enumerate(accuracies, start=1)
    ]
    return TrialRecord(trial_id, {"epochs": len(rows)}, rows=rows, status="TERMINATED")


@pytest.mark.parametrize(
    ("strict", "metric", "goal", "expected"),
    [
        (
            True,
            "val_accuracy",
            "maximize",
            {4: {"long": 0.25}, 3: {"long": 0.75}, 2: {"long": 0.5, "short": 0.0}},
        ),
        (
            False,
            "val_accuracy",
            "maximize",
            {4: {"long": 0.75}, 3: {"long": 0.75}, 2: {"long": 0.5, "short": 1.0}},
        ),
        # ASHA holds what it minimizes with its sign changed
        (
            True,
            "val_loss",
            "minimize",
            {4: {"long": -0.75}, 3: {"long": -0.25}, 2: {"long": -0.5, "short": -1.0}},
        ),
    ],
    ids=["strict", "best so far", "other metric"],
)
def test_finished_trials_stand_in_every_rung_that_they_reached(
    strict: bool, metric: str, goal: Goal, expected: dict[int, dict[str, float]]
) -> None:
    finished = [record_of("long", 0.25, 0.5, 0.75, 0.25), record_of("short", 1.0, 0.0)]
    scheduler = make_scheduler(early_of(2, 1.5, strict=strict), 6, Metric(metric, goal), finished=finished)
    assert rungs_of(scheduler) == expected


def test_trial_that_is_tried_again_stands_in_each_rung_once() -> None:
    scheduler: Any = make_scheduler(early_of(1, 2.0), 8, ACCURACY, finished=[])
    for number, n_epochs in enumerate([2, 4]):
        ray_trial = Trial("trainable", stub=True, trial_id=f"try-{number}")
        scheduler.on_trial_add(None, ray_trial)
        for epoch in range(1, n_epochs + 1):
            scheduler.on_trial_result(None, ray_trial, {"epoch": epoch, RUNG_METRIC: 0.5})
        if number == 0:
            scheduler.on_trial_error(None, ray_trial)
    assert rungs_of(scheduler) == {milestone: {"try-1": 0.5} for milestone in (4, 2, 1)}


def be_interrupted() -> None:
    signal.raise_signal(signal.SIGINT)
    time.sleep(60)  # as long as Tune may take to begin


def test_ctrl_c_before_tune_listens_ends_the_search_and_not_the_process(tmp_path: Path) -> None:
    ending, before = Ending(), signal.getsignal(signal.SIGUSR1)
    with pytest.raises(KeyboardInterrupt), prompt_interrupt(ending, tmp_path / "stop"):
        be_interrupted()
    assert ending.is_interrupted
    assert (tmp_path / "stop").exists()
    assert signal.getsignal(signal.SIGUSR1) == before


def test_clock_that_jumps_ends_no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    ending = Ending(max_seconds=3600.0)
    ending.begin()
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + 10**6)
    assert not ending.is_over()
