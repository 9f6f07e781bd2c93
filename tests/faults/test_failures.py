"""Trials that are killed, hang or cannot succeed: tried again where that helps, and the search goes on."""

import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models import resnet18

from tests.benches import make_bench, reports_of, write_images
from tests.end_to_end.command import Ran
from tests.faults.disturbed import parse_strictly, running_search
from tests.wandb_files import OfflineRun, read_offline_runs
from tune_inat.config import TrialConfig
from tune_inat.store import Store

pytestmark = pytest.mark.end_to_end

NAN, KILLED, LOST, HANGING = 1e38, 1e-3, 2e-3, 3e-3  # the learning rates of the trials, in their order
N_EPOCHS = 5
SWEEP = f"""
method: grid
metric: {{name: val_accuracy, goal: maximize}}
parameters:
  lr: {{values: [{NAN}, {KILLED}, {LOST}, {HANGING}]}}
  epochs: {{value: {N_EPOCHS}}}
  freeze: {{value: 0.8}}
  model: {{value: resnet18}}
  weights: {{value: own.pth}}
  optimizer: {{value: sgd}}
  image_size: {{value: 32}}
  batch_size: {{value: 4}}
"""
# The search loses its patience while a file stands in its folder, so only with a trial that has been stopped:
# on a busy machine, one that works may be silent for longer.
IMPATIENCE = Path("impatience")
LOSES_PATIENCE = f"""
import pathlib, threading, time
import tune_inat.hangs as hangs

def watch():
    file, patience = pathlib.Path("{IMPATIENCE}"), hangs.FLOOR_SECONDS
    while True:
        hangs.FLOOR_SECONDS = 6.0 if file.exists() else patience
        time.sleep(0.02)

threading.Thread(target=watch, daemon=True).start()
"""
CLOCK = ("images_per_second", "train_seconds", "epoch_seconds")


@dataclass(frozen=True)
class Disturbed:
    """A search to whose trials things have happened, and the same command once more."""

    cwd: Path
    first: Ran
    trials: dict[float, dict[str, Any]]  # by learning rate, after the first run
    rows: dict[float, list[dict[str, Any]]]  # of each trial, likewise
    runs: dict[str, OfflineRun]  # of W&B, by trial, likewise
    again: Ran


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory: pytest.TempPathFactory) -> Disturbed:
    cwd, cache = tmp_path_factory.mktemp('it\'s a "Wald" mit Bäumen'), tmp_path_factory.mktemp("cache")
    write_images(cwd / "photos")
    weights = cwd / "own.pth"
    torch.manual_seed(0)
    torch.save(resnet18().state_dict(), weights)
    (cwd / "sweep.yaml").write_text(SWEEP)
    arguments = ("--space", "sweep.yaml", "--data", "photos", "--max-concurrent", "1", "--precision", "fp32")
    where: dict[str, Any] = {"cwd": cwd, "cache": cache, "name": "disturbed", "before": LOSES_PATIENCE}
    with running_search(*arguments, "--cpus-per-trial", "1", "--json", **where) as search:
        search.signal(search.in_epoch(2, lr=KILLED)[1], signal.SIGKILL)
        _, trial = search.in_epoch(1, lr=LOST)
        aside = weights.rename(cwd / "aside.pth")
        search.signal(trial, signal.SIGKILL)
        search.wait_for(lambda trial: trial.config["lr"] == LOST and trial.status == "ERROR")
        aside.rename(weights)
        search.signal(search.in_epoch(2, lr=HANGING)[1], signal.SIGSTOP)
        (cwd / IMPATIENCE).touch()
        search.wait_for(lambda trial: trial.config["lr"] == HANGING and trial.n_starts == 2)
        (cwd / IMPATIENCE).unlink()
        first = search.ran()
        rows = {trial.config["lr"]: trial.rows for trial in search.trials().values()}
    trials = {trial["config"]["lr"]: trial for trial in parse_strictly(first.out)["trials"]}
    runs = read_offline_runs(cwd / "runs" / "disturbed")
    with running_search(*arguments, "--cpus-per-trial", "1", "--json", **where) as search:
        again = search.ran()
    return Disturbed(cwd, first, trials, rows, runs, again)


