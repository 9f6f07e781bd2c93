"""Watches the trials that Tune runs: writes what they report, shows it, ends those that hang."""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ray
from ray import tune

from tune_inat.ending import Ending
from tune_inat.failures import Failure, OutOfMemoryKills, read_failure
from tune_inat.families import ENDS_SEARCH, FAILURE, FamilySearcher
from tune_inat.hangs import HangWatch
from tune_inat.leaderboard import Effort
from tune_inat.ledger import Ledger, Status
from tune_inat.trial import ROW_NAMES
from tune_inat.tries import Tries

LOST_MACHINE = "the machine that it ran on was lost."


@dataclass(frozen=True)
class LiveTrial:
    """A trial as it stands now.

    Attributes:
        status: Ray's word, and ours when it has ended or waits to be tried again.
        row: of its last epoch.
        failures: why its tries failed, the first one first.
    """

    trial_id: str
    config: Mapping[str, Any]
    status: str
    row: Mapping[str, Any] | None
    seconds: float
    failures: Sequence[str] = ()


class Watcher(tune.Callback):
    """Writes what Tune reports to the ledger, and shows it.

    Each try of a trial is a trial of its own to Tune; here they are one. Tune pickles its callbacks into its
    snapshots. Nothing is read from those: the watcher leaves no state.

    Args:
        observer: is given the trials that run, and once more those that have ended, several times a second.
        stop_file: is made to end trials in the middle of an epoch.
        searcher: hands the trials out; is told when memory runs out.
        give_up_try: is told, by Tune's id, of a try that Tune has ended without a word.
        tries: has been told of a failure by the searcher when it comes here.
        hangs: says which trials to end.
    """

    def __init__(
        self,
        ledger: Ledger,
        observer: Callable[[Sequence[LiveTrial]], None],
        effort: Effort,
        ending: Ending,
        *,
        stop_file: Path,
        searcher: FamilySearcher,
        give_up_try: Callable[[str], None],
        tries: Tries,
        hangs: HangWatch,
    ) -> None:
        self._ledger = ledger
        self._observer = observer
        self._effort = effort
        self._ending = ending
        self._stop_file = stop_file
        self._searcher = searcher
        self._give_up_try = give_up_try
        self._tries = tries
        self._hangs = hangs
        self._kills = OutOfMemoryKills()
        self._trials: dict[str, Any] = {}  # Ray's, the latest try of each, by our id, as all below
        self._rows: dict[str, Mapping[str, Any]] = {}
        self._started: dict[str, float] = {}
        self._ended: dict[str, float] = {}
        self._statuses: dict[str, Status | Literal["WAITING"]] = {}
        self._failures: dict[str, list[str]] = defaultdict(list)
        self._known: dict[str, str] = {}  # why tries fail that have not ended yet
        # Of thousands of trials few run: the others are not looked at again.
        self._unsettled: dict[str, None] = {}  # trials whose end has not been shown, in their order
        self._running: dict[str, Any] = {}  # Ray's trials by its id, as far as is known here
        self._n_seen = 0  # of the list of all of Ray's trials, which only grows

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial starts, or is tried again."""
        trial_id, params = trial.config["trial_id"], trial.config["params"]
        trial._default_result_or_future = (
            None  # nobody asks for it, and Ray ends a process that frees it late
        )
        self._trials[trial_id] = trial
        self._unsettled[trial_id] = None
        self._started[trial_id] = time.monotonic()
        self._statuses.pop(trial_id, None)
        self._rows.pop(trial_id, None)
        self._hangs.start(trial_id, params["epochs"])
        self._ledger.start(trial_id, params)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial reported an epoch, or gave a sign of life, or says that it fails for good."""
        trial_id = trial.config["trial_id"]
        if FAILURE in result:
            self._known[trial_id] = result[FAILURE]
            if ENDS_SEARCH in result:
                self._ending.give_up(result[FAILURE])
        if "epoch" not in result:
            self._hangs.hear(trial_id)
            return
        row = self._rows[trial_id] = {name: result[name] for name in ROW_NAMES}
        trained, did, work = result["trained"], result["did"], result["work"]
        self._hangs.hear(trial_id, row["epoch_seconds"] if trained else 0.0)
        self._ledger.epoch(
            trial_id,
            row,
            trained=trained,
            did=did,
            correct=result["correct"],
            worker=f"{result['where']} {result['pid']}",
        )
        self._effort.epochs_trained += int(trained)
        self._effort.prefix_images += work["prefix_images"]
        self._effort.pixels_decoded += work["pixels_decoded"]

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial ended by itself, or was stopped: by the scheduler, or because the search is over."""
        _forget_statistics(trial)
        trial_id = trial.config["trial_id"]
        if trial_id in self._known:
            self._fail(trial_id, Failure(self._known.pop(trial_id)))
            return
        status: Status = "TERMINATED"
        if int(self._rows.get(trial_id, {}).get("epoch", 0)) < trial.config["params"]["epochs"]:
            status = "SKIPPED" if self._ending.is_over() else "STOPPED"
        self._end(trial_id, status)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial failed, perhaps before it started: then Tune has not spoken of it yet."""
        _forget_statistics(trial)
        trial_id = trial.config["trial_id"]
        if self._trials.get(trial_id) is not trial:
            self.on_trial_start(iteration, trials, trial)
        n_killed = self._kills.take()
        known = self._known.pop(trial_id, None)
        if known is None and self._tries.has_lost_machine(trial_id):
            known = LOST_MACHINE
        folder = Path(trial.local_path)
        self._fail(trial_id, read_failure(folder, n_killed=n_killed) if known is None else Failure(known))

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Tune's loop came round: several times a second."""
        if self._ending.is_over():
            self._stop_file.touch()  # Tune's own way lets the epoch in progress come to its end
        self._running.update({trial.trial_id: trial for trial in trials[self._n_seen :]})
        self._n_seen = len(trials)
        for ray_id, trial in list(self._running.items()):
            # Where a process cannot be used again (the trial before does not end), Tune tells nobody.
            if trial.status == "ERROR" and self._searcher.runs(ray_id):
                self._give_up_try(ray_id)
                self.on_trial_error(iteration, trials, trial)
            if not self._searcher.runs(ray_id):
                del self._running[ray_id]
        for trial_id, seconds in self._hangs.look(time.monotonic()).items():
            self._known[trial_id] = f"it hung: no sign of life for {seconds:,.0f} s. It was ended."
            ray.kill(self._trials[trial_id].temporary_state.ray_actor)
        self._observer([self._live(trial_id) for trial_id in self._unsettled])
        self._unsettled = {trial_id: None for trial_id in self._unsettled if trial_id not in self._ended}

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Tune has ended its trials; what other callbacks have to end is theirs."""
        self._ending.settle()

    def _fail(self, trial_id: str, failure: Failure) -> None:
        """A try has failed: for the last time, or to be tried again."""
        reason = failure.reason
        if failure.is_of_memory and (n := self._searcher.have_fewer()) is not None:
            reason = f"{reason} From now on at most {n} of the trials run at a time."
        self._failures[trial_id].append(reason)
        if self._tries.has_given_up(trial_id):
            self._end(trial_id, "ERROR", reason)
            return
        self._hangs.end(trial_id)
        self._statuses[trial_id] = "WAITING"
        self._ledger.failure(trial_id, reason)

    def _end(self, trial_id: str, status: Status, error: str | None = None) -> None:
        self._hangs.end(trial_id)
        self._ended[trial_id] = time.monotonic()
        self._statuses[trial_id] = status
        self._ledger.end(trial_id, status, seconds=self._seconds(trial_id), error=error)
        self._searcher.tell_ends()

    def _seconds(self, trial_id: str) -> float:
        """Since the latest try was started."""
        return self._ended.get(trial_id, time.monotonic()) - self._started[trial_id]

    def _live(self, trial_id: str) -> LiveTrial:
        trial = self._trials[trial_id]
        return LiveTrial(
            trial_id=trial_id,
            config=trial.config["params"],
            status=self._statuses.get(trial_id, trial.status),
            row=self._rows.get(trial_id),
            seconds=self._ledger.earlier_seconds(trial_id) + self._seconds(trial_id),
            failures=tuple(self._failures[trial_id]),
        )


def _forget_statistics(trial: Any) -> None:
    """Let go of the running means that Tune keeps of each metric: most of its memory for a trial."""
    trial.run_metadata.metric_analysis.clear()
    trial.run_metadata.metric_n_steps.clear()
