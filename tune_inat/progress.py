"""The one voice on the terminal: progress and notices on stderr, results on stdout."""

import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.control import Control
from rich.live import Live
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.segment import ControlType
from rich.table import Column
from rich.text import Text

from tune_inat.board import Clock, TrialBoard
from tune_inat.errors import printable
from tune_inat.gpu_lines import gpu_lines
from tune_inat.meter import Advance
from tune_inat.notebook import Canvas, NotebookProgress, is_notebook, open_notebook_console
from tune_inat.objective import DEFAULT_METRIC, Metric
from tune_inat.standings import Standings
from tune_inat.tables import (
    MAX_RANKED,
    amount,
    count,
    duration,
    estimate,
    leaderboard_table,
    number,
    plan_lines,
    plan_tables,
    rate,
)

LOG_SECONDS = 10.0  # between two lines about a task, where there is no terminal
TITLE_WIDTH, STATE_WIDTH, MIN_BAR, MAX_BAR = 28, 46, 6, 30  # columns of a task's line; the title's at least
LOG_WIDTH = 200  # of tables that do not go to a terminal


class Terminal:
    """Where a command speaks to its user; a `Meter`. Foreign text cannot drive the terminal.

    On a terminal and in a notebook, what goes on is drawn and drawn over; elsewhere a few lines tell it.

    Args:
        quiet_stdout: leave stdout alone, for something else to be printed there; results go to stderr.
        console: where progress and notices go, stderr if not given.
        results: where results go, stdout if not given.
        clock: seconds that only ever grow.
    """

    def __init__(
        self,
        *,
        quiet_stdout: bool = False,
        console: Console | None = None,
        results: Console | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._is_notebook = console is None and is_notebook()
        self._console = console or _open_console(stderr=True)
        self._results = self._console if quiet_stdout else (results or _open_console(stderr=False))
        self._clock = clock
        self._bars: Progress | None = None
        self._has_status = False  # a line that is replaced by the next

    def say(self, text: str) -> None:
        """One line for the user."""
        self._print(self._console, Text(_line(text)))

    def warn(self, text: str) -> None:
        """One line that the user should not miss."""
        self._print(self._console, Text.assemble(("Note: ", "yellow"), _line(text)))

    @contextmanager
    def task(self, title: str, total: int | None, unit: str) -> Iterator[Advance]:
        """Show a task of `total` units (`None`: unknown); call the value with what has been done since.

        When it is done, a line says how much that was and how long it took. Without a unit nothing is
        counted: a line says that it goes on.
        """
        work = _Work(_line(title), total, unit, self._clock)
        if self._console.is_interactive and not unit:
            with self._status(work):
                yield work.advance
        elif self._console.is_interactive or self._is_notebook:
            with self._bar(work) as advance:
                yield advance
        else:
            if total != 0:
                self.say(work.first_line())
            yield lambda n: self._log(work, n)
        if total != 0:
            self.say(work.last_line())

    @contextmanager
    def trials(
        self,
        total: int,
        n_earlier: int = 0,
        metric: Metric = DEFAULT_METRIC,
        costs: Mapping[str, float] | None = None,
    ) -> Iterator[TrialBoard]:
        """Show the trials of a search while they run: a live table, or a line for each that ends.

        Args:
            total: how many trials the search has, with the `n_earlier` that had ended before.
            metric: what they are compared by.
            costs: the seconds that each should take, by its id, where that is known.
        """
        standings = Standings(total=total, n_earlier=n_earlier, metric=metric, costs=costs or {})
        if self._is_notebook:
            canvas = Canvas()
            try:
                yield TrialBoard(standings, self._clock, warn=self.warn, draw=canvas.draw)
            finally:
                canvas.close()
            return
        if not self._console.is_interactive:
            yield TrialBoard(standings, self._clock, warn=self.warn, say=self.say)
            return
        with Live(console=self._console, auto_refresh=False, transient=True, redirect_stdout=False) as live:
            board = TrialBoard(
                standings,
                self._clock,
                warn=self.warn,
                draw=lambda table: live.update(table, refresh=True),
            )
            board.update([])
            yield board

    def plan_in_short(self, plan: Mapping[str, Any]) -> None:
        """What a search is about to do, in a few lines; `plan` is a `Forecast` as JSON."""
        for line in (*plan_lines(plan), *gpu_lines(plan)):
            self.say(line)
        for notice in plan["notices"]:
            self.warn(notice)

    def plan(self, plan: Mapping[str, Any]) -> None:
        """The whole plan, as a result: what is shared, then time, memory and disk."""
        self._result(plan_lines(plan)[0], "bold")
        if plan["n_trials"] == plan["n_finished"]:
            return
        for table in plan_tables(plan, self._results.width):
            self._print(self._results, "")
            self._print(self._results, table)
        self._print(self._results, "")
        for line in (*gpu_lines(plan), *plan_lines(plan)[-1:]):
            self._result(line)
        for notice in plan["notices"]:
            self.warn(notice)

    def closing(
        self,
        folder: Path,
        summary: Mapping[str, Any],
        varied: Sequence[str],
        *,
        report: Path | None = None,
        sync_line: str | None = None,
        place: Callable[[Path, str], str] = lambda folder, file: str(folder / file),
    ) -> None:
        """The results of a search: its leaderboard, its best model, and what to type next.

        Args:
            folder: of the search.
            summary: the content of its `summary.json`.
            varied: the parameters in which its trials differ.
            report: the page that was made of them.
            sync_line: the command that would send its W&B runs, if they are on disk only.
            place: the folder, or a file in it, as it is shown.
        """
        trials, best = summary["trials"], summary["best"]
        self._print(self._results, "")
        if trials:
            width = self._results.width
            self._print(self._results, leaderboard_table(trials, varied, summary["metric"]["name"], width))
        if len(trials) > MAX_RANKED:
            self._result(f"and {len(trials) - MAX_RANKED:,} more", style="dim")
        self._print(self._results, "")
        for trial in trials:
            if trial["status"] == "ERROR":
                reason = trial.get("error") or "no reason given"
                n = 1 + len(trial.get("failures", ()))
                tries = f" {n} times, at last" if n > 1 else ""
                self._result(f"Trial {trial['trial_id']} failed{tries}: {reason}", "red")
        self._result(_effort(summary))
        if best is not None:
            metric = summary["metric"]["name"]
            score = f"{metric} {number(_of_best(summary, metric))}"
            self._labelled(
                "Best", f"trial {best['trial_id']}, {score} at epoch {best['epoch']}", "bold green"
            )
            if best["test_accuracy"] is not None:
                low, high = best["test_interval"]
                interval = f"95 % interval {number(low)} to {number(high)}"
                self._labelled("Test", f"accuracy {number(best['test_accuracy'])}, {interval}")
            if best["model"] is not None:
                self._labelled("Model", place(folder, best["model"]))
                command = f"python -m tune_inat.predict {shlex.quote(place(folder, ''))} IMAGE_OR_FOLDER..."
                self._labelled("Next", command)
        self._labelled("Table", place(folder, "trials.csv"))
        if report is not None:
            self._labelled("Report", place(folder, report.name))
        if sync_line is not None:
            self._labelled("W&B", sync_line)
        if summary["status"] == "INTERRUPTED":
            self.go_on(summary["command"])

    def go_on(self, command: str) -> None:
        """The command that goes on with a search which was interrupted."""
        self._labelled("Go on", command)

    def _labelled(self, label: str, text: str, style: str = "") -> None:
        line = Text.assemble((f"{label + ':':<8}", "dim"), (_line(text), style))
        self._results.print(line, soft_wrap=True)  # no line break of ours in what will be copied

    def _result(self, text: str, style: str = "") -> None:
        self._print(self._results, Text(_line(text), style=style))

    @contextmanager
    def _status(self, work: "_Work") -> Iterator[None]:
        """A line that the next one replaces: a bar would be torn by those that libraries draw themselves."""
        self._console.print(Text(work.first_line(), style="dim"), end="\r")
        self._has_status = True
        try:
            yield
        finally:
            self._erase_status()

    def _erase_status(self) -> None:
        if self._has_status:
            self._has_status = False
            self._console.control(Control((ControlType.ERASE_IN_LINE, 2)))

    def _print(self, console: Console, what: Any) -> None:
        self._erase_status()
        console.print(what, soft_wrap=not console.is_terminal)  # lines in a log are whole

    def _log(self, work: "_Work", n: int) -> None:
        """Count, and tell of it now and then."""
        work.advance(n)
        if work.is_line_due():
            self.say(work.line())

    @contextmanager
    def _bar(self, work: "_Work") -> Iterator[Advance]:
        """A bar, below those of the tasks that this one is a part of."""
        self._erase_status()
        if self._bars is None:
            self._bars = self._new_bars()
            self._bars.start()
        bars = self._bars
        bar = bars.add_task(work.title, total=work.total, work=work)
        bars.refresh()

        def advance(n: int) -> None:
            work.advance(n)
            bars.advance(bar, n)

        try:
            yield advance
        finally:
            bars.remove_task(bar)
            if not bars.tasks:
                bars.stop()
                self._bars = None

    def _new_bars(self) -> Progress:
        room = self._console.width - STATE_WIDTH
        title_width = max(TITLE_WIDTH, room - MAX_BAR)
        title = Column(no_wrap=True, max_width=title_width)
        columns = (
            TextColumn("{task.description}", markup=False, table_column=title),
            BarColumn(max(MIN_BAR, min(MAX_BAR, room - title_width)), complete_style="cyan"),
            _StateColumn(table_column=Column(no_wrap=True)),
        )
        if self._is_notebook:
            return NotebookProgress(*columns, console=self._console)
        return Progress(*columns, console=self._console, transient=True, redirect_stdout=False)


class _Work:
    """A task with what has been done of it, in words."""

    def __init__(self, title: str, total: int | None, unit: str, clock: Clock) -> None:
        self.title = title
        self.total = total
        self._unit = unit
        self._clock = clock
        self._started = self._told = clock()
        self._done = 0

    def advance(self, n: int) -> None:
        """Count what has been done since."""
        self._done += n

    def is_line_due(self) -> bool:
        """Whether it is time for another line, which then counts as said."""
        now = self._clock()
        if now - self._told < LOG_SECONDS:
            return False
        self._told = now
        return True

    def first_line(self) -> str:
        """What is going to be done."""
        return (
            f"{self.title}..." if self.total is None else f"{self.title}: {amount(self.total, self._unit)}..."
        )

    def line(self) -> str:
        """What has been done."""
        return f"{self.title}: {self.state()}"

    def last_line(self) -> str:
        """What was done, and how long it took."""
        seconds = self._clock() - self._started
        if not self._done:
            return f"{self.title}: {duration(seconds)}"
        speed = f" ({rate(self._done, seconds, self._unit)})" if seconds >= 1 else ""
        return f"{self.title}: {amount(self._done, self._unit)} in {duration(seconds)}{speed}"

    def state(self) -> str:
        """What has been done, of how much, how fast, and how long the rest will take."""
        seconds = self._clock() - self._started
        if not self._done or seconds <= 0:
            return "" if self.total is None else amount(self.total, self._unit)
        done, speed = amount(self._done, self._unit), rate(self._done, seconds, self._unit)
        if self.total is None:
            return f"{done}, {speed}"
        left = estimate((self.total - self._done) * seconds / self._done)
        of_total = f"{done.removesuffix(self._unit).strip()} of {amount(self.total, self._unit)}"
        return f"{of_total}, {speed}, {left} left"


class _StateColumn(ProgressColumn):
    """The state of the work that a bar shows."""

    def render(self, task: Task) -> Text:
        work: _Work = task.fields["work"]
        return Text(work.state(), style="dim")


def _open_console(*, stderr: bool) -> Console:
    """A console that takes text as it is, and animates only what a person sees."""
    if is_notebook():
        return open_notebook_console()
    stream = sys.stderr if stderr else sys.stdout
    is_terminal = stream.isatty()
    return Console(
        stderr=stderr,
        markup=False,
        emoji=False,
        highlight=False,
        width=None if is_terminal else LOG_WIDTH,
        force_interactive=None if is_terminal else False,
    )


def _line(text: str) -> str:
    """Text as one line that cannot drive the terminal."""
    return printable(text.strip()).replace("\n", " ")


def _effort(summary: Mapping[str, Any]) -> str:
    """What was done in which time: all trials, or so many of them."""
    reuse, trials = summary["reuse"], summary["trials"]
    n, n_left = len(trials), int(summary.get("trials_left", 0))
    ended = count(n, "trial") if not n_left else f"{n - n_left:,} of {count(n, 'trial')}"
    return (
        f"{ended} in {duration(summary['wall_seconds'])}: {count(reuse['epochs_asked'], 'epoch')} asked for, "
        f"{reuse['epochs_trained']:,} trained now."
    )


def _of_best(summary: Mapping[str, Any], metric: str) -> float | None:
    """A metric of the best trial at its best epoch."""
    trials = {trial["trial_id"]: trial for trial in summary["trials"]}
    value: float | None = trials[summary["best"]["trial_id"]][metric]
    return value
