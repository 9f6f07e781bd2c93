"""What is kept: what saves time, within the bytes there are, and nothing that is of no use."""

import itertools
import random
from dataclasses import replace

import pytest

from tune_inat.cuts import Images, Need, Point, choose_cuts

RATE = 1e9  # operations a second

# Bytes fall, then rise at an expansion, as in an inverted residual.
POINTS = (
    Point("input", 30_000, 0),
    Point("a", 100_000, 10**7),
    Point("b", 40_000, 3 * 10**7),
    Point("c", 160_000, 4 * 10**7),
    Point("d", 20_000, 6 * 10**7),
)


def images(*needs: tuple[str, int], key: str = "k", n_rows: int = 1000, present: str = "") -> Images:
    return Images(key, POINTS, n_rows, [Need(*need) for need in needs], frozenset(present))


def kept(*sets: Images, budget: int | None = None) -> dict[str, str]:
    choice = choose_cuts(sets, budget=budget, flops_rate=RATE)
    return {key: "".join(sorted(names)) for key, names in choice.kept.items()}


def test_with_room_each_cut_is_kept() -> None:
    assert kept(images(("b", 10_000), ("d", 10_000))) == {"k": "bd"}


def test_nothing_is_kept_for_reads_that_never_come() -> None:
    assert kept(images(("d", 0))) == {"k": ""}
    assert kept(images(("d", 500))) == {"k": ""}  # fewer than there are images to keep


def test_without_room_for_a_cut_a_smaller_crossing_before_it_is_kept() -> None:
    wide = images(("c", 10_000))
    assert kept(wide) == {"k": "c"}
    assert kept(wide, budget=wide.size("c") - 1) == {"k": "b"}
    assert kept(wide, budget=wide.size("b") - 1) == {"k": ""}


def test_what_found_no_room_is_named() -> None:
    wide = images(("c", 10_000))
    choice = choose_cuts([wide], budget=wide.size("b"), flops_rate=RATE)
    assert choice.crowded_out == {"k": frozenset("c")}
    assert choose_cuts([wide], budget=None, flops_rate=RATE).crowded_out == {}


def test_the_room_goes_where_it_saves_most() -> None:
    often, seldom = images(("d", 50_000), key="often"), images(("d", 2_000), key="seldom")
    assert kept(often, seldom, budget=often.size("d")) == {"often": "d", "seldom": ""}


def test_what_is_there_is_used_and_takes_no_room() -> None:
    assert kept(images(("d", 10_000), present="d"), budget=0) == {"k": "d"}


def test_a_crossing_that_is_wider_than_a_deeper_one_is_no_candidate() -> None:
    assert images(("d", 1)).candidates() == ["d"]
    assert images(("c", 1)).candidates() == ["b", "c"]
    assert images(("b", 1), ("c", 1)).candidates() == ["b", "c"]


def test_deeper_activations_cost_only_the_way_from_shallower_ones() -> None:
    both = images(("b", 0), ("d", 0))
    alone = both.seconds(frozenset("d"), RATE) + both.seconds(frozenset("b"), RATE)
    assert both.seconds(frozenset("bd"), RATE) < alone


def test_what_would_be_rounded_is_kept_at_a_cut_only() -> None:
    rounded = tuple(replace(point, is_exact=point.name != "b") for point in POINTS)
    wide = replace(images(("c", 10_000)), points=rounded)
    assert wide.candidates() == ["a", "c"]
    both = replace(images(("b", 10_000), ("c", 10_000)), points=rounded)
    assert both.candidates() == ["a", "b", "c"]
    from_pixels = both.seconds(frozenset("c"), RATE) - both.seconds(frozenset(), RATE)
    assert both.seconds(frozenset("bc"), RATE) - both.seconds(frozenset("b"), RATE) == pytest.approx(
        from_pixels
    )


@pytest.mark.parametrize("seed", range(20))
def test_the_choice_is_near_the_best_there_is(seed: int) -> None:
    draw = random.Random(seed)
    points = [Point("input", 30_000, 0)]
    for number in range(5):
        points.append(
            Point(
                str(number), draw.randrange(5_000, 200_000), points[-1].flops + draw.randrange(10**6, 10**8)
            )
        )
    needs = [Need(str(draw.randrange(5)), draw.randrange(20_000)) for _ in range(3)]
    one = Images("k", points, 1000, needs)
    budget = draw.randrange(10**7, 3 * 10**8)
    chosen = choose_cuts([one], budget=budget, flops_rate=RATE).kept["k"]
    assert sum(one.size(name) for name in chosen) <= budget
    subsets = itertools.chain.from_iterable(itertools.combinations("01234", n) for n in range(6))
    best = min(
        one.seconds(frozenset(names), RATE)
        for names in subsets
        if sum(one.size(name) for name in names) <= budget
    )
    assert one.seconds(chosen, RATE) <= 1.25 * best
