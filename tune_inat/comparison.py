"""Searches side by side: what each asked, found and took, from the folders that they left."""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, FiniteFloat, ValidationError

from tune_inat.errors import UserError
from tune_inat.leaderboard import SUMMARY_FILE, read_summary, safe_cell
from tune_inat.ledger import LEDGER_FILE, Status
from tune_inat.runs import IDENTITY_FILE
from tune_inat.wording import did_you_mean


@dataclass(frozen=True)
class DataFacts:
    """What images a search was about. `fingerprint` is the same for the same images in the same parts."""

    name: str
    classes: int
    train: int
    val: int
    test: int
    fingerprint: str


@dataclass(frozen=True)
class SearchFacts:
    """One search, to be compared with others.

    Attributes:
        name: of its folder; with what leads there where others have the same.
        models: those of its trials.
        done: trials that came to their end; `stopped` by early stopping, `failed`, or `left` to run.
        metric: the name of what the search looked at.
        metric_value: the metric of the best trial, `None` without one; so are all values of it below.
        varied: the parameters in which trials differ, with the best trial's values.
        test_accuracy: of the best trial's model, `None` where there are no test images.
        test_interval: its 95 % interval.
        epochs_asked: what all trials ask for together.
        epochs_trained: what trials of this search trained, not found; over all runs of its command.
        wall_seconds: that the runs of its command took which had trials to run.
        was_continued: only the last of them is known, and it found trials of earlier runs.
        written: when its results were.
    """

    folder: Path
    name: str
    space: str
    method: str
    status: str
    data: DataFacts
    models: tuple[str, ...]
    done: int
    stopped: int
    failed: int
    left: int
    metric: str
    metric_value: float | None
    best_trial: str | None
    varied: Mapping[str, Any]
    val_accuracy: float | None
    test_accuracy: float | None
    test_interval: tuple[float, float] | None
    epochs_asked: int
    epochs_trained: int
    wall_seconds: float
    was_continued: bool
    written: datetime

    def to_json(self) -> dict[str, Any]:
        """All facts as JSON's types; the time is UTC."""
        return {**asdict(self), "folder": str(self.folder), "written": self.written.isoformat()}


SORT_KEYS: Mapping[str, Callable[[SearchFacts], Any]] = {  # the smallest comes first, `None` last
    "test": lambda search: _falling(search.test_accuracy),
    "val": lambda search: _falling(search.val_accuracy),
    "name": lambda search: search.name,
    "date": lambda search: -search.written.timestamp(),
    "time": lambda search: search.wall_seconds,
    "epochs": lambda search: search.epochs_trained,
    "trials": lambda search: -(search.done + search.stopped + search.failed),
}


def compare_searches(
    folders: Sequence[Path], *, sort: str = "test"
) -> tuple[list[list[SearchFacts]], list[str]]:
    """Searches in groups of the same images, and a notice for each folder that holds no search.

    Only within a group can accuracies be compared. Groups are in the order of their first folder.

    Args:
        folders: those that searches have left; one that is named twice counts once.
        sort: a name among `SORT_KEYS`: the best test or val accuracy first, the newest, the shortest, the
            fewest epochs trained, the most trials.

    Raises:
        UserError: no folder holds a search (what each is instead), or there is no such order.
    """
    if sort not in SORT_KEYS:
        raise UserError(f"--sort: there is no order {sort}. {did_you_mean(sort, SORT_KEYS)}")
    searches: list[SearchFacts] = []
    notices: list[str] = []
    for folder in {folder.resolve(): folder for folder in folders}.values():
        try:
            searches.append(read_search(folder))
        except UserError as error:
            notices += error.problems
    if not searches:
        raise UserError(notices)
    groups: dict[DataFacts, list[SearchFacts]] = {}
    for search in _with_distinct_names(searches):
        groups.setdefault(search.data, []).append(search)
    return [sorted(group, key=SORT_KEYS[sort]) for group in groups.values()], notices


