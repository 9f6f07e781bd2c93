"""Where a trial reads its images from: values kept at a cut, one of several views, or fresh views."""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tune_inat.features import Precision, Rows, run_frozen
from tune_inat.recipe import derive_seed


class Source(Protocol):
    """The images of a part, as they are at a trial's cut."""

    def take(self, picked: Tensor, epoch: int) -> Tensor:
        """The images numbered `picked` (n,) int64 within their part, as an epoch sees them."""
        ...


class PlainSource:
    """One value for each image, the same in every epoch; `lead` goes from what is kept to the cut."""

    def __init__(self, kept: Rows, rows: Tensor, lead: nn.Module | None, precision: Precision) -> None:
        self._kept, self._rows, self._lead, self._precision = kept, rows, lead, precision

    def take(self, picked: Tensor, epoch: int) -> Tensor:
        """See `Source`."""
        batch = self._kept.take(self._rows[picked])
        return batch if self._lead is None else run_frozen(self._lead, batch, self._precision)


class ViewSource:
    """Several views of each image; an epoch picks one of each, by the seed and the epoch's number."""

    def __init__(self, views: Sequence[Source], n_images: int, seed: int) -> None:
        self._views, self._n_images, self._seed = views, n_images, seed
        self._epoch = 0
        self._chosen = torch.empty(0, dtype=torch.int64)

    def take(self, picked: Tensor, epoch: int) -> Tensor:
        """See `Source`."""
        chosen = self._chosen_in(epoch)[picked]
        parts = [
            self._views[view].take(picked[chosen == view], epoch) for view in sorted(set(chosen.tolist()))
        ]
        back = chosen.argsort(stable=True).argsort()  # from the order of views to the order asked for
        batch = torch.cat(parts)
        return batch[back.to(batch.device)]

    def _chosen_in(self, epoch: int) -> Tensor:
        if self._epoch != epoch:
            generator = torch.Generator().manual_seed(derive_seed(self._seed, "views", epoch))
            self._chosen = torch.randint(len(self._views), (self._n_images,), generator=generator)
            self._epoch = epoch
        return self._chosen


class FreshSource:
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

    def take(self, picked: Tensor, epoch: int) -> Tensor:
        """See `Source`."""
        batch = torch.from_numpy(self._draw(picked.tolist(), epoch)).to(self._device).permute(0, 3, 1, 2)
        return batch if self._lead is None else run_frozen(self._lead, batch, self._precision)
