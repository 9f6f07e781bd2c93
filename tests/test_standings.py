"""How a search stands follows from its trials as Tune sees them."""

import math
from typing import Any

import pytest

from tests.live_trials import FakeTrial
from tune_inat.objective import Metric
from tune_inat.standings import Standings


def standings_of(*trials: FakeTrial, total: int = 4, **known: Any) -> Standings:
    standings = Standings(total=total, **known)
    standings.update(trials)
    return standings


def test_ended_trials_count_with_those_that_ended_before() -> None:
    trials = FakeTrial("a", status="TERMINATED"), FakeTrial("b", status="ERROR"), FakeTrial("c")
    assert standings_of(*trials, total=9, n_earlier=5).n_done == 7


def test_only_what_has_not_ended_is_running() -> None:
    trials = FakeTrial("a", status="TERMINATED"), FakeTrial("b", status="PENDING"), FakeTrial("c")
    assert [trial.trial_id for trial in standings_of(*trials).running] == ["b", "c"]


def test_trial_leads_by_the_best_epoch_it_had() -> None:
    standings = standings_of(
        FakeTrial("a", epoch=1, val_accuracy=0.9), FakeTrial("b", epoch=1, val_accuracy=0.8)
    )
    standings.update([FakeTrial("a", epoch=2, val_accuracy=0.5), FakeTrial("b", epoch=2, val_accuracy=0.85)])
    assert [trial.trial_id for trial in standings.leaders(2)] == ["a", "b"]
    assert standings.best == {"a": 0.9, "b": 0.85}


def test_low_leads_where_the_metric_should_be_low() -> None:
    trials = FakeTrial("a", epoch=1, val_loss=0.9), FakeTrial("b", epoch=1, val_loss=0.2)
    standings = standings_of(*trials, metric=Metric("val_loss", "minimize"))
    assert [trial.trial_id for trial in standings.leaders(1)] == ["b"]


def test_value_that_is_not_finite_does_not_lead() -> None:
    standings = standings_of(FakeTrial("a", epoch=1, val_accuracy=math.nan), FakeTrial("b"))
    assert standings.leaders(2) == []


def test_parameters_that_differ_are_named_in_the_configurations_order() -> None:
    standings = standings_of(FakeTrial("a", lr=0.1, freeze=0.8))
    assert standings.varied_names == []
    standings.update([FakeTrial("a", lr=0.1, freeze=0.8), FakeTrial("b", lr=0.2, freeze=0.7)])
    assert standings.varied_names == ["lr", "freeze"]


def test_new_trials_are_seen_in_a_list_that_grows() -> None:
    trials = [FakeTrial("a", lr=0.1)]
    standings = standings_of()
    standings.update(trials)
    trials.append(FakeTrial("b", lr=0.2))
    standings.update(trials)
    assert standings.varied_names == ["lr"]


def test_what_has_ended_need_not_be_told_again() -> None:
    """As of thousands of trials only those are told that run."""
    ended = [
        FakeTrial("a", epochs=4, epoch=4, status="TERMINATED", val_accuracy=0.9),
        FakeTrial("b", epochs=4),
    ]
    whole, news = standings_of(*ended), standings_of(*ended)
    later = FakeTrial("b", epochs=4, epoch=2, val_accuracy=0.5)
    whole.update([ended[0], later])
    news.update([later])
    assert news.trials == whole.trials
    assert (news.n_done, news.n_epochs, news.best) == (1, 6, {"a": 0.9, "b": 0.5})
    assert news.seconds_left(elapsed=6.0) == whole.seconds_left(elapsed=6.0) == pytest.approx(2 + 2 * 4)


def test_no_time_is_estimated_before_the_first_epoch() -> None:
    assert standings_of(FakeTrial("a")).seconds_left(elapsed=60.0) is None


@pytest.mark.parametrize(
    ("total", "n_earlier", "seconds"),
    [
        (2, 0, 20.0),  # 2 s an epoch; 8 of 10 left in b, 2 of 4 in a: (2 + 8) x 2
        (3, 0, 34.0),  # and an average trial of 7 epochs
        (5, 3, 20.0),  # what ended before costs nothing
    ],
)
def test_time_left_is_that_of_the_epochs_left(total: int, n_earlier: int, seconds: float) -> None:
    trials = FakeTrial("a", epochs=4, epoch=2), FakeTrial("b", epochs=10, epoch=2)
    standings = standings_of(*trials, total=total, n_earlier=n_earlier)
    assert standings.seconds_left(elapsed=8.0) == pytest.approx(seconds)


def test_share_of_the_work_done_starts_at_none_and_ends_at_all() -> None:
    assert standings_of(FakeTrial("a")).share_done == 0
    half = standings_of(
        FakeTrial("a", epochs=4, epoch=4, status="TERMINATED"), FakeTrial("b", epochs=4), total=2
    )
    assert half.share_done == pytest.approx(0.5)
    half.update([half.trials[0], FakeTrial("b", epochs=4, epoch=1, status="STOPPED")])
    assert half.share_done == 1


def test_time_left_goes_by_what_trials_cost_where_that_is_known() -> None:
    """`a` trains and is half done, `b` will replay it, `c` trains as long."""
    costs = {"a": 40.0, "b": 1.0, "c": 39.0}
    standings = standings_of(FakeTrial("a", epochs=4, epoch=2), total=3, costs=costs)
    assert standings.seconds_left(elapsed=10.0) == pytest.approx(10.0 * (20 + 1 + 39) / 20)
    standings.update([*standings.trials, FakeTrial("c", epochs=4, epoch=1, status="STOPPED")])
    assert standings.seconds_left(elapsed=10.0) == pytest.approx(10.0 * (20 + 1) / (20 + 39 / 4))


def test_epochs_of_a_stopped_trial_are_not_waited_for() -> None:
    trials = FakeTrial("a", epochs=10, epoch=2, status="TERMINATED"), FakeTrial("b", epochs=4, epoch=2)
    assert standings_of(*trials, total=2).seconds_left(elapsed=4.0) == pytest.approx(2.0)
