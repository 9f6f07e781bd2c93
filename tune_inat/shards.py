"""An array on the disk that is filled shard by shard, in any order, and goes on after a kill."""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tune_inat.disk import check_room, reserve, writing
from tune_inat.images import open_whole
from tune_inat.store import write_atomically

ARRAY_FILE = "features.npy"
PROGRESS_FILE = "rows.json"
FLUSH_BYTES = 64 * 2**20  # how much may be computed twice after a kill
SHARD_UNIT = 64  # rows: whole parts of what runs frozen layers, wherever a shard begins
SHARD_BYTES = 32 * 2**20  # of what one node hands to another at a time, at most
SHARDS_PER_DEVICE = 4  # at least, where there are images for it: a device that is quicker does more of them


@dataclass(frozen=True)
class Shard:
    """The rows from `start` to before `stop`."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


def cut_into_shards(n_rows: int, *, bytes_per_row: int, n_devices: int) -> tuple[Shard, ...]:
    """All rows in shards that begin at multiples of `SHARD_UNIT`.

    Args:
        bytes_per_row: what is computed for a row.
        n_devices: how many share the work.
    """
    most = min(SHARD_BYTES // max(1, bytes_per_row), n_rows // (SHARDS_PER_DEVICE * n_devices))
    size = max(1, most // SHARD_UNIT) * SHARD_UNIT
    return tuple(Shard(start, min(start + size, n_rows)) for start in range(0, n_rows, size))


class GrowingArray:
    """An array of `n_rows` rows in a folder of the store, in the making.

    Its progress is written when its rows are on the disk, so it never promises more than there is.
    """

    def __init__(self, folder: Path, n_rows: int, dtype: npt.DTypeLike) -> None:
        self._folder = folder
        self._array: Any = None  # a memory map, once the shape of a row is known
        self._is_done = np.zeros(n_rows, bool)
        self._n_unflushed = 0
        with suppress(OSError, ValueError, TypeError):  # none there, or not whole: begun anew
            done = _read_progress(folder / PROGRESS_FILE, n_rows)
            array = open_whole(folder / ARRAY_FILE)
            if len(array) == n_rows and array.dtype == dtype and done.any():
                self._array, self._is_done = array, done

    @property
    def n_done(self) -> int:
        """How many rows are there."""
        return int(self._is_done.sum())

    @property
    def is_whole(self) -> bool:
        """Whether all rows are there."""
        return bool(self._is_done.all())

    def has(self, shard: Shard) -> bool:
        """Whether all rows of a shard are there."""
        return bool(self._is_done[shard.start : shard.stop].all())

    def write(self, start: int, part: npt.NDArray[np.generic]) -> None:
        """Fill the rows from `start` on with (n, ...).

        Raises:
            ResourceError: the disk has no room for the whole array, or cannot be written.
        """
        array = self._open_for(part)
        array[start : start + len(part)] = part
        self._is_done[start : start + len(part)] = True
        self._n_unflushed += part.nbytes
        if self._n_unflushed >= FLUSH_BYTES:
            self.flush()

    def read(self, shard: Shard) -> npt.NDArray[np.generic]:
        """A copy of the rows of a shard, which are there."""
        rows: npt.NDArray[np.generic] = np.array(self._array[shard.start : shard.stop])
        return rows

    def flush(self) -> None:
        """See that what was written survives a kill."""
        if self._array is not None:
            self._array.flush()
            write_atomically(self._folder / PROGRESS_FILE, _packed(self._is_done))
            self._n_unflushed = 0

    def finish(self) -> None:
        """All rows are there: leave the array alone."""
        assert self.is_whole, "rows are missing"
        self._array.flush()
        (self._folder / PROGRESS_FILE).unlink(missing_ok=True)

    def _open_for(self, part: npt.NDArray[np.generic]) -> Any:
        n_rows, path = len(self._is_done), self._folder / ARRAY_FILE
        array = self._array
        if array is not None and array.dtype == part.dtype and array.shape[1:] == part.shape[1:]:
            return array
        self._is_done[:] = False  # what was there is not what is being made
        check_room(self._folder, n_rows * part[0].nbytes, "the activations of the frozen layers")
        with writing(path):
            self._array = np.lib.format.open_memmap(
                path, mode="w+", dtype=part.dtype, shape=(n_rows, *part.shape[1:])
            )
            reserve(path)
        return self._array


def _read_progress(path: Path, n_rows: int) -> npt.NDArray[np.bool_]:
    """Which rows are there: the file has how many from the first on, or ranges of them."""
    content = json.loads(path.read_bytes())
    done = np.zeros(n_rows, bool)
    for start, stop in [(0, content)] if isinstance(content, int) else content:
        done[int(start) : int(stop)] = True
    return done


def _packed(is_done: npt.NDArray[np.bool_]) -> bytes:
    ranges = _ranges(is_done)
    content = ranges[0][1] if len(ranges) == 1 and ranges[0][0] == 0 else ranges
    return json.dumps(content).encode()


def _ranges(is_done: npt.NDArray[np.bool_]) -> list[list[int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], is_done, [False]]).astype(np.int8)))
    ranges: list[list[int]] = edges.reshape(-1, 2).tolist()
    return ranges
