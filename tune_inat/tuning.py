"""Ray Tune: a search run through it, trial by trial."""

import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from ray import cloudpickle, tune
from ray.exceptions import RayActorError, RayTaskError
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from tune_inat.cluster import keep_keys_out_of_commands
from tune_inat.config import TrialConfig
from tune_inat.devices import Devices
from tune_inat.errors import EXIT_INTERRUPTED
from tune_inat.job import Job
from tune_inat.leaderboard import Effort
from tune_inat.ledger import Ledger, Status, TrialRecord
from tune_inat.metrics import is_better
from tune_inat.objective import Metric
from tune_inat.plan import PlannedTrial
from tune_inat.rows import Row
from tune_inat.searchers import FamilySearcher, PlannedProposer, Proposer, tune_mode
from tune_inat.sweep import EarlyStopping
from tune_inat.trial import ROW_NAMES, EpochReport, InterruptedTrialError, run_trial
from tune_inat.workbench import Workbench, open_worker_bench

RUNG_METRIC = "rung_metric"
ERROR_PICKLE, ERROR_TEXT = "error.pkl", "error.txt"  # what Tune writes of a trial that failed
MAX_REASON = 500  # characters


class Ending:
    """Says when a search is to end before its trials do: when its time is up, or after Ctrl-C.

    Args:
        max_seconds: from `begin` on.
    """

    def __init__(self, max_seconds: float | None = None) -> None:
        self.max_seconds = max_seconds
        self.is_interrupted = False
        self._deadline: float | None = None

    def begin(self) -> None:
        """The trials begin: the clock runs from now on."""
        if self.max_seconds is not None:
            self._deadline = time.monotonic() + self.max_seconds

    def is_over(self) -> bool:
        """Whether trials that run now are to end."""
        return self.is_interrupted or (self._deadline is not None and time.monotonic() >= self._deadline)


@dataclass(frozen=True)
class LiveTrial:
    """A trial as it stands now. `row` is its last report; `status` Ray's word, and ours when it has ended."""

    trial_id: str
    config: Mapping[str, Any]
    status: str
    row: Mapping[str, Any] | None
    seconds: float


@dataclass(frozen=True)
class WorkerShare:
    """What every worker of a search gets once.

    Attributes:
        horizons: by family, the epochs at which its trials end, as far as they are known.
        search_id: tells one search from the next in a process that serves both.
    """

    job: Job
    horizons: Mapping[str, tuple[int, ...]]
    early_stopping: EarlyStopping | None
    stop_file: Path
    search_id: str


@dataclass(frozen=True)
class TrialRun:
    """A search's trials, as Tune is to run them.

    Attributes:
        horizons: by family, the epochs at which its trials end, as far as they are known.
        longest: the most epochs that any trial asks for.
        finished: what earlier runs of the command have finished, for early stopping to compare with.
        ending: when it says so, the trials that run are ended and no more are started.
    """

    job: Job
    devices: Devices
    n_trials: int
    horizons: Mapping[str, tuple[int, ...]]
    early_stopping: EarlyStopping | None
    longest: int
    finished: Collection[TrialRecord]
    ending: Ending


def run_trials(
    run: TrialRun,
    proposer: Proposer,
    *,
    effort: Effort,
    ledger: Ledger,
    observer: Callable[[Sequence[LiveTrial]], None],
    callbacks: Sequence[tune.Callback],
) -> None:
    """Run trials until there are no more, or time is up, or Ctrl-C.

    Args:
        effort: is added what the trials do, and told if they were interrupted.
        observer: is given all trials that have started, several times a second.
        callbacks: more of Tune's callbacks (W&B).
    """
    keep_keys_out_of_commands()
    job, devices, ending = run.job, run.devices, run.ending
    with tempfile.TemporaryDirectory(prefix="tune_inat-") as scratch:
        stop_file = Path(scratch) / "stop"
        scheduler = make_scheduler(
            run.early_stopping, run.longest, Metric(job.metric, job.goal), finished=run.finished
        )
        ending.begin()
        watcher = Watcher(ledger, observer, effort, ending, stop_file)
        share = WorkerShare(job, run.horizons, run.early_stopping, stop_file, scratch)
        trainable = tune.with_resources(
            tune.with_parameters(_train, share=share),
            {"cpu": devices.cpus_per_trial, "gpu": devices.gpus_per_trial},
        )
        n_ahead = run.n_trials if isinstance(proposer, PlannedProposer) else 1
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=FamilySearcher(
                    proposer,
                    metric=job.metric,
                    goal=job.goal,
                    n_ahead=n_ahead,
                    reuse=job.reuse,
                    is_over=ending.is_over,
                ),
                scheduler=scheduler,
                num_samples=run.n_trials,
                max_concurrent_trials=devices.max_concurrent,
                reuse_actors=True,
                time_budget_s=ending.max_seconds,
            ),
            run_config=tune.RunConfig(
                name="search", storage_path=scratch, verbose=0, callbacks=[watcher, *callbacks]
            ),
        )
        with _prompt_interrupt(ending, stop_file):
            tuner.fit()
        effort.is_interrupted = ending.is_interrupted


