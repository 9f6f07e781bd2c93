"""Where a trial reads its images from: values kept at a cut, one of several views, or fresh views."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tune_inat.features import Rows
from tune_inat.frozen import Precision, run_frozen
from tune_inat.recipe import derive_seed


class Source(ABC):
    """The images of a part, as they are at a trial's cut.

    Reading them has two halves, so that one batch can be fetched while the device computes on another.
    """

    @abstractmethod
    def fetch(self, picked: Tensor, epoch: int) -> Any:
        """Bring the images numbered `picked` (n,) int64 within their part into memory; in any thread."""

    @abstractmethod
    def finish(self, fetched: Any) -> Tensor:
        """What was fetched as it is at the cut, on the device."""

    def take(self, picked: Tensor, epoch: int) -> Tensor:
        """The images numbered `picked` (n,) int64 within their part, as an epoch sees them."""
        return self.finish(self.fetch(picked, epoch))


def batches_ahead(source: Source, steps: Sequence[Tensor], epoch: int) -> Iterator[Tensor]:
    """The batches of an epoch, each fetched by a thread of its own while the one before is worked on."""
    with ThreadPoolExecutor(1, thread_name_prefix="fetch") as pool:
        coming = pool.submit(source.fetch, steps[0], epoch)
        for following in (*steps[1:], None):
            fetched = coming.result()
            if following is not None:
                coming = pool.submit(source.fetch, following, epoch)
            yield source.finish(fetched)


def batches_in_turn(source: Source, steps: Sequence[Tensor], epoch: int) -> Iterator[Tensor]:
    """The batches of an epoch, each read when it is asked for: all cores that there are train."""
    for picked in steps:
        yield source.take(picked, epoch)


class PlainSource(Source):
    """One value for each image, the same in every epoch; `lead` goes from what is kept to the cut."""

    def __init__(self, kept: Rows, rows: Tensor, lead: nn.Module | None, precision: Precision) -> None:
        self._kept, self._rows, self._lead, self._precision = kept, rows, lead, precision

    def fetch(self, picked: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """See `Source`."""
        rows = self._rows[picked]
        return rows, self._kept.fetch(rows)

    def finish(self, fetched: tuple[Tensor, Tensor]) -> Tensor:
        """See `Source`."""
        rows, kept = fetched
        batch = self._kept.finish(kept)
        return batch if self._lead is None else run_frozen(self._lead, batch, self._precision, rows=rows)


class ViewSource(Source):
    """Several views of each image; an epoch picks one of each, by the seed and the epoch's number."""

    def __init__(self, views: Sequence[Source], n_images: int, seed: int) -> None:
        self._views, self._n_images, self._seed = views, n_images, seed
        self._epoch = 0
        self._chosen = torch.empty(0, dtype=torch.int64)

    def fetch(self, picked: Tensor, epoch: int) -> tuple[list[tuple[int, Any]], Tensor]:
        """See `Source`."""
        chosen = self._chosen_in(epoch)[picked]
        parts = [
            (view, self._views[view].fetch(picked[chosen == view], epoch))
            for view in sorted(set(chosen.tolist()))
        ]
        return parts, chosen.argsort(stable=True).argsort()  # from the order of views to the order asked for

    def finish(self, fetched: tuple[list[tuple[int, Any]], Tensor]) -> Tensor:
        """See `Source`."""
        parts, back = fetched
        batch = torch.cat([self._views[view].finish(part) for view, part in parts])
        return batch[back.to(batch.device)]

    def _chosen_in(self, epoch: int) -> Tensor:
        if self._epoch != epoch:
            generator = torch.Generator().manual_seed(derive_seed(self._seed, "views", epoch))
            self._chosen = torch.randint(len(self._views), (self._n_images,), generator=generator)
            self._epoch = epoch
        return self._chosen


class FreshSource(Source):
    """A new view of each image in each epoch: decoded, drawn and run through the frozen layers every time.

    Args:
        draw: gives the pixels (n, S, S, 3) uint8 of the images of these numbers, as an epoch draws them.
    """

    def __init__(
        self,
        draw: Callable[[Sequence[int], int], npt.NDArray[np.uint8]],
        lead: nn.Module | None,
        precision: Precision,
        device: torch.device,
    ) -> None:
        self._draw, self._lead, self._precision, self._device = draw, lead, precision, device

    def fetch(self, picked: Tensor, epoch: int) -> Tensor:
        """See `Source`."""
        return torch.from_numpy(self._draw(picked.tolist(), epoch))

    def finish(self, fetched: Tensor) -> Tensor:
        """See `Source`."""
        batch = fetched.to(self._device).permute(0, 3, 1, 2)
        return batch if self._lead is None else run_frozen(self._lead, batch, self._precision)
