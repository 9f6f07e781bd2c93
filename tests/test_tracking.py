"""Every trial of a search is a W&B run that holds all of its numbers, once."""

import json
import logging
import math
import pickle
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.wandb_files import OfflineRun, read_offline_runs
from tests.wandb_searches import (
    ALL_EPOCHS,
    CHARTS,
    EPOCHS,
    PREDICTED,
    ended_record,
    epochs_of,
    make_tracker,
    numbers_of,
    report,
    report_whole,
    row,
    search_once,
    trial,
    write_model,
)
from tests.wandb_server import API_KEY, WandbServer
from tune_inat.config import TrialConfig
from tune_inat.tracking import Mode, WandbTracker, resolve_mode
from tune_inat.tries import Tries

pytest_plugins = ["tests.wandb_fixtures"]
pytestmark = pytest.mark.usefixtures("fresh_wandb")


def charts_of_run(run: OfflineRun) -> list[str]:
    return list(run.config["_wandb"].get("visualize", {}))


def read_table(folder: Path, run: OfflineRun, name: str) -> list[list[Any]]:
    """The rows of a table that a chart draws."""
    (file,) = folder.glob(f"wandb/*{run.id}*/files/{run.summary[name]['path']}")
    rows: list[list[Any]] = json.loads(file.read_bytes())["data"]
    return rows


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
    reuse = {"reuse/epochs_asked": EPOCHS, "reuse/epochs_trained": 0}
    assert config == {"epochs": EPOCHS, "lr": 0.01, "search": {"method": "grid"}, **reuse}


def test_config_is_plain_for_panels_over_many_runs(tmp_path: Path) -> None:
    tracker = make_tracker(tmp_path)
    report_whole(tracker, "001")
    of_a_search = trial("002", **TrialConfig().model_dump())
    tracker.log_trial_end(of_a_search)
    tracker.finish()
    config = read_offline_runs(tmp_path)["002"].config
    config.pop("_wandb")
    assert set(TrialConfig.model_fields) < set(config)
    assert all(isinstance(value, str | int | float) for value in config.values())


def test_config_says_what_was_shared(tmp_path: Path) -> None:
    did = {"cut": "layer3", "precision": "bf16", "trainable_tensors": 8}
    tracker = make_tracker(tmp_path)
    for epoch in range(1, EPOCHS + 1):
        reported = row(epoch, did=did, trained=epoch > 3)
        tracker.log_trial_result(epoch, trial("001"), reported)
    tracker.log_trial_end(trial("001"))
    tracker.finish()
    config = read_offline_runs(tmp_path)["001"].config
    assert {name: value for name, value in config.items() if name.startswith("reuse/")} == {
        "reuse/epochs_asked": EPOCHS,
        "reuse/epochs_trained": 2,
        "reuse/cut": "layer3",
        "reuse/precision": "bf16",
    }


def test_epochs_trained_count_over_all_runs_of_the_command(tmp_path: Path) -> None:
    first = make_tracker(tmp_path)
    for epoch in (1, 2, 3):
        first.log_trial_result(epoch, trial("001"), row(epoch, trained=True))
    first.finish()
    second = make_tracker(tmp_path, trained_before={"001": 3})
    for epoch in range(1, EPOCHS + 1):
        second.log_trial_result(epoch, trial("001"), row(epoch, trained=epoch > 3))
    second.log_trial_end(trial("001"))
    second.finish()
    assert read_offline_runs(tmp_path)["001"].config["reuse/epochs_trained"] == EPOCHS


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
    assert (summary["best_val_accuracy"], summary["best_val_loss"]) == (1.0, 0.2)


def test_best_value_is_a_number_after_a_nan(tmp_path: Path) -> None:
    tracker = make_tracker(tmp_path)
    tracker.log_trial_start(trial("001"))
    for epoch, loss in enumerate([0.5, math.nan], start=1):
        tracker.log_trial_result(epoch, trial("001"), row(epoch, val_loss=loss))
    tracker.log_trial_end(trial("001"), failed=True)
    tracker.finish()
    assert read_offline_runs(tmp_path)["001"].summary["val_loss"]["min"] == 0.5


