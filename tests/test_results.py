"""Searches side by side: the right facts, on comparable images, in whatever width there is."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from tune_inat.comparison import SORT_KEYS, compare_searches, read_search
from tune_inat.config import TrialConfig
from tune_inat.errors import UserError
from tune_inat.leaderboard import TestResult, best_of, best_to_json, leaderboard, trial_result, write_summary
from tune_inat.ledger import Ledger, Status, TrialRecord
from tune_inat.results import Comparison, app

METRICS = ("val_accuracy", "val_loss", "val_macro_f1", "val_balanced_accuracy", "val_ece")
SAMPLE = {"name": "sample", "classes": 10, "train": 1151, "val": 287, "test": 359, "skipped": 0}


def record(trial_id: str, accuracy: float, status: Status = "TERMINATED", **config: Any) -> TrialRecord:
    row = {"epoch": 1, "steps": 3, "peak_lr": 0.1, **dict.fromkeys(METRICS, accuracy)}
    rows = [row] if status in ("TERMINATED", "STOPPED") else []
    return TrialRecord(
        trial_id, TrialConfig(**config).model_dump(), rows=rows, status=status, epochs_trained=len(rows)
    )


def write_search(
    folder: Path, *records: TrialRecord, test: float | None = 0.8, data: str = "sample", **changes: Any
) -> Path:
    """A search's folder, whose summary has the form that a search gives it."""
    results = [trial_result(each, "val_accuracy", "maximize") for each in records or [record("a", 0.9)]]
    ranked = leaderboard(results, "val_accuracy", "maximize")
    best = best_of(ranked)
    tested = None if test is None else TestResult(test, 0.5, (test - 0.02, test + 0.02), 359)
    summary = {
        "status": "DONE",
        "name": folder.name,
        "space": "spaces/grid.yaml",
        "method": "grid",
        "metric": {"name": "val_accuracy", "goal": "maximize"},
        "data": {**SAMPLE, "name": data, "fingerprint": f"of {data}"},
        "trials": [result.to_json() for result in ranked],
        "best": None if best is None else best_to_json(best, tested),
        "reuse": {"epochs_asked": 5 * len(results), "epochs_trained": sum(r.epochs_trained for r in results)},
        "wall_seconds": 62.0,
    }
    folder.mkdir(parents=True)
    write_summary(folder, summary | changes)
    return folder


