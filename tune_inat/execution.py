"""Plans and runs the trials that are left of a search, on this machine or on a cluster."""

import shlex
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from tune_inat.course import Course
from tune_inat.devices import share_devices
from tune_inat.inputs import check_models
from tune_inat.leaderboard import best_of, leaderboard
from tune_inat.plan import longest_trial
from tune_inat.remote import hide_secrets
from tune_inat.runs import keep_identity, kept_cpus
from tune_inat.tries import Tries

if TYPE_CHECKING:
    from tune_inat.devices import Cluster, Devices
    from tune_inat.examination import Examination
    from tune_inat.preparation import Preparation
    from tune_inat.shares import Measures
    from tune_inat.spread import Spread

RAY_DIED = "Ray has died, so this search ends here. The same command goes on with what is done."


class Execution:
    """Runs what is left of a search. All that is heavy to import comes in when it is needed."""

    def __init__(self, course: Course) -> None:
        self._course = course
        self._settings = course.settings
        self._terminal = course.terminal

    def foresee(self) -> dict[str, Any]:
        """The plan of what is left, as JSON; nothing is trained or written but what was measured for it.

        Raises:
            UserError: whatever is wrong with the inputs or the machine.
        """
        if self._course.inputs.pixels is None:
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
            preparation = self._prepare(self._course.remaining.count())
            forecast, _ = preparation.foresee(
                cluster, seconds_so_far=START_SECONDS, measures=self._measures()
            )
        return forecast.to_json()

    def run(self, n_left: int) -> None:
        """Start Ray, say the plan, compute what trials share, run the trials.

        Raises:
            UserError: whatever is wrong with the inputs or the machine.
        """
        course = self._course
        with ExitStack() as session:
            with self._terminal.task("Planning", None, ""):
                self._refuse()
                cluster = self._open_cluster(session)
                preparation = self._prepare(n_left)
                import tune_inat.tuning  # noqa: F401  # heavy, so while Ray starts

                course.forecast, devices = preparation.foresee(
                    cluster(),
                    seconds_so_far=time.monotonic() - course.started,
                    measures=self._measures(),
                )
            self._begin(devices)
            self._terminal.plan_in_short(course.forecast.to_json())
            shared = self._share_frozen(preparation, devices)
            self._train(n_left, devices, course.forecast.trial_seconds, cluster, shared)
            if shared is not None and not shared.is_here and not course.effort.is_interrupted:
                from tune_inat.examination import Examination

                self._examine(Examination(course.bench.job, devices, shared.neighbours))
        for problem in course.tracker.problems if course.tracker is not None else ():
            self._terminal.warn(problem)
        if course.mirror is not None:
            course.mirror.check()

    # ---- before the trials

    def _refuse(self) -> None:
        """Refuse models and devices that are not there before Ray starts: it takes seconds to end again."""
        check_models(self._course.inputs.space, self._course.inputs.fixed)
        if self._settings.address is None:
            from tune_inat.preparation import asked_of, this_machine

            share_devices(this_machine(), asked_of(self._settings), n_trials=1)

    def _open_cluster(self, session: ExitStack) -> Callable[[], "Cluster"]:
        """Start Ray, or join it; what is returned says which devices there are by then."""
        from tune_inat.cluster import ray_session

        died = partial(self._terminal.warn, RAY_DIED)
        cluster = session.enter_context(ray_session(self._settings.address, on_death=died))
        if self._settings.address is not None:
            from tune_inat.nodes import check_storage

            self._course.ending.begin()
            self._await_members(cluster)
            check_storage(self._course.storage)
        return cluster

    def _await_members(self, cluster: Callable[[], "Cluster"]) -> "Cluster":
        """The cluster of `--address`, when the machines are up that it is to have all the time."""
        from tune_inat.arrivals import await_members

        cluster()  # joins it
        notice = await_members(self._terminal, self._course.is_over)
        if notice is not None:
            self._terminal.warn(notice)
        return cluster()

    def _prepare(self, n_left: int) -> "Preparation":
        """The preparation of the trials that are left, once it is known that they can run."""
        from tune_inat.preparation import Preparation

        remaining = self._course.remaining
        preparation = Preparation(
            self._course.inputs,
            self._course.bench,
            remaining.planned(),
            n_left=n_left,
            n_finished=len(remaining.finished()),
            cpus_so_far=kept_cpus(self._course.folder),
        )
        for notice in preparation.check():
            self._terminal.warn(notice)
        return preparation

    def _measures(self) -> "Measures | None":
        """What measures the GPUs of a cluster's nodes; of this machine, it is the preparation's own."""
        if self._settings.address is None:
            return None
        from tune_inat.gauges import cluster_gauge

        return cluster_gauge

    def _begin(self, devices: "Devices") -> None:
        """Nothing is refused from here on: the folder becomes this search's."""
        course = self._course
        course.remaining.begin()
        # A machine with fewer cores does not change what the search has.
        is_new = kept_cpus(course.folder) is None or self._settings.cpus_per_trial is not None
        cpus = devices.cpus_per_trial if is_new and devices.gpus_per_trial == 0 else None
        keep_identity(course.folder, course.identity, cpus_per_trial=cpus)

    def _share_frozen(self, preparation: "Preparation", devices: "Devices") -> "Spread | None":
        """Have frozen layers run, once for all trials; returns what became of it on a cluster."""
        course = self._course
        if course.mirror is not None:
            course.mirror.check()
        shared = None
        if self._settings.address is None:
            preparation.compute()
        else:
            from tune_inat.arrivals import await_demanded
            from tune_inat.nodes import check_storage
            from tune_inat.spread import spread

            if await_demanded(course.bench.job, devices, self._terminal, course.is_over):
                check_storage(course.storage)  # the machines that were asked before take no trials
            shared = spread(course.bench, preparation.configs, self._terminal)
            course.effort.add(shared.work)
            for notice in shared.notices:
                self._terminal.warn(notice)
        course.effort.add(course.bench.take_work())
        return shared

    # ---- the trials

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

        course, space, job = self._course, self._course.inputs.space, self._course.bench.job
        if course.mirror is not None:
            course.mirror.tell(course.ending.lose)
        tries = Tries(self._settings.max_failures)
        course.tracker = course.new_tracker(course.ending.is_over, tries)
        finished = course.remaining.finished()
        n_trials = n_left + len(finished)
        with self._terminal.trials(n_trials, len(finished), course.metric, trial_seconds) as board:
            run = TrialRun(
                job=job,
                devices=devices,
                n_trials=n_left,
                horizons=course.inputs.plan.horizons(),
                early_stopping=space.early_stopping,
                longest=longest_trial(space, course.inputs.fixed),
                finished=tuple(finished.values()),
                ending=course.ending,
                tries=tries,
                trial_seconds=trial_seconds,
                peers=None if shared is None else shared.neighbours,
                cluster=cluster,
            )
            run_trials(
                run,
                course.remaining.proposer(n_left, self._terminal),
                effort=course.effort,
                ledger=course.ledger,
                observer=board.update,
                callbacks=[Housekeeper(job.store), *([course.tracker] if course.tracker is not None else [])],
            )

    def _examine(self, examination: "Examination") -> None:
        """Have a node examine the best model: this one takes no trials, so has no activations."""
        course, bench = self._course, self._course.bench
        bench.job = replace(bench.job, kept={}, has_room=False)  # should no node do it: no more than it needs
        best = best_of(leaderboard(course.remaining.results(), course.metric.name, course.metric.goal))
        if best is None:
            return
        with self._terminal.task("Testing the best model on a node", None, ""):
            course.examined, work, problem = examination.of(best)
        course.effort.add(work)
        if problem is not None:
            self._terminal.warn(problem)
