"""The journal of a search: each trial's start, epochs and end, so that a search can be taken up again."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tune_inat.rows import Row

Status = Literal["TERMINATED", "STOPPED", "ERROR", "SKIPPED"]

LEDGER_FILE = "trials.jsonl"


@dataclass
class TrialRecord:
    """One trial as its search saw it.

    `epochs_trained` counts those that this search trained itself; the other rows came from the store.

    Attributes:
        correct: for each row which validation images were right, see `metrics.pack_correct`.
        started: when, in seconds since 1970; so is `ended`.
        worker: the machine and process that it ran in.
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
    ended: float | None = None
    worker: str | None = None
    failures: list[str] = field(default_factory=list)

    @property
    def is_finished(self) -> bool:
        """Whether the trial needs no more work: it ended by itself or was stopped by the scheduler."""
        return self.status in ("TERMINATED", "STOPPED")


class Ledger:
    """An append-only file, one event a line. A torn last line, left by a kill, is dropped."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / LEDGER_FILE
        self._records = self._read()

    def records(self) -> dict[str, TrialRecord]:
        """All trials by id, in the order in which they first started."""
        return dict(self._records)

    def finished(self) -> dict[str, TrialRecord]:
        """The trials that need no more work."""
        return {trial_id: record for trial_id, record in self._records.items() if record.is_finished}

    def start(self, trial_id: str, config: Mapping[str, Any]) -> None:
        """A trial starts, perhaps again: what it reported before is replayed, so does not count."""
        event = {"event": "start", "trial_id": trial_id, "config": dict(config)}
        self._write({**event, "at": round(time.time(), 3)})

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
        self._write({**event, "correct": correct, "worker": worker})

    def failure(self, trial_id: str, reason: str) -> None:
        """A try of a trial failed, and there will be another one."""
        event = {"event": "failure", "trial_id": trial_id, "reason": reason}
        self._write({**event, "at": round(time.time(), 3)})

    def end(self, trial_id: str, status: Status, *, seconds: float, error: str | None = None) -> None:
        """A trial ended."""
        event = {"event": "end", "trial_id": trial_id, "status": status, "seconds": seconds}
        self._write({**event, "error": error, "at": round(time.time(), 3)})

    def forget(self) -> None:
        """Begin anew, for a search that must not use what an earlier one left."""
        self._path.unlink(missing_ok=True)
        self._records = {}

    def _write(self, event: dict[str, Any]) -> None:
        self._apply(event)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")

    def _read(self) -> dict[str, TrialRecord]:
        self._records = {}
        if not self._path.exists():
            return self._records
        content, whole = self._path.read_bytes(), []
        for line in content.split(b"\n"):
            try:
                event = json.loads(line)
                self._apply(event)
            except (ValueError, KeyError, TypeError):
                continue  # torn by a kill: the trial reports it again
            whole.append(line)
        if whole and not content.endswith(b"\n"):
            self._path.write_bytes(b"\n".join(whole) + b"\n")
        return self._records

    def _apply(self, event: Mapping[str, Any]) -> None:
        trial_id = event["trial_id"]
        match event["event"]:
            case "start":
                before = self._records.get(trial_id)
                self._records[trial_id] = TrialRecord(
                    trial_id,
                    event["config"],
                    epochs_trained=before.epochs_trained if before is not None else 0,
                    started=event.get("at"),
                    failures=before.failures if before is not None and before.status is None else [],
                )
            case "epoch":
                record = self._records[trial_id]
                record.rows.append(event["row"])
                record.epochs_trained += int(event["trained"])
                record.did = event["did"]
                record.correct.append(event.get("correct", ""))
                record.worker = event.get("worker")
            case "failure":
                self._records[trial_id].failures.append(str(event["reason"]))
            case "end":
                record = self._records[trial_id]
                record.status, record.seconds = event["status"], event["seconds"]
                record.error = event["error"]
                record.ended = event.get("at")
