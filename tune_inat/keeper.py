"""The cache of one node, in a process of its own, while the nodes of a cluster fill their caches together."""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
from ray import ObjectRef

from tune_inat.disk import has_room
from tune_inat.places import Caches, name_place
from tune_inat.shards import ARRAY_FILE, GrowingArray, Shard
from tune_inat.store import Store

KIND = "features"
THREADS = 8  # more than a node fetches and keeps at a time: another one can always read


@dataclass(frozen=True)
class Arrays:
    """Arrays that are filled together: their keys in the store, and what a row of each takes."""

    keys: tuple[str, ...]
    n_rows: int
    row_bytes: tuple[int, ...]
    dtype: str


class Keeper:
    """Fills the arrays of a node's cache. All of it may be called from several threads."""

    def __init__(self, caches: Caches) -> None:
        self._store = caches.here()
        self._guard = threading.Lock()
        self._holder = ThreadPoolExecutor(1)  # a lock file is let go by the thread that took it
        self._entries: dict[str, _Entry] = {}
        self._shards: Sequence[Shard] = ()

    def place(self) -> str:
        """What this node's cache is told apart from others by."""
        return name_place(self._store.root)

    def whole(self, keys: Sequence[str]) -> list[str]:
        """Those of some arrays that are there already."""
        return [key for key in keys if self._store.has(KIND, key)]

    def begin(self, arrays: Arrays, shards: Sequence[Shard]) -> list[int] | None:
        """Open arrays to be filled, once no other search is at them.

        Who calls it has what fills them, a device or a place that has all: others wait for it from now on.

        Returns:
            The numbers of the shards that are there already; `None` where the disk has no room for the rest.
        """
        self._shards = shards
        order = sorted(
            range(len(arrays.keys)), key=arrays.keys.__getitem__
        )  # as all do: nobody waits in a ring
        opened: dict[str, _Entry] = self._holder.submit(self._open, arrays, order).result()
        missing = sum(
            arrays.n_rows * row_bytes
            for key, row_bytes in zip(arrays.keys, arrays.row_bytes, strict=True)
            if opened[key].growing is not None and not opened[key].has_begun
        )
        if not has_room(self._store.root, missing):
            self._holder.submit(_leave, list(opened.values())).result()
            return None
        self._entries = {key: opened[key] for key in arrays.keys}
        entries = self._entries.values()
        return [number for number, shard in enumerate(shards) if all(entry.has(shard) for entry in entries)]

    def keep(self, number: int, parts: Sequence[ObjectRef[Any]]) -> float:
        """Write a shard, which another process has.

        Args:
            parts: its rows of each array, (n, ...), in one object.

        Returns:
            The seconds that it took to come.
        """
        started = time.perf_counter()
        rows = ray.get(parts[0])
        seconds = time.perf_counter() - started
        with self._guard:
            for entry, part in zip(self._entries.values(), rows, strict=True):
                if entry.growing is not None:
                    entry.growing.write(self._shards[number].start, part)
        return seconds

    def read(self, number: int) -> list[npt.NDArray[np.generic]]:
        """The rows of a shard, which is here, of each array."""
        with self._guard:
            return [entry.read(self._shards[number]) for entry in self._entries.values()]

    def finish(self) -> None:
        """All shards are there: the arrays take their places in the store, and stay readable here."""
        entries = list(self._entries.values())
        self._holder.submit(_finish, entries).result()

    def _open(self, arrays: Arrays, order: Sequence[int]) -> "dict[str, _Entry]":
        return {key: _Entry(self._store, key, arrays) for key in (arrays.keys[n] for n in order)}


class _Entry:
    """An array of the store, whole or in the making."""

    def __init__(self, store: Store, key: str, arrays: Arrays) -> None:
        self._building: AbstractContextManager[Path | None] = store.building(KIND, key)
        self._path = store.path(KIND, key) / ARRAY_FILE
        aside = self._building.__enter__()
        self._whole: Any = None
        self.growing: GrowingArray | None = None
        if aside is None:
            self._building.__exit__(None, None, None)
            self._whole = np.load(self._path, mmap_mode="r")
        else:
            self.growing = GrowingArray(aside, arrays.n_rows, arrays.dtype)

    @property
    def has_begun(self) -> bool:
        """Whether some of it is on the disk, which has room for the rest then."""
        return self.growing is None or self.growing.n_done > 0

    def has(self, shard: Shard) -> bool:
        return self.growing is None or self.growing.has(shard)

    def read(self, shard: Shard) -> npt.NDArray[np.generic]:
        if self.growing is not None:
            return self.growing.read(shard)
        rows: npt.NDArray[np.generic] = np.array(self._whole[shard.start : shard.stop])
        return rows

    def finish(self) -> None:
        if self.growing is not None:
            self.growing.finish()
            self._building.__exit__(None, None, None)
            self._whole, self.growing = np.load(self._path, mmap_mode="r"), None

    def leave(self) -> None:
        """Leave it as it is."""
        if self.growing is not None:
            self.growing.flush()
            error = InterruptedError()
            self._building.__exit__(type(error), error, None)


def _finish(entries: "Sequence[_Entry]") -> None:
    for entry in entries:
        entry.finish()


def _leave(entries: "Sequence[_Entry]") -> None:
    for entry in entries:
        with suppress(InterruptedError):
            entry.leave()
