"""The one voice on the terminal: progress and notices on stderr, results on stdout."""

import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from tune_inat.errors import printable
from tune_inat.meter import Advance
from tune_inat.objective import DEFAULT_METRIC, Metric
from tune_inat.standings import ENDED, LiveTrial, Standings
from tune_inat.tables import (
    MAX_RANKED,
    LiveTable,
    amount,
    duration,
    ended_line,
    leaderboard_table,
)

DRAW_SECONDS = 0.25  # between two drawings of the trials
LOG_SECONDS = 10.0  # between two lines about a task, where there is no terminal
LOG_WIDTH = 200  # of tables that do not go to a terminal

Clock = Callable[[], float]


class Terminal:
    """Where a command speaks to its user; a `Meter`. Foreign text cannot drive the terminal.

    On a terminal, what goes on is drawn and drawn over; elsewhere it is told in a few lines.

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
        self._console = console or _open_console(stderr=True)
        self._results = self._console if quiet_stdout else (results or _open_console(stderr=False))
        self._clock = clock
        self._bars: Progress | None = None
        self._n_bars = 0

    def say(self, text: str) -> None:
        """One line for the user."""
        self._print(self._console, _line(text))

    def warn(self, text: str) -> None:
        """One line that the user should not miss."""
        self._print(self._console, Text.assemble(("Note: ", "yellow"), _line(text)))

    @contextmanager
    def task(self, title: str, total: int | None, unit: str) -> Iterator[Advance]:
        """Show a task of `total` units (`None`: unknown); call the value with what has been done since."""
        task = _RunningTask(title, total, unit, self._clock)
        if self._console.is_interactive:
            with self._bar(title, total, unit) as advance_bar:

                def advance(n: int) -> None:
                    task.advance(n)
                    advance_bar(n)

                yield advance
        else:
            self.say(task.first_line())
            yield lambda n: self._log(task, n)
        if total != 0:
            self.say(task.last_line())

    @contextmanager
    def trials(
        self, total: int, n_earlier: int = 0, metric: Metric = DEFAULT_METRIC
    ) -> Iterator["TrialBoard"]:
        """Show a search's trials while they run: a live table, or a line for each that has ended.

        Args:
            total: how many trials there will be, with the `n_earlier` that had ended before this run.
            metric: what they are compared by.
        """
        board = TrialBoard(Standings(total, n_earlier, metric), self._console, self.say, self._clock)
        with board:
            yield board

    def closing(self, folder: Path, summary: Mapping[str, Any], varied: Sequence[str]) -> None:
        """The end of a search: its leaderboard, its best model, and what to type next.

        Args:
            folder: of the search.
            summary: the content of `summary.json`.
            varied: the parameters in which the trials differ.
        """
        results, trials, best = self._results, summary["trials"], summary["best"]
        results.print(leaderboard_table(trials, varied, summary["metric"]["name"], results.width))
        if len(trials) > MAX_RANKED:
            results.print(_line(f"{len(trials) - MAX_RANKED:,} more in {folder / 'trials.csv'}"))
        for line in _closing_lines(folder, summary, best):
            results.print(_line(line), soft_wrap=True)

    def _print(self, console: Console, text: Text) -> None:
        console.print(text, soft_wrap=True)

    @contextmanager
    def _bar(self, title: str, total: int | None, unit: str) -> Iterator[Advance]:
        """A bar on the terminal; bars of tasks within tasks stand below each other."""
        if self._bars is None:
            self._bars = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
                BarColumn(bar_width=24),
                _RateColumn(),
                console=self._console,
                transient=True,
            )
            self._bars.start()
        self._n_bars += 1
        bars = self._bars
        task_id = bars.add_task(printable(title), total=total, unit=unit)
        try:
            yield lambda n: bars.advance(task_id, n)
        finally:
            bars.remove_task(task_id)
            self._n_bars -= 1
            if self._n_bars == 0:
                bars.stop()
                self._bars = None

    def _log(self, task: "_RunningTask", n: int) -> None:
        """Note progress; say so now and then."""
        task.advance(n)
        if task.is_due():
            self.say(task.line_between())


class TrialBoard:
    """A search's trials on the terminal while they run. Used as a context; `update` may be called often."""

    def __init__(
        self, standings: Standings, console: Console, say: Callable[[str], None], clock: Clock
    ) -> None:
        self._standings = standings
        self._say = say
        self._clock = clock
        self._started = self._drawn = clock()
        self._told: set[str] = set()
        is_live = console.is_interactive
        self._live = Live(console=console, auto_refresh=False, transient=True) if is_live else None

    def __enter__(self) -> "TrialBoard":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, trials: Sequence[LiveTrial]) -> None:
        """Show how trials stand now: all that have started, those that were known before first."""
        ended = [t for t in trials if t.status in ENDED and t.trial_id not in self._told]
        now = self._clock()
        if not ended and now - self._drawn < DRAW_SECONDS:
            return
        self._drawn = now
        elapsed = now - self._started
        self._standings.update(trials)
        self._told.update(trial.trial_id for trial in ended)
        if self._live is not None:
            self._live.update(LiveTable(self._standings, elapsed), refresh=True)
            return
        for trial in ended:
            self._say(ended_line(self._standings, trial, elapsed))


