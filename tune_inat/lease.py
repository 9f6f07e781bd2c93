"""Who writes to a search's folder in a bucket: one search at a time, told by its signs of life there."""

import json
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tune_inat.bucket import RemoteFile, RemoteFolder, UnreachableError
from tune_inat.errors import ResourceError
from tune_inat.interrupts import run_apart

CLAIMS_FOLDER = ".lease"
BEAT_SECONDS = 5.0
TIMEOUT_SECONDS = 60.0  # without a sign of life, a search has lost the folder to whoever comes
MARGIN = 0.5  # of the time-out: its owner stops that much sooner, also for what is on its way then
LOOK_SECONDS = 1.0
RELEASE_SECONDS = 2.0  # that a storage gets to answer when the folder is let go


class LostLeaseError(ResourceError):
    """Another search has taken over the folder."""


class Lease:
    """The right to write to a folder, for as long as signs of life arrive.

    Object stores know no locks, and pyarrow no conditional writes. Each search writes a claim of its own and
    then looks for others: of two that come at once at least one sees the other, and both withdraw, to come
    again at different times. A claim is as old as the storage's clock says, whatever machines' clocks say.

    Args:
        folder: what is to be held.
        beat_seconds: from one sign of life to the next.
        timeout_seconds: without one, others may take over.
    """

    def __init__(
        self,
        folder: RemoteFolder,
        *,
        beat_seconds: float = BEAT_SECONDS,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        self._folder = folder
        self._claims = folder / CLAIMS_FOLDER
        self._beat_seconds = beat_seconds
        self._timeout_seconds = timeout_seconds
        self._own: str | None = None
        self._written: set[str] = set()  # our claims, also those of which nobody knows whether they arrived
        self._renewed = 0.0  # by `_clock`, when the last sign of life began to be written
        self._is_lost = False
        self._guard = threading.Lock()
        self._is_over = threading.Event()

    @contextmanager
    def held(self, say: Callable[[str], None]) -> Iterator[None]:
        """Hold the folder; `say` is told if a search that has perhaps died is waited for.

        Raises:
            ResourceError: another search holds it, and lives.
            UnreachableError: the storage does not answer.
        """
        beats = threading.Thread(target=self._beat, name="lease", daemon=True)
        try:
            self._acquire(say)
            beats.start()
            yield
        finally:
            self._is_over.set()
            began = time.monotonic()
            run_apart(
                lambda: self._let_go(beats), is_stuck=lambda: time.monotonic() - began > RELEASE_SECONDS
            )

    def ensure(self) -> None:
        """See that the folder is still held; to be called before each write.

        Raises:
            LostLeaseError: signs of life did not arrive for too long, and another search has come, be it
                that it has gone again; or the folder was let go.
            UnreachableError: they do not arrive now.
        """
        if self._is_over.is_set():
            raise LostLeaseError(f"{self._folder.name}: this search has let it go.")
        with self._guard:
            if not self._is_lost and _clock() - self._renewed < MARGIN * self._timeout_seconds:
                return
            if self._is_lost or self._is_removed(self._claims) or self._claim()[0]:
                self._is_lost = True
                self._withdraw()
                raise LostLeaseError(f"{self._folder.name}: another search has taken over here.")

    def _acquire(self, say: Callable[[str], None]) -> None:
        seen: dict[str, int] = {}  # when others gave their last sign of life, by the storage's clock
        is_said = False
        while True:
            others, now = self._claim()
            alive = {name: claim for name, claim in others.items() if not self._is_dead(claim, now)}
            for name in others.keys() - alive.keys():
                self._claims.remove(name)
            if not alive:
                return
            self._withdraw()
            holders = {name: self._read(name) for name in alive}
            for name, claim in alive.items():
                if seen.setdefault(name, claim.changed_ns) != claim.changed_ns:
                    who = holders[name]
                    raise ResourceError(
                        f"{self._folder.name}: another search is writing here (process {who.get('process')} "
                        f"on {who.get('host')}). Wait for it, or give this one another --name."
                    )
            if not is_said:
                is_said = True
                who = next(iter(holders.values()))
                say(
                    f"{self._folder.name}: a search on {who.get('host')} has been writing here. Waiting for "
                    f"up to {self._timeout_seconds:.0f} s to see whether it still does."
                )
            time.sleep(LOOK_SECONDS * random.uniform(0.5, 1.5))

    def _claim(self) -> tuple[dict[str, RemoteFile], int]:
        """Write a new claim of our own; returns those of others, and the storage's time in ns."""
        claim, began = uuid.uuid4().hex, _clock()
        earlier, self._written = set(self._written), self._written | {claim}
        self._claims.write(claim, json.dumps(_this_process()).encode())
        claims = self._claims.files()
        if claim not in claims:
            raise UnreachableError(f"{self._folder.name}: what is written there is not there afterwards.")
        self._own, self._renewed = claim, began
        for name in earlier:
            self._claims.remove(name)
            self._written.discard(name)
        others = {name: file for name, file in claims.items() if name not in {claim, *earlier}}
        return others, claims[claim].changed_ns

    def _withdraw(self) -> None:
        self._own = None
        for name in list(self._written):
            self._claims.remove(name)
            self._written.discard(name)

    def _is_dead(self, claim: RemoteFile, now_ns: int) -> bool:
        if now_ns - claim.changed_ns > self._timeout_seconds * 10**9:
            return True
        return _has_ended(self._read(claim.name))

    def _read(self, name: str) -> Mapping[str, Any]:
        try:
            content = json.loads(self._claims.read(name) or b"{}")
        except ValueError:
            return {}
        return content if isinstance(content, dict) else {}

    def _let_go(self, beats: threading.Thread) -> None:
        if beats.is_alive():
            beats.join()
        claims = RemoteFolder(self._claims.uri, self._claims.below, patience_seconds=RELEASE_SECONDS)
        for name in self._written:
            with suppress(UnreachableError):
                claims.remove(name)

    def _is_removed(self, claims: RemoteFolder) -> bool:
        """Whether another search has removed our claim, as one does that takes over."""
        return self._own is not None and self._own not in claims.files()

    def _beat(self) -> None:
        """Write a sign of life now and then. One that does not arrive is noticed by `ensure`."""
        claims = RemoteFolder(self._claims.uri, self._claims.below, patience_seconds=0.0)
        while not self._is_over.wait(self._beat_seconds):
            with self._guard, suppress(UnreachableError):
                began = _clock()
                if self._own is None or began - self._renewed >= MARGIN * self._timeout_seconds:
                    continue  # who comes may have taken over already: `ensure` asks
                if self._is_removed(claims):
                    self._is_lost, self._own = True, None
                    continue
                claims.write(self._own, json.dumps(_this_process()).encode())
                self._renewed = began


def _clock() -> float:
    """Seconds, also those in which this machine was asleep: others do not wait for it to wake up."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))  # the latter on macOS


def _this_process() -> dict[str, Any]:
    """What tells a process from all others, on this machine and elsewhere."""
    return {"host": socket.gethostname(), "process": os.getpid(), "machine": _machine(), "began": _began()}


def _machine() -> str:
    """Names the processes that can see each other: of one boot, in one namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not on Linux: then a search that was killed is waited for
        return uuid.uuid4().hex


def _began(process: object = "self") -> str:
    """When a process began, in the kernel's ticks; empty if it is gone."""
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return ""
    fields = status.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[19]


def _is_of_here(claim: Mapping[str, Any]) -> bool:
    return claim.get("machine") == _machine()


def _has_ended(claim: Mapping[str, Any]) -> bool:
    """Whether a claim is of a process of this machine that is gone: nobody has to wait for its time-out."""
    return _is_of_here(claim) and _began(claim.get("process", 0)) != claim.get("began")
