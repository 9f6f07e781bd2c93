"""The summary of a search: all that it came to, as `summary.json` has it for programs."""

import platform
import shlex
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tune_inat.audit import to_short_json
from tune_inat.inputs import Inputs
from tune_inat.leaderboard import Effort, TestResult, TrialResult, best_to_json
from tune_inat.remote import hide_secrets
from tune_inat.settings import SearchSettings
from tune_inat.wandb_files import sync_line

if TYPE_CHECKING:
    from tune_inat.forecast import Forecast

VERSIONED = ("tune_inat", "torch", "torchvision", "timm", "ray", "optuna", "wandb", "numpy", "pillow")


def compose_summary(
    inputs: Inputs,
    ranked: Sequence[TrialResult],
    best: TrialResult | None,
    test: TestResult | None,
    *,
    is_exported: bool,
    folder: Path,
    effort: Effort,
    n_left: int,
    planned: Mapping[str, Any],
    measured: Mapping[str, Any],
    wall_seconds: float,
    search_seconds: float,
) -> dict[str, Any]:
    """The content of `summary.json`.

    Args:
        ranked: all trials, best first.
        is_exported: whether the best trial's model stands in the folder.
        n_left: trials that did not come to run, or were cut off.
        planned: what the plan said of seconds, epochs and bytes; `measured` is what they came to. Both are of
            the last run of the command that had trials to run.
        wall_seconds: of this run of the command.
        search_seconds: of all runs that had trials to run, together.
    """
    metric, data = inputs.space.metric, inputs.data
    failed = [result.trial_id for result in ranked if result.status == "ERROR"]
    has_failures = bool(failed) or effort.problem is not None
    is_limited = inputs.settings.max_hours is not None
    return {
        "status": "INTERRUPTED" if effort.is_interrupted else "FAILURES" if has_failures else "DONE",
        "name": folder.name,
        "space": inputs.space.source,
        "method": inputs.space.method,
        "metric": {"name": metric.name, "goal": metric.goal},
        "data": {
            "name": data.name,
            "classes": len(data.classes),
            "train": len(data.train.labels),
            "val": len(data.val.labels),
            "test": 0 if data.test is None else len(data.test.labels),
            "skipped": len(data.skipped),
            "fingerprint": data.fingerprint,
            "root": str(data.root),
            "audit": to_short_json(inputs.audit, data.counts()),
        },
        "trials": [result.to_json() for result in ranked],
        "best": None if best is None else best_to_json(best, test, is_exported=is_exported),
        "failed": failed,
        "trials_left": n_left,
        "is_out_of_time": is_limited and n_left > 0 and not (effort.is_interrupted or effort.problem),
        "reuse": {
            "epochs_asked": sum(int(result.config["epochs"]) for result in ranked),
            "epochs_trained": effort.epochs_trained,
            "prefix_images": effort.prefix_images,
            "pixels_decoded": effort.pixels_decoded,
        },
        "planned": dict(planned),
        "measured": dict(measured),
        "wall_seconds": round(wall_seconds, 3),
        "search_seconds": round(search_seconds, 3),
        "wandb_sync": sync_line(folder),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in VERSIONED}},
        "seed": inputs.seed,
        "command": command_of(inputs.settings),
    }


def to_planned(forecast: "Forecast | None") -> dict[str, Any]:
    """What the plan said of a run of the command; nulls where nothing was left to run."""
    if forecast is None:
        return {"seconds": None, "epochs": 0, "bytes": 0}
    return {
        "seconds": round(forecast.seconds["total"], 1),
        "epochs": forecast.epochs_to_train,
        "bytes": forecast.disk["total"],
        "plan": forecast.to_json(),
    }


def command_of(settings: SearchSettings) -> str:
    """The command that goes on with a search, whatever began it; without keys in its URIs."""
    return shlex.join(map(hide_secrets, settings.command()))
