"""What a report is about: the facts of one search, read from its folder, whether it has ended or not."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tune_inat.errors import UserError
from tune_inat.leaderboard import BEST_MODEL_FOLDER, leaderboard, read_summary, trial_result
from tune_inat.ledger import LEDGER_FILE, Ledger, TrialRecord
from tune_inat.metrics import unpack_correct
from tune_inat.objective import DEFAULT_METRIC, GOALS, Metric
from tune_inat.rows import Row, rank
from tune_inat.runs import IDENTITY_FILE
from tune_inat.significance import BoolArray, PairedTest, compare_with_best


@dataclass(frozen=True)
class ReportedTrial:
    """One trial. `best` is the row that stands for it, `None` where no epoch ended.

    Attributes:
        rows: of each epoch; empty where the journal is gone.
        status: of the journal, or RUNNING.
        correct: which validation images were right at the best epoch, `None` if that is not known.
    """

    trial_id: str
    config: Mapping[str, Any]
    status: str
    rows: Sequence[Row]
    best: Row | None
    epochs: int
    epochs_trained: int
    seconds: float
    started: float | None
    ended: float | None
    worker: str | None
    correct: BoolArray | None

    @property
    def can_be_best(self) -> bool:
        """Whether it has a result that counts."""
        return self.best is not None and self.status != "ERROR"


@dataclass(frozen=True)
class SearchToReport:
    """A search as its folder tells it.

    Attributes:
        trials: best first.
        summary: the content of `summary.json`, empty while the search runs for the first time.
        identity: the content of `search.json`.
        model: the content of `best_model/config.json`; `metrics` of its `metrics.json`.
        varied: the parameters in which the trials differ.
        is_running: trials in the journal have no end yet, or the summary is older than the journal.
    """

    folder: Path
    name: str
    metric: Metric
    trials: Sequence[ReportedTrial]
    summary: Mapping[str, Any]
    identity: Mapping[str, Any]
    model: Mapping[str, Any]
    metrics: Mapping[str, Any]
    varied: Sequence[str]
    is_running: bool
    tests: Mapping[str, PairedTest] = field(default_factory=dict)

    @property
    def best(self) -> ReportedTrial | None:
        """The best trial."""
        return self.trials[0] if self.trials and self.trials[0].can_be_best else None

    @property
    def tested_best(self) -> Mapping[str, Any] | None:
        """What the summary says of the best trial's test; `None` if its best epoch was not tested."""
        told, best = _mapping(self.summary.get("best")), self.best
        if best is None or best.best is None or told.get("test_accuracy") is None:
            return None
        return (
            told if (told.get("trial_id"), told.get("epoch")) == (best.trial_id, best.best["epoch"]) else None
        )

    @property
    def data(self) -> Mapping[str, Any]:
        """What the summary says of the images."""
        return _mapping(self.summary.get("data"))

    @property
    def asked(self) -> Mapping[str, Any]:
        """What `search.json` says of the search space."""
        return _mapping(self.identity.get("space"))

    def value(self, trial: ReportedTrial) -> float | None:
        """The metric of a trial at its best epoch."""
        return None if trial.best is None else trial.best.get(self.metric.name)


def read_search_to_report(folder: Path) -> SearchToReport:
    """The facts of a search. Nothing in the folder is changed.

    Raises:
        UserError: there is no such folder, or it holds no search.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder. A search leaves one in runs/NAME.")
    summary = read_summary(folder) or {}
    identity = _read_json(folder / IDENTITY_FILE)
    records = _read_journal(folder)
    if not records and not are_trials(summary.get("trials")):
        raise UserError(
            f"{folder}: this is no search, or one without a trial yet: there is no {LEDGER_FILE} or "
            "summary.json with trials in it. Name a folder that a search has left, such as runs/NAME."
        )
    metric = _metric(summary, identity)
    is_running = not summary or _is_ahead(records, summary)
    trials = _trials(records, summary, metric, is_running=is_running)
    model = _read_json(folder / BEST_MODEL_FOLDER / "config.json")
    return SearchToReport(
        folder=folder,
        name=folder.resolve().name,
        metric=metric,
        trials=trials,
        summary=summary,
        identity=identity,
        model=model,
        metrics=_read_json(folder / BEST_MODEL_FOLDER / "metrics.json"),
        varied=_varied([trial.config for trial in trials]),
        is_running=is_running,
        tests=_tests(trials),
    )


def _read_journal(folder: Path) -> dict[str, TrialRecord]:
    """The journal's records, from a copy: a `Ledger` mends a torn line that a search may be writing now."""
    if not (folder / LEDGER_FILE).is_file():
        return {}
    with TemporaryDirectory(prefix="tune_inat-") as aside:
        try:
            shutil.copyfile(folder / LEDGER_FILE, Path(aside) / LEDGER_FILE)
        except OSError as error:
            raise UserError(f"{folder / LEDGER_FILE}: it cannot be read ({error.strerror}).") from error
        return Ledger(Path(aside)).records()


