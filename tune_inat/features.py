"""Activations of the frozen prefix at a cut: computed once, memory-mapped, read by all trials of a node."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tune_inat.frozen import PART_SIZE, STORED_TYPE, Precision, run_frozen
from tune_inat.meter import Meter
from tune_inat.shards import ARRAY_FILE, GrowingArray, Shard
from tune_inat.store import Store, hash_of

FEATURES_KIND = "features"
BATCH_SIZE = 64  # images between two looks at the progress, where few cores share them


@dataclass(frozen=True)
class CutFeatures:
    """Where activations stand: those of which pixels, under which weights, at which cut."""

    pixels_key: str
    weights_key: str
    cut: str
    precision: Precision

    @property
    def key(self) -> str:
        """The key under which the store keeps them."""
        return hash_of([self.pixels_key, self.weights_key, self.cut, self.precision, PART_SIZE])


class Rows:
    """Images or activations by row, as a trial reads them.

    The array on disk is channels-last (N, H, W, C); `take` gives (n, C, H, W) over the same memory layout.
    Other shapes come as they are. On a GPU all rows live there if they fit.
    """

    def __init__(self, array: npt.NDArray[np.generic], device: torch.device, *, step_bytes: int = 0) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of arrays that cannot be written: nobody writes here
            tensor = torch.from_numpy(array)
        if tensor.dtype == torch.int16:
            tensor = tensor.view(torch.bfloat16)
        self._device = device
        self._tensor = tensor.to(device) if fits(array.nbytes, device, step_bytes) else tensor

    def fetch(self, rows: Tensor) -> Tensor:
        """The rows (n,) int64, in that order, in memory: on the device if all are there, else ready to go."""
        taken = self._tensor.index_select(0, rows.to(self._tensor.device))
        return taken.pin_memory() if taken.device.type != self._device.type else taken

    def finish(self, fetched: Tensor) -> Tensor:
        """What was fetched, on the device."""
        batch = fetched.to(self._device, non_blocking=True)
        return batch.permute(0, 3, 1, 2) if batch.ndim == 4 else batch

    def take(self, rows: Tensor) -> Tensor:
        """The rows (n,) int64, in that order, on the device."""
        return self.finish(self.fetch(rows))


def fits(n_bytes: int, device: torch.device, step_bytes: int = 0) -> bool:
    """Whether an array may live on a device: on a GPU, beside what a step needs. The CPU maps it.

    Args:
        step_bytes: what a step needs of a GPU; half of what is left where that is not known (0).
    """
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    limit = (
        torch.cuda.get_per_process_memory_fraction(device)
        * torch.cuda.get_device_properties(device).total_memory
    )
    left = min(free, limit - torch.cuda.memory_allocated(device))
    return n_bytes < (left - step_bytes if step_bytes else 0.5 * left)


def has_features(store: Store, cut: CutFeatures) -> bool:
    """Whether the activations are there, whole."""
    return store.has(FEATURES_KIND, cut.key)


def open_features(store: Store, cut: CutFeatures) -> npt.NDArray[np.generic]:
    """The activations, memory-mapped, that `has_features` found; see `load_features`."""

    def build(folder: Path) -> None:
        raise FileNotFoundError(f"{folder}: the activations at {cut.cut} went away")

    # Copy-on-write: torch wants a writable array, and pages are shared all the same.
    path = store.get_or_build(FEATURES_KIND, cut.key, build) / ARRAY_FILE
    array: npt.NDArray[np.generic] = np.load(path, mmap_mode="c")
    return array


def load_features(
    store: Store,
    cut: CutFeatures,
    compute: Callable[[], tuple[Rows, nn.Module]],
    *,
    n_rows: int,
    meter: Meter,
    fetch: Callable[[Path], None] = lambda folder: None,
) -> npt.NDArray[np.generic]:
    """The activations of rows 0..n_rows-1, memory-mapped; computed first if the store has none.

    Args:
        compute: called only when they must be computed: what to read, and the network from there to the cut
            (in eval mode, on the device of what is read).
        n_rows: how many rows there are.
        meter: is told of each image.
        fetch: called first when they are not there: may fill a `GrowingArray` in that folder, or begin to.

    Returns:
        (n_rows, H, W, C) or (n_rows, ...), float32, or int16 that holds the bits of bfloat16.
    """

    def build(folder: Path) -> None:
        fetch(folder)
        whole = GrowingArray(folder, n_rows, STORED_TYPE[cut.precision][0])
        if whole.is_whole:
            whole.finish()
            return
        source, network = compute()
        with meter.task(f"Frozen layers up to {cut.cut}", n_rows, "images") as advance:
            _compute(folder, source, network, n_rows=n_rows, precision=cut.precision, advance=advance)

    store.get_or_build(FEATURES_KIND, cut.key, build)
    return open_features(store, cut)


def _compute(
    folder: Path,
    source: Rows,
    network: nn.Module,
    *,
    n_rows: int,
    precision: Precision,
    advance: Callable[[int], None],
) -> None:
    """Fill the array batch by batch, going on with what an earlier, killed run flushed."""
    stored, _ = STORED_TYPE[precision]
    array = GrowingArray(folder, n_rows, stored)
    advance(array.n_done)
    batch_size = max(BATCH_SIZE, PART_SIZE * torch.get_num_threads())
    for start in range(0, n_rows, batch_size):
        batch = Shard(start, min(start + batch_size, n_rows))
        if not array.has(batch):
            n_before = array.n_done
            rows = torch.arange(batch.start, batch.stop)
            array.write(start, as_stored(run_frozen(network, source.take(rows), precision, rows=rows)))
            advance(array.n_done - n_before)
    array.finish()


def as_stored(batch: Tensor) -> npt.NDArray[np.generic]:
    """A batch as numpy keeps it: channels last, bfloat16 as int16."""
    if batch.ndim == 4:
        batch = batch.permute(0, 2, 3, 1)
    batch = batch.contiguous()
    if batch.dtype == torch.bfloat16:
        batch = batch.view(torch.int16)
    array: npt.NDArray[np.generic] = batch.cpu().numpy()
    return array
