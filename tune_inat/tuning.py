"""Ray Tune: a search run through it, trial by trial."""

import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

from tune_inat.config import TrialConfig
from tune_inat.devices import Devices
from tune_inat.errors import EXIT_INTERRUPTED
from tune_inat.ledger import Ledger, RungEntry, Status
from tune_inat.metrics import is_better
from tune_inat.plan import PlannedTrial
from tune_inat.results import Effort
from tune_inat.rows import Row
from tune_inat.searchers import FamilySearcher, PlannedProposer, Proposer, tune_mode
from tune_inat.sweep import EarlyStopping
from tune_inat.trial import ROW_NAMES, EpochReport, InterruptedTrialError, run_trial
from tune_inat.workbench import Job, Workbench, open_worker_bench

RUNG_METRIC = "rung_metric"


@dataclass(frozen=True)
class LiveTrial:
    """A trial as Tune sees it now. `row` is its last report."""

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
        max_seconds: after so long the trials that run are ended and no more are started.
    """

    job: Job
    devices: Devices
    n_trials: int
    horizons: Mapping[str, tuple[int, ...]]
    early_stopping: EarlyStopping | None
    longest: int
    max_seconds: float | None


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
    job, devices = run.job, run.devices
    with tempfile.TemporaryDirectory(prefix="tune_inat-") as scratch:
        stop_file = Path(scratch) / "stop"
        scheduler = _make_scheduler(run, ledger)
        deadline = None if run.max_seconds is None else time.monotonic() + run.max_seconds
        watcher = _Watcher(ledger, scheduler, observer, effort, is_over=lambda: _is_over(deadline, stop_file))
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
                    proposer, metric=job.metric, goal=job.goal, n_ahead=n_ahead, reuse=job.reuse
                ),
                scheduler=scheduler,
                num_samples=run.n_trials,
                max_concurrent_trials=devices.max_concurrent,
                reuse_actors=True,
                time_budget_s=run.max_seconds,
            ),
            run_config=tune.RunConfig(
                name="search", storage_path=scratch, verbose=0, callbacks=[watcher, *callbacks]
            ),
        )
        with _prompt_interrupt(stop_file):
            tuner.fit()
        effort.is_interrupted = stop_file.exists()


def _is_over(deadline: float | None, stop_file: Path) -> bool:
    return (deadline is not None and time.monotonic() >= deadline) or stop_file.exists()


def _make_scheduler(run: TrialRun, ledger: Ledger) -> Any:
    """ASHA (Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020), or none.

    Its rungs are filled with what the ledger's finished trials had reached in them.
    """
    early = run.early_stopping
    if early is None:
        return FIFOScheduler()  # type: ignore[no-untyped-call]
    scheduler = ASHAScheduler(
        time_attr="epoch",
        metric=RUNG_METRIC,
        mode=tune_mode(run.job.goal),
        # No rung at the last epoch, where there is nothing left to stop. Not a limit of a trial's epochs:
        max_t=max(early.grace_period, min(run.longest, early.max_epochs or run.longest) - 1),
        stop_last_trials=False,
        grace_period=early.grace_period,
        reduction_factor=early.reduction_factor,
        brackets=early.brackets,
    )
    for record in ledger.finished().values():
        for bracket, milestone, value in record.rungs:
            rungs = dict(scheduler._brackets[bracket]._rungs) if bracket < len(scheduler._brackets) else {}
            if milestone in rungs:
                rungs[milestone][record.trial_id] = value
    return scheduler


@contextmanager
def _prompt_interrupt(stop_file: Path) -> Iterator[None]:
    """Let the first Ctrl-C or SIGTERM end the search within seconds, and the second at once.

    Trials look for the stop file after each step; Tune ends gracefully on SIGUSR1.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
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
    rung_metric = _RungMetric(share)

    def report(progress: EpochReport) -> None:
        tune.report(
            {
                **progress.row,
                RUNG_METRIC: rung_metric.after(progress.row),
                "did": dict(progress.did),
                "trained": progress.trained,
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


class _RungMetric:
    """What ASHA compares: the metric of the epoch (`strict`), or the best that the trial has had."""

    def __init__(self, share: WorkerShare) -> None:
        self._job = share.job
        self._is_strict = share.early_stopping is not None and share.early_stopping.strict
        self._best: float | None = None

    def after(self, row: Row) -> float:
        """The value after one more epoch."""
        value = row[self._job.metric]
        if self._is_strict or self._best is None or is_better(value, self._best, self._job.goal):
            self._best = value
        return self._best


def _bench_of(share: WorkerShare) -> Workbench:
    if share.search_id not in _benches:
        _benches.clear()
        _benches[share.search_id] = open_worker_bench(share.job)
    return _benches[share.search_id]


class _Watcher(tune.Callback):
    """Writes what Tune reports to the ledger, and shows it.

    Tune pickles its callbacks into its snapshots. Nothing is read from those: the watcher leaves no state.
    """

    def __init__(
        self,
        ledger: Ledger,
        scheduler: Any,
        observer: Callable[[Sequence[LiveTrial]], None],
        effort: Effort,
        *,
        is_over: Callable[[], bool],
    ) -> None:
        self._ledger = ledger
        self._scheduler = scheduler
        self._observer = observer
        self._effort = effort
        self._is_over = is_over
        self._started: dict[str, float] = {}
        self._ended: dict[str, float] = {}

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
        self._ledger.epoch(trial.config["trial_id"], row, trained=trained, did=did)
        self._effort.epochs_trained += int(trained)
        self._effort.prefix_images += work["prefix_images"]
        self._effort.pixels_decoded += work["pixels_decoded"]

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial ended by itself, or was stopped: by the scheduler, or because the search is over."""
        last = int((trial.last_result or {}).get("epoch", 0))
        status: Status = "TERMINATED"
        if last < trial.config["params"]["epochs"]:
            status = "SKIPPED" if self._is_over() else "STOPPED"
        self._end(trial, status)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial failed."""
        error = trial.get_pickled_error() or trial.get_error() or "the process of the trial died"
        cause = getattr(error, "cause", None) or error
        self._end(trial, "ERROR", f"{type(cause).__name__}: {cause}".strip())

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Tune's loop came round: several times a second."""
        self._observer([self._live(trial) for trial in trials if trial.trial_id in self._started])

    def _end(self, trial: Any, status: Status, error: str | None = None) -> None:
        self._ended[trial.trial_id] = time.monotonic()
        self._ledger.end(
            trial.config["trial_id"],
            status,
            seconds=self._seconds(trial),
            error=error,
            rungs=self._rungs_of(trial.trial_id),
        )

    def _seconds(self, trial: Any) -> float:
        end = self._ended.get(trial.trial_id, time.monotonic())
        return end - self._started[trial.trial_id]

    def _live(self, trial: Any) -> LiveTrial:
        return LiveTrial(
            trial_id=trial.config["trial_id"],
            config=trial.config["params"],
            status=trial.status,
            row=trial.last_result or None,
            seconds=self._seconds(trial),
        )

    def _rungs_of(self, ray_id: str) -> list[RungEntry]:
        return [
            (number, int(milestone), float(recorded[ray_id]))
            for number, bracket in enumerate(getattr(self._scheduler, "_brackets", []))
            for milestone, recorded in bracket._rungs
            if ray_id in recorded
        ]
