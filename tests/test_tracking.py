"""Runs reach W&B's files, or its server, whole and once, whatever W&B does meanwhile."""

import logging
import math
import os
import pickle
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb

from tests.wandb_files import OfflineRun, read_offline_runs
from tests.wandb_server import API_KEY, WandbServer
from tune_inat.tracking import Mode, WandbTracker, resolve_mode
from tune_inat.wandb_files import sync_line
from tune_inat.wandb_writer import Patience

EPOCHS = 5
IMPATIENT = Patience(opening=1.0, closing=1.0, end=10.0, interrupted=3.0)


@pytest.fixture(autouse=True)
def fresh_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """W&B as on a machine that has never seen it; its process ends after the test."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "no-config"))
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    with WandbServer() as running:
        use_server(running.url, monkeypatch)
        yield running


def use_server(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", url)
    monkeypatch.setenv("WANDB_API_KEY", API_KEY)


def make_tracker(folder: Path, mode: Any = "offline", **settings: Any) -> WandbTracker:
    known: dict[str, Any] = {"project": "birds", "group": "a search", "patience": IMPATIENT} | settings
    tracker = WandbTracker(folder=folder, mode=mode, **known)
    tracker.setup()
    return tracker


def trial(trial_id: str, **params: Any) -> Any:
    return SimpleNamespace(config={"trial_id": trial_id, "params": {"epochs": EPOCHS, "lr": 0.01} | params})


def row(epoch: int, **numbers: Any) -> dict[str, Any]:
    return {"epoch": epoch, "val_accuracy": 1 - abs(epoch - 3) / 10, "val_loss": 1 / epoch} | numbers


def report(tracker: WandbTracker, of: Any, epochs: int = EPOCHS) -> None:
    tracker.log_trial_start(of)
    for epoch in range(1, epochs + 1):
        tracker.log_trial_result(epoch, of, row(epoch))


def report_whole(tracker: WandbTracker, *trial_ids: str) -> None:
    for trial_id in trial_ids:
        report(tracker, trial(trial_id))
        tracker.log_trial_end(trial(trial_id))


def search_once(folder: Path, *trial_ids: str, **settings: Any) -> WandbTracker:
    tracker = make_tracker(folder, **settings)
    report_whole(tracker, *trial_ids)
    tracker.finish()
    return tracker


def epochs_of(run: OfflineRun) -> list[int]:
    return [found["_step"] for found in run.rows]


def numbers_of(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if not name.startswith("_")}


ALL_EPOCHS = [1, 2, 3, 4, 5]


# What a run holds


def test_row_holds_our_numbers_and_none_of_rays(tmp_path: Path) -> None:
    tracker = make_tracker(tmp_path)
    tracker.log_trial_start(trial("001"))
    tracker.log_trial_result(
        1, trial("001"), row(1, pid=7, hostname="here", time_this_iter_s=1.5, done=False)
    )
    tracker.finish()
    assert [numbers_of(found) for found in read_offline_runs(tmp_path)["001"].rows] == [row(1)]


def test_config_holds_the_parameters_and_the_searchs_settings(tmp_path: Path) -> None:
    search_once(tmp_path, "001", run_config={"search": {"method": "grid"}})
    config = read_offline_runs(tmp_path)["001"].config
    assert config.pop("_wandb")
    assert config == {"epochs": EPOCHS, "lr": 0.01, "search": {"method": "grid"}}


def test_run_is_named_by_its_id_and_what_varies(tmp_path: Path) -> None:
    search_once(tmp_path, "001", varied=["lr"])
    assert read_offline_runs(tmp_path)["001"].name == "001 lr=0.01"


def test_metrics_are_plotted_over_epochs(tmp_path: Path) -> None:
    search_once(tmp_path, "001")
    axes = read_offline_runs(tmp_path)["001"].x_axes
    assert axes["*"] == "epoch"
    assert set(axes.values()) == {"epoch"}


def test_summary_has_the_best_and_the_last_value(tmp_path: Path) -> None:
    search_once(tmp_path, "001")
    summary = read_offline_runs(tmp_path)["001"].summary
    assert summary["val_accuracy"] == {"max": 1.0, "last": 0.8}
    assert summary["val_loss"] == {"min": 0.2, "last": 0.2}


def test_best_value_is_a_number_after_a_nan(tmp_path: Path) -> None:
    tracker = make_tracker(tmp_path)
    tracker.log_trial_start(trial("001"))
    for epoch, loss in enumerate([0.5, math.nan], start=1):
        tracker.log_trial_result(epoch, trial("001"), row(epoch, val_loss=loss))
    tracker.log_trial_end(trial("001"), failed=True)
    tracker.finish()
    assert read_offline_runs(tmp_path)["001"].summary["val_loss"]["min"] == 0.5


@pytest.mark.parametrize(
    ("epochs", "failed", "ends", "exit_code", "status"),
    [
        (5, False, True, 0, "TERMINATED"),
        (2, False, True, 0, "STOPPED"),
        (2, True, True, 1, "ERROR"),
        (2, False, False, 255, "INTERRUPTED"),
    ],
)
def test_run_says_how_its_trial_ended(
    tmp_path: Path, epochs: int, failed: bool, ends: bool, exit_code: int, status: str
) -> None:
    tracker = make_tracker(tmp_path, tags=["mine"])
    report(tracker, trial("001"), epochs)
    if ends:
        tracker.log_trial_end(trial("001"), failed=failed)
    tracker.finish()
    run = read_offline_runs(tmp_path)["001"]
    assert (run.exit_code, run.tags) == (exit_code, ("mine", status))
    assert run.summary["stopped_early"] is (status == "STOPPED")


def test_files_say_nothing_about_the_machine(tmp_path: Path) -> None:
    search_once(tmp_path, "001")
    (file,) = tmp_path.glob("wandb/*/*.wandb")
    assert read_offline_runs(tmp_path)["001"].host == ""
    assert str(tmp_path).encode() not in file.read_bytes()
    assert not list(file.parent.glob("files/*"))  # requirements.txt, wandb-metadata.json


def test_key_is_in_no_file(tmp_path: Path, server: WandbServer) -> None:
    search_once(tmp_path, "001", mode="online")
    search_once(tmp_path, "002")
    assert server.runs
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 4
    assert not [path for path in files if API_KEY.encode() in path.read_bytes()]


def test_folder_of_any_name_holds_the_runs(hostile_path: Path) -> None:
    search_once(hostile_path, "001")
    assert epochs_of(read_offline_runs(hostile_path)["001"]) == ALL_EPOCHS


# A search that is started again


def test_repeated_search_writes_nothing(tmp_path: Path) -> None:
    search_once(tmp_path, "001", "002")
    before = sorted(tmp_path.rglob("*"))
    search_once(tmp_path, "001", "002")
    assert sorted(tmp_path.rglob("*")) == before


def test_repeated_search_continues_interrupted_run_with_new_rows_only(tmp_path: Path) -> None:
    first = make_tracker(tmp_path)
    report(first, trial("001"), epochs=3)
    first.finish()
    search_once(tmp_path, "001")
    run = read_offline_runs(tmp_path)["001"]
    assert (run.n_files, epochs_of(run), run.exit_code) == (2, ALL_EPOCHS, 0)
    assert run.summary["val_accuracy"] == {"max": 1.0, "last": 0.8}  # the best row is in the first file


def test_whole_run_stays_whole_when_its_repetition_is_interrupted(tmp_path: Path) -> None:
    search_once(tmp_path, "001")
    second = make_tracker(tmp_path)
    report(second, trial("001"), epochs=2)
    second.finish()
    run = read_offline_runs(tmp_path)["001"]
    assert (run.exit_code, run.summary["status"]) == (0, "TERMINATED")


def test_retried_trial_writes_each_epoch_once(tmp_path: Path) -> None:
    tracker = make_tracker(tmp_path)
    report(tracker, trial("001"), epochs=3)
    report_whole(tracker, "001")
    tracker.finish()
    assert epochs_of(read_offline_runs(tmp_path)["001"]) == ALL_EPOCHS


def test_other_search_of_the_same_project_has_other_runs(tmp_path: Path) -> None:
    search_once(tmp_path / "a", "001", group="a")
    search_once(tmp_path / "b", "001", group="b")
    assert read_offline_runs(tmp_path / "a")["001"].id != read_offline_runs(tmp_path / "b")["001"].id


@pytest.mark.parametrize("n_bytes", [0, 7, 100, -1])
def test_file_that_cannot_be_sent_is_replaced_by_a_whole_one(tmp_path: Path, n_bytes: int) -> None:
    search_once(tmp_path, "001")
    (file,) = tmp_path.glob("wandb/*/*.wandb")
    file.write_bytes(file.read_bytes()[:n_bytes])
    search_once(tmp_path, "001")
    run = read_offline_runs(tmp_path)["001"]
    assert (run.n_files, epochs_of(run), run.exit_code) == (1, ALL_EPOCHS, 0)


def test_killed_search_leaves_the_rows_it_had(tmp_path: Path) -> None:
    code = """
