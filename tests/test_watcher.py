"""What Tune tells of trials comes to the ledger, each trial once whatever its tries."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray.exceptions import RayActorError

from tests.test_failures import KILLED, write_error
from tune_inat.config import TrialConfig
from tune_inat.ending import Ending
from tune_inat.families import FAILURE, FamilySearcher
from tune_inat.hangs import HangWatch
from tune_inat.leaderboard import Effort
from tune_inat.ledger import Ledger
from tune_inat.plan import PlannedTrial
from tune_inat.searchers import PlannedProposer
from tune_inat.tries import Tries
from tune_inat.watcher import LiveTrial, Watcher

TRIAL = PlannedTrial("001", TrialConfig(epochs=2))


class Watched:
    """A watcher with a searcher of one trial, and what it has shown last."""

    def __init__(self, folder: Path, *, max_failures: int = 1, ending: Ending | None = None) -> None:
        tries = Tries(max_failures)
        self.folder = folder
        self.shown: Sequence[LiveTrial] = ()
        self.searcher = FamilySearcher(
            PlannedProposer([TRIAL]), metric="val_accuracy", goal="maximize", n_ahead=1, tries=tries
        )
        self.watcher = Watcher(
            Ledger(folder),
            self._show,
            Effort(),
            ending or Ending(),
            stop_file=folder / "stop",
            searcher=self.searcher,
            give_up_try=lambda trial_id: self.searcher.on_trial_complete(trial_id, error=True),
            tries=tries,
            hangs=HangWatch({}),
        )

    def _show(self, trials: Sequence[LiveTrial]) -> None:
        self.shown = trials

    def start(self, ray_id: str) -> Any:
        """Tune's trial for the next try, with the error of a process that dies."""
        config = self.searcher.suggest(ray_id)
        folder = self.folder / ray_id
        folder.mkdir()
        write_error(folder, RayActorError(error_msg=KILLED))
        statistics = SimpleNamespace(metric_analysis={}, metric_n_steps={})
        return SimpleNamespace(
            trial_id=ray_id,
            config=config,
            local_path=str(folder),
            status="RUNNING",
            run_metadata=statistics,
        )

    def fail(self, trial: Any) -> None:
        """What Tune does when a trial fails."""
        self.searcher.on_trial_complete(trial.trial_id, error=True)
        trial.status = "ERROR"
        self.watcher.on_trial_error(1, [trial], trial)


def test_trial_whose_process_dies_before_it_starts_is_recorded_as_failed(hostile_path: Path) -> None:
    watched = Watched(hostile_path, max_failures=0)
    watched.fail(watched.start("ray-1"))
    record = Ledger(hostile_path).records()["001"]
    assert record.status == "ERROR"
    assert record.error is not None
    assert record.error.startswith("its process was killed, or crashed")
    assert record.failures == []


def test_trial_that_failed_waits_for_its_next_try_and_is_shown_as_one(hostile_path: Path) -> None:
    watched = Watched(hostile_path)
    first = watched.start("ray-1")
    watched.watcher.on_trial_start(1, [first], first)
    watched.fail(first)
    watched.watcher.on_step_end(1, [first])
    (shown,) = watched.shown
    assert (shown.status, len(shown.failures)) == ("WAITING", 1)
    second = watched.start("ray-2")
    assert second.config == first.config
    watched.watcher.on_trial_start(2, [first, second], second)
    watched.watcher.on_step_end(2, [first, second])
    (shown,) = watched.shown
    assert (shown.status, len(shown.failures)) == ("RUNNING", 1)
    watched.fail(second)
    record = Ledger(hostile_path).records()["001"]
    assert (record.status, len(record.failures)) == ("ERROR", 1)
    assert watched.searcher.suggest("ray-3") == "FINISHED"


def test_try_that_tune_gives_up_without_a_word_counts_as_failed(hostile_path: Path) -> None:
    """Where a process cannot be used again, for its last trial does not end."""
    watched = Watched(hostile_path)
    trial = watched.start("ray-1")
    trial.status = "ERROR"
    watched.watcher.on_step_end(1, [trial])
    watched.watcher.on_step_end(2, [trial])  # once
    assert len(Ledger(hostile_path).records()["001"].failures) == 1
    assert isinstance(watched.searcher.suggest("ray-2"), dict)


def test_end_of_a_trial_is_shown_once(hostile_path: Path) -> None:
    """Of thousands of trials few run."""
    watched = Watched(hostile_path)
    trial = watched.start("ray-1")
    watched.watcher.on_trial_start(1, [trial], trial)
    watched.searcher.on_trial_complete("ray-1", {"val_accuracy": 0.5, "epoch": 2})
    watched.watcher.on_trial_complete(1, [trial], trial)
    watched.watcher.on_step_end(1, [trial])
    assert [shown.status for shown in watched.shown] == ["STOPPED"]  # no row of its last epoch came here
    watched.watcher.on_step_end(2, [trial])
    assert list(watched.shown) == []


def test_failure_that_a_trial_reports_is_for_good(hostile_path: Path) -> None:
    watched = Watched(hostile_path)
    trial = watched.start("ray-1")
    watched.watcher.on_trial_start(1, [trial], trial)
    result = {FAILURE: "NonFiniteLossError: epoch 1, step 2: the loss is nan"}
    watched.searcher.on_trial_result("ray-1", result)
    watched.watcher.on_trial_result(1, [trial], trial, result)
    watched.searcher.on_trial_complete("ray-1", result)
    watched.watcher.on_trial_complete(1, [trial], trial)
    record = Ledger(hostile_path).records()["001"]
    assert (record.status, record.error, record.failures) == ("ERROR", result[FAILURE], [])
    assert watched.searcher.suggest("ray-2") == "FINISHED"


def test_search_is_over_when_its_time_is_up_and_then_ends_the_epochs_in_progress(hostile_path: Path) -> None:
    ending = Ending(max_seconds=0.0)
    watcher = Watched(hostile_path, ending=ending).watcher
    watcher.on_step_end(1, [])
    assert not (hostile_path / "stop").exists()
    ending.begin()
    watcher.on_step_end(2, [])
    assert (hostile_path / "stop").exists()
