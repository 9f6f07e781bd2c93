"""How long trials took, and how long all that were asked for would have taken."""

import heapq
from collections.abc import Iterable, Sequence

from pydantic import BaseModel, ConfigDict

from benchmarks.task import kind
from tune_inat.config import TrialConfig


class TimedTrial(BaseModel):
    """A trial that was run. `setup_seconds` is what it takes before its first epoch."""

    model_config = ConfigDict(frozen=True)

    config: TrialConfig
    setup_seconds: float
    epochs_seconds: float
    best_val_accuracy: float

    @property
    def seconds(self) -> float:
        """From the trial's start to its end."""
        return self.setup_seconds + self.epochs_seconds

    def seconds_of(self, epochs: int) -> float:
        """What it would have taken with so many epochs: each does the same work."""
        return self.setup_seconds + epochs * self.epochs_seconds / self.config.epochs


class TimedTrials(BaseModel):
    """What a row's process ran: trials from the first one's start to the last one's end.

    Attributes:
        seconds: of all trials together, with what is between them; not of the process before and after.
        n_slots: how many of them run at a time.
    """

    model_config = ConfigDict(frozen=True)

    seconds: float
    n_slots: int
    trials: tuple[TimedTrial, ...]


def scale_up(wall_seconds: float, timed: TimedTrials, asked: Sequence[TrialConfig]) -> float:
    """The wall seconds of a process that had run all trials asked for, from one that ran some epochs of each.

    What a process takes before and after its trials stays; what it takes between them (an actor that
    starts, a W&B run that ends) comes once for each trial; the trials themselves take what they take.
    """
    around = wall_seconds - timed.seconds
    between = timed.seconds - makespan((trial.seconds for trial in timed.trials), timed.n_slots)
    trial_of = {kind(trial.config): trial for trial in timed.trials}
    durations = (trial_of[kind(config)].seconds_of(config.epochs) for config in asked)
    return around + between * len(asked) / len(timed.trials) + makespan(durations, timed.n_slots)


def makespan(durations: Iterable[float], n_slots: int) -> float:
    """When the last of several jobs ends, if each starts as soon as one of `n_slots` is free."""
    slots = [0.0] * n_slots
    for duration in durations:
        heapq.heapreplace(slots, slots[0] + duration)
    return max(slots)