import os, sys
from pathlib import Path
from tests import test_tracking as t
tracker = t.make_tracker(Path(sys.argv[1]))
t.report(tracker, t.trial("001"), epochs=3)
t.wait_until(lambda: any(len(run.rows) == 3 for run in t.read_offline_runs(Path(sys.argv[1])).values()))
os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert epochs_of(read_offline_runs(tmp_path)["001"]) == [1, 2, 3]
    search_once(tmp_path, "001")
    assert epochs_of(read_offline_runs(tmp_path)["001"]) == ALL_EPOCHS


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


def test_no_line_is_printed_when_nothing_waits(tmp_path: Path) -> None:
    assert sync_line(tmp_path) is None


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


def test_run_that_waits_on_disk_is_not_continued_online(tmp_path: Path, server: WandbServer) -> None:
    first = make_tracker(tmp_path)
    report(first, trial("001"), epochs=3)
    first.finish()
    search_once(tmp_path, "001", "002", mode="online")
    assert len(server.runs) == 1  # 002
    sync("wandb sync wandb", tmp_path)
    assert [run.steps for run in server.runs.values()] == [ALL_EPOCHS] * 2


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
    tracker = search_once(tmp_path, "001", "002", "003", mode="online")
    assert_all_is_on_disk(tmp_path, "001", "002", "003")
    assert len(tracker.problems) == 1
    assert "W&B cannot be reached" in tracker.problems[0]


