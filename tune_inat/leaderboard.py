"""The results of a search: its leaderboard, its summary, and the files that hold them."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from tune_inat.disk import writing
from tune_inat.ledger import Status, TrialRecord
from tune_inat.objective import Goal
from tune_inat.rows import Row, best_row, finite, rank
from tune_inat.store import write_atomically

SUMMARY_FILE = "summary.json"
LEADERBOARD_FILE = "trials.csv"
BEST_MODEL_FOLDER = "best_model"
PREDICTIONS_FILE = "predictions.csv"  # of the best model
PREDICTION_COLUMNS = ("part", "file", "class", "predicted", "confidence", "calibrated")

LEADERBOARD_METRICS = ("val_accuracy", "val_loss", "val_macro_f1", "val_balanced_accuracy", "val_ece")
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "'")  # the last, since it is what marks the others


@dataclass(frozen=True)
class TrialResult:
    """A trial at the end of a search. Its metrics are those of `best_epoch`, `None` where no epoch ended.

    `error` is why it failed; `failures` why earlier tries did, after which it was tried again.
    """

    trial_id: str
    config: Mapping[str, Any]
    status: Status
    epochs: int
    epochs_trained: int
    best: Row | None
    seconds: float
    did: Mapping[str, Any]
    error: str | None
    failures: Sequence[str] = ()

    @property
    def best_epoch(self) -> int | None:
        """The epoch whose metrics and weights stand for the trial."""
        return None if self.best is None else int(self.best["epoch"])

    def metric(self, name: str) -> float | None:
        """A metric at the best epoch, if it is a finite number."""
        return None if self.best is None else finite(self.best[name])

    def to_json(self) -> dict[str, Any]:
        """The trial as it stands in `summary.json`."""
        metrics = {name: self.metric(name) for name in LEADERBOARD_METRICS}
        return {
            "trial_id": self.trial_id,
            "config": dict(self.config),
            "status": self.status,
            "epochs": self.epochs,
            "epochs_trained": self.epochs_trained,
            **metrics,
            "best_epoch": self.best_epoch,
            "seconds": round(self.seconds, 3),
            "did": dict(self.did),
            **({"error": self.error} if self.error else {}),
            **({"failures": list(self.failures)} if self.failures else {}),
        }


class Work(Protocol):
    """What a process has done that reuse would spare: images run through frozen layers, and decoded."""

    prefix_images: int
    pixels_decoded: int


@dataclass
class Effort:
    """What a run of the command did itself; the rest was there already.

    Attributes:
        problem: of a machine: none of the trials that were left could run there, or results found no room.
    """

    epochs_trained: int = 0
    prefix_images: int = 0
    pixels_decoded: int = 0
    is_interrupted: bool = False
    problem: str | None = None

    def add(self, work: Work) -> None:
        """Count what a process has done."""
        self.prefix_images += work.prefix_images
        self.pixels_decoded += work.pixels_decoded


@dataclass(frozen=True)
class TestResult:
    """How the best trial does on the test images. The interval is Wilson's, at 95 %."""

    test_accuracy: float
    test_loss: float
    test_interval: tuple[float, float]
    n_test: int

    __test__ = False  # not a test, whatever pytest makes of the name


def trial_result(record: TrialRecord, metric: str, goal: Goal) -> TrialResult:
    """What the ledger's record of a trial comes to."""
    rows = record.rows
    did = dict(record.did)
    if rows:
        did |= {"steps": int(rows[-1]["steps"]), "peak_lr": max(row["peak_lr"] for row in rows)}
    return TrialResult(
        trial_id=record.trial_id,
        config=record.config,
        status=record.status or "SKIPPED",
        epochs=len(rows),
        epochs_trained=record.epochs_trained,
        best=best_row(rows, metric, goal) if rows else None,
        seconds=record.seconds,
        did=did,
        error=record.error,
        failures=tuple(record.failures),
    )


def leaderboard(results: Iterable[TrialResult], metric: str, goal: Goal) -> list[TrialResult]:
    """Trials from best to worst, see `rank`."""
    return sorted(results, key=lambda it: rank(it.trial_id, it.config, it.status, it.best, metric, goal))


def best_of(ranked: Sequence[TrialResult]) -> TrialResult | None:
    """The best trial of a leaderboard; one that failed cannot be it, nor one without a finite loss."""
    first = ranked[0] if ranked else None
    if first is None or first.status == "ERROR" or first.metric("val_loss") is None:
        return None
    return first


def best_to_json(best: TrialResult, test: TestResult | None, *, is_exported: bool = True) -> dict[str, Any]:
    """The best trial as it stands in `summary.json`.

    Without test images its test values are null, and all of them and its model where a search was
    interrupted before it had exported it.
    """
    tested = (
        asdict(test) if test is not None else dict.fromkeys(("test_accuracy", "test_loss", "test_interval"))
    )
    return {
        "trial_id": best.trial_id,
        "epoch": best.best_epoch,
        "config": dict(best.config),
        "val_accuracy": best.metric("val_accuracy"),
        "val_loss": best.metric("val_loss"),
        **tested,
        "model": BEST_MODEL_FOLDER if is_exported else None,
    }


def recorded_test(summary: Mapping[str, Any]) -> TestResult | None:
    """The test result that a summary holds."""
    best = summary["best"]
    if best is None or best["test_accuracy"] is None:
        return None
    low, high = best["test_interval"]
    return TestResult(best["test_accuracy"], best["test_loss"], (low, high), best["n_test"])


def exported_trial(folder: Path) -> tuple[str, int] | None:
    """The trial and epoch whose model a search has exported and whose test its summary records."""
    best = (read_summary(folder) or {}).get("best")
    try:
        config = json.loads((folder / BEST_MODEL_FOLDER / "config.json").read_bytes())
        exported = (config["trial_id"], config["epoch"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return exported if best and exported == (best["trial_id"], best["epoch"]) else None


def varied_parameters(results: Sequence[TrialResult]) -> tuple[str, ...]:
    """The parameters in which the trials differ, in the configuration's order."""
    names = results[0].config if results else ()
    return tuple(name for name in names if len({repr(result.config[name]) for result in results}) > 1)


def write_leaderboard(folder: Path, ranked: Sequence[TrialResult]) -> None:
    """Write `trials.csv`: a row for each trial, best first, with its whole configuration."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    parameters = tuple(ranked[0].config) if ranked else ()
    columns = ("status", "epochs_run", "epochs_trained", "best_epoch", "seconds")
    writer.writerow(["rank", "trial_id", *columns, *LEADERBOARD_METRICS, *parameters])
    for place, result in enumerate(ranked, start=1):
        writer.writerow(
            [
                place,
                result.trial_id,
                result.status,
                result.epochs,
                result.epochs_trained,
                result.best_epoch,
                round(result.seconds, 3),
                *(result.metric(name) for name in LEADERBOARD_METRICS),
                *(safe_cell(result.config[name]) for name in parameters),
            ]
        )
    with writing(folder):
        write_atomically(folder / LEADERBOARD_FILE, text.getvalue().encode())


def safe_cell(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_STARTS) else value


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write `summary.json`."""
    with writing(folder):
        write_atomically(folder / SUMMARY_FILE, (json.dumps(summary, indent=2) + "\n").encode())


def read_summary(folder: Path) -> dict[str, Any] | None:
    """The summary of an earlier search in a folder, `None` where there is none that can be read."""
    try:
        summary = json.loads((folder / SUMMARY_FILE).read_bytes())
    except (OSError, ValueError):
        return None
    return summary if isinstance(summary, dict) else None
