"""Searches that were never run: their folders as a search leaves them, for reports of any size."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tune_inat.leaderboard import leaderboard, trial_result
from tune_inat.ledger import LEDGER_FILE, Ledger
from tune_inat.metrics import pack_correct

HOSTILE = "<script>alert(1)</script>"
QUOTED = '"it\'s" <img src=x onerror=alert(2)>.png'
SPACE: dict[str, Any] = {
    "method": "bayes",
    "metric": {"name": "val_accuracy", "goal": "maximize"},
    "parameters": {"lr": {"distribution": "LogUniform", "low": 1e-4, "high": 1e-2}},
    "early_stopping": {"grace_period": 2, "reduction_factor": 2, "max_epochs": None},
}


def write_journal(folder: Path, n_trials: int, *, n_val: int = 200, seed: int = 0) -> None:
    """The journal and identity of a search that still runs, with as many trials; every third was stopped."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    identity = {"space": SPACE, "images": "abc", "parameters": {"model": "net"}, "precision": "auto"}
    (folder / "search.json").write_text(json.dumps(identity))
    lines = []
    for number in range(n_trials):
        lr = float(10 ** rng.uniform(-4, -2))
        config: dict[str, Any] = {
            "freeze": [0.7, 0.8, 0.9][number % 3],
            "epochs": 4,
            "lr": lr,
            "optimizer": ["adam", "sgd"][number % 2],
            "model": HOSTILE,
            "seed": 0,
        }
        skill = 0.55 + 0.1 * config["freeze"] - 0.05 * abs(np.log10(lr) + 3)
        lines += _events(f"t{number:05}", config, skill, rng, n_val, is_stopped=number % 3 == 2, at=number)
    (folder / LEDGER_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_summary_file(folder: Path, *, n_classes: int = 3, n_val: int = 200) -> None:
    """The summary of the search that a journal is of, ended."""
    records = Ledger(folder).records().values()
    ranked = leaderboard(
        (trial_result(r, "val_accuracy", "maximize") for r in records), "val_accuracy", "maximize"
    )
    best = ranked[0]
    summary = {
        "status": "DONE",
        "space": "optuna.yaml",
        "method": "bayes",
        "metric": SPACE["metric"],
        "data": {
            "name": HOSTILE,
            "classes": n_classes,
            "train": 800,
            "val": n_val,
            "test": 300,
            "skipped": 2,
            "audit": audit(n_classes),
        },
        "trials": [result.to_json() for result in ranked],
        "best": {"trial_id": best.trial_id, "epoch": best.best_epoch, "config": dict(best.config)}
        | {"test_accuracy": 0.91, "test_interval": [0.872, 0.938], "n_test": 300},
        "planned": {"seconds": 50.0, "epochs": 4 * len(ranked), "bytes": 1},
        "measured": {"seconds": 61.5, "epochs": 2 * len(ranked), "bytes": 2_500_000},
        "reuse": {"epochs_asked": 4 * len(ranked), "prefix_images": 1_300, "pixels_decoded": 1_100},
        "wall_seconds": 61.5,
        "versions": {"python": "3.11.7", "torch": "2.14.1"},
        "seed": 7,
        "command": "python -m tune_inat.search --space optuna --name '<b>'",
    }
    (folder / "summary.json").write_text(json.dumps(summary))


def audit(n_classes: int) -> dict[str, Any]:
    """What a search found of images with hostile names."""
    return {
        "classes": {f"{HOSTILE} {number}": {"images": 10} for number in range(n_classes)},
        "split": {f"{HOSTILE} {number}": {"train": 7, "val": 1, "test": 2} for number in range(n_classes)},
        "formats": {"JPEG": 1_000, "PNG": 20},
        "sizes": {"width": {"min": 40, "median": 640, "max": 4_000}},
        "unreadable": [{"path": QUOTED, "reason": "is cut short"}] * 100,
        "duplicates": [[QUOTED, "b.png"]],
        "near_copies": [["c.png", f"{HOSTILE}.png", "\udcff.png"]],
        "near_copies_between_parts": [],
        "warnings": [f"Near copies stand in two parts (3): {HOSTILE}."],
        "notices": ["Ignored 4 files that are no images by their names: .txt 4."],
        "totals": {"unreadable": 1_234, "duplicates": 1, "near_copies": 1},
    }


def write_predictions(folder: Path, n_classes: int, *, n_images: int = 300, seed: int = 0) -> list[str]:
    """Predictions on test images, a tenth of them wrong, two images to look at, and a model's files."""
    rng = np.random.default_rng(seed)
    classes = [HOSTILE, "b\"quoted'", *(f"class {number}" for number in range(2, n_classes))][:n_classes]
    paths = [folder / "images" / f"{QUOTED[:-4].replace('/', '_')} {number}.png" for number in range(2)]
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(paths):
        Image.new("RGB", (60, 40), (200, 90 * number, 60)).save(path)
    with (folder / "predictions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["part", "file", "class", "predicted", "confidence", "calibrated"])
        for number in range(n_images):
            label = number % n_classes
            is_right = number >= 2 and rng.random() < 0.9
            taken = label if is_right else (label + 1) % n_classes
            confidence = 0.999 if number < 2 else rng.uniform(0.5, 0.99)
            name = str(paths[number]) if number < 2 else f"gone/{number}.png"
            writer.writerow(["test", name, classes[label], classes[taken], confidence, confidence * 0.95])
    (folder / "best_model").mkdir(exist_ok=True)
    model = {"classes": classes, "temperature": 1.3}
    (folder / "best_model" / "config.json").write_text(json.dumps(model))
    return classes


def write_search(folder: Path, n_trials: int, n_classes: int, *, n_images: int = 300) -> Path:
    """A search that has ended, with all that a report can show."""
    write_journal(folder, n_trials)
    write_summary_file(folder, n_classes=n_classes)
    write_predictions(folder, n_classes, n_images=n_images)
    return folder


def _events(
    trial_id: str,
    config: dict[str, Any],
    skill: float,
    rng: np.random.Generator,
    n_val: int,
    *,
    is_stopped: bool,
    at: int,
) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = [
        {"event": "start", "trial_id": trial_id, "config": config, "at": 1_000.0 + 2 * at}
    ]
    for epoch in range(1, 3 if is_stopped else 5):
        correct = rng.random(n_val) < min(0.98, skill + 0.08 * epoch)
        accuracy = float(correct.mean())
        row = {
            "epoch": epoch,
            "val_loss": 1 - accuracy,
            "val_accuracy": accuracy,
            "val_macro_f1": accuracy,
            "val_balanced_accuracy": accuracy,
            "val_ece": 0.02,
            "steps": 10 * epoch,
            "peak_lr": config["lr"],
        }
        event = {"event": "epoch", "trial_id": trial_id, "row": row, "trained": at % 2 == 0, "did": {}}
        events.append({**event, "correct": pack_correct(correct), "worker": f"<i>host</i> {at % 2}"})
    status = "STOPPED" if is_stopped else "TERMINATED"
    end = {"event": "end", "trial_id": trial_id, "status": status, "seconds": 3.5, "error": None}
    return [*events, {**end, "at": 1_003.5 + 2 * at}]
