"""What all rows of the comparison work on: the same images, split, weights, seed and trials."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from tune_inat.config import TrialConfig
from tune_inat.data import Split
from tune_inat.errors import UserError
from tune_inat.inputs import read_inputs
from tune_inat.meter import SilentMeter
from tune_inat.settings import SearchSettings
from tune_inat.store import Store

VARIED = ("freeze", "epochs", "batch_size")  # what the plain loop knows how to vary


class Example(BaseModel):
    """An image file and the number of its class."""

    model_config = ConfigDict(frozen=True)

    path: Path
    label: int


class Task(BaseModel):
    """The work of a row. It travels to the row's process as a file.

    Attributes:
        settings: the search that does the same as the trials.
        inputs_cache: where tune_inat's code keeps what it has read for the other rows than its own.
        train, val: the split that the search will make, in its order.
        trials: in the order in which the search plans them.
        epochs_timed: how many epochs of each kind of trial the slow rows train; `None`: all of all trials.
    """

    model_config = ConfigDict(frozen=True)

    settings: SearchSettings
    inputs_cache: Path
    n_classes: int
    train: tuple[Example, ...]
    val: tuple[Example, ...]
    trials: tuple[TrialConfig, ...]
    epochs_timed: int | None

    def trials_to_run(self) -> tuple[TrialConfig, ...]:
        """The trials that the slow rows run: all, or of each kind one that ends after the epochs timed."""
        if self.epochs_timed is None:
            return self.trials
        update = {"epochs": self.epochs_timed}
        return tuple({kind(trial): trial.model_copy(update=update) for trial in self.trials}.values())


def kind(trial: TrialConfig) -> tuple[float | str, int]:
    """What fixes the work of an epoch: trials of one kind differ in how many of them they train."""
    return trial.freeze, trial.batch_size


def make_task(settings: SearchSettings, *, cache: Path, epochs_timed: int | None) -> Task:
    """Read the inputs of a search, as the search itself reads them.

    Raises:
        UserError: they cannot be read, or the space varies more than the plain loop can.
    """
    inputs = read_inputs(settings, SilentMeter(), Store(cache))
    if inputs.space.method != "grid" or inputs.space.early_stopping is not None:
        raise UserError(f"{inputs.space.source}: the comparison takes a grid without early stopping.")
    if others := [name for name in inputs.space.parameters if name not in VARIED]:
        raise UserError(
            f"{inputs.space.source}: {', '.join(others)}: the plain loop varies {', '.join(VARIED)} only."
        )
    return Task(
        settings=settings,
        inputs_cache=cache,
        n_classes=len(inputs.data.classes),
        train=_examples(inputs.data.train),
        val=_examples(inputs.data.val),
        trials=tuple(trial.config for trial in inputs.plan.trials),
        epochs_timed=epochs_timed,
    )


def command_arguments(settings: SearchSettings) -> Sequence[str]:
    """The arguments with which the command makes these settings: those that were given."""
    given = settings.model_dump(exclude_unset=True)
    return [text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", str(value))]


def _examples(split: Split) -> tuple[Example, ...]:
    return tuple(
        Example(path=path, label=int(label)) for path, label in zip(split.paths, split.labels, strict=True)
    )