def test_mute_server_puts_the_search_offline(
    tmp_path: Path, mute_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_server(mute_url, monkeypatch)
    tracker = search_once(tmp_path, "001", "002", mode="online")
    assert_all_is_on_disk(tmp_path, "001", "002")
    assert len(tracker.problems) == 1


def test_server_lost_on_the_way_puts_open_runs_offline(tmp_path: Path, server: WandbServer) -> None:
    tracker = make_tracker(tmp_path, mode="online")
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


def test_hooks_do_not_wait_for_the_server(
    tmp_path: Path, mute_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_server(mute_url, monkeypatch)
    tracker = make_tracker(tmp_path, mode="online")
    start = time.perf_counter()
    report_whole(tracker, *(f"{index:03d}" for index in range(20)))
    assert time.perf_counter() - start < 0.5
    tracker.finish()


def test_interrupted_search_does_not_wait_for_the_server(
    tmp_path: Path, mute_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_server(mute_url, monkeypatch)
    tracker = make_tracker(tmp_path, mode="online", patience=Patience(opening=3.5, interrupted=0.1))
    report(tracker, trial("001"), epochs=2)
    wait_until(lambda: list(tmp_path.glob("wandb/run-*")))
    start = time.perf_counter()
    tracker.finish()
    assert time.perf_counter() - start < 2.9
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


def wait_until(holds: Any) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_folder_that_cannot_be_written_ends_wandb_not_the_search(tmp_path: Path) -> None:
    (tmp_path / "wandb").write_text("a file where the folder should be")
    tracker = search_once(tmp_path, "001", "002")
    assert "nothing more is written" in tracker.problems[-1]


# The mode


@pytest.mark.parametrize(
    ("asked", "key", "environment", "resolved"),
    [
        ("disabled", API_KEY, "", "disabled"),
        ("offline", API_KEY, "", "offline"),
        ("online", API_KEY, "", "online"),
        (None, API_KEY, "", "online"),
        (None, API_KEY, "offline", "offline"),
        (None, "", "disabled", "disabled"),
        ("online", API_KEY, "offline", "online"),
    ],
)
def test_mode_follows_the_wish_then_the_environment_then_the_key(
    asked: Mode | None, key: str, environment: str, resolved: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"WANDB_API_KEY": key, "WANDB_MODE": environment}.items():
        if value:
            monkeypatch.setenv(name, value)
    assert resolve_mode(asked) == (resolved, None)


@pytest.mark.parametrize("asked", ["online", None])
def test_mode_without_a_key_is_offline_and_says_so(asked: Mode | None) -> None:
    mode, notice = resolve_mode(asked)
    assert mode == "offline"
    assert notice is not None
    assert "WANDB_API_KEY" in notice


def test_key_in_netrc_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1:9 login user password {API_KEY}")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert resolve_mode(None) == ("online", None)


# With Tune


def test_tracker_can_be_pickled_while_it_runs(tmp_path: Path) -> None:
    tracker = make_tracker(tmp_path)
    copy = pickle.loads(pickle.dumps(tracker))
    copy.setup()
    report_whole(copy, "001")
    copy.finish()
    tracker.finish()
    assert epochs_of(read_offline_runs(tmp_path)["001"]) == ALL_EPOCHS


QUIET_RAY = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_prestart_worker_first_driver": "0",
}
TRIALS = {"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.4, "stopped": 0.5, "failing": 0.6}


@pytest.fixture(scope="module")
def tuned_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, OfflineRun]:
    """The W&B runs of a real search of six trials."""
    folder = tmp_path_factory.mktemp("a tuned search")
    import ray
    from ray import tune

    def train(config: dict[str, Any]) -> None:  # a closure: the workers need not import this module
        for epoch in range(1, EPOCHS + 1):
            if config["trial_id"] == "failing" and epoch == 3:
                raise RuntimeError("out of luck")
            tune.report(
                {"epoch": epoch, "val_accuracy": config["params"]["lr"] / epoch, "val_loss": epoch / 7}
            )

    def stop(_: str, result: Mapping[Any, Any]) -> bool:
        return bool(result["config"]["trial_id"] == "stopped" and result["epoch"] == 2)

    def params(spec: Any) -> dict[str, Any]:
        return {"lr": TRIALS[spec.config.trial_id], "epochs": EPOCHS}

    tracker = WandbTracker(folder=folder, project="birds", group="tuned", mode="offline")
    with pytest.MonkeyPatch.context() as environment:
        for name, value in QUIET_RAY.items():
            environment.setenv(name, value)
        ray.init(
            "local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.CRITICAL
        )
        tune.Tuner(
            train,
            param_space={"trial_id": tune.grid_search(list(TRIALS)), "params": tune.sample_from(params)},
            tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=2),
            run_config=tune.RunConfig(
                name="tuned", storage_path=str(folder / "ray"), verbose=0, callbacks=[tracker], stop=stop
            ),
        ).fit()
        ray.shutdown()
    return read_offline_runs(folder)


def test_each_trial_of_a_tuned_search_has_every_row(tuned_runs: dict[str, OfflineRun]) -> None:
    n_rows = dict.fromkeys(TRIALS, EPOCHS) | {"stopped": 2, "failing": 2}
    assert {name: [numbers_of(found) for found in run.rows] for name, run in tuned_runs.items()} == {
        name: [
            {"epoch": epoch, "val_accuracy": TRIALS[name] / epoch, "val_loss": epoch / 7}
            for epoch in range(1, n + 1)
        ]
        for name, n in n_rows.items()
    }


def test_each_trial_of_a_tuned_search_ends_as_it_did(tuned_runs: dict[str, OfflineRun]) -> None:
    statuses = dict.fromkeys(TRIALS, "TERMINATED") | {"stopped": "STOPPED", "failing": "ERROR"}
    assert {name: run.tags[-1] for name, run in tuned_runs.items()} == statuses
