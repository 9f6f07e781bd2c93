"""A folder that is sent to a bucket while a search writes to it, so that any machine can go on with it."""

import logging
import os
import sqlite3
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from tune_inat.bucket import RemoteFile, RemoteFolder, UnreachableError
from tune_inat.disk import check_room, make_folder
from tune_inat.errors import EXIT_FAILED, ResourceError
from tune_inat.interrupts import run_apart, worker_threads
from tune_inat.lease import CLAIMS_FOLDER, LostLeaseError
from tune_inat.meter import Meter
from tune_inat.store import is_half_written

LOOK_SECONDS = 1.0  # between two looks at the files of the folder itself
DEEP_LOOK_SECONDS = 15.0  # and at all below it: W&B's runs, by the thousand
BYTES_PER_SECOND = 4 * 2**20  # of a file that keeps growing, on average: it is sent whole each time
SILENCE_SECONDS = 4.0  # of the bucket, after which a search that is to end waits for it no more
N_THREADS = 8
N_NAMES = 4  # that an error spells out
SQLITE_SUFFIX, SQLITE_ASIDE = ".db", ("-journal", "-wal", "-shm")

logger = logging.getLogger(__name__)

Stamp = tuple[int, int, int]  # what changes with a file: bytes, time of change in ns, inode


class StorageError(ResourceError):
    """What a search has left could not be sent. The same command goes on."""

    exit_code = EXIT_FAILED


