"""Runs reach W&B, or the disk, whatever W&B does meanwhile; the search never waits."""

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.wandb_files import read_offline_runs
from tests.wandb_searches import (
    ALL_EPOCHS,
    CHARTS,
    EPOCHS,
    IMPATIENT,
    PREDICTED,
    RELUCTANT,
    assert_model_arrived,
    ended_record,
    epochs_of,
    make_tracker,
    report,
    report_whole,
    search_once,
    trial,
    use_server,
    wait_until,
    write_model,
)
from tests.wandb_server import WandbServer
from tune_inat.wandb_files import has_ended
from tune_inat.wandb_writer import Patience

pytest_plugins = ["tests.wandb_fixtures"]
pytestmark = pytest.mark.usefixtures("fresh_wandb")


# Online


def test_online_run_arrives_whole(tmp_path: Path, server: WandbServer) -> None:
    tracker = search_once(tmp_path, "001", "002", mode="online")
    assert [run.steps for run in server.runs.values()] == [ALL_EPOCHS] * 2
    assert {run.exit_code for run in server.runs.values()} == {0}
    assert tracker.problems == []


def test_repeated_search_online_continues_its_run(tmp_path: Path, server: WandbServer) -> None:
    first = make_tracker(tmp_path, mode="online")
    report(first, trial("001"), epochs=3)
    first.finish()
    search_once(tmp_path, "001", mode="online")
    (run,) = server.runs.values()
    assert (run.steps, run.exit_code) == (ALL_EPOCHS, 0)
    assert run.summary["val_accuracy"] == {"max": 1.0, "last": 0.8}


def test_best_trial_online_gets_its_charts_and_model(hostile_path: Path, server: WandbServer) -> None:
    tracker = search_once(hostile_path, "001", "002", mode="online")
    model = write_model(hostile_path)
    tracker.show_best(ended_record("001"), **PREDICTED, test_accuracy=0.75, model_folder=model)
    (run,) = [run for run in server.runs.values() if run.params["displayName"] == "001"]
    assert (run.steps, run.exit_code) == ([*ALL_EPOCHS, EPOCHS + 1], 0)
    assert (run.summary["test_accuracy"], run.summary["best_val_accuracy"]) == (0.75, 1.0)
    assert run.summary["epoch"] == EPOCHS
    assert set(json.loads(run.params["config"])["_wandb"]["value"]["visualize"]) == CHARTS
    assert_model_arrived(server)
    assert tracker.problems == []
    again = search_once(hostile_path, "001", mode="online")
    again.show_best(ended_record("001"), **PREDICTED)
    assert run.steps == [*ALL_EPOCHS, EPOCHS + 1]


# W&B fails


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


@pytest.fixture
def mute_url() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def assert_all_is_on_disk(folder: Path, *trial_ids: str) -> None:
    runs = read_offline_runs(folder)
    assert {name: epochs_of(run) for name, run in runs.items()} == dict.fromkeys(trial_ids, ALL_EPOCHS)
    assert {run.exit_code for run in runs.values()} == {0}
    assert not list(folder.glob("wandb/run-*"))  # what was begun online is written anew


def test_refusing_server_puts_the_search_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_server(f"http://127.0.0.1:{free_port()}", monkeypatch)
    tracker = search_once(tmp_path, "001", "002", "003", mode="online", patience=IMPATIENT)
    assert_all_is_on_disk(tmp_path, "001", "002", "003")
    assert len(tracker.problems) == 1
    assert "W&B cannot be reached" in tracker.problems[0]


