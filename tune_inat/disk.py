"""What the disk allows: folders to write to, room for what is coming."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tune_inat.errors import ResourceError


def make_folder(folder: Path) -> None:
    """Make a folder of ours, readable by its owner only, unless it is there.

    Raises:
        ResourceError: it cannot be made, or not be written to.
    """
    with writing(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ResourceError(f"{folder}: cannot be written to. Is it yours?")


def check_room(folder: Path, n_bytes: int, what: str) -> None:
    """Refuse at once what the disk has no room for.

    Args:
        folder: an existing folder on that disk.
        what: names what needs the room, in a sentence: `the decoded images`.

    Raises:
        ResourceError: says how much is needed and how much is free.
    """
    n_free = shutil.disk_usage(folder).free
    if n_bytes > n_free:
        raise ResourceError(
            f"{folder}: {n_bytes / 1e9:,.2f} GB are needed for {what} and {n_free / 1e9:,.2f} GB are free. "
            "Make room, or move the cache to a larger disk."
        )


def reserve(path: Path) -> None:
    """Take the whole file's room on the disk now: a full disk under a memory map kills the process."""
    if hasattr(os, "posix_fallocate"):  # not on macOS
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def nearest_folder(folder: Path) -> Path:
    """A folder, or the nearest one above it that exists."""
    while not folder.exists():
        folder = folder.parent
    return folder


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk, safe from power loss."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def size_of(folder: Path) -> int:
    """The bytes of all files in a folder and below; 0 if there is none."""
    sizes = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # removed by another process since
                sizes += os.lstat(os.path.join(parent, name)).st_size  # noqa: PTH118  # many files
    return sizes


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around writes: what the file system refuses becomes a `ResourceError` that names the path."""
    try:
        yield
    except OSError as error:
        raise ResourceError(f"{path}: cannot be written ({os.strerror(error.errno or 0)}).") from error
