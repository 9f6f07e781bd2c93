"""A content-addressed store on disk: what was built once under a key is never built again."""

import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from platformdirs import user_cache_path

from tune_inat.disk import size_of
from tune_inat.errors import ResourceError
from tune_inat.life import locked

CACHE_VARIABLE = "TUNE_INAT_CACHE"
ENTRY_FILE = "entry.json"  # written last: an entry without it, or that disagrees with it, is not whole
FORMAT_VERSION = 1
STATES_KIND = "states"  # its folders are families' (see `states.FamilyStates`): no entries, they grow
FAMILY_RECORD = "epochs.json"  # its time of change is that of the family's last use
DOWNLOADED_KINDS = frozenset({"data", "remote"})  # where data sets that were fetched are kept
LEFT_OVER = frozenset({".part", ".gone", ".tmp"})  # what a process that was killed leaves
LEFT_OVER_SECONDS = 24 * 3600.0  # until then a build may go on from what an earlier one left


def default_root() -> Path:
    """The store's folder: `TUNE_INAT_CACHE`, else the user's cache folder."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named).expanduser().absolute() if named else user_cache_path("tune_inat")


def hash_of(value: Any) -> str:
    """A stable 32-digit hash of a value made of JSON's types (mappings in any order, tuples as lists)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def family_lock(folder: Path) -> Path:
    """The lock file of a family's folder, held by who trains the family."""
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
        folder = self.path(kind, key)
        self._make_root()
        with self._locked(folder):
            if not is_whole(folder):
                if folder.exists():  # torn or altered since it was built
                    shutil.rmtree(folder)
                aside = folder.with_name(f".{key}.part")
                aside.mkdir(parents=True, exist_ok=True)
                build(aside)
                _seal(aside)
                aside.rename(folder)
            self._hold(folder)
        self.make_room()
        return folder

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
                used = entry.stat().st_mtime
                n_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            except FileNotFoundError:  # removed by another process since
                continue
            yield folder, n_bytes, used

    def make_room(self) -> None:
        """Remove what was unused for longest until all that is under the root fits the budget.

        First goes what killed processes left more than a day ago, then entries and families of epochs, the
        oldest use first. What is in use stays. Data sets that were downloaded or copied count and stay, too:
        trials may read them at any time, and only their owner knows what it costs to fetch them again.
        """
        if self.budget_bytes is None:
            return
        excess = size_of(self.root) - self.budget_bytes
        if excess <= 0:
            return
        entries = (_Holding(*entry, self._lock(entry[0])) for entry in self.entries())
        oldest_first = sorted([*entries, *self._families()], key=lambda holding: holding.used)
        for holding in [*self._left_over(), *oldest_first]:
            if excess <= 0:
                return
            if _remove_if_unused(holding):
                excess -= holding.n_bytes

    def _families(self) -> Iterator[_Holding]:
        for folder in (self.root / STATES_KIND).glob("[!.]*"):
            with suppress(FileNotFoundError):  # removed by another process since
                record = folder / FAMILY_RECORD
                used = (record if record.exists() else folder).stat().st_mtime
                yield _Holding(folder, size_of(folder), used, family_lock(folder))

    def _left_over(self) -> Iterator[_Holding]:
        """What was half built, half removed or half written when its process was killed, old enough to go."""
        limit = time.time() - LEFT_OVER_SECONDS
        for path in self.root.glob("*/.*"):
            if path.suffix not in LEFT_OVER or path.parent.name in DOWNLOADED_KINDS:
                continue
            with suppress(FileNotFoundError):
                used = max(part.lstat().st_mtime for part in (path, *path.rglob("*")))
                if used < limit:
                    n_bytes = size_of(path) if path.is_dir() else path.stat().st_size
                    key = path.name[1:].partition(".")[0]
                    yield _Holding(path, n_bytes, used, self._lock(path.with_name(key)))

    def _make_root(self) -> None:
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ResourceError(
                f"{self.root}: the cache folder cannot be made ({error.strerror}). "
                f"Set {CACHE_VARIABLE} to a folder that you can write to."
            ) from error
        if not os.access(self.root, os.W_OK | os.X_OK):
            raise ResourceError(
                f"{self.root}: the cache folder cannot be written to. "
                f"Set {CACHE_VARIABLE} to a folder that you can write to."
            )

    def _lock(self, folder: Path) -> Path:
        """The lock file of an entry's folder, or of a family's."""
        if folder.parent.name == STATES_KIND:
            return family_lock(folder)
        return self.root / "locks" / f"{folder.parent.name}-{folder.name}.lock"

    @contextmanager
    def _locked(self, folder: Path) -> Iterator[None]:
        lock = self._lock(folder)
        lock.parent.mkdir(parents=True, exist_ok=True)
        with locked(lock):
            yield

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
    """Whether a folder is a finished entry: its record is intact and each file has the size it had."""
    try:
        record = json.loads((folder / ENTRY_FILE).read_bytes())
        sizes = record["sizes"]
        if record["checksum"] != _checksum(sizes) or record["format"] != FORMAT_VERSION:
            return False
        return all((folder / name).stat().st_size == n_bytes for name, n_bytes in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part, also after power loss."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
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
    sizes: dict[str, int] = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.name != ENTRY_FILE:
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
            sizes[file.relative_to(folder).as_posix()] = file.stat().st_size
    record: Mapping[str, Any] = {"format": FORMAT_VERSION, "sizes": sizes, "checksum": _checksum(sizes)}
    write_atomically(folder / ENTRY_FILE, json.dumps(record, sort_keys=True).encode())


def _checksum(sizes: Mapping[str, int]) -> str:
    return hash_of({"sizes": dict(sizes)})