def lines_of(*folders: Path, width: int = 200) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None, markup=False)
    Comparison(compare_searches(folders)[0]).print_to(console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def names_of(*folders: Path, sort: str = "test") -> list[list[str]]:
    return [[search.name for search in group] for group in compare_searches(folders, sort=sort)[0]]


# The facts of a search


def test_search_counts_its_trials_by_how_they_ended(hostile_path: Path) -> None:
    statuses: list[Status] = ["TERMINATED", "TERMINATED", "STOPPED", "ERROR", "SKIPPED"]
    trials = [record(str(n), 0.5 + n / 10, status) for n, status in enumerate(statuses)]
    search = read_search(write_search(hostile_path / "a", *trials))
    assert (search.done, search.stopped, search.failed, search.left) == (2, 1, 1, 1)
    assert (search.epochs_trained, search.epochs_asked) == (3, 25)


def test_search_has_its_best_trial_with_what_varied(hostile_path: Path) -> None:
    trials = [record("a", 0.7, lr=0.1, model="resnet18"), record("b", 0.9, lr=0.2, model="vgg11")]
    search = read_search(write_search(hostile_path / "a", *trials, test=0.85))
    assert (search.best_trial, search.metric_value, search.test_accuracy) == ("b", 0.9, 0.85)
    assert search.test_interval == (0.83, 0.87)
    assert search.varied == {"lr": 0.2, "model": "vgg11"}
    assert set(search.models) == {"resnet18", "vgg11"}


def test_search_that_went_on_says_that_its_time_is_not_the_whole(hostile_path: Path) -> None:
    reuse = {"epochs_asked": 5, "epochs_trained": 0}
    again = write_search(hostile_path / "again", reuse=reuse, wall_seconds=0.7)
    assert read_search(again).was_continued
    assert "0.7 s+" in "\n".join(lines_of(again))
    assert not read_search(write_search(hostile_path / "once")).was_continued


# Which searches, in which order


def test_searches_on_the_same_images_stand_together(hostile_path: Path) -> None:
    a = write_search(hostile_path / "a", data="photos", test=0.7)
    b = write_search(hostile_path / "b", data="sample", test=0.99)
    c = write_search(hostile_path / "c", data="photos", test=0.8)
    assert names_of(a, b, c) == [["c", "a"], ["b"]]
    assert "cannot be compared" in lines_of(a, b)[-1]
    assert "cannot be compared" not in lines_of(a, c)[-1]


@pytest.mark.parametrize(
    ("sort", "order"),
    [("test", "bac"), ("val", "abc"), ("name", "abc"), ("date", "cba"), ("time", "bac"), ("trials", "bac")],
)
def test_order_is_the_one_asked_for(hostile_path: Path, sort: str, order: str) -> None:
    best = record("best", 0.9)
    a = write_search(hostile_path / "a", best, test=0.8, wall_seconds=20)
    b = write_search(hostile_path / "b", record("x", 0.8), record("y", 0.7), test=0.9, wall_seconds=10)
    c = write_search(hostile_path / "c", record("z", 0.6), test=None, wall_seconds=30)
    for seconds, folder in enumerate((a, b, c)):
        os.utime(folder / "summary.json", (seconds, seconds))
    assert names_of(a, b, c, sort=sort) == [list(order)]


def test_order_that_does_not_exist_is_refused_with_the_nearest(hostile_path: Path) -> None:
    with pytest.raises(UserError, match='Did you mean "epochs"'):
        compare_searches([write_search(hostile_path / "a")], sort="epoch")


def test_folder_named_twice_counts_once(hostile_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_search(hostile_path / "a")
    monkeypatch.chdir(hostile_path)
    assert names_of(Path("a"), hostile_path / "a", Path("a/")) == [["a"]]


def test_searches_of_the_same_name_go_by_their_path(hostile_path: Path) -> None:
    folders = [write_search(hostile_path / storage / "grid") for storage in ("x", "y")]
    assert {name for group in names_of(*folders) for name in group} == {str(folder) for folder in folders}


# What is no search


def test_what_is_no_search_is_named_and_skipped(hostile_path: Path) -> None:
    search = write_search(hostile_path / "runs" / "a")
    torn = hostile_path / "torn"
    torn.mkdir()
    (torn / "summary.json").write_text('{"status": "DONE", "trials": 7}')
    running = hostile_path / "running"
    Ledger(running).start("a", {})
    damaged = hostile_path / "damaged"
    Ledger(damaged).start("a", {})
    (damaged / "summary.json").write_text('{"status": "DO')
    begun = hostile_path / "begun"
    begun.mkdir()
    (begun / "search.json").write_text("{}")
    others = [hostile_path / "runs", hostile_path / "nowhere", torn, begun, running, damaged]
    groups, notices = compare_searches([*others, search])
    assert [len(group) for group in groups] == [1]
    of_searches = ("has not ended", "has not ended", "summary.json is damaged; python -m tune_inat.search")
    expected = ("holds some", "no such folder", "none that a search has written", *of_searches)
    assert len(notices) == len(expected)
    for folder, notice, reason in zip(others, notices, expected, strict=True):
        assert notice.startswith(str(folder))
        assert reason in notice


def test_no_search_at_all_is_refused(hostile_path: Path) -> None:
    with pytest.raises(UserError, match="this is no search"):
        compare_searches([hostile_path])


# The table


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_table_fits_and_cuts_no_number(hostile_path: Path, width: int) -> None:
    trials = [record(f"{n}", 0.9123, lr=(n + 1) / 7, weight_decay=n / 7, epochs=1 + n) for n in range(3)]
    folders = [
        write_search(hostile_path / f"a long name of a search, {n}", *trials, test=0.8765) for n in range(3)
    ]
    lines = lines_of(*folders, width=width)
    assert max(len(line) for line in lines[1:-2]) <= width  # but for the heading and the legend
    rows = [line for line in lines if "0.8765" in line]
    assert len(rows) == 3
    assert all("..." in row or width >= 80 for row in rows)


def test_wide_table_has_all_there_is_to_know(hostile_path: Path) -> None:
    trials = [record("a", 0.9, lr=0.1), record("b", 0.5, lr=0.2), record("c", 0.1, "ERROR", lr=0.3)]
    lines = lines_of(write_search(hostile_path / "mine", *trials))
    assert lines[0].startswith("sample: 10 classes, 1,151 train, 287 val, 359 test images")
    (row,) = [line for line in lines if line.startswith("mine")]
    written = row.split()[-2:]
    assert " ".join(row.split()[:-2]) == (
        "mine grid.yaml grid resnet50 2 1 lr 0.1 0.9000 0.8000 0.780-0.820 2/15 1 min 02 s"
    )
    assert len(written[0]) == len("2026-11-25")


def test_eighty_columns_hold_accuracies_trials_epochs_and_time(hostile_path: Path) -> None:
    lines = lines_of(write_search(hostile_path / "grid-sample"), width=80)
    (heading,) = [line for line in lines if line.startswith("search")]
    for title in ("search", "val acc", "interval", "done", "epochs", "time"):
        assert title in heading


def test_value_of_another_metric_is_named(hostile_path: Path) -> None:
    a = write_search(hostile_path / "a")
    b = write_search(hostile_path / "b", metric={"name": "val_ece", "goal": "minimize"})
    text = "\n".join(lines_of(a, b))
    assert "accuracy 0.9000" in text
    assert "ece 0.9000" in text


def test_search_without_a_best_trial_shows_dashes(hostile_path: Path) -> None:
    failed = write_search(hostile_path / "failed", record("a", 0.0, "ERROR"))
    (row,) = [line for line in lines_of(failed) if line.startswith("failed")]
    assert row.split()[6:9] == ["-", "-", "-"]  # val, test, interval


def test_names_cannot_drive_the_terminal(hostile_path: Path) -> None:
    name = "\x1b[31m[bold]red\nnext\u202e"
    search = write_search(hostile_path / name, record("a", 0.9, model=name), data=name)
    text = "\n".join(lines_of(search))
    assert not any(character in text for character in "\x1b\u202e")
    assert "[bold]" in text
    assert len([line for line in text.splitlines() if "next" in line]) == 2  # the heading and the row


# The command


def test_json_has_every_search_with_its_facts(hostile_path: Path) -> None:
    a = write_search(hostile_path / "a", test=0.7)
    b = write_search(hostile_path / "b", test=0.9)
    ran = CliRunner().invoke(app, [str(a), str(b), "--json"])
    listed = json.loads(ran.stdout)
    assert [(search["name"], search["test_accuracy"]) for search in listed] == [("b", 0.9), ("a", 0.7)]
    assert listed[0]["folder"] == str(b)
    assert listed[0]["data"]["fingerprint"] == "of sample"


def test_csv_has_a_row_for_each_search_and_no_formula(hostile_path: Path) -> None:
    folders = [write_search(hostile_path / "a"), write_search(hostile_path / "b", data="=HYPERLINK(1)")]
    ran = CliRunner().invoke(app, [*map(str, folders), "--csv"])
    rows = list(csv.DictReader(io.StringIO(ran.stdout)))
    assert [row["name"] for row in rows] == ["a", "b"]
    assert (rows[0]["test_accuracy"], rows[0]["test_low"], rows[0]["done"]) == ("0.8", "0.78", "1")
    assert rows[1]["data_name"] == "'=HYPERLINK(1)"


def test_skipped_folder_is_said_on_stderr_and_the_rest_shown(hostile_path: Path) -> None:
    ran = CliRunner().invoke(app, [str(write_search(hostile_path / "a")), str(hostile_path / "nowhere")])
    assert ran.exit_code == 0
    assert "0.8000" in ran.stdout
    assert "nowhere: there is no such folder." in ran.stderr


def test_command_without_any_search_ends_with_code_2(hostile_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "tune_inat.results", str(hostile_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "this is no search" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_help_names_every_order() -> None:
    text = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).stdout
    assert all(key in text for key in SORT_KEYS)
