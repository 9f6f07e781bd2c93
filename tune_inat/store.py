"""A content-addressed store on disk: what was built once under a key is never built again."""

import hashlib
import json
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tune_inat.disk import CACHE_VARIABLE as CACHE_VARIABLE
from tune_inat.disk import default_root as default_root
from tune_inat.disk import make_folder, nearest_folder, size_of, sync, writing
from tune_inat.errors import ResourceError
from tune_inat.life import acquire
from tune_inat.private import make_private

ENTRY_FILE = "entry.json"  # written last: an entry without it, or that disagrees with it, is not whole
STAMPS_FILE = "stamps.json"  # what the file system said of its files when they agreed with it
FORMAT_VERSION = 2
SPARED_BYTES, SPARED_SHARE = 5 * 10**9, 0.05  # of the disk, the less of both: the store leaves it free
HASH_CHUNK_BYTES = 32 * 2**20
N_HASHERS = 4
AHEAD_SECONDS = 60.0  # what was used this much after now was used when the clock was wrong
STATES_KIND = "states"  # its folders are families' (see `states.FamilyStates`): no entries, they grow
FAMILY_RECORD = "epochs.json"  # its time of change is that of the family's last use
DOWNLOADED_KINDS = frozenset({"data", "remote"})  # where data sets that were fetched are kept
COPIES_KIND, LOOKED_AT_KIND = "storage", "looked-at"  # copies of searches' folders in buckets: written, read
LOCK_FILE = ".lock"  # in a search's folder: held by the search that writes to it
LEFT_OVER = frozenset({".part", ".gone", ".tmp"})  # what a process that was killed leaves
_HALF_WRITTEN = re.compile(r"\..+\.\d+\.\d+\.tmp")
LEFT_OVER_SECONDS = 24 * 3600.0  # until then a build may go on from what an earlier one left


def spared_bytes(root: Path) -> int:
    """How large a store may be, as far as its disk goes: nearly all of what it has and what is free."""
    disk = shutil.disk_usage(nearest_folder(root))
    spared = min(SPARED_BYTES, int(SPARED_SHARE * disk.total))
    return size_of(root) + max(0, disk.free - spared)


def claim_root(root: Path) -> None:
    """Make the store's folder, or check that the one that is there is the user's alone.

    Raises:
        ResourceError: it cannot be made or written to, or is not the user's alone.
    """
    way_out = f"Set {CACHE_VARIABLE} to a folder that you can write to."
    try:
        own = f"Set {CACHE_VARIABLE} to a folder for the cache alone, such as {root / 'tune_inat'}."
        make_private(root, way_out=own)
    except OSError as error:
        raise ResourceError(
            f"{root}: the cache folder cannot be made ({error.strerror}). {way_out}"
        ) from error
    if not os.access(root, os.W_OK | os.X_OK):
        raise ResourceError(f"{root}: the cache folder cannot be written to. {way_out}")


