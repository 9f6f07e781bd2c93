"""Ray Tune: a search run through it, trial by trial."""

import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import ConcurrencyLimiter

from tune_inat.cluster import keep_keys_out_of_commands
from tune_inat.config import TrialConfig
from tune_inat.devices import Cluster, Devices
from tune_inat.ending import Ending
from tune_inat.errors import DataError, ResourceError, UserError
from tune_inat.failures import take_memory_kills_for_deaths
from tune_inat.families import ENDS_SEARCH, FAILURE, FamilySearcher
from tune_inat.hangs import SIGN_SECONDS, HangWatch
from tune_inat.interrupts import interruptible
from tune_inat.job import Job
from tune_inat.leaderboard import Effort
from tune_inat.ledger import Ledger, TrialRecord
from tune_inat.life import heard_by
from tune_inat.losses import Losses
from tune_inat.metrics import is_better
from tune_inat.objective import Metric
from tune_inat.places import this_host
from tune_inat.plan import PlannedTrial
from tune_inat.rows import Row
from tune_inat.scratch import scratch_folder
from tune_inat.searchers import PlannedProposer, Proposer, tune_mode
from tune_inat.shares import job_at
from tune_inat.slots import Slots
from tune_inat.sweep import EarlyStopping
from tune_inat.trial import EpochReport, InterruptedTrialError, NonFiniteLossError, run_trial
from tune_inat.tries import Tries
from tune_inat.watcher import LiveTrial, Watcher
from tune_inat.workbench import Peers, Workbench, open_worker_bench

RUNG_METRIC = "rung_metric"
GRACE_SECONDS = 1.0  # after Ctrl-C, for trials to end by themselves


@dataclass(frozen=True)
class WorkerShare:
    """What every worker of a search gets once.

    Attributes:
        horizons: by family, the epochs at which its trials end, as far as they are known.
        search_id: tells one search from the next in a process that serves both.
        peers: what other nodes of a cluster have.
        jobs: the job by the kind of a trial's place, where that is not the same for all.
    """

    job: Job
    horizons: Mapping[str, tuple[int, ...]]
    early_stopping: EarlyStopping | None
    stop_file: Path
    search_id: str
    peers: Peers | None = None
    jobs: Mapping[str, Job] = field(default_factory=dict)


@dataclass(frozen=True)
class TrialRun:
    """A search's trials, as Tune is to run them.

    Attributes:
        horizons: by family, the epochs at which its trials end, as far as they are known.
        longest: the most epochs that any trial asks for.
        finished: what earlier runs of the command have finished, for early stopping to compare with.
        ending: when it says so, the trials that run are ended and no more are started.
        tries: how often a trial that fails is tried again.
        trial_seconds: what a trial should take, by its id, where that is known.
        peers: what a node of a cluster can have from the others.
        cluster: what there is now, for trials that run at places of several kinds.
    """

    job: Job
    devices: Devices
    n_trials: int
    horizons: Mapping[str, tuple[int, ...]]
    early_stopping: EarlyStopping | None
    longest: int
    finished: Collection[TrialRecord]
    ending: Ending
    tries: Tries = field(default_factory=Tries)
    trial_seconds: Mapping[str, float] = field(default_factory=dict)
    peers: Peers | None = None
    cluster: Callable[[], Cluster] | None = None


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
    ending = run.ending
    take_memory_kills_for_deaths()
    with scratch_folder() as scratch:
        stop_file = scratch / "stop"
        ending.begin()
        losses = Losses()
        searcher = _make_searcher(run, proposer, losses)
        limited = ConcurrencyLimiter(searcher, run.devices.max_concurrent)
        watcher = Watcher(
            ledger,
            observer,
            effort,
            ending,
            stop_file=stop_file,
            searcher=searcher,
            give_up_try=partial(limited.on_trial_complete, error=True),
            tries=run.tries,
            hangs=HangWatch(run.trial_seconds),
        )
        tuner = tune.Tuner(
            _make_trainable(run, stop_file, search_id=str(scratch)),
            tune_config=tune.TuneConfig(
                search_alg=limited,
                scheduler=make_scheduler(
                    run.early_stopping,
                    run.longest,
                    Metric(run.job.metric, run.job.goal),
                    finished=run.finished,
                ),
                num_samples=run.n_trials * run.tries.most,  # each try is one to Tune
                reuse_actors=True,  # its own time_budget_s goes by the clock on the wall, which may jump
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=str(scratch),
                verbose=0,
                callbacks=[losses, watcher, SilentProgress(), *callbacks],
                progress_reporter=SilentReporter(),
            ),
        )
        try:
            with prompt_interrupt(ending, stop_file):
                tuner.fit()
        except KeyboardInterrupt:
            if not ending.is_interrupted:
                raise
            for callback in callbacks:  # Tune has not come to it
                callback.on_experiment_end(trials=[])
        finally:
            effort.is_interrupted, effort.problem = ending.is_interrupted, ending.problem


def _make_searcher(run: TrialRun, proposer: Proposer, losses: Losses) -> FamilySearcher:
    job, devices = run.job, run.devices
    return FamilySearcher(
        proposer,
        metric=job.metric,
        goal=job.goal,
        n_ahead=run.n_trials if isinstance(proposer, PlannedProposer) else 1,
        max_concurrent=devices.max_concurrent,
        reuse=job.reuse,
        seconds=run.trial_seconds if is_order_free(run) else {},
        tries=run.tries,
        has_lost_machine=losses.has_lost_machine,
        is_over=run.ending.is_over,
        slots=Slots(devices.places, run.cluster) if devices.places and run.cluster else None,
    )


