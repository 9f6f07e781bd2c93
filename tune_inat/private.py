"""Folders that are the user's alone: nobody else can read what is kept there, or slip something in."""

import errno
import os
import pwd
import stat
from contextlib import suppress
from pathlib import Path

from tune_inat.errors import ResourceError

MARKS = frozenset({"locks", "pixels", "states"})  # folders that are in a cache of ours


def make_private(folder: Path, *, way_out: str) -> None:
    """Make a folder that only its owner can use (0700), or see to it that one that is there is so.

    One of the user's that others can enter is closed to them if nothing is in it but what we have put there;
    with other things in it, it may be open for a reason. A link is followed if the user or root has made it.

    Args:
        way_out: a sentence with what to do where it is refused.

    Raises:
        OSError: it cannot be made or changed.
        ResourceError: it is another user's, or has other things in it and is open to others.
    """
    if not folder.exists():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "it is a file", str(folder))
    for place, status, makers in ((folder, folder.lstat(), {0}), (folder.resolve(), folder.stat(), set())):
        if status.st_uid not in makers | {os.geteuid()}:
            raise ResourceError(f"{place}: the cache folder belongs to {_name(status.st_uid)}. {way_out}")
    if stat.S_IMODE(folder.stat().st_mode) & 0o077:
        names = {entry.name for entry in folder.iterdir()}
        if names and not names & MARKS:
            raise ResourceError(
                f"{folder}: the cache folder is open to other users and has other things in it. {way_out}"
            )
        folder.chmod(0o700)


def _name(user: int) -> str:
    with suppress(KeyError):
        return f"the user {pwd.getpwuid(user).pw_name}"
    return f"the user {user}"
