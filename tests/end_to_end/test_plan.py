"""`--dry-run`: the plan of a search, before it and when it is done, and that it comes true."""

from pathlib import Path

import pytest

from tests.benches import write_images
from tests.end_to_end.command import run, run_python

pytestmark = pytest.mark.end_to_end

SWEEP = """
method: {method}
metric: {{name: val_accuracy, goal: maximize}}
run_cap: 4
parameters:
  freeze: {{values: [0.9, 1.0]}}
  epochs: {{values: [1, 2]}}
  batch_size: {{value: 8}}
  image_size: {{value: 32}}
  model: {{value: timm/resnet10t.c3_in1k}}
  weights: {{value: none}}
"""


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SWEEP.format(method="grid"))
    return path


def test_the_plan_comes_true(tmp_path: Path, own_cache: Path, sweep: Path) -> None:
    photos = write_images(tmp_path / "photos")
    command = ("search", "--space", sweep, "--data", photos, "--json", "--wandb", "disabled")
    dry = run(*command, "--dry-run", cwd=tmp_path, cache=own_cache)
    assert dry.code == 0, dry.err
    plan = dry.json()
    assert not (tmp_path / "runs").exists()
    assert (plan["n_trials"], plan["n_families"]) == (4, 2)
    assert (plan["epochs_asked"], plan["epochs_to_train"]) == (6, 4)
    n_images = plan["pixels"][0]["n_to_decode"]
    assert n_images == len(list(photos.rglob("*.png")))

    done = run(*command, cwd=tmp_path, cache=own_cache)
    assert done.code == 0, done.err
    summary = done.json()
    assert summary["reuse"]["epochs_trained"] == summary["planned"]["epochs"] == plan["epochs_to_train"]
    assert summary["reuse"]["pixels_decoded"] == n_images
    assert summary["reuse"]["prefix_images"] == sum(cut["n_images"] for cut in plan["cuts"])
    assert summary["measured"]["bytes"] <= 1.1 * summary["planned"]["bytes"] + n_images * 3 * 32**2 + 100_000
    assert summary["planned"]["seconds"] > 0

    after = run(*command, "--dry-run", cwd=tmp_path, cache=own_cache).json()
    assert (after["n_trials"], after["n_finished"], after["epochs_to_train"]) == (4, 4, 0)
    assert after["disk"]["activations"] == 0


def test_the_plan_is_a_table_for_people(tmp_path: Path, own_cache: Path, sweep: Path) -> None:
    sweep.write_text(SWEEP.format(method="bayes"))
    photos = write_images(tmp_path / "photos")
    dry = run("search", "--space", sweep, "--data", photos, "--dry-run", cwd=tmp_path, cache=own_cache)
    assert dry.code == 0, dry.err
    assert "like so many random ones" in dry.out
    assert f"python -m tune_inat.data {photos}" in dry.err  # says which images cannot be read
    for word in ("read at", "to decode", "time: training", "memory: trial", "disk: states", "at most"):
        assert word in dry.out


def test_mistakes_end_a_dry_run_as_they_end_a_search(tmp_path: Path, own_cache: Path, sweep: Path) -> None:
    photos = write_images(tmp_path / "photos")
    asked = ("--space", sweep, "--data", photos, "--dry-run", "--cpus-per-trial", "4000")
    dry = run("search", *asked, cwd=tmp_path, cache=own_cache)
    assert dry.code == 2
    assert "--cpus-per-trial 4000" in dry.err


NOTEBOOK = """
from tune_inat import search

result = search("small.yaml", data="photos", wandb="disabled")
assert len(result.trials) == 4
assert result.load_model().config.classes == ("blue", "green", "red")
print(result.best["val_accuracy"], search.plan_search("small.yaml", data="photos")["epochs_to_train"])
"""


@pytest.mark.usefixtures("sweep")
def test_a_notebook_calls_what_it_imports(tmp_path: Path, own_cache: Path) -> None:
    write_images(tmp_path / "photos")
    ran = run_python("-c", NOTEBOOK, cwd=tmp_path, cache=own_cache)
    assert ran.code == 0, ran.err
    accuracy, left = ran.out.split()[-2:]
    assert 0 < float(accuracy) <= 1
    assert left == "0"
