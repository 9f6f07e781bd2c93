"""What waits on disk is found, can be sent with the printed line, and arrives whole and once."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.wandb_files import read_offline_runs
from tests.wandb_searches import (
    ALL_EPOCHS,
    CHARTS,
    EPOCHS,
    PREDICTED,
    assert_model_arrived,
    ended_record,
    epochs_of,
    make_tracker,
    report,
    search_once,
    trial,
    write_model,
)
from tests.wandb_server import WandbServer
from tune_inat.wandb_files import sync_line

pytest_plugins = ["tests.wandb_fixtures"]
pytestmark = pytest.mark.usefixtures("fresh_wandb")


@pytest.mark.parametrize("n_bytes", [0, 7, 100, -1])
def test_file_that_cannot_be_sent_is_replaced_by_a_whole_one(tmp_path: Path, n_bytes: int) -> None:
    search_once(tmp_path, "001")
    (file,) = tmp_path.glob("wandb/*/*.wandb")
    file.write_bytes(file.read_bytes()[:n_bytes])
    search_once(tmp_path, "001")
    run = read_offline_runs(tmp_path)["001"]
    assert (run.n_files, epochs_of(run), run.exit_code) == (1, ALL_EPOCHS, 0)


# Sending what is offline: W&B's own reader


def sync(line: str, folder: Path) -> None:
    """Run the printed command as a user would."""
    command = shlex.split(line)
    command[0] = str(Path(sys.executable).with_name(command[0]))
    subprocess.run(command, check=True, capture_output=True, timeout=60, cwd=folder)


def test_printed_line_sends_every_row_of_every_run(hostile_path: Path, server: WandbServer) -> None:
    search_once(hostile_path, "001", "002")
    line = sync_line(hostile_path)
    assert line is not None
    sync(line, hostile_path)
    offline = read_offline_runs(hostile_path)
    assert {run_id: list(run.rows.values()) for run_id, run in server.runs.items()} == {
        run.id: run.rows for run in offline.values()
    }
    assert sync_line(hostile_path) is None


@pytest.mark.parametrize("is_sent_before", [True, False], ids=["sent-before", "sent-at-the-end"])
def test_continued_run_has_each_step_once_on_the_server(
    tmp_path: Path, server: WandbServer, is_sent_before: bool
) -> None:
    first = make_tracker(tmp_path)
    report(first, trial("001"), epochs=3)
    first.finish()
    if is_sent_before:
        sync("wandb sync wandb", tmp_path)
    search_once(tmp_path, "001")
    sync("wandb sync wandb", tmp_path)
    (run,) = server.runs.values()
    assert run.steps == ALL_EPOCHS
    assert (run.exit_code, run.summary["val_accuracy"]["max"]) == (0, 1.0)


def test_printed_line_sends_charts_and_model_of_the_best_trial(
    hostile_path: Path, server: WandbServer
) -> None:
    tracker = search_once(hostile_path, "001")
    tracker.show_best(ended_record("001"), **PREDICTED, model_folder=write_model(hostile_path))
    line = sync_line(hostile_path)
    assert line is not None
    sync(line, hostile_path)
    (run,) = server.runs.values()
    assert (run.steps, run.exit_code) == ([*ALL_EPOCHS, EPOCHS + 1], 0)
    assert run.summary["val_accuracy"] == {"max": 1.0, "last": 0.8}
    assert set(json.loads(run.params["config"])["_wandb"]["value"]["visualize"]) == CHARTS
    assert_model_arrived(server)


def test_no_line_is_printed_when_nothing_waits(tmp_path: Path) -> None:
    assert sync_line(tmp_path) is None


def test_run_that_waits_on_disk_is_not_continued_online(tmp_path: Path, server: WandbServer) -> None:
    first = make_tracker(tmp_path)
    report(first, trial("001"), epochs=3)
    first.finish()
    search_once(tmp_path, "001", "002", mode="online")
    assert len(server.runs) == 1  # 002
    sync("wandb sync wandb", tmp_path)
    assert [run.steps for run in server.runs.values()] == [ALL_EPOCHS] * 2
