"""Steps that do not fit in memory, taken in parts: the same batch, the same mean loss, less at a time."""

import gc
from collections.abc import Callable
from itertools import pairwise
from typing import TypeVar

import torch

Part = TypeVar("Part")

OF_CPU_ALLOCATOR = "can't allocate memory"  # what torch says where a limit (ulimit -v) keeps it from growing


class StepTooLargeError(Exception):
    """A step does not fit in memory, however few images it takes at a time."""


class MicroBatches:
    """Takes steps in as many parts as memory asks for: whole, until one does not fit.

    Once it has split a batch, all that follow are split alike: what did not fit would not fit again.

    Args:
        smallest: the fewest images that a part may have.

    Attributes:
        n_parts: into how many parts a batch is split so far.
    """

    def __init__(self, *, smallest: int = 1) -> None:
        self.n_parts = 1
        self._smallest = smallest

    def run(
        self, n_images: int, take: Callable[[slice], Part], *, undo: Callable[[], None] = lambda: None
    ) -> list[Part]:
        """Call `take` for each part of a batch of `n_images`, in order; returns what it gave.

        Args:
            undo: forgets what the parts before have done, when the batch is tried again in smaller ones.

        Raises:
            StepTooLargeError: the smallest parts do not fit.
        """
        while True:
            problem = ""
            taken: list[Part] = []
            parts = self._parts(n_images)
            try:
                for part in parts:
                    taken.append(take(part))
                return taken
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                problem = str(error).strip().partition("\n")[0]
            # Here the error is gone, and with it the frames that hold what it could not add to.
            taken.clear()
            undo()
            _release()
            self.n_parts = min(2 * len(parts), self._most(n_images))
            if self.n_parts == len(parts):
                size = parts[0].stop - parts[0].start
                raise StepTooLargeError(
                    f"{n_images} images do not fit in memory, not even {size} at a time ({problem})"
                )

    def _most(self, n_images: int) -> int:
        """Into how many parts a batch can be split."""
        return max(1, n_images // self._smallest)

    def _parts(self, n_images: int) -> list[slice]:
        """Parts of nearly the same size, none smaller than the smallest where there are several."""
        n_parts = min(self.n_parts, self._most(n_images))
        bounds = [n_images * number // n_parts for number in range(n_parts + 1)]
        return [slice(first, last) for first, last in pairwise(bounds)]


def _release() -> None:
    """Free what an attempt has left in memory."""
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch leaves it untyped
        torch.cuda.empty_cache()


def is_out_of_memory(error: object) -> bool:
    """Whether an error says that memory ran out, on a GPU or under a limit of the process."""
    if isinstance(error, torch.OutOfMemoryError | StepTooLargeError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and OF_CPU_ALLOCATOR in str(error)
