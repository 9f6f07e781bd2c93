"""One run of the command on a search's folder: what its parts share, and what they have done so far."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tune_inat.ending import Ending
from tune_inat.inputs import Inputs
from tune_inat.leaderboard import Effort
from tune_inat.ledger import Ledger
from tune_inat.mirror import Mirror
from tune_inat.objective import Metric
from tune_inat.progress import Terminal
from tune_inat.remaining import Remaining
from tune_inat.runs import short_name, work_identity
from tune_inat.settings import SearchSettings
from tune_inat.storages import Storage
from tune_inat.store import hash_of
from tune_inat.tries import Tries

if TYPE_CHECKING:
    from tune_inat.forecast import Forecast
    from tune_inat.outcome import Examined
    from tune_inat.tracking import WandbTracker
    from tune_inat.workbench import Workbench

DEFAULT_PROJECT = "tune_inat"


@dataclass
class Course:
    """A run of the command.

    Attributes:
        folder: of the search; need not be there yet.
        started: when the command began, by `time.monotonic()`.
        mirror: sends the folder to where results are kept, if that is not here.
        forecast: of the trials that were run now.
        tracker: what told W&B of the trials that were run now.
        examined: the best model, by a node of the cluster.
    """

    inputs: Inputs
    folder: Path
    ledger: Ledger
    terminal: Terminal
    storage: Storage
    started: float
    mirror: Mirror | None = None
    forecast: "Forecast | None" = None
    tracker: "WandbTracker | None" = None
    examined: "Examined | None" = None
    effort: Effort = field(init=False)
    ending: Ending = field(init=False)
    remaining: Remaining = field(init=False)

    def __post_init__(self) -> None:
        pixels, hours = self.inputs.pixels, self.settings.max_hours
        self.effort = Effort(pixels_decoded=0 if pixels is None else pixels.n_decoded)
        self.ending = Ending(None if hours is None else hours * 3600)
        self.remaining = Remaining(self.inputs, self.folder, self.ledger)

    @property
    def settings(self) -> SearchSettings:
        """The options of the command."""
        return self.inputs.settings

    @property
    def metric(self) -> Metric:
        """What trials are compared by."""
        return self.inputs.space.metric

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What makes a search this one, as its folder keeps it."""
        return identity_of(self.inputs)

    @cached_property
    def bench(self) -> "Workbench":
        """The workbench of this process; heavy to import, so to be asked for only when it is needed."""
        from tune_inat.preparation import open_bench, this_machine

        asked = self.settings.gpus_per_trial
        gpus = float(this_machine().n_gpus > 0) if asked == "auto" else asked
        # Of a cluster any node may go on with what another has begun.
        return open_bench(
            self.inputs, self.terminal, gpus_per_trial=gpus, storage=self.storage, search=self.folder.name
        )

    def is_over(self) -> bool:
        """Whether the search has no more time.

        Raises:
            StorageError: it cannot keep what it does any more.
        """
        if self.mirror is not None:
            self.mirror.check()
        return self.ending.is_over()

    def new_tracker(self, is_over: Callable[[], bool], tries: Tries | None = None) -> "WandbTracker | None":
        """What tells W&B of trials, unless the user wants nobody told."""
        from tune_inat.tracking import WandbTracker, resolve_mode

        mode, notice = resolve_mode(self.settings.wandb)
        if notice is not None:
            self.terminal.say(notice)
        if mode == "disabled":
            return None
        space, data_name = self.inputs.space, self.inputs.data.name
        return WandbTracker(
            folder=self.folder,
            project=self.settings.wandb_project or space.project or DEFAULT_PROJECT,
            entity=space.entity,
            group=self.folder.name,
            mode=mode,
            tags=(space.method, short_name(data_name)),  # W&B takes 64 characters
            notes=space.description,
            run_config={"search": self.folder.name, "data": data_name},
            varied=tuple(space.parameters),
            excludes=("rung_metric",),
            work=hash_of(work_identity(self.identity)),
            is_over=is_over,
            tries=tries,
            trained_before={
                trial_id: record.epochs_trained for trial_id, record in self.remaining.records().items()
            },
        )


def identity_of(inputs: Inputs) -> dict[str, Any]:
    """What makes a search this one, as its folder keeps it."""
    identity: dict[str, Any] = json.loads(json.dumps(inputs.identity()))
    return identity
