"""Conducts a search from its settings to its folder of results."""

import json
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, Any

from tune_inat.conclusion import Conclusion
from tune_inat.disk import explaining_full_disk, size_of
from tune_inat.ending import Ending
from tune_inat.errors import ResourceError
from tune_inat.inputs import Inputs, open_store, read_inputs
from tune_inat.leaderboard import (
    Effort,
    TestResult,
    TrialResult,
    best_of,
    leaderboard,
    read_summary,
    varied_parameters,
    write_leaderboard,
    write_summary,
)
from tune_inat.ledger import Ledger
from tune_inat.mirror import Mirror
from tune_inat.objective import Metric
from tune_inat.plan import longest_trial
from tune_inat.progress import Terminal
from tune_inat.remaining import Remaining
from tune_inat.remote import hide_secrets
from tune_inat.runs import (
    find_run_folder,
    keep_identity,
    kept_cpus,
    short_name,
    work_identity,
)
from tune_inat.scratch import scratch_folder
from tune_inat.settings import SearchSettings
from tune_inat.storages import Storage, open_storage
from tune_inat.store import Store, default_root, hash_of
from tune_inat.summary import compose_summary, to_planned
from tune_inat.tries import Tries
from tune_inat.wandb_files import sync_line

if TYPE_CHECKING:
    from tune_inat.devices import Cluster, Devices
    from tune_inat.examination import Examination
    from tune_inat.forecast import Forecast
    from tune_inat.outcome import Examined
    from tune_inat.preparation import Preparation
    from tune_inat.shares import Measures
    from tune_inat.spread import Spread
    from tune_inat.tracking import WandbTracker
    from tune_inat.workbench import Workbench

DEFAULT_PROJECT = "tune_inat"
RAY_DIED = "Ray has died, so this search ends here. The same command goes on with what is done."


def foresee_search(settings: SearchSettings, terminal: Terminal) -> dict[str, Any]:
    """The plan of a search, or of what is left of it, in figures: see `Forecast`.

    Raises:
        UserError: whatever is wrong with the settings, the inputs or the machine.
    """
    with ExitStack() as stack:
        storage = open_storage(settings)
        inputs, folder = _open(settings, storage, terminal, stack)
        return _Conductor(
            inputs, folder, Ledger(folder), terminal, storage, started=time.monotonic(), bytes_before=0
        ).foresee()


def conduct_search(
    settings: SearchSettings, terminal: Terminal, *, started: float
) -> tuple[Path, dict[str, Any]]:
    """Run a search, or what is left of it, and write its results.

    Args:
        started: when the command began, by `time.monotonic()`.

    Returns:
        The search's folder and the content of its `summary.json`.

    Raises:
        UserError: whatever is wrong with the settings, the inputs or the machine.
    """
    with ExitStack() as stack:
        bytes_before = size_of(default_root()) if settings.reuse else 0
        storage = open_storage(settings)
        inputs, folder = _open(settings, storage, terminal, stack)
        mirror = stack.enter_context(storage.kept(folder, terminal))
        stack.enter_context(explaining_full_disk(folder, inputs.store.root, Path(gettempdir())))
        ledger = Ledger(folder)
        conductor = _Conductor(
            inputs, folder, ledger, terminal, storage, mirror, started=started, bytes_before=bytes_before
        )
        return folder, conductor.run()


def _open(
    settings: SearchSettings, storage: Storage, terminal: Terminal, stack: ExitStack
) -> tuple[Inputs, Path]:
    """The inputs of a search and its folder, which need not be there yet."""
    store = open_store(settings)
    if not settings.reuse:  # nothing from earlier searches, nothing for later ones
        store = Store(stack.enter_context(scratch_folder()))
    inputs = read_inputs(settings, terminal, store)
    proposed = f"{short_name(Path(inputs.space.source).stem)}-{short_name(inputs.data.name)}"
    storage.look_up(settings.name, proposed)
    identity = _identity(inputs)
    return inputs, find_run_folder(storage.root, settings.name, proposed, identity, place=storage.place)