def make_scheduler(
    early: EarlyStopping | None, longest: int, metric: Metric, *, finished: Collection[TrialRecord]
) -> TrialScheduler:
    """ASHA (Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020), or none.

    Args:
        longest: the most epochs that any trial asks for. No rung is there, where nothing is left to stop.
        finished: trials that stand in the rungs already, as their rows say: by the metric of now.
    """
    if early is None:
        return FIFOScheduler()  # type: ignore[no-untyped-call]
    mode = tune_mode(metric.goal)
    scheduler = ASHAScheduler(
        time_attr="epoch",
        metric=RUNG_METRIC,
        mode=mode,
        max_t=max(early.grace_period, longest),
        stop_last_trials=False,
        grace_period=early.grace_period,
        reduction_factor=early.reduction_factor,
        brackets=early.brackets,
    )
    # Ray's own rungs are not W&B's: 4.5 epochs for eta 1.5, and a rounded logarithm loses the last of eta 3.
    rungs: dict[int, dict[str, float]] = {milestone: {} for milestone in reversed(early.rungs(longest))}
    sign = 1.0 if mode == "max" else -1.0  # ASHA holds what it has recorded so that more is better
    for record in finished:
        rung_metric = RungMetric(metric, early)
        for row in record.rows:
            value = rung_metric.after(row)
            if int(row["epoch"]) in rungs:
                rungs[int(row["epoch"])][record.trial_id] = sign * value
    for bracket in scheduler._brackets:
        bracket._rungs = list(rungs.items())
    return scheduler