@pytest.mark.parametrize(
    ("epochs", "failed", "exit_code", "status"),
    [(5, False, 0, "TERMINATED"), (2, False, 255, "INTERRUPTED"), (2, True, 1, "ERROR")],
)
def test_run_of_a_trial_that_the_end_of_the_search_cut_off_is_interrupted(
    tmp_path: Path, epochs: int, failed: bool, exit_code: int, status: str
) -> None:
    tracker = make_tracker(tmp_path, is_over=lambda: True)
    report(tracker, trial("001"), epochs)
    tracker.log_trial_end(trial("001"), failed=failed)
    tracker.finish()
    run = read_offline_runs(tmp_path)["001"]
    assert (run.exit_code, run.tags[-1]) == (exit_code, status)
    assert run.summary["stopped_early"] is False


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


def test_trial_that_fails_before_its_start_is_a_failed_run(tmp_path: Path) -> None:
    tracker = make_tracker(tmp_path)
    tracker.log_trial_end(trial("001"), failed=True)
    tracker.finish()
    assert read_offline_runs(tmp_path)["001"].exit_code == 1


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


# The best trial


def test_best_run_has_charts_of_its_predictions(tmp_path: Path) -> None:
    tracker = search_once(tmp_path, "001", "002")
    before = read_offline_runs(tmp_path)["001"]
    tracker.show_best(ended_record("001"), **PREDICTED, test_accuracy=0.75)
    run = read_offline_runs(tmp_path)["001"]
    assert tracker.problems == []
    assert set(charts_of_run(run)) == CHARTS
    cells = read_table(tmp_path, run, "confusion_matrix_table")
    assert ["heron", "owl", 1] in cells  # the one mistake among PREDICTED
    assert sum(count for *_, count in cells) == len(PREDICTED["labels"])
    assert {name for name, *_ in read_table(tmp_path, run, "pr_curve_table")} == {"heron", "owl", "wren"}
    assert numbers_of(run.summary) == {
        **numbers_of(before.summary),
        "test_accuracy": 0.75,
        **{f"{name}_table": run.summary[f"{name}_table"] for name in CHARTS},
    }
    assert (run.exit_code, run.tags, epochs_of(run)) == (0, before.tags, [*ALL_EPOCHS, EPOCHS + 1])
    assert not charts_of_run(read_offline_runs(tmp_path)["002"])


def test_charts_leave_nothing_in_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    search_once(tmp_path / "search", "001").show_best(ended_record("001"), **PREDICTED)
    for artifact in read_offline_runs(tmp_path / "search")["001"].artifacts:
        assert all(Path(entry.local_path).exists() for entry in artifact.manifest.contents)
    assert not [path for path in home.rglob("*") if "staging" in path.parts]


def test_charts_are_written_once(tmp_path: Path) -> None:
    search_once(tmp_path, "001").show_best(ended_record("001"), **PREDICTED)
    assert charts_of_run(read_offline_runs(tmp_path)["001"])
    before = sorted(tmp_path.rglob("*"))
    search_once(tmp_path, "001").show_best(ended_record("001"), **PREDICTED)
    assert sorted(tmp_path.rglob("*")) == before


def test_best_model_is_an_artifact_of_its_run(hostile_path: Path) -> None:
    model = write_model(hostile_path)
    tracker = search_once(hostile_path, "001")
    tracker.show_best(ended_record("001"), **PREDICTED, model_folder=model)
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").write_bytes(b"of a later search")
    (artifact,) = [a for a in read_offline_runs(hostile_path)["001"].artifacts if a.type == "model"]
    assert (artifact.name, sorted(artifact.aliases)) == ("a-search-model", ["best", "latest"])
    (entry,) = [each for each in artifact.manifest.contents if each.path == "model.safetensors"]
    assert Path(entry.local_path).read_bytes() == b"the weights"
    assert hostile_path in Path(entry.local_path).parents
    assert tracker.problems == []