def hash_of(value: Any) -> str:
    """A stable 32-digit hash of a value made of JSON's types (mappings in any order, tuples as lists)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def sibling_lock(folder: Path) -> Path:
    """The lock file beside a folder: of a family, held by who trains it; of a copy, by who makes it."""
    return folder.with_name(f".{folder.name}.lock")


@dataclass(frozen=True)
class _Holding:
    """Something in the store that may go when room is needed."""

    path: Path
    n_bytes: int
    used: float  # seconds since the epoch
    lock: Path  # held by who builds or removes it, and for a family by who trains it


class Store:
    """Folders by key under one root: built aside, checked, renamed into place.

    Several processes may use one root. An entry that is in use (`using`) is never removed.

    Args:
        root: made, readable by its owner only, when the first entry is built.
        budget_bytes: how large all that is under the root may be, see `make_room`; `None` is no limit.
    """

    def __init__(self, root: Path, budget_bytes: int | None = None) -> None:
        self.root = root
        self.budget_bytes = budget_bytes
        self._held: dict[Path, int] = {}  # the descriptors of entries that this process uses
        self._guard = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "budget_bytes": self.budget_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["root"], state["budget_bytes"])  # type: ignore[misc]  # a store is its arguments

    def path(self, kind: str, key: str) -> Path:
        """Where an entry is, or would be."""
        return self.root / kind / key

    def has(self, kind: str, key: str) -> bool:
        """Whether a whole entry is there now."""
        return is_whole(self.path(kind, key))

    def get_or_build(self, kind: str, key: str, build: Callable[[Path], None]) -> Path:
        """The folder of an entry, built by `build(folder)` if there is no whole one.

        One process builds while the others wait. `build` gets a folder that may hold what an earlier,
        killed build of the same entry left: it may go on from there. The entry stays in use, so is not
        removed, until this process ends or calls `release`.

        Raises:
            ResourceError: the store's folder cannot be written.
        """
        with self.building(kind, key) as aside:
            if aside is not None:
                build(aside)
        return self.path(kind, key)

    @contextmanager
    def building(self, kind: str, key: str) -> Iterator[Path | None]:
        """The same for who builds piece by piece: the folder to build in, `None` if the entry is whole.

        The entry takes its place when the block ends. One that ends by an exception leaves what it has built.
        """
        folder = self.path(kind, key)
        claim_root(self.root)
        make_folder(folder.parent)
        with self._locked(folder):
            if is_whole(folder):
                yield None
            else:
                aside = folder.with_name(f".{key}.part")
                with writing(folder):
                    if folder.exists():  # torn or altered since it was built
                        shutil.rmtree(folder)
                    aside.mkdir(exist_ok=True)
                yield aside
                with writing(folder):
                    _seal(aside)
                    aside.rename(folder)
                    sync(folder.parent)
            with writing(folder):
                self._hold(folder)
        self.make_room()

    def release(self, kind: str, key: str) -> None:
        """Say that this process no longer uses an entry."""
        with self._guard:
            descriptor = self._held.pop(self.path(kind, key), None)
        if descriptor is not None:
            os.close(descriptor)

    def entries(self) -> Iterator[tuple[Path, int, float]]:
        """Each whole entry as (folder, bytes, seconds since the epoch of its last use)."""
        if not self.root.is_dir():
            return
        for entry in sorted(self.root.glob(f"*/*/{ENTRY_FILE}")):
            folder = entry.parent
            if folder.name.startswith("."):
                continue
            try:
                used = _last_use(entry)
                n_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            except FileNotFoundError:  # removed by another process since
                continue
            yield folder, n_bytes, used

    def make_room(self) -> None:
        """Remove what was unused for longest until all that is under the root fits the budget.

        First goes what killed processes left more than a day ago, then entries, families of epochs and copies
        of what is in buckets, the oldest use first. What is in use stays. Data sets that were downloaded or
        copied count and stay, too: trials may read them at any time, and only their owner knows what it costs
        to fetch them again.
        """
        if self.budget_bytes is None:
            return
        excess = size_of(self.root) - self.budget_bytes
        if excess <= 0:
            return
        entries = (_Holding(*entry, self._lock(entry[0])) for entry in self.entries())
        holdings = [*entries, *self._families(), *self._copies()]
        oldest_first = sorted(holdings, key=lambda holding: holding.used)
        for holding in [*self._left_over(), *oldest_first]:
            if excess <= 0:
                return
            if _remove_if_unused(holding):
                excess -= holding.n_bytes

    def _families(self) -> Iterator[_Holding]:
        for folder in (self.root / STATES_KIND).glob("[!.]*"):
            with suppress(FileNotFoundError):  # removed by another process since
                record = folder / FAMILY_RECORD
                used = _last_use(record if record.exists() else folder)
                yield _Holding(folder, size_of(folder), used, sibling_lock(folder))

    def _copies(self) -> Iterator[_Holding]:
        """Copies of searches' folders; what they are copies of is in a bucket."""
        for kind in (COPIES_KIND, LOOKED_AT_KIND):
            for folder in (self.root / kind).glob("*/[!.]*"):
                with suppress(FileNotFoundError):  # removed by another process since
                    used = max(_last_use(path) for path in (folder, *folder.iterdir()))
                    lock = folder / LOCK_FILE if kind == COPIES_KIND else sibling_lock(folder)
                    yield _Holding(folder, size_of(folder), used, lock)

    def _left_over(self) -> Iterator[_Holding]:
        """What was half built, half removed or half written when its process was killed, old enough to go."""
        limit = time.time() - LEFT_OVER_SECONDS
        patterns = ["*/.*", *(f"{kind}/*/.*" for kind in (COPIES_KIND, LOOKED_AT_KIND))]
        for path in chain.from_iterable(map(self.root.glob, patterns)):
            if path.suffix not in LEFT_OVER or path.parent.name in DOWNLOADED_KINDS:
                continue
            with suppress(FileNotFoundError):
                used = max(_last_use(part) for part in (path, *path.rglob("*")))
                if used < limit:
                    n_bytes = size_of(path) if path.is_dir() else path.stat().st_size
                    key = path.name[1:].partition(".")[0]
                    yield _Holding(path, n_bytes, used, self._lock(path.with_name(key)))

    def _lock(self, folder: Path) -> Path:
        """The lock file of an entry's folder, or of a family's."""
        if folder.parent.name == STATES_KIND:
            return sibling_lock(folder)
        return self.root / "locks" / f"{folder.parent.name}-{folder.name}.lock"

    @contextmanager
    def _locked(self, folder: Path) -> Iterator[None]:
        path = self._lock(folder)
        make_folder(path.parent)
        lock = FileLock(path)
        with writing(path):
            acquire(lock)
        try:
            yield
        finally:
            lock.release()

    def _hold(self, folder: Path) -> None:
        """Mark an entry as used now, and in use for as long as this process lives (a shared flock)."""
        import fcntl

        entry = folder / ENTRY_FILE
        os.utime(entry)
        with self._guard:
            if folder in self._held:
                return
            descriptor = os.open(entry, os.O_RDONLY)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            self._held[folder] = descriptor


