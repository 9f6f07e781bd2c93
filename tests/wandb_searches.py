"""Searches that report to W&B, driven by hand."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.wandb_files import OfflineRun
from tests.wandb_server import API_KEY, WandbServer
from tune_inat.ledger import TrialRecord
from tune_inat.tracking import WandbTracker
from tune_inat.wandb_writer import Patience

EPOCHS = 5
# For a server that answers, however busy the machine; for one that stops to; for one that never does.
PATIENT = Patience(opening=60.0, closing=60.0, end=120.0, interrupted=60.0, brisk=60.0)
RELUCTANT = Patience(opening=6.0, closing=4.0, end=60.0, interrupted=30.0, brisk=60.0)
IMPATIENT = Patience(opening=1.0, closing=1.0, end=60.0, interrupted=30.0)


def use_server(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", url)
    monkeypatch.setenv("WANDB_API_KEY", API_KEY)


def make_tracker(folder: Path, mode: Any = "offline", **settings: Any) -> WandbTracker:
    known: dict[str, Any] = {"project": "birds", "group": "a search", "patience": PATIENT} | settings
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
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ended_record(trial_id: str) -> TrialRecord:
    """The ledger's record of a trial as `report_whole` reports it."""
    rows = [row(epoch) for epoch in range(1, EPOCHS + 1)]
    return TrialRecord(trial_id, trial(trial_id).config["params"], rows=rows, status="TERMINATED")


PREDICTED: dict[str, Any] = {  # of six images; the second, a heron, is taken for an owl
    "probabilities": np.array(
        [[0.8, 0.1, 0.1], [0.3, 0.5, 0.2], [0.1, 0.7, 0.2], [0.2, 0.6, 0.2], [0, 0.1, 0.9], [0.1, 0, 0.9]]
    ),
    "labels": np.array([0, 0, 1, 1, 2, 2]),
    "classes": ("heron", "owl", "wren"),
}
CHARTS = {"confusion_matrix", "pr_curve"}


def write_model(folder: Path) -> Path:
    model = folder / "best_model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"the weights")
    (model / "config.json").write_text("{}")
    return model


def assert_model_arrived(server: WandbServer) -> None:
    artifact = server.artifacts["a-search-model"]
    assert (artifact.type, sorted(artifact.aliases)) == ("model", ["best", "latest"])
    assert artifact.files == {"model.safetensors": b"the weights", "config.json": b"{}"}
    assert artifact.is_committed
    tables = {name.rpartition("-")[2] for name in server.artifacts} - {"model"}
    assert tables == {f"{name}_table" for name in CHARTS}
