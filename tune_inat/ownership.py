"""Who may write to a folder that machines share: one owner at a time, also when an owner was cut off.

A lock file would not do. Its owner may live on behind a cut link, and hold it for ever; over NFS and the
like, who may hold one at the same time depends on how each machine has mounted the share.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tune_inat.disk import writing
from tune_inat.life import sign
from tune_inat.store import write_atomically

OWNER_FILE = "owner.json"
BEAT_SECONDS = 5.0  # between two signs of life of an owner
LEASE_SECONDS = 60.0  # an owner without one for so long is taken for dead by other searches
LOOK_SECONDS = 0.2  # between two looks of who waits


class LostOwnershipError(Exception):
    """Somebody else owns the folder by now: nothing may be written any more.

    Attributes:
        is_to_same_search: by whose searcher this process was given up, so that nobody waits for it.
    """

    def __init__(self, folder: Path, *, is_to_same_search: bool) -> None:
        super().__init__(f"{folder}: another process has taken over; it took this one for dead")
        self.is_to_same_search = is_to_same_search


class Ownership:
    """The right to write to a folder, as one process claims it.

    The folder's `owner.json` names the owner by a token, drawn anew for each claim. Who claims the folder
    writes that file; an owner reads it before it writes anything, and stops where it finds another's token.
    So nothing of an owner needs to be undone, or even reached, for the folder to be taken over.

    A search hands out its work so that no two processes have the same: where a process finds another one of
    its own search as the owner, that one was given up. Between searches, owners give signs of life, and a
    folder is taken over from who gives none any more. What an owner might write in the moment between
    reading and writing must do no harm: whole files, with the content that the next owner would give them.

    Args:
        folder: is made when it is claimed.
        search: names the search; later runs of its command are the same search.
    """

    def __init__(self, folder: Path, search: str) -> None:
        self._folder = folder
        self._search = search
        self._is_over = threading.Event()
        self.token = ""
        self.is_doubtful = False  # whether there is reason to `check`

    @contextmanager
    def held(self, look: Callable[[], None]) -> Iterator[None]:
        """Own the folder, once it is free or its owner given up.

        Args:
            look: called now and then while this waits; may raise, to give up.

        Raises:
            ResourceError: the folder cannot be written.
        """
        self._await_turn(look)
        with writing(self._folder):
            self._claim()
        self._is_over.clear()
        self.is_doubtful = False
        beating = threading.Thread(target=self._beat, name="ownership", daemon=True)
        beating.start()
        try:
            yield
        finally:
            self._is_over.set()
            beating.join()
            with suppress(OSError):
                self._beat_file(self.token).unlink(missing_ok=True)

    def check(self) -> None:
        """Make sure that the folder is still owned.

        Raises:
            LostOwnershipError: it is not.
        """
        owner = self._owner()
        if owner.get("token") != self.token:
            raise LostOwnershipError(self._folder, is_to_same_search=owner.get("search") == self._search)

    def _await_turn(self, look: Callable[[], None]) -> None:
        seen: tuple[str, int | None] | None = None
        since = 0.0
        while True:
            owner = self._owner()
            token = str(owner.get("token", ""))
            beat = self._last_beat(token)
            if not token or beat is None or owner.get("search") == self._search:
                return
            if (token, beat) != seen:  # by this machine's clock alone: others may be wrong
                seen, since = (token, beat), time.monotonic()
            if time.monotonic() - since > LEASE_SECONDS:
                return
            sign()
            look()
            time.sleep(LOOK_SECONDS)

    def _claim(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self.token = uuid.uuid4().hex
        self._beat_file(self.token).touch()
        name = {"token": self.token, "search": self._search, "host": socket.gethostname(), "pid": os.getpid()}
        write_atomically(self._folder / OWNER_FILE, json.dumps(name).encode())
        for left in self._folder.glob("*.beat"):
            if self._owner().get("token") != self.token:  # another has claimed it since: let its sign be
                break
            if left != self._beat_file(self.token):
                left.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._is_over.wait(BEAT_SECONDS):
            try:
                os.utime(self._beat_file(self.token))
            except FileNotFoundError:  # who takes over removes it
                self.is_doubtful = True
                return
            except OSError:  # a share that does not answer now may do so again
                continue

    def _owner(self) -> dict[str, Any]:
        """What the folder's owner says of itself; empty where there is none."""
        try:
            owner = json.loads((self._folder / OWNER_FILE).read_bytes())
        except (FileNotFoundError, ValueError):
            return {}
        return owner if isinstance(owner, dict) else {}

    def _last_beat(self, token: str) -> int | None:
        """The time of an owner's last sign of life, in ns; `None` where it has let go."""
        try:  # opened, since NFS may say from memory when a file was changed
            with self._beat_file(token).open("rb") as file:
                return os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:
            return None

    def _beat_file(self, token: str) -> Path:
        return self._folder / f"{token}.beat"
