"""The memory of a search's trials, beyond what any process has that imported the same modules."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import REPOSITORY
from benchmarks.processes import descendants, end_processes

# What a worker of tune_inat has imported when it trains.
IMPORTS = "import ray, timm, torchvision, sklearn.metrics, tune_inat.tuning"
BYTES_PER_KB = 1024
SAMPLE_SECONDS = 0.01
TRIAL_WORKER = b"ray::ImplicitFunc"


@dataclass(frozen=True)
class Memory:
    """A process's resident memory in bytes.

    Attributes:
        pss: of pages that several processes map, each has its share.
        anonymous: pages that are of no file: what it has allocated. Mapped activations are not among them.
    """

    pss: int
    anonymous: int


def read_memory(pid: int) -> Memory | None:
    """The memory of a process, `None` when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return None
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines[1:]}
    if "Pss" not in kilobytes:  # it is ending
        return None
    return Memory(kilobytes["Pss"] * BYTES_PER_KB, kilobytes["Anonymous"] * BYTES_PER_KB)


def anonymous_bytes(pid: int | str = "self") -> int:
    """What a process has allocated, in bytes: without mapped files, as the kernel counts it (RssAnon).

    Raises:
        OSError: the process has ended.
    """
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * BYTES_PER_KB
    raise ProcessLookupError(pid)  # it is ending


@dataclass
class Peak:
    """The most anonymous memory that was seen of this process, in bytes."""

    peak: int


@contextmanager
def anonymous_peak() -> Iterator[Peak]:
    """Watch this process's anonymous memory, a hundred times a second."""
    seen, is_over = Peak(anonymous_bytes()), threading.Event()

    def look() -> None:
        while not is_over.wait(SAMPLE_SECONDS):
            seen.peak = max(seen.peak, anonymous_bytes())

    thread = threading.Thread(target=look, name="memory", daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        is_over.set()
        thread.join()


class TrialMemory:
    """The peaks of a search's trials, each the difference to an idle process at the same moment.

    Attributes:
        pss, anonymous: of the largest worker, in bytes; 0 when none was seen.
        n_concurrent: the most workers that were seen at a time.
    """

    def __init__(self, idle_pid: int) -> None:
        self._idle_pid = idle_pid
        self.pss = 0
        self.anonymous = 0
        self.n_concurrent = 0

    def sample(self, search_pid: int) -> None:
        """Look at the workers of a running search."""
        idle = read_memory(self._idle_pid)
        assert idle is not None, "it waits for us"
        workers = [
            memory
            for pid in descendants(search_pid)
            if _is_trial_worker(pid) and (memory := read_memory(pid)) is not None
        ]
        self.n_concurrent = max(self.n_concurrent, len(workers))
        for worker in workers:
            self.pss = max(self.pss, worker.pss - idle.pss)
            self.anonymous = max(self.anonymous, worker.anonymous - idle.anonymous)


@contextmanager
def trial_memory() -> Iterator[TrialMemory]:
    """Measure beside an idle process, which has the libraries' pages in common with the workers."""
    code = f"import sys\n{IMPORTS}\nprint(flush=True)\nsys.stdin.read()"  # until we end, however we end
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C comes to us alone
    ) as idle:
        assert idle.stdout is not None, "it is a pipe"
        idle.stdout.readline()  # all is imported
        try:
            yield TrialMemory(idle.pid)
        finally:
            end_processes({idle.pid})


def _is_trial_worker(pid: int) -> bool:
    """Whether a process is an actor of Ray's that runs a trainable function; it names itself so."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(TRIAL_WORKER)
    except OSError:
        return False
