"""A notebook's output: bars and tables that are drawn over in their place, as text with colours."""

import io
import time
from typing import Any

from rich.console import Console
from rich.progress import Progress, TaskID

WIDTH = 100  # columns of a cell's output; what is longer gets a scroll bar
DRAW_SECONDS = 0.5  # between two drawings: each is a message to the browser


def is_notebook() -> bool:
    """Whether what is printed goes to a notebook."""
    return Console().is_jupyter


def open_notebook_console() -> Console:
    """A console that writes to the cell that runs, in colours but without an animation of its own.

    rich's own way, a piece of HTML for each line, cuts off what hangs below the line, such as underscores.
    """
    return Console(
        force_jupyter=False,
        force_terminal=True,
        force_interactive=False,
        color_system="standard",
        width=WIDTH,
        legacy_windows=False,
        markup=False,
        emoji=False,
        highlight=False,
    )


class Canvas:
    """A place in the cell's output that is drawn over, and is blank when it is closed."""

    def __init__(self) -> None:
        from IPython.display import display

        self._handle = display(_as_output(""), raw=True, display_id=True)

    def draw(self, renderable: Any) -> None:
        """Show this in place of what was there."""
        paper = open_notebook_console()
        paper.file = io.StringIO()
        paper.print(renderable)
        self._handle.update(_as_output(paper.file.getvalue()), raw=True)

    def close(self) -> None:
        """Leave nothing."""
        self._handle.update(_as_output(""), raw=True)


class NotebookProgress(Progress):
    """rich's bars, drawn in a notebook's output while they run."""

    def __init__(self, *columns: Any, console: Console) -> None:
        super().__init__(*columns, console=console, auto_refresh=False)
        self._canvas: Canvas | None = None
        self._drawn = 0.0

    def start(self) -> None:
        """Show the bars."""
        self._canvas = Canvas()
        self._canvas.draw(self.get_renderable())

    def stop(self) -> None:
        """Take them away."""
        if self._canvas is not None:
            self._canvas.close()
            self._canvas = None

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """Count what was done and show it, now and then."""
        super().advance(task_id, advance)
        now = time.monotonic()
        if self._canvas is not None and now - self._drawn >= DRAW_SECONDS:
            self._drawn = now
            self._canvas.draw(self.get_renderable())


def _as_output(text: str) -> dict[str, str]:
    """Text as a notebook's output, which takes ANSI's colours."""
    return {"text/plain": text.rstrip("\n")}
