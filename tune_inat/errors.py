"""The one family of mistakes that users make, and how a command ends on them."""

import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from tune_inat import interrupts
from tune_inat.interrupts import flush_what_is_read, interruptible, leave_soon

EXIT_DONE = 0
EXIT_FAILED = 1  # something in the search failed: a trial ended as ERROR
EXIT_USAGE = 2  # wrong usage or input: nothing was started
EXIT_INTERRUPTED = interrupts.EXIT_CODE  # Ctrl-C or SIGTERM
INTERRUPTED = "Interrupted.\n"


class UserError(Exception):
    """A mistake that the user can mend. A command prints it without a traceback and ends with code 2.

    It carries every problem that was found in an input, one line each: where, what was found, what would
    be right.
    """

    exit_code = EXIT_USAGE  # of a command that ends on it

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type["UserError"], tuple[tuple[str, ...]]]:
        return type(self), (self.problems,)

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows of it, by IPython's protocol: no traceback there either."""
        return describe(self).splitlines()


class SpaceError(UserError):
    """A search space that cannot be read or makes no sense."""


class DataError(UserError):
    """A data set that cannot be found, read or split."""


class BackboneError(UserError):
    """A model, its weights or a point of freezing that does not exist."""


class ResourceError(UserError):
    """A request for devices, memory or disk that can never be met."""


def run_command(command: Callable[[], None]) -> NoReturn:
    """Run a command and leave the process with the exit code that its end calls for.

    `command` is typer's app: it raises `SystemExit` itself. Mistakes of the user (`UserError`) are printed
    on stderr and end with their exit code; Ctrl-C and SIGTERM end with `EXIT_INTERRUPTED`, a second one at
    once. Anything else is a bug of ours and keeps its traceback.
    """
    is_requested = False
    try:
        with interruptible(ends_process=True) as interruption:
            try:
                command()
            finally:
                is_requested = interruption.is_requested
    except UserError as error:
        sys.stderr.write(f"{describe(error)}\n")
        if is_requested:  # so it is the end that was asked for, if not as it should be
            leave_soon(is_requested=True)
        raise SystemExit(EXIT_INTERRUPTED if is_requested else error.exit_code) from None
    except KeyboardInterrupt:
        leave_soon(is_requested=is_requested, last_words=INTERRUPTED)
        raise SystemExit(EXIT_INTERRUPTED) from None
    except SystemExit as ending:
        if _is_of_interrupt(ending):  # typer has made an end of it, without a word
            leave_soon(is_requested=is_requested, last_words=INTERRUPTED)
        elif is_requested:
            leave_soon(is_requested=True)
        raise
    finally:
        flush_what_is_read()
    raise SystemExit(EXIT_DONE)


def _is_of_interrupt(error: BaseException) -> bool:
    """Whether an exception was raised while Ctrl-C was handled."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, KeyboardInterrupt):
        cause = cause.__context__
    return cause is not None


def describe(error: UserError) -> str:
    """All problems of an error as text for a terminal, closed by their count when there are several."""
    lines = [printable(problem) for problem in error.problems]
    if len(lines) > 1:
        lines.append(f"{len(lines)} problems, nothing was started.")
    return "\n".join(lines)


def printable(text: str) -> str:
    """`text` with control characters shown as escapes, so that a file's name cannot drive the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