class _RunningTask:
    """How far a task has come, in words for a log."""

    def __init__(self, title: str, total: int | None, unit: str, clock: Clock) -> None:
        self._title, self._total, self._unit, self._clock = title, total, unit, clock
        self._done = 0
        self._started = self._said = clock()

    def advance(self, n: int) -> None:
        """Count what has been done since."""
        self._done += n

    def is_due(self) -> bool:
        """Whether it is time for a line, which is then taken as said."""
        now = self._clock()
        if now - self._said < LOG_SECONDS:
            return False
        self._said = now
        return True

    def first_line(self) -> str:
        """What begins."""
        return (
            f"{self._title} ..."
            if self._total is None
            else f"{self._title}: {self._counted(self._total)} ..."
        )

    def line_between(self) -> str:
        """How far it is."""
        elapsed = self._clock() - self._started
        left = ""
        if self._total and self._done:
            left = f", about {duration(elapsed * (self._total - self._done) / self._done)} left"
        return f"{self._title}: {self._counted(self._done)} after {duration(elapsed)}{left}"

    def last_line(self) -> str:
        """What it came to."""
        elapsed = duration(self._clock() - self._started)
        if self._done == 0:
            return f"{self._title}: {elapsed}"
        return f"{self._title}: {self._counted(self._done)} in {elapsed}"

    def _counted(self, n: int) -> str:
        return amount(n, self._unit)


class _RateColumn(ProgressColumn):
    """What is done of what, how fast, and how long it will take."""

    def render(self, task: Task) -> Text:
        """The words beside a bar."""
        unit = task.fields["unit"]
        if task.total is None:
            return Text(amount(task.completed, unit) if task.completed else "")
        words = f"{amount(task.completed, unit)} of {amount(task.total, unit)}"
        if task.speed:
            words += f"  {amount(task.speed, unit)}/s"
        if task.time_remaining is not None:
            words += f"  {duration(task.time_remaining)} left"
        return Text(words, style="dim")


def _closing_lines(folder: Path, summary: Mapping[str, Any], best: Mapping[str, Any] | None) -> list[str]:
    """What a reader wants to know under the leaderboard, a line each."""
    reuse = summary["reuse"]
    asked, trained = reuse["epochs_asked"], reuse["epochs_trained"]
    lines = ["", f"{asked} epochs asked for, {trained} trained, in {duration(summary['wall_seconds'])}."]
    for trial in summary["trials"]:
        if trial["status"] == "ERROR":
            lines.append(f"Trial {trial['trial_id']} failed: {trial.get('error', '')}")
    if best is None:
        lines.append("No trial came to an end, so there is no model.")
    else:
        tested = "no test images"
        if best["test_accuracy"] is not None:
            low, high = best["test_interval"]
            tested = f"test accuracy {best['test_accuracy']:.4f} (95 % interval {low:.4f} to {high:.4f})"
        lines.append(f"Best: trial {best['trial_id']}, {tested}.")
    lines.append(f"Results: {folder}")
    if summary["status"] == "INTERRUPTED":
        lines.append(f"Go on with: {summary['command']}")
    elif best is not None:
        lines.append(f"Predict with: python -m tune_inat.predict {shlex.quote(str(folder))} IMAGE_OR_FOLDER")
    if summary.get("wandb_sync"):
        lines.append(f"Send the runs to W&B with: {summary['wandb_sync']}")
    return lines


def _open_console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = LOG_WIDTH  # of a file or a pipe; rich would take it for 80 columns
    return console


def _line(text: str) -> Text:
    """Foreign text that cannot drive the terminal."""
    return Text(printable(text))
