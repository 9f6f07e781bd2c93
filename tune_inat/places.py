"""Where a process that works for a search finds images and keeps its cache, on whatever machine it runs."""

import atexit
import socket
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from filelock import FileLock

from tune_inat.data import find_images
from tune_inat.errors import DataError
from tune_inat.job import Job
from tune_inat.life import SigningMeter, acquire
from tune_inat.origins import is_known_by_name
from tune_inat.remote import hide_secrets, is_uri
from tune_inat.scratch import remove_orphans, scratch_folder
from tune_inat.store import Store, claim_root, default_root, spared_bytes, write_atomically

PLACE_FILE = ".place"


def this_host() -> str:
    """What machines are told apart by."""
    return socket.gethostname()


def found_everywhere(source: str) -> str:
    """`--data` as it means the same in every folder of every machine that has it."""
    return source if is_known_by_name(source) or is_uri(source) else str(Path(source).absolute())


@dataclass(frozen=True)
class Caches:
    """Where each machine that works for a search has its cache.

    Attributes:
        host: where the search is conducted, with the cache `home`.
        is_kept: whether what is in it outlives the search.
        budget_bytes: how large each may be; `None` leaves it at what each disk can spare.
    """

    host: str
    home: Store
    is_kept: bool
    budget_bytes: int | None

    @staticmethod
    def of(job: Job) -> "Caches":
        """Those of the machines that work for a job."""
        return Caches(job.host, job.store, job.reuse, job.budget_bytes)

    @property
    def is_at_home(self) -> bool:
        """Whether the process that conducts the search runs here, with the same cache."""
        if self.host == "":
            return True
        return self.host == this_host() and (not self.is_kept or self.home.root == default_root())

    def here(self) -> Store:
        """The cache of the machine that this process runs on."""
        if self.is_at_home:
            return self.home
        if not self.is_kept:
            return Store(_scratch(), self.budget_bytes)
        budget = self.budget_bytes
        return Store(default_root(), spared_bytes(default_root()) if budget is None else budget)


def name_place(root: Path) -> str:
    """What a cache is told apart from all others by: nodes that see the same folder give the same name."""
    claim_root(root)
    marker = root / PLACE_FILE
    with FileLock(root / f"{PLACE_FILE}.lock"):
        if not marker.exists():
            write_atomically(marker, uuid.uuid4().hex.encode())
        return marker.read_text()


def at_this_host(job: Job) -> Job:
    """A job as it can be done here: with this machine's own cache and its own copies of the images.

    The copies stay, also where nothing is reused: they are input, which a machine fetches once.

    Raises:
        DataError: this machine cannot get at the images, or has others.
    """
    caches = Caches.of(job)
    if caches.is_at_home:
        return job
    remove_orphans(Path(tempfile.gettempdir()))
    store, home = caches.here(), default_root()
    claim_root(home)
    try:
        with _in_turn(home):  # images are copied and read by one process of this machine alone
            folder = find_images(job.source, cache=home, meter=SigningMeter())
    except DataError as error:
        raise DataError([f"on node {this_host()}: {problem}" for problem in error.problems]) from error
    files = {file.content: file.path for file in folder.files}
    missing = job.files.keys() - files.keys()
    if missing:
        raise DataError(
            f"--data {hide_secrets(job.source)}: node {this_host()} has not the images that {job.host} has: "
            f"{len(missing):,} of {len(job.files):,} are missing. Put them where all nodes see the same."
        )
    return replace(job, store=store, files={content: files[content] for content in job.files}, is_guest=True)


@contextmanager
def _in_turn(root: Path) -> Iterator[None]:
    lock = FileLock(root / ".images.lock")
    acquire(lock)
    try:
        yield
    finally:
        lock.release()


@cache
def _scratch() -> Path:
    """A cache for this process alone: it goes with it, or if it is killed with the next one that looks."""
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(scratch_folder())
