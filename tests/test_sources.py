"""Where a trial reads from: the right image, in the right view, in every epoch."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from tune_inat.features import Rows
from tune_inat.sources import FreshSource, PlainSource, Source, ViewSource, batches_ahead, batches_in_turn

CPU = torch.device("cpu")
N_IMAGES = 40


def numbered(offset: float) -> Rows:
    """Row n holds n + offset."""
    return Rows((np.arange(N_IMAGES, dtype=np.float32) + np.float32(offset))[:, None], CPU)


def plain(offset: float, lead: nn.Module | None = None) -> PlainSource:
    return PlainSource(numbered(offset), torch.arange(N_IMAGES).flip(0), lead, "fp32")


def test_images_are_numbered_within_their_part() -> None:
    batch = plain(0.0).take(torch.tensor([0, 5]), 1)
    assert batch.flatten().tolist() == [39.0, 34.0]


def test_lead_goes_from_what_is_kept_to_the_cut() -> None:
    double = nn.Linear(1, 1, bias=False)
    nn.init.constant_(double.weight, 2.0)
    batch = plain(0.0, double).take(torch.tensor([1]), 1)
    assert batch.flatten().tolist() == [76.0]
    assert not batch.requires_grad


def view_of_each(source: ViewSource, epoch: int) -> list[float]:
    numbers = torch.arange(N_IMAGES).flip(0)
    return (source.take(torch.arange(N_IMAGES), epoch).flatten() - numbers).tolist()


def test_epoch_picks_one_view_of_each_image_in_the_order_asked_for() -> None:
    source = ViewSource([plain(0.0), plain(100.0), plain(200.0)], N_IMAGES, seed=1)
    chosen = view_of_each(source, 1)
    assert set(chosen) == {0.0, 100.0, 200.0}
    some = source.take(torch.tensor([7, 3]), 1).flatten()
    assert some.tolist() == [32 + chosen[7], 36 + chosen[3]]


@pytest.mark.parametrize("epochs", [(1, 2, 1), (2, 1)])
def test_views_follow_from_seed_and_epoch_alone(epochs: tuple[int, ...]) -> None:
    views = [plain(0.0), plain(100.0)]
    source = ViewSource(views, N_IMAGES, seed=1)
    for epoch in epochs:
        last = view_of_each(source, epoch)
    assert last == view_of_each(ViewSource(views, N_IMAGES, seed=1), 1)
    assert last != view_of_each(source, 2)
    assert last != view_of_each(ViewSource(views, N_IMAGES, seed=2), 1)


def test_fresh_views_are_drawn_for_the_epoch() -> None:
    asked = []

    def draw(numbers: Sequence[int], epoch: int) -> npt.NDArray[np.uint8]:
        asked.append((list(numbers), epoch))
        return np.full((len(numbers), 2, 2, 3), epoch, np.uint8)

    batch = FreshSource(draw, None, "fp32", CPU).take(torch.tensor([4, 2]), 3)
    assert asked == [([4, 2], 3)]
    assert batch.shape == (2, 3, 2, 2)
    assert set(batch.flatten().tolist()) == {3}


@pytest.mark.parametrize(
    "source",
    [plain(0.0), ViewSource([plain(0.0), plain(100.0)], N_IMAGES, seed=1)],
    ids=["plain", "views"],
)
def test_batches_read_ahead_are_those_read_in_turn(source: Source) -> None:
    steps = list(torch.split(torch.randperm(N_IMAGES), 7))
    in_turn = list(batches_in_turn(source, steps, 2))
    ahead = list(batches_ahead(source, steps, 2))
    assert len(ahead) == len(steps)
    assert all(torch.equal(one, other) for one, other in zip(in_turn, ahead, strict=True))


def test_a_batch_is_fetched_before_the_one_before_is_done_and_its_failure_comes_out() -> None:
    asked = []

    def draw(numbers: Sequence[int], epoch: int) -> npt.NDArray[np.uint8]:
        asked.append(numbers[0])
        if numbers[0] == 2:
            raise OSError("gone")
        return np.zeros((len(numbers), 2, 2, 3), np.uint8)

    batches = batches_ahead(FreshSource(draw, None, "fp32", CPU), list(torch.split(torch.arange(4), 1)), 1)
    next(batches)
    next(batches)
    with pytest.raises(OSError, match="gone"):
        next(batches)
    assert asked[:3] == [0, 1, 2]