def test_mute_server_puts_the_search_offline(
    tmp_path: Path, mute_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_server(mute_url, monkeypatch)
    tracker = search_once(tmp_path, "001", "002", mode="online", patience=IMPATIENT)
    assert_all_is_on_disk(tmp_path, "001", "002")
    assert len(tracker.problems) == 1


def test_server_lost_on_the_way_puts_open_runs_offline(tmp_path: Path, server: WandbServer) -> None:
    tracker = make_tracker(tmp_path, mode="online", patience=RELUCTANT)
    report_whole(tracker, "001")
    report(tracker, trial("002"), epochs=2)
    wait_until(lambda: len(server.runs) == 2)
    server.stop()
    report_whole(tracker, "002", "003")
    tracker.finish()
    runs = read_offline_runs(tmp_path)
    assert {name: epochs_of(run) for name, run in runs.items()} == dict.fromkeys(
        ["001", "002", "003"], ALL_EPOCHS
    )
    assert len(tracker.problems) == 1


def test_interrupted_run_of_a_lost_server_is_whole_on_disk(tmp_path: Path, server: WandbServer) -> None:
    tracker = make_tracker(tmp_path, mode="online", patience=RELUCTANT)
    report(tracker, trial("001"), epochs=2)
    wait_until(lambda: server.runs)
    server.stop()
    tracker.finish()
    run = read_offline_runs(tmp_path)["001"]
    assert (epochs_of(run), run.exit_code) == ([1, 2], 255)
    assert not list(tmp_path.glob("wandb/run-*"))


def test_server_lost_before_the_best_trial_leaves_its_charts_on_disk(
    tmp_path: Path, server: WandbServer
) -> None:
    tracker = search_once(tmp_path, "001", mode="online", patience=RELUCTANT)
    server.stop()
    tracker.show_best(ended_record("001"), **PREDICTED, model_folder=write_model(tmp_path))
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert has_ended(file)
    assert set(read_offline_runs(tmp_path)["001"].config["_wandb"]["visualize"]) == CHARTS
    assert len(tracker.problems) == 1
    assert "W&B cannot be reached" in tracker.problems[0]


def test_search_that_went_offline_does_not_try_again_for_its_best_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_server(f"http://127.0.0.1:{free_port()}", monkeypatch)
    tracker = search_once(tmp_path, "001", mode="online", patience=IMPATIENT)
    tracker.show_best(ended_record("001"), **PREDICTED)
    assert len(tracker.problems) == 1
    assert set(read_offline_runs(tmp_path)["001"].config["_wandb"]["visualize"]) == CHARTS


def test_hooks_do_not_wait_for_the_server(
    tmp_path: Path, mute_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_server(mute_url, monkeypatch)
    tracker = make_tracker(tmp_path, mode="online", patience=Patience(opening=8.0, end=60.0))
    report_whole(tracker, *(f"{index:03d}" for index in range(20)))
    assert not tracker.problems  # else the server's silence would have been noticed by now
    tracker.finish()
    assert len(tracker.problems) == 1


def test_interrupted_search_does_not_wait_for_the_server(
    tmp_path: Path, mute_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_server(mute_url, monkeypatch)
    tracker = make_tracker(tmp_path, mode="online", patience=Patience(opening=6.0, interrupted=0.1))
    report(tracker, trial("001"), epochs=2)
    wait_until(lambda: list(tmp_path.glob("wandb/run-*")))
    tracker.finish()
    assert "did not close all runs in time" in tracker.problems[-1]
    tracker.finish()


def kill_wandb_core() -> None:
    own = subprocess.run(
        ["pgrep", "-P", str(os.getpid()), "wandb-core"], capture_output=True, text=True, check=True
    )
    (pid,) = own.stdout.split()
    os.kill(int(pid), 9)


def test_killed_wandb_process_costs_no_row(tmp_path: Path) -> None:
    tracker = make_tracker(tmp_path)
    report_whole(tracker, "001")
    report(tracker, trial("002"), epochs=3)
    report(tracker, trial("003"), epochs=1)
    wait_until(lambda: len(list(tmp_path.glob("wandb/*/*.wandb"))) == 3)
    kill_wandb_core()
    report_whole(tracker, "002", "003", "004")
    tracker.finish()
    assert_all_is_on_disk(tmp_path, "001", "002", "003", "004")
    assert ["was started anew" in problem for problem in tracker.problems] == [True]


def test_folder_that_cannot_be_written_ends_wandb_not_the_search(tmp_path: Path) -> None:
    (tmp_path / "wandb").write_text("a file where the folder should be")
    tracker = search_once(tmp_path, "001", "002")
    assert "nothing more is written" in tracker.problems[-1]
