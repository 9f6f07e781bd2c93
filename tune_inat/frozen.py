"""Runs frozen layers over images, so that an image's values do not depend on those beside it."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from tune_inat.micro_batches import MicroBatches

Precision = Literal["fp32", "bf16"]

# numpy has no bfloat16: its bits are kept as int16.
STORED_TYPE: dict[Precision, tuple[type[np.generic], torch.dtype]] = {
    "fp32": (np.float32, torch.float32),
    "bf16": (np.int16, torch.bfloat16),
}

# A CPU runs so many images at a time through frozen layers, on one core, and the cores share the parts. How
# torch's libraries order a sum depends on how many images there are and on how many threads work on them; so
# this gives an image the same bits in whatever batch and process it comes by. It is faster as well, as a part
# stays in the cache: 128 images of 224 px to the end of ResNet-50 take 1.6 s so and 3.0 s in batches of 64 on
# both cores in bf16, 4.0 and 6.6 s in fp32 (Xeon with AVX-512 and AMX, torch 2.14, 2026-11).
PART_SIZE = 8

# With AVX-512, each image of a part is summed alike. With less, products of few rows treat the last ones
# otherwise: there, an image takes the place in its part that it has when all images go through in order.
PLACES_MATTER = torch.backends.cpu.get_cpu_capability() != "AVX512"


def run_frozen(
    network: nn.Module, batch: Tensor, precision: Precision, *, rows: Tensor | None = None
) -> Tensor:
    """A frozen network's output for a batch (n, ...), in the type and layout in which it would be stored.

    The cast is part of the definition: a trial without the store's help sees the same values.

    Args:
        rows: the number (n,) int64 of each image in its set. `None` for images that come by in the same
            batches wherever they do.
    """
    if batch.device.type != "cpu":
        parts_of = MicroBatches().run(len(batch), lambda part: _run(network, batch[part], precision))
        return _laid_out(parts_of[0] if len(parts_of) == 1 else torch.cat(parts_of))
    places = _places(len(batch), rows if PLACES_MATTER else None)
    n_parts = int(places.max()) // PART_SIZE + 1
    occupants = torch.zeros(n_parts * PART_SIZE, dtype=torch.int64)  # what stays empty repeats an image
    occupants[places] = torch.arange(len(batch))
    parts = (_take(batch, picked) for picked in torch.split(occupants, PART_SIZE))
    n_threads = torch.get_num_threads()
    if n_threads == 1 or n_parts == 1:
        with threads(1):
            outputs = [_run(network, part, precision) for part in parts]
    else:
        outputs = list(_pool(n_threads).map(lambda part: _run(network, part, precision), parts))
    return _take(torch.cat([_laid_out(output) for output in outputs]), places)


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Within it, operations that this thread starts take so many cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _run(network: nn.Module, batch: Tensor, precision: Precision) -> Tensor:
    with torch.no_grad(), torch.autocast(batch.device.type, torch.bfloat16, enabled=precision == "bf16"):
        output: Tensor = network(batch)
    return output.to(STORED_TYPE[precision][1])


@cache
def _pool(n_threads: int) -> ThreadPoolExecutor:
    """Threads whose operations take one core each."""
    pool = ThreadPoolExecutor(n_threads, thread_name_prefix="frozen", initializer=_take_one_core)
    all_are_there = threading.Barrier(n_threads + 1)
    for _ in range(n_threads):
        pool.submit(all_are_there.wait)
    all_are_there.wait()
    torch.set_num_threads(n_threads)  # the last number that was set is that of all threads to come
    return pool


def _take_one_core() -> None:
    torch.set_num_threads(1)
    torch.get_num_threads()  # a thread that was never asked takes over what another one sets later


def _places(n: int, rows: Tensor | None) -> Tensor:
    """Where each of n images stands (n,) int64, counted through all parts."""
    if rows is None:
        return torch.arange(n)
    within = rows % PART_SIZE
    places = torch.empty(n, dtype=torch.int64)
    for place in range(PART_SIZE):
        mine = torch.nonzero(within == place).flatten()
        places[mine] = torch.arange(len(mine)) * PART_SIZE + place
    return places


def _take(batch: Tensor, picked: Tensor) -> Tensor:
    """Some rows of a batch, in the same order in memory: (n, C, H, W) stays channels-last."""
    if batch.ndim != 4:
        return batch.index_select(0, picked)
    return batch.permute(0, 2, 3, 1).index_select(0, picked).permute(0, 3, 1, 2)


def _laid_out(output: Tensor) -> Tensor:
    """A batch as it comes from the store: dense, four dimensions with the second one last in memory."""
    if output.ndim != 4:
        return output.contiguous()
    return output.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
