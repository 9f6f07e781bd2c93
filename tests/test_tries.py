"""A trial that fails is tried again so many times, unless it would fail for sure."""

from tune_inat.tries import MAX_LOST, Tries


def test_trial_is_tried_again_as_often_as_was_asked_for() -> None:
    tries = Tries(max_failures=2)
    assert [tries.fail("a") for _ in range(3)] == [True, True, False]
    assert tries.has_given_up("a")
    assert tries.n_failed("a") == 3
    assert not tries.has_given_up("b")


def test_failure_that_is_final_leaves_no_try() -> None:
    tries = Tries(max_failures=2)
    assert not tries.fail("a", is_final=True)
    assert tries.has_given_up("a")


def test_lost_machine_takes_no_try_from_a_trial_unless_it_loses_one_after_the_other() -> None:
    tries = Tries(max_failures=1)
    assert all(tries.fail("a", has_lost_machine=True) for _ in range(MAX_LOST))
    assert tries.fail("a")
    assert not tries.fail("a", has_lost_machine=True)
    assert tries.n_failed("a") == tries.most