def read_search(folder: Path) -> SearchFacts:
    """The facts of one search.

    Raises:
        UserError: the folder holds no search, or none that has ended.
    """
    found = read_summary(folder)
    if found is None:
        raise UserError(f"{folder}: {_why_none(folder)}")
    try:
        summary = _Summary.model_validate(found)
        written = datetime.fromtimestamp((folder / SUMMARY_FILE).stat().st_mtime, UTC)
    except (ValidationError, OSError) as error:
        raise UserError(f"{folder}: its {SUMMARY_FILE} is none that a search has written.") from error
    trials, best = summary.trials, summary.best
    statuses = Counter(trial.status for trial in trials)
    trained = sum(trial.epochs_trained for trial in trials)
    of_best = next((trial for trial in trials if best is not None and trial.trial_id == best.trial_id), None)
    return SearchFacts(
        folder=folder,
        name=folder.resolve().name,
        space=summary.space,
        method=summary.method,
        status=summary.status,
        data=summary.data,
        models=tuple(dict.fromkeys(str(trial.config.get("model")) for trial in trials)),
        done=statuses["TERMINATED"],
        stopped=statuses["STOPPED"],
        failed=statuses["ERROR"],
        left=statuses["SKIPPED"],
        metric=summary.metric.name,
        metric_value=None if of_best is None else of_best.value(summary.metric.name),
        best_trial=None if best is None else best.trial_id,
        varied={} if best is None else _varied(best.config, [trial.config for trial in trials]),
        val_accuracy=None if best is None else best.val_accuracy,
        test_accuracy=None if best is None else best.test_accuracy,
        test_interval=None if best is None else best.test_interval,
        epochs_asked=summary.reuse.epochs_asked,
        epochs_trained=trained,
        wall_seconds=summary.wall_seconds if summary.search_seconds is None else summary.search_seconds,
        was_continued=summary.search_seconds is None and trained > summary.reuse.epochs_trained,
        written=written,
    )


def to_csv(searches: Sequence[SearchFacts]) -> str:
    """A row for each search. What is varied stands in one cell, as JSON."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    rows = [_flat(search) for search in searches]
    writer.writerow(rows[0] if rows else [])
    writer.writerows([safe_cell(value) for value in row.values()] for row in rows)
    return text.getvalue()


def _flat(search: SearchFacts) -> dict[str, Any]:
    """One row's cells by column."""
    known = search.to_json()
    low, high = known.pop("test_interval") or (None, None)
    data = {f"data_{name}": value for name, value in known.pop("data").items()}
    known |= {"models": " ".join(search.models), "varied": json.dumps(known["varied"])}
    return {**known, "test_low": low, "test_high": high, **data}


class _Metric(BaseModel):
    name: str


class _Reuse(BaseModel):
    epochs_asked: int
    epochs_trained: int


class _Trial(BaseModel, extra="allow"):
    trial_id: str
    config: dict[str, Any]
    status: Status
    epochs_trained: int

    def value(self, metric: str) -> float | None:
        """One of its metrics at its best epoch."""
        found = (self.model_extra or {}).get(metric)
        return float(found) if isinstance(found, int | float) else None


class _Best(BaseModel):
    trial_id: str
    config: dict[str, Any]
    val_accuracy: FiniteFloat | None
    test_accuracy: FiniteFloat | None
    test_interval: tuple[FiniteFloat, FiniteFloat] | None


class _Summary(BaseModel):
    """What is read of `summary.json`."""

    status: str
    space: str
    method: str
    metric: _Metric
    data: DataFacts
    trials: list[_Trial]
    best: _Best | None
    reuse: _Reuse
    wall_seconds: FiniteFloat
    search_seconds: FiniteFloat | None = None  # searches of earlier versions have none


def _why_none(folder: Path) -> str:
    """Why there is no summary in a folder, and what would be right."""
    if not folder.is_dir():
        return "there is no such folder."
    if (folder / LEDGER_FILE).exists() and (folder / SUMMARY_FILE).exists():
        command = "python -m tune_inat.search with the search's arguments"
        return f"its {SUMMARY_FILE} is damaged; {command} writes it again."
    if (folder / LEDGER_FILE).exists() or (folder / IDENTITY_FILE).exists():
        return "this search has not ended yet; the same command goes on with it."
    if any(folder.glob(f"*/{SUMMARY_FILE}")):
        return f"this is no search, but holds some: {folder / '*'} names them."
    return f"this is no search: there is no {SUMMARY_FILE} that can be read."


def _varied(best: Mapping[str, Any], configs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The best trial's parameters in which the trials differ."""
    return {
        name: value for name, value in best.items() if len({repr(config.get(name)) for config in configs}) > 1
    }


def _with_distinct_names(searches: Sequence[SearchFacts]) -> list[SearchFacts]:
    """Searches whose folders have the same name go by their whole path as it was given."""
    counts = Counter(search.name for search in searches)
    return [
        replace(search, name=str(search.folder)) if counts[search.name] > 1 else search for search in searches
    ]


def _falling(value: float | None) -> tuple[bool, float]:
    return value is None, -(value or 0.0)
