"""What a search's offline W&B files hold, as tests want to see it."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tune_inat.wandb_files import read_records, row_of


@dataclass
class OfflineRun:
    """One run: its files in the order in which `wandb sync` would send them, joined."""

    id: str = ""
    name: str = ""
    project: str = ""
    group: str = ""
    host: str = ""
    tags: tuple[str, ...] = ()
    exit_code: int | None = None
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    x_axes: dict[str, str] = field(default_factory=dict)  # metric (or glob) -> the metric it is plotted over
    artifacts: list[Any] = field(default_factory=list)  # protobuf records
    n_files: int = 0


def read_offline_runs(folder: Path) -> dict[str, OfflineRun]:
    """The runs below a search's folder by their names' first word, which is the trial's id."""
    runs: dict[str, OfflineRun] = {}
    for path in sorted(
        folder.glob("wandb/*run-*/*.wandb"), key=lambda path: path.parent.name.split("run-")[1]
    ):
        run = runs.setdefault(path.stem, OfflineRun())
        run.n_files += 1
        for record in read_records(path):
            _add(run, record)
    return {run.name.split(" ")[0]: run for run in runs.values()}


def _add(run: OfflineRun, record: Any) -> None:
    kind = record.WhichOneof("record_type")
    if kind == "run":
        run.host = record.run.host
        run.id, run.name = record.run.run_id, record.run.display_name
        run.project, run.group, run.tags = record.run.project, record.run.run_group, tuple(record.run.tags)
        for item in record.run.config.update:
            _merge(run.config, {item.key: json.loads(item.value_json)})
    elif kind == "history":
        run.rows.append(row_of(record.history))
    elif kind == "summary":
        for item in record.summary.update:
            _set(run.summary, list(item.nested_key) or [item.key], json.loads(item.value_json))
    elif kind == "config":
        for item in record.config.update:
            _set(run.config, list(item.nested_key) or [item.key], json.loads(item.value_json))
    elif kind == "artifact":
        run.artifacts.append(record.artifact)
    elif kind == "metric":
        run.x_axes[record.metric.name or record.metric.glob_name] = record.metric.step_metric
    elif kind == "exit":
        run.exit_code = record.exit.exit_code


def _merge(tree: dict[str, Any], other: dict[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            _merge(tree[key], value)
        else:
            tree[key] = value


def _set(tree: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
    tree[keys[-1]] = value
