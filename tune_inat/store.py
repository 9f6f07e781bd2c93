"""A content-addressed store on disk: what was built once under a key is never built again."""

import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from platformdirs import user_cache_path

from tune_inat.errors import ResourceError

CACHE_VARIABLE = "TUNE_INAT_CACHE"
ENTRY_FILE = "entry.json"  # written last: an entry without it, or that disagrees with it, is not whole
FORMAT_VERSION = 1


def default_root() -> Path:
    """The store's folder: `TUNE_INAT_CACHE`, else the user's cache folder."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named).expanduser().absolute() if named else user_cache_path("tune_inat")


def hash_of(value: Any) -> str:
    """A stable 32-digit hash of a value made of JSON's types (mappings in any order, tuples as lists)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Store:
    """Folders by key under one root: built aside, checked, renamed into place.

    Several processes may use one root. An entry that is in use (`using`) is never removed.

    Args:
        root: made, readable by its owner only, when the first entry is built.
        budget_bytes: the size over which the oldest unused entries go when one is built; `None` is no limit.
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
        self._make_room()
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

    @contextmanager
    def _locked(self, folder: Path) -> Iterator[None]:
        locks = self.root / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        with FileLock(locks / f"{folder.parent.name}-{folder.name}.lock"):
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

    def _make_room(self) -> None:
        """Remove the entries unused for longest until the budget holds. What is in use stays."""
        if self.budget_bytes is None:
            return
        entries = sorted(self.entries(), key=lambda entry: entry[2])
        excess = sum(n_bytes for _, n_bytes, _ in entries) - self.budget_bytes
        for folder, n_bytes, _ in entries:
            if excess <= 0:
                return
            if self._remove_if_unused(folder):
                excess -= n_bytes

    def _remove_if_unused(self, folder: Path) -> bool:
        import fcntl

        locks = self.root / "locks"
        try:
            with FileLock(locks / f"{folder.parent.name}-{folder.name}.lock", timeout=0):
                with (folder / ENTRY_FILE).open("rb") as entry:
                    fcntl.flock(entry, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    doomed = folder.with_name(f".{folder.name}.{os.getpid()}.{time.monotonic_ns()}.gone")
                    folder.rename(doomed)
                shutil.rmtree(doomed)
        except (Timeout, BlockingIOError, FileNotFoundError):  # in use, or gone already
            return False
        return True


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
