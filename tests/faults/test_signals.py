"""Ctrl-C and SIGTERM, in every phase of a search: it ends soon, shows what is done, and goes on later."""

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.faults.conftest import Undisturbed
from tests.faults.processes import PROBES, Running, Search, new_search, reported_twice, table_of
from tests.wandb_files import read_offline_runs
from tune_inat.errors import EXIT_INTERRUPTED
from tune_inat.report import is_current
from tune_inat.search import ENDING

pytestmark = pytest.mark.end_to_end

PROMPT_SECONDS = 30.0  # it takes 2 to 5; without an end of its own the search would run for longer


def says(text: str) -> Callable[[Running, Search], bool]:
    return lambda running, search: text in running.text


def has_begun_ray(running: Running, search: Search) -> bool:
    return any("gcs_server" in process.command for process in running.processes())


def has_trained(running: Running, search: Search) -> bool:
    return len([event for event in search.events() if event["event"] == "epoch"]) > 3


# In the order in which a search comes to them. Terminals, and `timeout`, signal all processes of a group.
PHASES = {
    "hashing or decoding": (says("Decoding images"), signal.SIGINT),
    "before Ray is up": (has_begun_ray, signal.SIGTERM),
    "frozen layers": (says("Frozen layers up to"), signal.SIGINT),
    "training": (has_trained, signal.SIGTERM),
    "export": (says("Testing and exporting"), signal.SIGINT),
}


def interrupt(running: Running, how: signal.Signals) -> None:
    os.killpg(running.popen.pid, how)


def test_search_interrupted_in_each_phase_goes_on_and_ends_as_if_it_never_was(
    tmp_path: Path, undisturbed: Undisturbed
) -> None:
    search = new_search(tmp_path, PROBES, "--wandb", "offline")
    for phase, (is_there, how) in PHASES.items():
        running = search.start()
        running.await_that(partial(is_there, running, search))
        interrupt(running, how)
        assert running.wait(PROMPT_SECONDS) == EXIT_INTERRUPTED, f"{phase}: {running.text}"
        assert "Traceback" not in running.text, phase
        assert running.text.count(ENDING) == 1, phase
        assert "Go on:  python -m tune_inat.search --space tiny.yaml" in running.text, phase
        if search.events():  # there was something to show
            assert search.summary["status"] == "INTERRUPTED"
            assert (search.folder / "report.html").stat().st_size > 0
            ends = [event for event in search.events() if event["event"] == "end"]
            ended = {event["trial_id"]: event["status"] for event in ends}
            shown = {trial["trial_id"]: trial["status"] for trial in search.summary["trials"]}
            assert ended.items() <= shown.items()
            runs = read_offline_runs(search.folder)
            assert {run.exit_code for run in runs.values()} <= {0, 255}, phase
    assert search.run().popen.returncode == 0
    assert reported_twice(search.events()) == []
    assert table_of(search.summary) == table_of(undisturbed(PROBES))
    assert search.summary["best"] == undisturbed(PROBES)["best"]
    assert is_current(search.folder)


def test_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    search = new_search(tmp_path, PROBES, "--wandb", "offline")
    running = search.start()
    running.await_that(lambda: has_trained(running, search))
    interrupt(running, signal.SIGINT)
    time.sleep(0.3)  # two that come together are one
    interrupt(running, signal.SIGINT)
    assert running.wait(PROMPT_SECONDS) == EXIT_INTERRUPTED
    running.seconds_until_idle()
    assert search.run().popen.returncode == 0
    assert reported_twice(search.events()) == []
