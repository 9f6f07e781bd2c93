"""Who computes and who fetches: each shard once where links are fast, everywhere where they are slow."""

from collections import Counter

import pytest

from tune_inat.handout import ASSUMED_LINK_RATE, Handout, Rates, ShardCost, is_cheaper_to_fetch

MEGABYTE = 10**6
COST = ShardCost(n_bytes=10 * MEGABYTE, flops=10**12)


@pytest.mark.parametrize(
    ("link_rate", "flops_rate", "fetches"),
    [
        (1.25e8, 1e11, True),  # 0.08 s on the network, 10 s on two cores
        (1e6, 1e11, False),  # 10 s either way: nothing is gained
        (1.25e8, 1e14, False),  # 10 ms on a large GPU
        (1.25e9, 1e14, True),  # whose network is fast as well
    ],
)
def test_activations_come_from_where_they_come_sooner(
    link_rate: float, flops_rate: float, fetches: bool
) -> None:
    assert (
        is_cheaper_to_fetch(
            n_bytes=COST.n_bytes, flops=COST.flops, link_rate=link_rate, flops_rate=flops_rate
        )
        is fetches
    )


def play(handout: Handout, *, losing: str | None = None, after: int = 0) -> tuple[Counter[int], Counter[str]]:
    """Let all places work in turn; returns how often each shard was computed, and what each place fetched."""
    computed: Counter[int] = Counter()
    fetched: Counter[str] = Counter()
    while not handout.is_done:
        moved = False
        for place in handout.places:
            if place == losing and sum(computed.values()) >= after:
                handout.next_to_compute(place)  # and dies of it
                handout.lose(place)
                losing = None
                moved = True
                continue
            shard = handout.next_to_compute(place)
            if shard is not None:
                handout.have(place, shard)
                computed[shard] += 1
                moved = True
            coming = handout.next_to_fetch(place)
            if coming is not None:
                assert coming[1] != place
                handout.have(place, coming[0])
                fetched[place] += 1
                moved = True
        assert moved, "nobody does anything, and there is work left"
    return computed, fetched


def handout_of(
    n_shards: int,
    places: dict[str, list[int]],
    flops_rate: float = 1e11,
    link_rate: float = ASSUMED_LINK_RATE,
) -> Handout:
    handout = Handout([COST] * n_shards, Rates(flops_rate, link_rate))
    for place, has in places.items():
        handout.add(place, has)
    return handout


def test_shards_are_computed_once_and_fetched_by_all_others() -> None:
    computed, fetched = play(handout_of(9, {"a": [], "b": [], "c": []}))
    assert computed == Counter(range(9))
    assert sum(fetched.values()) == 18


def test_over_a_slow_network_each_place_computes_for_itself() -> None:
    computed, fetched = play(handout_of(4, {"a": [], "b": []}, link_rate=1.0))
    assert computed == dict.fromkeys(range(4), 2)
    assert not fetched


def test_what_a_place_has_from_before_is_not_computed() -> None:
    computed, fetched = play(handout_of(4, {"a": [0, 1, 2, 3], "b": [1]}))
    assert not computed
    assert fetched == {"b": 3}


def test_what_a_lost_place_was_at_goes_to_another() -> None:
    handout = handout_of(6, {"a": [], "b": []})
    computed, _ = play(handout, losing="b", after=2)
    assert handout.places == ("a",)
    assert set(computed) == set(range(6))
    assert not handout.misses("a")


def test_place_without_a_device_fetches_whatever_it_costs() -> None:
    handout = handout_of(3, {"a": [], "b": []}, link_rate=1.0)
    handout.lose_devices("b")
    computed, fetched = play(handout)
    assert computed == Counter(range(3))
    assert fetched == {"b": 3}


def test_place_whose_devices_come_later_computes_what_is_dear_to_fetch() -> None:
    handout = handout_of(3, {"a": [0, 1, 2], "b": []}, link_rate=1.0)
    handout.lose_devices("b")
    assert handout.next_to_compute("b") is None
    assert handout.next_to_fetch("b") == (0, "a")
    handout.gain_devices("b")
    assert handout.next_to_compute("b") == 1
    assert handout.next_to_fetch("b") is None


def test_shard_that_no_place_gives_away_is_computed_again() -> None:
    handout = handout_of(1, {"a": [0], "b": []})
    assert handout.next_to_compute("b") is None
    assert handout.next_to_fetch("b") == (0, "a")
    handout.fail_to_fetch("b", 0)
    assert handout.next_to_fetch("b") is None
    assert handout.next_to_compute("b") == 0


def test_rates_are_those_that_were_measured() -> None:
    rates = Rates(flops_rate=1e11)
    rates.note_computing(10**12, 1.0)
    rates.note_computing(10**12, 3.0)
    rates.note_fetching(10**9, 1.0)
    assert (rates.flops_rate, rates.link_rate) == (5e11, 1e9)
