"""A W&B run of a search as the writer keeps it until it has ended: its rows, its facts, its summary."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tune_inat.objective import GOALS
from tune_inat.wandb_charts import BestTrial

BEST_OF = {"minimize": min, "maximize": max}
DONE, FAILED, INTERRUPTED = 0, 1, 255  # exit codes; 255 is what W&B itself ends runs with on Ctrl-C


@dataclass(frozen=True)
class SearchRecord:
    """What the runs of a search have in common. They land in `folder`/wandb."""

    folder: Path
    project: str
    entity: str | None
    group: str
    tags: tuple[str, ...]
    notes: str | None


@dataclass(frozen=True)
class RunStart:
    """What is known of a run before its first row. `epochs` is how many it will have if nothing stops it."""

    id: str
    name: str
    config: Mapping[str, Any]
    epochs: int


@dataclass
class Run:
    """A run until it has ended, with all its rows: should W&B's process die, they are written again.

    Attributes:
        rows: by epoch.
        known: the steps whose row is in a file or on the server: epochs, and one more for the charts.
        facts: of its config, as far as they are known by now.
        has_model: whether a file or the server has the best model with it.
        best: what to show if it is the best trial's.
        earlier: the run's folders from before this process.
        exit_code: with which the run ended in an earlier search.
        stays_offline: rows of it wait on disk, and `wandb sync` must send the rest after them.
        is_online: whether it was last opened, or tried to be, online.
        handle: W&B's own run while it is open.
    """

    start: RunStart
    earlier: frozenset[Path]
    known: set[int]
    exit_code: int | None
    stays_offline: bool
    rows: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    has_model: bool = False
    best: BestTrial | None = None
    is_online: bool = False
    handle: Any = None

    @property
    def charts_step(self) -> int:
        """Where charts stand in the history: after all rows that there can be."""
        return self.start.epochs + 1

    @property
    def lacks_charts(self) -> bool:
        """Whether there are charts to show that it does not have yet."""
        return self.best is not None and self.charts_step not in self.known

    @property
    def lacks_model(self) -> bool:
        """Whether there is a model to keep that it does not have yet."""
        return self.best is not None and self.best.model_folder is not None and not self.has_model


def status_of(run: Run, exit_code: int) -> str:
    """How the run's trial ended, as a run that ends with this code says it."""
    if exit_code != DONE:
        return "ERROR" if exit_code == FAILED else "INTERRUPTED"
    return "STOPPED" if max(run.rows, default=0) < run.start.epochs else "TERMINATED"


def summary_of(run: Run, exit_code: int) -> dict[str, Any]:
    """A run's summary: of each metric with a goal the best and the last, and how its trial ended.

    W&B computes best and last while a run goes on, but from one file's rows, and a NaN stays its minimum.
    Panels over many runs, such as parallel coordinates, take plain numbers: `best_val_accuracy`.
    """
    status, rows = status_of(run, exit_code), run.rows
    summary: dict[str, Any] = {"status": status, "stopped_early": status == "STOPPED"}
    if run.best is not None and run.best.test_accuracy is not None:
        summary["test_accuracy"] = run.best.test_accuracy
    for name, goal in GOALS.items():
        values = [rows[epoch][name] for epoch in sorted(rows) if name in rows[epoch]]
        finite = [value for value in values if math.isfinite(value)]
        if finite:
            best = BEST_OF[goal]
            summary[name] = {best.__name__: best(finite), "last": values[-1]}
            summary[f"best_{name}"] = best(finite)
    return summary
