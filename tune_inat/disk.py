"""What the disk allows: folders to write to, room for what is coming."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from platformdirs import user_cache_path

from tune_inat.errors import ResourceError, UserError

CACHE_VARIABLE = "TUNE_INAT_CACHE"
FULL = (errno.ENOSPC, errno.EDQUOT)
FULL_TEXTS = ("No space left on device", "database or disk is full")  # of those who do not say it by number
FILLED_SHARE = 0.9  # of what is free
MAKE_ROOM = "Make room: the same command goes on with what is done."


def default_root() -> Path:
    """The cache's folder: `TUNE_INAT_CACHE`, else the user's cache folder."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named).expanduser().absolute() if named else user_cache_path("tune_inat")


def make_folder(folder: Path) -> None:
    """Make a folder of ours, readable by its owner only, unless it is there.

    Raises:
        ResourceError: it cannot be made, or not be written to.
    """
    with writing(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ResourceError(f"{folder}: cannot be written to{_owned_by_another(folder)}.")


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
            f"{folder}: {size_text(n_bytes)} are needed for {what} and {size_text(n_free)} are free. "
            f"Make room, or {how_to_move(folder)}: the same command goes on with what is done."
        )


def how_to_move(folder: Path) -> str:
    """What moves a folder of ours to a larger disk."""
    if folder.absolute().is_relative_to(default_root()):
        return f"set {CACHE_VARIABLE} to a folder on a larger disk"
    return "move it to a larger disk"


def has_room(folder: Path, n_bytes: int) -> bool:
    """Whether something fits a disk, with a tenth of what is free to spare."""
    return n_bytes < FILLED_SHARE * shutil.disk_usage(nearest_folder(folder)).free


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


def size_text(n_bytes: int) -> str:
    """A size in GB, small ones in MB."""
    return f"{n_bytes / 1e9:,.2f} GB" if n_bytes >= 10**8 else f"{n_bytes / 1e6:,.1f} MB"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around writes: what the file system refuses becomes a `ResourceError` that names the path."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise ResourceError(f"{path}: cannot be written ({reason}){_advice(path, error)}.") from error


@contextmanager
def explaining_full_disk(*folders: Path) -> Iterator[None]:
    """Around others' work: what fails because of a full disk becomes a `ResourceError`, with what is free."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_of_full_disk(error):
            raise
        raise ResourceError(f"A disk is full: {'; '.join(map(_state, folders))}. {MAKE_ROOM}") from error


def is_of_full_disk(error: BaseException) -> bool:
    """Whether a full disk is behind an exception, whoever has raised it."""
    cause: BaseException | None = error
    seen: set[int] = set()
    while cause is not None and id(cause) not in seen:  # libraries make circles of them
        seen.add(id(cause))
        is_told_by_number = isinstance(cause, OSError) and cause.errno in FULL
        if is_told_by_number or any(text in str(cause) for text in FULL_TEXTS):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _state(folder: Path) -> str:
    return f"{folder} has {size_text(shutil.disk_usage(_existing(folder)).free)} free"


def _advice(path: Path, error: OSError) -> str:
    if error.errno in FULL:
        return f"; {_state(path.parent)}. {MAKE_ROOM}".removesuffix(".")
    return _owned_by_another(path) if error.errno in (errno.EACCES, errno.EPERM) else ""


def _owned_by_another(path: Path) -> str:
    """Says so, where that is the reason."""
    existing = _existing(path)
    uid = existing.stat().st_uid
    if uid == os.geteuid():
        return ""
    try:
        owner = existing.owner()
    except KeyError:  # without a name
        owner = f"user {uid}"
    return f": {existing} belongs to {owner}"


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    return next((place for place in (path, *path.parents) if os.access(place, os.F_OK)), Path("/"))
