"""Reuse changes no number of a search, and neither the course that Optuna and ASHA take by its numbers."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.benches import write_images
from tests.end_to_end.command import run
from tune_inat.ledger import Ledger, TrialRecord

pytestmark = pytest.mark.end_to_end

SETTINGS = ("--model", "timm/resnet10t.c3_in1k", "--weights", "none", "--image-size", "32")
BAYES = """
method: bayes
metric: {name: val_loss, goal: minimize}
run_cap: 4
early_terminate: {type: hyperband, min_iter: 1, eta: 2}
parameters:
  freeze: {values: [0.5, 0.9, 1.0]}
  epochs: {value: 2}
  batch_size: {value: 8}
  lr: {distribution: log_uniform_values, min: 1e-4, max: 1e-2}
"""
RANDOM = """
method: random
metric: {name: val_loss, goal: minimize}
run_cap: 3
parameters:
  freeze: {values: [0.5, 1.0]}
  epochs: {values: [1, 2]}
  lr: {values: [0.001, 0.003]}
  batch_size: {value: 8}
"""
GRID = """
method: grid
metric: {name: val_loss, goal: minimize}
parameters:
  freeze: {values: [0.5, 1.0]}
  epochs: {values: [1, 2]}
  lr: {values: [0.001, 0.003]}
  batch_size: {value: 8}
"""
CLOCK = ("images_per_second", "train_seconds", "epoch_seconds")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "photos")


def search(text: str, *arguments: str, photos: Path, cwd: Path, cache: Path) -> Any:
    """The summary of a search, one trial after another."""
    cwd.mkdir(exist_ok=True)
    (cwd / "space.yaml").write_text(text)
    # Threads are chosen by timing where nobody says, and sums are rounded by threads.
    one_by_one = ("--max-concurrent", "1", "--cpus-per-trial", "1", "--precision", "fp32")
    options = (*SETTINGS, *one_by_one, "--wandb", "disabled", "--json", *arguments)
    ran = run("search", "--space", "space.yaml", "--data", photos, *options, cwd=cwd, cache=cache)
    assert ran.code == 0, ran.err
    return ran.json()


def trials_in_order(cwd: Path) -> list[TrialRecord]:
    """What the journal of the only search in a folder says, trial by trial as they were proposed."""
    (folder,) = (cwd / "runs").iterdir()
    return list(Ledger(folder).records().values())


def numbers_of(trial: TrialRecord) -> list[dict[str, float]]:
    """What a trial's epochs came to, without what was measured by the clock."""
    return [{name: value for name, value in row.items() if name not in CLOCK} for row in trial.rows]


def test_optuna_and_asha_take_the_same_course_without_reuse(photos: Path, tmp_path: Path) -> None:
    courses = {}
    for option in ("--reuse", "--no-reuse"):
        cwd = tmp_path / option
        summary = search(BAYES, option, "--seed", "3", photos=photos, cwd=cwd, cache=tmp_path / f"of{option}")
        courses[option] = trials_in_order(cwd)
        assert (summary["reuse"]["prefix_images"] > 0) == (option == "--reuse")
    shared, plain = courses.values()
    assert len(shared) == 4
    assert [trial.config for trial in shared] == [trial.config for trial in plain]
    assert [trial.status for trial in shared] == [trial.status for trial in plain]
    assert {trial.status for trial in shared} == {"TERMINATED", "STOPPED"}
    assert [numbers_of(trial) for trial in shared] == [numbers_of(trial) for trial in plain]


def test_search_takes_what_another_one_left(photos: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    search(RANDOM, "--seed", "3", photos=photos, cwd=tmp_path / "random", cache=cache)
    search(GRID, "--seed", "3", photos=photos, cwd=tmp_path / "grid", cache=cache)
    left = {json.dumps(trial.config): trial for trial in trials_in_order(tmp_path / "random")}
    asked = {json.dumps(trial.config): trial for trial in trials_in_order(tmp_path / "grid")}
    assert len(left) == 3
    assert len(asked) == 8
    assert left.keys() <= asked.keys()
    for config, known in left.items():
        assert asked[config].epochs_trained == 0
        assert asked[config].rows == known.rows  # to the last bit, and the clock's numbers as well
    assert sum(trial.epochs_trained for trial in asked.values()) > 0
