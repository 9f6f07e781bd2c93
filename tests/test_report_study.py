"""The trials as an Optuna study: what mattered is found, what cannot be said is not."""

import base64
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tune_inat.objective import Metric
from tune_inat.report_facts import ReportedTrial, SearchToReport
from tune_inat.report_study import MAX_CONTOUR_TRIALS, MAX_FANOVA_TRIALS, StudyCharts, study_charts


def trial(number: int, config: dict[str, Any], value: float, *, status: str = "TERMINATED") -> ReportedTrial:
    return ReportedTrial(
        trial_id=f"t{number}",
        config=config,
        status=status,
        rows=(),
        best={"epoch": 1.0, "val_accuracy": value, "val_loss": 1 - value},
        epochs=1,
        epochs_trained=1,
        seconds=1.0,
        started=None,
        ended=None,
        worker=None,
        correct=None,
    )


def search_of(trials: list[ReportedTrial], *varied: str) -> SearchToReport:
    return SearchToReport(
        folder=Path(),
        name="some",
        metric=Metric("val_accuracy", "maximize"),
        trials=trials,
        summary={},
        identity={},
        model={},
        metrics={},
        varied=varied,
        is_running=False,
    )


def drawn(n: int) -> SearchToReport:
    """Trials whose accuracy is all of `lr`; `batch_size` and the mixed `freeze` change nothing."""
    rng = np.random.default_rng(1)
    trials = []
    for number in range(n):
        lr = float(10 ** rng.uniform(-4, -1))
        freeze = [0.5, "layer3", 0.9][int(rng.integers(3))]
        config = {"lr": lr, "batch_size": int(rng.choice([16, 32, 64])), "freeze": freeze, "seed": 0}
        trials.append(trial(number, config, 0.9 - 0.1 * abs(np.log10(lr) + 2)))
    return search_of(trials, "lr", "batch_size", "freeze")


def charts_of(search: SearchToReport) -> StudyCharts:
    found = study_charts(search)
    assert isinstance(found, StudyCharts), found
    return found


@pytest.mark.parametrize("n", [60, MAX_FANOVA_TRIALS + 20])
def test_parameter_that_matters_is_found(n: int) -> None:
    found = charts_of(drawn(n))
    assert next(iter(found.importances)) == "lr"
    assert found.importances["lr"] > 0.7
    assert sum(found.importances.values()) == pytest.approx(1)


def test_importances_are_the_same_each_time() -> None:
    assert charts_of(drawn(40)).importances == charts_of(drawn(40)).importances


def test_parameters_that_do_not_vary_are_left_out() -> None:
    assert set(charts_of(drawn(20)).importances) == {"lr", "batch_size", "freeze"}


def test_grid_has_charts_as_well() -> None:
    points = [(freeze, size) for freeze in (0.7, 0.8, 0.9) for size in (32, 64)]
    trials = [
        trial(number, {"freeze": freeze, "batch_size": size}, freeze)
        for number, (freeze, size) in enumerate(points)
    ]
    found = charts_of(search_of(trials, "freeze", "batch_size"))
    assert found.contour is not None
    assert found.n_complete == 6


def test_contour_has_the_best_trial_of_a_point() -> None:
    points = [(lr, size, epochs) for lr in (0.1, 0.2) for size in (32, 64) for epochs in (7, 5)]
    ranked = [  # best first, as a leaderboard is; that of 7 epochs is the better one of its point
        trial(
            number, {"lr": lr, "batch_size": size, "epochs": epochs}, 0.9 + lr - size / 1_000 + epochs / 1_000
        )
        for number, (lr, size, epochs) in enumerate(points)
    ]
    ranked.sort(key=lambda one: -(one.best or {})["val_accuracy"])
    contour = charts_of(search_of(ranked, "lr", "batch_size", "epochs")).contour
    assert contour is not None
    field = next(trace for trace in contour["data"] if trace["type"] == "contour")
    values = np.frombuffer(base64.b64decode(field["z"]["bdata"]), dtype=field["z"]["dtype"])
    expected = sorted((one.best or {})["val_accuracy"] for one in ranked if one.config["epochs"] == 7)
    assert sorted(values[~np.isnan(values)]) == pytest.approx(expected)


def test_one_parameter_has_a_slice_of_all_trials_and_nothing_to_be_compared_with() -> None:
    trials = [trial(number, {"lr": lr}, 0.9 - lr) for number, lr in enumerate((0.1, 0.2, 0.3))]
    found = charts_of(search_of(trials, "lr"))
    (points,) = found.slices["data"]
    assert sorted(points["x"]) == [0.1, 0.2, 0.3]
    assert found.parallel is None
    assert found.contour is None
    assert found.importances == {"lr": 1.0}


def test_stopped_and_failed_trials_do_not_count() -> None:
    search = drawn(30)
    some = [replace(t, status="STOPPED" if n % 2 else "ERROR") for n, t in enumerate(search.trials[:12])]
    found = charts_of(replace(search, trials=[*some, *search.trials[12:]]))
    assert found.n_complete == 18


def test_each_line_is_a_trial_until_they_are_many() -> None:
    few, many = charts_of(drawn(20)).parallel, charts_of(drawn(200)).parallel
    assert few is not None
    assert len(few["data"]) == 20
    assert many is not None
    assert len(many["data"]) <= 12  # shades


def test_contour_has_a_bound() -> None:
    found = charts_of(drawn(200))
    assert found.n_contour == MAX_CONTOUR_TRIALS


def test_trials_that_are_all_alike_say_nothing() -> None:
    trials = [trial(n, {"lr": 0.1 * (n + 1), "dropout": 0.1 * n}, 0.9) for n in range(6)]
    assert "no parameter made a difference" in str(study_charts(search_of(trials, "lr", "dropout")))