def _make_trainable(run: TrialRun, stop_file: Path, *, search_id: str) -> Any:
    """What Tune runs for each trial, with what it asks Ray for."""
    job, devices = run.job, run.devices
    jobs = {place.kind: job_at(job, place) for place in devices.places}
    share = WorkerShare(job, run.horizons, run.early_stopping, stop_file, search_id, run.peers, jobs)
    everywhere = {"cpu": devices.cpus_per_trial, "gpu": devices.gpus_per_trial}
    return tune.with_resources(
        tune.with_parameters(_train, share=share), resources_at if devices.places else everywhere
    )


def is_order_free(run: TrialRun) -> bool:
    """Whether trials go longest first, since another order than their plan's changes nothing but the time.

    Early stopping compares a trial with those before it: it would train up to twice as much if all long ones
    came first (`benchmarks.schedule`). `--max-hours` leaves the last ones out. For one trial at a time no
    order is shorter.
    """
    is_early = run.early_stopping is not None or run.ending.max_seconds is not None
    return not is_early and run.devices.max_concurrent > 1


def resources_at(config: Mapping[str, Any]) -> tune.PlacementGroupFactory:
    """What Ray is asked for so that a trial runs at its place, see `Slots`."""
    place = config["place"]
    labels = {"ray.io/node-id": f"in({','.join(place['nodes'])})"} if place["nodes"] else {}
    return tune.PlacementGroupFactory(
        [{"CPU": place["cpus"], **({"GPU": place["gpus"]} if place["gpus"] else {})}],
        bundle_label_selector=[labels],
    )


class SilentReporter(tune.ProgressReporter):
    """Tune's own would clear a notebook's output, whatever its verbosity."""

    def should_report(self, trials: list[Any], done: bool = False) -> bool:
        """Never."""
        return False


class Rungs(ASHAScheduler):
    """ASHA that compares with each trial once: what a failed try has recorded, the next one records again."""

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """A try has failed; to Ray the next one is another trial."""
        super().on_trial_error(tune_controller, trial)
        for bracket in self._brackets:
            for _, recorded in bracket._rungs:
                recorded.pop(trial.trial_id, None)


class SilentProgress(TrialProgressCallback):
    """Tune's own would print the trials that end without an epoch, whatever its verbosity."""

    def on_trial_result(self, *_: Any, **info: Any) -> None:
        """Nothing."""

    def on_trial_error(self, *_: Any, **info: Any) -> None:
        """Nothing."""

    def on_trial_complete(self, *_: Any, **info: Any) -> None:
        """Nothing."""


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
    scheduler = Rungs(
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
def prompt_interrupt(ending: Ending, stop_file: Path) -> Iterator[None]:
    """Let Ctrl-C or SIGTERM end the trials within seconds.

    Trials look for the stop file before each step; Tune ends gracefully on SIGUSR1, but would wait for
    processes that do not look: in a long step, or computing what trials share.
    """

    def end() -> None:
        ending.is_interrupted = True
        with suppress(OSError):
            stop_file.touch()
        os.kill(os.getpid(), signal.SIGUSR1)

    with interruptible() as interruption, _surviving(signal.SIGUSR1):
        ending.settle = interruption.settle
        with interruption.gently(end, within_seconds=GRACE_SECONDS):
            yield


@contextmanager
def _surviving(number: signal.Signals) -> Iterator[None]:
    """A signal that comes before Tune listens to it must not end the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(number, before)


_benches: dict[str, Workbench] = {}  # of this worker process: one search at a time


def _train(config: dict[str, Any], share: WorkerShare) -> None:
    """The trainable, in a worker process of Ray that is used again for trial after trial."""
    planned = PlannedTrial(config["trial_id"], TrialConfig(**config["params"]))
    rung_metric = RungMetric(Metric(share.job.metric, share.job.goal), share.early_stopping)
    place = config.get("place")

    def report(progress: EpochReport) -> None:
        tune.report(
            {
                **progress.row,
                RUNG_METRIC: rung_metric.after(progress.row),
                "did": dict(progress.did),
                "where": _bench_of(share, place).where,
                "trained": progress.trained,
                "correct": progress.correct,
                "work": asdict(_bench_of(share, place).take_work()),
            }
        )

    with heard_by(Pulse()), suppress(InterruptedTrialError):  # the watcher sees that the search is over
        try:
            run_trial(
                _bench_of(share, place),
                planned.config,
                horizons=share.horizons.get(planned.family_key, ()),
                report=report,
                is_interrupted=share.stop_file.exists,
            )
        except NonFiniteLossError as error:  # what is as sure to fail again is reported, not raised:
            tune.report({FAILURE: f"NonFiniteLossError: {error}. A lower lr may help."})
        except (ResourceError, DataError) as error:  # as would all other trials here, one after the other
            where = f"On {this_host()}: " if share.peers is not None else ""
            tune.report({FAILURE: where + " ".join(error.problems), ENDS_SEARCH: True})
        except UserError as error:  # then Ray goes on with this process, and nobody tries again
            tune.report({FAILURE: " ".join(error.problems)})


class Pulse:
    """Tells Tune now and then that a trial is alive, between its epochs."""

    def __init__(self) -> None:
        self._told = time.monotonic()

    def __call__(self) -> None:
        now = time.monotonic()
        if now - self._told >= SIGN_SECONDS:
            self._told = now
            tune.report({"alive": True})


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


def _bench_of(share: WorkerShare, place: Mapping[str, Any] | None) -> Workbench:
    """The workbench of this process, which Ray has placed once and for all."""
    if share.search_id not in _benches:
        _benches.clear()
        job = share.job if place is None else share.jobs[place["kind"]]
        _benches[share.search_id] = open_worker_bench(job, share.peers)
    return _benches[share.search_id]
