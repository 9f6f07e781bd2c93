"""The simulated schedule: the search's own order of trials, and what becomes of it on so many devices."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from benchmarks.schedule import (
    DRIVER_SECONDS,
    START_SECONDS,
    Losses,
    Schedule,
    Workload,
    asha_workload,
    grid_workload,
    simulate,
)
from tune_inat.config import TrialConfig
from tune_inat.plan import PlannedTrial

LOST_OFTEN = Losses(mean_seconds=600.0, away_seconds=120.0)


def workload_of(*epochs: int, family: bool = False, expected: Mapping[str, float] | None = None) -> Workload:
    """Trials of so many epochs of 100 s, of one family or each of its own."""
    trials = tuple(
        PlannedTrial(str(number), TrialConfig(epochs=n, lr=0.1 if family else 0.1 + number))
        for number, n in enumerate(epochs)
    )
    return Workload(trials, lambda trial, epoch: 100.0, lambda trial, epoch: 0.5, expected=expected or {})


def check_sums(schedule: Schedule) -> None:
    """Each second of each device is told, and no schedule is shorter than the ideal."""
    assert schedule.idle >= -1e-6
    assert schedule.makespan >= schedule.ideal


def test_one_device_trains_one_trial_after_another() -> None:
    schedule = simulate(workload_of(1, 2, 3), n_devices=1)
    assert schedule.makespan == pytest.approx(600 + 3 * (START_SECONDS + DRIVER_SECONDS))
    assert (schedule.trained, schedule.ideal, schedule.n_trials) == (600, 600, 3)
    assert schedule.idle == pytest.approx(0)


@pytest.mark.parametrize(("seconds", "makespan"), [({}, 300), ({"0": 1.0, "1": 1.0, "2": 2.0}, 200)])
def test_longest_trial_is_not_left_to_the_end_where_it_is_known(
    seconds: dict[str, float], makespan: float
) -> None:
    schedule = simulate(workload_of(1, 1, 2, expected=seconds), n_devices=2)
    assert schedule.makespan == pytest.approx(makespan, abs=1)


def test_family_trains_its_longest_trial_and_cannot_end_before_it() -> None:
    schedule = simulate(workload_of(2, 5, 3, family=True), n_devices=3)
    assert (schedule.n_trials, schedule.n_epochs) == (3, 5)
    assert schedule.ideal == 500
    assert schedule.makespan == pytest.approx(500, abs=1)


@pytest.mark.parametrize("n_devices", [3, 8, 64])
def test_grid_is_near_the_ideal_where_each_device_has_many_trials(n_devices: int) -> None:
    schedule = simulate(grid_workload(10 * n_devices), n_devices)
    in_order = simulate(grid_workload(10 * n_devices, longest_first=False), n_devices)
    check_sums(schedule)
    assert schedule.n_epochs == in_order.n_epochs
    assert schedule.over_ideal < 0.05 < in_order.over_ideal


def test_lost_devices_cost_the_epochs_in_flight_and_no_more() -> None:
    workload = grid_workload(80)
    calm, rough = simulate(workload, 8), simulate(workload, 8, losses=LOST_OFTEN)
    check_sums(rough)
    assert rough.n_losses > 5
    assert (rough.n_trials, rough.n_epochs) == (calm.n_trials, calm.n_epochs)
    longest = max(
        workload.epoch_seconds(t, e) for t in workload.trials for e in range(1, t.config.epochs + 1)
    )
    assert 0 < rough.repeated <= rough.n_losses * longest
    assert rough.makespan > calm.makespan


def test_early_stopping_thins_out_what_is_asked_for() -> None:
    workload = asha_workload(80)
    schedule = simulate(workload, 8)
    check_sums(schedule)
    asked = sum(trial.config.epochs for trial in workload.trials)
    assert schedule.n_trials == 80
    assert 80 < schedule.n_epochs < asked / 3
    assert simulate(replace(workload, early_stopping=None), 8).n_epochs == asked


def test_same_seed_gives_the_same_schedule() -> None:
    first, again, other = (simulate(asha_workload(40), 4, losses=LOST_OFTEN, seed=seed) for seed in (0, 0, 1))
    assert first == again != other
