"""The main job on the real sample: a search through Ray Tune, and all that it leaves."""

import csv
import json
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest

from tests.end_to_end.command import Ran, run
from tests.slow import slow
from tests.wandb_files import read_offline_runs
from tune_inat.runs import STUDY_FILE, kept_cpus
from tune_inat.searchers import name_study, open_study_storage
from tune_inat.space import load_space

pytestmark = pytest.mark.end_to_end

# Two families of two trials: 1 and 2 epochs at each freezing. So 6 epochs are asked for and 4 trained.
GRID = """
method: grid
metric: {name: Val Accuracy, goal: maximize}
parameters:
  freeze: {values: [0.9, 1.0]}
  epochs: {values: [1, 2]}
  batch_size: {value: 64}
  image_size: {value: 32}
"""
BAYES = """
method: bayes
metric: {name: val_accuracy, goal: maximize}
run_cap: 5
early_terminate: {type: hyperband, min_iter: 1, eta: 2}
parameters:
  freeze: {values: [0.9, 1.0]}
  epochs: {value: 3}
  batch_size: {value: 128}
  image_size: {value: 32}
  lr: {distribution: log_uniform_values, min: 1e-5, max: 1e-2}
"""


@dataclass(frozen=True)
class Search:
    """A search that has run, and where."""

    ran: Ran
    cwd: Path
    cache: Path
    sweep: Path

    @property
    def folder(self) -> Path:
        """The search's folder."""
        return self.cwd / "runs" / f"{self.sweep.stem}-sample"

    @property
    def summary(self) -> dict[str, Any]:
        """Its summary."""
        summary: dict[str, Any] = json.loads((self.folder / "summary.json").read_text())
        return summary

    def again(self, *arguments: str) -> Ran:
        """The same command, with more arguments."""
        return run("search", "--space", self.sweep, *arguments, cwd=self.cwd, cache=self.cache)


def search(tmp_path_factory: pytest.TempPathFactory, name: str, text: str, *arguments: str) -> Search:
    cwd = tmp_path_factory.mktemp('it\'s a "Wald" mit Bäumen')
    cache = tmp_path_factory.mktemp("cache")
    sweep = cwd / f"{name}.yaml"
    sweep.write_text(text)
    ran = run("search", "--space", sweep, *arguments, cwd=cwd, cache=cache)
    assert ran.code == 0, ran.err
    return Search(ran, cwd, cache, sweep)


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Search:
    return search(tmp_path_factory, "small", GRID)


@pytest.fixture(scope="module")
def bayes(tmp_path_factory: pytest.TempPathFactory) -> Search:
    return search(tmp_path_factory, "bayes", BAYES)


def rows_by_config(summary: dict[str, Any]) -> dict[str, tuple[float, ...]]:
    names = ("val_accuracy", "val_loss", "val_macro_f1", "val_balanced_accuracy", "val_ece", "best_epoch")
    return {json.dumps(trial["config"]): tuple(trial[name] for name in names) for trial in summary["trials"]}


def test_every_trial_of_the_grid_ends_and_learns(grid: Search) -> None:
    trials = grid.summary["trials"]
    asked = sorted((trial["config"]["freeze"], trial["config"]["epochs"]) for trial in trials)
    assert asked == [(0.9, 1), (0.9, 2), (1.0, 1), (1.0, 2)]
    assert {trial["status"] for trial in trials} == {"TERMINATED"}
    assert all(trial["epochs"] == trial["config"]["epochs"] for trial in trials)
    assert all(trial["val_accuracy"] > 0.5 for trial in trials)  # of ten classes
    best = grid.summary["best"]
    assert best["val_accuracy"] == max(trial["val_accuracy"] for trial in trials)
    assert best["test_interval"][0] < best["test_accuracy"] < best["test_interval"][1]


def test_what_was_done_is_said_of_each_trial(grid: Search) -> None:
    for trial in grid.summary["trials"]:
        did = trial["did"]
        n_epochs = trial["config"]["epochs"]
        assert did["steps"] == 18 * n_epochs  # 1,150 training images in batches of 64
        assert did["peak_lr"] == 1e-3
        is_probe = trial["config"]["freeze"] == 1.0
        assert (did["trainable_tensors"] == 2) == is_probe  # the head's weight and bias
        assert did["cut"]
        assert did["ran_on"] == [[f"{socket.gethostname()} cpu", n_epochs]]


def test_shared_epochs_are_trained_once(grid: Search) -> None:
    assert grid.summary["reuse"]["epochs_asked"] == 6
    assert grid.summary["reuse"]["epochs_trained"] == 4
    assert sum(trial["epochs_trained"] for trial in grid.summary["trials"]) == 4


def test_leaderboard_file_agrees_with_the_summary(grid: Search) -> None:
    with (grid.folder / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["trial_id"] for row in rows] == [trial["trial_id"] for trial in grid.summary["trials"]]
    assert [float(row["val_loss"]) for row in rows] == [trial["val_loss"] for trial in grid.summary["trials"]]
    accuracies = [float(row["val_accuracy"]) for row in rows]
    assert accuracies == sorted(accuracies, reverse=True)


