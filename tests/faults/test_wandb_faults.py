"""Whatever happens to W&B: the same results and exit code, whole files, and one sentence that says why."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.benches import write_images
from tests.end_to_end.command import Ran, run
from tests.slow import slow
from tests.wandb_files import read_offline_runs
from tests.wandb_searches import ALL_EPOCHS, RELUCTANT, epochs_of, search_once, use_server
from tests.wandb_server import API_KEY, WandbServer
from tune_inat.leaderboard import read_summary
from tune_inat.wandb_files import has_ended
from tune_inat.wandb_writer import Patience

pytest_plugins = ["tests.wandb_fixtures"]
TRIALS = [f"{number:03d}" for number in range(6)]


def assert_all_is_kept(folder: Path) -> None:
    """Every row of every trial is on disk, in files that can be read to their end."""
    runs = read_offline_runs(folder)
    assert {name: epochs_of(run) for name, run in runs.items()} == dict.fromkeys(TRIALS, ALL_EPOCHS)
    assert all(has_ended(path) for path in folder.glob("wandb/offline-run-*/*.wandb"))


# The writer against servers that fail


@pytest.mark.usefixtures("fresh_wandb")
@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        (401, r"W&B refuses the API key .*401.*`wandb sync` sends them\. `wandb login`"),
        (403, r"W&B refuses .*403.*an account that may write to birds\?"),
        (500, r"W&B cannot be reached .*`wandb sync` sends them\."),
    ],
)
def test_refusal_puts_the_search_offline_and_says_what_to_do(
    tmp_path: Path, refusal: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with WandbServer(refusal=refusal) as server:
        use_server(server.url, monkeypatch)
        tracker = search_once(tmp_path, *TRIALS, mode="online", patience=RELUCTANT)
    assert_all_is_kept(tmp_path)
    (problem,) = tracker.problems
    assert re.search(said, problem)


@pytest.mark.usefixtures("fresh_wandb")
def test_slow_server_gets_what_it_can_take_and_the_disk_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patience = Patience(opening=10, closing=10, end=60, brisk=0.5, behind=0.5)
    with WandbServer(delay=0.3) as server:
        use_server(server.url, monkeypatch)
        tracker = search_once(tmp_path, *TRIALS, mode="online", patience=patience)
    sent = {run.params["displayName"]: run.steps for run in server.runs.values()}
    kept = {name: epochs_of(run) for name, run in read_offline_runs(tmp_path).items()}
    assert 1 <= len(sent) < len(TRIALS)
    assert {**kept, **sent} == dict.fromkeys(TRIALS, ALL_EPOCHS)
    (problem,) = tracker.problems
    assert "W&B is slower than the search" in problem
    assert "`wandb sync`" in problem


@contextmanager
def full_disk(folder: Path, size: str) -> Iterator[None]:
    """A small disk of its own on a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"a disk to fill cannot be mounted: {mounted.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)  # W&B's process may hold its log open


@pytest.mark.usefixtures("fresh_wandb")
def test_full_disk_is_said_with_what_is_missing_and_leaves_only_whole_files(tmp_path: Path) -> None:
    with full_disk(tmp_path / "wandb", "40k"):
        tracker = search_once(tmp_path, *TRIALS)
        files = [*tmp_path.glob("wandb/*/*.wandb")]
        assert 1 <= len(files) < len(TRIALS)
        assert all(has_ended(path) for path in files)
    (problem,) = tracker.problems
    assert f"W&B: {len(TRIALS) - len(files)} run" in problem
    assert "is full; trials.csv and report.html have their results. Make room" in problem


# Whole searches

SWEEP = """
method: grid
parameters:
  model: {value: resnet18}
  weights: {value: none}
  image_size: {value: 32}
  batch_size: {value: 8}
  epochs: {values: [1, 2]}
  lr: {values: LR}
"""


def search(folder: Path, name: str, *arguments: str, rates: str = "[1e-3, 1e-4]", **environment: str) -> Ran:
    """A search on a few coloured images; all searches of a folder share their work."""
    (folder / "tiny.yaml").write_text(SWEEP.replace("LR", rates))
    fixed = (
        "--space",
        "tiny.yaml",
        "--data",
        "photos",
        "--name",
        name,
        "--max-concurrent",
        "1",
        "--precision",
        "fp32",
    )
    return run("search", *fixed, *arguments, cwd=folder, cache=folder / "cache", environment=environment)


def results(folder: Path, name: str) -> dict[str, Any]:
    """What a search has found, without times and what was done for it."""
    summary = read_summary(folder / "runs" / name)
    assert summary is not None
    told = ("trial_id", "config", "status", "epochs", "val_accuracy", "val_loss", "best_epoch")
    trials = {trial["trial_id"]: {key: trial[key] for key in told} for trial in summary["trials"]}
    return {"status": summary["status"], "best": summary["best"], "trials": trials}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a search without W&B."""
    folder = tmp_path_factory.mktemp("searches")
    write_images(folder / "photos")
    ran = search(folder, "undisturbed", "--wandb", "disabled")
    assert ran.code == 0, ran.err
    return folder


@pytest.fixture(scope="module")
def refused(undisturbed: Path) -> Ran:
    """A search of half of the trials, online."""
    with WandbServer(refusal=403) as server:
        online = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": API_KEY}
        return search(undisturbed, "disturbed", "--wandb", "online", rates="[1e-3]", **online)


@pytest.mark.end_to_end
@slow
def test_search_that_w_and_b_refuses_has_the_same_results(undisturbed: Path, refused: Ran) -> None:
    assert refused.code == 0, refused.err
    assert refused.err.count("W&B refuses") == 1
    assert "W&B:    wandb sync runs/disturbed/wandb" in refused.out
    trials = results(undisturbed, "disturbed")["trials"]
    assert trials.items() <= results(undisturbed, "undisturbed")["trials"].items()
    runs = read_offline_runs(undisturbed / "runs" / "disturbed")
    assert set(runs) == set(trials)
    assert all(len(epochs_of(run)) >= trials[name]["epochs"] for name, run in runs.items())
    assert all(run.exit_code == 0 for run in runs.values())


@pytest.mark.end_to_end
@pytest.mark.usefixtures("refused")
@slow
def test_search_whose_w_and_b_disk_is_full_has_the_same_results(undisturbed: Path) -> None:
    with full_disk(undisturbed / "runs" / "disturbed" / "wandb", "8k"):
        ran = search(undisturbed, "disturbed", "--wandb", "offline")
    assert ran.code == 0, ran.err
    assert "is full" in ran.err
    assert "Make room there." in ran.err
    assert results(undisturbed, "disturbed") == results(undisturbed, "undisturbed")
