"""Ray Tune as a search has it: where early stopping looks, why a trial failed, when the search is over."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import cloudpickle
from ray.exceptions import RayActorError, RayTaskError

from tune_inat.leaderboard import Effort
from tune_inat.ledger import Ledger, TrialRecord
from tune_inat.objective import Goal, Metric
from tune_inat.sweep import EarlyStopping
from tune_inat.trial import NonFiniteLossError
from tune_inat.tuning import Ending, Watcher, make_scheduler, read_reason

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


def write_error(folder: Path, error: Any) -> Path:
    """What Ray's `Trial.handle_error` writes."""
    pickle: Any = cloudpickle  # Ray leaves it untyped
    (folder / "error.pkl").write_bytes(pickle.dumps(error))
    (folder / "error.txt").write_text(f"Failure # 1 (occurred at 2026-11-25)\n{error}\n")
    return folder


def task_error(cause: Exception) -> Any:
    """An error of a trial as it arrives from its process."""
    make: Any = RayTaskError  # untyped, too
    return make("_train", f"Traceback ...\n{type(cause).__name__}: {cause}", cause).as_instanceof_cause()


def test_reason_of_a_failure_is_the_error_of_the_trial_itself(hostile_path: Path) -> None:
    cause = NonFiniteLossError("epoch 1, step 2: the loss is nan")
    reason = read_reason(write_error(hostile_path, task_error(cause)))
    assert reason == "NonFiniteLossError: epoch 1, step 2: the loss is nan"


def test_reason_of_a_process_that_died_is_what_ray_saw_of_it(hostile_path: Path) -> None:
    reason = read_reason(write_error(hostile_path, RayActorError(error_msg="killed by signal 9")))
    assert reason == "the process of the trial died: killed by signal 9"


def test_reason_that_cannot_be_unpickled_is_read_from_its_text(hostile_path: Path) -> None:
    write_error(hostile_path, task_error(ValueError("out of luck")))
    (hostile_path / "error.pkl").write_bytes(b"torn")
    assert read_reason(hostile_path).endswith("ValueError: out of luck")
    assert read_reason(hostile_path / "nowhere") == "the process of the trial died"


def watcher_in(folder: Path, ending: Ending) -> Watcher:
    return Watcher(Ledger(folder), lambda trials: None, Effort(), ending, folder / "stop")


def test_trial_whose_process_dies_before_it_starts_is_recorded_as_failed(hostile_path: Path) -> None:
    trial = SimpleNamespace(
        trial_id="ray-1",
        config={"trial_id": "001", "params": {"epochs": 2}},
        local_path=str(write_error(hostile_path, RayActorError(error_msg="no room"))),
    )
    watcher_in(hostile_path, Ending()).on_trial_error(1, [trial], trial)
    record = Ledger(hostile_path).records()["001"]
    assert (record.status, record.error) == ("ERROR", "the process of the trial died: no room")


def test_clock_that_jumps_ends_no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    ending = Ending(max_seconds=3600.0)
    ending.begin()
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + 10**6)
    assert not ending.is_over()


def test_search_is_over_when_its_time_is_up_and_then_ends_the_epochs_in_progress(hostile_path: Path) -> None:
    ending = Ending(max_seconds=0.0)
    watcher = watcher_in(hostile_path, ending)
    watcher.on_step_end(1, [])
    assert not (hostile_path / "stop").exists()
    ending.begin()
    watcher.on_step_end(2, [])
    assert (hostile_path / "stop").exists()