def test_wandb_has_every_trial_every_epoch_and_every_number(grid: Search) -> None:
    runs = read_offline_runs(grid.folder)
    assert sorted(runs) == sorted(trial["trial_id"] for trial in grid.summary["trials"])
    for trial in grid.summary["trials"]:
        run_of_trial = runs[trial["trial_id"]]
        rows = run_of_trial.rows[: trial["epochs"]]  # the best one has its charts after these
        assert [row["epoch"] for row in rows] == list(range(1, trial["epochs"] + 1))
        best = run_of_trial.rows[trial["best_epoch"] - 1]
        for name in ("val_accuracy", "val_loss", "val_macro_f1", "val_balanced_accuracy", "val_ece"):
            assert best[name] == trial[name]
        assert run_of_trial.config["freeze"] == trial["config"]["freeze"]
        assert run_of_trial.exit_code == 0


def test_terminal_says_what_it_does_and_nothing_of_ray(grid: Search) -> None:
    assert "4 trials" in grid.ran.err
    assert "wandb sync" in grid.ran.out
    assert "python -m tune_inat.predict" in grid.ran.out
    for noise in ("ray", "Traceback", "Warning", "WARN"):
        assert noise not in grid.ran.err.replace(str(grid.cwd), "")


def test_same_command_again_trains_nothing_and_leaves_the_same_table(grid: Search) -> None:
    table = (grid.folder / "trials.csv").read_bytes()
    before = grid.summary
    ran = grid.again("--json")
    assert ran.code == 0, ran.err
    assert (grid.folder / "trials.csv").read_bytes() == table
    again = ran.json()
    assert again["reuse"] | {"epochs_asked": 6} == {
        "epochs_asked": 6,
        "epochs_trained": 0,
        "prefix_images": 0,
        "pixels_decoded": 0,
    }
    assert again["trials"] == before["trials"]
    assert again["best"] == before["best"]


def test_predict_names_a_class_for_each_image(grid: Search) -> None:
    images = sorted((grid.cache).rglob("*.png"))[::90]
    ran = run("predict", grid.folder, *images, cwd=grid.cwd, cache=grid.cache)
    assert ran.code == 0, ran.err
    rows = list(csv.DictReader(ran.out.splitlines()))
    assert [row["file"] for row in rows] == [str(image) for image in images]
    right = [row["class"] == image.parent.name for row, image in zip(rows, images, strict=True)]
    assert sum(right) > 0.8 * len(images)
    assert all(0.1 <= float(row["probability"]) <= 1 for row in rows)


def test_predict_reports_what_it_cannot_read_and_does_the_rest(grid: Search) -> None:
    broken = grid.cwd / "broken.png"
    broken.write_bytes(b"no image")
    image = min(grid.cache.rglob("*.png"))
    ran = run("predict", grid.folder, broken, image, "--json", "--top", "3", cwd=grid.cwd, cache=grid.cache)
    assert ran.code == 1
    assert "broken.png" in ran.err
    (prediction,) = ran.json()
    assert prediction["file"] == str(image)
    assert len(prediction["predictions"]) == 3


def test_no_reuse_gives_the_same_numbers(grid: Search) -> None:
    ran = grid.again("--no-reuse", "--name", "plain", "--json", "--wandb", "disabled")
    assert ran.code == 0, ran.err
    plain = ran.json()
    assert plain["reuse"]["epochs_trained"] == 6
    assert rows_by_config(plain) == rows_by_config(grid.summary)
    assert plain["best"] == grid.summary["best"]
    threads = {trial["did"]["threads"] for trial in (*plain["trials"], *grid.summary["trials"])}
    assert threads == {kept_cpus(grid.folder)}


def test_optuna_search_keeps_its_study_and_stops_trials_early(bayes: Search) -> None:
    name = name_study("bayes-sample", load_space(str(bayes.sweep)))
    study = optuna.load_study(study_name=name, storage=open_study_storage(bayes.folder / STUDY_FILE))
    trials = bayes.summary["trials"]
    assert len(trials) == len(study.trials) == 5
    values = sorted(trial.value for trial in study.trials if trial.value is not None)
    assert values == sorted(trial["val_accuracy"] for trial in trials)
    assert {trial["status"] for trial in trials} <= {"TERMINATED", "STOPPED"}
    assert any(trial["status"] == "STOPPED" for trial in trials)
    assert all(trial["epochs"] == 3 for trial in trials if trial["status"] == "TERMINATED")


@slow
def test_longer_optuna_search_adds_trials_to_the_study(bayes: Search) -> None:
    before = {trial["trial_id"]: trial for trial in bayes.summary["trials"]}
    ran = bayes.again("--trials", "6", "--json")
    assert ran.code == 0, ran.err
    after = {trial["trial_id"]: trial for trial in ran.json()["trials"]}
    assert len(after) == 6
    assert {key: after[key] for key in before} == before