@contextmanager
def _prompt_interrupt(ending: Ending, stop_file: Path) -> Iterator[None]:
    """Let the first Ctrl-C or SIGTERM end the search within seconds, and the second at once.

    Trials look for the stop file after each step; Tune ends gracefully on SIGUSR1.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        ending.is_interrupted = True
        stop_file.touch()
        for each, handler in before.items():
            signal.signal(each, handler)
        signal.signal(signal.SIGTERM, lambda *_: os._exit(EXIT_INTERRUPTED))
        signal.signal(signal.SIGINT, lambda *_: os._exit(EXIT_INTERRUPTED))
        os.kill(os.getpid(), signal.SIGUSR1)

    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    for each in before:
        signal.signal(each, on_signal)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


_benches: dict[str, Workbench] = {}  # of this worker process: one search at a time


def _train(config: dict[str, Any], share: WorkerShare) -> None:
    """The trainable, in a worker process of Ray that is used again for trial after trial."""
    planned = PlannedTrial(config["trial_id"], TrialConfig(**config["params"]))
    bench = _bench_of(share)
    rung_metric = RungMetric(Metric(share.job.metric, share.job.goal), share.early_stopping)

    def report(progress: EpochReport) -> None:
        tune.report(
            {
                **progress.row,
                RUNG_METRIC: rung_metric.after(progress.row),
                "did": dict(progress.did),
                "trained": progress.trained,
                "correct": progress.correct,
                "work": asdict(bench.take_work()),
            }
        )

    with suppress(InterruptedTrialError):  # the watcher sees that the search is over
        run_trial(
            bench,
            planned.config,
            horizons=share.horizons.get(planned.family_key, ()),
            report=report,
            is_interrupted=share.stop_file.exists,
        )


class RungMetric:
    """What ASHA compares of a trial: the metric of the epoch (`strict`), or the best that it has had."""

    def __init__(self, metric: Metric, early: EarlyStopping | None) -> None:
        self._metric = metric
        self._is_strict = early is not None and early.strict
        self._best: float | None = None

    def after(self, row: Row) -> float:
        """The value after one more epoch."""
        value = row[self._metric.name]
        if self._is_strict or self._best is None or is_better(value, self._best, self._metric.goal):
            self._best = value
        return self._best


def _bench_of(share: WorkerShare) -> Workbench:
    if share.search_id not in _benches:
        _benches.clear()
        _benches[share.search_id] = open_worker_bench(share.job)
    return _benches[share.search_id]


def read_reason(folder: Path) -> str:
    """Why a trial failed, from what Tune left in the trial's folder on this machine.

    (Ray 2.60's own `Trial.get_pickled_error` looks in the storage, where it is not yet.)
    """
    error, text = None, ""
    with suppress(OSError):
        text = _last_line((folder / ERROR_TEXT).read_text(errors="replace"))
    with suppress(Exception):  # what cannot be unpickled here still has its text
        error = cloudpickle.loads((folder / ERROR_PICKLE).read_bytes())
    if isinstance(error, RayTaskError):
        return _cut_short(f"{type(error.cause).__name__}: {error.cause}")
    if text and not isinstance(error, RayActorError):
        return _cut_short(text)
    return _cut_short(": ".join(filter(None, ["the process of the trial died", text])))


def _cut_short(text: str) -> str:
    return text if len(text) <= MAX_REASON else f"{text[:MAX_REASON]}..."


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


class Watcher(tune.Callback):
    """Writes what Tune reports to the ledger, and shows it.

    Tune pickles its callbacks into its snapshots. Nothing is read from those: the watcher leaves no state.
    """

    def __init__(
        self,
        ledger: Ledger,
        observer: Callable[[Sequence[LiveTrial]], None],
        effort: Effort,
        ending: Ending,
        stop_file: Path,
    ) -> None:
        self._ledger = ledger
        self._observer = observer
        self._effort = effort
        self._ending = ending
        self._stop_file = stop_file
        self._started: dict[str, float] = {}
        self._ended: dict[str, float] = {}
        self._statuses: dict[str, Status] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial starts."""
        self._started[trial.trial_id] = time.monotonic()
        self._ledger.start(trial.config["trial_id"], trial.config["params"])

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial reported an epoch."""
        row = {name: result[name] for name in ROW_NAMES}
        trained, did, work = result["trained"], result["did"], result["work"]
        self._ledger.epoch(
            trial.config["trial_id"],
            row,
            trained=trained,
            did=did,
            correct=result["correct"],
            worker=f"{result['hostname']} {result['pid']}",
        )
        self._effort.epochs_trained += int(trained)
        self._effort.prefix_images += work["prefix_images"]
        self._effort.pixels_decoded += work["pixels_decoded"]

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial ended by itself, or was stopped: by the scheduler, or because the search is over."""
        last = int((trial.last_result or {}).get("epoch", 0))
        status: Status = "TERMINATED"
        if last < trial.config["params"]["epochs"]:
            status = "SKIPPED" if self._ending.is_over() else "STOPPED"
        self._end(trial, status)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial failed, perhaps before it started: then Tune has not spoken of it yet."""
        if trial.trial_id not in self._started:
            self.on_trial_start(iteration, trials, trial)
        self._end(trial, "ERROR", read_reason(Path(trial.local_path)))

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Tune's loop came round: several times a second."""
        if self._ending.is_over():
            self._stop_file.touch()  # Tune's own way lets the epoch in progress come to its end
        self._observer([self._live(trial) for trial in trials if trial.trial_id in self._started])

    def _end(self, trial: Any, status: Status, error: str | None = None) -> None:
        self._ended[trial.trial_id] = time.monotonic()
        self._statuses[trial.trial_id] = status
        self._ledger.end(
            trial.config["trial_id"],
            status,
            seconds=self._seconds(trial),
            error=error,
        )

    def _seconds(self, trial: Any) -> float:
        end = self._ended.get(trial.trial_id, time.monotonic())
        return end - self._started[trial.trial_id]

    def _live(self, trial: Any) -> LiveTrial:
        return LiveTrial(
            trial_id=trial.config["trial_id"],
            config=trial.config["params"],
            status=self._statuses.get(trial.trial_id, trial.status),
            row=trial.last_result or None,
            seconds=self._seconds(trial),
        )
