"""Searches that report to W&B, driven by hand."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.wandb_files import OfflineRun
from tests.wandb_server import API_KEY
from tune_inat.tracking import WandbTracker
from tune_inat.wandb_writer import Patience

EPOCHS = 5
IMPATIENT = Patience(opening=1.0, closing=1.0, end=10.0, interrupted=3.0)


def use_server(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", url)
    monkeypatch.setenv("WANDB_API_KEY", API_KEY)


def make_tracker(folder: Path, mode: Any = "offline", **settings: Any) -> WandbTracker:
    known: dict[str, Any] = {"project": "birds", "group": "a search", "patience": IMPATIENT} | settings
    tracker = WandbTracker(folder=folder, mode=mode, **known)
    tracker.setup()
    return tracker


def trial(trial_id: str, **params: Any) -> Any:
    return SimpleNamespace(config={"trial_id": trial_id, "params": {"epochs": EPOCHS, "lr": 0.01} | params})


def row(epoch: int, **numbers: Any) -> dict[str, Any]:
    return {"epoch": epoch, "val_accuracy": 1 - abs(epoch - 3) / 10, "val_loss": 1 / epoch} | numbers


def report(tracker: WandbTracker, of: Any, epochs: int = EPOCHS) -> None:
    tracker.log_trial_start(of)
    for epoch in range(1, epochs + 1):
        tracker.log_trial_result(epoch, of, row(epoch))


def report_whole(tracker: WandbTracker, *trial_ids: str) -> None:
    for trial_id in trial_ids:
        report(tracker, trial(trial_id))
        tracker.log_trial_end(trial(trial_id))


def search_once(folder: Path, *trial_ids: str, **settings: Any) -> WandbTracker:
    tracker = make_tracker(folder, **settings)
    report_whole(tracker, *trial_ids)
    tracker.finish()
    return tracker


def epochs_of(run: OfflineRun) -> list[int]:
    return [found["_step"] for found in run.rows]


def numbers_of(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if not name.startswith("_")}


ALL_EPOCHS = [1, 2, 3, 4, 5]


def wait_until(holds: Any) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)
