"""Which node computes which shard of what frozen layers give, and which it fetches: decided as it goes."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

# What is assumed until it has been measured: a network of 1 Gb/s, and what two cores or a small GPU do.
ASSUMED_LINK_RATE = 1.25e8  # bytes a second
ASSUMED_FLOPS_RATE: dict[Literal["cpu", "cuda"], float] = {"cpu": 1e11, "cuda": 1e13}
FETCHES_AT_A_TIME = 2  # of a node: one is written while the next one travels


def is_cheaper_to_fetch(*, n_bytes: int, flops: int, link_rate: float, flops_rate: float) -> bool:
    """Whether activations come sooner from another node than from the frozen layers.

    Args:
        n_bytes: their size.
        flops: the operations that they take from the pixels, or from what is kept before them.
        link_rate: bytes a second from node to node.
        flops_rate: operations a second on one device.
    """
    return n_bytes / link_rate < flops / flops_rate


@dataclass
class Rates:
    """How fast nodes compute and fetch: what was measured of all so far, or else what is assumed."""

    flops_rate: float
    link_rate: float = ASSUMED_LINK_RATE
    _computed: list[float] = field(default_factory=lambda: [0.0, 0.0])  # operations, seconds
    _fetched: list[float] = field(default_factory=lambda: [0.0, 0.0])  # bytes, seconds

    def note_computing(self, flops: int, seconds: float) -> None:
        """Frozen layers took so long on one device."""
        self.flops_rate = _noted(self._computed, flops, seconds)

    def note_fetching(self, n_bytes: int, seconds: float) -> None:
        """Activations took so long from one node to another."""
        self.link_rate = _noted(self._fetched, n_bytes, seconds)


def _noted(sums: list[float], amount: float, seconds: float) -> float:
    sums[0] += amount
    sums[1] += max(seconds, 1e-6)
    return sums[0] / sums[1]


@dataclass(frozen=True)
class ShardCost:
    """What it takes to have a shard: its bytes, or the operations that give them."""

    n_bytes: int
    flops: int


class Handout:
    """Hands shards out to places, until each has all of them.

    A place is one cache, with the devices that fill it. A shard that nobody has is computed once; the others
    fetch it, unless they compute it sooner. What a place was at when it was lost goes to others.
    """

    def __init__(self, shards: Sequence[ShardCost], rates: Rates) -> None:
        self._shards = shards
        self._rates = rates
        self._has: dict[str, set[int]] = {}
        self._computing: dict[str, set[int]] = {}
        self._fetching: dict[str, dict[int, str]] = {}  # and from whom
        self._not_from: dict[str, set[str]] = {}
        self._without_device: set[str] = set()

    def add(self, place: str, has: Collection[int]) -> None:
        """A place comes in, with the shards that it has already."""
        self._has[place] = set(has)
        self._computing[place], self._fetching[place], self._not_from[place] = set(), {}, set()

    def lose(self, place: str) -> None:
        """A place is gone, and all that it had."""
        for known in (self._has, self._computing, self._fetching, self._not_from):
            known.pop(place, None)

    def lose_devices(self, place: str) -> None:
        """A place can compute no more: it fetches what it misses, whatever that costs."""
        self._without_device.add(place)

    def gain_devices(self, place: str) -> None:
        """A place can compute from now on."""
        self._without_device.discard(place)

    @property
    def places(self) -> tuple[str, ...]:
        """Those that are there."""
        return tuple(self._has)

    def misses(self, place: str) -> bool:
        """Whether a place has not all shards yet."""
        return len(self._has[place]) < len(self._shards)

    @property
    def is_done(self) -> bool:
        """Whether each place has all shards."""
        return not any(map(self.misses, self._has))

    def is_new(self, shard: int) -> bool:
        """Whether no place has a shard."""
        return not any(shard in has for has in self._has.values())

    def next_to_compute(self, place: str) -> int | None:
        """The shard that a free device of a place computes now, `None` if there is none for it."""
        if place not in self._has or place in self._without_device:
            return None
        taken = set().union(*self._has.values(), *self._computing.values())
        shard = next((number for number in range(len(self._shards)) if number not in taken), None)
        if shard is None:
            own = self._has[place] | self._computing[place] | self._fetching[place].keys()
            left = (number for number in range(len(self._shards)) if number not in own)
            shard = next((number for number in left if not self._can_fetch(number, place)), None)
        if shard is not None:
            self._computing[place].add(shard)
        return shard

    def next_to_fetch(self, place: str) -> tuple[int, str] | None:
        """The shard that a place fetches now, and from which place; `None` if there is none for it."""
        if len(self._fetching[place]) >= FETCHES_AT_A_TIME:
            return None
        own = self._has[place] | self._computing[place] | self._fetching[place].keys()
        asked = Counter(source for fetching in self._fetching.values() for source in fetching.values())
        for shard in range(len(self._shards)):
            if shard in own or not self._is_fetched(shard, place):
                continue
            sources = self._sources(shard, place)
            if sources:
                source = min(sources, key=lambda it: (asked[it], it))
                self._fetching[place][shard] = source
                return shard, source
        return None

    def have(self, place: str, shard: int) -> None:
        """A place has a shard now."""
        if place in self._has:
            self._has[place].add(shard)
            self._computing[place].discard(shard)
            self._fetching[place].pop(shard, None)

    def fail_to_compute(self, place: str, shard: int) -> None:
        """A device was lost at its work."""
        if place in self._has:
            self._computing[place].discard(shard)

    def fail_to_fetch(self, place: str, shard: int) -> None:
        """What was asked for did not come: this place asks that one no more."""
        if place in self._has and shard in self._fetching[place]:
            self._not_from[place].add(self._fetching[place].pop(shard))

    def _can_fetch(self, shard: int, place: str) -> bool:
        """Whether it comes sooner from another place, which has it or is at it."""
        is_coming = self.is_new(shard) or bool(self._sources(shard, place))
        return is_coming and self._is_fetched(shard, place)

    def _sources(self, shard: int, place: str) -> list[str]:
        return [it for it, has in self._has.items() if shard in has and it not in self._not_from[place]]

    def _is_fetched(self, shard: int, place: str) -> bool:
        cost = self._shards[shard]
        return place in self._without_device or is_cheaper_to_fetch(
            n_bytes=cost.n_bytes,
            flops=cost.flops,
            link_rate=self._rates.link_rate,
            flops_rate=self._rates.flops_rate,
        )
