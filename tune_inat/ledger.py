"""The journal of a search: each trial's start, epochs and end, so that a search can be taken up again."""

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any, Literal

from tune_inat.disk import writing
from tune_inat.rows import Row

Status = Literal["TERMINATED", "STOPPED", "ERROR", "SKIPPED"]

LEDGER_FILE = "trials.jsonl"


@dataclass
class TrialRecord:
    """One trial as its search saw it.

    `epochs_trained` counts those that this search trained itself; the other rows came from the store.

    Attributes:
        seconds: that it has run for, all its tries and what was cut off together; up to the last report while
            it runs.
        correct: for each row which validation images were right, see `metrics.pack_correct`.
        started: when, in seconds since 1970; so are `reported`, of the last epoch, and `ended`.
        worker: the machine, device and process that it ran in.
        failures: why earlier tries failed, of a trial that was tried again.
    """

    trial_id: str
    config: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    epochs_trained: int = 0
    did: dict[str, Any] = field(default_factory=dict)
    status: Status | None = None  # `None` while it runs, or was cut off
    seconds: float = 0.0
    error: str | None = None
    correct: list[str] = field(default_factory=list)
    started: float | None = None
    reported: float | None = None
    ended: float | None = None
    worker: str | None = None
    failures: list[str] = field(default_factory=list)
    earlier_seconds: float = 0.0  # those before the try that is its last so far

    @property
    def is_finished(self) -> bool:
        """Whether the trial needs no more work: it ended by itself or was stopped by the scheduler."""
        return self.status in ("TERMINATED", "STOPPED")


class Ledger:
    """An append-only file, one event a line. Epochs and ends are on the disk when they are told.

    A line that a kill or power loss has torn is passed over. A trial that lacks one is not finished: it
    reports its epochs again, from the store.

    Attributes:
        has_news: whether anything was told since the file was read.
    """

    def __init__(self, folder: Path) -> None:
        self.has_news = False
        self._path = folder / LEDGER_FILE
        self._is_torn = False
        self._records = self._read()

    def records(self) -> dict[str, TrialRecord]:
        """All trials by id, in the order in which they first started."""
        return dict(self._records)

    def earlier_seconds(self, trial_id: str) -> float:
        """For how long a trial has run before it was started last."""
        return self._records[trial_id].earlier_seconds

    def finished(self) -> dict[str, TrialRecord]:
        """The trials that need no more work."""
        return {trial_id: record for trial_id, record in self._records.items() if record.is_finished}

    def start(self, trial_id: str, config: Mapping[str, Any]) -> None:
        """A trial starts, perhaps again: what it reported before is replayed, so does not count."""
        event = {"event": "start", "trial_id": trial_id, "config": dict(config)}
        self._write({**event, "at": _now()})

    def epoch(
        self,
        trial_id: str,
        row: Row,
        *,
        trained: bool,
        did: Mapping[str, Any],
        correct: str = "",
        worker: str | None = None,
    ) -> None:
        """A trial reported an epoch, trained now or taken from the store."""
        event = {"event": "epoch", "trial_id": trial_id, "row": row, "trained": trained, "did": dict(did)}
        self._write({**event, "correct": correct, "worker": worker, "at": _now()}, is_sure=True)

    def failure(self, trial_id: str, reason: str) -> None:
        """A try of a trial failed, and there will be another one."""
        event = {"event": "failure", "trial_id": trial_id, "reason": reason}
        self._write({**event, "at": round(time.time(), 3)})

    def end(self, trial_id: str, status: Status, *, seconds: float, error: str | None = None) -> None:
        """A trial ended, so many seconds after it was started last."""
        event = {"event": "end", "trial_id": trial_id, "status": status, "seconds": seconds}
        n_epochs = len(self._records[trial_id].rows) if trial_id in self._records else 0
        self._write({**event, "epochs": n_epochs, "error": error, "at": _now()}, is_sure=True)

    def forget(self) -> None:
        """Begin anew, for a search that must not use what an earlier one left."""
        self._path.unlink(missing_ok=True)
        self._records = {}

    def _write(self, event: dict[str, Any], *, is_sure: bool = False) -> None:
        """Append a line whole, or raise `ResourceError` and leave the file as it was."""
        line = json.dumps(event).encode() + b"\n"
        with writing(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab", buffering=0) as file:
                end = file.seek(0, os.SEEK_END)
                try:
                    self._append(file, b"\n" + line if self._is_torn else line)
                except OSError:
                    file.truncate(end)
                    raise
                if is_sure:
                    os.fsync(file.fileno())
        self._is_torn = False
        self.has_news = True
        self._apply(event)

    def _append(self, file: FileIO, content: bytes) -> None:
        while content:  # a disk that gets full takes a part first
            content = content[file.write(content) :]

    def _read(self) -> dict[str, TrialRecord]:
        self._records = {}
        if not self._path.exists():
            return self._records
        content = self._path.read_bytes()
        self._is_torn = bool(content) and not content.endswith(b"\n")
        for line in content.split(b"\n"):
            with suppress(ValueError, KeyError, TypeError):  # torn
                self._apply(json.loads(line))
        for record in self._records.values():
            _mend(record)
        return self._records

    def _apply(self, event: Mapping[str, Any]) -> None:
        trial_id = event["trial_id"]
        match event["event"]:
            case "start":
                before = self._records.get(trial_id)
                seconds = before.seconds if before is not None else 0.0
                self._records[trial_id] = TrialRecord(
                    trial_id,
                    event["config"],
                    epochs_trained=before.epochs_trained if before is not None else 0,
                    seconds=seconds,
                    started=event.get("at"),
                    failures=before.failures if before is not None and before.status is None else [],
                    earlier_seconds=seconds,
                )
            case "epoch":
                record, row = self._records[trial_id], event["row"]
                trained, did = int(event["trained"]), event["did"]
                n_before = int(row["epoch"]) - 1
                if n_before > len(record.rows):
                    raise ValueError(f"epoch {row['epoch']} after {len(record.rows)}")
                record.rows[n_before:] = [row]
                record.correct[n_before:] = [event.get("correct", "")]
                record.epochs_trained += trained
                record.did = did
                record.worker = event.get("worker")
                record.reported = event.get("at")
                _count_seconds(record, event)
            case "failure":
                record = self._records[trial_id]
                record.failures.append(str(event["reason"]))
                _count_seconds(record, event)
            case "end":
                record, status, seconds = self._records[trial_id], event["status"], event["seconds"]
                if event.get("epochs", len(record.rows)) != len(record.rows):
                    raise ValueError(f"{event['epochs']} epochs, not {len(record.rows)}")
                record.status, record.seconds = status, record.earlier_seconds + seconds
                record.error = event["error"]
                record.ended = event.get("at")


def _count_seconds(record: TrialRecord, event: Mapping[str, Any]) -> None:
    """Those up to an event, by the clock on the wall: nobody else knows them of a trial that is cut off."""
    at = event.get("at")
    if at is not None and record.started is not None:
        record.seconds = record.earlier_seconds + max(0.0, at - record.started)


def _mend(record: TrialRecord) -> None:
    """A trial that has reported its last epoch has ended, also where a kill came before that was told."""
    if record.status is None and len(record.rows) == record.config.get("epochs"):
        record.status = "TERMINATED"
        record.ended = record.reported


def _now() -> float:
    return round(time.time(), 3)