def is_whole(folder: Path) -> bool:
    """Whether a folder is a finished entry: its record is intact, and each file is as it was.

    The content of files is read where the file system says that they were touched since that was last done.
    """
    try:
        record = json.loads((folder / ENTRY_FILE).read_bytes())
        files = record["files"]
        if record["format"] != FORMAT_VERSION or record["checksum"] != hash_of(files):
            return False
        if any((folder / name).stat().st_size != facts["bytes"] for name, facts in files.items()):
            return False
        stamps = {name: _stamp(folder / name) for name in files}
        if stamps == _read_stamps(folder):
            return True
        if any(_hash_file(folder / name) != facts["hash"] for name, facts in files.items()):
            return False
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    with suppress(OSError):  # where nothing can be written, it is read again the next time
        _write_stamps(folder, stamps)
    return True


def _stamp(file: Path) -> list[int]:
    """What changes with a file's content: its inode and the times of its changes, in ns."""
    status = file.stat()
    return [status.st_ino, status.st_mtime_ns, status.st_ctime_ns]


def _read_stamps(folder: Path) -> Any:
    try:
        return json.loads((folder / STAMPS_FILE).read_bytes())
    except (OSError, ValueError):
        return None


def _write_stamps(folder: Path, stamps: Mapping[str, list[int]]) -> None:
    (folder / STAMPS_FILE).write_text(json.dumps(stamps))  # torn, it agrees with nothing


def _hash_file(path: Path) -> str:
    """The hash of the hashes of a file's parts, which threads share."""
    with path.open("rb") as file, ThreadPoolExecutor(N_HASHERS, thread_name_prefix="hash") as pool:
        starts = range(0, os.fstat(file.fileno()).st_size, HASH_CHUNK_BYTES)
        parts = pool.map(lambda start: _hash_part(file.fileno(), start), starts)
        return hashlib.sha256(b"".join(parts)).hexdigest()


def _hash_part(descriptor: int, start: int) -> bytes:
    return hashlib.sha256(os.pread(descriptor, HASH_CHUNK_BYTES, start)).digest()


def _last_use(path: Path) -> float:
    """When something was last used, in seconds since the epoch; now, where a clock says in the future."""
    used, now = path.lstat().st_mtime, time.time()
    if used <= now + AHEAD_SECONDS:
        return used
    with suppress(OSError):
        os.utime(path, follow_symlinks=False)  # from now on it grows old like all others
    return now


def is_half_written(path: Path) -> bool:
    """Whether a file is what `write_atomically` left when its process was killed."""
    return _HALF_WRITTEN.fullmatch(path.name) is not None


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part, also after power loss."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.{secrets.randbits(64)}.tmp")  # the disk may be shared
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        sync(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def _remove_if_unused(holding: _Holding) -> bool:
    """Remove it, unless someone builds, trains or uses it; whether it is gone."""
    path = holding.path
    try:
        holding.lock.parent.mkdir(exist_ok=True)
        with FileLock(holding.lock, timeout=0):
            if not path.is_dir():
                path.unlink()
            elif path.suffix in LEFT_OVER:
                shutil.rmtree(path)
            else:
                _refuse_if_held(path)
                doomed = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}.gone")
                path.rename(doomed)
                shutil.rmtree(doomed)
    except (Timeout, BlockingIOError, FileNotFoundError):  # in use, or gone already
        return False
    return True


def _refuse_if_held(folder: Path) -> None:
    """Raise `BlockingIOError` for an entry that a process uses; families have no such mark."""
    import fcntl

    with suppress(FileNotFoundError), (folder / ENTRY_FILE).open("rb") as entry:
        fcntl.flock(entry, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _seal(folder: Path) -> None:
    """Write the record of a finished entry, after all else is on the disk."""
    for name in (ENTRY_FILE, STAMPS_FILE):  # of an entry that a kill kept from its place
        (folder / name).unlink(missing_ok=True)
    files: dict[str, dict[str, Any]] = {}
    stamps: dict[str, list[int]] = {}
    for file in sorted(folder.rglob("*")):
        if file.is_dir():
            sync(file)
        elif file.is_file():
            sync(file)
            name = file.relative_to(folder).as_posix()
            stamps[name] = _stamp(file)
            files[name] = {"bytes": file.stat().st_size, "hash": _hash_file(file)}
    record: Mapping[str, Any] = {"format": FORMAT_VERSION, "files": files, "checksum": hash_of(files)}
    _write_stamps(folder, stamps)
    write_atomically(folder / ENTRY_FILE, json.dumps(record, sort_keys=True).encode())
