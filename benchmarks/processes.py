"""A row's process, timed from its start to its end; nothing that it started stays behind."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import REPOSITORY

PR_SET_CHILD_SUBREAPER = 36  # of Linux's prctl
SAMPLE_SECONDS = 1.0  # between two looks at a running process
INTERRUPT_SECONDS = 20.0  # that a row has to end by itself
END_SECONDS = 5.0  # that what it left has to end on SIGTERM
TAIL_LINES = 20

Watch = Callable[[int], None]


class RowError(Exception):
    """A row's process failed."""


@dataclass(frozen=True)
class RowProcess:
    """A Python process to run: its arguments, what it adds to the environment, where its output goes.

    `output` is for stdout; stderr goes beside it, into a `.log`.
    """

    arguments: Sequence[str]
    environment: Mapping[str, str]
    output: Path

    def run(self, watch: Watch = lambda pid: None) -> float:
        """The wall seconds from its start to its end.

        Args:
            watch: is called with the process's id once a second.

        Raises:
            RowError: it ended with another code than 0.
        """
        adopt_orphans()
        before = descendants(os.getpid())
        log = self.output.with_suffix(".log")
        with self.output.open("wb") as stdout, log.open("wb") as stderr:
            started = time.perf_counter()
            child = subprocess.Popen(
                [sys.executable, *self.arguments],
                env={**os.environ, "PYTHONPATH": str(REPOSITORY), **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,  # Ctrl-C comes to us alone; we pass it on
            )
            try:
                code = _wait(child, watch)
                seconds = time.perf_counter() - started
            except BaseException:
                child.send_signal(signal.SIGINT)
                with suppress(subprocess.TimeoutExpired):
                    child.wait(INTERRUPT_SECONDS)
                raise
            finally:
                end_processes(descendants(os.getpid()) - before)
        if code != 0:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-TAIL_LINES:])
            raise RowError(f"{' '.join(self.arguments)} ended with code {code}; all of {log}:\n{tail}")
        return seconds


def _wait(child: subprocess.Popen[bytes], watch: Watch) -> int:
    while True:
        try:
            return child.wait(SAMPLE_SECONDS)
        except subprocess.TimeoutExpired:
            watch(child.pid)


def adopt_orphans() -> None:
    """Let processes whose parent ends become children of this one, so that `descendants` finds them."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl: orphans cannot be adopted")


def descendants(pid: int) -> set[int]:
    """The processes that a process has started, and those that they have started, as long as they live."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended meanwhile
            parent = int(stat.read_text(errors="replace").rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found: set[int] = set()
    left = [pid]
    while left:
        new = children.get(left.pop(), [])
        found.update(new)
        left += new
    return found


def end_processes(pids: Collection[int]) -> None:
    """End processes by their ids: with SIGTERM, and those that stay with SIGKILL."""
    left = {pid for pid in pids if _is_alive(pid)}
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + END_SECONDS
        while left and time.monotonic() < deadline:
            left = {pid for pid in left if _is_alive(pid)}
            time.sleep(0.05)


def _is_alive(pid: int) -> bool:
    """Whether a process runs. One of our own that has ended is cleared away."""
    with suppress(ChildProcessError):
        if os.waitpid(pid, os.WNOHANG)[0] == pid:
            return False
    try:
        state = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
