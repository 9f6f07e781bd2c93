"""Which trials hang: those without a sign of life for long, measured by what their epochs take."""

import pytest

from tune_inat.hangs import EPOCHS_OF_SILENCE, FLOOR_SECONDS, MAX_GAP_SECONDS, HangWatch


def look_until(watch: HangWatch, start: float, end: float) -> dict[str, float]:
    """What hangs by `end`, somebody having looked each second."""
    hanging: dict[str, float] = {}
    for now in range(int(start), int(end) + 1):
        hanging |= watch.look(float(now))
    return hanging


def test_silent_trial_hangs_after_the_floor_and_is_told_once() -> None:
    watch = HangWatch({})
    watch.start("silent", n_epochs=2)
    watch.start("ended", n_epochs=2)
    watch.end("ended")
    assert look_until(watch, 0, FLOOR_SECONDS) == {}
    assert list(look_until(watch, FLOOR_SECONDS + 1, FLOOR_SECONDS + 2)) == ["silent"]
    assert look_until(watch, FLOOR_SECONDS + 3, 3 * FLOOR_SECONDS) == {}


def test_sign_of_life_begins_the_time_anew() -> None:
    watch = HangWatch({})
    watch.start("a", n_epochs=2)
    look_until(watch, 0, FLOOR_SECONDS)
    watch.hear("a")
    assert look_until(watch, FLOOR_SECONDS + 1, 2 * FLOOR_SECONDS) == {}


@pytest.mark.parametrize("is_foreseen", [True, False])
def test_trial_of_long_epochs_may_be_silent_for_longer(is_foreseen: bool) -> None:
    epoch = FLOOR_SECONDS  # longer than a third of the floor
    watch = HangWatch({"a": 4 * epoch} if is_foreseen else {})
    watch.start("a", n_epochs=4)
    if not is_foreseen:
        watch.hear("a", epoch_seconds=epoch)
    assert watch.limit("a") == EPOCHS_OF_SILENCE * epoch
    assert look_until(watch, 0, EPOCHS_OF_SILENCE * epoch) == {}


def test_time_in_which_nobody_looked_does_not_count() -> None:
    watch = HangWatch({})
    watch.start("a", n_epochs=2)
    watch.look(0.0)
    assert watch.look(100 * FLOOR_SECONDS) == {}  # the machine slept
    assert watch.limit("a") > MAX_GAP_SECONDS
