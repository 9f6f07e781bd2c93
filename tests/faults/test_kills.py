"""`kill -9` at any moment, of any process: the same command goes on, and ends as if nothing had happened.

`TUNE_INAT_KILLS=20` kills so many times; each costs a start of the command, so the usual number is small.
`TUNE_INAT_KILLS_LOG=FILE` adds a line for each: what was killed and when, what it cost.
"""

import json
import os
import random
import signal
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import optuna
import pytest

from tests.faults.conftest import Undisturbed
from tests.faults.processes import (
    BAYES,
    GRID,
    LOOK_SECONDS,
    PROBES,
    Kind,
    Search,
    new_search,
    reported_twice,
    table_of,
)
from tests.slow import slow
from tune_inat.errors import EXIT_DONE, EXIT_USAGE
from tune_inat.runs import STUDY_FILE
from tune_inat.searchers import open_study_storage

pytestmark = pytest.mark.end_to_end

N_KILLS = int(os.environ.get("TUNE_INAT_KILLS", "2"))
LOG = os.environ.get("TUNE_INAT_KILLS_LOG")
SEED = int(os.environ.get("TUNE_INAT_KILLS_SEED", "256"))  # of two kills one comes in training, one before
SWEEPS = {"probes": PROBES} | ({"deeper": GRID} if N_KILLS > 2 else {})
MAY_LIVE_ON: tuple[Kind, ...] = ("worker", "raylet")  # without these, the driver comes to an end of its own


@dataclass
class Killing:
    """A search that is killed again and again, at moments of its undisturbed life.

    Half of them are any moment of it; the others come with the report of any epoch, since most of so short a
    life goes by before the first.
    """

    search: Search
    life_seconds: float
    n_epochs: int
    draws: random.Random

    def run_and_kill(self) -> bool:
        """Start the command and kill something of it; whether it came to that before it had ended."""
        kind: Kind = self.draws.choice(get_args(Kind))
        seconds = self.draws.uniform(0.0, self.life_seconds)
        n_reports = self.draws.choice([0, self.draws.randint(1, self.n_epochs)])
        known = self.n_reported()
        running, started, on_seconds = self.search.start(), time.monotonic(), None

        def is_due() -> bool:
            if n_reports > 0:
                return self.n_reported() - known >= n_reports
            return time.monotonic() >= started + seconds

        while not is_due() and running.popen.poll() is None:
            if on_seconds is None and self.n_reported() > known:
                on_seconds = time.monotonic() - started
            time.sleep(LOOK_SECONDS)
        was_killed = False
        while not was_killed and running.popen.poll() is None:  # until there is one of that kind
            was_killed = running.kill(kind) > 0
        killed, reported = time.monotonic(), self.n_reported()
        code = running.wait()
        if was_killed:
            assert kind in MAY_LIVE_ON or code == -signal.SIGKILL, running.text
            running.seconds_until_idle()
            note(
                search=self.search.cwd.name,
                kind=kind,
                moment="report" if n_reports > 0 else "any",
                seconds=killed - started,
                reported=reported,
                code=code,
                gone_seconds=time.monotonic() - killed,
                on_seconds=on_seconds,  # from the start of the command to its first report
            )
        return was_killed

    def n_reported(self) -> int:
        """The epochs in its journal, replayed ones among them."""
        return sum(event["event"] == "epoch" for event in self.search.events())

    def n_trained(self) -> int:
        """The epochs that its journal has as trained."""
        return sum(event["event"] == "epoch" and event["trained"] for event in self.search.events())


def note(**facts: Any) -> None:
    if LOG is not None:
        rounded = {key: round(fact, 1) if isinstance(fact, float) else fact for key, fact in facts.items()}
        with Path(LOG).open("a") as file:
            file.write(json.dumps(rounded) + "\n")


@pytest.mark.parametrize("sweep", SWEEPS.values(), ids=SWEEPS)
def test_search_killed_at_random_moments_ends_with_the_same_table(
    tmp_path: Path, undisturbed: Undisturbed, sweep: str
) -> None:
    expected = undisturbed(sweep)
    draws, n_left, number = random.Random(SEED), N_KILLS // len(SWEEPS), 0
    while n_left > 0:
        number += 1
        search = new_search(tmp_path / str(number), sweep, "--wandb", "offline")
        n_epochs = sum(trial["epochs"] for trial in expected["trials"])
        killing = Killing(search, expected["wall_seconds"], n_epochs, draws)
        while n_left > 0 and killing.run_and_kill():
            n_left -= 1
        running = search.run()
        assert running.popen.returncode == EXIT_DONE, running.text
        assert table_of(search.summary) == table_of(expected)
        assert search.summary["best"] == expected["best"]
        assert reported_twice(search.events()) == []
        trained = killing.n_trained()
        note(search=search.cwd.name, trained=trained, undisturbed=expected["reuse"]["epochs_trained"])


@slow
def test_ray_that_dies_as_it_starts_is_said_in_words(tmp_path: Path) -> None:
    search = new_search(tmp_path, GRID, "--wandb", "disabled")
    running = search.start()
    running.await_that(lambda: any(process.kind == "raylet" for process in running.processes()))
    running.kill("raylet")
    assert running.wait(120.0) == EXIT_USAGE, running.text
    assert "Ray did not start on this machine" in running.text
    assert "Traceback" not in running.text
    running.seconds_until_idle()


@slow
def test_ray_that_dies_while_trials_run_is_said_in_words(tmp_path: Path) -> None:
    search = new_search(tmp_path, PROBES, "--wandb", "disabled")
    running = search.start()
    running.await_that(lambda: any(event["event"] == "epoch" for event in search.events()))
    running.kill("raylet")
    assert running.wait(120.0) != EXIT_DONE
    assert "The same command goes on with what is done." in running.text
    running.seconds_until_idle()


def test_killed_optuna_search_goes_on_with_its_study(tmp_path: Path) -> None:
    search = new_search(tmp_path, BAYES, "--wandb", "disabled")

    def has_ended(n: int) -> bool:
        return len([event for event in search.events() if event["event"] == "end"]) >= n

    kills: tuple[tuple[int, Kind], ...] = ((1, "driver"), (3, "all"))
    for n_ends, kind in kills:
        running = search.start()
        running.await_that(partial(has_ended, n_ends))
        running.kill(kind)
        running.wait()
        running.seconds_until_idle()
    running = search.run()
    assert running.popen.returncode == EXIT_DONE, running.text
    trials = search.summary["trials"]
    assert [trial["status"] for trial in trials] == ["TERMINATED"] * 6
    assert len({json.dumps(trial["config"]) for trial in trials}) == 6
    storage = open_study_storage(search.folder / STUDY_FILE)
    (summary,) = optuna.get_all_study_summaries(storage)
    study = optuna.load_study(study_name=summary.study_name, storage=storage)
    complete = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.COMPLETE]
    assert sorted((trial.params["lr"], trial.value) for trial in complete) == sorted(
        (trial["config"]["lr"], trial["val_accuracy"]) for trial in trials
    )
    assert not any(trial.state == optuna.trial.TrialState.RUNNING for trial in study.trials)
    assert reported_twice(search.events()) == []
