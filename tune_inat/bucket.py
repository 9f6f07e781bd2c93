"""A folder in a bucket (s3://, gs://), to read and to write: whole files, tried again for a while."""

import hashlib
import os
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from tune_inat.disk import writing
from tune_inat.errors import DataError, ResourceError
from tune_inat.interrupts import call_apart, is_ending
from tune_inat.remote import CHUNK_BYTES, connect, explain, hide_secrets, is_below
from tune_inat.store import default_root

PATIENCE_VARIABLE = "TUNE_INAT_STORAGE_SECONDS"
PATIENCE_SECONDS = 120.0  # a storage that does not answer is tried again for so long
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 10.0


_Result = TypeVar("_Result")


class UnreachableError(OSError):
    """A storage has not answered, or has refused, for as long as it was tried."""


@dataclass(frozen=True)
class RemoteFile:
    """A file in a bucket: its name below the folder, and when it was written, by the storage's clock."""

    name: str
    n_bytes: int
    changed_ns: int


class RemoteFolder:
    """A folder under a URI. Files are there whole or not at all; names have slashes and are relative to it.

    What fails is tried again with growing pauses, up to `patience_seconds` in all and not once the user has
    asked for the end, then it is an `UnreachableError`. Connections are made when they are needed, in each
    process.

    Args:
        uri: as `pyarrow.fs.FileSystem.from_uri` reads it; options after `?` hold for all that is below.
        below: a path in it.
    """

    def __init__(self, uri: str, below: str = "", *, patience_seconds: float | None = None) -> None:
        self.uri = uri
        self.below = below.strip("/")
        self.patience_seconds = patience_seconds

    def __getstate__(self) -> dict[str, Any]:
        return {"uri": self.uri, "below": self.below, "patience_seconds": self.patience_seconds}

    def __truediv__(self, below: str) -> "RemoteFolder":
        return RemoteFolder(self.uri, f"{self.below}/{below}", patience_seconds=self.patience_seconds)

    @property
    def name(self) -> str:
        """The folder's own URI, fit to be shown and to be typed again."""
        place, mark, options = hide_secrets(self.uri).partition("?")
        return place.rstrip("/") + (f"/{quote(self.below)}" if self.below else "") + mark + options

    def check(self, *, is_only_read: bool = False) -> None:
        """See whether files can be listed, and written, read and removed unless `is_only_read`.

        Raises:
            DataError: the URI names no storage that is known.
            ResourceError: with the reason, and what may be wrong.
        """
        marker = f".seen-{uuid.uuid4().hex}"
        once = RemoteFolder(self.uri, self.below, patience_seconds=0.0)
        _ = self._place  # opens it
        try:
            once.files()
            if is_only_read:
                return
            once.write(marker, b"seen")
            seen = once.read(marker)
            once.remove(marker)
        except UnreachableError as error:
            raise ResourceError(str(error)) from error
        if seen != b"seen":
            raise ResourceError(f"{self.name}: what is written there is not there afterwards.")

    def answers(self) -> bool:
        """Whether it answers a small request. To say that it does not may take minutes."""
        from pyarrow import ArrowException

        try:
            self._file_system.get_file_info(self._place[1])
        except (OSError, ValueError, ArrowException):
            return False
        return True

    def files(self, *, recursive: bool = False) -> dict[str, RemoteFile]:
        """The files of the folder by name, also of those below it if `recursive`.

        Raises:
            DataError: a name is no path below the folder.
        """
        infos = {name: info for name, info in self._list(recursive=recursive).items() if info.is_file}
        for name in infos:
            if not is_below(name):
                raise DataError(f"{self.name}: {name!r} is not a path below it.")
        return {name: RemoteFile(name, info.size, info.mtime_ns or 0) for name, info in infos.items()}

    def folders(self) -> list[str]:
        """The names of the folders in it, but for such as no folder can have."""
        infos = self._list(recursive=False)
        return sorted(name for name, info in infos.items() if not info.is_file and is_below(name))

    def read(self, name: str) -> bytes | None:
        """A file's content; `None` if there is none."""

        def read() -> bytes:
            with self._file_system.open_input_stream(self._path(name)) as stream:
                return bytes(stream.readall())

        with suppress(FileNotFoundError):
            return self._try(read, "cannot be read", name)
        return None

    def write(self, name: str, content: bytes) -> None:
        """Write a file whole, in the place of one of that name."""

        def write() -> None:
            with self._file_system.open_output_stream(self._path(name)) as stream:
                stream.write(content)

        self._try(write, "cannot be written", name)

    def send(self, path: Path, name: str) -> None:
        """Write a file of this machine, as long as it is now."""

        def send() -> None:
            with path.open("rb") as file:
                left = os.fstat(file.fileno()).st_size
                with self._file_system.open_output_stream(self._path(name)) as stream:
                    while left > 0 and (chunk := file.read(min(left, 8 * CHUNK_BYTES))):
                        stream.write(chunk)
                        left -= len(chunk)

        self._try(send, "cannot be written", name)

    def fetch(self, name: str, path: Path) -> bool:
        """Make a file of this machine what the one in the bucket is; whether there is one.

        Raises:
            ResourceError: this machine's disk has no room, or cannot be written.
        """
        aside = path.with_name(f".{uuid.uuid4().hex}.part")  # another fetch may be under way, left behind

        def fetch() -> None:
            with self._file_system.open_input_stream(self._path(name)) as stream, _opened(aside) as file:
                while chunk := stream.read(8 * CHUNK_BYTES):
                    with writing(path):
                        file.write(chunk)

        try:
            self._try(fetch, "cannot be read", name)
            with writing(path):
                aside.replace(path)
        except FileNotFoundError:
            return False
        finally:
            aside.unlink(missing_ok=True)
        return True

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with suppress(FileNotFoundError):
            self._try(lambda: self._file_system.delete_file(self._path(name)), "cannot be removed", name)

    def remove_all(self) -> None:
        """Remove the folder with all that is in it."""
        for name in self.files(recursive=True):
            self.remove(name)

    @cached_property
    def _place(self) -> tuple[Any, str]:
        file_system, base = connect(self.uri, hide_secrets(self.uri))
        return file_system, f"{base}/{self.below}".rstrip("/")

    @property
    def _file_system(self) -> Any:
        return self._place[0]

    def _path(self, name: str) -> str:
        return f"{self._place[1]}/{name}"

    def _list(self, *, recursive: bool) -> dict[str, Any]:
        from pyarrow.fs import FileSelector

        base = self._place[1]
        selector = FileSelector(base, recursive=recursive, allow_not_found=True)
        infos = self._try(lambda: self._file_system.get_file_info(selector), "cannot be listed", "")
        return {info.path[len(base) :].removeprefix("/"): info for info in infos}

    def _try(self, act: Callable[[], _Result], what: str, name: str) -> _Result:
        """Do it, again and again while it fails, for as long as patience lasts."""
        from pyarrow import ArrowException

        began = time.monotonic()
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                return call_apart(act)
            except FileNotFoundError:
                raise
            except (OSError, ValueError, ArrowException) as error:
                if is_ending() or time.monotonic() + pause > began + self._patience():
                    shown = (self / name).name if name else self.name
                    raise UnreachableError(explain(shown, what, error, self.uri)) from error
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _patience(self) -> float:
        if self.patience_seconds is not None:
            return self.patience_seconds
        try:
            return float(os.environ.get(PATIENCE_VARIABLE, PATIENCE_SECONDS))
        except ValueError:
            return PATIENCE_SECONDS


def copies_of(uri: str, kind: str) -> Path:
    """Where this machine has its copies of what is under a URI."""
    place = uri.partition("?")[0].rstrip("/")
    return default_root() / kind / hashlib.sha256(place.encode(errors="surrogatepass")).hexdigest()[:32]


def _opened(path: Path) -> Any:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("wb")
