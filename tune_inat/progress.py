"""The one voice on the terminal: progress and notices on stderr, results on stdout."""

import shlex
import sys
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
    number,
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
                yield lambda n: (task.advance(n), advance_bar(n))[0]
        else:
            self.say(task.first_line())
            yield lambda n: self._log(task, n)
        if total != 0:
            self.say(task.last_line())
