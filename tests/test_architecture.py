"""The house keeps its shape: imports only point down, and Ray, wandb and the terminal keep to their rooms."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import tune_inat

PACKAGE = Path(tune_inat.__file__).parent

# From the ground up. A module may import those of lower lines, and those before it on its own line.
FLOORS = """
interrupts errors config meter life objective wording distributions yaml_lines disk private scratch
tries ending hangs micro_batches packing mps
sweep_schema sweep parameters sweep_report space
store ownership settings runs rows ledger metrics significance calibration augment folders download archive
likeness pictures remote bucket lease mirror elsewhere contents pretended devices slots cuts origins standings
tables gpu_lines board notebook progress images shards facts splits audit data
recipe weights architectures backbone freeze graph convolutions tracing
states shared_states wandb_files wandb_faults wandb_charts wandb_runs wandb_writer tracking
frozen features sources leaderboard onnx_export export model_card labelled predict
storages job places network plan workbench prefixes steps probe figures sharing workload forecast
trial precision rehearsal gauge shares
inputs summary outcome
handout keeper neighbours spread autoscaling arrivals cluster nodes gauges losses
failures searchers queue families housekeeping watcher tuning preparation
report_predictions report_facts report_times report_page report_study report_charts report_lead
report_sections report_model report
comparison results examination remaining course conclusion execution conduct search
__main__
"""
ORDER = FLOORS.split()
ROOMS = {
    "ray": {
        *(
            "cluster",
            "nodes",
            "keeper",
            "neighbours",
            "spread",
            "arrivals",
            "housekeeping",
            "losses",
            "failures",
            "examination",
            "gauges",
            "searchers",
            "families",
            "watcher",
            "tuning",
        ),
        "tracking",
    },
    "wandb": {"tracking", "wandb_writer", "wandb_files", "wandb_charts"},
    "rich": {"progress", "notebook", "tables", "sweep_report", "space", "audit", "results"},
    "optuna": {"searchers", "report_study"},
}


def imports_of(module: str) -> Iterator[str]:
    """All imports of a module as dotted names, also those inside of functions."""
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}.py: a relative import"
            yield node.module or ""


def test_every_module_has_its_floor() -> None:
    assert sorted(ORDER) == sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("module", ORDER)
def test_imports_only_point_down(module: str) -> None:
    below = set(ORDER[: ORDER.index(module)])
    ours = {name.split(".")[1] for name in imports_of(module) if name.startswith("tune_inat.")}
    assert ours <= below


@pytest.mark.parametrize("library", ROOMS)
def test_library_is_known_only_in_its_rooms(library: str) -> None:
    guests = {module for module in ORDER if any(n.split(".")[0] == library for n in imports_of(module))}
    assert guests <= ROOMS[library]
