"""Conducts a search from its settings to its folder of results."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import gettempdir
from typing import Any

from tune_inat.conclusion import Conclusion
from tune_inat.course import Course, identity_of
from tune_inat.disk import explaining_full_disk, size_of
from tune_inat.errors import ResourceError
from tune_inat.execution import Execution
from tune_inat.inputs import Inputs, open_store, read_inputs
from tune_inat.leaderboard import (
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
from tune_inat.progress import Terminal
from tune_inat.runs import find_run_folder, keep_identity, short_name
from tune_inat.scratch import scratch_folder
from tune_inat.settings import SearchSettings
from tune_inat.storages import Storage, open_storage
from tune_inat.store import Store, default_root
from tune_inat.summary import compose_summary, to_planned
from tune_inat.wandb_files import sync_line


def foresee_search(settings: SearchSettings, terminal: Terminal) -> dict[str, Any]:
    """The plan of a search, or of what is left of it, in figures: see `Forecast`.

    Raises:
        UserError: whatever is wrong with the settings, the inputs or the machine.
    """
    with ExitStack() as stack:
        storage = open_storage(settings)
        inputs, folder = _open(settings, storage, terminal, stack)
        course = Course(inputs, folder, Ledger(folder), terminal, storage, time.monotonic())
        _say_notices(course)
        return Execution(course).foresee()


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
        course = Course(inputs, folder, Ledger(folder), terminal, storage, started, mirror)
        return folder, _Conductor(course, bytes_before).run()


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
    identity = identity_of(inputs)
    return inputs, find_run_folder(storage.root, settings.name, proposed, identity, place=storage.place)


def _say_notices(course: Course) -> None:
    for notice in (*course.inputs.space.notices, *course.inputs.data.notices):
        course.terminal.say(notice)
    for warning in course.inputs.warnings():
        course.terminal.warn(warning)


class _Conductor:
    """Runs the command on a search's folder.

    Args:
        bytes_before: what the store held when it began.
    """

    def __init__(self, course: Course, bytes_before: int) -> None:
        self._course = course
        self._terminal = course.terminal
        self._bytes_before = bytes_before

    def run(self) -> dict[str, Any]:
        """Run what is left, then write the results; returns the summary.

        On Ctrl-C or SIGTERM the results are those so far.

        Raises:
            KeyboardInterrupt: there are none so far.
        """
        course = self._course
        _say_notices(course)
        try:
            n_left = course.remaining.count()
            if n_left > 0:
                Execution(course).run(n_left)
            else:
                keep_identity(course.folder, course.identity)
                n_done = len(course.remaining.finished())
                say = "The trial is" if n_done == 1 else f"All {n_done:,} trials are"
                self._terminal.say(f"{say} done already.")
            return self._conclude()
        except KeyboardInterrupt:
            if not course.remaining.records():
                raise
            course.effort.is_interrupted = True
            return self._conclude()

    def _conclude(self) -> dict[str, Any]:
        """Write the results. After an interrupt only what takes a moment: no model is tested or exported."""
        course = self._course
        is_interrupted = course.effort.is_interrupted
        ranked = leaderboard(course.remaining.results(), course.metric.name, course.metric.goal)
        best = best_of(ranked)
        with self._as_far_as_it_fits():
            write_leaderboard(course.folder, ranked)
        conclusion = Conclusion(course, has_run=course.ledger.has_news)
        exported = None if best is None else conclusion.exported(best)
        if best is not None and exported is None and not is_interrupted:
            with self._as_far_as_it_fits():
                exported = conclusion.export(best, course.examined)
        if not is_interrupted:
            course.inputs.store.make_room()  # for the epochs that trials have left
        test = None if exported is None else exported.test
        summary = self._summary(ranked, best, test, is_exported=exported is not None)
        with self._as_far_as_it_fits():
            write_summary(course.folder, summary)  # all that is known, before anything that waits for W&B
            if best is not None and exported and self._is_to_be_shown(has_news=conclusion.has_news):
                tracker = course.tracker or course.new_tracker(lambda: False)
                conclusion.show(best, test, course.remaining.records()[best.trial_id], tracker)
                summary["wandb_sync"] = sync_line(course.folder)
                write_summary(course.folder, summary)
        report = None
        with self._as_far_as_it_fits():
            report = conclusion.report()
        if course.effort.problem is not None and summary["status"] == "DONE":
            summary["status"] = "FAILURES"  # it came up when the summary was written
            with self._as_far_as_it_fits():
                write_summary(course.folder, summary)
        if course.mirror is not None:
            with self._terminal.task(f"Sending it to {course.storage.place(course.folder)}", None, ""):
                course.mirror.flush()  # nothing is said to be done before it is there
        self._terminal.closing(
            course.folder,
            summary,
            varied_parameters(ranked),
            report=report,
            sync_line=summary["wandb_sync"],
            place=course.storage.place,
        )
        self._say_what_is_left(summary)
        return summary

    @contextmanager
    def _as_far_as_it_fits(self) -> Iterator[None]:
        """Around writing results: what a full disk refuses is told at the end, and the rest goes on."""
        course = self._course
        try:
            with explaining_full_disk(course.folder, course.inputs.store.root, Path(gettempdir())):
                yield
        except ResourceError as error:
            if course.effort.problem is None:
                course.effort.problem = str(error)
            else:
                self._terminal.warn(str(error))

    def _say_what_is_left(self, summary: dict[str, Any]) -> None:
        """Why the search is not whole, if it is not, and the command that goes on with it."""
        course = self._course
        why = course.effort.problem
        if summary["is_out_of_time"]:
            why = f"--max-hours {course.settings.max_hours:g} is over."
        if why is None:
            return
        without = "" if course.settings.reuse else ", without --no-reuse,"
        left = f"{summary['trials_left']} of {course.inputs.plan.n_trials} trials"
        state = f"The search ends with {left} left." if summary["trials_left"] else "All trials have ended."
        self._terminal.warn(f"{why} {state} The same command{without} goes on: {summary['command']}")

    def _is_to_be_shown(self, *, has_news: bool) -> bool:
        """Whether W&B is to be told which trial is the best, as an earlier run of the command was not."""
        course = self._course
        return (has_news or course.settings.wandb_model) and not course.effort.is_interrupted

    def _summary(
        self,
        ranked: Sequence[TrialResult],
        best: TrialResult | None,
        test: TestResult | None,
        *,
        is_exported: bool,
    ) -> dict[str, Any]:
        """The content of `summary.json`."""
        course = self._course
        n_failed = sum(result.status == "ERROR" for result in ranked)
        wall_seconds = time.monotonic() - course.started
        planned, measured = to_planned(course.forecast), self._measured(wall_seconds)
        earlier = read_summary(course.folder) or {}
        seconds_before = float(earlier.get("search_seconds", 0.0))
        if course.forecast is None:  # nothing was left to run: what the search took stays on record
            planned, measured = earlier.get("planned", planned), earlier.get("measured", measured)
            wall_in_search = 0.0 if seconds_before else wall_seconds
        else:
            wall_in_search = wall_seconds
        return compose_summary(
            course.inputs,
            ranked,
            best,
            test,
            is_exported=is_exported,
            folder=course.folder,
            effort=course.effort,
            n_left=max(0, course.remaining.count() - n_failed),
            planned=planned,
            measured=measured,
            wall_seconds=wall_seconds,
            search_seconds=seconds_before + wall_in_search,
        )

    def _measured(self, wall_seconds: float) -> dict[str, Any]:
        """What this run of the command came to, beside what was planned."""
        course = self._course
        return {
            "seconds": round(wall_seconds, 3),
            "epochs": course.effort.epochs_trained,
            "bytes": max(0, size_of(course.inputs.store.root) - self._bytes_before),
        }