class Mirror:
    """Sends what changes in a folder to a bucket, in a thread of its own.

    What is in the bucket at the start is what counts: `fetch` makes the folder so. A file is sent whole, the
    journal before all that follows from it and the summary last.

    Args:
        first: names of files to send before all others, in this order; `last`: after them.
        may_write: called before each write; raises `LostLeaseError` where that is another's right by now.
    """

    def __init__(
        self,
        folder: Path,
        remote: RemoteFolder,
        *,
        first: Collection[str],
        last: Collection[str],
        may_write: Callable[[], None],
    ) -> None:
        self._folder = folder
        self._remote = remote
        self._ranks = {
            **{name: n - len(first) for n, name in enumerate(first)},
            **{name: n + 1 for n, name in enumerate(last)},
        }
        self._may_write = may_write
        self._sent: dict[str, Stamp] = {}  # what each file was when it was sent
        self._due: dict[str, float] = {}  # when a large file is sent again at the soonest
        self._failure: Exception | None = None
        self._on_failure: Callable[[], None] = lambda: None
        self._heard = 0.0  # by `time.monotonic()`, when the bucket last answered
        self._sending = threading.Lock()  # the rest, see `flush`
        self._is_over = threading.Event()
        self._thread: threading.Thread | None = None

    def fetch(self, meter: Meter, *, is_wanted: Callable[[str], bool] = lambda name: True) -> None:
        """Make the folder what the bucket has, before anything else is done with it.

        Args:
            is_wanted: given the name of a file, whether it is needed here.

        Raises:
            UnreachableError: the bucket does not answer.
            ResourceError: this machine's disk has no room.
        """
        there = self._remote.files(recursive=True)
        there = {name: file for name, file in there.items() if not _is_passed_over(name)}
        make_folder(self._folder)
        for name, path in list(self._files(deep=True)):
            if name not in there:
                path.unlink()
        lacking = [file for file in there.values() if is_wanted(file.name) and not self._is_fetched(file)]
        check_room(self._folder, sum(file.n_bytes for file in lacking), f"the copy of {self._remote.name}")
        if lacking:
            n_bytes = sum(file.n_bytes for file in lacking)
            with (
                meter.task(f"Fetching {self._remote.name}", n_bytes, "bytes") as advance,
                worker_threads(N_THREADS, "fetch", may_be_left=True) as pool,
            ):
                for file in pool.map(self._fetch_one, lacking):
                    advance(file.n_bytes)
        self._sent = {name: _stamp(path) for name, path in self._files(deep=True)}

    def start(self) -> None:
        """Send from now on what changes."""
        self._thread = threading.Thread(target=self._serve, name="mirror", daemon=True)
        self._thread.start()

    def tell(self, on_failure: Callable[[], None]) -> None:
        """Have this called, from the thread, when nothing can be sent any more.

        Raises:
            StorageError: that is so already.
        """
        self._on_failure = on_failure
        self.check()

    def check(self) -> None:
        """See that nothing has failed so far.

        Raises:
            StorageError: something has, for longer than it was tried.
        """
        if self._failure is not None:
            raise StorageError(
                f"--storage {self._failure} {self._unsent()}What counts at the next start is what the bucket "
                "has. What was trained so far is kept, here or there: the same command goes on with it."
            ) from self._failure

    def flush(self) -> None:
        """Send all that has not been sent; returns when it is there.

        Once the user has asked for the end, it goes on only while the bucket answers, however slowly.

        Raises:
            StorageError: it could not be sent.
        """
        self.check()
        self._is_over.set()
        self._heard = time.monotonic()
        is_done = threading.Event()
        threading.Thread(target=self._listen, args=(is_done,), name="listen", daemon=True).start()
        try:
            is_sent = run_apart(
                self._send_rest, is_stuck=lambda: time.monotonic() - self._heard > SILENCE_SECONDS
            )
        finally:
            is_done.set()
        if not is_sent:
            self._remote.patience_seconds = 0.0  # for what is still on its way
            self._failure = UnreachableError(f"{self._remote.name}: does not answer.")
        self.check()

    def _listen(self, is_done: threading.Event) -> None:
        while not is_done.wait(LOOK_SECONDS):
            if self._remote.answers():
                self._heard = time.monotonic()

    def _send_rest(self) -> None:
        with self._sending:  # Ctrl-C may have come in the middle of an earlier one
            if self._thread is not None:
                self._thread.join()
                self._thread = None
            if self._failure is not None:
                return
            try:
                self._pass(deep=True, is_last=True)
                self._mark()
            except (UnreachableError, LostLeaseError) as error:
                self._failure = error

    def _unsent(self) -> str:
        """Says which files the bucket lacks, as a sentence."""
        found = dict(self._files(deep=True))
        files = [name for name, path in found.items() if self._is_to_be_sent(name, path, is_last=True)]
        files.sort(key=lambda name: (self._ranks.get(name, 0), name))
        more = f" and {len(files) - N_NAMES} more" if len(files) > N_NAMES else ""
        return f"Not sent: {', '.join(files[:N_NAMES])}{more}. " if files else ""

    def _serve(self) -> None:
        deep_at = time.monotonic() + DEEP_LOOK_SECONDS
        while not self._is_over.wait(LOOK_SECONDS):
            is_deep = time.monotonic() >= deep_at
            try:
                self._pass(deep=is_deep, is_last=False)
            except (UnreachableError, LostLeaseError) as error:
                self._failure = error
                self._on_failure()
                return
            except (sqlite3.Error, OSError) as error:  # it is being written, or has gone: the next look tells
                logger.debug("a file could not be sent yet", exc_info=error)
            if is_deep:
                deep_at = time.monotonic() + DEEP_LOOK_SECONDS

    def _pass(self, *, deep: bool, is_last: bool) -> None:
        """Send what has changed since it was sent, and remove what has gone."""
        files = dict(self._files(deep=deep))
        by_rank: dict[int, list[str]] = defaultdict(list)
        for name, path in files.items():
            if self._is_to_be_sent(name, path, is_last=is_last):
                by_rank[self._ranks.get(name, 0)].append(name)
        for _, names in sorted(by_rank.items()):
            with worker_threads(min(N_THREADS, len(names)), "send") as pool:
                for _ in pool.map(lambda name: self._send_now(files[name], name), names):
                    pass  # one that failed raises here
        for name in [name for name in self._sent if deep and name not in files]:
            self._may_write()
            self._remote.remove(name)
            del self._sent[name]

    def _is_to_be_sent(self, name: str, path: Path, *, is_last: bool) -> bool:
        with suppress(FileNotFoundError):
            if _stamp(path) != self._sent.get(name):
                return is_last or time.monotonic() >= self._due.get(name, 0.0)
        return False

    def _send_now(self, path: Path, name: str) -> None:
        with suppress(FileNotFoundError):  # it has gone since
            stamp, now = _stamp(path), time.monotonic()
            self._may_write()
            self._send(path, name)
            self._heard = time.monotonic()
            self._sent[name] = stamp
            self._due[name] = now + stamp[0] / BYTES_PER_SECOND

    def _mark(self) -> None:
        """Give the files the times of those in the bucket: the next `fetch` sees that they are the same."""
        for name, file in self._remote.files(recursive=True).items():
            path = self._folder / name
            with suppress(FileNotFoundError):
                if self._sent.get(name) == (stamp := _stamp(path)) and stamp[0] == file.n_bytes:
                    os.utime(path, ns=(file.changed_ns, file.changed_ns))
                    self._sent[name] = _stamp(path)

    def _send(self, path: Path, name: str) -> None:
        if path.suffix != SQLITE_SUFFIX:
            self._remote.send(path, name)
            return
        with TemporaryDirectory(prefix="tune_inat-") as aside:  # a database in use is copied by itself, whole
            copy = Path(aside) / path.name
            with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(copy)) as target:
                source.backup(target)
            self._remote.send(copy, name)

    def _files(self, *, deep: bool) -> Iterator[tuple[str, Path]]:
        for path in self._folder.rglob("*") if deep else self._folder.iterdir():
            name = path.relative_to(self._folder).as_posix()
            if not path.is_symlink() and path.is_file() and not _is_passed_over(name):
                yield name, path

    def _is_fetched(self, file: RemoteFile) -> bool:
        try:
            status = (self._folder / file.name).stat()
        except OSError:
            return False
        return (status.st_size, status.st_mtime_ns) == (file.n_bytes, file.changed_ns)

    def _fetch_one(self, file: RemoteFile) -> RemoteFile:
        path = self._folder / file.name
        self._remote.fetch(file.name, path)
        os.utime(path, ns=(file.changed_ns, file.changed_ns))
        return file


def _stamp(path: Path) -> Stamp:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino


def _is_passed_over(name: str) -> bool:
    """Locks, claims, and what is being written."""
    path = Path(name)
    is_hidden = path.parts[0] in (".lock", CLAIMS_FOLDER) or path.suffix == ".part"
    return is_hidden or is_half_written(path) or path.name.endswith(SQLITE_ASIDE)