def _identity(inputs: Inputs) -> dict[str, Any]:
    """What makes a search this one, as its folder keeps it."""
    identity: dict[str, Any] = json.loads(json.dumps(inputs.identity()))
    return identity


class _Conductor:
    """One run of the command on a search's folder."""

    def __init__(
        self,
        inputs: Inputs,
        folder: Path,
        ledger: Ledger,
        terminal: Terminal,
        storage: Storage,
        mirror: Mirror | None = None,
        *,
        started: float,
        bytes_before: int,
    ) -> None:
        self._inputs = inputs
        self._settings = inputs.settings
        self._metric: Metric = inputs.space.metric
        self._folder = folder
        self._ledger = ledger
        self._remaining = Remaining(inputs, folder, ledger)
        self._terminal = terminal
        self._storage = storage
        self._mirror = mirror
        self._started = started
        self._effort = Effort(pixels_decoded=0 if inputs.pixels is None else inputs.pixels.n_decoded)
        self._bench: Workbench | None = None  # of this process; heavy to import, so only when it is needed
        self._forecast: Forecast | None = None  # of trials that were run now
        self._wandb: WandbTracker | None = None
        hours = self._settings.max_hours
        self._ending = Ending(None if hours is None else hours * 3600)
        self._examined: Examined | None = None  # the best model, by a node of the cluster
        self._bytes_before = bytes_before

    def run(self) -> dict[str, Any]:
        """Run what is left, then write the results; returns the summary.

        On Ctrl-C or SIGTERM the results are those so far.

        Raises:
            KeyboardInterrupt: there are none so far.
        """
        self._say_notices()
        try:
            n_left = self._remaining.count()
            if n_left > 0:
                self._run_trials(n_left)
            else:
                keep_identity(self._folder, _identity(self._inputs))
                self._terminal.say(f"All {len(self._remaining.finished()):,} trials are done already.")
            return self._conclude()
        except KeyboardInterrupt:
            if not self._remaining.records():
                raise
            self._effort.is_interrupted = True
            return self._conclude()

    def _conclude(self) -> dict[str, Any]:
        """Write the results. After an interrupt only what takes a moment: no model is tested or exported."""
        is_interrupted = self._effort.is_interrupted
        ranked = leaderboard(self._remaining.results(), self._metric.name, self._metric.goal)
        best = best_of(ranked)
        with self._as_far_as_it_fits():
            write_leaderboard(self._folder, ranked)
        has_run = self._forecast is not None or is_interrupted
        conclusion = Conclusion(self._inputs, self._folder, self._terminal, self._open_bench, has_run=has_run)
        exported = None if best is None else conclusion.exported(best)
        if best is not None and exported is None and not is_interrupted:
            with self._as_far_as_it_fits():
                exported = conclusion.export(best, self._examined)
        if not is_interrupted:
            self._inputs.store.make_room()  # for the epochs that trials have left
        test = None if exported is None else exported.test
        summary = self._summary(ranked, best, test, is_exported=exported is not None)
        with self._as_far_as_it_fits():
            write_summary(self._folder, summary)  # all that is known, before anything that waits for W&B
            if best is not None and exported and self._is_to_be_shown(has_news=conclusion.has_news):
                tracker = self._wandb or self._tracker(lambda: False)
                conclusion.show(best, test, self._remaining.records()[best.trial_id], tracker)
                summary["wandb_sync"] = sync_line(self._folder)
                write_summary(self._folder, summary)
        report = conclusion.report()
        if self._mirror is not None:
            with self._terminal.task(f"Sending it to {self._storage.place(self._folder)}", None, ""):
                self._mirror.flush()  # nothing is said to be done before it is there
        self._terminal.closing(
            self._folder,
            summary,
            varied_parameters(ranked),
            report=report,
            sync_line=summary["wandb_sync"],
            place=self._storage.place,
        )
        self._say_what_is_left(summary)
        return summary

    @contextmanager
    def _as_far_as_it_fits(self) -> Iterator[None]:
        """Around writing results: what a full disk refuses is told at the end, and the rest goes on."""
        try:
            with explaining_full_disk(self._folder, self._inputs.store.root, Path(gettempdir())):
                yield
        except ResourceError as error:
            if self._effort.problem is None:
                self._effort.problem = str(error)
            else:
                self._terminal.warn(str(error))

    def _say_what_is_left(self, summary: dict[str, Any]) -> None:
        """Why the search is not whole, if it is not, and the command that goes on with it."""
        if self._effort.problem is not None and summary["status"] == "DONE":
            summary["status"] = "FAILURES"  # for the exit code: it came up when the summary was written
        why = self._effort.problem
        if summary["is_out_of_time"]:
            why = f"--max-hours {self._settings.max_hours:g} is over."
        if why is None:
            return
        without = "" if self._settings.reuse else ", without --no-reuse,"
        left = f"{summary['trials_left']} of {self._inputs.plan.n_trials} trials"
        state = f"The search ends with {left} left." if summary["trials_left"] else "All trials have ended."
        self._terminal.warn(f"{why} {state} The same command{without} goes on: {summary['command']}")

    def foresee(self) -> dict[str, Any]:
        """The plan of what is left, as JSON; nothing is trained or written but what was measured for it."""
        self._say_notices()
        if self._inputs.pixels is None:
            self._terminal.say(
                "Images are not decoded for a plan. Whether each can be read is seen when the search begins, "
                f"or by python -m tune_inat.data {shlex.quote(hide_secrets(str(self._settings.data)))}."
            )
        with ExitStack() as session, self._terminal.task("Planning", None, ""):
            from tune_inat.cluster import ray_session
            from tune_inat.preparation import START_SECONDS, this_machine

            if self._settings.address is None:
                cluster = this_machine()
            else:
                cluster = self._await_members(session.enter_context(ray_session(self._settings.address)))
            preparation = self._prepare(self._remaining.count())
            forecast, _ = preparation.foresee(
                cluster, seconds_so_far=START_SECONDS, measures=self._measures()
            )
        return forecast.to_json()

    def _await_members(self, cluster: Callable[[], "Cluster"]) -> "Cluster":
        """The cluster of `--address`, when the machines are up that it is to have all the time."""
        from tune_inat.arrivals import await_members

        cluster()  # joins it
        notice = await_members(self._terminal, self._is_over)
        if notice is not None:
            self._terminal.warn(notice)
        return cluster()

    def _is_over(self) -> bool:
        """Whether the search has no more time.

        Raises:
            StorageError: it cannot keep what it does any more.
        """
        if self._mirror is not None:
            self._mirror.check()
        return self._ending.is_over()

    def _measures(self) -> "Measures | None":
        """What measures the GPUs of a cluster's nodes; of this machine, it is the preparation's own."""
        if self._settings.address is None:
            return None
        from tune_inat.gauges import cluster_gauge

        return cluster_gauge

    # ---- the trials

    def _say_notices(self) -> None:
        for notice in (*self._inputs.space.notices, *self._inputs.data.notices):
            self._terminal.say(notice)
        for warning in self._inputs.warnings():
            self._terminal.warn(warning)

    def _prepare(self, n_left: int) -> "Preparation":
        """The preparation of the trials that are left, once it is known that they can run."""
        from tune_inat.preparation import Preparation

        preparation = Preparation(
            self._inputs,
            self._open_bench(),
            self._remaining.planned(),
            n_left=n_left,
            n_finished=len(self._remaining.finished()),
            cpus_so_far=kept_cpus(self._folder),
        )
        for notice in preparation.check():
            self._terminal.warn(notice)
        return preparation

    def _open_bench(self) -> "Workbench":
        """The workbench of this process."""
        if self._bench is None:
            from tune_inat.preparation import open_bench, this_machine

            asked = self._settings.gpus_per_trial
            gpus = float(this_machine().n_gpus > 0) if asked == "auto" else asked
            # Of a cluster any node may go on with what another has begun.
            self._bench = open_bench(
                self._inputs,
                self._terminal,
                gpus_per_trial=gpus,
                storage=self._storage,
                search=self._folder.name,
            )
        return self._bench

    def _run_trials(self, n_left: int) -> None:
        """Start Ray, say the plan, compute what trials share, run the trials."""
        settings = self._settings
        with ExitStack() as session:
            with self._terminal.task("Planning", None, ""):
                from tune_inat.cluster import ray_session

                died = partial(self._terminal.warn, RAY_DIED)
                cluster = session.enter_context(ray_session(settings.address, on_death=died))
                if settings.address is not None:
                    from tune_inat.nodes import check_storage

                    self._ending.begin()
                    self._await_members(cluster)
                    check_storage(self._storage)
                import tune_inat.tuning  # noqa: F401  # heavy, so while Ray starts

                preparation = self._prepare(n_left)
                self._forecast, devices = preparation.foresee(
                    cluster(),
                    seconds_so_far=time.monotonic() - self._started,
                    measures=self._measures(),
                )
            self._remaining.begin()
            # A machine with fewer cores does not change what the search has.
            is_new = kept_cpus(self._folder) is None or settings.cpus_per_trial is not None
            cpus = devices.cpus_per_trial if is_new and devices.gpus_per_trial == 0 else None
            keep_identity(self._folder, _identity(self._inputs), cpus_per_trial=cpus)
            self._terminal.plan_in_short(self._forecast.to_json())
            shared = self._share_frozen(preparation, devices)
            self._train(n_left, devices, self._forecast.trial_seconds, cluster, shared)
            if shared is not None and not shared.is_here and not self._effort.is_interrupted:
                from tune_inat.examination import Examination

                self._examine(Examination(self._open_bench().job, devices, shared.neighbours))
        for problem in self._wandb.problems if self._wandb is not None else ():
            self._terminal.warn(problem)
        if self._mirror is not None:
            self._mirror.check()

    def _share_frozen(self, preparation: "Preparation", devices: "Devices") -> "Spread | None":
        """Have frozen layers run, once for all trials; returns what became of it on a cluster."""
        if self._mirror is not None:
            self._mirror.check()
        shared = None
        if self._settings.address is None:
            preparation.compute()
        else:
            from tune_inat.arrivals import await_demanded
            from tune_inat.nodes import check_storage
            from tune_inat.spread import spread

            if await_demanded(self._open_bench().job, devices, self._terminal, self._is_over):
                check_storage(self._storage)  # the machines that were asked before take no trials
            shared = spread(self._open_bench(), preparation.configs, self._terminal)
            self._effort.add(shared.work)
            for notice in shared.notices:
                self._terminal.warn(notice)
        self._effort.add(self._open_bench().take_work())
        return shared

    def _train(
        self,
        n_left: int,
        devices: "Devices",
        trial_seconds: Mapping[str, float],
        cluster: Callable[[], "Cluster"],
        shared: "Spread | None",
    ) -> None:
        """Run the trials that are left, before the user's eyes and with W&B."""
        from tune_inat.housekeeping import Housekeeper
        from tune_inat.tuning import TrialRun, run_trials

        settings, space, job = self._settings, self._inputs.space, self._open_bench().job
        ending = self._ending
        if self._mirror is not None:
            self._mirror.tell(ending.lose)
        tries = Tries(settings.max_failures)
        tracker = self._wandb = self._tracker(ending.is_over, tries)
        finished = self._remaining.finished()
        n_trials = n_left + len(finished)
        with self._terminal.trials(n_trials, len(finished), self._metric, trial_seconds) as board:
            run = TrialRun(
                job=job,
                devices=devices,
                n_trials=n_left,
                horizons=self._inputs.plan.horizons(),
                early_stopping=space.early_stopping,
                longest=longest_trial(space, self._inputs.fixed),
                finished=tuple(finished.values()),
                ending=ending,
                tries=tries,
                trial_seconds=trial_seconds,
                peers=None if shared is None else shared.neighbours,
                cluster=cluster,
            )
            run_trials(
                run,
                self._remaining.proposer(n_left, self._terminal),
                effort=self._effort,
                ledger=self._ledger,
                observer=board.update,
                callbacks=[Housekeeper(job.store), *([tracker] if tracker is not None else [])],
            )

    def _examine(self, examination: "Examination") -> None:
        """Have a node examine the best model: this one takes no trials, so has no activations."""
        bench = self._open_bench()
        bench.job = replace(bench.job, kept={}, has_room=False)  # should no node do it: no more than it needs
        best = best_of(leaderboard(self._remaining.results(), self._metric.name, self._metric.goal))
        if best is None:
            return
        with self._terminal.task("Testing the best model on a node", None, ""):
            self._examined, work, problem = examination.of(best)
        self._effort.add(work)
        if problem is not None:
            self._terminal.warn(problem)

    def _tracker(self, is_over: Callable[[], bool], tries: Tries | None = None) -> "WandbTracker | None":
        from tune_inat.tracking import WandbTracker, resolve_mode

        mode, notice = resolve_mode(self._settings.wandb)
        if notice is not None:
            self._terminal.say(notice)
        if mode == "disabled":
            return None
        space = self._inputs.space
        return WandbTracker(
            folder=self._folder,
            project=self._settings.wandb_project or space.project or DEFAULT_PROJECT,
            entity=space.entity,
            group=self._folder.name,
            mode=mode,
            tags=(space.method, short_name(self._inputs.data.name)),  # W&B takes 64 characters
            notes=space.description,
            run_config={"search": self._folder.name, "data": self._inputs.data.name},
            varied=tuple(space.parameters),
            excludes=("rung_metric",),
            work=hash_of(work_identity(_identity(self._inputs))),
            is_over=is_over,
            tries=tries,
            trained_before={
                trial_id: record.epochs_trained for trial_id, record in self._remaining.records().items()
            },
        )

    # ---- the results

    def _is_to_be_shown(self, *, has_news: bool) -> bool:
        """Whether W&B is to be told which trial is the best, as an earlier run of the command was not."""
        return (has_news or self._settings.wandb_model) and not self._effort.is_interrupted

    def _summary(
        self,
        ranked: Sequence[TrialResult],
        best: TrialResult | None,
        test: TestResult | None,
        *,
        is_exported: bool,
    ) -> dict[str, Any]:
        """The content of `summary.json`."""
        n_failed = sum(result.status == "ERROR" for result in ranked)
        wall_seconds = time.monotonic() - self._started
        planned, measured = to_planned(self._forecast), self._measured(wall_seconds)
        earlier = read_summary(self._folder) or {}
        seconds_before = float(earlier.get("search_seconds", 0.0))
        if self._forecast is None:  # nothing was left to run: what the search took stays on record
            planned, measured = earlier.get("planned", planned), earlier.get("measured", measured)
            wall_in_search = 0.0 if seconds_before else wall_seconds
        else:
            wall_in_search = wall_seconds
        return compose_summary(
            self._inputs,
            ranked,
            best,
            test,
            is_exported=is_exported,
            folder=self._folder,
            effort=self._effort,
            n_left=max(0, self._remaining.count() - n_failed),
            planned=planned,
            measured=measured,
            wall_seconds=wall_seconds,
            search_seconds=seconds_before + wall_in_search,
        )

    def _measured(self, wall_seconds: float) -> dict[str, Any]:
        """What this run of the command came to, beside what was planned."""
        return {
            "seconds": round(wall_seconds, 3),
            "epochs": self._effort.epochs_trained,
            "bytes": max(0, size_of(self._inputs.store.root) - self._bytes_before),
        }