def test_search_goes_on_and_ends_with_code_1_and_the_list_of_what_failed(disturbed: Disturbed) -> None:
    assert disturbed.first.code == 1, disturbed.first.err
    assert {lr: trial["status"] for lr, trial in disturbed.trials.items()} == {
        NAN: "ERROR",
        KILLED: "TERMINATED",
        LOST: "ERROR",
        HANGING: "TERMINATED",
    }
    failed = {disturbed.trials[lr]["trial_id"]: disturbed.trials[lr]["error"] for lr in (NAN, LOST)}
    for trial_id, reason in failed.items():
        assert any(f"Trial {trial_id} failed" in line and reason in line for line in _told(disturbed))
    assert "Traceback" not in disturbed.first.err
    assert "raylet" not in disturbed.first.err


def _told(disturbed: Disturbed) -> list[str]:
    return disturbed.first.err.splitlines()


@pytest.mark.parametrize(("lr", "why"), [(KILLED, "killed, or crashed"), (HANGING, "no sign of life")])
def test_trial_that_is_tried_again_goes_on_at_the_epoch_it_had(
    lr: float, why: str, disturbed: Disturbed
) -> None:
    trial = disturbed.trials[lr]
    assert trial["epochs_trained"] <= N_EPOCHS + 1  # the last one reported may not have been kept
    (reason,) = trial["failures"]
    assert why in reason
    told = f"Note: Trial {trial['trial_id']} failed and is tried again: {reason}"
    assert told in _told(disturbed)


def test_process_that_was_killed_says_what_to_do_about_memory(disturbed: Disturbed) -> None:
    (reason,) = disturbed.trials[KILLED]["failures"]
    assert "--max-concurrent" in reason
    assert "batch_size" in reason


@pytest.mark.parametrize("lr", [KILLED, HANGING])
def test_trial_that_is_tried_again_has_the_numbers_of_an_undisturbed_one(
    lr: float, disturbed: Disturbed, hostile_path: Path
) -> None:
    bench = make_bench(disturbed.cwd / "photos", Store(hostile_path / "cache"))
    config = disturbed.trials[lr]["config"] | {"weights": str(disturbed.cwd / "own.pth")}
    reports = reports_of(bench, TrialConfig(**config))
    assert _numbers([dict(report.row) for report in reports]) == _numbers(disturbed.rows[lr])


def _numbers(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in CLOCK} for row in rows]


def test_loss_that_is_not_finite_fails_at_once_and_is_never_tried_again(disturbed: Disturbed) -> None:
    trial = disturbed.trials[NAN]
    assert trial["error"].startswith("NonFiniteLossError: epoch 1, step 2: the loss is nan")
    assert "failures" not in trial
    assert list(disturbed.trials)[-1] in (NAN, LOST)  # the leaderboard ends with what failed


def test_mistake_that_shows_only_in_a_trial_is_not_tried_again(disturbed: Disturbed) -> None:
    trial = disturbed.trials[LOST]
    (first,) = trial["failures"]
    assert "killed, or crashed" in first
    assert "own.pth" in trial["error"]
    assert "Error" not in trial["error"].split()[0]  # a sentence for people, not a Python class


def test_trial_that_is_tried_again_keeps_its_one_run(disturbed: Disturbed) -> None:
    for lr in (KILLED, HANGING):
        run = disturbed.runs[disturbed.trials[lr]["trial_id"]]
        has_charts = disturbed.trials[lr] is next(iter(disturbed.trials.values()))  # the best: a further file
        assert (run.n_files, run.exit_code) == (1 + has_charts, 0)
        assert [row["epoch"] for row in run.rows if "val_loss" in row] == list(range(1, N_EPOCHS + 1))
        assert run.summary["status"] == "TERMINATED"
    for lr in (NAN, LOST):
        run = disturbed.runs[disturbed.trials[lr]["trial_id"]]
        assert (run.exit_code, run.summary["status"]) == (1, "ERROR")


def test_same_command_tries_again_what_failed_and_nothing_else(disturbed: Disturbed) -> None:
    assert disturbed.again.code == 1, disturbed.again.err
    summary = parse_strictly(disturbed.again.out)
    after = {trial["config"]["lr"]: trial for trial in summary["trials"]}
    assert after[LOST]["status"] == "TERMINATED"  # its weights are back
    assert summary["failed"] == [after[NAN]["trial_id"]]
    assert summary["reuse"]["epochs_trained"] <= N_EPOCHS
    assert after[KILLED] == disturbed.trials[KILLED]