def _read_json(path: Path) -> dict[str, Any]:
    """A mapping in a file; empty where there is none, as in a search that still runs."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def are_trials(value: Any) -> bool:
    """Whether a value of a summary is a list of trials."""
    return isinstance(value, list) and any(isinstance(item, dict) and "trial_id" in item for item in value)


def _metric(summary: Mapping[str, Any], identity: Mapping[str, Any]) -> Metric:
    for place in (summary, _mapping(identity.get("space"))):
        found = _mapping(place.get("metric"))
        if found.get("name") in GOALS and found.get("goal") in ("minimize", "maximize"):
            return Metric(found["name"], found["goal"])
    return DEFAULT_METRIC


def _listed(summary: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    trials = summary.get("trials")
    return {trial["trial_id"]: trial for trial in trials} if are_trials(trials) and trials else {}


def _is_ahead(records: Mapping[str, TrialRecord], summary: Mapping[str, Any]) -> bool:
    """Whether the journal has more of the summary's trials than the summary, or newer ones."""
    listed = _listed(summary)
    latest = max((record.started or 0.0 for key, record in records.items() if key in listed), default=0.0)
    return any(
        (record.status or "SKIPPED") != listed[key]["status"] or len(record.rows) > listed[key]["epochs"]
        if key in listed
        else latest > 0 and (record.started or 0.0) > latest
        for key, record in records.items()
    )


def _trials(
    records: Mapping[str, TrialRecord], summary: Mapping[str, Any], metric: Metric, *, is_running: bool
) -> list[ReportedTrial]:
    """All trials, best first. A journal may know those of other spaces, too; a summary lists its own."""
    listed = _listed(summary)
    wanted = [record for key, record in records.items() if is_running or key in listed]
    results = leaderboard(
        (trial_result(record, metric.name, metric.goal) for record in wanted), metric.name, metric.goal
    )
    trials = [_of_record(records[result.trial_id], result.best, is_running) for result in results]
    known = {trial.trial_id for trial in trials}
    unknown = [_of_summary(trial) for key, trial in listed.items() if key not in known]
    if not unknown:
        return trials
    return sorted(
        [*trials, *unknown],
        key=lambda it: rank(it.trial_id, it.config, it.status, it.best, metric.name, metric.goal),
    )


def _of_record(record: TrialRecord, best: Row | None, is_running: bool) -> ReportedTrial:
    packed = (
        record.correct[record.rows.index(best)] if best and len(record.correct) == len(record.rows) else ""
    )
    return ReportedTrial(
        trial_id=record.trial_id,
        config=record.config,
        status=record.status or ("RUNNING" if is_running else "SKIPPED"),
        rows=record.rows,
        best=best,
        epochs=len(record.rows),
        epochs_trained=record.epochs_trained,
        seconds=record.seconds,
        started=record.started,
        ended=record.reported if record.ended is None else record.ended,
        worker=record.worker,
        correct=_unpacked(packed),
    )


def _of_summary(trial: Mapping[str, Any]) -> ReportedTrial:
    """A trial that the journal does not know: planned and not run, or the journal is gone."""
    best = None
    if trial.get("best_epoch") is not None:
        best = {name: trial[name] for name in trial if name.startswith("val_") and trial[name] is not None}
        best["epoch"] = trial["best_epoch"]
    return ReportedTrial(
        trial_id=str(trial["trial_id"]),
        config=_mapping(trial.get("config")),
        status=str(trial.get("status", "SKIPPED")),
        rows=(),
        best=best,
        epochs=int(trial.get("epochs") or 0),
        epochs_trained=int(trial.get("epochs_trained") or 0),
        seconds=float(trial.get("seconds") or 0.0),
        started=None,
        ended=None,
        worker=None,
        correct=None,
    )


def _unpacked(packed: str) -> BoolArray | None:
    """The booleans of `metrics.pack_correct`, filled up to whole bytes by images that no trial has right.

    Such images change no paired test, so the number of images need not be known.
    """
    if not packed:
        return None
    try:
        return unpack_correct(packed, len(packed) // 4 * 3 * 8 - packed.count("=") * 8)
    except ValueError:
        return None


def _tests(trials: Sequence[ReportedTrial]) -> dict[str, PairedTest]:
    """The paired test of each trial against the best, by id, where it is known what both had right."""
    if not trials or trials[0].correct is None or not trials[0].can_be_best:
        return {}
    best = trials[0].correct
    others = {
        trial.trial_id: trial.correct
        for trial in trials[1:]
        if trial.correct is not None and trial.can_be_best and len(trial.correct) == len(best)
    }
    return dict(zip(others, compare_with_best(best, list(others.values())), strict=True))


def _varied(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    names = list(dict.fromkeys(name for config in configs for name in config))
    return [name for name in names if len({repr(config.get(name)) for config in configs}) > 1]
