"""Arrays that are filled in any order: whole rows or none, and no row twice after a kill."""

from pathlib import Path

import numpy as np
import pytest

from tune_inat.shards import SHARD_BYTES, SHARD_UNIT, GrowingArray, Shard, cut_into_shards

N_ROWS = 300


@pytest.mark.parametrize("n_rows", [1, 64, 65, 10_000])
@pytest.mark.parametrize("bytes_per_row", [1, 100_000, SHARD_BYTES])
@pytest.mark.parametrize("n_devices", [1, 2, 16])
def test_shards_cover_all_rows_in_whole_parts(n_rows: int, bytes_per_row: int, n_devices: int) -> None:
    shards = cut_into_shards(n_rows, bytes_per_row=bytes_per_row, n_devices=n_devices)
    assert [row for shard in shards for row in range(shard.start, shard.stop)] == list(range(n_rows))
    assert all(shard.start % SHARD_UNIT == 0 for shard in shards)
    assert all(len(shard) * bytes_per_row <= max(SHARD_BYTES, SHARD_UNIT * bytes_per_row) for shard in shards)


def part_of(shard: Shard) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.repeat(np.arange(shard.start, shard.stop, dtype=np.float32), 4).reshape(-1, 4)


def test_rows_that_were_flushed_are_there_after_a_kill(tmp_path: Path) -> None:
    shards = cut_into_shards(N_ROWS, bytes_per_row=16, n_devices=1)
    killed = GrowingArray(tmp_path, N_ROWS, np.float32)
    for shard in (shards[3], shards[1]):
        killed.write(shard.start, part_of(shard))
    killed.flush()
    killed.write(shards[0].start, part_of(shards[0]))  # and not flushed
    array = GrowingArray(tmp_path, N_ROWS, np.float32)
    assert [array.has(shard) for shard in shards] == [False, True, False, True, False]
    assert np.array_equal(array.read(shards[3]), part_of(shards[3]))
    for shard in shards:
        if not array.has(shard):
            array.write(shard.start, part_of(shard))
    array.finish()
    (file,) = tmp_path.iterdir()
    assert np.array_equal(np.load(file), part_of(Shard(0, N_ROWS)))


def test_rows_of_another_type_are_made_anew(tmp_path: Path) -> None:
    array = GrowingArray(tmp_path, N_ROWS, np.float32)
    array.write(0, part_of(Shard(0, 64)))
    array.flush()
    assert GrowingArray(tmp_path, N_ROWS, np.int16).n_done == 0
    assert GrowingArray(tmp_path, N_ROWS + 1, np.float32).n_done == 0
