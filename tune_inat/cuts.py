"""Which crossings of a network to keep activations at: what saves the most time within a budget of bytes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

# What memory-mapped activations are read and written at, in bytes a second, where nothing has been measured.
READ_RATE = 2e9
WRITE_RATE = 5e8


@dataclass(frozen=True)
class Point:
    """A crossing: bytes that one image takes there, and the operations from the pixels to there.

    Attributes:
        is_exact: whether what is kept there is not rounded, so that layers behind it may go on from it.
    """

    name: str
    n_bytes: int
    flops: int
    is_exact: bool = True


@dataclass(frozen=True)
class Need:
    """Trials that are cut at one place: how many images they read there, all epochs taken together."""

    cut: str
    n_reads: int


@dataclass(frozen=True)
class Images:
    """One set of images that goes through one network.

    Attributes:
        key: names the set and the network.
        points: the network's crossings in order, the pixels first.
        n_rows: images whose activations would be kept.
        needs: where trials read them.
        present: crossings whose activations are in the store already.
    """

    key: str
    points: Sequence[Point]
    n_rows: int
    needs: Sequence[Need]
    present: frozenset[str] = frozenset()

    def candidates(self) -> list[str]:
        """The crossings worth keeping: at or before a cut, and smaller than all between it and the cut."""
        order = [point.name for point in self.points]
        found: set[str] = set()
        for need in self.needs:
            smallest: int | None = None
            for point in reversed(self.points[1 : order.index(need.cut) + 1]):
                if not (point.is_exact or point.name == need.cut):
                    continue
                if smallest is None or point.n_bytes < smallest:
                    smallest = point.n_bytes
                    found.add(point.name)
        return [name for name in order if name in found]

    def size(self, name: str) -> int:
        """The bytes that the activations at a crossing take on the disk."""
        return self.n_rows * self._point(name).n_bytes

    def seconds(self, kept: frozenset[str], flops_rate: float) -> float:
        """What computing these activations once and reading them in all epochs takes.

        Args:
            kept: crossings; those not `present` are computed from the nearest before them that is there.
            flops_rate: operations that frozen layers do in a second.
        """
        total = 0.0
        for name in kept - self.present:
            point, before = self._point(name), self._before(name, kept | self.present)
            total += self.n_rows * (point.flops - before.flops) / flops_rate + self.size(name) / WRITE_RATE
        for need in self.needs:
            base = self._at_or_before(need.cut, kept)
            rest = self._point(need.cut).flops - base.flops
            total += need.n_reads * (rest / flops_rate + base.n_bytes / READ_RATE)
        return total

    def _point(self, name: str) -> Point:
        return next(point for point in self.points if point.name == name)

    def _before(self, name: str, there: frozenset[str]) -> Point:
        """The nearest crossing before one from which its activations can be computed, else the pixels."""
        before = self.points[: self.points.index(self._point(name))]
        usable = (point for point in reversed(before) if point.name in there and point.is_exact)
        return next(usable, self.points[0])

    def _at_or_before(self, name: str, there: frozenset[str]) -> Point:
        return self._point(name) if name in there else self._before(name, there)


def read_at(cut: str, crossings: Sequence[str], kept: frozenset[str], exact: frozenset[str]) -> str:
    """Where a trial reads: at its cut if that is kept, else at the last exact crossing before that is.

    Args:
        crossings: those of the network in order, the pixels first.
    """
    if cut in kept:
        return cut
    before = reversed(crossings[: crossings.index(cut)])
    return next((name for name in before if name in kept and name in exact), crossings[0])


@dataclass(frozen=True)
class KeptCuts:
    """What was decided for a set of images: where activations are kept, of the cuts that were considered."""

    kept: frozenset[str]
    considered: frozenset[str]


@dataclass(frozen=True)
class Choice:
    """What to keep of each set of images, by its key, and what would be kept as well if there were room."""

    kept: Mapping[str, frozenset[str]]
    crowded_out: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def decisions(self, sets: Sequence[Images]) -> dict[str, KeptCuts]:
        """The same, set by set, for those who will read there."""
        return {
            images.key: KeptCuts(self.kept[images.key], frozenset(need.cut for need in images.needs))
            for images in sets
        }


def choose_cuts(sets: Sequence[Images], *, budget: int | None, flops_rate: float) -> Choice:
    """Choose the crossings to keep so that computing and reading take the least time that is found.

    What is there already is used. Of the rest, whatever saves most goes first, once by seconds and once by
    seconds a byte, and the better of both is taken; then whatever has become useless goes again. (The problem
    is a knapsack; Nautilus, SIGMOD 2022, section 4, solves a like one as an integer program.)

    Args:
        budget: bytes that new activations may take; `None` is no limit.
        flops_rate: operations that frozen layers do in a second.
    """
    limit = float("inf") if budget is None else float(budget)
    greedy = [_fill(sets, limit, flops_rate, by_byte=by_byte) for by_byte in (False, True)]
    best = min(greedy, key=lambda kept: _total(sets, kept, flops_rate))
    if limit == float("inf"):
        return Choice(best)
    unlimited = _fill(sets, float("inf"), flops_rate, by_byte=False)
    crowded_out = {
        images.key: unlimited[images.key] - best[images.key]
        for images in sets
        if unlimited[images.key] - best[images.key]
    }
    return Choice(best, crowded_out)


Kept = dict[str, frozenset[str]]


def _fill(sets: Sequence[Images], limit: float, flops_rate: float, *, by_byte: bool) -> Kept:
    kept: Kept = {images.key: images.present.intersection(images.candidates()) for images in sets}
    room = limit
    while True:
        best_gain, best_addition = 0.0, None
        for images in sets:
            now = images.seconds(kept[images.key], flops_rate)
            for name in images.candidates():
                if name in kept[images.key] or images.size(name) > room:
                    continue
                gain = now - images.seconds(kept[images.key] | {name}, flops_rate)
                if by_byte:
                    gain /= images.size(name)
                if gain > best_gain:
                    best_gain, best_addition = gain, (images, name)
        if best_addition is None:
            return _without_useless(sets, kept, flops_rate)
        images, name = best_addition
        kept[images.key] |= {name}
        room -= images.size(name)


def _without_useless(sets: Sequence[Images], kept: Kept, flops_rate: float) -> Kept:
    """Without what a later addition has made superfluous."""
    for images in sets:
        for name in images.candidates():
            without = kept[images.key] - {name}
            if images.seconds(without, flops_rate) <= images.seconds(kept[images.key], flops_rate):
                kept[images.key] = without
    return kept


def _total(sets: Sequence[Images], kept: Kept, flops_rate: float) -> float:
    return sum(images.seconds(kept[images.key], flops_rate) for images in sets)
