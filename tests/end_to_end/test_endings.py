"""How searches end, go on and begin anew: trials that fail, time that runs out, spaces that change."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from torchvision.models import resnet18

from tests.benches import write_images
from tests.end_to_end.command import Ran, run
from tests.slow import slow
from tests.wandb_files import read_offline_runs
from tune_inat.runs import STUDY_FILE
from tune_inat.searchers import open_study_storage

pytestmark = pytest.mark.end_to_end

TINY = """
  model: {value: resnet18}
  image_size: {value: 32}
  batch_size: {value: 8}
"""
GRID = f"method: grid\nmetric: {{name: val_accuracy}}\nparameters:{TINY}"
BAYES = """
method: bayes
metric: {name: val_accuracy, goal: maximize}
run_cap: 2
parameters:
  epochs: {value: 2}
  weights: {value: none}
  freeze: {value: 1.0}
  lr: {distribution: log_uniform_values, min: 1e-4, max: 1e-2}
  optimizer: {values: [adam, sgd]}
"""
RunSweep = Callable[..., Ran]


@pytest.fixture
def run_sweep(hostile_path: Path, own_cache: Path) -> RunSweep:
    """Runs a search of a sweep's text on a few coloured images, one trial at a time, in `hostile_path`."""
    write_images(hostile_path / "photos")

    def run_it(text: str, *arguments: str) -> Ran:
        (hostile_path / "tiny.yaml").write_text(text + (TINY if "model" not in text else ""))
        fixed = ("--space", "tiny.yaml", "--data", "photos", "--max-concurrent", "1", *arguments)
        return run("search", *fixed, cwd=hostile_path, cache=own_cache)

    return run_it


def summary_in(folder: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary


@slow
def test_failed_trial_says_why_and_the_others_are_done(run_sweep: RunSweep, hostile_path: Path) -> None:
    more = "  weights: {value: none}\n  optimizer: {value: sgd}\n  epochs: {value: 2}\n"
    sweep = f"{GRID}{more}  lr: {{values: [1e38, 1e-3]}}\n"
    ran = run_sweep(sweep, "--data", str(hostile_path / "photos"), "--wandb", "disabled")
    assert ran.code == 1, ran.err
    reason = "NonFiniteLossError: epoch 1, step 2: the loss is nan"  # step 1 makes the weights infinite
    assert reason in ran.out
    done, failed = summary_in(hostile_path / "runs" / "tiny-photos")["trials"]
    assert (done["status"], failed["status"]) == ("TERMINATED", "ERROR")
    assert failed["error"].startswith(reason)


@slow
def test_weights_file_is_found_by_the_workers_and_is_the_same_by_any_path(
    run_sweep: RunSweep, hostile_path: Path
) -> None:
    torch.save(resnet18().state_dict(), hostile_path / "own.pth")
    sweep = f"{GRID}  epochs: {{value: 1}}\n"
    arguments = ("--json", "--wandb", "disabled")
    first = run_sweep(sweep, "--weights", "own.pth", *arguments)
    assert first.code == 0, first.err
    again = run_sweep(sweep, "--set", f"weights={hostile_path / 'own.pth'}", *arguments)
    assert again.json()["trials"] == first.json()["trials"]
    listed = run_sweep(f"{sweep}  weights: {{values: [own.pth]}}\n", "--dry-run", *arguments)
    assert listed.code == 0, listed.err


@slow
def test_space_that_changes_under_a_name_trains_only_what_is_new(
    run_sweep: RunSweep, hostile_path: Path
) -> None:
    arguments = ("--name", "mine", "--json", "--wandb", "disabled")
    first = run_sweep(BAYES, *arguments)
    assert first.code == 0, first.err
    known = {trial["trial_id"] for trial in first.json()["trials"]}
    wider = BAYES.replace("[adam, sgd]", "[adam, sgd, adamw]").replace("run_cap: 2", "run_cap: 3")
    grown = run_sweep(wider, *arguments)
    assert grown.code == 0, grown.err
    assert known < {trial["trial_id"] for trial in grown.json()["trials"]}
    assert grown.json()["reuse"]["epochs_trained"] == 2  # of one trial
    by_loss = wider.replace("{name: val_accuracy, goal: maximize}", "{name: val_loss}")
    ranked = run_sweep(by_loss, *arguments)
    assert ranked.code == 0, ranked.err
    assert ranked.json()["reuse"]["epochs_trained"] == 0
    losses = [trial["val_loss"] for trial in ranked.json()["trials"]]
    assert losses == sorted(losses)
    assert len(losses) == 3
    elsewhere = by_loss.replace("min: 1e-4, max: 1e-2", "min: 2e-2, max: 1e-1")
    moved = run_sweep(elsewhere, *arguments)
    assert moved.code == 0, moved.err
    assert all(trial["config"]["lr"] >= 2e-2 for trial in moved.json()["trials"])
    assert len(moved.json()["trials"]) == 3


@slow
def test_no_reuse_begins_anew_whatever_the_folder_holds(run_sweep: RunSweep, hostile_path: Path) -> None:
    folder = hostile_path / "runs" / "tiny-photos"
    first = run_sweep(BAYES, "--no-reuse", "--json", "--wandb", "disabled")
    assert first.code == 0, first.err
    refused = run_sweep(BAYES, "--no-reuse", "--cpus-per-trial", "4000")
    assert refused.code == 2, refused.err
    assert (folder / "summary.json").exists()  # what is refused removes nothing
    (folder / "best_model" / "metrics.json").write_text("not this search's")
    again = run_sweep(BAYES, "--no-reuse", "--json", "--wandb", "disabled")
    assert again.code == 0, again.err
    numbers = [
        [(trial["trial_id"], trial["epochs_trained"], trial["val_loss"]) for trial in ran.json()["trials"]]
        for ran in (first, again)
    ]
    assert numbers[0] == numbers[1]
    storage = open_study_storage(folder / STUDY_FILE)
    (study,) = optuna.get_all_study_summaries(storage)
    assert study.n_trials == 2
    assert "val_accuracy" in json.loads((folder / "best_model" / "metrics.json").read_text())


@slow
def test_search_whose_time_is_over_says_what_is_left_and_goes_on(
    run_sweep: RunSweep, hostile_path: Path
) -> None:
    rates = ", ".join(f"{1e-4 * 1.1**n:.6g}" for n in range(60))
    sweep = f"{GRID}  weights: {{value: none}}\n  freeze: {{value: 1.0}}\n  epochs: {{value: 200}}\n"
    arguments = (f"{sweep}  lr: {{values: [{rates}]}}\n", "--max-hours", "0.005", "--wandb", "offline")
    finished: list[set[str]] = []
    for _ in range(2):
        ran = run_sweep(*arguments)
        assert ran.code == 0, ran.err
        summary = summary_in(hostile_path / "runs" / "tiny-photos")
        by_status = {
            status: {trial["trial_id"] for trial in summary["trials"] if trial["status"] == status}
            for status in ("TERMINATED", "SKIPPED")
        }
        assert len(by_status["TERMINATED"]) + len(by_status["SKIPPED"]) == 60
        assert summary["is_out_of_time"]
        assert summary["trials_left"] == len(by_status["SKIPPED"]) > 0
        assert f"{summary['trials_left']} of 60 trials left" in ran.err
        assert summary["command"] in ran.err
        finished.append(by_status["TERMINATED"])
        for name, tracked in read_offline_runs(hostile_path / "runs" / "tiny-photos").items():
            assert tracked.exit_code == (0 if name in by_status["TERMINATED"] else 255)
    assert finished[0] <= finished[1]
