"""Trials on a GPU: never more than its memory holds, never more than gain, and each one fits."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tune_inat.packing import (
    GAIN,
    Card,
    Measured,
    Packing,
    counts_up_to,
    memory_fraction,
    n_fitting,
    n_gaining,
    pack,
    share_of,
    spread,
)

GB = 10**9
sizes = st.integers(1 * GB, 200 * GB)


@st.composite
def cards(draw: st.DrawFn) -> Card:
    n_bytes = draw(sizes)
    return Card("a card", n_bytes, draw(st.integers(n_bytes // 2, n_bytes)))


@st.composite
def measurements(draw: st.DrawFn) -> Measured:
    counts = list(counts_up_to(draw(st.integers(1, 16))))
    rates = draw(st.lists(st.floats(1, 1e5), min_size=len(counts), max_size=len(counts)))
    step, process = draw(st.integers(10**6, 50 * GB)), draw(st.integers(0, GB))
    return Measured(step, process, dict(zip(counts, rates, strict=True)))


few = st.integers(1, 64)


@given(cards(), measurements(), few, few, few)
def test_trials_that_share_a_gpu_fit_and_are_no_more_than_gain(
    card: Card, measured: Measured, n_gpus: int, n_by_cores: int, n_wanted: int
) -> None:
    packing = pack(card, measured, n_gpus=n_gpus, n_by_cores=n_by_cores, n_wanted=n_wanted)
    n = packing.per_gpu
    assert 1 <= n <= min(n_by_cores, n_wanted)
    assert n <= max(measured.throughput)
    if n > 1:
        assert n * measured.trial_bytes <= card.usable
        fraction = packing.memory_fraction
        assert fraction is not None
        assert n * (fraction * card.n_bytes + measured.process_bytes) <= card.usable + n
        assert fraction * card.n_bytes >= measured.step_bytes - 1  # the cap leaves room for the step
        counts = [count for count in sorted(measured.throughput) if count <= n_gaining(measured.throughput)]
        for fewer, more in pairwise(counts):
            grown = measured.throughput[more] / measured.throughput[fewer]
            assert grown >= GAIN ** math.log2(more / fewer) * (1 - 1e-9)


@given(few)
def test_ray_puts_exactly_so_many_shares_on_a_gpu(n: int) -> None:
    share = share_of(n)
    in_steps = round(share * 10_000)  # as Ray counts them
    assert in_steps * n <= 10_000 < in_steps * (n + 1)
    assert share == in_steps / 10_000
    assert share == 1 or share < 1


@given(cards(), few)
def test_a_trial_that_does_not_fit_gets_a_whole_gpu(card: Card, n_wanted: int) -> None:
    measured = Measured(2 * card.n_bytes, GB, {1: 100.0})
    packing = pack(card, measured, n_gpus=1, n_by_cores=64, n_wanted=n_wanted)
    assert (packing.per_gpu, packing.memory_fraction, packing.share) == (1, None, 1.0)


@given(st.lists(st.tuples(few, st.integers(1, 16)), min_size=1, max_size=4), few)
def test_no_gpu_idles_for_another_to_be_full(kinds: list[tuple[int, int]], n_trials: int) -> None:
    card = Card("a card", GB, GB)
    packings = [Packing(card, n_gpus, per_gpu, "memory", per_gpu) for n_gpus, per_gpu in kinds]
    spreaded = spread(packings, n_trials)
    room = sum(packing.n_gpus * packing.per_gpu for packing in packings)
    taken = sum(packing.n_gpus * packing.per_gpu for packing in spreaded)
    assert taken >= min(n_trials, room)
    level = max(packing.per_gpu for packing in spreaded)
    assert all(new.per_gpu == min(old.per_gpu, level) for old, new in zip(packings, spreaded, strict=True))
    if level > 1:  # one less on each would be too few
        assert sum(p.n_gpus * min(p.per_gpu, level - 1) for p in packings) < n_trials


@pytest.mark.parametrize(
    ("throughput", "most"),
    [
        ({1: 100.0}, 1),
        ({1: 100.0, 2: 105.0}, 1),
        ({1: 100.0, 2: 190.0, 4: 330.0, 8: 340.0}, 4),
        ({1: 100.0, 2: 190.0, 3: 260.0}, 3),
        ({1: 100.0, 2: 90.0, 4: 400.0}, 1),  # what comes after a loss is not trusted
    ],
)
def test_as_many_trials_as_still_gain(throughput: dict[int, float], most: int) -> None:
    assert n_gaining(throughput) == most


@pytest.mark.parametrize(
    ("change", "limit", "per_gpu"),
    [
        ({"n_by_cores": 2}, "cores", 2),
        ({"n_wanted": 3}, "trials", 3),
        ({"most": 2}, "most", 2),
        ({}, "memory", 5),  # 76 GB for trials, 14.8 GB each with room to spare
    ],
)
def test_the_reason_is_said(change: dict[str, int], limit: str, per_gpu: int) -> None:
    rates = {1: 100.0, 2: 200.0, 4: 400.0, 5: 500.0}
    arguments = {"n_by_cores": 8, "n_wanted": 8, **change}
    packing = pack(Card("H", 80 * GB, 80 * GB), Measured(12 * GB, GB, rates), n_gpus=1, **arguments)
    assert (packing.limit, packing.per_gpu) == (limit, per_gpu)


def test_trials_on_one_gpu_take_longer_each_by_what_was_measured() -> None:
    measured = Measured(GB, 0, {1: 100.0, 2: 160.0})
    packing = pack(Card("H", 80 * GB, 80 * GB), measured, n_gpus=1, n_by_cores=8, n_wanted=8)
    assert packing.per_gpu == 2
    assert packing.load == pytest.approx(1.25)


def test_memory_that_others_have_is_left_to_them() -> None:
    measured = Measured(10 * GB, 0, {})
    assert n_fitting(Card("H", 80 * GB, 80 * GB), measured) == 6
    assert n_fitting(Card("H", 80 * GB, 25 * GB), measured) == 2
    assert memory_fraction(Card("H", 80 * GB, 25 * GB), 2, 0) < 0.16