def test_model_can_be_kept_later_than_the_charts(tmp_path: Path) -> None:
    search_once(tmp_path, "001").show_best(ended_record("001"), **PREDICTED)
    model = write_model(tmp_path)
    later = make_tracker(tmp_path)
    later.finish()
    assert later.show_best(ended_record("001"), **PREDICTED, model_folder=model) == []
    run = read_offline_runs(tmp_path)["001"]
    assert [artifact.name for artifact in run.artifacts if artifact.type == "model"] == ["a-search-model"]
    assert epochs_of(run) == [*ALL_EPOCHS, EPOCHS + 1]
    before = sorted(tmp_path.rglob("*"))
    later.show_best(ended_record("001"), **PREDICTED, model_folder=model)
    assert sorted(tmp_path.rglob("*")) == before


def test_best_trial_that_may_go_on_gets_no_charts_and_a_notice(tmp_path: Path) -> None:
    tracker = make_tracker(tmp_path, is_over=lambda: True)
    report(tracker, trial("001"), epochs=2)
    tracker.log_trial_end(trial("001"))
    tracker.finish()
    tracker.show_best(replace(ended_record("001"), status="SKIPPED"), **PREDICTED)
    assert not charts_of_run(read_offline_runs(tmp_path)["001"])
    assert "001 is the best, but has not ended" in tracker.problems[-1]


def test_charts_that_cannot_be_drawn_are_a_notice(tmp_path: Path) -> None:
    tracker = search_once(tmp_path, "001")
    tracker.show_best(ended_record("001"), **{**PREDICTED, "classes": ["too", "few"]})
    assert "nothing more is written" in tracker.problems[-1]


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


def test_trial_that_fails_and_is_tried_again_keeps_its_run_open(tmp_path: Path) -> None:
    tries = Tries(max_failures=1)
    tracker = make_tracker(tmp_path, tries=tries)
    report(tracker, trial("001"), epochs=3)
    tries.fail("001")
    tracker.log_trial_end(trial("001"), failed=True)
    report_whole(tracker, "001")
    tracker.finish()
    run = read_offline_runs(tmp_path)["001"]
    assert (run.n_files, epochs_of(run), run.exit_code) == (1, ALL_EPOCHS, 0)


@pytest.mark.parametrize("is_reported", [True, False], ids=["reported", "raised"])
def test_run_of_a_trial_that_failed_for_good_says_so(is_reported: bool, tmp_path: Path) -> None:
    tries = Tries(max_failures=1)
    tracker = make_tracker(tmp_path, tries=tries)
    report(tracker, trial("001"), epochs=3)
    tries.fail("001", is_final=True)
    tracker.log_trial_end(trial("001"), failed=not is_reported)  # Tune takes a reported one for an end
    tracker.finish()
    run = read_offline_runs(tmp_path)["001"]
    assert (run.exit_code, run.summary["status"]) == (1, "ERROR")


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


def test_same_name_and_trial_on_other_images_is_another_run(tmp_path: Path) -> None:
    for folder, images in {"a": "photos", "b": "other photos", "c": "photos"}.items():
        search_once(tmp_path / folder, "001", work=images)
    ids = {folder: read_offline_runs(tmp_path / folder)["001"].id for folder in "abc"}
    assert ids["a"] == ids["c"] != ids["b"]


def test_killed_search_leaves_the_rows_it_had(tmp_path: Path) -> None:
    code = """
import os, sys
from pathlib import Path
from tests import wandb_searches as t
from tests.wandb_files import read_offline_runs
tracker = t.make_tracker(Path(sys.argv[1]))
t.report(tracker, t.trial("001"), epochs=3)
t.wait_until(lambda: any(len(run.rows) == 3 for run in read_offline_runs(Path(sys.argv[1])).values()))
os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert epochs_of(read_offline_runs(tmp_path)["001"]) == [1, 2, 3]
    search_once(tmp_path, "001")
    assert epochs_of(read_offline_runs(tmp_path)["001"]) == ALL_EPOCHS


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
