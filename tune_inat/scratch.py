"""Folders that a search needs while it runs, and that the next one removes if it was killed."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tune_inat.disk import writing

PREFIX = "tune_inat-"
LOCK_FILE = ".owner"  # held by the folder's owner; dies with it


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """An empty folder of one's own, in the system's place for such; removed at the end.

    Raises:
        ResourceError: it cannot be made.
    """
    import fcntl

    place = Path(tempfile.gettempdir())
    remove_orphans(place)
    with writing(place):
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        descriptor = os.open(folder / ".new", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        (folder / ".new").rename(folder / LOCK_FILE)  # seen by others only when it is held
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def remove_orphans(place: Path) -> None:
    """Remove the folders of owners that have died."""
    import fcntl

    for lock in place.glob(f"{PREFIX}*/{LOCK_FILE}"):
        with suppress(OSError), lock.open("rb") as file:  # another user's, or gone, or in use
            if lock.stat().st_uid == os.getuid():
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)
